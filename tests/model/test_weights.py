import logging
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from clip_italian.config import ConfigError
from tests.model.checkpoints import (
    assert_equal_trees,
    pytorch_names,
    tiny_model,
    tower_weights,
    write_folder,
)
from tests.tiny import TINY_BERT, TINY_CLIP, TINY_ROBERTA, TINY_VIT, TINY_XLM_ROBERTA

FULL_CLIP = {"model_type": "clip", "projection_dim": 16, "vision_config": TINY_CLIP}

TOWERS = [
    pytest.param("vision", TINY_VIT, "vit", id="vit"),
    pytest.param("vision", TINY_CLIP, "", id="clip"),
    pytest.param("text", TINY_BERT, "bert", id="bert"),
    pytest.param("text", TINY_ROBERTA, "roberta", id="roberta"),
    pytest.param("text", TINY_XLM_ROBERTA, "roberta", id="xlm-roberta"),
]


@pytest.mark.parametrize("layout", ["flax", "pytorch"])
@pytest.mark.parametrize("inside", [False, True], ids=["bare", "inside"])
@pytest.mark.parametrize(("side", "config", "prefix"), TOWERS)
def test_load_a_folder(tmp_path, side, config, prefix, layout, inside):
    own = tower_weights(side, config)
    stored = {prefix: own, "head": {"kernel": np.ones((2, 2))}} if inside and prefix else own
    if layout == "pytorch":
        stored = pytorch_names(stored) | {"embeddings.position_ids": np.arange(4)[None]}
    path = write_folder(tmp_path / "tower", config, **{layout: stored})
    model = tiny_model(**{f"{side}_tower": path, f"{side}_config": None})
    params = model.init(0)
    assert_equal_trees(params[f"{side}_model"], own)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    if side == "vision":
        assert model.image_mean == (0.1, 0.2, 0.3) and model.image_std == (0.4, 0.5, 0.6)


def test_safetensors_goes_before_msgpack_and_half_precision_is_widened(tmp_path):
    own = jax.tree.map(lambda x: x.astype(np.float16), tower_weights("text", TINY_BERT))
    other = tower_weights("text", TINY_BERT, seed=4)
    path = write_folder(tmp_path / "bert", TINY_BERT, flax=other, pytorch=pytorch_names(own))
    params = tiny_model(text_tower=path, text_config=None).init(0)
    assert_equal_trees(params["text_model"], jax.tree.map(np.float32, own))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("layout", ["flax", "pytorch"])
def test_full_clip_keeps_its_projection(tmp_path, layout):
    clip = {
        **tower_weights("vision", TINY_CLIP),
        "visual_projection": {"kernel": np.arange(512, dtype=np.float32).reshape(32, 16)},
        "text_model": {"final_layer_norm": {"scale": np.ones(4, np.float32)}},
        "logit_scale": np.float32(4.6),
    }
    stored = pytorch_names(clip) if layout == "pytorch" else clip
    path = write_folder(tmp_path / "clip", FULL_CLIP, **{layout: stored})
    model = tiny_model(vision_tower=path, vision_config=None)
    params = model.init(0)
    assert_equal_trees(params["vision_model"]["vision_model"], clip["vision_model"])
    assert_equal_trees(params["visual_projection"], clip["visual_projection"])
    assert params["logit_scale"] == np.float32(np.log(20.0))  # the run's, not the checkpoint's
    with pytest.raises(ConfigError, match="projection_dim = 8 is not allowed; give 16, the width"):
        tiny_model(vision_tower=path, vision_config=None, projection_dim=8)


def test_clip_vision_model_with_and_without_projection(tmp_path):
    own = tower_weights("vision", TINY_CLIP)
    kernel = np.full((32, 16), 0.5, np.float32)
    both = {**own, "visual_projection": {"kernel": kernel}}
    path = write_folder(tmp_path / "with", TINY_CLIP, pytorch=pytorch_names(both))
    params = tiny_model(vision_tower=path, vision_config=None).init(0)
    np.testing.assert_array_equal(params["visual_projection"]["kernel"], kernel)
    with pytest.raises(ConfigError, match="projection_dim = 8 is not allowed; give 16"):
        tiny_model(vision_tower=path, vision_config=None, projection_dim=8).init(0)
    # Without one, any width starts random; unless the checkpoint says it should have one.
    path = write_folder(tmp_path / "without", TINY_CLIP, flax=own)
    params = tiny_model(vision_tower=path, vision_config=None, projection_dim=8).init(0)
    assert params["visual_projection"]["kernel"].shape == (32, 8)
    named = {**TINY_CLIP, "architectures": ["CLIPVisionModelWithProjection"], "projection_dim": 16}
    path = write_folder(tmp_path / "lost", named, flax=own)
    with pytest.raises(ConfigError, match="lacks the weights visual_projection"):
        tiny_model(vision_tower=path, vision_config=None).init(0)


def test_a_missing_pooler_starts_random_and_says_so(tmp_path, caplog):
    own = tower_weights("text", TINY_BERT)
    del own["pooler"]
    path = write_folder(tmp_path / "bert", TINY_BERT, pytorch=pytorch_names({"bert": own}))
    model = tiny_model(text_tower=path, text_config=None)
    params = model.init(0)
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "NO WEIGHTS for pooler.dense.bias, pooler.dense.kernel" in record.getMessage()
    pooler = params["text_model"].pop("pooler")["dense"]
    assert_equal_trees(params["text_model"], own)
    assert (pooler["bias"] == 0).all() and 0.018 < pooler["kernel"].std() < 0.022
    assert (model.init(0)["text_model"]["pooler"]["dense"]["kernel"] == pooler["kernel"]).all()


def test_any_other_missing_weight_is_refused(tmp_path):
    own = flatten_dict(tower_weights("text", TINY_BERT), sep=".")
    del own["encoder.layer.0.output.dense.kernel"], own["embeddings.LayerNorm.scale"]
    path = write_folder(tmp_path / "bert", TINY_BERT, flax=unflatten_dict(own, sep="."))
    lacks = r"text_tower = .*lacks.* embeddings.LayerNorm.scale, encoder.layer.0.output.dense.kern"
    with pytest.raises(ConfigError, match=lacks):
        tiny_model(text_tower=path, text_config=None).init(0)


def test_unused_weights_are_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    own = tower_weights("text", TINY_BERT)
    stored = {"bert": {**own, "encoder": {**own["encoder"], "gate": np.ones(1)}}, "cls": own}
    path = write_folder(tmp_path / "bert", TINY_BERT, flax=stored)
    tiny_model(text_tower=path, text_config=None).init(0)
    leaves = len(jax.tree.leaves(own))
    assert f"not used, by first part of their name: cls ({leaves})" in caplog.text
    assert "not used: encoder.gate" in caplog.text


@pytest.mark.parametrize("layout", ["flax", "pytorch"])
def test_weights_of_another_image_size_are_refused(tmp_path, layout):
    own = tower_weights("vision", TINY_VIT)
    stored = pytorch_names(own) if layout == "pytorch" else own
    path = write_folder(tmp_path / "vit", {**TINY_VIT, "image_size": 64}, **{layout: stored})
    shapes = r"position_embeddings.*\(1, (5|17), 32\).*\(1, (5|17), 32\)"
    with pytest.raises(ConfigError, match=f"vision_tower = .*{shapes}"):
        tiny_model(vision_tower=path, vision_config=None).init(0)


def test_bin_without_torch_says_what_to_do(tmp_path, monkeypatch):
    path = write_folder(tmp_path / "bert", TINY_BERT)
    (tmp_path / "bert" / "pytorch_model.bin").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    extra = r"needs PyTorch: install the extra \(pip install 'clip-italian\[torch\]'\) or convert"
    with pytest.raises(ConfigError, match=extra):
        tiny_model(text_tower=path, text_config=None).init(0)


def test_a_folder_without_weights_or_configuration(tmp_path):
    path = write_folder(tmp_path / "bert", TINY_BERT)
    with pytest.raises(ConfigError, match=r"holds no weights; looked for model.safetensors, flax"):
        tiny_model(text_tower=path, text_config=None).init(0)
    with pytest.raises(ConfigError, match=r"text_tower = .* holds no config.json"):
        tiny_model(text_tower=str(tmp_path), text_config=None)
