"""Translates with an open Marian model, any of opus-mt, on all JAX devices.

Searching is transformers' own, but for one sentence at a time under `vmap`, so that a translation
depends on its sentence alone. Called on a batch, that search goes on for a sentence that is done
until the last of the batch is, and may still change it.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import sentencepiece
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import save_file
from transformers import GenerationConfig, MarianConfig
from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax
from transformers.models.marian.modeling_flax_marian import FlaxMarianMTModel

from clip_italian.config import ConfigError
from clip_italian.model import weights

_log = logging.getLogger(__name__)

_FIELD = "marian_model"
_NEEDED = ("config.json", "vocab.json", "source.spm", "target.spm")
_WEIGHTS = ("model.safetensors", "flax_model.msgpack", "pytorch_model.bin")
_VERSION = 1  # part of the cache's key: to be raised when the same model would answer otherwise


class Vocabulary:
    """Texts ↔ token ids, as `MarianTokenizer` has them, but much faster from ids to texts.

    What looks like a special token in a text (`</s>`) stays text.
    """

    def __init__(self, files: Mapping[str, Path], target: str) -> None:
        """Reads vocab.json and the two .spm files; `target` is for models with several languages.

        Raises:
          ConfigError: the model has several target languages, and `target` is none of them.
        """
        self._ids = json.loads(files["vocab.json"].read_text(encoding="utf-8"))
        self._source, self._target = (
            sentencepiece.SentencePieceProcessor(model_file=str(files[f"{side}.spm"]))
            for side in ("source", "target")
        )
        self._eos, self._unk = self._ids["</s>"], self._ids["<unk>"]
        special = (self._eos, self._unk, self._ids["<pad>"])
        self._pieces = {i: piece for piece, i in self._ids.items() if i not in special}
        codes = [name for name in self._ids if name.startswith(">>") and name.endswith("<<")]
        self._prefix = [self._ids.get(f">>{target}<<")] if codes else []
        if self._prefix == [None]:
            known = ", ".join(code[2:-2] for code in sorted(codes))
            raise ConfigError(
                f"translate: {target!r} is no target language of this model; it has {known} "
                "(name the model as marian_model and give one of these)"
            )

    def encode(self, text: str) -> list[int]:
        pieces = self._source.encode(text, out_type=str)
        return [*self._prefix, *(self._ids.get(piece, self._unk) for piece in pieces), self._eos]

    def decode(self, ids: Sequence[int]) -> str:
        pieces = [self._pieces[i] for i in ids if i in self._pieces]
        return self._target.decode_pieces(pieces).replace("▁", " ").strip()


class MarianTranslator:
    """A model on its devices; satisfies `data_prep.translate.Translator`.

    Attributes:
      name: for records: the model and its commit (or the hash of a local folder's contents).
      identity: what the words of a translation depend on: contents of all files and the search.
    """

    def __init__(
        self, model: str, *, revision: str, target: str, beams: int, batch: int, store: Path
    ) -> None:
        """Loads the model.

        Args:
          model: hub id or local folder.
          revision: hub branch, tag or commit; empty takes the default branch.
          target: target language, for models that translate to several.
          beams: beams of the search; 1 is greedy.
          batch: sentences at a time on all devices together; rounded up to a multiple of these.
          store: folder for weights converted from `pytorch_model.bin`, which needs PyTorch once.

        Raises:
          ConfigError: naming the field: no such model, or not one that can be used.
        """
        files, commit = _find_files(model, revision)
        contents = _digest(files)
        place = f"{model}@{commit}" if commit else f"{Path(model).resolve().name}@{contents[:12]}"
        self.name = f"marian:{place}"
        self.identity = f"marian {contents} beams={beams} version={_VERSION}"
        self._vocabulary = Vocabulary(files, target)
        config = _config(files, model)
        self._limit, self._pad = config.max_position_embeddings, config.pad_token_id
        with _transformers():
            flax = FlaxMarianMTModel(config, _do_init=False)
        shapes: dict[str, Any] = flatten_dict(flax.params_shape_tree, sep=".")
        params = dict(_load(files, shapes, model, store))
        settings = _settings(config, files, beams)
        params["final_logits_bias"] = _forbid(params["final_logits_bias"], settings)
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        self._batch = -(-batch // mesh.size) * mesh.size
        self._rows = NamedSharding(mesh, PartitionSpec("data"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._params = jax.device_put(unflatten_dict(params, sep="."), everywhere)
        self._generate = _search(flax, settings, mesh)

    def translate(self, texts: Sequence[str]) -> Iterator[dict[str, str]]:
        """Yields text → translation for one batch after another, the longest texts first.

        Texts longer than the model can read (512 tokens for opus-mt) are cut. A translation has
        at most 2 n + 32 tokens for a text of n, n rounded up (to a multiple of 16, above 64 of 64).
        """
        ids = [self._vocabulary.encode(text) for text in texts]
        long = sum(len(row) > self._limit for row in ids)
        if long:
            _log.warning("%d texts are cut to the %d tokens the model can read", long, self._limit)
        ids = [row if len(row) <= self._limit else row[: self._limit - 1] + row[-1:] for row in ids]

        order = sorted(range(len(texts)), key=lambda index: (-len(ids[index]), index))
        for width, group in itertools.groupby(order, lambda index: self._width(len(ids[index]))):
            members = list(group)
            for start in range(0, len(members), self._batch):
                rows = members[start : start + self._batch]
                outputs = self._run([ids[index] for index in rows], width)
                yield {
                    texts[index]: self._vocabulary.decode(output.tolist())
                    for index, output in zip(rows, outputs, strict=True)
                }

    def _width(self, length: int) -> int:
        """Columns for a text of so many tokens: few different ones, as each is compiled."""
        step = 16 if length <= 64 else 64
        return min(-(-length // step) * step, self._limit)

    def _run(self, rows: list[list[int]], width: int) -> np.ndarray:
        """Token ids → those of the translations, int32 [rows, longest], padded."""
        full = rows + rows[-1:] * (self._batch - len(rows))  # one shape: compiled once
        input_ids = np.full((self._batch, width), self._pad, np.int32)
        for place, row in zip(input_ids, full, strict=True):
            place[: len(row)] = row
        lengths = np.array([len(row) for row in full])
        mask = (np.arange(width)[None, :] < lengths[:, None]).astype(np.int32)
        with _transformers():
            output = self._generate(self._params, *jax.device_put((input_ids, mask), self._rows))
        return np.asarray(output)[: len(rows)]


def _search(model: Any, settings: GenerationConfig, mesh: Mesh) -> Any:
    """(parameters, ids and mask [rows, length]) → ids of the translations [rows, longest]."""

    def one(params: Any, input_ids: Any, mask: Any) -> Any:
        longest = min(2 * input_ids.shape[0] + 32, model.config.max_position_embeddings)
        found = model.generate(
            input_ids[None], attention_mask=mask[None], params=params,
            generation_config=settings, max_length=longest,
        )  # fmt: skip
        return found.sequences[0]

    rows = PartitionSpec("data")
    return jax.jit(
        jax.shard_map(  # each device searches on its own: they never wait for each other
            jax.vmap(one, in_axes=(None, 0, 0)),
            mesh=mesh, in_specs=(PartitionSpec(), rows, rows), out_specs=rows, check_vma=False,
        )
    )  # fmt: skip


@contextlib.contextmanager
def _transformers() -> Iterator[None]:
    """Where code of transformers runs: it mixes ranks and types."""
    logger = logging.getLogger("transformers.modeling_flax_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that version 5 will lack this: we stay below
    try:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            yield
    finally:
        logger.setLevel(level)


def _find_files(model: str, revision: str) -> tuple[dict[str, Path], str]:
    """Files of a checkpoint by name, and its commit on the hub (empty for a local folder)."""
    files, commit = {}, ""
    for filename in _NEEDED:
        path = weights.find_file(model, filename, revision=commit or revision, field=_FIELD)
        if path is None:
            raise ConfigError(f"{_FIELD} = {model!r} holds no {filename}: not a Marian model")
        files[filename] = path
        if not Path(model).is_dir():
            commit = path.parent.name  # of the first file, for all: a branch may move
    error = ConfigError(f"{_FIELD} = {model!r} holds no weights; looked for {', '.join(_WEIGHTS)}")
    for filename in ("generation_config.json", *_WEIGHTS):
        try:
            path = weights.find_file(model, filename, revision=commit, field=_FIELD)
        except ConfigError as unreachable:  # offline and not in the cache: perhaps there is none
            error = unreachable
            continue
        if path is not None:
            files[filename] = path
            if filename in _WEIGHTS:
                return files, commit
    raise error


def _digest(files: Mapping[str, Path]) -> str:
    """SHA-256 of names and contents."""
    whole = hashlib.sha256()
    for name in sorted(files):
        with files[name].open("rb") as file:
            whole.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _config(files: Mapping[str, Path], model: str) -> MarianConfig:
    raw = json.loads(files["config.json"].read_text(encoding="utf-8"))
    tied = ("share_encoder_decoder_embeddings", "tie_word_embeddings")
    if raw.get("model_type") != "marian" or not all(raw.get(name, True) for name in tied):
        raise ConfigError(
            f"{_FIELD} = {model!r} is no Marian model with one vocabulary for both languages"
        )
    return MarianConfig.from_dict(raw)


def _settings(config: MarianConfig, files: Mapping[str, Path], beams: int) -> GenerationConfig:
    """How to search: as the checkpoint says, but with so many beams and nothing at random."""
    path = files.get("generation_config.json")
    with _transformers():
        if path is None:  # before 2023 it stood in config.json
            settings = GenerationConfig.from_model_config(config)
        else:
            settings = GenerationConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
        settings.update(num_beams=beams, do_sample=False, num_return_sequences=1)
    if any(len(word) != 1 for word in settings.bad_words_ids or ()):
        raise ConfigError(f"{_FIELD}: bad_words_ids of more than one token are not supported")
    return settings


def _forbid(bias: np.ndarray, settings: GenerationConfig) -> np.ndarray:
    """Bias of the output layer, float32 [1, vocabulary]: padding and forbidden tokens never come.

    Padding has no weights of its own: its logit is 0, which beats all others where they are
    negative. transformers' Flax code heeds it with beams only, and no `bad_words_ids` at all.
    """
    bias = bias.copy()
    bias[0, [settings.pad_token_id, *(word[0] for word in settings.bad_words_ids or ())]] = -np.inf
    return bias


def _load(
    files: Mapping[str, Path], shapes: Mapping[str, Any], model: str, store: Path
) -> weights.Arrays:
    """Parameters by their Flax names, float32; those of a `.bin` are kept in `store` as well."""
    path = next(files[name] for name in _WEIGHTS if name in files)
    if path.suffix != ".bin":
        return _read(path, shapes, model)
    converted = store / _digest({path.name: path}) / _WEIGHTS[0]
    if converted.is_file():
        return _read(converted, shapes, model)
    arrays = _read(path, shapes, model)
    converted.parent.mkdir(parents=True, exist_ok=True)
    partial = converted.with_suffix(f".{os.getpid()}")
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, partial)
    partial.replace(converted)
    return arrays


def _read(path: Path, shapes: Mapping[str, Any], model: str) -> weights.Arrays:
    """One file's arrays; PyTorch's names and layouts → Flax's, by transformers' own conversion."""
    arrays = weights.read_arrays(str(path.parent), revision="", field=_FIELD)
    if any(name.endswith(".weight") for name in arrays):
        tied = ("lm_head", "model.decoder.embed_tokens", "model.encoder.embed_tokens")
        for name in tied:  # one table; a file may hold it under any of its names
            if f"{name}.weight" in arrays:
                arrays.setdefault("model.shared.weight", arrays.pop(f"{name}.weight"))
        target = SimpleNamespace(base_model_prefix="", params=unflatten_dict(dict(shapes), sep="."))
        try:
            tree = convert_pytorch_state_dict_to_flax(arrays, target)
        except ValueError as error:  # a shape
            raise ConfigError(f"{_FIELD} = {model!r}: {error}") from error
        flat: dict[str, Any] = flatten_dict(tree, sep=".")
        arrays = {name: np.asarray(value) for name, value in flat.items()}
    return weights.match(arrays, shapes, (), name=model, field=_FIELD)
