"""Whole models to start from, as transformers and the code of 2021 lay them out."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from safetensors.numpy import save_file

from clip_italian.config import Config, ConfigError, ModelConfig
from clip_italian.hub.torch_layout import to_pytorch
from clip_italian.model import weights
from clip_italian.model.towers import build, describe
from tests.model.checkpoints import PROCESSOR, assert_equal_trees, random_like, tiny_model
from tests.tiny import TINY_BEIT, TINY_BERT, TINY_CLIP, TINY_DINOV2, TINY_ROBERTA, TINY_VIT


def write_whole(path, params, vision=TINY_CLIP, text=TINY_BERT, *, layout="pytorch", **config):
    """A folder as `VisionTextDualEncoderModel.save_pretrained` writes it."""
    path.mkdir()
    described = {
        "model_type": "vision-text-dual-encoder",
        "vision_config": vision,
        "text_config": text,
        "projection_dim": 16,
    }
    (path / "config.json").write_text(json.dumps({**described, **config}))
    (path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    if layout == "pytorch":
        save_file(to_pytorch(params), path / "model.safetensors")
    else:
        (path / "flax_model.msgpack").write_bytes(msgpack_serialize(params))
    return str(path)


def whole_model(name, loss="infonce", **fields):
    return build(ModelConfig(**{"init_from": name, "projection_dim": 16, **fields}), loss=loss)


@pytest.mark.parametrize("layout", ["pytorch", "flax"])
@pytest.mark.parametrize(
    ("vision", "text"),
    [(TINY_CLIP, TINY_BERT), (TINY_VIT, TINY_ROBERTA), (TINY_DINOV2, TINY_BERT)],
    ids=["clip-bert", "vit-roberta", "dinov2-bert"],
)
def test_every_parameter_is_taken(tmp_path, vision, text, layout):
    params = random_like(tiny_model(vision_config=vision, text_config=text).shapes())
    model = whole_model(write_whole(tmp_path / "m", params, vision, text, layout=layout))
    assert model.image_mean == (0.1, 0.2, 0.3)  # of the folder's processor
    assert_equal_trees(model.init(0), params)


def test_the_scale_is_the_models_own_unless_the_run_states_one(tmp_path):
    params = random_like(tiny_model(vision_config=TINY_CLIP).shapes())
    params["logit_scale"] = np.float32(np.log(45))
    path = write_whole(tmp_path / "m", params)
    assert whole_model(path).init(0)["logit_scale"] == np.float32(np.log(45))
    stated = whole_model(path, logit_scale=7.0).init(0)
    assert stated["logit_scale"] == pytest.approx(np.log(7))
    assert_equal_trees(stated["vision_model"], params["vision_model"])


@pytest.mark.parametrize(
    ("stored", "config", "expected", "message"),
    [
        # The published model of 2021 holds no scale; training multiplied by 20.
        (None, {"model_type": "hybrid-clip"}, np.log(20), "no weights for logit_scale"),
        (np.array([20.0]), {"model_type": "hybrid-clip"}, np.log(20), "as a plain factor"),
        (np.array(1.0), {"model_type": "hybrid-clip"}, 1.0, None),
        (None, {"logit_scale_init_value": 1.5}, 1.5, "no weights for logit_scale"),
        (None, {}, 2.6592, "no weights for logit_scale"),  # the configuration class's default
        (np.array(np.log(20)), {"logit_scale_init_value": 1.5}, np.log(20), None),
    ],
    ids=["2021", "raw", "log", "config", "default", "stored"],
)
def test_what_the_scale_of_old_layouts_means(tmp_path, caplog, stored, config, expected, message):
    params = random_like(tiny_model(vision_config=TINY_CLIP).shapes())
    del params["logit_scale"]
    if stored is not None:
        params["logit_scale"] = stored.astype(np.float32)
    path = write_whole(tmp_path / "m", params, layout="flax", **config)
    with caplog.at_level(logging.WARNING):
        found = whole_model(path).init(0)["logit_scale"]
    assert found.shape == () and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (message in caplog.text) if message else not caplog.records


def test_hybrid_clip_without_the_kind_of_its_vision_tower(tmp_path):
    params = random_like(tiny_model(vision_config=TINY_CLIP).shapes())
    vision = {key: value for key, value in TINY_CLIP.items() if key != "model_type"}
    path = write_whole(tmp_path / "m", params, vision, layout="flax", model_type="hybrid-clip")
    assert_equal_trees(whole_model(path).init(0), params)


def test_the_bias_of_the_sigmoid_loss(tmp_path):
    params = random_like(tiny_model(vision_config=TINY_CLIP).shapes())
    path = write_whole(tmp_path / "m", params, logit_bias=-9.25)
    assert whole_model(path, "sigmoid").init(0)["logit_bias"] == -9.25
    assert "logit_bias" not in whole_model(path).init(0)
    other = write_whole(tmp_path / "softmax", params)
    assert whole_model(other, "sigmoid", logit_bias=-3.0).init(0)["logit_bias"] == -3.0


def test_what_is_missing_or_wrong_is_named(tmp_path):
    params = random_like(tiny_model(vision_config=TINY_CLIP).shapes())
    path = write_whole(tmp_path / "m", params)
    with pytest.raises(ConfigError, match="projection_dim = 512 is not allowed; give 16"):
        whole_model(path, projection_dim=512)
    del params["text_model"]["pooler"]
    path = write_whole(tmp_path / "no_pooler", params)
    with pytest.raises(ConfigError, match=r"init_from = .*lacks the weights pooler\.dense\.bias"):
        whole_model(path).init(0)
    del params["text_projection"]
    path = write_whole(tmp_path / "no_projection", {**params, "text_model": {}})
    with pytest.raises(ConfigError, match="lacks the weights"):
        whole_model(path).init(0)
    with pytest.raises(ConfigError, match="'bert'; give one of vision-text-dual-encoder, hybrid"):
        whole_model(write_whole(tmp_path / "bert", {}, model_type="bert"))
    with pytest.raises(ConfigError, match="init_from = 'nowhere' is no folder here"):
        whole_model("nowhere")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is no JSON"):
        whole_model(str(tmp_path / "broken"))
    params = random_like(tiny_model(vision_config=TINY_CLIP).shapes())
    params["logit_scale"] = np.array([1.0, 2.0], np.float32)
    path = write_whole(tmp_path / "scales", params, layout="flax")
    with pytest.raises(ConfigError, match="not one number"):
        whole_model(path).init(0)


def test_a_revision_of_the_hub(monkeypatch, tmp_path):
    seen = []
    path = tmp_path / "m"
    write_whole(path, random_like(tiny_model(vision_config=TINY_CLIP).shapes()))

    def download(name, filename, *, revision):
        seen.append((name, revision))
        return str(path / filename)

    monkeypatch.setattr(weights, "hf_hub_download", download)
    whole_model("ada/model@v1").init(0)
    assert set(seen) == {("ada/model", "v1")}
    whole_model("ada/model").init(0)
    assert seen[-1] == ("ada/model", None)


def test_another_image_size(tmp_path):
    """Positions are resized once, on loading; what is random is made for the new size."""
    params = random_like(tiny_model(vision_config=TINY_VIT).shapes())
    path = write_whole(tmp_path / "m", params, TINY_VIT)
    model = whole_model(path, image_size=48)
    assert model.image_size == 48
    embeddings = model.init(0)["vision_model"]["embeddings"]
    old = params["vision_model"]["embeddings"]["position_embeddings"]
    new = embeddings["position_embeddings"]
    assert (old.shape, new.shape) == ((1, 5, 32), (1, 10, 32))  # 2 × 2 and 3 × 3 patches
    np.testing.assert_array_equal(new[:, 0], old[:, 0])
    # The middle of the new grid is the mean of the old one.
    np.testing.assert_allclose(new[0, 5], old[0, 1:].mean(0), atol=1e-6)
    assert tiny_model(vision_config=TINY_DINOV2, image_size=64).init(0)
    for fields, message in (
        (
            {"vision_config": TINY_VIT, "image_size": 40},
            r"give a multiple of its patch_size \(16\)",
        ),
        ({"vision_config": TINY_BEIT, "image_size": 64}, "give 32: the positions of a beit"),
    ):
        with pytest.raises(ConfigError, match=rf"image_size = \d\d is not allowed; {message}"):
            tiny_model(**fields)


def test_a_roberta_of_2021_is_refused(tmp_path):
    """Its positions were counted from 0, for real tokens and padding alike."""
    path = write_whole(tmp_path / "m", {}, TINY_CLIP, TINY_ROBERTA, model_type="hybrid-clip")
    with pytest.raises(ConfigError, match="a HybridCLIP of 2021 with a RoBERTa counted positions"):
        whole_model(path)


def test_pixel_constants_of_a_folder_that_transformers_5_wrote(tmp_path, caplog):
    params = random_like(tiny_model(vision_config=TINY_CLIP).shapes())
    path = write_whole(tmp_path / "m", params)
    (tmp_path / "m" / "preprocessor_config.json").unlink()
    said = {"image_processor": PROCESSOR, "processor_class": "VisionTextDualEncoderProcessor"}
    (tmp_path / "m" / "processor_config.json").write_text(json.dumps(said))
    assert whole_model(path).image_mean == (0.1, 0.2, 0.3) and not caplog.records
    (tmp_path / "m" / "processor_config.json").unlink()
    assert whole_model(path).image_mean == (0.48145466, 0.4578275, 0.40821073)
    assert "no preprocessor_config.json: its kind's mean and std are taken" in caplog.text


@pytest.mark.parametrize(
    ("processor", "field"),
    [
        ({"size": {"height": 32, "width": 32}}, "(size of its"),
        ({"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}, "crop_size"),
        ({"resample": 2}, "resample"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}, None),
        ({"size": 32, "crop_size": 32, "resample": 3}, None),  # of old versions
    ],
)
def test_pictures_that_are_read_otherwise_are_told(tmp_path, caplog, processor, field):
    params = random_like(tiny_model(vision_config=TINY_CLIP).shapes())
    path = write_whole(tmp_path / "m", params)
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **processor}))
    whole_model(path)
    assert (field in caplog.text) if field else not caplog.records


def test_a_run_states_the_towers_that_it_started_from(tmp_path):
    params = random_like(tiny_model(vision_config=TINY_VIT).shapes())
    path = write_whole(tmp_path / "m", params, TINY_VIT)
    config = Config(ModelConfig(init_from=path, projection_dim=16, image_size=48))
    stated = describe(config).model
    assert stated.vision_config["image_size"] == 32  # as stored
    assert build(stated, loss="infonce").image_size == 48
    alone = build(dataclasses.replace(stated, init_from=""), loss="infonce")
    assert (alone.image_size, alone.image_mean) == (48, (0.1, 0.2, 0.3))
    assert alone.shapes() == build(stated, loss="infonce").shapes()
    plain = Config(ModelConfig(vision_config=TINY_VIT, text_config=TINY_BERT))
    assert describe(plain) is plain
    # Another model in its place is noticed where it would be read again.
    write_whole(tmp_path / "n", params, {**TINY_VIT, "num_attention_heads": 4})
    (tmp_path / "m" / "config.json").write_text((tmp_path / "n" / "config.json").read_text())
    with pytest.raises(ConfigError, match="num_attention_heads is 4, not 2"):
        build(stated, loss="infonce")
