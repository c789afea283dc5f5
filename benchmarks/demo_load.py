"""The demo under many users: seconds until an answer is there, and errors.

    python -m benchmarks.demo_load --images data/sample:train --users 20 --queries 20

Starts `clip-italian demo` in a process of its own (its index is made first, which is not timed) and
asks it as the page does: a call to the queue, then its stream of events up to the answer, which
holds the pictures. First one user alone, then all at once, each with one query after another; no
query is asked twice, since texts are remembered. A visit in between loads the page. Prints a table
and one line of JSON; exits with 1 if any answer is an error.
"""

import concurrent.futures
import contextlib
import itertools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import requests

from benchmarks import measure

START_SECONDS = 900.0  # within which the index must be made
SHOWN = 12  # pictures of an answer, as the page asks for them at first
WORDS = (
    ("gatto", "cane", "pesce", "treno", "fiore", "tavolo", "vestito", "ponte", "libro", "zaino"),
    ("rosso", "verde", "blu", "giallo", "nero", "bianco", "viola", "rosa", "grigio", "marrone"),
    ("sul prato", "nella stanza", "al mare", "in cielo", "davanti ai monti", "sotto un albero"),
)


class Answer(NamedTuple):
    """Seconds until it was there; whether it was one."""

    seconds: float
    right: bool


def main() -> None:
    """The command line."""
    parser = measure.parser(__doc__)
    parser.add_argument("--model", default="runs/sample", help="as clip-italian demo takes it")
    parser.add_argument("--images", default="data/sample:train", help="likewise")
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--queries", type=int, default=20, help="of each user, at most 28")
    arguments = parser.parse_args()
    measure.pin(arguments.threads)
    texts = [f"un {' '.join(words)}" for words in itertools.product(*WORDS)]
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))]
    each = [
        texts[n :: arguments.users + 1][: arguments.queries] for n in range(arguments.users + 1)
    ]
    with server(arguments.model, arguments.images) as address:
        first = [ask(address, "una cosa mai vista")]
        alone = [ask(address, text) for text in each[0]]
        began = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(arguments.users) as threads:
            users = list(threads.map(lambda own: [ask(address, text) for text in own], each[1:]))
        seconds = time.perf_counter() - began
    together = list(itertools.chain(*users))
    groups = {"first": first, "one user": alone, f"{arguments.users} users": together}
    results = {name: summary(answers) for name, answers in groups.items()}
    measure.show(
        ("who", "answers", "errors", "p50 s", "p95 s", "most s"),
        [(name, *found.values()) for name, found in results.items()],
    )
    rate = len(together) / seconds
    measure.finish(arguments, {"results": results, "answers per second, all users": rate})
    if any(found["errors"] for found in results.values()):
        sys.exit(1)


@contextlib.contextmanager
def server(model: str, images: str) -> Iterator[str]:
    """Address of a running demo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["demo", "--model", model, "--images", images, "--port", port]
    process = subprocess.Popen([sys.executable, "-m", "clip_italian.cli", *words])
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while True:
            with contextlib.suppress(requests.ConnectionError):
                requests.get(address, timeout=60).raise_for_status()
                break
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("the demo did not start")
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def ask(address: str, text: str) -> Answer:
    """One search, up to the last byte of its pictures."""
    began = time.perf_counter()
    data = {"data": [text, "", SHOWN, True]}
    try:
        begun = requests.post(f"{address}/gradio_api/call/search", json=data, timeout=60)
        event = begun.json()["event_id"]
        url = f"{address}/gradio_api/call/search/{event}"
        said = requests.get(url, timeout=60).text
        remarks, found = json.loads(said.partition("event: complete\ndata: ")[2].split("\n")[0])
        right = text in remarks and "data:image/jpeg" in found
    except (requests.RequestException, ValueError, KeyError):
        right = False
    return Answer(time.perf_counter() - began, right)


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Counts, and seconds of all answers, wrong ones too."""
    seconds = [answer.seconds for answer in answers]
    return {
        "answers": len(answers),
        "errors": sum(not answer.right for answer in answers),
        "p50": float(np.percentile(seconds, 50)),
        "p95": float(np.percentile(seconds, 95)),
        "most": max(seconds),
    }


if __name__ == "__main__":
    main()
