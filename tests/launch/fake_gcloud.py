"""Stands in for gcloud: a folder as the cloud, a folder as the home of each worker, faults at will.

FAKE_CLOUD names the folder. In it, `calls.jsonl` gets every call, `world.json` holds what is there:

  states: of the queued resource, one for each describe, from its creation on; the last one stays.
  next_states: the same, from its next creation on.
  machine: state of the TPU VM.
  workers: how many it has.
  faults: each happens once, in this order, to a call whose words hold `match`; it then prints
    `stderr` and ends with `exit`. `after`: once it has worked. `lines`: after so many lines of
    output; `repeat`: and gcloud itself tries once more. `then`: the machines go away, and this
    file changes so (`deleted`: the request too).

ssh commands really run, in bash; `uv` there is the shell function below.
"""

import json
import os
import sys
from glob import glob
from typing import NoReturn

CLOUD = os.environ["FAKE_CLOUD"]
UV = r"""
uv() {
  echo "uv $*"
  if [ "$1" = venv ]; then
    mkdir -p venv/bin
    touch venv/bin/python
    chmod +x venv/bin/python
  else
    cp "$FAKE_CLOUD/training.sh" venv/bin/clip-italian
    chmod +x venv/bin/clip-italian
  fi
}
export -f uv
"""


def read(name: str) -> str:
    with open(f"{CLOUD}/{name}") as file:
        return file.read()


def write(name: str, text: str) -> None:
    with open(f"{CLOUD}/{name}", "w") as file:
        file.write(text)


def load() -> dict:
    return json.loads(read("world.json"))


def change(**fields) -> None:
    write("world.json", json.dumps(load() | fields))


def fail(message: str, status: int = 1) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(status)


def take_fault(line: str) -> dict:
    """The first fault, where it is meant for this call."""
    faults = load()["faults"]
    if faults and faults[0]["match"] in line:
        change(faults=faults[1:])
        return faults[0]
    return {}


def wipe() -> None:
    """The machines go away with all that runs on them."""
    import contextlib
    import shutil
    import signal
    import time

    for path in glob(f"{CLOUD}/worker-*/clip_italian/attempts/*/pid"):
        # What has been started has begun: a test counts the runs that there were.
        end = time.monotonic() + 30
        while not os.path.getsize(f"{path[:-3]}log") and time.monotonic() < end:
            time.sleep(0.05)
        with open(path) as pid, contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read()), signal.SIGKILL)
    for home in glob(f"{CLOUD}/worker-*"):
        shutil.rmtree(home)


def request(verb: str) -> None:
    there = os.path.exists(f"{CLOUD}/request")
    if verb == "create":
        if there:
            fail("ERROR: ALREADY_EXISTS: the queued resource is there")
        write("request", "0")
        change(machine="READY", states=load().get("next_states", load()["states"]))
        for worker in range(load()["workers"]):
            os.mkdir(f"{CLOUD}/worker-{worker}")
        return
    if not there:
        fail("ERROR: NOT_FOUND: no such queued resource")
    if verb == "delete":
        os.unlink(f"{CLOUD}/request")
        wipe()
        return
    asked, states = int(read("request")), load()["states"]
    write("request", str(asked + 1))
    state: dict = {"state": states[min(asked, len(states) - 1)]}
    if state["state"] == "FAILED":
        state["failedData"] = {"error": {"message": "no capacity in this zone"}}
    print(json.dumps({"name": "x", "state": state}))


def homes(words: list[str]) -> list[str]:
    worker = next(word for word in words if word.startswith("--worker=")).partition("=")[2]
    found = sorted(glob(f"{CLOUD}/worker-{'*' if worker == 'all' else worker}"))
    return found or fail("ERROR: there is no such machine")


def ssh(words: list[str], stdin: str, fault: dict) -> None:
    import subprocess

    command = next(word for word in words if word.startswith("--command=")).partition("=")[2]
    worst = 0
    for home in homes(words):
        done = subprocess.run(
            ["bash", "-c", UV + command],
            cwd=home,
            env=os.environ | {"HOME": home},
            input=stdin,
            capture_output=True,
            text=True,
        )
        lines = done.stdout.splitlines(keepends=True)
        if "lines" in fault:
            sys.stdout.writelines(lines[: fault["lines"]])
        if "lines" not in fault or fault.get("repeat"):
            sys.stdout.writelines(lines)
        sys.stderr.write(done.stderr)
        worst = max(worst, done.returncode)
    if "exit" not in fault:
        sys.exit(worst)


def scp(words: list[str]) -> None:
    import shutil

    paths = [word for word in words[4:] if not word.startswith("--")]
    for home in homes(words):
        target = os.path.join(home, paths[-1].partition(":")[2])
        assert os.path.isdir(target), "scp does not make folders"
        for path in paths[:-1]:
            if os.path.isdir(path):
                copy = os.path.join(target, os.path.basename(path))
                shutil.copytree(path, copy, dirs_exist_ok=True)
            else:
                shutil.copy(path, target)


def main() -> None:
    words = sys.argv[1:]
    stdin = "" if sys.stdin.isatty() else sys.stdin.read()
    with open(f"{CLOUD}/calls.jsonl", "a") as calls:
        calls.write(json.dumps({"argv": words, "stdin": stdin}) + "\n")
    line = " ".join(words)
    fault = take_fault(line)
    if fault and "lines" not in fault and not fault.get("after"):
        finish(fault)
    if words[0] == "storage":
        print(f"copied {words[3]}")
        open(f"{words[4]}/copied", "w").close()
        return
    assert words[:2] == ["compute", "tpus"] and "--quiet" in words, words
    match words[2:4]:
        case ["queued-resources", verb]:
            request(verb)
        case ["tpu-vm", "describe"]:
            world = load()
            ends = [{}] * world["workers"]
            print(json.dumps({"state": world["machine"], "networkEndpoints": ends}))
        case ["tpu-vm", "ssh"]:
            ssh(words, stdin, fault)
        case ["tpu-vm", "scp"]:
            scp(words)
    if fault:
        finish(fault)


def finish(fault: dict) -> None:
    if "then" in fault:
        change(**fault["then"])
        if load().get("deleted"):
            os.unlink(f"{CLOUD}/request")
        wipe()
    fail(fault.get("stderr", ""), fault.get("exit", 1))


main()
