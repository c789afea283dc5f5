"""Do heat maps point at what a phrase names? The pointing game on the drawn scenes of the sample.

    python -m benchmarks.pointing --model runs/sample --data_dir data --out pointing.json

For each phrase of a scene its heat map's highest cell is a hit if its centre lies in one of the
boxes of the phrase's objects (Zhang et al. 2016, arXiv:1608.00507, here without a margin around
them). Beside it stands how often it lies only in a box of the scene's other phrases. Intervals are
95% bootstraps over scenes. Seconds are medians of one picture and one phrase at a time.
"""

import argparse
import functools
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import measure

METHODS = ("patches", "occlusion", "centre", "random point")


class Phrases(NamedTuple):
    """All phrases of the scenes.

    Attributes:
      texts: the phrases.
      scene: int [phrases], number of each one's scene.
      boxes: for each phrase its objects' boxes, float [objects, 4]: left, top, right, bottom, as
        parts of the picture's side.
    """

    texts: list[str]
    scene: np.ndarray
    boxes: list[np.ndarray]


def main() -> None:
    """The command line."""
    parser = measure.parser(__doc__)
    parser.add_argument("--model", default="runs/sample", help="run, exported folder or hub id")
    parser.add_argument("--data_dir", default="data", help="folder of the source `sample`")
    parser.add_argument("--skip", type=int, default=250, help="scenes left out, used for tuning")
    parser.add_argument("--scenes", type=int, default=250, help="scenes after these")
    arguments = parser.parse_args()
    measure.pin(arguments.threads)
    images, phrases = read(arguments)
    heats, seconds = heat_maps(arguments.model, images, phrases)
    points = {name: np.stack([peak(heat) for heat in some]) for name, some in heats.items()}
    points["centre"] = np.full((len(phrases.texts), 2), 0.5)
    results = {name: score(some, phrases) for name, some in points.items()}
    results["random point"] = expected(phrases)
    for name, some in seconds.items():
        results[name]["seconds"] = measure.median(some)
    keys = ("accuracy", "low", "high", "other", "seconds")
    measure.show(
        ("method", "accuracy", "low", "high", "in another's box", "s a picture"),
        [(name, *(results[name].get(key) for key in keys)) for name in METHODS],
    )
    measure.finish(arguments, {"phrases": len(phrases.texts), "results": results})


def read(arguments: argparse.Namespace) -> tuple[list[bytes], Phrases]:
    """Encoded pictures of the chosen scenes and their phrases."""
    from PIL import Image

    from clip_italian.data.records import open_split, parse_record

    file = open_split(arguments.data_dir, "sample", "validation")
    last = min(arguments.skip + arguments.scenes, len(file))
    records = [parse_record(data) for data in file.read(range(arguments.skip, last))]
    number = {record.image_id: i for i, record in enumerate(records)}
    sides = [Image.open(io.BytesIO(record.image)).width for record in records]
    lines = Path(arguments.data_dir, "sample/boxes.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["image_id"] in number]
    scene = [number[row["image_id"]] for row in rows]
    boxes = [np.array(row["boxes"]) / sides[i] for row, i in zip(rows, scene, strict=True)]
    phrases = Phrases([row["phrase"] for row in rows], np.array(scene), boxes)
    return [record.image for record in records], phrases


def heat_maps(
    model: str, images: Sequence[bytes], phrases: Phrases
) -> tuple[dict[str, list[np.ndarray]], dict[str, list[measure.Turn]]]:
    """Heat maps of each method, one for each phrase, and what each took."""
    from clip_italian.demo.where import occlusion, patch_shares
    from clip_italian.hub.load import RunEncoder, load_model

    loaded = load_model(model)
    one, many = RunEncoder(loaded, batch_size=1), RunEncoder(loaded, batch_size=82)
    names = [str(number) for number in range(len(images))]
    pixels = many.pixels(lambda some: [images[number] for number in some], names)
    texts = many.encode_texts(phrases.texts)
    contestants: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "patches": lambda x, text: patch_shares(one.patch_embeds(x[None])[0], text),
        "occlusion": functools.partial(occlusion, many.encode_pixels),
    }
    heats, seconds = {}, {}
    for name, heat_of in contestants.items():
        heat_of(pixels[0], texts[0])  # compiles
        seconds[name] = [
            measure.timed(functools.partial(heat_of, pixels[scene], text))
            for scene, text in zip(phrases.scene, texts, strict=True)
        ]
        heats[name] = [turn.result for turn in seconds[name]]
    return heats, seconds


def peak(heat: np.ndarray) -> np.ndarray:
    """Centre of the highest cell, (x, y) as parts of the side; the first one of several."""
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    return np.array([(column + 0.5) / heat.shape[1], (row + 0.5) / heat.shape[0]])


def inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Points [n, 2] (x, y) → bool [n]: in any of the boxes, edges included."""
    x, y = points[:, :1], points[:, 1:]
    left, top, right, bottom = boxes.T
    return ((left <= x) & (x <= right) & (top <= y) & (y <= bottom)).any(axis=1)


def score(points: np.ndarray, phrases: Phrases) -> dict[str, Any]:
    """One point for each phrase: accuracy with its interval, and hits of the scene's others."""
    from clip_italian.evaluation.statistics import intervals

    hits = np.array([inside(p[None], b)[0] for p, b in zip(points, phrases.boxes, strict=True)])
    ranks = np.where(hits, 1, 2)
    low, high = intervals(ranks, phrases.scene, ks=(1,))["R@1"]
    any_box = [inside(point[None], of_scene(phrases, i))[0] for i, point in enumerate(points)]
    other = np.mean(any_box & ~hits)
    return {"accuracy": float(hits.mean()), "low": low, "high": high, "other": float(other)}


def expected(phrases: Phrases, steps: int = 128) -> dict[str, Any]:
    """What a point drawn evenly over the picture scores on average."""
    middle = (np.arange(steps) + 0.5) / steps
    points = np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 2)
    own = np.array([inside(points, boxes) for boxes in phrases.boxes])
    any_box = np.array([inside(points, of_scene(phrases, i)) for i in range(len(own))])
    return {"accuracy": float(own.mean()), "other": float((any_box & ~own).mean())}


def of_scene(phrases: Phrases, number: int) -> np.ndarray:
    """Boxes [n, 4] of all phrases of a phrase's scene."""
    same = np.flatnonzero(phrases.scene == phrases.scene[number])
    return np.concatenate([phrases.boxes[i] for i in same])


if __name__ == "__main__":
    main()
