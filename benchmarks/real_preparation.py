"""Prepares real raw files, and checks that every entry, row and caption is accounted for.

    python benchmarks/real_preparation.py --real_data FOLDER --out prepared

FOLDER holds raw/mscoco-it and coco_it/images (MSCOCO-IT's captions, some of COCO's photos),
raw/Validation_GCC-1.1.0-Validation.tsv (Conceptual Captions: a local web server answers for its
URLs with photos of FOLDER, and a small Marian model made on the spot translates it), and
caltech101, imagenet, emoji and tiny_imagenet32 as JSON lines. Prints a table, writes JSON.
"""

import argparse
import functools
import http.server
import json
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clip_italian.data.records import open_split, parse_record
from data_prep.card_numbers import check_summary
from data_prep.commands import run
from data_prep.finish import Summary


def prepare(out: Path, *words: str) -> dict[str, Any]:
    """One preparation; its funnel has been checked, and its records counted again."""
    start = time.perf_counter()
    summary = run([*words, "--out_dir", str(out)])
    assert isinstance(summary, Summary)
    facts = dict(summary.facts)
    check_summary(facts)
    name = facts["source"]
    for split, count in facts["records"].items():
        if count:
            file = open_split(out, name, split)
            captions = sum(len(parse_record(data).captions) for data in _all(file))
            assert (len(file), captions) == (count, facts["captions"][split]), (name, split)
    print(f"\n== {name}\n{summary}\n", flush=True)
    lost = {step["name"]: step["rejected_rows"] for step in facts["steps"]}
    return {
        "source": name, "entries": facts["entries"]["read"], "rows": facts["entries"]["rows"],
        "rejected_entries": facts["entries"]["rejected"], "rejected_rows": lost,
        "rejected_captions": {s["name"]: s["rejected_captions"] for s in facts["steps"]},
        "joined": sum(step["merged_rows"] for step in facts["steps"]),
        "records": facts["records"], "captions": facts["captions"],
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def _all(file: Any) -> Iterator[bytes]:
    for start in range(0, len(file), 500):
        yield from file.read(range(start, min(start + 500, len(file))))


def mscoco_it(real: Path, out: Path) -> dict[str, Any]:
    """Both captions files, joined with the few photos that are there."""
    files = sorted(map(str, (real / "raw/mscoco-it").glob("*.json.gz")))
    return prepare(
        out, "mscoco_it", "--path", *files, "--images", str(real / "coco_it/images"),
        "--root", str(real), "--caption_language", "it", "--final_stop", "drop",
    )  # fmt: skip


class _Photos(http.server.SimpleHTTPRequestHandler):
    """Answers /<n> with the n-th photo, and every tenth with nothing."""

    def __init__(self, *arguments: Any, photos: list[Path]) -> None:
        self._photos = photos
        super().__init__(*arguments)

    def do_GET(self) -> None:
        number = int(self.path.strip("/")) if self.path.strip("/").isdigit() else -1
        if number < 0 or number % 10 == 9:
            self.send_error(404)
            return
        data = self._photos[number % len(self._photos)].read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def conceptual_captions(real: Path, out: Path) -> dict[str, Any]:
    """Real captions; the photos come from a local server, one in ten is gone."""
    photos = sorted((real / "imagenet/images").rglob("*.jpg"))
    photos += sorted((real / "caltech101").rglob("*.jpg"))
    handler = functools.partial(_Photos, photos=photos)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    raw = (real / "raw/Validation_GCC-1.1.0-Validation.tsv").read_text(encoding="utf-8")
    lines = [line.rpartition("\t")[0] for line in raw.splitlines()]
    local = out / "cc.tsv"
    local.write_text("".join(
        f"{caption}\thttp://127.0.0.1:{server.server_port}/{n}\n" for n, caption in enumerate(lines)
    ), encoding="utf-8")  # fmt: skip
    # In a process of its own: it loads JAX, whose threads must not be there when Ray starts.
    make = "import sys, pathlib; from tests.data_prep.tiny_marian import write_checkpoint as write;"
    subprocess.run(
        [sys.executable, "-c", f"{make} write(pathlib.Path(sys.argv[1]))", str(out / "marian")],
        check=True, cwd=Path(__file__).resolve().parent.parent,
    )  # fmt: skip
    return prepare(
        out, "conceptual_captions", "--path", str(local), "--source", "cc",
        "--allow_networks", "127.0.0.0/8", "--translate", "en:it",
        "--marian_model", str(out / "marian"), "--translation_cache", str(out / "cache.sqlite"),
        "--min_letters", "0", "--no_boilerplate",  # the small model writes nonsense
    )  # fmt: skip


def labelled(name: str) -> Callable[[Path, Path], dict[str, Any]]:
    """A set whose rows are there as JSON lines."""

    def do(real: Path, out: Path) -> dict[str, Any]:
        [file] = (real / name).glob("*.jsonl")
        path = out / f"{name}.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        path.write_text("".join(
            json.dumps({"captions": row.get("label_it"), **row, "source": name}) + "\n"
            for row in rows
        ))  # fmt: skip
        return prepare(
            out, "jsonl", "--path", str(path), "--root", str(real), "--source", name,
        )  # fmt: skip

    return do


def tiny_imagenet(real: Path, out: Path) -> dict[str, Any]:
    """110,000 pictures of 32 × 32 with their class names."""
    classes = json.loads((real / "tiny_imagenet32_classes.json").read_text())
    names = {row["wnid"]: row["label_it"] for row in classes}
    with tarfile.open(real / "tiny_imagenet32.tar.xz") as archive:
        archive.extractall(out / "tiny", filter="data")
    path = out / "tiny.jsonl"
    with path.open("w") as file:
        for image in sorted((out / "tiny").glob("*/*/*.JPEG")):
            row = {
                "image": str(image.relative_to(out / "tiny")), "split": image.parts[-3],
                "captions": names[image.parent.name],
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    return prepare(
        out, "jsonl", "--path", str(path), "--root", str(out / "tiny"), "--source", "tiny_imagenet"
    )


SETS = {
    "mscoco_it": mscoco_it, "cc": conceptual_captions, "caltech101": labelled("caltech101"),
    "imagenet": labelled("imagenet"), "emoji": labelled("emoji"), "tiny_imagenet": tiny_imagenet,
}  # fmt: skip


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--real_data", type=Path, required=True, help="folder of the raw sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for records and results")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    real, out = arguments.real_data.resolve(), arguments.out.resolve()
    if len(arguments.sets) > 1:  # each in a process of its own
        for name in arguments.sets:
            subprocess.run(
                [sys.executable, __file__, "--real_data", real, "--out", out, "--sets", name],
                check=True,
            )
    else:
        [name] = arguments.sets
        (out / f"{name}.json").write_text(json.dumps(SETS[name](real, out), indent=1) + "\n")
    results = [json.loads((out / f"{name}.json").read_text()) for name in arguments.sets]
    for one in results:
        records, captions = (sum(one[what].values()) for what in ("records", "captions"))
        print(
            f"{one['source']:<14} {one['entries']:>8,} entries → {records:>8,} records, "
            f"{captions:>8,} captions, {one['seconds']:>7} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
