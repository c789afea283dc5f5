"""Captions → token ids, with the Hugging Face tokenizer of the text tower. No TensorFlow."""

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from clip_italian.batch import TokenGroup
from clip_italian.config import ConfigError

Tokenizer = PreTrainedTokenizerFast


def load_tokenizer(name_or_folder: str, *, revision: str = "") -> Tokenizer:
    """Loads a fast tokenizer from the hub or a local folder.

    Args:
      name_or_folder: hub id, hub id@revision, or a folder with `tokenizer_config.json` and
        `tokenizer.json` or `vocab.txt`.
      revision: hub branch, tag or commit; empty takes the default branch.

    Raises:
      ConfigError: naming the field `tokenizer`, when there is none, or it is slow or cannot pad.
    """
    if not name_or_folder:
        raise ConfigError("tokenizer is empty; name a hub id or a local folder")
    place = name_or_folder
    if not Path(place).is_dir():
        place, _, named = place.partition("@")
        revision = named or revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            place, revision=revision or None, use_fast=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"tokenizer = {name_or_folder!r} cannot be loaded; give a hub id that can be reached "
            f"or a folder with tokenizer_config.json and tokenizer.json ({error})"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(
            f"tokenizer = {name_or_folder!r} is {type(tokenizer).__name__}, which is not a fast "
            "tokenizer; save one with tokenizer.json"
        )
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"tokenizer = {name_or_folder!r} has no padding token; give it one")
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuses a tokenizer that was not made for a text tower of `vocab_size` embeddings.

    Too large never works: ids beyond the table would silently read its last row. Too small is
    another vocabulary, unless the tower only rounds up: to a multiple of 128, or by less than a
    tenth (dbmdz/bert-base-italian-xxl-uncased has 31,102 tokens and 32,102 embeddings).

    Raises:
      ConfigError: naming the field `tokenizer`.
    """
    size = max(tokenizer.get_vocab().values()) + 1
    rounded = -(-size // 128) * 128
    if size > vocab_size or (vocab_size > rounded and size < 0.9 * vocab_size):
        raise ConfigError(
            f"tokenizer = {tokenizer.name_or_path!r} has ids up to {size - 1}, but the text tower "
            f"has {vocab_size} embeddings; give the tokenizer the tower was made with"
        )


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> TokenGroup:
    """Texts → one group, int32 [texts, max_length]; longer texts are cut, special tokens kept."""
    tokens = tokenizer(
        list(texts),
        padding="max_length",
        truncation=True,
        max_length=max_length,
        return_attention_mask=True,
        return_tensors="np",
    )
    return TokenGroup(
        np.asarray(tokens["input_ids"], np.int32), np.asarray(tokens["attention_mask"], np.int32)
    )


def ragged_encoder(
    tokenizer: Tokenizer, max_length: int
) -> Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]:
    """A function: texts → token ids one after another, int32, and each text's number, int64.

    The ids are those of `encode` without its padding, in a fraction of the time.
    """
    rules = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    rules.no_padding()
    rules.enable_truncation(max_length, direction=tokenizer.truncation_side)

    def encode_ragged(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = [one.ids for one in rules.encode_batch_fast(list(texts))]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return np.fromiter(itertools.chain.from_iterable(ids), np.int32, lengths.sum()), lengths

    return encode_ragged


def pad_ragged(
    tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray, width: int, tokenizer: Tokenizer
) -> TokenGroup:
    """Rows of ragged tokens → one group, int32 [n, width], padded as `encode` pads.

    Args:
      tokens: integers, ids of all texts.
      starts: int64 [n], first token of each row.
      lengths: int64 [n], its number of tokens, at most `width`.
      width: length of the group.
      tokenizer: says which id pads, and on which side.
    """
    column = np.arange(width) - (
        (width - lengths[:, None]) if tokenizer.padding_side == "left" else 0
    )
    real = (column >= 0) & (column < lengths[:, None])
    pad: Any = tokenizer.pad_token_id
    ids = tokens[np.where(real, starts[:, None] + column, 0)].astype(np.int32)
    return TokenGroup(np.where(real, ids, np.int32(pad)), real.astype(np.int32))


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """sha256 (hex) over all that decides the ids that a text gets, but for `max_length`."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    del rules["truncation"], rules["padding"]  # which only tell how it was last called
    text = json.dumps([tokenizer.truncation_side, rules])
    return hashlib.sha256(text.encode()).hexdigest()
