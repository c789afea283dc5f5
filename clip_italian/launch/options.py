"""The flags of `clip-italian launch tpu`."""

import dataclasses
import re
from pathlib import Path

from clip_italian.config import ConfigError

# Cloud TPU's software for JAX, by the start of the accelerator's type.
RUNTIMES = {
    "v2-": "tpu-ubuntu2204-base",
    "v3-": "tpu-ubuntu2204-base",
    "v4-": "tpu-ubuntu2204-base",
    "v5litepod-": "v2-alpha-tpuv5-lite",
    "v5p-": "v2-alpha-tpuv5",
    "v6e-": "v2-alpha-tpuv6e",
}


@dataclasses.dataclass(frozen=True)
class Tpu:
    """Train on a Cloud TPU VM: create it, set it up, train, go on after preemption.

    Words after `--` are flags of the training. Run the same command again to follow a training
    that still runs. `HF_TOKEN` and `WANDB_API_KEY` are forwarded from the environment.
    """

    name: str
    """Name of the queued resource and of its TPU VM."""
    zone: str
    """Google Cloud zone, such as us-central2-b."""
    accelerator_type: str
    """Type and size, such as v4-8 or v5litepod-16."""
    config: str
    """Local config file of the training."""
    workdir: str
    """Run folder in a bucket (gs://...), where a new machine finds the last checkpoint."""
    data: str
    """Records: gs://... or a local folder; copied to the disk of every worker."""
    package: str
    """clip-italian to install: a local wheel or sdist, or git+https://...@REF."""
    project: str = ""
    """Google Cloud project; empty takes gcloud's own."""
    runtime_version: str = ""
    """Software of the TPU VM; empty takes the one that Google names for the type."""
    spot: bool = False
    """Ask for spot machines: cheaper, and taken away at any moment."""
    wait_hours: float = 24.0
    """Hours to wait for machines before the request is deleted."""
    preemptions: int = 20
    """How many times to go on after a preemption."""
    failures: int = 3
    """How many times to start again after another error of the training."""
    delete: bool = False
    """Delete the TPU VM at the end, however the training ended."""
    dry_run: bool = False
    """Print the commands of an undisturbed run, and run nothing."""


def check(job: Tpu) -> None:
    """Raises `ConfigError` for a flag that cannot work, before anything is created."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,60}[a-z0-9])?", job.name):
        raise ConfigError(f"name = {job.name!r}; give lower-case letters, digits and hyphens")
    if not job.workdir.startswith("gs://"):
        raise ConfigError(f"workdir = {job.workdir!r}; give gs://..., a TPU VM's disk is not kept")
    if not Path(job.config).is_file():
        raise ConfigError(f"config = {job.config!r} is no file")
    if not job.data.startswith("gs://") and not Path(job.data).is_dir():
        raise ConfigError(f"data = {job.data!r}; give gs://... or a folder that is there")
    if not job.package.startswith("git+") and not Path(job.package).is_file():
        raise ConfigError(f"package = {job.package!r}; give a wheel, an sdist or git+https://...")
    for field in ("wait_hours", "preemptions", "failures"):
        if getattr(job, field) < 0:
            raise ConfigError(f"{field} = {getattr(job, field)}; give 0 or more")
    runtime(job)


def runtime(job: Tpu) -> str:
    """The software version to ask for."""
    for start, version in RUNTIMES.items():
        if job.accelerator_type.startswith(start):
            return job.runtime_version or version
    if not job.runtime_version:
        raise ConfigError(
            f"accelerator_type = {job.accelerator_type!r} is not known ({', '.join(RUNTIMES)}); "
            "give runtime_version too"
        )
    return job.runtime_version
