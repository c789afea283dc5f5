"""The cache of the Hugging Face hub with repositories in it: what a name gives without network."""

import shutil

import huggingface_hub.constants
import transformers.utils.hub

COMMIT = "0" * 40


def use(monkeypatch, cache):
    """Makes huggingface_hub and transformers look in the folder `cache`."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(cache))


def add(cache, name, folder):
    """Puts a folder's files into the cache as the default branch of a repository."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
