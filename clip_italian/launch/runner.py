"""Runs gcloud commands: says each one first, tries again where that may help, hides tokens."""

import re
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import tenacity

from clip_italian.launch.gcloud import Command

TRIES, BACKOFF_SECONDS, BACKOFF_MAX_SECONDS = 4, 5, 60
T = TypeVar("T")
TAIL = 15  # last lines of a failed command to show


class LaunchError(Exception):
    """A launch cannot go on; the message says what happened and what to do."""


class CommandFailed(LaunchError):
    """A command failed; `tail` holds the last lines that it printed."""

    def __init__(self, command: str, status: int, tail: str):
        self.status, self.tail = status, tail
        super().__init__(
            f"this command failed with exit status {status}:\n  {command}\n"
            f"{tail or '(it printed nothing)'}\n{advice(tail)}"
        )

    def says(self, word: str) -> bool:
        return word in self.tail


class Runner:
    """The one place that starts processes and waits.

    Args:
      say: where lines for the person go.
      tokens: name → value of secrets; their values are replaced in everything that is said.
      sleep: seconds → waits.
      clock: → seconds.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        tokens: Mapping[str, str],
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.sleep, self.clock = sleep, clock
        self._say, self._tokens = say, dict(tokens)

    def say(self, text: str) -> None:
        self._say(self._hide(text))

    def ask(self, command: Command) -> str:
        """What a command prints on its standard output; tries again."""

        def once() -> str:
            done = self._start(command, stderr=subprocess.PIPE)
            output, errors = done.communicate()
            if done.returncode:
                raise self._failed(command, done.returncode, errors.splitlines())
            return output

        return self._again(once)

    def do(self, command: Command) -> list[str]:
        """Runs a command that is safe to repeat, and shows its lines; tries again."""

        def once() -> list[str]:
            lines: list[str] = []

            def show(line: str) -> None:
                lines.append(line)
                self.say(f"  {line}")

            self.follow(command, show)
            return lines

        return self._again(once)

    def follow(self, command: Command, on_line: Callable[[str], None]) -> None:
        """Runs a command once and hands on its lines as they come.

        Raises:
          CommandFailed: it ended with another status than 0.
        """
        process = self._start(command, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        if process.stdin is not None:
            process.stdin.write(command.stdin)
            process.stdin.close()
        last: deque[str] = deque(maxlen=TAIL)
        try:
            for line in process.stdout:
                last.append(line.rstrip("\n"))
                on_line(last[-1])
        finally:
            process.stdout.close()
            status = process.wait()
        if status:
            raise self._failed(command, status, last)

    def _start(self, command: Command, stderr: int) -> subprocess.Popen[str]:
        self.say(f"+ {command}")
        try:
            return subprocess.Popen(
                command.words,
                stdin=subprocess.PIPE if command.stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                errors="replace",
            )
        except FileNotFoundError as error:
            raise LaunchError(
                f"there is no {command.words[0]} on PATH; install the Google Cloud CLI: "
                "https://cloud.google.com/sdk/docs/install"
            ) from error

    def _failed(self, command: Command, status: int, lines: Sequence[str]) -> CommandFailed:
        tail = "\n".join(f"  {line}" for line in list(lines)[-TAIL:])
        return CommandFailed(self._hide(str(command)), status, self._hide(tail))

    def _again(self, once: Callable[[], T]) -> T:
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(TRIES),
            wait=tenacity.wait_exponential(BACKOFF_SECONDS, BACKOFF_MAX_SECONDS),
            retry=tenacity.retry_if_exception(_worth_a_retry),
            before_sleep=self._before_sleep,
            sleep=self.sleep,
            reraise=True,
        )
        return retrying(once)

    def _before_sleep(self, state: tenacity.RetryCallState) -> None:
        seconds = state.next_action.sleep if state.next_action else 0
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, CommandFailed):
            self.say(f"{error.tail}\nfailed; trying again in {seconds:.0f} s")

    def _hide(self, text: str) -> str:
        for name, value in self._tokens.items():
            text = text.replace(value, f"<{name}>")
        return text


def _worth_a_retry(error: BaseException) -> bool:
    return isinstance(error, CommandFailed) and not re.search(PERMANENT, error.tail)


def advice(tail: str) -> str:
    """What to do about a failed command, from what it printed."""
    for pattern, text in ADVICE.items():
        if re.search(pattern, tail, re.IGNORECASE):
            return text
    return "Run the command by hand to see more."


# Trying again does not help.
PERMANENT = (
    "NOT_FOUND|ALREADY_EXISTS|PERMISSION_DENIED|INVALID_ARGUMENT|UNAUTHENTICATED|SERVICE_DISABLED"
    "|FAILED_PRECONDITION|[Qq]uota"
)
ADVICE = {
    "SERVICE_DISABLED|has not been used in project": (
        "Enable the API: gcloud services enable tpu.googleapis.com"
    ),
    "quota": (
        "The project's quota is too small: ask for more at "
        "https://console.cloud.google.com/iam-admin/quotas, or take another zone, size or --spot."
    ),
    "UNAUTHENTICATED|reauthentication|gcloud auth": "Log in: gcloud auth login",
    r"Permission denied \(publickey|ssh-add|SSHKeyNotInAgent": (
        "ssh refused the key: eval $(ssh-agent) && ssh-add ~/.ssh/google_compute_engine"
    ),
    "PERMISSION_DENIED|does not have permission": (
        "The account may not do this: see gcloud config list, and give it the role TPU Admin "
        "(roles/tpu.admin) in this project."
    ),
    "INVALID_ARGUMENT": (
        "Check --accelerator_type, --runtime_version and --zone: "
        "gcloud compute tpus accelerator-types list --zone=ZONE"
    ),
}
