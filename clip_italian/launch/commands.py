"""`clip-italian launch`: flags → a training elsewhere."""

import os
from collections.abc import Callable, Sequence

import tyro

from clip_italian.config import ConfigError
from clip_italian.launch import gcloud, options, tpu
from clip_italian.launch.runner import Runner


def run(words: Sequence[str], say: Callable[[str], None]) -> int:
    """Runs `clip-italian launch tpu ... [-- flags of the training]`; returns the exit status.

    Args:
      words: of the command line.
      say: takes lines for the person.

    Raises:
      ConfigError: a flag cannot be used.
    """
    if words[:1] != ["tpu"]:
        raise ConfigError(f"launch {' '.join(words[:1])}: only tpu is known (launch tpu --help)")
    own, more = _split(words[1:])
    job = tyro.cli(options.Tpu, args=own, prog="clip-italian launch tpu", use_underscores=True)
    options.check(job)
    for flag in ("--config", "--workdir", "--data_dir"):
        if any(word == flag or word.startswith(f"{flag}=") for word in more):
            raise ConfigError(f"{flag} after --; give --config, --workdir and --data before it")
    tokens = {name: os.environ[name] for name in gcloud.TOKENS if os.environ.get(name)}
    if job.dry_run:
        for command in gcloud.plan(job, more, tokens):
            say(str(command))
        return 0
    return tpu.launch(job, more, tokens, Runner(say, tokens))


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words before and after the first `--`."""
    found = list(words).index("--") if "--" in words else len(words)
    return list(words[:found]), list(words[found + 1 :])
