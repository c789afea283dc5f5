"""A cloud in a folder: the fake gcloud on PATH, a training that ends as told, time that flies."""

import json
import os
import sys
from pathlib import Path

from clip_italian.launch import options, tpu
from clip_italian.launch.runner import Runner

FAKE = Path(__file__).with_name("fake_gcloud.py")
CANARY = 'hf_canary\'with "quotes" $HOME'
# Ends its n-th run on a worker with the n-th word of the file `exits`.
TRAINING = r"""#!/usr/bin/env bash
runs=$FAKE_CLOUD/runs-$(basename "$HOME")
echo "$PWD $*" >> "$runs"
run=$(wc -l < "$runs")
for step in 1 2 3 4 5; do echo "run $run, step $step"; done
printf '%s' "$HF_TOKEN" > "$HOME/token_seen"
echo "the token is $HF_TOKEN"
status=$(cut -d ' ' -f "$run" "$FAKE_CLOUD/exits")
[ "$status" = hang ] && sleep 60
exit "$status"
"""


class Cloud:
    """What a test arranges, does and looks at."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.slept = folder, []
        self.said: list[str] = []
        program = folder / "bin" / "gcloud"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!{sys.executable} -SE\n{FAKE.read_text()}")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("FAKE_CLOUD", str(folder))
        for name in ("HF_TOKEN", "WANDB_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        (folder / "training.sh").write_text(TRAINING)
        (folder / "mine.py").write_text("config = ...\n")
        (folder / "clip_italian-0.1-py3-none-any.whl").write_text("a wheel")
        self.arrange()

    def arrange(self, *, states=("ACTIVE",), workers=1, exits="0", faults=()):
        world = {"states": states, "machine": "", "workers": workers, "faults": faults}
        (self.folder / "world.json").write_text(json.dumps(world))
        (self.folder / "exits").write_text(exits + "\n")

    def change(self, **fields):
        path = self.folder / "world.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    def job(self, **fields) -> options.Tpu:
        usual = {
            "name": "run7",
            "zone": "us-central2-b",
            "accelerator_type": "v4-8",
            "config": str(self.folder / "mine.py"),
            "workdir": "gs://bucket/run7",
            "data": "gs://bucket/records",
            "package": str(self.folder / "clip_italian-0.1-py3-none-any.whl"),
        }
        return options.Tpu(**(usual | fields))

    def launch(self, *more: str, **fields) -> int:
        tokens = {"HF_TOKEN": CANARY}
        runner = Runner(self.say, tokens, sleep=self.slept.append, clock=self.clock)
        return tpu.launch(self.job(**fields), more, tokens, runner)

    def say(self, text: str) -> None:
        self.said.append(text)
        print(text)

    def clock(self) -> float:
        return sum(self.slept)

    @property
    def text(self) -> str:
        return "\n".join(self.said)

    @property
    def log(self) -> list[str]:
        """Lines of the training, as they were shown."""
        return [line[2:] for line in self.said if line.startswith("| ")]

    def calls(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    def steps(self) -> list[str]:
        """What was asked of gcloud, in a word each."""
        words = []
        for call in self.calls():
            line = call["argv"]
            if line[0] == "storage":
                continue
            inside = next((word for word in line if word.startswith("--command=")), "")
            _, called, step = inside.rpartition("worker.sh ")
            if not called:
                step = "mkdir" if inside else f"{line[2]} {line[3]}".replace("tpu-vm scp", "scp")
            words.append(step.split(" ")[0].rstrip(";") if called else step)
        return words

    def runs(self, worker=0) -> list[str]:
        path = self.folder / f"runs-worker-{worker}"
        return path.read_text().splitlines() if path.exists() else []
