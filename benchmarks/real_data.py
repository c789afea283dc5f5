"""Makes training records of two sets of real pictures, for configs/tiny_imagenet.py and emoji.py.

    python benchmarks/real_data.py --real_data FOLDER --data_dir data

FOLDER holds `tiny_imagenet32.tar.xz` (train|test/<wnid>/*.JPEG at 32 × 32 pixels) with
`tiny_imagenet32_classes.json` (wnid → label_it), and `emoji/captions.jsonl`. Writes the sources
`tiny_imagenet` and `emoji`, each with a tokenizer trained on its own training captions.
"""

import argparse
import json
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from data_prep.jsonl import Jsonl
from data_prep.options import DecideOptions, Options, Steps
from data_prep.pipeline import prepare
from data_prep.sample import tokenizer_files, train_tokenizer


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real_data", type=Path, required=True, help="folder of the raw sets")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="where sources go")
    arguments = parser.parse_args()
    tiny_imagenet(arguments.real_data, arguments.data_dir)
    emoji(arguments.real_data, arguments.data_dir)


def tiny_imagenet(real_data: Path, data_dir: Path) -> None:
    """Each picture with its Italian class name as the caption."""
    classes = json.loads((real_data / "tiny_imagenet32_classes.json").read_text())
    names = {row["wnid"]: row["label_it"] for row in classes}
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(real_data / "tiny_imagenet32.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        rows = (
            {
                "image": str(path.relative_to(folder)),
                "captions": [names[path.parent.name]],
                "split": path.parts[-3],
            }
            for path in sorted(Path(folder).glob("*/*/*.JPEG"))
        )
        write_source(data_dir, "tiny_imagenet", rows, root=Path(folder))


def emoji(real_data: Path, data_dir: Path) -> None:
    """Drawings with their short name; in training also with their keywords as a second caption."""
    lines = (real_data / "emoji/captions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        if row["split"] == "train" and row.get("keywords"):
            row["captions"] = [*row["captions"], ", ".join(row["keywords"])]
        row["source"] = "emoji"
    write_source(data_dir, "emoji", rows, root=real_data)


def write_source(data_dir: Path, source: str, rows: Iterable[dict], *, root: Path) -> None:
    """Rows → records, and a tokenizer beside them."""
    rows = list(rows)
    captions = [text for row in rows if row["split"] == "train" for text in row["captions"]]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{source}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        steps = Steps(
            decide=DecideOptions(near_duplicates=-1),  # drawings of one kind look much alike
            run=Options(out_dir=str(data_dir), source=source, root=str(root), work_dir=folder),
        )
        print(prepare(Jsonl(path=(str(file),)), steps))
    (data_dir / source / "tokenizer").mkdir()
    for name, content in tokenizer_files(train_tokenizer(captions, vocab_size=2000)).items():
        (data_dir / source / "tokenizer" / name).write_bytes(content)


if __name__ == "__main__":
    main()
