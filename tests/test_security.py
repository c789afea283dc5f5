"""What no file of the project may do, and that secrets of the environment stay there."""

import ast
import logging
from pathlib import Path

import pytest

from clip_italian.cli import main as clip_italian
from tests.test_end_to_end import train

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("clip_italian", "data_prep", "benchmarks")
FILES = [ROOT / "run_hybrid_clip.py", *(p for name in FOLDERS for p in (ROOT / name).rglob("*.py"))]
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# Function → the keyword that makes it safe, and its only value.
GUARDED = {
    "torch.load": ("weights_only", True),
    "extractall": ("filter", "data"),
    "extract": ("filter", "data"),
}
FORBIDDEN = {"trust_remote_code": True, "allow_pickle": True, "shell": True, "verify": False}
RUNS_CODE = {("clip_italian/flags.py", "run_path")}  # config files are Python, as documented


def faults(source: str, path: str = "a.py") -> list[str]:
    """What a file does that it may not, a line each."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [alias.name for alias in node.names]
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else named
            found += [f"imports {m}" for m in modules if m.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            values = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            for end, (keyword, wanted) in GUARDED.items():
                same = called == end or called.endswith(f".{end}")
                if same and values.get(keyword) != wanted:
                    found.append(f"{called} without {keyword}={wanted!r}")
            found += [
                f"{called}({keyword}={value!r})"
                for keyword, value in values.items()
                if keyword in FORBIDDEN and value is FORBIDDEN[keyword]
            ]
            name = called.split(".")[-1]
            if name in ("exec", "eval", "run_path") and called in (name, f"runpy.{name}"):
                found += [] if (path, name) in RUNS_CODE else [f"runs code: {called}"]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_reads_pickles_runs_foreign_code_or_skips_a_check(path):
    assert faults(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "import dill as d", "torch.load(p)",
        "torch.load(p, weights_only=False)", "tar.extractall(to)", "f(trust_remote_code=True)",
        "np.load(p, allow_pickle=True)", "run(c, shell=True)", "get(u, verify=False)", "exec(text)",
        "runpy.run_path(p)",
    ],
)  # fmt: skip
def test_each_of_these_is_noticed(line):
    assert len(faults(line)) == 1


def test_a_token_of_the_environment_is_in_nothing_that_a_run_writes_or_says(
    config_file,
    tmp_path,
    monkeypatch,
    caplog,
    capfd,
):
    canary = "hf_canaryCanaryCanaryCanaryCanaryCan"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, canary)
    caplog.set_level(logging.DEBUG)
    assert train(config_file, tmp_path / "run", "--steps", "2", "--decay_steps", "8") == 0
    out = ["--out_dir", str(tmp_path / "exported"), "--verify", "none"]
    assert clip_italian(["export", "--model", str(tmp_path / "run"), *out]) == 0
    said = capfd.readouterr()
    assert canary not in said.out + said.err + caplog.text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if canary.encode() in path.read_bytes()] == []
