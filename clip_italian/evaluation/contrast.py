"""Contrast probes: two captions that differ in one thing, and which of them a model prefers.

An item with scenes is two captions and two pictures, scored as Winoground is (Thrush et al. 2022,
*Winoground: Probing Vision and Language Models for Visio-Linguistic Compositionality*, CVPR,
section 3.2). An item with an anchor is three texts: is the anchor closer to caption a than to
caption b? Such is the probe of gendered professions, without photos of people: "una foto di una
chirurga" should be closer to the same profession in the other gender than to another profession in
the same gender.

The items are a TSV with the header `probe`, `caption_a`, `scene_a`, `caption_b`, `scene_b`,
`anchor`. A scene is drawn (`evaluation.drawings`), or is a photo: `file:` and its path, from the
folder of the TSV. Another language is another TSV.

These are probes, not truth: about twenty items each, written for this project by a language model,
on drawings that no training set resembles. They show whether a model tells two things apart at
all; small differences between models mean nothing.
"""

import csv
import dataclasses
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clip_italian.collection import Collection
from clip_italian.config import ConfigError
from clip_italian.evaluation import drawings

ITALIAN = Path(__file__).parent / "languages" / "it" / "contrast.tsv"
CHANCE = {"accuracy": 1 / 2, "text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
_COLUMNS = ("probe", "caption_a", "scene_a", "caption_b", "scene_b", "anchor")
_FILE = "file:"


@dataclasses.dataclass(frozen=True)
class Item:
    """Two captions with a scene each, or with an anchor in place of both scenes.

    Attributes:
      probe: what the two captions differ in, e.g. "left_right".
      caption_a: true of scene a and false of scene b; or what the anchor should be closer to.
      scene_a: a drawing's line, `file:` and a path, or "" with an anchor.
      caption_b: true of scene b and false of scene a; or what the anchor should be farther from.
      scene_b: as scene a.
      anchor: a text, or "" with scenes.
    """

    probe: str
    caption_a: str
    scene_a: str
    caption_b: str
    scene_b: str
    anchor: str


@dataclasses.dataclass(frozen=True)
class ProbeScores:
    """What came out of one probe.

    Attributes:
      item_accuracy: float64 [items], share of an item's choices that were right: four choices with
        pictures (each picture between the captions, each caption between the pictures), one with
        an anchor. Its mean is the probe's accuracy; items are what a bootstrap draws.
      choices: of all items together.
      winoground: shares of items: "text" (both pictures prefer their caption), "image" (both
        captions prefer their picture), "group" (both); empty with anchors.
    """

    item_accuracy: np.ndarray
    choices: int
    winoground: dict[str, float]

    @property
    def accuracy(self) -> float:
        """Share of right choices; 0.5 by chance, see `CHANCE` for the others."""
        return float(self.item_accuracy.mean())


def read_items(path: str | Path) -> tuple[Item, ...]:
    """The items of a TSV; paths of photos come out joined to its folder.

    Raises:
      ConfigError: the file cannot be read or holds something else; the message names the line.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            rows = list(reader)
            header = tuple(reader.fieldnames or ())
    except (OSError, UnicodeError, csv.Error) as error:
        raise ConfigError(f"contrast items {str(path)!r} cannot be read ({error})") from error
    if header != _COLUMNS or not rows:
        raise ConfigError(
            f"contrast items {str(path)!r}: the columns {', '.join(_COLUMNS)} and at least one "
            f"item are needed; found {', '.join(header) or 'nothing'} and {len(rows)} items"
        )
    items: list[Item] = []
    kinds: dict[str, bool] = {}
    for number, row in enumerate(rows, start=2):
        try:
            item = _read_item(row, path.parent)
            if kinds.setdefault(item.probe, bool(item.anchor)) != bool(item.anchor):
                raise ConfigError(f"probe {item.probe!r} has items with scenes and with anchors")
        except ConfigError as error:
            raise ConfigError(f"contrast items {str(path)!r}, line {number}: {error}") from error
        items.append(item)
    return tuple(items)


def _read_item(row: dict[str, str], folder: Path) -> Item:
    if None in row or None in row.values():
        raise ConfigError(f"{len(_COLUMNS)} columns are needed, separated by tabs")
    item = Item(**{name: text.strip() for name, text in row.items()})
    if not (item.probe and item.caption_a and item.caption_b):
        raise ConfigError("probe, caption_a and caption_b must not be empty")
    scenes = (item.scene_a, item.scene_b)
    if bool(item.anchor) == any(scenes) or any(scenes) != all(scenes):
        raise ConfigError("two scenes are needed, or an anchor and no scene")
    if item.anchor:
        return item
    return dataclasses.replace(
        item, scene_a=_read_scene(item.scene_a, folder), scene_b=_read_scene(item.scene_b, folder)
    )


def _read_scene(scene: str, folder: Path) -> str:
    if not scene.startswith(_FILE):
        drawings.parse_scene(scene)
        return scene
    photo = folder / scene.removeprefix(_FILE).strip()
    try:
        with Image.open(photo) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's errors on broken files
        raise ConfigError(f"{str(photo)!r} is not a picture ({error})") from error
    return f"{_FILE}{photo}"


def collection(
    items: Sequence[Item], *, name: str = "contrast", language: str = "it"
) -> Collection:
    """The pictures of the items that have scenes, each with its caption: a and b side by side.

    Drawings are the same on every machine: places and sizes come from the item's captions.

    Args:
      items: from `read_items`; those with an anchor are passed over.
      name: of the collection.
      language: of the captions.

    Raises:
      ConfigError: no item has scenes, or a photo cannot be read.
    """
    pictured = [item for item in items if not item.anchor]
    if not pictured:
        raise ConfigError("contrast items: none of them has scenes, so there is no picture")
    pictures = [picture for item in pictured for picture in _pictures(item)]
    captions = [text for item in pictured for text in (item.caption_a, item.caption_b)]
    keys = [f"{item.probe}/{place}{ab}" for place, item in enumerate(pictured) for ab in "ab"]
    digest = hashlib.sha256()
    for key, caption, (_, content) in zip(keys, captions, pictures, strict=True):
        for part in (key.encode(), caption.encode(), content):
            digest.update(hashlib.sha256(part).digest())
    for text in texts(items):
        digest.update(hashlib.sha256(text.encode()).digest())
    encoded = [data for data, _ in pictures]
    return Collection(
        name=name,
        protocol="contrast",
        image_keys=keys,
        read=lambda indices: [encoded[index] for index in indices],
        fingerprint=digest.hexdigest(),
        captions=captions,
        caption_image=np.arange(len(captions), dtype=np.int32),
        language=language,
    )


def _pictures(item: Item) -> list[tuple[bytes, bytes]]:
    """Of scene a and of scene b: the encoded picture, and what its fingerprint is made of.

    A drawing's fingerprint is that of its pixels: how PNG packs them depends on a library.
    """
    scenes = (item.scene_a, item.scene_b)
    drawn = [scene for scene in scenes if not scene.startswith(_FILE)]
    images = iter(drawings.draw(drawn, f"{item.caption_a}\n{item.caption_b}") if drawn else ())
    return [_photo(scene) if scene.startswith(_FILE) else _encode(next(images)) for scene in scenes]


def _photo(scene: str) -> tuple[bytes, bytes]:
    path = Path(scene.removeprefix(_FILE))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read ({error})") from error
    return data, data


def _encode(image: Image.Image) -> tuple[bytes, bytes]:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue(), image.tobytes()


def texts(items: Sequence[Item]) -> list[str]:
    """All texts in the order of `score`: captions of the collection, then anchor, a, b of each."""
    pictured = [item for item in items if not item.anchor]
    anchored = [item for item in items if item.anchor]
    return [text for item in pictured for text in (item.caption_a, item.caption_b)] + [
        text for item in anchored for text in (item.anchor, item.caption_a, item.caption_b)
    ]


def score(
    items: Sequence[Item], image_embeds: np.ndarray, text_embeds: np.ndarray
) -> dict[str, ProbeScores]:
    """Scores of each probe, in the order of the items. A tie counts as a wrong choice.

    Args:
      items: from `read_items`.
      image_embeds: float [images, dim] of `collection(items)`; [0, dim] where no item has scenes.
      text_embeds: float [texts, dim] of `texts(items)`.

    Raises:
      ValueError: shapes do not fit, or an embedding is not finite.
    """
    pictured = [item for item in items if not item.anchor]
    anchored = [item for item in items if item.anchor]
    pairs, captions = 2 * len(pictured), text_embeds[: 2 * len(pictured)]
    if (
        image_embeds.ndim != 2
        or image_embeds.shape != (pairs, text_embeds.shape[-1])
        or len(text_embeds) != pairs + 3 * len(anchored)
    ):
        raise ValueError(
            f"embeddings of {pairs} images and {pairs + 3 * len(anchored)} texts are needed, "
            f"got shapes {image_embeds.shape} and {text_embeds.shape}"
        )
    if not (np.isfinite(image_embeds).all() and np.isfinite(text_embeds).all()):
        raise ValueError("an embedding is not finite")
    choices = _picture_choices(image_embeds, captions)
    anchor, right, wrong = np.moveaxis(
        text_embeds[pairs:].reshape(-1, 3, text_embeds.shape[-1]).astype(np.float64), 1, 0
    )
    chosen = (anchor * right).sum(1) > (anchor * wrong).sum(1)
    found: dict[str, ProbeScores] = {}
    for probe in dict.fromkeys(item.probe for item in items):
        own = choices[[item.probe == probe for item in pictured]]
        if len(own):
            found[probe] = ProbeScores(own.mean(1), own.size, _winoground(own))
        else:
            own = chosen[[item.probe == probe for item in anchored]]
            found[probe] = ProbeScores(own.astype(np.float64), own.size, {})
    return found


def _picture_choices(image_embeds: np.ndarray, text_embeds: np.ndarray) -> np.ndarray:
    """Bool [items, 4]: pictures a and b find their captions, captions a and b their pictures."""
    images = image_embeds.reshape(-1, 2, image_embeds.shape[-1]).astype(np.float64)
    captions = text_embeds.reshape(-1, 2, text_embeds.shape[-1]).astype(np.float64)
    scores = np.einsum("nid,ntd->nit", images, captions)  # [items, picture, caption]
    aa, ab, ba, bb = (scores[:, i, t] for i in (0, 1) for t in (0, 1))
    return np.stack([aa > ab, bb > ba, aa > ba, bb > ab], axis=1)


def _winoground(choices: np.ndarray) -> dict[str, float]:
    return {
        "text": float(choices[:, :2].all(1).mean()),
        "image": float(choices[:, 2:].all(1).mean()),
        "group": float(choices.all(1).mean()),
    }


def metrics(scores: dict[str, ProbeScores]) -> dict[str, float]:
    """`contrast/accuracy`, the mean over probes, and for each probe `contrast/<probe>/accuracy`.

    With pictures also `contrast/<probe>/text`, `/image` and `/group`.
    """
    named = {"contrast/accuracy": float(np.mean([one.accuracy for one in scores.values()]))}
    for probe, one in scores.items():
        named |= {
            f"contrast/{probe}/{name}": value
            for name, value in {"accuracy": one.accuracy, **one.winoground}.items()
        }
    return named
