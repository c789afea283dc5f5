"""A Marian checkpoint small enough for a test, with the files of a real one (opus-mt) and no torch.

Its vocabulary is learned from the sentences below; its weights are random, with a bias that makes
sentences end after few tokens, at different lengths.
"""

import io
import json

import jax
import numpy as np
import sentencepiece
from flax.serialization import msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file
from transformers import MarianConfig
from transformers.models.marian.modeling_flax_marian import (
    FlaxMarianMTModel,
    create_sinusoidal_positions,
)

from tests.model.checkpoints import pytorch_names

ENGLISH = (
    "a cat sleeps on the red sofa",
    "two dogs run along the beach at sunset",
    "a man rides a bicycle in the city",
    "the woman holds a green umbrella",
    "three children play football in the park",
    "a train crosses the old bridge",
    "a plate with pizza and tomatoes on a table",
    "an old house near the lake, with a boat",
    "people walk in the snow.",
    "the bird sits on a branch of the tree",
)
ITALIAN = (
    "un gatto dorme sul divano rosso",
    "due cani corrono lungo la spiaggia al tramonto",
    "un uomo va in bicicletta in città",
    "la donna tiene un ombrello verde",
    "tre bambini giocano a calcio nel parco",
    "un treno attraversa il vecchio ponte",
    "un piatto con pizza e pomodori su un tavolo",
    "una vecchia casa vicino al lago, con una barca",
    "persone camminano nella neve.",
    "l'uccello sta su un ramo dell'albero",
)


def sentences(count, seed=0, words=(1, 14)):
    """English-like texts of different lengths, all different."""
    rng = np.random.default_rng(seed)
    vocabulary = sorted({word for sentence in ENGLISH for word in sentence.split()})
    made = {}
    while len(made) < count:
        made[" ".join(rng.choice(vocabulary, rng.integers(*words)))] = None
    return list(made)


def _pieces(corpus, size):
    """Text → (serialized SentencePiece model, its pieces)."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, vocab_size=size,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return model.getvalue(), [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def vocabulary(codes=()):
    """(source.spm, target.spm, vocab.json) as in opus-mt: both sides share one list of ids."""
    source, english = _pieces(ENGLISH, 90)
    target, italian = _pieces(ITALIAN, 90)
    names = dict.fromkeys(["</s>", "<unk>", *codes, *english, *italian])
    names = [name for name in names if name != "<s>"] + ["<pad>"]
    return source, target, {name: index for index, name in enumerate(names)}


def configuration(vocab, **fields):
    pad = vocab["<pad>"]
    sizes = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {"layers": 1, "attention_heads": 2, "ffn_dim": 32}.items()
    }
    return {
        "model_type": "marian", "architectures": ["MarianMTModel"], "d_model": 32, **sizes,
        "activation_function": "swish", "max_position_embeddings": 128, "scale_embedding": False,
        "vocab_size": len(vocab), "decoder_vocab_size": len(vocab), "pad_token_id": pad,
        "decoder_start_token_id": pad, "eos_token_id": 0, "bos_token_id": 0,
        "forced_eos_token_id": 0, "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True, "static_position_embeddings": True, "dtype": "float16",
        **fields,
    }  # fmt: skip


def generation(config, **fields):
    pad = config["pad_token_id"]
    return {
        "bad_words_ids": [[pad]], "bos_token_id": 0, "decoder_start_token_id": pad,
        "eos_token_id": 0, "forced_eos_token_id": 0, "max_length": 128, "num_beams": 6,
        "pad_token_id": pad, "renormalize_logits": True, **fields,
    }  # fmt: skip


def weights(config, seed=0, noise=0.1):
    """Parameters by their Flax names: a model that roughly repeats its source.

    Built by hand, so that sentences differ and end as those of a trained model do: the decoder's
    attention to the source finds the place that has its own position, takes the token's code from
    there, and the output layer looks up whose code it is. Noise on all weights makes every one
    of them count, and some words come out wrong.
    """
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        model = FlaxMarianMTModel(MarianConfig.from_dict(config), _do_init=False)
    rng = np.random.default_rng(seed)
    width, head = config["d_model"], config["d_model"] // config["decoder_attention_heads"]
    shapes = flatten_dict(model.params_shape_tree, sep=".")
    made = {name: rng.normal(0, noise, shapes[name].shape) for name in sorted(shapes)}
    for name in made:
        if name.endswith("scale"):
            made[name] += 1
    # Sines fill the first half of the width, cosines the second, ever slower: the slow ones are
    # as good as constant, and their places hold the tokens' codes.
    quarter = width // 4
    position = np.r_[0:quarter, 2 * quarter : 3 * quarter].reshape(2, -1).T  # pairs (sin, cos)
    token = np.r_[quarter : 2 * quarter, 3 * quarter : width]
    even = np.concatenate([position[0::2].ravel(), position[1::2].ravel()])
    columns = np.concatenate([np.arange(h, h + head // 2) for h in range(0, width, head)])
    attention = "model.decoder.layers.0.encoder_attn"
    for name, sources in {"q_proj": even, "k_proj": even, "v_proj": token}.items():
        made[f"{attention}.{name}.kernel"][sources, columns] += 14 if name != "v_proj" else 1
    made[f"{attention}.out_proj.kernel"][columns, token] += 8
    codes = made["model.shared.embedding"]
    random = rng.normal(size=(len(codes), len(token)))
    codes[:, token] += 4 * random / np.linalg.norm(random, axis=1, keepdims=True)
    codes[config["pad_token_id"]] = 0  # as Marian leaves it
    return {name: value.astype(np.float32) for name, value in made.items()}


def write_checkpoint(folder, layout="safetensors", *, codes=(), seed=0, fields=None, settings=None):
    """Writes a whole checkpoint; returns its folder as a string.

    Args:
      folder: made here.
      layout: "safetensors" or "bin" (both as PyTorch names them; the latter needs torch) or
        "msgpack" (as Flax does).
      codes: target language codes, as in models with several target languages.
      seed: of the weights.
      fields: more fields of config.json.
      settings: more fields of generation_config.json.
    """
    folder.mkdir(parents=True)
    source, target, vocab = vocabulary(codes)
    config = configuration(vocab, **(fields or {}))
    for name, contents in {
        "config.json": config,
        "generation_config.json": generation(config, **(settings or {})),
        "vocab.json": vocab,
        "tokenizer_config.json": {"source_lang": "en", "target_lang": "it"},
    }.items():
        (folder / name).write_text(json.dumps(contents))
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)
    made = weights(config, seed)
    tree = unflatten_dict(made, sep=".")
    if layout == "msgpack":
        (folder / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
    elif layout == "safetensors":
        save_file(pytorch_names(tree), folder / "model.safetensors", metadata={"format": "pt"})
    else:
        _write_bin(folder / "pytorch_model.bin", pytorch_names(tree))
    return str(folder)


def _write_bin(path, state):
    """As opus-mt has it: tied tables under each of their names, position tables too."""
    import torch

    shared = state["model.shared.weight"]
    tied = ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")
    full = {**state, **{f"{name}.weight": shared for name in tied}}
    for side in ("encoder", "decoder"):
        table = create_sinusoidal_positions(128, shared.shape[1])
        full[f"model.{side}.embed_positions.weight"] = np.array(table)
    torch.save({name: torch.tensor(value) for name, value in full.items()}, path)
