"""How far colours alone go on a source of records: a linear baseline on colour histograms.

    python benchmarks/color_baseline.py --data_dir data --source sample

Ridge regression from the colour histogram of a picture to the bag of words of its first caption,
fitted on the training split; text → image recall on the validation split.
"""

import argparse
import io
import json

import numpy as np
from PIL import Image

from clip_italian.data.records import open_split, parse_record
from clip_italian.evaluation.color_histogram import color_histogram_retrieval


def main() -> None:
    """The command line: prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="data", help="folder of the sources")
    parser.add_argument("--source", default="sample", help="name of the source")
    arguments = parser.parse_args()
    splits = (
        read(arguments.data_dir, arguments.source, split) for split in ("train", "validation")
    )
    print(json.dumps(color_histogram_retrieval(*(part for split in splits for part in split))))


def read(data_dir: str, source: str, split: str) -> tuple[np.ndarray, list[str]]:
    """All pictures (uint8 [n, height, width, 3]; one size) and their first captions."""
    file = open_split(data_dir, source, split)
    records = [parse_record(data) for data in file.read(range(len(file)))]
    pictures = [np.asarray(Image.open(io.BytesIO(r.image)).convert("RGB")) for r in records]
    return np.stack(pictures), [record.captions[0] for record in records]


if __name__ == "__main__":
    main()
