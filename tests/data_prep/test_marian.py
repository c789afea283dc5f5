import json
import shutil
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.serialization import msgpack_restore
from flax.traverse_util import unflatten_dict
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file
from transformers import GenerationConfig, MarianConfig, MarianTokenizer

from clip_italian.config import ConfigError
from clip_italian.model import weights
from data_prep.marian import MarianTranslator, Vocabulary
from data_prep.translate import TranslateOptions, open_cache, open_translator, translate_texts
from tests.data_prep import tiny_marian
from tests.data_prep.tiny_marian import FlaxMarianMTModel, sentences, write_checkpoint

BEAMS = 3


def load(folder, store=Path("unused"), *, target="it", beams=BEAMS, batch=16, revision=""):
    return MarianTranslator(
        str(folder), revision=revision, target=target, beams=beams, batch=batch, store=store
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Path(write_checkpoint(tmp_path_factory.mktemp("marian") / "tiny"))


@pytest.fixture(scope="module")
def translator(checkpoint):
    return load(checkpoint)


def tokenizer_of(folder):
    with warnings.catch_warnings():
        # What it would be for, the class never calls.
        warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
        return MarianTokenizer.from_pretrained(folder)


def one_at_a_time(folder, texts, *, beams, longest, forbidden=()):
    """`FlaxMarianMTModel.generate`, one sentence a call, on one device, padded to 64 tokens."""
    config = json.loads((folder / "config.json").read_text())
    made = tiny_marian.weights(config)
    made["final_logits_bias"][0, list(forbidden)] = -np.inf
    settings = GenerationConfig(**tiny_marian.generation(config, num_beams=beams))
    tokenizer = tokenizer_of(folder)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        model = FlaxMarianMTModel(MarianConfig.from_dict(config), _do_init=False)

        @jax.jit
        def generate(params, **tokens):
            return model.generate(
                **tokens, params=params, generation_config=settings, max_length=longest
            ).sequences

        params = unflatten_dict(made, sep=".")
        rows = []
        for text in texts:
            tokens = tokenizer(text, padding="max_length", max_length=64, return_tensors="np")
            rows.append(np.asarray(generate(params, **tokens))[0])
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def of_length(translator, low, high, count, seed=0):
    """Different texts of low to high tokens."""
    encode = translator._vocabulary.encode
    many = sentences(20 * count, seed=seed, words=(1, high // 2))
    return [text for text in many if low <= len(encode(text)) <= high][:count]


def run(translator, texts):
    done = {}
    for batch in translator.translate(texts):
        assert not done.keys() & batch.keys()
        done |= batch
    return [done[text] for text in texts]


def test_eight_devices_in_batches_equal_one_sentence_at_a_time(checkpoint, translator):
    assert len(jax.devices()) == 8
    texts = of_length(translator, 17, 32, 45)  # two batches of 16 and a part of one
    assert len(texts) == 45
    expected = one_at_a_time(checkpoint, texts, beams=BEAMS, longest=96)
    assert len({len(text) for text in expected}) > 8  # they end at many different steps
    assert run(translator, texts) == expected


def test_greedy_through_the_front_door(checkpoint, translator, tmp_path):
    """Padding and forbidden tokens would win at every step, if they were let."""
    folder = tmp_path / "tiny"
    shutil.copytree(checkpoint, folder)
    state = load_file(folder / "model.safetensors")
    pad, forbidden = json.loads((folder / "config.json").read_text())["pad_token_id"], 7
    state["final_logits_bias"][0, [pad, forbidden]] = 1000
    save_file(state, folder / "model.safetensors")
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["bad_words_ids"] = [[pad], [forbidden]]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    options = TranslateOptions(
        translate="en:it", marian_model=str(folder), beams=1, translate_batch=3,
        translation_cache=str(tmp_path / "cache.sqlite"),
    )  # fmt: skip
    greedy = open_translator(options)
    texts = of_length(translator, 1, 16, 11, seed=1)
    made, counts = translate_texts([*texts, texts[0]], greedy, open_cache(options, greedy))
    expected = one_at_a_time(checkpoint, texts, beams=1, longest=64, forbidden=(pad, forbidden))
    assert made == [*expected, expected[0]] and len(set(expected)) == 11
    assert (counts.translated, counts.repeated) == (11, 1)
    again = translate_texts(texts, greedy, open_cache(options, greedy))
    assert again[0] == expected and again[1].cached == 11


def test_texts_to_ids_and_back_as_the_tokenizer_does(checkpoint, translator):
    theirs, ours = tokenizer_of(checkpoint), translator._vocabulary
    texts = [
        *sentences(40),
        "",
        " a  cat ",
        "日本 cat",
        "A\u00a0cat's, \u201cred\u201d\n(dog)!",
        "a\0b",
    ]
    assert [ours.encode(text) for text in texts] == theirs(texts)["input_ids"]
    random = np.random.default_rng(0).integers(0, len(theirs), (40, 12)).tolist()
    assert list(map(ours.decode, random)) == theirs.batch_decode(random, skip_special_tokens=True)
    # What only looks like a special token is text.
    assert 0 in theirs("a cat</s> sleeps")["input_ids"][:-1]
    for name in ("</s>", "<pad>"):
        assert translator._pad not in ours.encode(f"a{name} cat")
        assert ours.encode(f"a{name} cat").count(0) == 1


def test_several_target_languages(tmp_path):
    folder = Path(write_checkpoint(tmp_path / "romance", codes=(">>ita<<", ">>fra<<")))
    files = {name: folder / name for name in ("vocab.json", "source.spm", "target.spm")}
    ids = json.loads(files["vocab.json"].read_text())
    encode = Vocabulary(files, "ita").encode
    assert encode("a cat") == tokenizer_of(folder)(">>ita<< a cat")["input_ids"]
    assert encode("a cat")[0] == ids[">>ita<<"]
    assert ids[">>fra<<"] not in encode(">>fra<< a cat")  # a caption does not choose
    with pytest.raises(ConfigError, match="translate: 'it' is no target .* it has fra, ita"):
        load(folder)


def test_batches_and_texts_that_are_too_long(translator, monkeypatch, caplog):
    calls = []

    def answer(rows, width):
        calls.append((len(rows), width, max(map(len, rows)), min(map(len, rows))))
        assert all(row[-1] == 0 for row in rows)
        return np.zeros((len(rows), 1), np.int32)

    monkeypatch.setattr(translator, "_run", answer)
    texts = ["a " * n for n in (140, 128, 126, 65, 33, *[16] * 5, *range(1, 16))]
    texts = [f"{text}{'.' * number}" for number, text in enumerate(texts)]
    lengths = [len(translator._vocabulary.encode(text)) for text in texts]
    assert run(translator, texts) == [""] * len(texts)
    assert sum(size for size, *_ in calls) == len(texts)
    for size, width, longest, shortest in calls:
        assert size <= 16 and longest <= width
        assert shortest > width - (16 if width <= 64 else 64)
    assert [width for _, width, *_ in calls] == sorted((w for _, w, *_ in calls), reverse=True)
    assert calls[0][1] == 128  # first: what does not fit into memory shows at once
    long = sum(length > 128 for length in lengths)
    assert long and f"{long} texts are cut to the 128 tokens the model can read" in caplog.text


@pytest.mark.parametrize(
    ("length", "width"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128), (449, 500), (500, 500)]
)
def test_few_widths(translator, monkeypatch, length, width):
    monkeypatch.setattr(translator, "_limit", 500)
    assert translator._width(length) == width


def parameters(translator):
    return jax.tree.map(np.asarray, translator._params)


def test_layouts_of_weights(checkpoint, translator, tmp_path):
    expected = parameters(translator)
    write_checkpoint(tmp_path / "flax", "msgpack")
    jax.tree.map(np.testing.assert_array_equal, parameters(load(tmp_path / "flax")), expected)
    stored = msgpack_restore((tmp_path / "flax" / "flax_model.msgpack").read_bytes())
    np.testing.assert_array_equal(
        expected["model"]["shared"]["embedding"], stored["model"]["shared"]["embedding"]
    )
    # One table under another of its names, in half precision.
    shutil.copytree(checkpoint, tmp_path / "half")
    state = load_file(checkpoint / "model.safetensors")
    state["lm_head.weight"] = state.pop("model.shared.weight")
    half = {name: value.astype(np.float16) for name, value in state.items()}
    save_file(half, tmp_path / "half" / "model.safetensors")
    rounded = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), expected)
    jax.tree.map(np.testing.assert_array_equal, parameters(load(tmp_path / "half")), rounded)


def change(folder, filename, **fields):
    path = folder / filename
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_identity_is_by_contents(checkpoint, translator, tmp_path):
    copy = tmp_path / "elsewhere" / "tiny"
    shutil.copytree(checkpoint, copy)
    other = load(copy)
    assert (other.identity, other.name) == (translator.identity, translator.name)
    assert translator.name.startswith("marian:tiny@") and "/" not in translator.name
    assert load(copy, batch=1).identity == translator.identity
    assert load(copy, beams=2).identity != translator.identity
    change(copy, "generation_config.json", length_penalty=0.5)
    assert load(copy).identity != translator.identity
    write_checkpoint(tmp_path / "tiny", seed=1)
    assert load(tmp_path / "tiny").identity != translator.identity


def test_a_model_of_the_hub_is_pinned(checkpoint, translator, tmp_path, monkeypatch):
    commit, asked = "c0ffee" * 6 + "c0ff", []
    snapshot = tmp_path / "snapshots" / commit
    shutil.copytree(checkpoint, snapshot)

    def download(name, filename, revision):
        asked.append((filename, revision))
        if (snapshot / filename).is_file():
            return str(snapshot / filename)
        raise EntryNotFoundError("no such file")

    monkeypatch.setattr(weights, "hf_hub_download", download)
    found = load("Some/opus-mt-en-it", revision="main")
    assert found.name == f"marian:Some/opus-mt-en-it@{commit}"
    assert found.identity == translator.identity
    assert asked[0] == ("config.json", "main") and {rev for _, rev in asked[1:]} == {commit}


def test_offline_the_hub_s_files_are_enough(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint, tmp_path / "c1")
    (tmp_path / "c1" / "generation_config.json").unlink()

    def download(name, filename, revision):
        if name == "Some/model" and (tmp_path / "c1" / filename).is_file():
            return str(tmp_path / "c1" / filename)
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(weights, "hf_hub_download", download)
    assert load("Some/model").name == "marian:Some/model@c1"
    with pytest.raises(ConfigError, match="marian_model = 'Other/model' .* cannot be fetched"):
        load("Other/model")
    (tmp_path / "c1" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="pytorch_model.bin cannot be fetched .* offline"):
        load("Some/model")


def test_search_settings_of_older_models_stand_in_their_configuration(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "old")
    pad = json.loads((checkpoint / "config.json").read_text())["pad_token_id"]
    (tmp_path / "old" / "generation_config.json").unlink()
    change(tmp_path / "old", "config.json", bad_words_ids=[[pad], [9]], num_beams=6)
    bias = parameters(load(tmp_path / "old"))["final_logits_bias"][0]
    assert set(np.flatnonzero(np.isinf(bias))) == {9, pad}


@pytest.mark.parametrize(
    ("filename", "fields", "message"),
    [
        ("config.json", {"model_type": "bart"}, "is no Marian model"),
        ("config.json", {"tie_word_embeddings": False}, "with one vocabulary for both"),
        ("config.json", {"share_encoder_decoder_embeddings": False}, "one vocabulary for both"),
        ("config.json", {"d_model": 64}, r"shape \(64,\), but is \(32,\)"),
        ("config.json", {"decoder_layers": 2}, r"lacks the weights model.decoder.layers.1"),
        ("generation_config.json", {"bad_words_ids": [[1, 2]]}, "more than one token"),
    ],
)
def test_models_that_cannot_be_used(checkpoint, tmp_path, filename, fields, message):
    shutil.copytree(checkpoint, tmp_path / "tiny")
    change(tmp_path / "tiny", filename, **fields)
    with pytest.raises(ConfigError, match=f"marian_model.*{message}"):
        load(tmp_path / "tiny")


def test_missing_files(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint, tmp_path / "tiny")
    (tmp_path / "tiny" / "model.safetensors").rename(tmp_path / "tiny" / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"needs PyTorch: .*pip install 'clip-italian\[torch\]'"):
        load(tmp_path / "tiny")
    (tmp_path / "tiny" / "pytorch_model.bin").unlink()
    with pytest.raises(ConfigError, match="holds no weights; looked for model.safetensors, flax"):
        load(tmp_path / "tiny")
    (tmp_path / "tiny" / "source.spm").unlink()
    with pytest.raises(ConfigError, match="holds no source.spm: not a Marian model"):
        load(tmp_path / "tiny")
    with pytest.raises(ConfigError, match="marian_model = 'no/such-model' is no folder here"):
        load("no/such-model")


@pytest.mark.torch
def test_bin_is_read_with_torch_once(translator, tmp_path, monkeypatch):
    folder, store = write_checkpoint(tmp_path / "tiny", "bin"), tmp_path / "store"
    expected = parameters(translator)
    jax.tree.map(np.testing.assert_array_equal, parameters(load(folder, store)), expected)
    [converted] = store.rglob("*.*")
    assert converted.name == "model.safetensors"

    def refuse(path, field):
        raise ConfigError("needs PyTorch")

    monkeypatch.setitem(weights._READERS, "pytorch_model.bin", refuse)
    jax.tree.map(np.testing.assert_array_equal, parameters(load(folder, store)), expected)
    with pytest.raises(ConfigError, match="needs PyTorch"):
        load(folder, tmp_path / "other")


@pytest.mark.torch
@pytest.mark.parametrize("beams", [1, 4])
def test_equals_pytorch(translator, tmp_path, beams):
    """Greedy: the same tokens, always. With beams, transformers' Flax search takes the end of a
    sentence from among the best 2 x beams continuations, its PyTorch search from among the best
    `beams` only: where they differ, ours is the translation that the model finds more likely."""
    import torch
    from transformers import MarianMTModel

    folder = write_checkpoint(tmp_path / "tiny", "bin")
    theirs, pad = MarianMTModel.from_pretrained(folder, dtype=torch.float32).eval(), translator._pad
    texts = of_length(translator, 1, 16, 160)
    tokens = tokenizer_of(folder)(texts, padding=True, return_tensors="pt")

    def score(row, ids):
        """Mean log-likelihood of a token."""
        source = {name: value[row : row + 1] for name, value in tokens.items()}
        target = torch.tensor(ids[None])
        logits = theirs(**source, decoder_input_ids=target[:, :-1]).logits[0]
        logits[:, pad] = -torch.inf
        chosen = logits.log_softmax(-1).gather(1, target[0, 1:, None])[:, 0]
        return chosen[target[0, 1:] != pad].mean().item()

    ours = load(folder, tmp_path, beams=beams, batch=len(texts))
    found = ours._run(tokenizer_of(folder)(texts)["input_ids"], 16)
    with torch.no_grad():
        expected = np.full_like(found, pad)
        answer = theirs.generate(**tokens, num_beams=beams, max_length=found.shape[1]).numpy()
        expected[:, : answer.shape[1]] = answer
        differ = np.flatnonzero((found != expected).any(1))
        gains = [score(row, found[row]) - score(row, expected[row]) for row in differ]
    print(f"{beams} beams: {len(texts) - len(differ)} of {len(texts)} the same, gains: {gains}")
    assert len(texts) == 160 and len(differ) <= (0 if beams == 1 else 16)
    assert all(gain > 0 for gain in gains)
