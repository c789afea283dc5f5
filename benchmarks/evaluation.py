"""Evaluation at growing size: memory of exact retrieval, and the rate from records to embeddings.

    python -m benchmarks.evaluation

First table: N captions against N images, 512 dimensions, float32, both directions, each N in a
process of its own; memory is the highest resident size less what the embeddings and the program
took before. O(N) means that it grows as fast as N, where the matrix of scores would grow as N²
(beside it, in MB). Time against NumPy and faiss is in `retrieval.py`.

Second table: the evaluation set of a drawn sample (JPEGs of 256 pixels), images and captions, as a
run evaluates it: reading, decoding and cropping alone, then with the towers. Linux only.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure


def main() -> None:
    """The command line."""
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 20_000, 40_000])
    parser.add_argument("--dim", type=int, default=512, help="width of the embeddings")
    parser.add_argument("--size", default="base", help="of the towers (workload.SIZES)")
    parser.add_argument("--images", type=int, default=256, help="images that are read and encoded")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    measure.pin(arguments.threads)
    if arguments.worker:
        print(json.dumps(retrieval(arguments.worker, arguments.dim)))
        return
    searched = [fresh(arguments, rows) for rows in arguments.rows]
    measure.show(
        ("N", "s, both directions", "memory, MB", "KB per row", "matrix of scores, MB"),
        (
            [r["rows"], r["s"], r["memory_mb"], 1e3 * r["memory_mb"] / r["rows"], r["matrix_mb"]]
            for r in searched
        ),
    )
    encoded = encoding(arguments)
    measure.show(("per second", "images", "captions"), encoded)
    measure.finish(arguments, {"retrieval": searched, "encoding": encoded})


def fresh(arguments: argparse.Namespace, rows: int) -> dict[str, float]:
    """`retrieval` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.evaluation", "--worker", str(rows)]
    for name in ("threads", "dim"):
        command += [f"--{name}", str(getattr(arguments, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measure.say(f"N = {rows}: {done.stdout.splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def retrieval(rows: int, dim: int) -> dict[str, float]:
    """Time and memory of both directions."""
    from clip_italian.evaluation import metrics

    rng = np.random.default_rng(0)
    embeds = rng.standard_normal((2, rows, dim), dtype=np.float32)
    embeds /= np.linalg.norm(embeds, axis=-1, keepdims=True)
    group = np.arange(rows)
    few = embeds[:, :64]
    metrics.ranks(few[0], few[1], group[:64], group[:64])  # what the program itself takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present size
    before = measure.resident("VmRSS")

    def both() -> None:
        metrics.ranks(embeds[0], embeds[1], group, group)
        metrics.ranks(embeds[1], embeds[0], group, group)

    turn = measure.timed(both)
    return {
        "rows": rows,
        "s": turn.wall_s,
        "cpu_s": turn.cpu_s,
        "memory_mb": (measure.resident("VmHWM") - before) / 1e6,
        "matrix_mb": 4 * rows**2 / 1e6,
    }


def encoding(arguments: argparse.Namespace) -> list[list[Any]]:
    """Images and captions per second: read only, and encoded; by the clock and by CPU seconds."""
    import jax

    from benchmarks import workload
    from clip_italian.data.collections import open_records
    from clip_italian.data.evaluation_set import EvaluationSet
    from clip_italian.data.tokens import load_tokenizer
    from clip_italian.evaluation import encode
    from data_prep.sample import make_sample

    made = workload.make_config(arguments.size, 8)
    made = dataclasses.replace(made, eval=dataclasses.replace(made.eval, eval_batch_size=64))
    model = workload.build(made)
    params = jax.device_put(model.init(0))
    images, texts = (jax.jit(f) for f in (model.encode_image, model.encode_text))
    with tempfile.TemporaryDirectory() as folder:
        make_sample(folder, train_scenes=10, validation_scenes=arguments.images, image_size=256)
        tokenizer = load_tokenizer(str(Path(folder, "sample", "tokenizer")))
        collection = open_records(folder, "sample")
        found = EvaluationSet(made, collection, tokenizer, model.image_size)
        jax.block_until_ready(
            [images(params, b.pixel_values) for b in first(found.image_batches())]
        )
        jax.block_until_ready([texts(params, b.tokens) for b in first(found.text_batches())])
        counts = len(collection), len(collection.captions)
        runs = {
            "reading": (
                lambda: sum(1 for _ in found.image_batches()),
                lambda: sum(1 for _ in found.text_batches()),
            ),
            "reading and encoding": (
                lambda: encode.encode_images(lambda x: images(params, x), found.image_batches()),
                lambda: encode.encode_texts(lambda x: texts(params, x), found.text_batches()),
            ),
        }
        rows = []
        for name, pair in runs.items():
            turns = [measure.timed(run) for run in pair]
            for clock in ("wall_s", "cpu_s"):
                rates = [n / getattr(t, clock) for n, t in zip(counts, turns, strict=True)]
                rows.append([f"{name}, {'clock' if clock == 'wall_s' else 'CPU'}", *rates])
    return rows


def first(batches: Any) -> list[Any]:
    """The first batch, for compilation."""
    return [next(iter(batches))]


if __name__ == "__main__":
    main()
