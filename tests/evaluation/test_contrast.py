import io
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from clip_italian.config import ConfigError
from clip_italian.evaluation import contrast, drawings
from clip_italian.evaluation.languages.it import articles

ITEMS = contrast.read_items(contrast.ITALIAN)
PICTURED = [item for item in ITEMS if not item.anchor]
ANCHORED = [item for item in ITEMS if item.anchor]
HEADER = "probe\tcaption_a\tscene_a\tcaption_b\tscene_b\tanchor\n"

# --- A small reading of the Italian captions, which shares nothing with the drawings. ---

NOUNS = {
    "circle": "cerchio cerchi", "square": "quadrato quadrati", "triangle": "triangolo triangoli",
    "star": "stella stelle", "heart": "cuore cuori", "house": "casa case",
    "car": "macchina macchine", "fish": "pesce pesci", "flower": "fiore fiori",
    "boat": "barca barche", "balloon": "palloncino palloncini", "cup": "tazza tazze",
}  # fmt: skip
COLORS = {
    "red": "rosso rossa rossi rosse", "blue": "blu", "green": "verde verdi",
    "yellow": "giallo gialla gialli gialle", "orange": "arancione arancioni", "purple": "viola",
    "pink": "rosa", "brown": "marrone marroni", "black": "nero nera neri nere",
}  # fmt: skip
SHAPE_OF = {word: shape for shape, words in NOUNS.items() for word in words.split()}
COLOR_OF = {word: color for color, words in COLORS.items() for word in words.split()}
NUMBERS = ("due", "tre", "quattro", "cinque", "sei", "sette", "otto", "nove")
NUMBER_OF = {word: count for count, word in enumerate(NUMBERS, start=2)} | dict.fromkeys(
    ("un", "uno", "una"), 1
)
SIDE_OF = {"sinistra": "left", "sinistro": "left", "destra": "right", "destro": "right"}
OTHER_SIDE = {"left": "right", "right": "left"}


def words_of(caption):
    return re.findall(r"\w+|[,:]", caption.replace("'", " "))


def colored(words):
    """(shape, the colour that follows it before the next noun, or None) for each noun."""
    found = []
    for word in words:
        if word in SHAPE_OF:
            found.append([SHAPE_OF[word], None])
        elif word in COLOR_OF and found and found[-1][1] is None:
            found[-1][1] = COLOR_OF[word]
    return [tuple(pair) for pair in found]


def read_counts(caption):
    """Counter of (shape, colour or None): what the last numeral before each noun says."""
    words, counts, count, shape = words_of(caption), Counter(), None, None
    for place, word in enumerate(words):
        if word in NUMBER_OF:
            count = NUMBER_OF[word]
        elif word in SHAPE_OF:
            shape, color = colored(words[place:])[0]
            counts[shape, color] += count
        elif word in COLOR_OF and words[place - 1] in NUMBER_OF:  # "quattro verdi e tre gialli"
            counts[shape, COLOR_OF[word]] += count
    return counts


def read_sides(caption):
    """(shape, colour or None) → side."""
    words = words_of(caption)
    for place, word in enumerate(words):
        after = [w for w in words[place + 1 : place + 4] if w not in ("un", "una")]
        if word in SIDE_OF and after and re.fullmatch(r"di|del|della|dell|dello", after[0]):
            if after[1] not in SHAPE_OF:
                continue  # "nella metà sinistra dell'immagine"
            before, then = colored(words[:place]), colored(words[place:])
            what, reference = (before[0], then[0]) if before else (then[1], then[0])
            return {what: SIDE_OF[word], reference: OTHER_SIDE[SIDE_OF[word]]}
    sides = {}
    for clause in re.split(r",? mentre |, | e ", caption):
        (side,) = {SIDE_OF[word] for word in words_of(clause) if word in SIDE_OF}
        (what,) = colored(words_of(clause))
        sides[what] = side
    return sides


def read_claims(caption):
    """A list of (kind, shape, colours): what a caption of the negation probe says."""
    text = " ".join(words_of(caption))
    noun = f"({'|'.join(SHAPE_OF)})"
    color = f"({'|'.join(COLOR_OF)})"
    article = "(?:(?:nessuna|nessun|una|un|il|la|i|le) )?"
    rules = [  # the first that fits takes its words away
        ("not all", rf"non tutt[ei] (?:le|i) {noun} sono {color}"),
        ("all", rf"tutt[ei] (?:le|i) {noun} sono {color}"),
        ("none", rf"nessun[oa] de(?:i|lle) {noun} è {color}"),
        ("but", rf"{noun} non è {color} (?:, è|ma) {color}"),
        ("none", rf"{noun} (?:che )?non (?:è |sono )?{color}"),
        ("absent", rf"(?:non c è|non ci sono|senza|né|manca) {article}{noun}"),
        ("absent", rf"nessuna? {noun}(?: {color})?"),
        ("present", rf"{noun}(?: {color})?"),
    ]
    claims = []
    for kind, rule in rules:
        for found in re.finditer(rule, text):
            shape, *colors = [group for group in found.groups() if group]
            claims.append((kind, SHAPE_OF[shape], tuple(COLOR_OF[name] for name in colors)))
        text = re.sub(rule, " ", text)
    left = [word for word in text.split() if word in ("non", "senza", "né", "nessun", "nessuna")]
    assert claims and not left, (caption, claims, text)
    return claims


def holds(claim, things):
    kind, shape, colors = claim
    own = [color for color, other in things if other == shape]
    same = [not colors or color == colors[0] for color in own]
    return {
        "not all": bool(own) and not all(same),
        "all": bool(own) and all(same),
        "none": bool(own) and not any(same),
        "but": bool(own) and not any(same) and all(color == colors[-1] for color in own),
        "absent": not any(same),
        "present": any(same),
    }[kind]


def things_of(scene):
    """[(colour, shape)] of a scene, sides left out."""
    found = []
    for part in scene.split(";"):
        *count, color, shape = part.partition("@")[0].split()
        found += [(color, shape)] * int(count[0] if count else 1)
    return found


def counts_hold(caption, scene):
    counts, things = read_counts(caption), things_of(scene)
    told = {
        key: sum(1 for color, shape in things if shape == key[0] and key[1] in (None, color))
        for key in counts
    }
    return told == dict(counts) and sum(counts.values()) == len(things)


def sides_hold(caption, scene):
    drawn = {}
    for part in scene.split(";"):
        what, _, side = part.partition("@")
        color, shape = what.split()
        drawn[color, shape] = side.strip()
    told = read_sides(caption)
    assert len(told) == len(drawn), caption
    return all(
        [where for (hue, form), where in drawn.items() if form == shape and color in (None, hue)]
        == [side]
        for (shape, color), side in told.items()
    )


def claims_hold(caption, scene):
    return all(holds(claim, things_of(scene)) for claim in read_claims(caption))


def colors_hold(caption, scene):
    told = colored(words_of(caption))
    assert all(color for _, color in told), caption
    return set(told) == {(shape, color) for color, shape in things_of(scene)}


READERS = {
    "left_right": sides_hold,
    "number": counts_hold,
    "colour_binding": colors_hold,
    "negation": claims_hold,
}


@pytest.mark.parametrize("item", PICTURED, ids=lambda item: item.caption_a)
def test_a_caption_is_true_of_its_own_scene_and_false_of_the_other(item):
    read = READERS[item.probe]
    assert read(item.caption_a, item.scene_a) and read(item.caption_b, item.scene_b)
    assert not read(item.caption_a, item.scene_b) and not read(item.caption_b, item.scene_a)


def test_each_probe_has_about_twenty_items_and_no_caption_is_there_twice():
    counts = Counter(item.probe for item in ITEMS)
    assert set(counts) == {*READERS, "gendered_professions"}
    assert all(20 <= count <= 25 for count in counts.values())
    captions = [text for item in PICTURED for text in (item.caption_a, item.caption_b)]
    assert len(captions) == len(set(captions))


FEMININE = {"star", "house", "car", "boat", "cup"}


def test_articles_and_colours_agree_with_their_nouns():
    checked = Counter()
    for caption in (text for item in PICTURED for text in (item.caption_a, item.caption_b)):
        for article, noun in re.findall(r"\b(un|uno|una|il|lo|la|i|gli|le) (\w+)", caption):
            if noun in SHAPE_OF:
                gender = "f" if SHAPE_OF[noun] in FEMININE else "m"
                number = "sp"[NOUNS[SHAPE_OF[noun]].split().index(noun)]
                make = articles.indefinite if article.startswith("un") else articles.definite
                assert f"{article} {noun}" == make(noun, gender, number), caption
                checked["article"] += 1
        noun, color = "|".join(SHAPE_OF), "|".join(COLOR_OF)
        rule = rf"\b({noun}) (?:che )?(?:non )?(?:invece )?(è |sono )?({color})\b"
        for noun, verb, color in re.findall(rule, caption):
            # "nessuna delle case è rossa": the verb tells the number
            plural = NOUNS[SHAPE_OF[noun]].split().index(noun) and verb != "è "
            forms = COLORS[COLOR_OF[color]].split()
            forms = {1: forms * 4, 2: [forms[0]] * 2 + [forms[-1]] * 2, 4: forms}[len(forms)]
            assert color == forms[2 * plural + (SHAPE_OF[noun] in FEMININE)], caption
            checked["colour"] += 1
    assert checked["article"] > 150 and checked["colour"] > 150, checked


# --- The drawings are true to their scenes, pixel by pixel. ---


def pieces(image, color):
    """(centre x, pixels) of each connected area that has exactly this colour."""
    mask = (np.asarray(image) == np.array(drawings.COLORS[color], np.uint8)).all(-1)
    if not mask.any():
        return []
    labels, _ = ndimage.label(mask)
    found = [np.nonzero(labels == label)[1] for label in np.unique(labels[mask])]
    return [(columns.mean(), len(columns)) for columns in found if len(columns) > 20]


@pytest.mark.parametrize("item", PICTURED, ids=lambda item: item.caption_a)
def test_drawings_hold_what_the_scene_says(item):
    scenes = (item.scene_a, item.scene_b)
    for scene, image in zip(scenes, drawings.draw(scenes, "a seed"), strict=True):
        assert image.size == (224, 224) and image.mode == "RGB"
        things = drawings.parse_scene(scene)
        for color in drawings.COLORS:
            sides = [thing.side for thing in things if thing.color == color]
            found = pieces(image, color)
            assert len(found) == len(sides), (scene, color)
            if item.probe == "left_right" and len(sides) == 1:
                assert (found[0][0] < 112) == (sides[0] == "left")
        border = np.asarray(image).copy()
        border[1:-1, 1:-1] = 255
        assert (border == 255).all(), "a thing is cut off"


def embedded(seed, *scenes):
    return [np.asarray(image).astype(int) for image in drawings.draw(scenes, seed)]


@pytest.mark.parametrize("seed", "abc")
def test_two_pictures_differ_in_the_contrast_and_in_nothing_else(seed):
    one, other = embedded(seed, "red circle; blue star", "blue circle; red star")
    assert ((one != 255).any(-1) == (other != 255).any(-1)).all()  # the same outlines
    few, many = embedded(seed, "2 red heart", "4 red heart")
    kept = (few != 255).any(-1)
    assert kept.any() and (many[kept] == few[kept]).all()  # two are where they were
    left, right = drawings.draw(
        ["red cup @ left; blue cup @ right", "red cup @ right; blue cup @ left"], seed
    )
    for color in ("red", "blue"):
        (here, size), (there, same) = pieces(left, color)[0], pieces(right, color)[0]
        assert size == same and abs(abs(here - there) - 112) < 1e-6


def test_places_depend_on_the_seed():
    (one,), (again,), (other,) = (drawings.draw(["red star"], seed) for seed in "aab")
    assert one.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    ("scene", "message"),
    [
        ("rosso circle", "'rosso circle' is no thing; needed are an optional count, a colour"),
        ("red cerchio", "'red cerchio' is no thing"),
        ("red", "'red' is no thing"),
        ("red circle;", "'' is no thing"),
        ("red circle @ top", "@ must be followed by left or right"),
        ("red circle @", "@ must be followed by left or right"),
        ("10 red circle", "10 things; 1 to 9 are allowed"),
        ("0 red circle", "0 things; 1 to 9 are allowed"),
        ("2 red circle @ left", "one thing on each side"),
        ("red circle @ left; blue star", "one thing on each side, and no other"),
        ("red circle @ left; blue star; blue star", "one thing on each side, and no other"),
    ],
)
def test_what_is_no_scene_is_refused(scene, message):
    with pytest.raises(ConfigError, match=message):
        drawings.parse_scene(scene)


# --- Gendered professions. ---

SUFFIXES = [("o", "a"), ("tore", "trice"), ("iere", "iera"), ("gnere", "gnera"), ("", "")]


def profession(caption):
    """(template, noun, gender) of a caption whose article is right for one of the genders."""
    found = []
    for match in re.finditer(r"un'(\w+)|(?:un|uno|una) (\w+)", caption):
        noun = match[1] or match[2]
        for gender in ("m", "f"):
            if match[0] == articles.indefinite(noun, gender, "s"):
                found.append((caption.replace(match[0], "*"), noun, gender))
    # "una foto di una chirurga": the last noun is the profession, the first the kind of picture.
    persons = [one for one in found if one[1] not in ("foto", "ritratto", "immagine")]
    assert len(persons) == 1, caption
    return persons[0]


def same_profession(masculine, feminine):
    return any(
        masculine.endswith(m) and masculine[: len(masculine) - len(m)] + f == feminine
        for m, f in SUFFIXES
    )


@pytest.mark.parametrize("item", ANCHORED, ids=lambda item: item.anchor)
def test_professions_follow_the_plan(item):
    (frame, noun, gender), right, wrong = map(
        profession, (item.anchor, item.caption_a, item.caption_b)
    )
    assert frame == right[0] == wrong[0]
    assert right[2] != gender == wrong[2]
    pair = (noun, right[1]) if gender == "m" else (right[1], noun)
    assert same_profession(*pair) and wrong[1] not in pair


def test_both_genders_are_anchors_equally_often():
    anchors = [profession(item.anchor) for item in ANCHORED]
    assert Counter(gender for _, _, gender in anchors) == {"f": 12, "m": 12}
    epicene = [
        item for item in ANCHORED if profession(item.anchor)[1] == profession(item.caption_a)[1]
    ]
    assert len(epicene) == 10


# --- Reading, embedding, scoring. ---


def item(probe, anchor=""):
    scenes = ("", "") if anchor else ("red circle", "blue circle")
    return contrast.Item(probe, "a", scenes[0], "b", scenes[1], anchor)


def pair_embeds(scores):
    """Embeddings of two pictures and two captions with the given [picture, caption] scores."""
    return np.eye(2, dtype=np.float32), np.asarray(scores, np.float32).T


def test_scores_worked_out_by_hand():
    tables = [
        [[0.9, 0.1], [0.2, 0.8]],  # all four right: text, image and group
        [[0.9, 0.1], [0.8, 0.2]],  # picture b prefers caption a; caption a and b find theirs
        [[0.9, 0.9], [0.2, 0.8]],  # picture a cannot tell: a tie is wrong; caption b cannot err
        [[0.1, 0.5], [0.5, 0.1]],  # all four wrong
    ]
    items = [item("left_right")] * 3 + [item("negation"), *[item("jobs", "anchor")] * 2]
    images, captions = zip(*(pair_embeds(table) for table in tables), strict=True)
    jobs = [[1, 0], [0.5, 1], [0.4, 1], [1, 0], [0.5, 1], [0.5, -1]]  # closer; as close: wrong
    text_embeds = np.concatenate([*captions, np.asarray(jobs, np.float32)])
    scores = contrast.score(items, np.concatenate(images), text_embeds)
    assert list(scores) == ["left_right", "negation", "jobs"]
    # Table 2: pictures 1 of 2; captions: 0.9 > 0.8 and 0.2 > 0.1, both. Table 3: pictures 1 of 2;
    # captions: 0.9 > 0.2 right, 0.8 < 0.9 wrong.
    np.testing.assert_array_equal(scores["left_right"].item_accuracy, [1, 0.75, 0.5])
    assert scores["left_right"].winoground == {"text": 1 / 3, "image": 2 / 3, "group": 1 / 3}
    assert (scores["left_right"].choices, scores["jobs"].choices) == (12, 2)
    assert scores["negation"].accuracy == 0 and scores["jobs"].winoground == {}
    np.testing.assert_array_equal(scores["jobs"].item_accuracy, [1, 0])
    assert contrast.metrics(scores) == pytest.approx(
        {
            "contrast/accuracy": (0.75 + 0 + 0.5) / 3,
            "contrast/left_right/accuracy": 0.75,
            "contrast/left_right/text": 1 / 3,
            "contrast/left_right/image": 2 / 3,
            "contrast/left_right/group": 1 / 3,
            "contrast/negation/accuracy": 0,
            "contrast/negation/text": 0,
            "contrast/negation/image": 0,
            "contrast/negation/group": 0,
            "contrast/jobs/accuracy": 0.5,
        }
    )


def test_chance_is_what_random_embeddings_get():
    rng = np.random.default_rng(0)
    items = [item("p")] * 20000
    # Pairs with independent scores: each picture against its two captions in dimensions of its own.
    images = np.tile(np.eye(2), (20000, 1))
    scores = contrast.score(items, images, rng.normal(size=(40000, 2)))["p"]
    assert scores.accuracy == pytest.approx(contrast.CHANCE["accuracy"], abs=0.01)
    for name, value in scores.winoground.items():
        assert value == pytest.approx(contrast.CHANCE[name], abs=0.012), name


def test_a_reader_of_the_captions_scores_one_and_a_constant_model_zero():
    images = np.eye(2 * len(PICTURED), dtype=np.float32)
    anchored = np.tile(np.eye(len(images), dtype=np.float32)[:2], (len(ANCHORED), 1, 1))
    jobs = anchored[:, [0, 0, 1]].reshape(-1, len(images))  # anchor = right caption
    perfect = contrast.metrics(contrast.score(ITEMS, images, np.concatenate([images, jobs])))
    assert set(perfect.values()) == {1.0}
    same = np.ones((len(contrast.texts(ITEMS)), 4), np.float32)
    blind = contrast.metrics(contrast.score(ITEMS, same[: len(images)], same))
    assert set(blind.values()) == {0.0}


def test_items_without_pictures_are_scored():
    scores = contrast.score([item("jobs", "x")], np.zeros((0, 2)), np.eye(3)[:, :2])
    assert scores["jobs"].accuracy == 0


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        (np.zeros((2, 2)), np.zeros((4, 2)), "embeddings of 2 images and 5 texts are needed"),
        (np.zeros((1, 2)), np.zeros((5, 2)), r"got shapes \(1, 2\) and \(5, 2\)"),
        (np.zeros((2, 3)), np.zeros((5, 2)), "are needed"),
        (np.full((2, 2), np.nan), np.zeros((5, 2)), "not finite"),
        (np.zeros((2, 2)), np.full((5, 2), np.inf), "not finite"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(images, captions, message):
    with pytest.raises(ValueError, match=message):
        contrast.score([item("p"), item("q", "x")], images, captions)


def test_the_collection_shows_each_picture_with_its_caption():
    collection = contrast.collection(ITEMS)
    assert len(collection) == len(collection.captions) == 176
    assert collection.image_keys[:2] == ["left_right/0a", "left_right/0b"]
    assert len(set(collection.image_keys)) == 176
    assert collection.captions == contrast.texts(ITEMS)[:176]
    assert collection.caption_image.tolist() == list(range(176))
    first, third = collection.read(np.array([0, 2]))
    assert Image.open(io.BytesIO(first)).size == (224, 224) and first != third
    assert pieces(Image.open(io.BytesIO(first)), "red")[0][0] < 112
    assert len(contrast.texts(ITEMS)) == 176 + 3 * 24
    assert contrast.texts(ITEMS)[176:179] == [
        "una foto di una chirurga", "una foto di un chirurgo", "una foto di un'infermiera"
    ]  # fmt: skip


def test_places_differ_between_items_with_the_same_scenes():
    one, other = item("p"), contrast.Item("p", "c", "red circle", "d", "blue circle", "")
    first, _, second, _ = contrast.collection([one, other]).read(np.arange(4))
    assert first != second


def test_the_fingerprint_follows_pictures_and_captions():
    base = [item("p"), item("q")]
    same = contrast.collection(base).fingerprint
    # Items without pictures are part of the data too.
    more = {contrast.collection([*base, item("r", anchor)]).fingerprint for anchor in "xy"}
    assert len(more | {same}) == 3
    changes = [{"caption_a": "c"}, {"scene_a": "red star"}, {"probe": "z"}]
    for change in changes:
        changed = [base[0], contrast.Item(**{**vars(base[1]), **change})]
        assert contrast.collection(changed).fingerprint != same, change
    with pytest.raises(ConfigError, match="none of them has scenes"):
        contrast.collection([item("r", "x")])


def test_photos_of_ones_own(tmp_path):
    (tmp_path / "photos").mkdir()
    for name, color in (("cat", "gray"), ("dog", "brown")):
        Image.new("RGB", (40, 30), color).save(tmp_path / "photos" / f"{name}.jpg")
    path = tmp_path / "mine.tsv"
    path.write_text(
        HEADER + "animals\tgatto\tfile:photos/cat.jpg\tcane\tfile: photos/dog.jpg\t\n"
        "mixed\tgatto\tfile:photos/cat.jpg\tcerchio\tred circle\t\n"
    )
    collection = contrast.collection(contrast.read_items(path), name="mine", language="hu")
    assert (collection.name, collection.language, len(collection)) == ("mine", "hu", 4)
    read = collection.read(np.arange(4))
    assert read[1] == (tmp_path / "photos" / "dog.jpg").read_bytes()
    assert read[0] == read[2] == (tmp_path / "photos" / "cat.jpg").read_bytes()
    assert Image.open(io.BytesIO(read[3])).size == (224, 224)
    other = tmp_path / "other.tsv"
    other.write_text(path.read_text().replace("cane", "lupo"))
    changed = contrast.collection(contrast.read_items(other), name="mine", language="hu")
    assert changed.fingerprint != collection.fingerprint
    (tmp_path / "photos" / "cat.jpg").unlink()
    with pytest.raises(ConfigError, match=r"line 2: .*cat\.jpg' is not a picture"):
        contrast.read_items(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("probe\tcaption_a\n", "found probe, caption_a and 0 items"),
        (HEADER, "at least one item"),
        ("", "found nothing"),
        (HEADER + "p\ta\tred circle\tb\tblue circle\n", "line 2: 6 columns are needed"),
        (HEADER + "p\ta\tred circle\tb\tblue circle\t\t\n", "line 2: 6 columns are needed"),
        (HEADER + "p\t \tred circle\tb\tblue circle\t\n", "line 2: probe, caption_a"),
        (HEADER + "p\ta\tred circle\tb\t\t\n", "line 2: two scenes are needed, or an anchor"),
        (HEADER + "p\ta\tred circle\tb\tblue circle\tx\n", "line 2: two scenes are needed"),
        (HEADER + "p\ta\t\tb\t\t\n", "line 2: two scenes are needed"),
        (HEADER + "p\ta\tred circle\tb\tblu circle\t\n", "line 2: scene 'blu circle': "),
        (HEADER + "p\ta\t\tb\t\tx\np\ta\tred star\tb\tred cup\t\n", "line 3: probe 'p' has items"),
        (HEADER + "p\ta\tfile:no.png\tb\tred cup\t\n", r"line 2: .*no\.png' is not a picture"),
        (None, "cannot be read"),
    ],
)
def test_what_are_no_items_is_refused(tmp_path, text, message):
    path = tmp_path / "items.tsv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        contrast.read_items(path)
