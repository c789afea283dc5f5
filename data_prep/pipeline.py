"""Raw source → records: the steps in order, each shard-wise and safe to stop at any moment.

    1 read          one input → rows                               a task per input
    2 captions      normalise, filter                              a task per shard
    3 selection     one row per picture; ids that must not be in   DuckDB
    4 pictures      fetch, check, shrink, hash                     a task per shard
    5 duplicates    equal, near-equal, evaluation pictures; split  DuckDB
    6 translation   what the cache has not; filtered again         this process, all its devices
    7 records       shards, rejects, card                          this process

The folder of a step carries a fingerprint of all that its contents depend on. Started again, a
run finds what is finished and does the rest; with another flag, it repeats the steps that the flag
touches and those after them.
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clip_italian.config import ConfigError
from data_prep import captions, guard, pictures
from data_prep.decide import decide_rows, select_rows
from data_prep.engine import Engine
from data_prep.filters import TextFilters, make_checker
from data_prep.finish import Summary, finish, token_counter
from data_prep.options import Steps
from data_prep.rows import Source
from data_prep.store import batched, fingerprint, read_json, row_count, shard_folders
from data_prep.translation import Translation

_LOG = logging.getLogger(__name__)
WORK_VERSION = 1
BAD_AT_LEAST = 10  # a share of a handful says nothing
GUARD_SHARD = 500  # pictures


def prepare(source: Source, steps: Steps, *, command: str = "") -> Summary:
    """Prepares one source: `<out_dir>/<source>/` with records, `card/` and `rejects/`.

    Args:
      source: the reader of the raw files.
      steps: all other flags.
      command: the command line, for the card.

    Returns:
      What became of all entries, captions and pictures.

    Raises:
      ConfigError: a field that cannot work, too many bad pictures, or nothing left.
    """
    name = steps.run.source or source.name
    work = check_flags(name, steps).absolute()
    inputs = source.inputs()
    ids = {_stem(path): guard.load_ids(path) for path in steps.decide.guard_ids}
    # A missing language model, translator or tokenizer is known before the work starts.
    make_checker(steps.text)
    count_tokens = token_counter(steps.run.tokenizer) if steps.run.tokenizer else None
    work.mkdir(parents=True, exist_ok=True)
    with Engine(steps.run.ray_address, steps.run.workers) as engine:
        # Only now, since JAX may be loaded: a process with its threads should not fork Ray's.
        translation = Translation(steps.translate) if steps.translate.translate else None
        run = _Run(source, steps, work, engine)
        done = {"read": (read := run.read(inputs))}
        done["captions"] = run.clean(read)
        done["selection"] = run.select(done["captions"], ids)
        done["pictures"] = run.fetch(read, done["selection"])
        done["duplicates"] = run.decide(done["selection"], done["pictures"])
        if translation:
            done["translation"] = run.translate(done["duplicates"], translation)
    facts = {
        "title": steps.run.title or name,
        "command": command,
        "language": _language(steps),
        "guards": [*ids, *(Path(path).name for path in steps.decide.guard_pictures)],
        "options": {**_fields(source), **_flat(steps)},
    }
    return finish(name, steps.run.out_dir, work, done, facts, count_tokens)


def check_flags(name: str, steps: Steps) -> Path:
    """The work folder; raises `ConfigError` for a field that cannot work."""
    run = steps.run
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(
            f"source = {name!r} is not allowed; use lower-case letters, digits and underscores"
        )
    if not Path(run.root).is_dir():
        raise ConfigError(f"root = {run.root!r} is no folder; name the one image paths start from")
    if steps.decide.near_duplicates not in range(-1, 4):
        raise ConfigError(
            f"near_duplicates = {steps.decide.near_duplicates} is not allowed; use -1 to 3"
        )
    if not 0 <= steps.decide.validation_share <= 1:
        raise ConfigError(
            f"validation_share = {steps.decide.validation_share} is not allowed; use 0 to 1"
        )
    if "://" in run.out_dir and not run.work_dir:
        raise ConfigError(
            f"work_dir is empty and out_dir = {run.out_dir!r} is remote; "
            "name a local folder with room for all pictures"
        )
    return Path(run.work_dir or f"{run.out_dir}/.{name}.work")


def _stem(path: str) -> str:
    return Path(path).name.partition(".")[0]


def _fields(options: Any) -> dict[str, Any]:
    return dataclasses.asdict(options)


def _flat(steps: Steps) -> dict[str, Any]:
    """All flags by name."""
    return {
        name: value for part in dataclasses.asdict(steps).values() for name, value in part.items()
    }


def _language(steps: Steps) -> str:
    """Language of the captions, as far as the flags say."""
    return steps.translate.translate.partition(":")[2] or steps.text.caption_language or "unknown"


class _Run:
    """The steps that have shards; each returns its folder."""

    def __init__(self, source: Source, steps: Steps, work: Path, engine: Engine) -> None:
        self._source = source
        self._steps = steps
        self._work = work
        self._engine = engine

    def _folder(self, step: str, *depends: Any) -> Path:
        parts = [_fields(d) if dataclasses.is_dataclass(d) else d for d in depends]
        folder = self._work / f"{step}-{fingerprint(WORK_VERSION, *parts)}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _do(self, function: Callable[..., None], calls: list[tuple[Any, ...]], title: str) -> None:
        """Runs the calls whose shard, their second argument, is not there yet."""
        todo = [call for call in calls if not call[1].exists()]
        for _ in self._engine.run(function, todo, title=title, unit="shard"):
            pass

    def read(self, inputs: Sequence[str]) -> Path:
        size = self._steps.run.rows_per_shard
        kind = type(self._source).__name__
        folder = self._folder("1-read", kind, self._source, [_state(p) for p in inputs], size)
        self._do(
            captions.read_input,
            [(p, folder / f"{n:05}", n, self._source, size) for n, p in enumerate(inputs)],
            "read",
        )
        return folder

    def clean(self, read: Path) -> Path:
        stop, filters = self._steps.run.final_stop, _first_filters(self._steps)
        folder = self._folder("2-captions", read.name, filters, stop)
        files = sorted(read.glob("[0-9]*/rows-*.parquet"))
        self._do(
            captions.clean_captions,
            [(file, folder / f"{n:06}", filters, stop) for n, file in enumerate(files)],
            "captions",
        )
        return folder

    def select(self, texts: Path, ids: dict[str, set[str]]) -> Path:
        repeats = self._steps.decide.max_repeats
        known = {name: sorted(found) for name, found in ids.items()}
        folder = self._folder("3-selection", texts.name, known, repeats)
        files = sorted(texts.glob("[0-9]*/rows.parquet"))
        size = self._steps.run.rows_per_shard
        if not (folder / "0").exists():
            select_rows(
                files, folder / "0", guard_ids=ids, max_repeats=repeats, rows_per_shard=size
            )
        return folder

    def fetch(self, read: Path, selected: Path) -> Path:
        steps, root = self._steps, Path(self._steps.run.root).resolve()
        rules = steps.download.robots, steps.download.allow_networks
        folder = self._folder("4-pictures", selected.name, steps.images, str(root), rules)
        pictures.recover_shards(folder)
        shared = root, steps.images, steps.download, read
        shards = {
            folder / f"{n:06}": file for n, file in enumerate(sorted(selected.glob("0/rows-*")))
        }
        calls = [(file, shard, *shared) for shard, file in shards.items() if not shard.exists()]
        if steps.run.retry_failed:
            calls += [
                (file, shard.with_name(f"again-{shard.name}"), *shared, shard)
                for shard, file in shards.items()
                if shard.exists() and read_json(shard / "again.json")
            ]
        local = bad = 0
        for done in self._engine.run(
            pictures.prepare_pictures,
            calls,
            title="pictures",
            unit="picture",
            sizes=[_wanted(call) for call in calls],
            live=True,
        ):
            shard = calls[done][1]
            if shard.name.startswith("again-"):
                shard = pictures.replace_shard(shard, calls[done][-1])
            counts = read_json(shard / "counts.json")
            local, bad = local + counts["local"], bad + counts["bad_local"]
            self._check_bad(local, bad, shard)
        return folder

    def _check_bad(self, local: int, bad: int, shard: Path) -> None:
        allowed = self._steps.run.max_bad_pictures
        if bad >= BAD_AT_LEAST and bad > allowed * local:
            raise ConfigError(
                f"max_bad_pictures = {allowed}, but {bad:,} of {local:,} local pictures cannot be "
                f"used ({shard / 'rejects.jsonl'} lists some); mend them or allow more. "
                "All finished work is kept"
            )

    def decide(self, selected: Path, images: Path) -> Path:
        options, size = self._steps.decide, self._steps.run.rows_per_shard
        guarded = [self._hash_guarded(path) for path in options.guard_pictures]
        results = [read_json(shard / "counts.json") for shard in shard_folders(images)]
        folder = self._folder(
            "5-duplicates", images.name, results, [path.name for path in guarded],
            options.near_duplicates, options.validation_share,
        )  # fmt: skip
        if not (folder / "0").exists():
            decide_rows(
                sorted(selected.glob("0/rows-*.parquet")),
                [shard / "images.parquet" for shard in shard_folders(images)],
                [file for path in guarded for file in sorted(path.glob("[0-9]*/hashes.parquet"))],
                folder / "0",
                near_duplicates=options.near_duplicates,
                validation_share=options.validation_share,
                rows_per_shard=size,
            )
        return folder

    def _hash_guarded(self, path: str) -> Path:
        files = guard.pictures_of(path)
        folder = self._folder("guard", path, [_state(file) for file in files])
        shards = enumerate(batched(files, GUARD_SHARD))
        name = Path(path).name
        self._do(
            guard.hash_pictures,
            [(part, folder / f"{n:06}", name) for n, part in shards],
            f"evaluation set {name}",
        )
        for shard in shard_folders(folder):
            for bad in read_json(shard / "counts.json")["bad"]:
                _LOG.warning("guard_pictures: %s", bad)
        return folder

    def translate(self, rows: Path, translation: Translation) -> Path:
        filters, stop = self._steps.text, self._steps.run.final_stop
        folder = self._folder("6-translation", rows.name, translation.identity, filters, stop)
        shards = enumerate(sorted(rows.glob("0/rows-*.parquet")))
        calls = [(file, folder / f"{n:06}") for n, file in shards]
        translation.run([call for call in calls if not call[1].exists()], filters, stop)
        return folder


def _first_filters(steps: Steps) -> TextFilters:
    """Before translation, captions are in another language, whose proper nouns no model knows."""
    if not steps.translate.translate:
        return steps.text
    language = steps.translate.translate.partition(":")[0] if steps.text.caption_language else ""
    return dataclasses.replace(steps.text, caption_language=language, pos_model="")


def _state(path: str) -> list[Any]:
    """What tells that an input has changed."""
    if not Path(path).exists():
        return [path]
    status = Path(path).stat()
    return [path, status.st_size, status.st_mtime_ns]


def _wanted(call: Sequence[Any]) -> int:
    """Pictures that a call of `prepare_pictures` fetches."""
    if isinstance(call[-1], Path) and call[1].name.startswith("again-"):
        return len(read_json(call[-1] / "again.json"))
    return row_count(call[0])
