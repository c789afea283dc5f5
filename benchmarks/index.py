"""An index of pictures: time to build, open and ask it, exactly and approximately; size and memory.

    python -m benchmarks.index --rows 100000

No model: what embeds the pictures hands out vectors drawn beforehand, 512 dimensions, float32.
1,000 centres of random direction; a picture is its centre plus noise of the same length; a text
is 0.3 of such a vector plus 0.9 of a direction that all texts share, itself with noise of half its
length (in a CLIP, too, texts lie elsewhere than pictures, and resemble them by some 0.3). All are
scaled to length 1. Pictures are JPEGs of 16 × 16 pixels: building reads, checks, shrinks (not) and
stores them. Queries are texts, one at a time, others than those the approximate index was tuned
with. Memory is the highest resident size during a part of the work less the one before it. Linux
only.
"""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure

CENTRES = 1000
QUERIES = 300


def main() -> None:
    """The command line."""
    parser = measure.parser(__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="pictures")
    parser.add_argument("--dim", type=int, default=512, help="width of the embeddings")
    parser.add_argument("--folder", default=None, help="where to write; default: for temporaries")
    arguments = parser.parse_args()
    measure.pin(arguments.threads)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = run(arguments.rows, arguments.dim, Path(folder))
    measure.show(("what", "found"), rows.items())
    measure.finish(arguments, {"rows": rows})


class Drawn:
    """An encoder that has drawn all vectors beforehand."""

    def __init__(self, rows: int, dim: int) -> None:
        """Draws float32 [rows, dim] for pictures, and for texts one at each question."""
        import numpy as np

        self.name, self.fingerprint = "drawn", "0" * 64
        self._rng = np.random.default_rng(0)
        self._centres = self._unit((CENTRES, dim))
        self._shared = self._unit((1, dim))
        self._pictures = self._near(rows)

    def encode_images(self, read: Callable, names: Any) -> Any:
        """The vectors of these pictures, which are read as a model would."""
        import numpy as np

        read(np.arange(len(names)))
        return self._pictures[[int(name) for name in names]]

    def encode_texts(self, texts: Any) -> Any:
        """New vectors: float32 [texts, dim]."""
        import numpy as np

        side = self._shared + np.float32(0.5) * self._unit((len(texts), self._shared.shape[1]))
        side /= np.linalg.norm(side, axis=1, keepdims=True)
        found = np.float32(0.3) * self._near(len(texts)) + np.float32(0.9) * side
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def _unit(self, shape: tuple[int, int]) -> Any:
        import numpy as np

        values = self._rng.standard_normal(shape, dtype=np.float32)
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    def _near(self, count: int) -> Any:
        import numpy as np

        found = self._centres[self._rng.integers(0, CENTRES, count)]
        found += self._unit(found.shape)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return found


def run(rows: int, dim: int, folder: Path) -> dict[str, Any]:
    """What was measured → number or words."""
    import numpy as np

    from clip_italian.demo import approximate, building, exact, storage
    from clip_italian.demo.index import open_index

    encoder, pictures = Drawn(rows, dim), _pictures(rows)
    found: dict[str, Any] = {}
    _part(found, "build", lambda: building.update_index(folder, pictures, encoder))
    found["build, pictures/s"] = rows / found["build, s"]
    _part(found, "update without changes", lambda: building.update_index(folder, pictures, encoder))
    found["parts, MB"] = _megabytes(folder)
    index = _part(found, "open", lambda: open_index(folder, encoder.fingerprint))
    queries = encoder.encode_texts([""] * QUERIES)
    best = _ask(found, "exact query", lambda query: index.search(query, 10), queries)
    measure.say(str(found))
    said = _part(found, "approximate build", lambda: approximate.build_approximate(folder, encoder))
    measure.say(said)
    manifest = storage.read_manifest(folder)
    if manifest is None or manifest.approximate is None:  # too few rows
        return found | {"approximate": said}
    made = manifest.approximate
    index = open_index(folder)
    _part(found, "approximate open", lambda: index.search(queries[0], 10, exact=False))
    near = _ask(found, "approximate query", lambda q: index.search(q, 10, exact=False), queries)
    own = np.arange(0, rows, max(1, rows // QUERIES))
    best_pictures = exact.search(index.image_embeds, index.image_embeds[own], 11)
    near_pictures = [index.search(index.image_embeds[row], 11, exact=False) for row in own]
    return found | {
        "kind": f"{made.kind}, effort {made.effort}",
        "recall@10 of texts it was tuned with": made.recall_texts,
        "recall@10 of pictures it was tuned with": made.recall_pictures,
        "recall@10 of other texts": approximate.recall(best, near),
        "recall@10 of other pictures": approximate.recall(best_pictures, near_pictures, own),
        "approximate, MB": made.bytes / 1e6,
        "all on disk, MB": _megabytes(folder),
    }


def _pictures(rows: int) -> Any:
    """As many tiny pictures, a hundred different ones."""
    from PIL import Image

    from clip_italian.demo.sources import Pictures

    files = []
    for number in range(100):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (2 * number, 99, 255 - number)).save(file, "JPEG")
        files.append(file.getvalue())
    return Pictures(
        title="drawn",
        keys=[str(number) for number in range(rows)],
        stamps=["1"] * rows,
        captions=[()] * rows,
        read=lambda number: files[number % 100],
    )


def _part(found: dict[str, Any], name: str, work: Callable[[], Any]) -> Any:
    """Does it once; keeps seconds and memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present size
    before = measure.resident("VmRSS")
    turn = measure.timed(work)
    found[f"{name}, s"] = turn.wall_s
    found[f"{name}, CPU s"] = turn.cpu_s
    found[f"{name}, MB of memory"] = (measure.resident("VmHWM") - before) / 1e6
    return turn.result


def _ask(found: dict[str, Any], name: str, search: Callable, queries: Any) -> list:
    """Asks one by one; keeps milliseconds."""
    import numpy as np

    search(queries[0])
    turns = [measure.timed(lambda query=query: search(query)) for query in queries]
    for share in (50, 95):
        spent = float(np.percentile([turn.wall_s for turn in turns], share))
        found[f"{name}, p{share}, ms"] = 1000 * spent
    found[f"{name}, median CPU ms"] = 1000 * measure.median(turns, "cpu_s")
    return [turn.result for turn in turns]


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


if __name__ == "__main__":
    main()
