"""The demo as a folder that starts by itself, laid out for a Space of the Hugging Face hub."""

import importlib.metadata
import json
import platform
import shutil
from pathlib import Path

from packaging.requirements import Requirement

from clip_italian.config import ConfigError

MODEL, INDEX = "model", "index"  # folders in it
_EXTRAS = ("data", "demo")
# Of an export: the demo reads the other weights, and needs no account of the training.
_LEFT_OUT = ("flax_model.msgpack", "onnx", "training_config.py")

_APP = '''"""Starts the demo: `pip install -r requirements.txt`, then `python app.py`."""

import os
from pathlib import Path

os.chdir(Path(__file__).parent)

from clip_italian.demo.serving import open_answers, serve  # noqa: E402

if __name__ == "__main__":
    port = int(os.environ.get("PORT", "7860"))
    serve(open_answers({model!r}, {index!r}, name={name!r}), host="0.0.0.0", port=port)
'''
_README = """---
title: {quoted}
emoji: 🔎
colorFrom: green
colorTo: red
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
pinned: false
license: apache-2.0
short_description: Search pictures with Italian words
{models}---

# {title}

Search {count:,} pictures with Italian words, choose among texts for a picture, and see where in a
picture the model finds a phrase. Made by [clip-italian](https://arxiv.org/abs/2108.08688) with the
model {name}.

```
pip install -r requirements.txt
python app.py
```
"""
_ATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in ("safetensors", "faiss")
)


def check_new(folder: Path) -> None:
    """Raises `ConfigError` where a folder is there already."""
    if folder.exists():
        raise ConfigError(f"space = {str(folder)!r} is there already; name a new folder")


def copy_model(model: Path, space: Path) -> str:
    """Copies an exported folder into the Space; returns what `app.py` calls it."""
    ignore = shutil.ignore_patterns(*_LEFT_OUT)
    shutil.copytree(model, space / MODEL, ignore=ignore, dirs_exist_ok=True)
    return MODEL


def write_files(space: Path, *, model: str, name: str, title: str, count: int) -> None:
    """Writes all of the Space but its model and its index.

    Args:
      space: folder.
      model: what `app.py` loads: `MODEL`, or a hub id.
      name: of the model, for people.
      title: of the Space.
      count: number of pictures.
    """
    package = Path(__file__).parent.parent
    shutil.copytree(
        package, space / "clip_italian", ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
    )
    models = "" if model == MODEL else f"models:\n  - {model.partition('@')[0]}\n"
    readme = _README.format(
        title=title,
        quoted=json.dumps(title),  # which YAML reads too; a bare colon would end the header
        name=name,
        count=count,
        models=models,
        gradio=importlib.metadata.version("gradio"),
        python=".".join(platform.python_version_tuple()[:2]),  # the versions were resolved for it
    )
    (space / "README.md").write_text(readme, encoding="utf-8")
    app = _APP.format(model=model, index=INDEX, name=name)
    (space / "app.py").write_text(app, encoding="utf-8")
    (space / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
    (space / ".gitattributes").write_text(_ATTRIBUTES, encoding="utf-8")


def requirements() -> list[str]:
    """What the demo needs, at the versions that are installed here: `name==version`, sorted."""
    found = set()
    for line in importlib.metadata.requires("clip-italian") or ():
        wanted = Requirement(line)
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": e}) for e in _EXTRAS):
            version = importlib.metadata.version(wanted.name)
            extras = f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else ""
            found.add(f"{wanted.name}{extras}=={version}")
    return sorted(found, key=str.lower)
