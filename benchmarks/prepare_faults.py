"""Preparation under faults: killed again and again; 1 and 2 workers; a cluster that loses a node.

    python benchmarks/prepare_faults.py --kills 20

Captions with URLs (a local web server) are prepared and translated by a small Marian model; every
run must give the same records, byte for byte, and no sentence may be translated twice. Prints a
table and writes JSON (`--out`). Takes about 10 minutes.
"""

import argparse
import contextlib
import functools
import http.server
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clip_italian import cli
from data_prep import translate

WORDS = [
    "cat",
    "dog",
    "man",
    "woman",
    "tree",
    "house",
    "boat",
    "train",
    "sofa",
    "park",
    "red",
    "green",
    "old",
    "small",
    "big",
]
LOG = "TRANSLATED_LOG"  # environment variable: file that each translated sentence is appended to


class Setting:
    """Inputs, web server and the folder of all runs."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder = folder
        (folder / "web").mkdir()
        for number in range(rows):
            (folder / "web" / f"{number}.jpg").write_bytes(_picture(number))
        handler = functools.partial(_Quiet, directory=str(folder / "web"))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        rng = random.Random(0)
        for part in range(2):
            lines = [
                f"{' '.join(rng.choices(WORDS, k=6))} {number}\t"
                f"http://127.0.0.1:{self.server.server_port}/{number}.jpg\n"
                for number in range(part, rows, 2)
            ]
            (folder / f"{part}.tsv").write_text("".join(lines))
        # Not at the top: it loads JAX, whose threads the runs must not have when Ray starts.
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        from tests.data_prep.tiny_marian import write_checkpoint

        write_checkpoint(folder / "marian")

    def start(self, name: str, *extra: str) -> subprocess.Popen[bytes]:
        """Starts a run of its own, with its own translation cache and log."""
        run = self.folder / name
        run.mkdir(exist_ok=True)
        words = [
            "conceptual_captions", "--path", *(str(self.folder / f"{n}.tsv") for n in range(2)),
            "--source", "cc", "--out_dir", str(run), "--rows_per_shard", "20",
            "--allow_networks", "127.0.0.0/8", "--no_robots", "--connections", "8",
            "--translate", "en:it", "--marian_model", str(self.folder / "marian"),
            "--translation_cache", str(run / "cache.sqlite"), "--translate_batch", "8", *extra,
        ]  # fmt: skip
        log = (run / "log.txt").open("ab")
        return subprocess.Popen(
            [sys.executable, __file__, "--child", *words], stdout=log, stderr=log,
            env={**os.environ, LOG: str(run / "translated.txt")}, start_new_session=True,
        )  # fmt: skip

    def result(self, name: str) -> dict[str, object]:
        """Fingerprint of the records of a run, and sentences that it translated twice."""
        run = self.folder / name
        index = json.loads((run / "cc" / "records.json").read_text())
        times = Counter((run / "translated.txt").read_text().splitlines())
        return {
            "records": sum(index["records"].values()),
            "fingerprint": index["fingerprint"],
            "translated": len(times),
            "translated_twice": sum(count > 1 for count in times.values()),
        }


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def _picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    if process.wait(600):
        raise SystemExit(f"a run failed:\n{log.read_text()[-3000:]}")


def killed_runs(setting: Setting, kills: int, seed: int) -> Iterator[dict[str, object]]:
    """Preparations that are killed with SIGKILL at random moments, until enough have been."""
    rng = random.Random(seed)
    done = 0
    while done < kills:
        name, killed = f"killed {done + 1}", 0
        while (process := setting.start(name)) and done < kills:
            try:
                process.wait(rng.uniform(5, 12))
                break  # finished before it could be killed once more
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                done, killed = done + 1, killed + 1
                time.sleep(2)  # Ray's processes notice
        finish(process, setting.folder / name / "log.txt")
        yield {"kills": killed, **setting.result(name)}


@contextlib.contextmanager
def cluster(nodes: int) -> Iterator[tuple[str, object, list[object]]]:
    """A local Ray cluster with one core a node."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        yield found.address, found, [found.add_node(num_cpus=1) for _ in range(nodes - 1)]
    finally:
        found.shutdown()


def cluster_run(setting: Setting, nodes: int) -> dict[str, object]:
    """A cluster of which one node is killed while pictures are fetched."""
    with cluster(nodes) as (address, found, others):
        process = setting.start("cluster", "--ray_address", address)
        run = setting.folder / "cluster"
        while len(list(run.glob(".cc.work/4-*/[0-9]*"))) < 3:
            if process.poll() is not None:
                finish(process, run / "log.txt")
                raise SystemExit("the cluster finished before a node could be killed")
            time.sleep(0.05)
        found.remove_node(others[0], allow_graceful=False)
        before = len(list(run.glob(".cc.work/4-*/[0-9]*")))
        finish(process, run / "log.txt")
    return {"shards_before_the_node_died": before, **setting.result("cluster")}


def child(words: list[str]) -> int:
    """`clip-italian prepare`, with every sentence that was translated written down."""
    opened = translate.open_translator

    def open_noting(options: translate.TranslateOptions) -> translate.Translator:
        translator = opened(options)
        make = translator.translate

        def noting(texts: Sequence[str]) -> Iterator[dict[str, str]]:
            for batch in make(texts):
                yield batch  # committed by the caller before it asks for the next
                with open(os.environ[LOG], "a", encoding="utf-8") as log:
                    log.write("".join(f"{text}\n" for text in batch))

        translator.translate = noting
        return translator

    translate.open_translator = open_noting
    return cli.main(["prepare", *words])


def main() -> int:
    """The command line."""
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=600, help="captions, each with a picture")
    parser.add_argument("--kills", type=int, default=20, help="times the run is killed")
    parser.add_argument("--nodes", type=int, default=3, help="nodes of the cluster")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--out", default="", help="JSON file for the results")
    arguments = parser.parse_args()
    results: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(Path(folder), arguments.rows)
        for workers in (1, 2):
            name = f"{workers} worker{'s' * (workers > 1)}"
            finish(setting.start(name, "--workers", str(workers)), Path(folder, name, "log.txt"))
            results[name] = setting.result(name)
            print(name, results[name], flush=True)
        for number, result in enumerate(killed_runs(setting, arguments.kills, arguments.seed)):
            results[f"killed, {number + 1}"] = result
            print("killed", result, flush=True)
        results["cluster"] = cluster_run(setting, arguments.nodes)
        print("cluster", results["cluster"], flush=True)
    equal = len({str(one["fingerprint"]) for one in results.values()}) == 1
    twice = sum(int(str(one["translated_twice"])) for one in results.values())
    print(f"records equal: {equal}; sentences translated twice: {twice}")
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(results, indent=1) + "\n")
    return 0 if equal and not twice else 1


if __name__ == "__main__":
    sys.exit(main())
