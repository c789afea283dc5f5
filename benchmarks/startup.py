"""What a run waits for before its first step: imports, compilation, opening its records.

    python -m benchmarks.startup

Each number is from a fresh process. Imports: all that a training run imports. First step: from the
imported program to the end of the first step, once with an empty compilation cache and once with
the cache that this left. Opening: `open_data` (tokenizer, records, caption index, length groups,
order) of 1 thousand, 100 thousand and 10 million records.

The records are those of a small drawn sample, and the train split is then made large without its
pictures: as many shards as such a source has, of which opening reads the stated sizes only, are
sparse files; the caption index lies there in its true format and size, the sample's captions over
and over. Opening this way reads what it reads of real records. Making the index, once per source,
is timed on the sample. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import measure

SCENES = 1_000  # of the small sample
PER_SHARD = 20_000  # records in a shard of 256 MiB, at 13 KB each
TARGETS = {"opening 10,000,000 records": 10.0}


def main() -> None:
    """The command line."""
    parser = measure.parser(__doc__)
    parser.add_argument("--size", default="base", help="of the first step (workload.SIZES)")
    parser.add_argument("--batch", type=int, default=8, help="pairs of the first step")
    parser.add_argument("--records", type=int, nargs="+", default=[1_000, 100_000, 10_000_000])
    parser.add_argument("--parts", nargs="+", choices=WORKERS, default=[*WORKERS])
    parser.add_argument("--repeats", type=int, default=3, help="processes for each number")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    measure.pin(arguments.threads)
    if arguments.worker:
        print(json.dumps(WORKERS[arguments.worker](arguments)))
        return
    rows: dict[str, dict[str, float]] = {}
    if "imports" in arguments.parts:
        rows["imports"] = repeated(arguments, "imports", "")
    with tempfile.TemporaryDirectory() as folder:
        if "step" in arguments.parts:
            rows["first step, cold"] = fresh(arguments, "step", folder)
            rows["first step, warm"] = repeated(arguments, "step", folder)
    if "open" in arguments.parts:
        for count in arguments.records:
            with tempfile.TemporaryDirectory() as folder:
                rows |= opened(arguments, Path(folder), count)
    measure.show(
        ("what", "s", "CPU s", "peak memory, MB", "target, s"),
        ([k, r["s"], r["cpu_s"], r["memory_mb"], TARGETS.get(k)] for k, r in rows.items()),
    )
    measure.finish(arguments, {"rows": rows})


def opened(arguments: argparse.Namespace, folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Rows of opening `count` records; the first opening of the small sample makes its index."""
    from data_prep.sample import make_sample

    make_sample(folder, train_scenes=SCENES, validation_scenes=20, image_size=32)
    first = fresh(arguments, "open", str(folder))
    grow(folder / "sample", count)
    row = repeated(arguments, "open", str(folder))
    return {
        f"opening {SCENES:,} records, making the index": first,
        f"opening {count:,} records": row,
    }


def grow(source: Path, count: int) -> None:
    """Makes the train split of a source seem to have `count` records, without their pictures."""
    path = source / "records.json"
    index = json.loads(path.read_text())
    shards = []
    for number, start in enumerate(range(0, count, PER_SHARD)):
        records = min(PER_SHARD, count - start)
        shard = {"file": f"grown-{number:05}", "records": records, "bytes": 13_000 * records}
        with (source / shard["file"]).open("wb") as file:
            file.truncate(shard["bytes"])
        shards.append({**shard, "sha256": ""})
    index["shards"]["train"], index["records"]["train"] = shards, count
    path.write_text(json.dumps(index))
    (captions,) = source.glob("derived/captions-train-*")
    grow_index(captions, count)


def grow_index(folder: Path, count: int) -> None:
    """Repeats the captions of an index until it has `count` records."""
    meta = json.loads((folder / "index.json").read_text())
    old = {
        name: np.fromfile(folder / f"{name}.bin", dtype).reshape(shape)
        for name, (dtype, shape) in meta["arrays"].items()
    }
    have = len(old["image_id"])
    whole, rest = divmod(count, have)
    captions = int(old["first"][rest])
    part = {
        "first": old["first"][: rest + 1], "ends": old["ends"][: captions + 1],
        "tokens": old["tokens"][: old["ends"][captions]], "image_id": old["image_id"][:rest],
        "caption_id": old["caption_id"][:captions],
    }  # fmt: skip
    for name, values in old.items():
        with (folder / f"{name}.bin").open("wb") as file:
            running = name in ("first", "ends")  # which count on, and begin with 0
            for turn in range(whole):
                file.write((values[1:] + turn * values[-1] if running else values).data)
            last = part[name]
            file.write((last[1:] + whole * values[-1] if running else last).data)
        if running:
            data = (folder / f"{name}.bin").read_bytes()
            (folder / f"{name}.bin").write_bytes(np.zeros(1, values.dtype).tobytes() + data)
        sizes = len(values) - running, len(part[name]) - running
        meta["arrays"][name][1][0] = whole * sizes[0] + sizes[1] + running
    meta["histogram"] = (np.array(meta["histogram"]) * count / have).tolist()
    (folder / "index.json").write_text(json.dumps(meta))


def repeated(arguments: argparse.Namespace, worker: str, folder: str) -> dict[str, float]:
    """Medians over some fresh processes."""
    runs = [fresh(arguments, worker, folder) for _ in range(arguments.repeats)]
    return {key: float(np.median([run[key] for run in runs])) for key in runs[0]}


def fresh(arguments: argparse.Namespace, worker: str, folder: str) -> dict[str, float]:
    """What a worker reports from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.startup", "--worker", worker, "--folder", folder]
    for name in ("threads", "size", "batch"):
        command += [f"--{name}", str(getattr(arguments, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measure.say(f"{worker}: {done.stdout.splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def work_imports(arguments: argparse.Namespace) -> dict[str, float]:
    """Everything that a training run imports, TensorFlow with it."""

    def imports() -> None:
        import run_hybrid_clip  # noqa: F401
        from clip_italian.data import pipeline  # noqa: F401
        from clip_italian.model import towers  # noqa: F401

    return row(measure.timed(imports))


def work_step(arguments: argparse.Namespace) -> dict[str, float]:
    """Model, weights, compilation and the first step, with the cache in `--folder`."""
    import jax

    from benchmarks import workload

    jax.config.update("jax_compilation_cache_dir", arguments.folder)

    def first_step() -> None:
        made = workload.make_config(arguments.size, arguments.batch)
        ours = workload.Ours(made, workload.build(made).init(0))
        ours.stepper(workload.make_pairs(ours.model, arguments.batch).batch)()

    return row(measure.timed(first_step))


def work_open(arguments: argparse.Namespace) -> dict[str, float]:
    """`open_data` on the records in `--folder`, imports left out."""
    import dataclasses

    from benchmarks import workload
    from clip_italian.data.opening import open_data
    from clip_italian.data.tokens import load_tokenizer

    made = workload.make_config("tiny", 256)
    tokenizer = str(Path(arguments.folder, "sample", "tokenizer"))
    text = {**workload.SIZES["tiny"][1], "vocab_size": len(load_tokenizer(tokenizer))}
    made = dataclasses.replace(
        made,
        model=dataclasses.replace(made.model, tokenizer=tokenizer, text_config=text),
        data=dataclasses.replace(made.data, data_dir=arguments.folder, weights=(1.0,)),
    )
    model = workload.build(made)
    model.text_flops(np.ones(1))  # the same for any data
    return row(measure.timed(lambda: open_data(made, model, shares=1)))


def row(turn: measure.Turn) -> dict[str, float]:
    """What is reported of a turn."""
    memory = measure.resident("VmHWM") / 1e6
    return {"s": turn.wall_s, "cpu_s": turn.cpu_s, "memory_mb": memory, "at": time.time()}


WORKERS = {"imports": work_imports, "step": work_step, "open": work_open}

if __name__ == "__main__":
    main()
