"""Pictures per second of our input against a PyTorch DataLoader with torchvision's work on PIL.

    python -m benchmarks.input_pipeline --rounds 5 --out input.json
    python -m benchmarks.input_pipeline --compare paper

Needs the extras `data` and `torch` and a torchvision of torch's own build in one environment, e.g.

    pip install -e ".[data]" torch torchvision webdataset

What is not installed is left out, and a line says so. ffcv is no contestant: its newest release
(1.0.2) has no wheels and does not build without the headers of OpenCV and libjpeg-turbo.

Photos are those of $CLIP_ITALIAN_REAL_DATA (folder coco_mt), else drawn. An original is four of
them side by side, 640 × 480 pixels at quality 96, since those photos are only 256 pixels high; a
record is what `prepare` makes of it (shorter side 256). Both lie in a temporary folder.

  crop        random resized crop of 0.9 to 1 of the area, as open_clip trains: torchvision on PIL,
              bicubic and antialiased, then ToTensor and Normalize; ours is the policy `light` with
              that area, bilinear, uint8 (normalised on the device)
  paper       the paper's augmentations: torchvision on PIL one by one; ours the policy `paper`
  evaluation  shorter side to 224 (bicubic) and central square; ours `centre_crops`
  colour      hue, autocontrast and equalize alone: as ours does them, and in jax.numpy on this CPU

Every contestant is a process of its own with its workers, on the same processors; they take turns.
A turn begins with some batches that are not timed, so that all are ahead by as much at its end as
at its beginning, and ends when its workers rest, which would else read ahead into the next turn.
CPU seconds are those of the process and all its workers. Before any timing the pictures delivered
must have the same size and nearly the same content. Linux only.
"""

import contextlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import input_peers, measure
from benchmarks.input_peers import BATCH, SIZE
from benchmarks.input_pictures import write_pictures

# Comparison → (its contestants, ours → (peer, good, ambitious ratio)).
COMPARISONS = {
    "crop": (
        ("ours originals", "ours records", "torch originals", "torch records",
         "webdataset originals"),
        {
            "ours originals": ("torch originals", 3.0, 4.0),
            "ours records": ("torch originals", 9.0, 12.0),
        },
    ),
    "paper": (
        ("ours records", "torch originals", "torch records"),
        {"ours records": ("torch originals", None, None)},
    ),
    "evaluation": (
        ("ours records", "torch records"),
        {"ours records": ("torch records", None, None)},
    ),
}  # fmt: skip
AHEAD = 6  # batches of a turn that are not timed
MOST_DIFFERENT = 6.0  # levels of 255, mean over pixels, between two ways to resize


def main() -> None:
    """The command line."""
    parser = measure.parser(__doc__)
    parser.add_argument("--compare", nargs="+", default=[*COMPARISONS, "colour"])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--batches", type=int, default=16, help=f"of {BATCH} pictures in a turn")
    parser.add_argument("--pictures", type=int, default=256, help="different ones")
    arguments = parser.parse_args()
    measure.pin(arguments.threads)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        results["bytes"] = write_pictures(Path(folder), arguments.pictures)
        results["difference"] = check_content(Path(folder))
        for comparison in arguments.compare:
            if comparison == "colour":
                results[comparison] = compare_colour(arguments.rounds)
            else:
                results[comparison] = compare(comparison, Path(folder), arguments)
    show(results)
    results["versions"] = versions()
    measure.finish(arguments, results)


def compare(comparison: str, folder: Path, arguments: Any) -> dict[str, Any]:
    """Contestant → median seconds per picture by both clocks, and what it delivers."""
    names, _ = COMPARISONS[comparison]
    needed = {"torch": "torchvision", "webdataset": "webdataset"}
    present = []
    for name in names:
        package = needed.get(name.split()[0])
        if package is None or importlib.util.find_spec(package):
            present.append(name)
        else:
            measure.say(f"{comparison}: no {name}, {package} is not installed")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in present}
    with contextlib.ExitStack() as stack:
        contestants = {
            name: stack.enter_context(contestant(comparison, name, folder, arguments.threads))
            for name in present
        }
        for number in range(arguments.rounds):
            for name, connection in contestants.items():
                connection.send(arguments.batches)
                run = connection.recv()
                if isinstance(run, Exception):
                    raise run
                runs[name].append(run)
                measure.say(f"{comparison} round {number}: {name} {run['cpu'] * 1e3:.2f} ms cpu")
    found = {}
    for name, some in runs.items():
        found[name] = {k: statistics.median(run[k] for run in some) for k in ("wall", "cpu")}
        found[name]["level"] = statistics.mean(run["level"] for run in some)
    check_levels(found)
    return found


def check_levels(found: dict[str, Any]) -> None:
    """Exits when the mean brightness of what was delivered differs by more than chance does."""
    levels = [one["level"] for one in found.values()]
    if max(levels) - min(levels) > 12:
        raise SystemExit(f"the contestants deliver other pictures: mean levels {levels}")


@contextlib.contextmanager
def contestant(comparison: str, name: str, folder: Path, threads: int) -> Iterator[Any]:
    """A process that delivers batches when it is told how many; the near end of its pipe."""
    spawn = multiprocessing.get_context("spawn")
    near, far = spawn.Pipe()
    process = spawn.Process(target=serve, args=(far, comparison, name, folder, threads))
    process.start()
    try:
        yield near
        near.send(0)
        process.join(20)
    finally:
        process.terminate()
        process.join()


def serve(connection: Any, comparison: str, name: str, folder: Path, threads: int) -> None:
    """Runs in the contestant's process."""
    try:
        who, what = name.split()
        batches = input_peers.CONTESTANTS[who](comparison, folder / what, threads)
        while number := connection.recv():
            for _ in range(AHEAD):
                next(batches)
            cpu, start = tree_cpu(), time.perf_counter()
            for _ in range(number):
                last = next(batches)
            wall, cpu = time.perf_counter() - start, tree_cpu() - cpu
            assert last.shape in ((BATCH, SIZE, SIZE, 3), (BATCH, 3, SIZE, SIZE)), last.shape
            rest()
            pictures = number * BATCH
            connection.send({"wall": wall / pictures, "cpu": cpu / pictures, "level": level(last)})
    except Exception as error:
        connection.send(RuntimeError(f"{comparison}, {name}: {error!r}"))


def rest() -> None:
    """Returns when this process and its children have used next to no CPU for half a second."""
    before, now = -1.0, tree_cpu()
    while now - before > 0.02:
        time.sleep(0.5)
        before, now = now, tree_cpu()


def tree_cpu() -> float:
    """CPU seconds of this process and its children, dead or alive (to 0.01 s)."""
    ticks = 0
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # of itself and of children that have ended
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return ticks / os.sysconf("SC_CLK_TCK")


def level(batch: Any) -> float:
    """Mean of a batch in levels of 255, normalised or not."""
    if batch.dtype == np.uint8:
        return float(np.mean(batch))
    pixels = np.asarray(batch).transpose(0, 2, 3, 1) * input_peers.STD + input_peers.MEAN
    return float(pixels.mean() * 255)


def check_content(folder: Path) -> dict[str, float]:
    """Mean absolute difference, in levels, between ours and Pillow for the same window."""
    from PIL import Image

    from clip_italian.data import augment

    middle = np.full((1, augment.NUM_UNIFORMS), 0.5)
    middle[:, [2, 10, 19, 20]] = 0.9  # neither flip, perspective, autocontrast nor equalize
    middle[:, :2] = 0.499  # a middle that lies between two pixels is the first of them
    draws = augment.Draws(*(one[0] for one in augment.draw(middle, flip=False)))
    found: dict[str, list[float]] = {}
    for path in sorted(folder.glob("*_files/*.jpg"))[::8]:
        data, image = path.read_bytes(), Image.open(path)
        whole = draws._replace(area=np.float32(1), aspect=np.float32(image.width / image.height))
        side, left, top = min(image.size), image.width - min(image.size), image.height
        square = image.crop((left // 2, (top - side) // 2, left // 2 + side, (top + side) // 2))
        pairs = {
            "light": (augment.light(data, whole, SIZE), image),
            "paper": (augment.paper(data, draws, SIZE), square),
            "evaluation": (augment.centre_crop(data, SIZE), square),
        }
        for name, (ours, theirs) in pairs.items():
            resized = np.asarray(theirs.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
            kind = f"{name} {path.parent.name.removesuffix('_files')}"
            found.setdefault(kind, []).append(float(np.abs(resized - ours).mean()))
    means = {name: statistics.mean(some) for name, some in found.items()}
    measure.say(f"mean difference to Pillow's bicubic, in levels: {means}")
    if max(means.values()) > MOST_DIFFERENT:
        raise SystemExit("ours delivers other pictures than Pillow: not timed")
    return means


def show(results: dict[str, Any]) -> None:
    """One table of all comparisons."""
    rows = []
    for comparison, found in results.items():
        if comparison not in COMPARISONS:
            continue
        for name, one in found.items():
            peer, good, ambitious = COMPARISONS[comparison][1].get(name, (None, None, None))
            ratio = found[peer]["cpu"] / one["cpu"] if peer in found else None
            times = found[peer]["wall"] / one["wall"] if peer in found else None
            per_second = 1 / one["cpu"], 1 / one["wall"]
            rows.append([comparison, name, *per_second, peer, ratio, times, good, ambitious])
    head = "comparison", "contestant", "pictures per CPU second", "per second", "against"
    measure.show([*head, "× CPU", "× clock", "good", "ambitious"], rows)
    if colour := results.get("colour"):
        rows = [[name, *one.values()] for name, one in colour.items()]
        measure.show(["colour alone", "µs of CPU a picture", "µs a picture"], rows)


def compare_colour(rounds: int) -> dict[str, Any]:
    """Hue, autocontrast and equalize on the host and in jax.numpy: microseconds per picture."""
    turns = measure.in_turns(input_peers.colours(), rounds)
    return {
        name: {
            "cpu": measure.median(some, "cpu_s") / BATCH * 1e6,
            "wall": measure.median(some) / BATCH * 1e6,
        }
        for name, some in turns.items()
    }


def versions() -> dict[str, str]:
    """Of what decodes and warps."""
    found = {}
    for package in ("pillow", "opencv-python-headless", "torchvision", "webdataset"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


if __name__ == "__main__":
    main()
