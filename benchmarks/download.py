"""Images per second of downloading and preparing, from a server that fails at one URL in five.

    python benchmarks/download.py --urls 2000 --workers 2

Starts a web server on 16 loopback addresses (Linux) in a process of its own. It gives pictures of
640 × 480 pixels and faults: pages that are missing, 429 before the picture, answers that trickle,
that never end, that are HTML, or that break off. Each worker process downloads its part and
prepares what arrived. Prints a table and one line of JSON; exits with 1 if a count is wrong.
"""

import argparse
import asyncio
import collections
import concurrent.futures
import io
import json
import multiprocessing
import random
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.download import DownloadOptions, download
from data_prep.images import prepare_image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for the server, which is no part of the installed packages

from tests.data_prep.servers import FaultServer  # noqa: E402 (found by the line above)

HOSTS = [f"127.0.0.{n}" for n in range(1, 17)]
EXPECTED = {  # path → what must become of it
    "ok": "image",
    "429-then-good": "image",
    "404": "not found",
    "slow": "timed out",
    "endless": "too many bytes",
    "html": "not an image",
    "truncated": "truncated",
}
FAULTS = [kind for kind in EXPECTED if kind != "ok"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--urls", type=int, default=2000, help="how many")
    parser.add_argument("--faults", type=float, default=0.2, help="share of URLs that fail")
    parser.add_argument("--workers", type=int, default=2, help="processes that download")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds for one URL")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ports = context.SimpleQueue()
    server = context.Process(target=serve, args=(ports,), daemon=True)
    server.start()
    kinds = choose(arguments.urls, arguments.faults)
    port = ports.get()
    urls = [f"http://{HOSTS[n % 16]}:{port}/{kind}/{n}.jpg" for n, kind in enumerate(kinds)]
    try:
        report(kinds, measure(urls, arguments.workers, arguments.timeout), arguments)
    finally:
        server.kill()


def choose(urls: int, share: float) -> list[str]:
    """The kind of each URL: every fault equally often, in random order."""
    faults = round(urls * share)
    kinds = [FAULTS[n % len(FAULTS)] for n in range(faults)] + ["ok"] * (urls - faults)
    random.Random(0).shuffle(kinds)
    return kinds


def serve(ports) -> None:
    """The server's process."""

    async def forever() -> None:
        server = FaultServer(HOSTS, pictures=pictures(), retry_after="1")
        await server.start()
        ports.put(server.port)
        await asyncio.Event().wait()

    asyncio.run(forever())


def pictures() -> list[bytes]:
    """JPEG files of 640 × 480 pixels, 60 to 100 KB each."""
    rng, files = np.random.default_rng(0), []
    for n in range(32):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + rng.normal(0, 4 + n % 5, (480, 640, 1))
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    return files


def measure(urls: list[str], workers: int, timeout: float) -> dict:
    """Downloads in all workers at once."""
    # One host stands in for thousands: being polite to it would be all that is measured.
    options = DownloadOptions(
        timeout=timeout, allow_networks=("127.0.0.0/8",), connections=64, connections_per_host=64
    )
    parts = [urls[n::workers] for n in range(workers)]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(abs, range(workers)))  # processes are up, modules imported
        start = time.perf_counter()
        done = list(pool.map(work, parts, [options] * workers))
        seconds = time.perf_counter() - start
    counts = sum((row[0] for row in done), collections.Counter())
    cpu, preparing, size = (sum(column) for column in zip(*(row[1:] for row in done), strict=True))
    return {
        "counts": counts,
        "cpu_seconds": cpu,
        "preparing_cpu_seconds": preparing,
        "bytes": size,
        "seconds": seconds,
    }


def work(
    urls: list[str], options: DownloadOptions
) -> tuple[collections.Counter[tuple[str, str]], float, float, int]:
    """One worker: (kind, outcome) → URLs; CPU seconds, those of preparing; bytes of files."""
    counts, preparing, size, start = collections.Counter(), 0.0, 0, time.process_time()
    for answer in download(urls, options):
        size += len(answer.data)
        reason = answer.reason
        if not reason:
            before = time.thread_time()
            image = prepare_image(answer.data)
            preparing += time.thread_time() - before
            reason = image if isinstance(image, str) else "image"
        counts[urls[answer.index].split("/")[3], reason] += 1
    return counts, time.process_time() - start, preparing, size


def report(kinds: list[str], found: dict, arguments: argparse.Namespace) -> None:
    """Prints what was found; exits with 1 if a count is not as expected."""
    expected = collections.Counter((kind, EXPECTED[kind]) for kind in kinds)
    counts = found["counts"]
    print(f"{'URL':>14} {'becomes':>15} {'expected':>9} {'counted':>9}")
    for kind, reason in sorted(expected | counts):
        print(f"{kind:>14} {reason:>15} {expected[kind, reason]:>9} {counts[kind, reason]:>9}")
    images = sum(count for (_, reason), count in counts.items() if reason == "image")
    summary = {
        "urls": len(kinds),
        "images": images,
        "megabytes": round(found["bytes"] / 1e6),
        "seconds": round(found["seconds"], 2),
        "images_per_second": round(images / found["seconds"], 1),
        "images_per_second_and_worker": round(images / found["seconds"] / arguments.workers, 1),
        "images_per_cpu_second": round(images / found["cpu_seconds"], 1),
        "cpu_ms_per_image": round(1e3 * found["cpu_seconds"] / images, 2),
        "of_which_preparing": round(1e3 * found["preparing_cpu_seconds"] / images, 2),
        "workers": arguments.workers,
        "timeout": arguments.timeout,
        "exact": counts == expected,
    }
    for name, value in summary.items():
        print(f"{name:>29} {value}")
    print(json.dumps(summary))
    if not summary["exact"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
