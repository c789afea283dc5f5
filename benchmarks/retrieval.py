"""Time and memory of exact retrieval: ours against NumPy in blocks and against faiss.

    python benchmarks/retrieval.py --rows 100000 --repeats 2

As many images as captions, each caption an image's embedding with noise, 512 dimensions, float32.
NumPy: for every 1,024 queries `scores = queries @ candidates.T` and the count of scores that are no
lower than the relevant one. faiss: `IndexFlatIP`, the 10 best of each query, its index built
beforehand. Ours: `metrics.ranks`, with all that it does from arrays to ranks. The three take turns,
on the same processors; a ratio is the median over the repeats of times taken in one turn. Memory is
the highest resident size during a run less the resident size before it.

Prints a table and one line of JSON; exits with 1 if the ranks of ours and NumPy differ by more than
a rounding of scores explains. Linux only.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

BLOCK = 1024  # queries that NumPy scores at a time
FOUND = 10  # candidates that faiss is asked for
NOISE = 5.0  # length of the noise; the embedding of the image has length 1


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="images, and captions")
    parser.add_argument("--dim", type=int, default=512, help="width of the embeddings")
    parser.add_argument("--repeats", type=int, default=2, help="turns of each direction")
    parser.add_argument("--threads", type=int, default=2, help="processors for each of the three")
    arguments = parser.parse_args()
    # Before the libraries look how many processors there are.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(arguments.threads)
    images, captions = embeddings(arguments.rows, arguments.dim)
    runs: list[dict] = []
    for repeat in range(arguments.repeats):
        for direction, queries, candidates in (
            ("text_to_image", captions, images),
            ("image_to_text", images, captions),
        ):
            for name, search in contestants(candidates).items():
                run = measured(search, queries)
                print(f"{repeat} {direction} {name}: {run['s']:.1f} s", flush=True)
                runs.append(run | {"repeat": repeat, "direction": direction, "name": name})
    results = compared(runs)
    show(results)
    print(json.dumps(vars(arguments) | results))
    if results["differing_by_more_than_1"] or results["differing"] > 1e-3 * arguments.rows:
        raise SystemExit("the ranks differ by more than rounding explains")


def embeddings(rows: int, dim: int):
    """Float32 [rows, dim] of length 1, twice: images, and captions that are near their image."""
    import numpy as np

    rng = np.random.default_rng(0)

    def unit(values):
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        return values

    images = unit(rng.standard_normal((rows, dim), dtype=np.float32))
    noise = unit(rng.standard_normal((rows, dim), dtype=np.float32))
    return images, unit(images + np.float32(NOISE) * noise)


def contestants(candidates) -> dict[str, Callable]:
    """Name → search: queries float32 [rows, dim], where row i belongs to candidate i."""
    import faiss
    import numpy as np

    from clip_italian.evaluation import metrics

    groups = np.arange(len(candidates))
    index = faiss.IndexFlatIP(candidates.shape[1])
    index.add(candidates)

    def numpy_ranks(queries):
        found = np.empty(len(queries), np.int64)
        for start in range(0, len(queries), BLOCK):
            scores = queries[start : start + BLOCK] @ candidates.T
            own = scores[np.arange(len(scores)), np.arange(start, start + len(scores))]
            found[start : start + BLOCK] = (scores >= own[:, None]).sum(axis=1)
        return found

    return {
        "numpy": numpy_ranks,
        "ours": lambda queries: metrics.ranks(queries, candidates, groups, groups),
        "faiss": lambda queries: index.search(queries, FOUND)[1],
    }


def measured(search: Callable, queries) -> dict:
    """What is found, seconds by the clock and of the processors, rise of the resident size."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present size
    before, cpu, start = resident("VmRSS"), time.process_time(), time.perf_counter()
    found = search(queries)
    return {
        "found": found,
        "s": time.perf_counter() - start,
        "cpu_s": time.process_time() - cpu,
        "memory_mb": (resident("VmHWM") - before) / 1e6,
    }


def resident(field: str) -> int:
    """A size from this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def compared(runs: list[dict]) -> dict:
    """Times, ratios and agreement, from the runs of all turns."""
    import numpy as np

    turns: dict[tuple, dict[str, dict]] = {}
    for run in runs:
        turns.setdefault((run["repeat"], run["direction"]), {})[run["name"]] = run
    seconds = {"one direction": [], "both": []}
    for repeat in sorted({repeat for repeat, _ in turns}):
        there, back = (
            {name: turns[repeat, direction][name]["s"] for name in ("numpy", "ours", "faiss")}
            for direction in ("text_to_image", "image_to_text")
        )
        seconds["one direction"].append(there)
        seconds["both"].append({name: there[name] + back[name] for name in there})
    gaps = np.concatenate(
        [np.abs(turn["ours"]["found"] - turn["numpy"]["found"]) for turn in turns.values()]
    )
    hits = [
        np.mean((turn["faiss"]["found"] == np.arange(len(turn["faiss"]["found"]))[:, None]).any(1))
        - np.mean(turn["ours"]["found"] <= FOUND)
        for turn in turns.values()
    ]
    return {
        "seconds": seconds,
        "ratios": {
            what: {
                peer: statistics.median(one["ours"] / one[peer] for one in times)
                for peer in ("numpy", "faiss")
            }
            for what, times in seconds.items()
        },
        "cpu_s": {
            name: statistics.median(turn[name]["cpu_s"] for turn in turns.values())
            for name in ("numpy", "ours", "faiss")
        },
        "memory_mb": {
            name: max(turn[name]["memory_mb"] for turn in turns.values())
            for name in ("numpy", "ours", "faiss")
        },
        "R@1": float(np.mean(runs[1]["found"] == 1)),
        "differing": int(np.count_nonzero(gaps)) / len(turns),
        "differing_by_more_than_1": int(np.count_nonzero(gaps > 1)),
        "faiss_R@10_less_ours": float(max(map(abs, hits))),
    }


def show(results: dict) -> None:
    """The table."""
    print("| | numpy | ours | faiss | ours / numpy | ours / faiss |\n|---|---|---|---|---|---|")
    for what, times in results["seconds"].items():
        cells = [
            statistics.median(one[name] for one in times) for name in ("numpy", "ours", "faiss")
        ]
        ratios = [f"{results['ratios'][what][peer]:.2f}" for peer in ("numpy", "faiss")]
        print(f"| {what}, s | " + " | ".join([*(f"{cell:.1f}" for cell in cells), *ratios]) + " |")
    cells = [f"{results['memory_mb'][name]:,.0f}" for name in ("numpy", "ours", "faiss")]
    print(f"| memory, MB | {' | '.join(cells)} | | |")


if __name__ == "__main__":
    main()
