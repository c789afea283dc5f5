"""The `clip-italian` command: one sub-command for each part of the work."""

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from clip_italian.config import ConfigError

USAGE = """usage: clip-italian COMMAND ...

commands:
  prepare     raw images and captions → records (clip-italian prepare --help)
  train       records → model; the same as python run_hybrid_clip.py (clip-italian train --help)
  evaluate    models on retrieval, zero-shot, other sets → a report (clip-italian evaluate --help)
  compare     reports of two models, or of several seeds (clip-italian compare --help)
  export      a model → a folder that others can load, and the hub (clip-italian export --help)
  index       pictures → an index for the demo, kept up to date (clip-italian index --help)
  demo        search pictures with words, in the browser (clip-italian demo --help)
  checkpoint  list what a run has saved, or verify it (clip-italian checkpoint --help)
  launch      train on Cloud TPU VMs (clip-italian launch tpu --help)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    command = COMMANDS.get(words[0]) if words else None
    if command is None:
        asked = bool(words) and words[0] in ("-h", "--help")
        unknown = "" if asked or not words else f"error: no command {words[0]!r}\n"
        print(f"{unknown}{USAGE}", end="", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    logging.basicConfig(format="%(levelname)s %(message)s")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow only reads; it need not talk
    os.environ.setdefault("USE_TF", "0")  # else transformers wants tf-keras for some baselines
    try:
        return command(words[1:])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def prepare(words: Sequence[str]) -> int:
    """`clip-italian prepare SOURCE ...`."""
    if words[:1] == ["sample"]:  # needs nothing beyond the data extra
        from data_prep.sample import make_sample

        tyro.cli(
            make_sample, args=words[1:], prog="clip-italian prepare sample", use_underscores=True
        )
        return 0
    try:
        from data_prep import commands
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"preparing data needs the package {error.name}; "
            "install the extras: pip install 'clip-italian[data,prep]'"
        ) from error
    try:
        summary = commands.run(words)
    except commands.TranslationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if summary is not None:
        print(summary)
    return 0


def train(words: Sequence[str]) -> int:
    """`clip-italian train ...`: the flags of run_hybrid_clip.py."""
    import run_hybrid_clip

    return run_hybrid_clip.main(words)


def evaluate(words: Sequence[str]) -> int:
    """`clip-italian evaluate ...`."""
    from clip_italian.evaluation import commands
    from data_prep.translate import TranslationError  # needs no extra

    rooms = commands.Rooms(_open_run, _open_records, _open_tfds, _translator)
    try:
        print(commands.evaluate(words, rooms))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"evaluating these needs the package {error.name}; install the extras: "
            "pip install 'clip-italian[data,prep,eval,torch,openclip]'"
        ) from error
    except TranslationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _open_run(path: str, tokenizer: str, batch_size: int) -> Any:
    from clip_italian.hub import load

    return load.RunEncoder(load.load_model(path, tokenizer=tokenizer), batch_size=batch_size)


def _open_records(data_dir: str, source: str, split: str) -> Any:
    from clip_italian.data import collections

    return collections.open_records(data_dir, source, split)


def _open_tfds(name: str, split: str) -> Any:
    from clip_italian.data import collections

    return collections.open_tfds(name, split)


def _translator(model: str, language: str) -> tuple[Callable[[Sequence[str]], list[str]], str]:
    """A Marian model as texts → English texts, with its cache, and what identifies its words."""
    from data_prep import translate

    options = translate.TranslateOptions(translate=f"{language}:en", marian_model=model)
    translator = translate.open_translator(options)

    def english(texts: Sequence[str]) -> list[str]:
        with contextlib.closing(translate.open_cache(options, translator)) as cache:
            return translate.translate_texts(texts, translator, cache)[0]

    return english, translator.identity


def compare(words: Sequence[str]) -> int:
    """`clip-italian compare ...`."""
    from clip_italian.evaluation import commands

    print(commands.compare(words))
    return 0


def export(words: Sequence[str]) -> int:
    """`clip-italian export ...`."""
    from clip_italian.evaluation import sets
    from clip_italian.hub import commands

    def open_set(name: str, eval_dir: str, data_dir: str, language: str) -> Any:
        return sets.open_set(
            name,
            eval_dir=eval_dir,
            language=language,
            open_records=lambda source, split: _open_records(data_dir, source, split),
            open_tfds=_open_tfds,
        )

    try:
        print(commands.run(words, open_set))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this export needs the package {error.name}; install the extras: "
            "pip install 'clip-italian[data,torch,onnx]'"
        ) from error
    return 0


def index(words: Sequence[str]) -> int:
    """`clip-italian index ...`."""
    from clip_italian.demo import index_commands

    try:
        print(index_commands.run(words, index_commands.Rooms(_open_run, _open_records)))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"this index needs the package {error.name}; install the extras: "
            "pip install 'clip-italian[data,demo]'"
        ) from error
    return 0


def demo(words: Sequence[str]) -> int:
    """`clip-italian demo ...`."""
    try:
        from clip_italian.demo import commands
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the demo needs the package {error.name}; install the extras: "
            "pip install 'clip-italian[data,demo]'"
        ) from error

    def export_model(run: str, folder: str, tokenizer: str) -> None:
        export(["--model", run, "--out_dir", folder, "--tokenizer", tokenizer])

    tell = functools.partial(print, flush=True)
    return commands.run(words, _open_records, export_model, tell)


def launch(words: Sequence[str]) -> int:
    """`clip-italian launch tpu ...`."""
    from clip_italian.launch import commands

    return commands.run(words, functools.partial(print, flush=True))


def checkpoint(words: Sequence[str]) -> int:
    """`clip-italian checkpoint list|verify`."""
    from clip_italian.training import commands

    return commands.run(words, functools.partial(print, flush=True))


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "export": export,
    "index": index,
    "demo": demo,
    "checkpoint": checkpoint,
    "launch": launch,
}

if __name__ == "__main__":
    sys.exit(main())
