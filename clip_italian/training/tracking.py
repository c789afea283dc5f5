"""Weights & Biases, for those who ask for it (extra wandb): it is sent numbers and the config."""

import secrets
import tempfile
from collections.abc import Mapping
from typing import Any

from etils import epath

from clip_italian.config import ConfigError, TrainConfig

STEP = "step"
RUN_ID_FILE = "wandb_run_id.txt"  # in the workdir, so that a resumed run goes on as the same one


def start(config: TrainConfig, description: Mapping[str, Any]) -> Any:
    """Begins or continues the wandb run of a workdir; returns wandb's own run object.

    Lines are logged with their training step under `STEP`, which is every curve's x axis: wandb's
    own count only grows, and cannot go back with a run that resumes from an earlier checkpoint.
    `WANDB_MODE=offline` needs no network and no account.

    Args:
      config: names project and workdir.
      description: the run's whole config, ready for JSON.

    Raises:
      ConfigError: wandb is not installed, or refuses (no account, no network).
    """
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            f"wandb = {config.wandb!r} needs the extra wandb: pip install 'clip-italian[wandb]', "
            "or leave the flag out"
        ) from error
    place = epath.Path(config.workdir)
    # wandb writes to local folders only.
    folder = tempfile.mkdtemp(prefix="wandb_") if "://" in config.workdir else str(place)
    try:
        run = wandb.init(
            project=config.wandb,
            id=_run_id(place),
            name=place.name,
            resume="allow",
            dir=folder,
            config=dict(description),
            # No code, command line or terminal: they may hold secrets.
            settings=wandb.Settings(
                console="off", disable_git=True, save_code=False, x_disable_meta=True
            ),
        )
    except wandb.Error as error:
        raise ConfigError(
            f"wandb = {config.wandb!r}: {error}; run `wandb login`, set WANDB_MODE=offline, or "
            "leave the flag out"
        ) from error
    run.define_metric(STEP, hidden=True)
    run.define_metric("*", step_metric=STEP)
    return run


def _run_id(workdir: epath.Path) -> str:
    """The id kept in the workdir, or a new one, which is kept there."""
    path = workdir / RUN_ID_FILE
    if path.exists():
        return path.read_text().strip()
    own = secrets.token_hex(4)
    path.write_text(own + "\n")
    return own
