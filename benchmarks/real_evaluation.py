"""Smoke test of the evaluation on small real sets; no ranking of models or names follows from it.

    python benchmarks/real_evaluation.py --real_data FOLDER --work_dir FOLDER --out_dir FOLDER \
        --models runs/sample runs/tiny_imagenet runs/emoji

Photos and labels of `--real_data` (tiny_imagenet32, imagenet, caltech101, emoji, coco_it) become
labelled folders and JSON lines in `--work_dir`; then `clip-italian evaluate` runs once over all.
The published Italian names are evaluated beside ours where the classes are those of ILSVRC.
"""

import argparse
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

from clip_italian.cli import main as clip_italian


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real_data", type=Path, required=True, help="folder of the raw sets")
    parser.add_argument("--work_dir", type=Path, required=True, help="where folders are laid out")
    parser.add_argument("--out_dir", type=Path, required=True, help="where the reports go")
    parser.add_argument("--models", nargs="+", required=True, help="as clip-italian evaluate")
    arguments = parser.parse_args()
    real, work = arguments.real_data.resolve(), arguments.work_dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    names = published_names(real, work)
    tiny, imagenet = tiny_imagenet(real, work), imagenet_photos(real, work)
    shared = ["--models", *arguments.models, "--cache_dir", str(work / "embeddings")]
    labelled = [
        "--sets", f"tiny_imagenet32=folder:{tiny}/test", f"imagenet_photos=folder:{imagenet}/test",
        "--probe_train", f"folder:{tiny}/train",
        "--legacy_names", str(names), "--legacy_key", "label_it",
    ]  # fmt: skip
    captioned = ["--sets", "contrast"]
    for name, file in (("emoji", "emoji/captions.jsonl"), ("coco_it", "coco_it/captions.jsonl")):
        captioned.append(f"jsonl:{captions(real, work, name, file)}")
    caltech = captions(real, work, "caltech101", "caltech101/labels.jsonl")
    runs = {
        "labelled": labelled,
        "captioned": captioned,
        "caltech101": ["--sets", f"jsonl:{caltech}", "--caption_labels"],
    }
    for name, flags in runs.items():
        status = clip_italian(
            ["evaluate", *shared, *flags, "--out_dir", str(arguments.out_dir / name)]
        )
        if status:
            return status
    return 0


def published_names(real: Path, work: Path) -> Path:
    """The file of published names with the field that tells the class."""
    rows = json.loads((real / "imagenet/classes_it.json").read_text())
    path = work / "published_names.json"
    path.write_text(json.dumps(rows, ensure_ascii=False))
    return path


def tiny_imagenet(real: Path, work: Path) -> Path:
    """train|test/<wnid>/*.JPEG at 32 x 32 pixels; of the 500 of a class in train the first 50."""
    folder = work / "tiny_imagenet32"
    if not folder.exists():
        staged = work / "tiny_imagenet32.part"
        shutil.rmtree(staged, ignore_errors=True)
        with tarfile.open(real / "tiny_imagenet32.tar.xz") as archive:
            archive.extractall(staged, filter="data")
        for place in (staged / "train").iterdir():
            for path in sorted(place.iterdir())[50:]:
                path.unlink()
        staged.rename(folder)
    return folder


def imagenet_photos(real: Path, work: Path) -> Path:
    """One photo of each class in train, another in test."""
    folder = work / "imagenet_photos"
    for row in read_lines(real / "imagenet/labels.jsonl"):
        place = folder / row["split"] / row["wnid"] / Path(row["image"]).name
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(real / row["image"])
    return folder


def captions(real: Path, work: Path, name: str, file: str) -> Path:
    """All pictures of a captioned set but those of its training split."""
    test = [row for row in read_lines(real / file) if row["split"] != "train"]
    path = work / f"{name}.jsonl"
    lines = [
        json.dumps(
            {"image": str(real / row["image"]), "captions": row["captions"]}, ensure_ascii=False
        )
        for row in test
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
