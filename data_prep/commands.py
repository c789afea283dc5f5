"""`clip-italian prepare SOURCE ...`: one command per source, plus the rating of translations."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tyro

from data_prep import rate
from data_prep.conceptual_captions import ConceptualCaptions
from data_prep.finish import Summary
from data_prep.il_post import IlPost
from data_prep.jsonl import Jsonl
from data_prep.mscoco_it import MscocoIt
from data_prep.options import Steps
from data_prep.pipeline import prepare
from data_prep.rows import Source
from data_prep.sample import make_sample
from data_prep.tables import Csv, HuggingFace, Parquet
from data_prep.translate import TranslationError
from data_prep.wit import Wit

__all__ = ["TranslationError", "run"]


def run(words: Sequence[str]) -> object:
    """Runs one command; returns what is to be printed, or None."""
    if words[:1] == ["rate"]:
        return _choose({"draw": rate.draw, "report": rate.report}, words[1:], "prepare rate")
    commands = {name: _command(source, words) for name, source in SOURCES.items()}
    return _choose({"sample": make_sample, **commands, "rate": _rate}, words, "prepare")


def _rate() -> None:
    """Rate translations by hand: `rate draw` makes the sheets, `rate report` sums them up."""


def _choose(commands: Mapping[str, Callable[..., Any]], words: Sequence[str], name: str) -> object:
    return tyro.extras.subcommand_cli_from_dict(
        dict(commands),
        args=list(words),
        prog=f"clip-italian {name}",
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _command(source: type, words: Sequence[str]) -> Callable[..., Summary]:
    """The function from which tyro makes the flags of one source and those that all share."""

    def command(source: Source, steps: Steps) -> Summary:
        return prepare(source, steps, command=shlex.join(["clip-italian", "prepare", *words]))

    command.__doc__ = source.__doc__
    command.__annotations__ = {"source": source, "steps": Steps, "return": Summary}
    return command


# Name of the command → reader of the raw files.
SOURCES: dict[str, type] = {
    "wit": Wit,
    "mscoco_it": MscocoIt,
    "conceptual_captions": ConceptualCaptions,
    "il_post": IlPost,
    "jsonl": Jsonl,
    "csv": Csv,
    "parquet": Parquet,
    "datasets": HuggingFace,
}
