"""ONNX graphs against PyTorch, for all towers: run where the extras are installed, `-m torch`."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from clip_italian.config import ConfigError
from clip_italian.hub import onnx_graphs
from clip_italian.hub.onnx_graphs import check_packages, open_onnx, read_scale, write_onnx
from tests.tiny import (
    TINY_BEIT,
    TINY_BERT,
    TINY_CLIP,
    TINY_DINOV2,
    TINY_DISTILBERT,
    TINY_ROBERTA,
    TINY_VIT,
    TINY_XLM_ROBERTA,
)

pytestmark = pytest.mark.torch

LONGEST = 24  # tokens that the tiny text towers take
PAIRS = {
    "vit-bert": (TINY_VIT, {**TINY_BERT, "num_hidden_layers": 2}),
    "clip-bert": (TINY_CLIP, TINY_BERT),
    "vit-roberta": (TINY_VIT, TINY_ROBERTA),
    "vit-xlm-roberta": (TINY_VIT, TINY_XLM_ROBERTA),
    "dinov2-bert": ({**TINY_DINOV2, "num_hidden_layers": 2, "patch_size": 8}, TINY_BERT),
    "beit-bert": ({**TINY_BEIT, "num_hidden_layers": 2, "patch_size": 8}, TINY_BERT),
}


def save_dual_encoder(folder, vision, text, **fields):
    """Config and weights in a folder, by PyTorch's own hand; returns the model."""
    import torch
    from transformers import AutoConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    configs = [AutoConfig.for_model(**config) for config in (vision, text)]
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        *configs, projection_dim=16, **fields
    )
    model = VisionTextDualEncoderModel(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # so large that rows are told apart, biases included
            parameter.normal_(0.05, 0.25)
        model.logit_scale.fill_(np.log(20))
    model.save_pretrained(folder)
    return model.eval()


# Each takes seconds to export; the quick two have every kind of mask and position between them.
QUICK = ("clip-bert", "vit-xlm-roberta")
NAMES = [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in PAIRS]


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory):
    """Model in PyTorch, folder with graphs, and the graphs as functions."""
    folder = str(tmp_path_factory.mktemp(request.param) / "export")
    model = save_dual_encoder(folder, *PAIRS[request.param])
    write_onnx(folder)
    return model, folder, *open_onnx(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with graphs of a sigmoid model, and their files."""
    folder = str(tmp_path_factory.mktemp("small") / "export")
    save_dual_encoder(folder, TINY_VIT, TINY_BERT, logit_bias=-9.5)
    return folder, write_onnx(folder)


def pixels(rows, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, 3, 32, 32)).astype(np.float32)


def tokens(model, rows, length):
    """Captions of 1 to `length` tokens, padded at the end."""
    rng = np.random.default_rng([rows, length])
    lengths = rng.integers(1, length + 1, size=(rows, 1))
    lengths[0] = length
    mask = (np.arange(length) < lengths).astype(np.int64)
    ids = rng.integers(3, 99, size=(rows, length))
    return np.where(mask, ids, model.config.text_config.pad_token_id), mask


def torch_texts(model, ids, mask):
    import torch

    with torch.no_grad():
        features = model.get_text_features(torch.tensor(ids), torch.tensor(mask)).numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def torch_images(model, pixel_values):
    import torch

    with torch.no_grad():
        features = model.get_image_features(torch.tensor(pixel_values)).numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def assert_equal(own, theirs):
    assert own.dtype == np.float32 and own.shape == theirs.shape
    if len(own) > 1:
        differences = np.abs(theirs[:, None] - theirs[None]).max(axis=2)
        assert np.median(differences[~np.eye(len(own), dtype=bool)]) > 0.003, "all rows alike"
    print("largest difference:", np.abs(own - theirs).max())
    np.testing.assert_allclose(own, theirs, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(own, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 5, 70])
def test_images_equal_pytorch(pair, rows):
    model, _, embed_images, _ = pair
    pixel_values = pixels(rows)
    assert_equal(embed_images(pixel_values), torch_images(model, pixel_values))


@pytest.mark.parametrize("length", [1, 2, 10, LONGEST])
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_texts_equal_pytorch(pair, rows, length):
    model, _, _, embed_texts = pair
    ids, mask = tokens(model, rows, length)
    assert_equal(embed_texts(ids, mask), torch_texts(model, ids, mask))


def test_padding_changes_nothing(pair):
    model, _, _, embed_texts = pair
    ids = np.array([[2, 17, 3], [2, 40, 3]])
    padded = np.full((2, 10), model.config.text_config.pad_token_id)
    padded[:, :3] = ids
    mask = (np.arange(10) < 3).astype(np.int32)[None].repeat(2, axis=0)
    plain = embed_texts(ids, np.ones_like(ids))
    np.testing.assert_allclose(embed_texts(padded, mask), plain, atol=1e-6)
    unmasked = embed_texts(padded, np.ones_like(padded))
    assert np.abs(unmasked - plain).max() > 0.003, "the mask counts"


def test_too_long_a_text_is_refused_and_not_cut(pair):
    model, _, _, embed_texts = pair
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        embed_texts(*tokens(model, 2, LONGEST + 1))


def test_names_kinds_and_sizes_of_inputs_and_outputs(pair):
    import onnx
    import onnxruntime

    _, folder, _, _ = pair
    found = {}
    for name in ("vision", "text"):
        path = f"{folder}/onnx/{name}_model.onnx"
        graph = onnx.load(path)
        onnx.checker.check_model(graph, full_check=True)
        assert [(one.domain, one.version) for one in graph.opset_import] == [("", 18)]
        session = onnxruntime.InferenceSession(path)
        for value in (*session.get_inputs(), *session.get_outputs()):
            found[value.name] = (value.type, *value.shape)
    assert found == {
        "pixel_values": ("tensor(float)", "batch", 3, 32, 32),
        "image_embeds": ("tensor(float)", "batch", 16),
        "input_ids": ("tensor(int64)", "batch", "length"),
        "attention_mask": ("tensor(int64)", "batch", "length"),
        "text_embeds": ("tensor(float)", "batch", 16),
    }


def test_scale_and_bias_are_plain_factors(pair, small):
    import onnx

    assert read_scale(pair[1]) == (20.0, 0.0)
    folder, files = small
    assert read_scale(folder) == (20.0, -9.5)
    for path in files:
        facts = {one.key: one.value for one in onnx.load(path).metadata_props}
        assert facts == {"logit_scale": "20.0", "logit_bias": "-9.5"}


def test_writing_again_is_quiet_and_gives_the_same_bytes(small, capfd, caplog):
    import transformers

    folder, files = small
    names = ["vision_model.onnx", "text_model.onnx"]
    assert [path.relative_to(folder).parts for path in files] == [("onnx", name) for name in names]
    assert sorted(Path(folder, "onnx").iterdir()) == sorted(files)
    first = [path.read_bytes() for path in files]
    capfd.readouterr()
    assert write_onnx(folder) == files
    open_onnx(folder)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []
    assert [path.read_bytes() for path in files] == first
    # Nor do they tell where on this machine they were made.
    places = {Path(module.__file__).parents[1] for module in (transformers, onnx_graphs)}
    for place in (folder, *places):
        assert not any(str(place).encode() in content for content in first)


def test_large_weights_lie_beside_their_graph(small, tmp_path, monkeypatch):
    folder, _ = small
    for name in ("config.json", "model.safetensors"):
        shutil.copy(f"{folder}/{name}", tmp_path)
    monkeypatch.setattr(onnx_graphs, "_EMBEDDED", 10_000)
    files = write_onnx(str(tmp_path))
    names = ["vision_model.onnx", "vision_model.onnx_data"]
    names += ["text_model.onnx", "text_model.onnx_data"]
    assert [path.name for path in files] == names
    arrays = [(pixels(3),), (np.array([[2, 17, 3]]), np.ones((1, 3)))]
    for one, other, given in zip(open_onnx(str(tmp_path)), open_onnx(folder), arrays, strict=True):
        np.testing.assert_array_equal(one(*given), other(*given))
    for path in files[1::2]:
        path.unlink()
    with pytest.raises(Exception, match="onnx_data"):
        open_onnx(str(tmp_path))


def test_a_tower_without_pooled_output_is_refused(tmp_path):
    save_dual_encoder(str(tmp_path), TINY_VIT, TINY_DISTILBERT)
    with pytest.raises(ConfigError, match=r"'distilbert' cannot be exported .*pooler_output"):
        write_onnx(str(tmp_path))


def test_missing_weights_are_refused_not_drawn(tmp_path):
    from safetensors.torch import load_file, save_file

    save_dual_encoder(str(tmp_path), TINY_VIT, TINY_BERT)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["text_model.pooler.dense.bias"]
    weights["more"] = weights["logit_scale"].clone()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"missing_keys: text_model.pooler.dense.bias"):
        write_onnx(str(tmp_path))
    weights["text_model.pooler.dense.bias"] = weights["text_model.embeddings.LayerNorm.bias"] + 0
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"unexpected_keys: more"):
        write_onnx(str(tmp_path))


def test_missing_graphs_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no onnx/vision_model.onnx; export it again"):
        open_onnx(str(tmp_path))


def test_missing_packages_are_named_before_any_work(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    absent = ("onnxscript", "onnxruntime")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else find_spec(name)
    )
    install = r"onnxscript, onnxruntime; .*pip install 'clip-italian\[torch,onnx\]'"
    for act in (check_packages, lambda: write_onnx(str(tmp_path))):
        with pytest.raises(ConfigError, match=install):
            act()
    with pytest.raises(ConfigError, match=r"packages onnxruntime;"):
        open_onnx(str(tmp_path))
