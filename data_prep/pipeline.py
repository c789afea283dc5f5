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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clip_italian.config import ConfigError
from clip_italian.data.records import INDEX_FILE
from data_prep import captions, flags, guard, pictures
from data_prep.decide import decide_rows, select_rows
from data_prep.engine import Engine
from data_prep.filters import make_checker
from data_prep.finish import Summary, finish, token_counter
from data_prep.options import Steps
from data_prep.rows import Source
from data_prep.store import (
    batched,
    fingerprint,
    locked,
    read_json,
    remove_leftovers,
    row_count,
    shard_folders,
)
from data_prep.translation import Translation

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
    work = flags.check_flags(name, steps)
    source = flags.absolute(source)
    inputs = source.inputs()
    ids: dict[str, set[str]] = {}
    for path in steps.decide.guard_ids:
        ids.setdefault(flags.stem(path), set()).update(guard.load_ids(path))
    # A missing language model, translator or tokenizer is known before the work starts.
    make_checker(flags.first_filters(steps))
    make_checker(steps.text)
    count_tokens = token_counter(steps.run.tokenizer) if steps.run.tokenizer else None
    work.mkdir(parents=True, exist_ok=True)
    with locked(work), Engine(steps.run.ray_address, steps.run.workers) as engine:
        # Only now, since JAX may be loaded: a process with its threads should not fork Ray's.
        translation = Translation(steps.translate) if steps.translate.translate else None
        run = _Run(source, steps, work, engine)
        # First, since a set that cannot be compared should not be found out after the downloads.
        guarded = [run.hash_guarded(path) for path in steps.decide.guard_pictures]
        done = {"read": (read := run.read(inputs))}
        done["captions"] = run.clean(read)
        done["selection"] = run.select(done["captions"], ids)
        done["pictures"] = run.fetch(read, done["selection"])
        done["duplicates"] = run.decide(done["selection"], done["pictures"], guarded)
        if translation:
            done["translation"] = run.translate(done["duplicates"], translation)
        facts = {
            "title": steps.run.title or name,
            "command": command,
            "language": flags.language(steps),
            "guards": [*ids, *(Path(path).name for path in steps.decide.guard_pictures)],
            "options": {**flags.fields(source), **flags.flat(steps)},
        }
        return finish(name, steps.run.out_dir, work, done, facts, count_tokens)


class _Run:
    """The steps that have shards; each returns its folder."""

    def __init__(self, source: Source, steps: Steps, work: Path, engine: Engine) -> None:
        self._source = source
        self._steps = steps
        self._work = work
        self._engine = engine

    def _folder(self, step: str, *depends: Any) -> Path:
        parts = [flags.fields(d) if dataclasses.is_dataclass(d) else d for d in depends]
        folder = self._work / f"{step}-{fingerprint(WORK_VERSION, *parts)}"
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        return folder

    def _do(self, function: Callable[..., None], calls: list[tuple[Any, ...]], title: str) -> None:
        """Runs the calls whose shard, their second argument, is not there yet."""
        todo = [call for call in calls if not call[1].exists()]
        for _ in self._engine.run(function, todo, title=title, unit="shard"):
            pass

    def read(self, inputs: Sequence[str]) -> Path:
        size = self._steps.run.rows_per_shard
        kind = type(self._source).__name__
        states = flags.state(inputs), flags.folders_state(self._source)
        folder = self._folder("1-read", kind, self._source, states, size)
        self._do(
            captions.read_input,
            [(p, folder / f"{n:05}", n, self._source, size) for n, p in enumerate(inputs)],
            "read",
        )
        return folder

    def clean(self, read: Path) -> Path:
        stop, filters = self._steps.run.final_stop, flags.first_filters(self._steps)
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
        files = sorted(selected.glob("0/rows-*.parquet"))
        place = str(root) if any(map(pictures.has_local, files)) else ""
        folder = self._folder("4-pictures", selected.name, steps.images, place, rules)
        pictures.recover_shards(folder)
        shared = root, steps.images, steps.download, read
        shards = {folder / f"{n:06}": file for n, file in enumerate(files)}
        calls = [(file, shard, *shared) for shard, file in shards.items() if not shard.exists()]
        if steps.run.retry_failed:
            calls += [
                (file, shard.with_name(f"again-{shard.name}"), *shared, shard)
                for shard, file in shards.items()
                if shard.exists() and read_json(shard / "again.json")
            ]
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
                pictures.replace_shard(shard, calls[done][-1])
        self._check_bad(folder)
        return folder

    def _check_bad(self, folder: Path) -> None:
        allowed = self._steps.run.max_bad_pictures
        counts = [read_json(shard / "counts.json") for shard in shard_folders(folder)]
        local, bad = (sum(count[what] for count in counts) for what in ("local", "bad_local"))
        if bad >= BAD_AT_LEAST and bad > allowed * local:
            raise ConfigError(
                f"max_bad_pictures = {allowed}, but {bad:,} of {local:,} local pictures cannot be "
                f"used ({folder}/*/rejects.jsonl lists them); allow more, or mend them and give "
                "--retry_failed. All finished work is kept"
            )

    def decide(self, selected: Path, images: Path, guarded: Sequence[Path]) -> Path:
        options, size = self._steps.decide, self._steps.run.rows_per_shard
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

    def hash_guarded(self, path: str) -> Path:
        files = guard.pictures_of(path)
        index = str(Path(path).absolute() / INDEX_FILE)  # where the set is records
        folder = self._folder("guard", path, flags.state([index, *files]))
        shards = enumerate(batched(files, GUARD_SHARD))
        name = Path(path).name
        self._do(
            guard.hash_pictures,
            [(part, folder / f"{n:06}", name) for n, part in shards],
            f"evaluation set {name}",
        )
        counts = [read_json(shard / "counts.json") for shard in shard_folders(folder)]
        if bad := [message for count in counts for message in count["bad"]]:
            raise ConfigError(
                f"guard_pictures: {len(bad):,} pictures of {path} cannot be compared "
                f"({bad[0]}, ...); mend them or take them out"
            )
        return folder

    def translate(self, rows: Path, translation: Translation) -> Path:
        filters, stop = self._steps.text, self._steps.run.final_stop
        folder = self._folder("6-translation", rows.name, translation.identity, filters, stop)
        shards = enumerate(sorted(rows.glob("0/rows-*.parquet")))
        calls = [(file, folder / f"{n:06}") for n, file in shards]
        translation.run([call for call in calls if not call[1].exists()], filters, stop)
        return folder


def _wanted(call: Sequence[Any]) -> int:
    """Pictures that a call of `prepare_pictures` fetches."""
    if isinstance(call[-1], Path) and call[1].name.startswith("again-"):
        return len(read_json(call[-1] / "again.json"))
    return row_count(call[0])
