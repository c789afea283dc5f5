"""Packs for labelled sets: subsets of ours, and names given in files."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clip_italian.config import ConfigError
from clip_italian.evaluation import zero_shot
from clip_italian.evaluation.languages.it.names import imagenet_pack
from clip_italian.evaluation.languages.naming import (
    legacy_pack,
    open_pack,
    plain_pack,
    select,
    single,
)

HUNGARIAN = Path(__file__).parent / "hungarian"
REAL = Path(os.environ.get("CLIP_ITALIAN_REAL_DATA", ""))
needs_real_data = pytest.mark.skipif(
    "CLIP_ITALIAN_REAL_DATA" not in os.environ, reason="no real data at hand"
)
IDS = ["n1", "n2", "n3"]


def bare_names(pack):
    return [one.forms["bare"] for one in pack.classes]


def test_a_pack_is_a_language_or_a_folder():
    assert open_pack("it") is imagenet_pack()
    assert len(open_pack(str(HUNGARIAN)).classes) == 20
    with pytest.raises(ConfigError, match=r"names 'klingon': no language \(it\) and no folder"):
        open_pack("klingon")


def test_select_keeps_the_order_of_the_set():
    pack = select(imagenet_pack(), ["n01484850", "n01440764"])
    assert bare_names(pack) == ["squalo bianco", "tinca"]
    assert pack.templates == imagenet_pack().templates
    assert pack.prompts(1)[0] == "una foto di una tinca"


def test_select_names_what_is_missing():
    wanted = ["n01440764", "x1", "x2", "x3", "x4", "x5", "x6"]
    with pytest.raises(
        ConfigError, match=r"no name for 6 of 7 classes: x1, x2, x3, x4, x5, \.\.\.$"
    ):
        select(imagenet_pack(), wanted)
    with pytest.raises(ConfigError, match=r"no name for 1 of 2 classes: x1$"):
        select(imagenet_pack(), wanted[:2])
    with pytest.raises(ConfigError, match="n01440764 occurs twice"):
        select(imagenet_pack(), ["n01440764", "n01440764"])


def test_a_single_template():
    pack = single(select(imagenet_pack(), ["n01440764"]), "guarda {definite}!")
    assert pack.prompts(0) == ["guarda la tinca!"]
    for template in ("una foto di {}", "una foto", "{bare} e {of}", "una {bare", "{accusative}"):
        with pytest.raises(ConfigError, match="must name one form in braces"):
            single(pack, template)


def test_names_as_they_are():
    pack = plain_pack(["Faces", "ant"], ["un volto", "a {strange} name"])
    assert [pack.prompts(index) for index in (0, 1)] == [["un volto"], ["a {strange} name"]]
    with pytest.raises(ConfigError, match="1 for 2 classes"):
        plain_pack(["a", "b"], ["x"])
    with pytest.raises(ConfigError, match="class b has no text"):
        plain_pack(["a", "b"], ["x", " "])


FORMATS = {
    "names.json": '["uno", "due", "uno"]',
    "objects.json": '[{"wnid": "n3", "it": "uno", "i": 2}, {"wnid": "n9", "it": "nove", "i": 8}, '
    '{"wnid": "n1", "it": "uno", "i": 0}, {"wnid": "n2", "it": "due", "i": 1}]',
    "unkeyed.json": '[{"en": "one", "it": "uno"}, {"it": "due"}, {"it": "uno"}]',
    "by_id.json": '{"n2": "due", "n1": "uno", "n3": "uno", "n9": "nove"}',
    "table.tsv": "set_id\tit\tclass_id\nn2\tdue\t2\nn3\tuno\t3\nn1\tuno\t1\n",
    "names.txt": "\ufeffuno\r\ndue\r\nuno\r\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_published_names_are_read_from_a_file(tmp_path, name):
    path = tmp_path / name
    path.write_text(FORMATS[name], encoding="utf-8", newline="")
    key = "it" if name in ("objects.json", "unkeyed.json", "table.tsv") else ""
    pack = legacy_pack(path, IDS, key)
    assert [one.class_id for one in pack.classes] == IDS
    assert [pack.prompts(index) for index in range(3)] == [["uno"], ["due"], ["uno"]]


def test_the_field_of_names_is_never_that_of_ids(tmp_path):
    (tmp_path / "a.tsv").write_text("it\tid\ncane\tgatto\ngatto\tcane\n")
    pack = legacy_pack(tmp_path / "a.tsv", ["cane", "gatto"], "it")
    assert bare_names(pack) == ["gatto", "cane"]


def test_names_without_ids_stand_in_the_order_of_the_ids(tmp_path):
    (tmp_path / "a.txt").write_text("uno\ndue\ntre\n")
    assert bare_names(legacy_pack(tmp_path / "a.txt", ["n3", "n1", "n2"])) == ["tre", "uno", "due"]


def test_a_thousand_names_serve_a_part_of_imagenet(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"nome {index}" for index in range(1000)))
    third_and_first = ["n01484850", "n01440764"]
    assert bare_names(legacy_pack(tmp_path / "a.txt", third_and_first)) == ["nome 2", "nome 0"]
    # As many names as the part has classes are its own, in ascending order of the ids.
    (tmp_path / "b.txt").write_text("tinca\nsqualo\n")
    assert bare_names(legacy_pack(tmp_path / "b.txt", third_and_first)) == ["squalo", "tinca"]
    (tmp_path / "c.txt").write_text("uno\ndue\ntre\n")
    with pytest.raises(ConfigError, match="3 names for 2 classes"):
        legacy_pack(tmp_path / "c.txt", third_and_first)


@pytest.mark.parametrize(
    ("name", "text", "key", "message"),
    [
        ("a.json", '["uno", "due"]', "", "2 names for 3 classes"),
        ("a.json", '["uno", "due", "tre", "4"]', "", "4 names for 3 classes"),
        ("a.txt", "uno\n\ndue\n", "", "class n2 has no text"),
        ("a.txt", "uno\ndue\ntre\n", "it", "they have no fields, so that 'it' names none"),
        ("a.json", '{"n1": "uno"}', "it", "they have no fields"),
        ("a.json", '{"n1": "uno"}', "", "no name for 2 of 3 classes: n2, n3$"),
        ("a.json", '["uno", {"it": "due"}]', "", "names only, or objects only"),
        ("a.json", '{"n1": "uno", "n2": 2, "n3": "tre"}', "", "2 is no text"),
        ("a.json", '[{"it": "u"}, {"it": "v"}, {"it": null}]', "it", "None is no text"),
        (
            "a.json",
            '[{"wnid": "n1", "it": "uno"}]',
            "",
            r"field '' .* give one of \['wnid', 'it'\]",
        ),
        ("a.json", '[{"wnid": "n1", "it": "uno"}]', "en", "field 'en' does not exist"),
        ("a.json", '[{"wnid": "n1", "it": "uno"}]', "it", "no name for 2 of 3 classes: n2, n3"),
        ("a.json", '"uno"', "", "there are none; give a list or an object"),
        ("a.json", "uno", "", "cannot be read"),
        ("a.tsv", "set_id\tit\nn1\tuno\nn2\nn3\ttre\n", "it", "None is no text"),
        ("a.tsv", "set_id\tit\n", "it", "there are none"),
        ("a.json", "{}", "", "there are none"),
        ("a.txt", None, "", "cannot be read"),
    ],
)
def test_a_file_without_the_names_is_refused(tmp_path, name, text, key, message):
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        legacy_pack(tmp_path / name, IDS, key)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        legacy_pack(tmp_path / "a.txt", IDS)


def test_one_name_for_two_classes_ties(tmp_path):
    (tmp_path / "a.json").write_text('["uno", "due", "uno"]')
    embeds = zero_shot.pack_embeds(legacy_pack(tmp_path / "a.json", IDS), lambda texts: np.eye(2))
    assert zero_shot.classify(embeds, embeds, np.arange(3)).ranks.tolist() == [2, 1, 2]


@pytest.mark.real_data
@needs_real_data
def test_the_published_italian_names():
    path = REAL / "imagenet" / "classes_it.json"
    ids = [one.class_id for one in imagenet_pack().classes]
    pack = legacy_pack(path, ids, "label_it")
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert bare_names(pack) == [row["label_it"] for row in sorted(rows, key=lambda r: r["index"])]
    assert len(pack.classes) == 1000 and pack.prompts(0) == ["una tinca"]
    shared = [count for count in Counter(bare_names(pack)).values() if count > 1]
    assert (len(shared), sum(shared)) == (19, 39)


@pytest.mark.real_data
@needs_real_data
def test_tiny_imagenet_is_a_part_of_both():
    rows = json.loads((REAL / "tiny_imagenet32_classes.json").read_text(encoding="utf-8"))
    class_ids = [row["wnid"] for row in rows]
    ids = [one.class_id for one in imagenet_pack().classes]
    legacy = legacy_pack(REAL / "imagenet" / "classes_it.json", ids, "label_it")
    for pack in (legacy, imagenet_pack()):
        assert [one.class_id for one in select(pack, class_ids).classes] == class_ids
    assert bare_names(select(legacy, class_ids)) == [row["label_it"] for row in rows]
