"""The last step: records, rejects and the data card, put in place together."""

import dataclasses
import datetime
import heapq
import importlib.metadata
import json
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from tqdm import tqdm

from clip_italian.config import ConfigError
from clip_italian.data.records import INDEX_FILE, SPLITS, Record, write_records
from clip_italian.data.tokens import load_tokenizer
from data_prep.card import check_summary, write_card
from data_prep.pictures import digest, is_online
from data_prep.store import (
    fingerprint,
    read_json,
    read_table,
    shard_folders,
    total,
)

FORMAT_VERSION = 1
CARD_PICTURES = 24
PACKAGES = (
    "clip-italian", "aiohttp", "datasets", "deepl", "duckdb", "jax", "lingua-language-detector",
    "pillow", "pyarrow", "ray", "spacy", "tensorflow-datasets", "transformers",
)  # fmt: skip
TokenCounter = Callable[[Sequence[str]], list[int]]


def token_counter(name: str) -> TokenCounter:
    """Texts → tokens of each, special tokens included."""
    tokenizer = load_tokenizer(name)

    def count(texts: Sequence[str]) -> list[int]:
        ids: Any = tokenizer(list(texts))["input_ids"]
        return [len(one) for one in ids]

    return count


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of a source.

    Attributes:
      folder: where it is now.
      facts: the contents of `card/summary.json`, from which the card is made.
    """

    folder: str
    facts: Mapping[str, Any]

    def __str__(self) -> str:
        """A table with one line per count."""
        entries = self.facts["entries"]
        lines = [f"{entries['read']:>11,} entries read"]
        lines += _lines("not asked for", entries["skipped"])
        lines += _lines("set aside", entries["rejected"])
        for step in self.facts["steps"]:
            rows, captions = step["rows_out"], step["captions_out"]
            lines.append(f"{rows:>11,} rows with {captions:,} captions after {step['name']}")
            lines += _lines("rows set aside", step["rejected_rows"])
            lines += _lines("rows that joined another", {"same picture": step["merged_rows"]})
            lines += _lines("captions set aside", step["rejected_captions"])
        for split, count in self.facts["records"].items():
            lines.append(f"{count:>11,} records in {split}")
        return "\n".join([*lines, f"records, rejects and the card are in {self.folder}"])


def _lines(what: str, counts: Mapping[str, int]) -> list[str]:
    return [f"{n:>11,}   {what}: {reason}" for reason, n in sorted(counts.items()) if n]


def finish(
    name: str,
    out_dir: str,
    work: Path,
    steps: Mapping[str, Path],
    facts: Mapping[str, Any],
    count_tokens: TokenCounter | None,
) -> Summary:
    """Writes `<out_dir>/<name>/` from the last step's rows and their pictures.

    Args:
      name: of the source.
      out_dir: folder of all sources; a remote one is filled from a copy in `work`.
      work: the work folder.
      steps: name and folder of each finished step in order: `read`, ..., `pictures`, ...
      facts: what the card says beside the counts (command, title, languages, options, ...).
      count_tokens: texts → tokens of each, for the card; None counts words.

    Raises:
      ConfigError: nothing is left.
    """
    remote = "://" in out_dir
    folder = work / "records" / name if remote else Path(out_dir) / name
    files = sorted([*steps.values()][-1].glob("[0-9]*/rows*.parquet"))
    made_from = fingerprint([path.name for path in steps.values()], facts)
    done = folder / "card" / "summary.json"
    if done.exists() and (before := read_json(done))["made_from"] == made_from:
        summary = before
    else:
        summary = {
            "format_version": FORMAT_VERSION, "source": name, "made_from": made_from, **facts,
            **_counts(steps), **_about_rows(files), "versions": _versions(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        summary["leakage"] = _leakage(summary["steps"], summary.pop("guards"))
        summary["languages"] = {summary.pop("language"): sum(summary["captions"].values())}
        check_summary(summary)
        if not summary["steps"][-1]["rows_out"]:
            _collect_rejects(steps, work / "rejects")
            raise ConfigError(
                f"source {name}: nothing is left, so nothing was written "
                f"({work / 'rejects'} says why)\n{Summary('nowhere', summary)}"
            )
        summary = _write(folder, name, steps, files, summary, count_tokens)
    if remote:
        _upload(folder, epath.Path(out_dir) / name)
    return Summary(f"{out_dir.rstrip('/')}/{name}", summary)


def _write(
    folder: Path,
    name: str,
    steps: Mapping[str, Path],
    files: Sequence[Path],
    summary: dict[str, Any],
    count_tokens: TokenCounter | None,
) -> dict[str, Any]:
    # The smallest hashes are a random choice that does not depend on the order.
    keys = (row["key"] for file in files for row in read_table(file, ["key"]))
    chosen = set(heapq.nsmallest(CARD_PICTURES, keys, key=lambda key: digest(str(key).encode())))
    shown: dict[int, Record] = {}

    def records(split: str) -> Iterator[Record]:
        count = summary["records"][split]
        with tqdm(
            total=count, desc=f"records: {split}", unit="record", disable=not count
        ) as progress:
            for key, record in _records(files, steps["pictures"], split, name):
                if key in chosen:
                    shown[key] = record
                progress.update()
                yield record

    def add_card(staged: Path, index: Mapping[str, Any]) -> None:
        summary["fingerprint"] = index["fingerprint"]
        rejects = _collect_rejects(steps, staged / "rejects")
        texts = (row["captions"] for file in files for row in read_table(file, ["captions"]))
        (staged / "card").mkdir()
        write_card(
            staged / "card",
            summary,
            [shown[key] for key in sorted(shown)],
            _read_rejects(rejects),
            (text for captions in texts for text in captions),
            count_tokens,
        )

    write_records(folder, {split: records(split) for split in SPLITS}, name=name, also=add_card)
    return read_json(folder / "card" / "summary.json")


def _records(
    files: Sequence[Path], images: Path, split: str, name: str
) -> Iterator[tuple[int, Record]]:
    """Joins rows and pictures, which both come in the order of their keys."""
    pictures = (
        picture
        for shard in shard_folders(images)
        for picture in read_table(shard / "images.parquet", ["key", "jpeg", "image_hash"])
    )
    for file in files:
        for row in read_table(file):
            if row["split"] != split:
                continue
            picture = next(one for one in pictures if one["key"] == row["key"])
            yield (
                row["key"],
                Record(
                    image=picture["jpeg"],
                    captions=row["captions"],
                    source=row["source"] or name,
                    image_id=row["image_id"],
                    original_captions=[text or "" for text in row["original_captions"]],
                    translator=row["translator"],
                    url=row["url"] or (row["image"] if is_online(row) else ""),
                    license=row["license"],
                    image_hash=picture["image_hash"],
                ),
            )


def _counts(steps: Mapping[str, Path]) -> dict[str, Any]:
    """The funnel, from the counts of all shards."""
    names = list(steps)
    shards = [read_json(shard / "counts.json") for shard in shard_folders(steps[names[0]])]
    inputs = [{name: shard.pop(name) for name in ("file", "bytes", "sha256")} for shard in shards]
    empty = {
        "rows_in": 0, "rows_out": 0, "merged_rows": 0, "captions_in": 0, "captions_out": 0,
        "rejected_rows": {}, "rejected_captions": {},
    }  # fmt: skip
    funnel = []
    for name in names[1:]:
        counts = [read_json(shard / "counts.json") for shard in shard_folders(steps[name])]
        funnel.append({"name": name, **total([empty, *counts])})
    entries = {"read": 0, "skipped": {}, "rejected": {}, "rows": 0, "entries_of_rows": 0}
    return {"inputs": inputs, "entries": total([entries, *shards]), "steps": funnel}


def _leakage(funnel: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Evaluation set → pictures that were kept out, by id and by their looks."""
    prefix = "in evaluation set "
    found = {name: {"by id": 0, "by picture": 0} for name in names}
    for step, how in (("selection", "by id"), ("duplicates", "by picture")):
        [counts] = [one["rejected_rows"] for one in funnel if one["name"] == step]
        for reason, count in counts.items():
            if reason.startswith(prefix):
                found[reason.removeprefix(prefix)][how] = count
    return found


def _about_rows(files: Sequence[Path]) -> dict[str, Any]:
    """Records and captions per split, sources, licences, translators, characters translated."""
    records, captions = Counter(dict.fromkeys(SPLITS, 0)), Counter(dict.fromkeys(SPLITS, 0))
    told: dict[str, Counter[str]] = {
        "sources": Counter(), "licenses": Counter(), "translators": Counter()
    }  # fmt: skip
    columns = ["split", "captions", "original_captions", "source", "license", "translator"]
    translated = 0
    for file in files:
        for row in read_table(file, columns):
            records[row["split"]] += 1
            captions[row["split"]] += len(row["captions"])
            translated += sum(len(text or "") for text in row["original_captions"])
            for what, counter in told.items():
                counter[row[what[:-1]]] += 1
    return {"records": records, "captions": captions, "translated_characters": translated, **told}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # a translator or tagger that was not used
    return found


def _collect_rejects(steps: Mapping[str, Path], folder: Path) -> list[Path]:
    """One file of rejects per step, from those of its shards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = []
    for number, (name, step) in enumerate(steps.items(), start=1):
        files.append(folder / f"{number}-{name.replace(' ', '-')}.jsonl")
        with files[-1].open("wb") as out:
            for shard in shard_folders(step):
                with (shard / "rejects.jsonl").open("rb") as part:
                    shutil.copyfileobj(part, out)
    return files


def _read_rejects(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in files:
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _upload(folder: Path, remote: Any) -> None:
    """Copies a source to a remote folder; `records.json`, which makes it one, comes last."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    files.sort(key=lambda path: path.name == INDEX_FILE)
    sizes = [(folder / path).stat().st_size for path in files]
    (remote / INDEX_FILE).unlink(missing_ok=True)  # an older version is none from here on
    with tqdm(total=sum(sizes), desc="upload", unit="B", unit_scale=True) as progress:
        for path, size in zip(files, sizes, strict=True):
            target = remote / path.as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            epath.Path(folder / path).copy(target, overwrite=True)
            progress.update(size)
    for place in {path.parent for path in files}:  # files of an older version
        for path in (remote / place.as_posix()).glob("*"):
            if not path.is_dir() and place / path.name not in files:
                path.unlink()
