"""What is written for open_clip, and what is refused; against it in test_open_clip_torch.py."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from clip_italian.config import ConfigError
from clip_italian.hub.open_clip_export import open_clip_config, write_open_clip
from clip_italian.hub.torch_layout import to_pytorch
from tests.data.conftest import make_tokenizer
from tests.hub import hub_cache
from tests.model.checkpoints import pytorch_names, random_like, tiny_model, write_folder
from tests.tiny import TINY_BERT, TINY_CLIP, TINY_ROBERTA, TINY_VIT, TINY_XLM_ROBERTA

NAMES = {"text_tower": "texts/bert", "tokenizer_name": "texts/words", "max_length": 8}
CLIP = {**TINY_CLIP, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A function that puts a text tower's configuration on the hub."""
    cache = tmp_path / "cache"
    hub_cache.use(monkeypatch, cache)

    def put(config, name="texts/bert"):
        folder = tmp_path / name.replace("/", "-")
        write_folder(folder, config, processor=None)
        hub_cache.add(cache, name, folder)

    return put


def clip_model(loss="infonce", **fields):
    return tiny_model(**{"vision_config": CLIP, "loss": loss, **fields})


def test_the_configuration(hub):
    hub(TINY_BERT)
    assert open_clip_config(clip_model(), make_tokenizer(), **NAMES) == {
        "model_cfg": {
            "embed_dim": 16,
            "quick_gelu": True,
            "custom_text": True,
            "vision_cfg": {
                "image_size": 32,
                "patch_size": 16,
                "layers": 1,
                "width": 32,
                "head_width": 16,
                "mlp_ratio": 2.0,
            },
            "text_cfg": {
                "hf_model_name": "texts/bert",
                "hf_tokenizer_name": "texts/words",
                "hf_pooler_type": "cls_pooler",
                "hf_proj_type": "linear",
                "context_length": 8,
            },
        },
        "preprocess_cfg": {
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def test_gelu_and_the_bias_of_the_sigmoid_loss(hub):
    hub(TINY_BERT)
    model = clip_model("sigmoid", vision_config={**CLIP, "hidden_act": "gelu"}, logit_bias=-7.0)
    config = open_clip_config(model, make_tokenizer(), **NAMES)["model_cfg"]
    assert (config["quick_gelu"], config["init_logit_bias"]) == (False, -7.0)


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_the_weights(tmp_path, loss):
    params = random_like(clip_model(loss).shapes())
    write_open_clip(tmp_path, {"model_cfg": {"a": "é"}}, to_pytorch(params))
    text = (tmp_path / "open_clip_config.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"model_cfg": {"a": "é"}}
    arrays = load_file(tmp_path / "open_clip_model.safetensors")
    texts = pytorch_names(params["text_model"], "text.transformer.")
    others = {
        "text.proj.weight": params["text_projection"]["kernel"].T,
        "visual.proj": params["visual_projection"]["kernel"],
        "logit_scale": params["logit_scale"],
        **({"logit_bias": params["logit_bias"]} if loss == "sigmoid" else {}),
    }
    for key, value in {**texts, **others}.items():
        np.testing.assert_array_equal(arrays[key], value, err_msg=key)
        assert arrays[key].dtype == np.float32
    assert arrays["logit_scale"].shape == ()
    vision = {key for key in arrays if key.startswith("visual.") and key != "visual.proj"}
    assert len(vision) == 7 + 12, "the names within are tested in test_open_clip_layout"
    assert set(arrays) == vision | set(texts) | set(others)


@pytest.mark.parametrize(
    ("fields", "on_hub", "message"),
    [
        ({"vision_config": TINY_VIT}, TINY_BERT, "vision tower 'vit'"),
        ({"vision_config": {**CLIP, "hidden_act": "relu"}}, TINY_BERT, "hidden_act 'relu'"),
        ({"text_config": {**TINY_BERT, "model_type": "electra"}}, TINY_BERT, "text tower 'electra"),
        ({"text_config": {**TINY_BERT, "pad_token_id": 1}}, TINY_BERT, "padding token 0 .*_id, 1"),
        ({}, TINY_ROBERTA, "'texts/bert' .* finds a 'roberta' where .* has a 'bert'"),
        ({}, {**TINY_BERT, "vocab_size": 98}, "'texts/bert': there vocab_size is 98, not 99"),
        ({}, {**TINY_BERT, "hidden_act": "relu"}, "'texts/bert': there hidden_act is 'relu'"),
        ({}, {**TINY_BERT, "layer_norm_eps": 1e-5}, "'texts/bert': there layer_norm_eps is 1e-05"),
    ],
)
def test_what_open_clip_cannot_carry(hub, fields, on_hub, message):
    hub(on_hub)
    with pytest.raises(ConfigError, match=f"^--open_clip: .*{message}"):
        open_clip_config(clip_model(**fields), make_tokenizer(), **NAMES)


@pytest.mark.parametrize("config", [TINY_ROBERTA, TINY_XLM_ROBERTA])
def test_roberta_pads_with_its_own_token(hub, config):
    hub({**config, "vocab_size": 9, "pad_token_id": 1})
    model = clip_model(text_config={**config, "vocab_size": 9, "pad_token_id": 1})
    words = make_tokenizer(pad_token="[UNK]")
    assert words.pad_token_id == 1
    assert open_clip_config(model, words, **NAMES)["model_cfg"]["embed_dim"] == 16
    with pytest.raises(ConfigError, match="padding token 0"):
        open_clip_config(model, make_tokenizer(), **NAMES)


@pytest.mark.parametrize("role", ["text_tower", "tokenizer_name"])
def test_others_must_find_it_on_the_hub(hub, role, tmp_path, monkeypatch):
    hub(TINY_BERT)
    monkeypatch.chdir(tmp_path)
    Path("some", "folder").mkdir(parents=True)
    for name in (str(tmp_path), "some/folder", "some/model@main"):
        with pytest.raises(ConfigError, match=f"{name}' is not allowed: .* a plain hub id"):
            open_clip_config(clip_model(), make_tokenizer(), **{**NAMES, role: name})
    with pytest.raises(ConfigError, match=r"a (text tower|tokenizer) of unknown origin"):
        open_clip_config(clip_model(), make_tokenizer(), **{**NAMES, role: ""})
    names = {**NAMES, "text_tower": "texts/none"}
    with pytest.raises(ConfigError, match="'texts/none', .* cannot be fetched to compare it"):
        open_clip_config(clip_model(), make_tokenizer(), **names)
