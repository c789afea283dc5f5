"""Files of a published evaluation protocol → its collection.

They lie in one folder `eval_dir`, under the names they were published with:

    mscoco_it/captions_ita_{devset_unvalidated,devset_validated,testset_validated}.json[.gz]
    coco/train2014/COCO_train2014_000000061844.jpg, coco/val2014/COCO_val2014_000000000359.jpg
        or, the same photos, coco/{train,val}2017/000000061844.jpg
    xtd10/XTD10/test_image_names.txt, xtd10/{XTD10,MIC,STAIR}/test_1kcaptions_<language>.txt
    xm3600/captions.jsonl, xm3600/images/<key>.jpg
    imagenet/<wnid>/*.JPEG, or imagenet/*.JPEG and imagenet/LOC_val_solution.csv

A protocol is what was published, whole: another number of images or captions is an error, and
so is a photo that is missing.
"""

import dataclasses
import functools
import gzip
import json
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clip_italian.collection import Collection
from clip_italian.config import ConfigError
from clip_italian.evaluation.folders import (
    clean_captions,
    file_collection,
    open_folder,
    read_jsonl,
    read_text,
    refuse_missing,
)

_PHOTO = re.compile(r"COCO_(train|val)2014_[0-9]{12}\.jpg")

# XTD10's languages → their names in its files (C: MIC for de, en and fr, STAIR for ja).
XTD10_LANGUAGES = {
    **{tag: tag for tag in ("de", "en", "es", "fr", "it", "ko", "pl", "ru", "tr", "zh")},
    "ja": "jp",
}

# Of Crossmodal-3600 (Thapliyal et al., 2022), by its own codes.
XM3600_LANGUAGES = (
    "ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr", "hu",
    "id", "it", "ja", "ko", "mi", "nl", "no", "pl", "pt", "quz", "ro", "ru", "sv", "sw", "te", "th",
    "tr", "uk", "vi", "zh",
)  # fmt: skip
# Captions where their number is known here; elsewhere only the images are counted.
XM3600_CAPTIONS = {"it": 8471}


def open_protocol(name: str, eval_dir: str | Path, *, language: str = "it") -> Collection:
    """Opens a protocol of `PROTOCOLS`; reads every image once, for the fingerprint.

    Args:
      name: of the protocol.
      eval_dir: the folder described above; local.
      language: of the captions, as a BCP 47 tag, where the protocol has several.

    Raises:
      ConfigError: no such protocol or language, a file that is missing, malformed or not the
        published one, an empty caption, photos that are missing (how many, which, where).
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"no protocol {name!r}; give one of: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name](name, Path(eval_dir), language)


def _mscoco_it(
    name: str, eval_dir: Path, language: str, *, part: str, images: int, captions: int
) -> Collection:
    """A. Scaiella, D. Croce, R. Basili, IJCoL 5(2), 2019; images in the order of their captions."""
    _check_language(name, language, ["it"])
    path, content = _read_json(eval_dir / "mscoco_it" / f"captions_ita_{part}.json")
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise ConfigError(f'{path}: no list "annotations"')
    texts: dict[str, list[str]] = {}
    for place, entry in enumerate(annotations, 1):
        where = f"{path}, annotation {place}"
        entry = entry if isinstance(entry, dict) else {}
        number = str(entry.get("image_id"))  # an integer in most files, a text in some
        if not re.fullmatch(r"[0-9]{1,12}", number):
            raise ConfigError(f'{where}: "image_id" is {entry.get("image_id")!r}, no COCO id')
        photo = f"COCO_val2014_{int(number):012}.jpg"
        texts.setdefault(photo, []).extend(clean_captions([entry.get("caption")], where))
    _check_counts(path, texts, images, captions)
    return _coco_collection(name, name, eval_dir, texts, language)


def _xtd10(name: str, eval_dir: Path, language: str) -> Collection:
    """P. Aggarwal, A. Kale, arXiv:2012.05107; the clean subset is its 200 photos of val2014.

    The other 800 are of train2014: many models have seen them in training.
    """
    _check_language("xtd10", language, list(XTD10_LANGUAGES))
    folder = eval_dir / "xtd10"
    index = folder / "XTD10" / "test_image_names.txt"
    file = f"test_1kcaptions_{XTD10_LANGUAGES[language]}.txt"
    parts = [folder / part / file for part in ("XTD10", "MIC", "STAIR")]
    path = next((path for path in parts if path.is_file()), parts[0])
    photos, captions = _lines(index), _lines(path)
    if len(captions) != len(photos):
        raise ConfigError(f"{path}: {len(captions):,} captions for the {len(photos):,} of {index}")
    texts: dict[str, list[str]] = {}
    for line, (photo, caption) in enumerate(zip(photos, captions, strict=True), 1):
        if not _PHOTO.fullmatch(photo) or photo in texts:
            raise ConfigError(f"{index}, line {line}: {photo!r} is no new photo of COCO 2014")
        texts[photo] = clean_captions([caption], f"{path}, line {line}")
    _check_counts(index, texts, 1000, 1000)
    if name == "xtd10_clean":
        texts = {photo: own for photo, own in texts.items() if "val2014" in photo}
        _check_counts(index, texts, 200, 200)
    tagged = name.replace("xtd10", f"xtd10_{language}")
    return _coco_collection(tagged, name, eval_dir, texts, language)


def _xm3600(name: str, eval_dir: Path, language: str) -> Collection:
    """A. Thapliyal et al., Crossmodal-3600, EMNLP 2022; P1 takes first captions, P2 every one."""
    _check_language("xm3600", language, XM3600_LANGUAGES)
    path, folder = eval_dir / "xm3600" / "captions.jsonl", eval_dir / "xm3600" / "images"
    texts: dict[str, list[str]] = {}
    for where, row in read_jsonl(path):
        key, own = row.get("image/key"), row.get(language)
        if not isinstance(key, str) or not re.fullmatch(r"\w+", key) or key in texts:
            raise ConfigError(f'{where}: "image/key" is {key!r}, no new key')
        captions = own.get("caption") if isinstance(own, dict) else None
        texts[key] = clean_captions(captions, f"{where}, {language}")
    _check_counts(path, texts, 3600, XM3600_CAPTIONS.get(language))
    images = {key: folder / f"{key}.jpg" for key in texts}
    refuse_missing([key for key, file in images.items() if not file.is_file()], images, folder)
    return file_collection(
        name.replace("xm3600", f"xm3600_{language}"),
        name,
        images,
        captions=[own if name == "xm3600_p2" else own[:1] for own in texts.values()],
        language=language,
    )


def _imagenet(name: str, eval_dir: Path, language: str) -> Collection:
    """The validation images of ILSVRC 2012; class ids are WordNet ids."""
    found = open_folder(eval_dir / "imagenet", name=name)
    if (len(found), len(found.class_ids)) != (50_000, 1000):
        raise ConfigError(
            f"{eval_dir / 'imagenet'}: {len(found):,} images of {len(found.class_ids):,} classes; "
            "the validation set has 50,000 of 1,000. Any other set is a plain labelled folder"
        )
    return dataclasses.replace(found, protocol=name, language=language)


def _coco_collection(
    name: str, protocol: str, eval_dir: Path, texts: dict[str, list[str]], language: str
) -> Collection:
    """Photos by their 2014 names, each with its captions."""
    folder, images, missing = eval_dir / "coco", {}, []
    for photo in texts:
        _, part, number = photo.split("_")
        places = [folder / part / photo, folder / "train2017" / number, folder / "val2017" / number]
        images[photo] = next((place for place in places if place.is_file()), places[0])
        if not images[photo].is_file():
            missing.append(photo)
    looked = f"{folder}/{{train2014,val2014}} and, by 2017 names, {folder}/{{train2017,val2017}}"
    refuse_missing(missing, images, looked)
    return file_collection(name, protocol, images, captions=list(texts.values()), language=language)


def _check_language(protocol: str, language: str, known: Sequence[str]) -> None:
    if language not in known:
        raise ConfigError(
            f"language = {language!r} is not allowed: {protocol} has {', '.join(known)}"
        )


def _check_counts(
    path: Path, texts: dict[str, list[str]], images: int, captions: int | None
) -> None:
    found = sum(map(len, texts.values()))
    captions = found if captions is None else captions
    if (len(texts), found) != (images, captions):
        raise ConfigError(
            f"{path}: {found:,} captions of {len(texts):,} images; as published it has "
            f"{captions:,} of {images:,}: get it again"
        )


def _read_json(path: Path) -> tuple[Path, Any]:
    """Path and content of a JSON file, or of the same with .gz where there is none."""
    if not path.is_file() and (packed := path.with_name(f"{path.name}.gz")).is_file():
        path = packed
    try:
        data = path.read_bytes()
        text = gzip.decompress(data) if path.suffix == ".gz" else data
        return path, json.loads(text.decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(f"no file at {str(path)!r}, with .gz or without") from error
    except (EOFError, OSError, zlib.error, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: broken ({error}); get it again") from error


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).removesuffix("\n").split("\n")]


PROTOCOLS: dict[str, Callable[[str, Path, str], Collection]] = {
    "mscoco_it_dev_unvalidated": functools.partial(
        _mscoco_it, part="devset_unvalidated", images=1696, captions=8486
    ),
    "mscoco_it_dev": functools.partial(
        _mscoco_it, part="devset_validated", images=308, captions=1541
    ),
    "mscoco_it_test": functools.partial(
        _mscoco_it, part="testset_validated", images=596, captions=2982
    ),
    "xtd10": _xtd10,
    "xtd10_clean": _xtd10,
    "xm3600_p1": _xm3600,
    "xm3600_p2": _xm3600,
    "imagenet": _imagenet,
}
