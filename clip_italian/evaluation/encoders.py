"""What turns images and texts into comparable vectors: one small interface for every model."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clip_italian.collection import ReadImages
from clip_italian.config import ConfigError

Translate = Callable[[Sequence[str]], list[str]]
TRANSLATED = "translate:"  # before the spec of the model that reads the translations


class Encoder(Protocol):
    """A model as evaluation sees it."""

    @property
    def name(self) -> str:
        """For people: short."""
        ...

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over all that decides the vectors; equal means equal up to rounding."""
        ...

    def encode_images(self, read: ReadImages, names: Sequence[str]) -> np.ndarray:
        """All images in order: float32 [images, dim], rows of length 1.

        Args:
          read: numbers from 0 on → encoded images.
          names: one for each image, for messages.

        Raises:
          ConfigError: an image cannot be decoded; it is named.
        """
        ...

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts in order: float32 [texts, dim], rows of length 1."""
        ...


class TranslateTest:
    """An encoder that reads its texts in translation: what a model of the language must beat.

    Captions are put into English, say, and an English CLIP encodes them.
    """

    def __init__(self, encoder: Encoder, translate: Translate, translator_identity: str) -> None:
        """Joins the two.

        Args:
          encoder: of images, and of texts in the language translated to.
          translate: texts → their translations, in the same order.
          translator_identity: what the words of a translation depend on.
        """
        self._encoder = encoder
        self._translate = translate
        self.name = f"translate-test, {encoder.name}"
        self.fingerprint = digest({}, ["translate-test", encoder.fingerprint, translator_identity])

    def encode_images(self, read: ReadImages, names: Sequence[str]) -> np.ndarray:
        """As the encoder does."""
        return self._encoder.encode_images(read, names)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """The translations of the texts. Raises `ValueError` unless each text has one."""
        translations = self._translate(texts)
        if len(translations) != len(texts):
            raise ValueError(f"{len(texts)} texts were given {len(translations)} translations")
        return self._encoder.encode_texts(translations)


class Labelled:
    """An encoder under another name."""

    def __init__(self, name: str, encoder: Encoder) -> None:
        """Calls `encoder` by `name`; its vectors and its fingerprint stay."""
        self.name, self.fingerprint = name, encoder.fingerprint
        self.encode_images, self.encode_texts = encoder.encode_images, encoder.encode_texts


def open_encoder(
    spec: str,
    *,
    open_run: Callable[[str], Encoder],
    open_baseline: Callable[[str], Encoder],
    translate: tuple[Translate, str] | None = None,
) -> Encoder:
    """The encoder that a word of the command line names.

    Args:
      spec: a run of ours (see `split_run`), a folder or hub id of a dual encoder, a baseline, or
        `translate:` before one of them.
      open_run: run, folder or hub id → encoder.
      open_baseline: `mclip`, or what begins with a library's name and a colon → encoder.
      translate: the two last arguments of `TranslateTest`.

    Raises:
      ConfigError: `translate:` without a translator; what the openers raise.
    """
    if spec.startswith(TRANSLATED):
        if translate is None:
            raise ConfigError(f"model {spec!r} needs a translator: name a translation model too")
        inner = open_encoder(
            spec.removeprefix(TRANSLATED), open_run=open_run, open_baseline=open_baseline
        )
        return TranslateTest(inner, *translate)
    other = spec == "mclip" or (":" in spec and not Path(spec).exists())
    return open_baseline(spec) if other and not is_run(spec) else open_run(spec)


def split_run(spec: str) -> tuple[str, str]:
    """A run's spec → (its folder, which checkpoint: "best", a step, or "" for the newest).

    `runs/a`, `runs/a@best`, `runs/a@600` and `runs/a/checkpoints/600` are understood.
    """
    folder, _, choice = spec.rpartition("@")
    if folder and (choice == "best" or choice.isdecimal()):
        return folder, choice
    path = Path(spec)
    if path.parent.name == "checkpoints" and path.name.isdecimal():
        return str(path.parent.parent), path.name
    return spec, ""


def is_run(spec: str) -> bool:
    """Whether a spec names a run folder. What holds a config.json is a model of somebody's.

    A run's `config.py` is executed on loading, that of a downloaded folder must not be.
    """
    folder = Path(split_run(spec)[0])
    holds = (folder / "config.py").is_file() or (folder / "checkpoints").is_dir()
    return holds and not (folder / "config.json").exists()


def digest(arrays: Mapping[str, np.ndarray], facts: Any) -> str:
    """sha256 (hex) over arrays (names, dtypes, shapes, bytes; in any order) and JSON-able facts."""
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def config_facts(config: Any) -> Any:
    """A Hugging Face configuration without what does not touch the vectors, for `digest`."""
    return _without(json.loads(config.to_json_string(use_diff=False)))


def _without(facts: Any) -> Any:
    if not isinstance(facts, dict):
        return facts
    return {key: _without(value) for key, value in facts.items() if key not in _ASIDE}


_ASIDE = ("_name_or_path", "transformers_version")


def tokenizer_facts(tokenizer: Any) -> list[Any]:
    """What decides the ids that a tokenizer gives a text, for `digest`.

    Args:
      tokenizer: Hugging Face's, fast or slow, or open_clip's own.
    """
    if not hasattr(tokenizer, "get_vocab"):
        return [type(tokenizer).__name__, tokenizer.encoder, list(tokenizer.bpe_ranks)]
    facts = [type(tokenizer).__name__]  # each model says itself where it cuts
    facts += [tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token_id]
    if not hasattr(tokenizer, "backend_tokenizer"):
        return [*facts, tokenizer.get_vocab()]
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # These two only tell how it was last called.
    del rules["truncation"], rules["padding"]
    return [*facts, rules]
