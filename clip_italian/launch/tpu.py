"""One launch on a Cloud TPU VM: get machines, set them up, train, go on until it is done."""

from collections.abc import Mapping, Sequence

from clip_italian.launch import gcloud
from clip_italian.launch.options import Tpu
from clip_italian.launch.runner import CommandFailed, LaunchError, Runner

POLL_SECONDS, POLL_MAX_SECONDS = 30, 300
SETTLE_SECONDS = 60  # after a preemption, until Google's own account of it is true
RECONNECTS = 20  # in a row without one new line
LAST_LINES = 30


def launch(job: Tpu, more: Sequence[str], tokens: Mapping[str, str], runner: Runner) -> int:
    """Trains on a TPU VM; returns the exit status.

    Args:
      job: the flags.
      more: further flags of the training.
      tokens: name → value, for the environment of the training.
      runner: runs the commands.
    """
    one = _Launch(job, more, tokens, runner)
    try:
        status = one.train()
    except LaunchError as error:
        runner.say(f"error: {error}")
        status = 1
    except KeyboardInterrupt:
        runner.say("\nstopped following; what was started goes on, and costs money.")
        runner.say("To follow it again, give the same command again.")
        one.say_how_to_delete()
        return 130
    if job.delete:
        try:
            one.delete()
            return status
        except LaunchError as error:
            runner.say(f"error: {error}")
            status = status or 1
    one.say_how_to_delete()
    return status


class _Launch:
    """What is known of the machine and of the training on it."""

    def __init__(
        self, job: Tpu, more: Sequence[str], tokens: Mapping[str, str], runner: Runner
    ) -> None:
        self._job, self._more, self._tokens, self._runner = job, more, tokens, runner
        self._workers = 0
        self._attempt, self._running, self._prepared = 0, False, False
        self._new = False  # made by this launch: nothing can run on it yet
        self._log: list[str] = []  # of this attempt

    def say_how_to_delete(self) -> None:
        self._runner.say(f"To delete the machines by hand: {gcloud.delete(self._job)}")

    def delete(self) -> None:
        try:
            self._runner.do(gcloud.delete(self._job))
        except CommandFailed as error:
            if not error.says("NOT_FOUND"):
                raise

    def train(self) -> int:
        """Attempts until one is done, one cannot be, or there were too many."""
        preemptions = failures = 0
        while True:
            self._obtain()
            ended = self._attempt_once()
            if ended == "done":
                self._runner.say(f"the training is done; its run folder is {self._job.workdir}")
                return 0
            if ended == "config":
                self._runner.say("the training refuses its flags or its config; not tried again:")
                self._say_last_lines()
                return 2
            if ended == "preempted":
                preemptions += 1
                if preemptions > self._job.preemptions:
                    raise LaunchError(f"preempted {preemptions} times; run the command to go on")
                self._runner.say(
                    f"preempted, {preemptions} of at most {self._job.preemptions} times; going on "
                    f"from the last checkpoint in {self._job.workdir}"
                )
                self._runner.sleep(SETTLE_SECONDS)
            else:
                failures += 1
                if failures > self._job.failures:
                    self._say_last_lines()
                    raise LaunchError(f"the training failed {failures} times; its last lines above")
                self._runner.say(f"failed, {failures} of at most {self._job.failures} times")

    def _obtain(self) -> None:
        """Waits until the machine is ready; makes it where it is not there or has gone."""
        deadline = self._runner.clock() + self._job.wait_hours * 3600
        pause, began = POLL_SECONDS, self._runner.clock()
        while True:
            standing, account = self._standing()
            if standing == "ready":
                return
            minutes = (self._runner.clock() - began) / 60
            self._runner.say(f"{self._job.name}: {account}; {minutes:.0f} minutes so far")
            if self._runner.clock() >= deadline:
                self.delete()  # or it is granted when nobody looks
                raise LaunchError(
                    f"no {self._job.accelerator_type} in {self._job.zone} within "
                    f"{self._job.wait_hours:g} hours ({account}); the request is deleted. Try "
                    "another zone, another size, --spot or without it, or a longer --wait_hours"
                )
            if standing == "gone":
                self.delete()
                if account.startswith("FAILED"):  # no room: asking at once again would not help
                    self._runner.sleep(pause)
                    pause = min(2 * pause, POLL_MAX_SECONDS)
            elif standing == "absent":
                self._create()
            else:
                self._runner.sleep(pause)
                pause = min(2 * pause, POLL_MAX_SECONDS)

    def _create(self) -> None:
        try:
            self._runner.do(gcloud.create(self._job))
        except CommandFailed as error:
            if not error.says("ALREADY_EXISTS"):  # a first try whose answer was lost
                raise
        self._prepared, self._attempt, self._running = False, 0, False
        self._new = True

    def _standing(self) -> tuple[gcloud.Standing, str]:
        """Where request and machine are, and in which words of Google's."""
        try:
            described = self._runner.ask(gcloud.describe_request(self._job))
        except CommandFailed as error:
            if error.says("NOT_FOUND"):
                return "absent", "not there yet"
            raise
        state, message = gcloud.request_state(described)
        standing = gcloud.request_standing(state)
        if standing != "ready":
            return standing, f"{state} ({message})" if message else state
        try:
            described = self._runner.ask(gcloud.describe_machine(self._job))
        except CommandFailed as error:
            if error.says("NOT_FOUND"):
                return "gone", "the machine has gone"
            raise
        state, self._workers = gcloud.machine_state(described)
        return gcloud.machine_standing(state), state

    def _gone(self) -> bool:
        """Was the machine taken away? No, where that cannot be asked."""
        try:
            standing, _ = self._standing()
        except CommandFailed:
            return False
        if standing in ("absent", "leaving"):  # by a person: Google only suspends what it takes
            raise LaunchError("the queued resource was deleted; it is not made again")
        return standing == "gone"

    def _attempt_once(self) -> gcloud.Verdict:
        """Sets up where needed, starts, follows; a machine that goes away is a preemption."""
        try:
            if not self._prepared and not self._new:
                self._find_attempt()
            self._new = False
            if not self._running:
                self._start()
            return self._follow()
        except CommandFailed:
            self._running = False
            if not self._gone():
                raise
            return "preempted"

    def _find_attempt(self) -> None:
        """Takes over a machine that was there before this launch."""
        for line in self._runner.do(gcloud.probe(self._job)):
            match line.split():
                case ["attempt", number, state]:
                    self._attempt, self._running = int(number), state == "running"
        if self._running:
            self._prepared = True
            self._runner.say(f"attempt {self._attempt} still runs; following it")

    def _start(self) -> None:
        if not self._prepared:
            for command in gcloud.prepare(self._job, self._workers, self._tokens):
                self._runner.do(command)
            self._prepared = True
        self._attempt += 1
        self._log = []
        self._runner.do(gcloud.start(self._job, self._attempt, self._more))
        self._running = True

    def _follow(self) -> gcloud.Verdict:
        """Shows the log to its end, through broken connections; returns how it ended."""
        broken = 0
        while True:
            seen = len(self._log)
            try:
                self._runner.follow(
                    gcloud.follow(self._job, self._attempt, seen + 1), self._take_line
                )
                break
            except CommandFailed as error:
                broken = 1 if len(self._log) > seen else broken + 1
                if self._gone():
                    self._running = False
                    return "preempted"
                if broken > RECONNECTS:
                    raise LaunchError(
                        f"no connection to the first worker, {broken} times in a row. The training "
                        f"may still run; give the same command again to follow it.\n{error}"
                    ) from error
                self._runner.say("the connection broke; connecting again")
                self._runner.sleep(min(5 * 2 ** (broken - 1), 60))
        return self._ended()

    def _ended(self) -> gcloud.Verdict:
        lines = self._runner.do(gcloud.statuses(self._job, self._attempt))
        exits = [line.split()[-1] for line in lines if line.startswith("exit status ")]
        if "running" in exits:  # one worker has ended, others wait for it
            self._runner.do(gcloud.stop(self._job, self._attempt))
        self._running = False
        return gcloud.verdict(exits, self._workers)

    def _take_line(self, line: str) -> None:
        """Shows a line of the log once, whatever gcloud repeats after a broken connection."""
        number, found, text = line.partition("\t")
        if not found or not number.isdigit():
            return  # gcloud's own words
        if int(number) == len(self._log) + 1:
            self._log.append(text)
            self._runner.say(f"| {text}")

    def _say_last_lines(self) -> None:
        for line in self._log[-LAST_LINES:]:
            self._runner.say(f"| {line}")
