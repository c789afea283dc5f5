"""Who may import whom, which files may import the heavy extras, and how long a file may grow."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for place in ("clip_italian", "data_prep", "configs", "run_hybrid_clip.py")
    for path in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
)

# Importer → what it may import of ours; for both, the longest matching prefix counts.
ALLOWED = {
    "clip_italian": (),  # config, batch, collection and the empty __init__
    "clip_italian.flags": ("clip_italian.config",),
    "clip_italian.model": ("clip_italian.config", "clip_italian.batch", "clip_italian.model"),
    "clip_italian.data": (
        "clip_italian.config",
        "clip_italian.batch",
        "clip_italian.collection",
        "clip_italian.data",
    ),
    "clip_italian.training": ("clip_italian.config", "clip_italian.batch", "clip_italian.training"),
    "clip_italian.training.losses": (),
    "clip_italian.evaluation": (
        "clip_italian.config",
        "clip_italian.batch",
        "clip_italian.collection",
        "clip_italian.evaluation",
    ),
    "clip_italian.evaluation.metrics": (),
    "clip_italian.evaluation.statistics": (),
    "clip_italian.hub": (
        "clip_italian.config",
        "clip_italian.flags",
        "clip_italian.batch",
        "clip_italian.collection",
        "clip_italian.model",
        "clip_italian.data",
        "clip_italian.training",
        "clip_italian.evaluation",
        "clip_italian.hub",
    ),
    "clip_italian.demo": (
        "clip_italian.config",
        "clip_italian.batch",
        "clip_italian.collection",
        "clip_italian.evaluation",
        "clip_italian.hub.load",
        "clip_italian.demo",
    ),
    "clip_italian.launch": ("clip_italian.config", "clip_italian.launch"),
    "clip_italian.cli": ("clip_italian", "data_prep", "run_hybrid_clip"),
    "data_prep": (
        "clip_italian.config",
        "clip_italian.data.records",
        "clip_italian.data.tokens",
        "data_prep",
    ),
    "data_prep.marian": ("clip_italian.config", "clip_italian.model.weights", "data_prep"),
    "configs": ("clip_italian.config",),
    "run_hybrid_clip": (
        "clip_italian.config",
        "clip_italian.flags",
        "clip_italian.batch",
        "clip_italian.collection",
        "clip_italian.model",
        "clip_italian.data",
        "clip_italian.training",
        "clip_italian.evaluation",
        "clip_italian.hub.load",
    ),
}

# Package of an extra, or one that a room must not know → the only modules that may import it.
ONLY_IN = {
    "tensorflow": (
        "clip_italian.data.pipeline",
        "clip_italian.data.augment",
        "clip_italian.data.images",
    ),
    "tensorflow_datasets": ("clip_italian.data",),
    "array_record": ("clip_italian.data",),
    "transformers": (
        "clip_italian.model",
        "clip_italian.data.tokens",
        "clip_italian.hub",
        "clip_italian.evaluation.baselines",
        "data_prep.marian",
    ),
    "torch": (
        "clip_italian.model.weights",
        "clip_italian.hub",
        "clip_italian.evaluation.baselines",
    ),
    "sentence_transformers": ("clip_italian.evaluation.baselines",),
    "open_clip": ("clip_italian.evaluation.baselines", "clip_italian.hub.readers"),
    "onnx_ir": ("clip_italian.hub.onnx_graphs",),
    "sklearn": ("clip_italian.evaluation.probe",),
    "cv2": ("clip_italian.data.pixels",),
    "wandb": ("clip_italian.training.tracking",),
    "ray": ("data_prep.engine",),
    "duckdb": ("data_prep.decide", "data_prep.duplicates"),
    "lingua": ("data_prep.filters", "clip_italian.demo.queries"),
    "spacy": ("data_prep.filters",),
    "deepl": ("data_prep.deepl",),
    "datasets": ("data_prep.tables",),
    "gradio": ("clip_italian.demo",),
    "faiss": ("clip_italian.demo.approximate",),
    "onnxruntime": ("clip_italian.hub",),
}
# The only modules that name the towers' Flax classes, and the one that reads an export with them.
FLAX_TOWERS = ("clip_italian.model.kinds", "clip_italian.model.towers", "clip_italian.hub.readers")
FLAX_TRANSLATOR = "data_prep.marian"  # and the only one that names another: no tower

FILE_LINES, FUNCTION_LINES = 300, 60
LONGER_FUNCTIONS = {("clip_italian.training.loop", "_train_on"): 120}
SHORTER_FILES = {"run_hybrid_clip": 80}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def within(module: str, prefixes) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of all imported modules, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


every_module = pytest.mark.parametrize("module", sorted(MODULES))


@every_module
def test_imports_point_one_way(module):
    room = max((prefix for prefix in ALLOWED if within(module, [prefix])), key=len)
    for name in imports(parse(MODULES[module])):
        if within(name, ("clip_italian", "data_prep", "run_hybrid_clip", "configs", "tests")):
            assert within(name, ALLOWED[room]), f"{module} must not import {name}"


@every_module
def test_extras_stay_in_their_files(module):
    for name in imports(parse(MODULES[module])):
        package = name.partition(".")[0]
        allowed = ONLY_IN.get(package, (module,))
        assert within(module, allowed), f"{module} imports {package}; only {allowed} may"


@every_module
def test_flax_classes_of_transformers_stay_in_towers(module):
    if module in (*FLAX_TOWERS, FLAX_TRANSLATOR):
        return
    for node in ast.walk(parse(MODULES[module])):
        for field in ("id", "attr", "name", "value", "module"):
            word = getattr(node, field, None)
            if isinstance(word, str):
                found = re.match(r"Flax[A-Z]\w+$|transformers\..*flax", word)
                assert not found, f"{module} names {word}; only {FLAX_TOWERS} may"


def test_towers_names_the_flax_classes():
    assert "FlaxViT" in MODULES[FLAX_TOWERS[0]].read_text(encoding="utf-8")


@every_module
def test_size_budgets(module):
    path = MODULES[module]
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= SHORTER_FILES.get(module, FILE_LINES)
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            allowed = LONGER_FUNCTIONS.get((module, node.name), FUNCTION_LINES)
            assert length <= allowed, f"{module}.{node.name} has {length} lines"


def test_longer_functions_exist():
    for module, function in LONGER_FUNCTIONS:
        names = [getattr(node, "name", None) for node in parse(MODULES[module]).body]
        assert function in names, f"{module}.{function} has moved: its budget must move along"


def import_without(blocked: tuple[str, ...], modules: list[str]) -> None:
    """Imports modules in a fresh interpreter in which the blocked packages are absent.

    No finder finds them. `sys.modules[name] = None` would not do: scipy looks there for torch, to
    see whether it is loaded.
    """
    code = (
        "import importlib, sys\n"
        "class Without:\n"
        "    def __init__(self, finder): self.finder = finder\n"
        "    def __getattr__(self, name): return getattr(self.finder, name)\n"
        "    def find_spec(self, name, *more):\n"
        f"        return None if name in {blocked!r} else self.finder.find_spec(name, *more)\n"
        "sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


EXTRAS = ("tensorflow", "tensorflow_datasets", "array_record", "torch", "ray", "gradio")


def test_training_imports_without_extras_and_transformers():
    room = [name for name in MODULES if within(name, ["clip_italian.training"])]
    assert "clip_italian.training.loop" in room
    import_without((*EXTRAS, "transformers"), ["clip_italian.batch", *room])


def test_all_else_but_the_pipeline_imports_without_extras():
    rooms = ("clip_italian.model", "clip_italian.evaluation", "run_hybrid_clip", "clip_italian.cli")
    import_without(EXTRAS, [name for name in MODULES if within(name, rooms)])


def test_launch_imports_without_jax():
    room = [name for name in MODULES if within(name, ["clip_italian.launch"])]
    assert "clip_italian.launch.tpu" in room
    import_without((*EXTRAS, "jax", "jaxlib", "flax", "transformers"), [*room, "clip_italian.cli"])


@pytest.fixture(scope="module")
def project_files() -> list[Path]:
    """Files that git tracks or would add."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_file_names_a_path_of_one_machine(project_files):
    machine = re.compile(r"(?<![\w.])/(?:" + "|".join(("work", "root", "farm", "tmp/v")) + ")/")
    for path in project_files:
        found = machine.search(path.read_bytes().decode("utf-8", errors="replace"))
        assert not found, f"{path.relative_to(ROOT)} names {found.group()}"


def test_no_file_over_one_mebibyte(project_files):
    large = {str(path.relative_to(ROOT)): path.stat().st_size for path in project_files}
    assert {name: size for name, size in large.items() if size > 2**20} == {}


def test_lock_pins_versions_and_nothing_else():
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[0-9][\w.]*", line), line
