"""The gcloud commands of a launch, made by pure functions; nothing is run here."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from clip_italian.launch.options import Tpu, runtime

WORKER = Path(__file__).with_name("worker.sh")
ROOT = "clip_italian"  # in the home folder of each worker
TOKENS = ("HF_TOKEN", "WANDB_API_KEY")
STATUS_SECONDS = 300  # how long workers may end after the first one

Standing = Literal["absent", "leaving", "waiting", "ready", "gone"]
Verdict = Literal["done", "config", "preempted", "failed"]


@dataclasses.dataclass(frozen=True)
class Command:
    """Words of a command line, and what it reads from its standard input."""

    words: tuple[str, ...]
    stdin: str = dataclasses.field(default="", repr=False)  # tokens: in no message

    def __str__(self) -> str:
        note = "  # tokens through standard input" if self.stdin else ""
        return shlex.join(self.words) + note


def create(job: Tpu) -> Command:
    words = [
        *("queued-resources", "create", job.name, f"--node-id={job.name}"),
        f"--accelerator-type={job.accelerator_type}",
        f"--runtime-version={runtime(job)}",
    ]
    return _tpus(job, *words, *(["--spot"] if job.spot else []))


def describe_request(job: Tpu) -> Command:
    return _tpus(job, "queued-resources", "describe", job.name, "--format=json")


def describe_machine(job: Tpu) -> Command:
    return _tpus(job, "tpu-vm", "describe", job.name, "--format=json")


def delete(job: Tpu) -> Command:
    """Deletes the request and its machines (`--force`)."""
    return _tpus(job, "queued-resources", "delete", job.name, "--force")


def prepare(job: Tpu, workers: int, tokens: Mapping[str, str]) -> list[Command]:
    """Everything between an empty machine and the start of the training."""
    files = [str(WORKER), job.config]
    if not job.package.startswith("git+"):
        files.append(job.package)
    commands = [
        _ssh(job, f"mkdir -p {ROOT}/data"),
        _tpus(job, "tpu-vm", "scp", *files, f"{job.name}:{ROOT}/", "--worker=all"),
    ]
    if tokens:  # one worker at a time: all of them together would share one standard input
        text = token_file(tokens)
        commands += [_call(job, "secrets", worker=str(n), stdin=text) for n in range(workers)]
    package = job.package if job.package.startswith("git+") else Path(job.package).name
    commands.append(_call(job, "setup", package))
    if job.data.startswith("gs://"):
        commands.append(_call(job, "data", job.data))
    else:
        place = f"{job.name}:{ROOT}/data/"
        source = str(_local(job.data))
        commands.append(_tpus(job, "tpu-vm", "scp", "--recurse", source, place, "--worker=all"))
    return commands


def start(job: Tpu, attempt: int, more: Sequence[str]) -> Command:
    """Starts the training on all workers; `more` are flags of the training."""
    return _call(job, "start", str(attempt), *training(job, more))


def training(job: Tpu, more: Sequence[str]) -> list[str]:
    """The command of the training, as it runs in `ROOT` of each worker."""
    source = Path(job.data.rstrip("/")) if job.data.startswith("gs://") else _local(job.data)
    data = f"data/{source.name}"
    places = ["--data_dir", data, "--workdir", job.workdir]
    return ["venv/bin/clip-italian", "train", "--config", Path(job.config).name, *places, *more]


def _local(data: str) -> Path:
    """A folder of records here: scp gives it its own name, not that of a link to it."""
    return Path(data).resolve()


def probe(job: Tpu) -> Command:
    """Asks a machine that was there before for its newest attempt."""
    script = f"{ROOT}/{WORKER.name}"
    return _ssh(job, f"if [ -f {script} ]; then bash {script} probe; fi", worker="0")


def follow(job: Tpu, attempt: int, line: int) -> Command:
    """Prints the log of the first worker from a line (counted from 1) on, until it ends."""
    return _call(job, "follow", str(attempt), str(line), worker="0")


def statuses(job: Tpu, attempt: int) -> Command:
    return _call(job, "status", str(attempt), str(STATUS_SECONDS))


def stop(job: Tpu, attempt: int) -> Command:
    return _call(job, "stop", str(attempt))


def plan(job: Tpu, more: Sequence[str], tokens: Mapping[str, str]) -> list[Command]:
    """The commands of a launch that nothing disturbs, as if it had one worker."""
    return [
        describe_request(job),
        create(job),
        describe_request(job),
        describe_machine(job),
        *prepare(job, 1, tokens),
        start(job, 1, more),
        follow(job, 1, 1),
        statuses(job, 1),
        *([delete(job)] if job.delete else []),
    ]


def token_file(tokens: Mapping[str, str]) -> str:
    """Shell text that sets the tokens; its last line shows that it is whole."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in tokens.items()) + "# end\n"


def request_state(described: str) -> tuple[str, str]:
    """State of a queued resource, and what Google says of a failure, from its JSON."""
    state = json.loads(described).get("state", {})
    message = state.get("failedData", {}).get("error", {}).get("message", "")
    return state.get("state", "unknown"), message


def machine_state(described: str) -> tuple[str, int]:
    """State of a TPU VM and its number of workers, from its JSON."""
    machine = json.loads(described)
    return machine.get("state", "unknown"), len(machine.get("networkEndpoints", []))


def request_standing(state: str) -> Standing:
    """Whether a queued resource is there, comes, is being deleted, or will not come back."""
    if state == "ACTIVE":
        return "ready"
    if state == "DELETING":
        return "leaving"
    return "gone" if state in GONE_REQUEST else "waiting"


def machine_standing(state: str) -> Standing:
    """The same of its TPU VM: the request may be ACTIVE a while after the machine has gone."""
    if state == "READY":
        return "ready"
    return "gone" if state in GONE_MACHINE else "waiting"


def verdict(exits: Sequence[str], workers: int) -> Verdict:
    """What the exit statuses of all workers mean together.

    75 (EX_TEMPFAIL) says: preempted, saved, start me again. A worker whose status is lost, or
    that did not answer, was shut down before it could write one.
    """
    if "2" in exits:
        return "config"
    if "75" in exits or "lost" in exits or len(exits) < workers:
        return "preempted"
    return "done" if set(exits) == {"0"} else "failed"


def _tpus(job: Tpu, *words: str) -> Command:
    project = [f"--project={job.project}"] if job.project else []
    return Command(("gcloud", "compute", "tpus", *words, f"--zone={job.zone}", *project, "--quiet"))


def _call(job: Tpu, *step: str, worker: str = "all", stdin: str = "") -> Command:
    command = shlex.join(["bash", f"{ROOT}/{WORKER.name}", *step])
    return _ssh(job, command, worker=worker, stdin=stdin)


def _ssh(job: Tpu, command: str, worker: str = "all", stdin: str = "") -> Command:
    # A connection that died without a word is noticed after two minutes.
    alive = ("--ssh-flag=-oServerAliveInterval=30", "--ssh-flag=-oServerAliveCountMax=4")
    words = ("tpu-vm", "ssh", job.name, f"--worker={worker}", f"--command={command}", *alive)
    return dataclasses.replace(_tpus(job, *words), stdin=stdin)


GONE_REQUEST = {"FAILED", "SUSPENDING", "SUSPENDED"}
GONE_MACHINE = {"PREEMPTED", "TERMINATED", "STOPPING", "STOPPED", "DELETING", "HIDING", "HIDDEN"}
