"""Names, fields and refusals; against open_clip itself in tests/hub/test_open_clip_torch.py."""

import numpy as np
import pytest
from transformers import CLIPVisionConfig

from clip_italian.config import ConfigError
from clip_italian.model.open_clip_layout import (
    describe,
    open_clip_arrays,
    open_clip_vision,
    vision_arrays,
)
from tests.model.checkpoints import pytorch_names, tiny_model, write_folder

# width 4, two heads, 3 × 4 wide in the middle, 2 layers, 2 × 2 patches of 3 pixels
TOWER = {
    "image_size": 6, "patch_size": 3, "layers": 2, "width": 4, "head_width": 2, "mlp_ratio": 3.1,
}  # fmt: skip
CONFIG = {
    "model_cfg": {"embed_dim": 5, "vision_cfg": TOWER, "text_cfg": {"width": 8, "layers": 1}},
    "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
}


def with_fields(part, **fields):
    model = CONFIG["model_cfg"]
    if part == "vision_cfg":
        return {**CONFIG, "model_cfg": {**model, "vision_cfg": {**TOWER, **fields}}}
    if part == "model_cfg":
        return {**CONFIG, "model_cfg": {**model, **fields}}
    return {**CONFIG, part: {**CONFIG[part], **fields}}


def state():
    """An open_clip state dict in which every number is another."""
    block = {
        "ln_1.weight": (4,), "ln_1.bias": (4,),
        "attn.in_proj_weight": (12, 4), "attn.in_proj_bias": (12,),
        "attn.out_proj.weight": (4, 4), "attn.out_proj.bias": (4,),
        "ln_2.weight": (4,), "ln_2.bias": (4,),
        "mlp.c_fc.weight": (12, 4), "mlp.c_fc.bias": (12,),
        "mlp.c_proj.weight": (4, 12), "mlp.c_proj.bias": (4,),
    }  # fmt: skip
    shapes = {
        "class_embedding": (4,), "positional_embedding": (5, 4), "proj": (4, 5),
        "conv1.weight": (4, 3, 3, 3), "ln_pre.weight": (4,), "ln_pre.bias": (4,),
        **{f"transformer.resblocks.{n}.{key}": block[key] for n in (0, 1) for key in block},
        "ln_post.weight": (4,), "ln_post.bias": (4,),
    }  # fmt: skip
    sizes = np.cumsum([0, *map(np.prod, shapes.values())])
    return {
        f"visual.{key}": np.arange(start, end, dtype=np.float32).reshape(shape)
        for (key, shape), start, end in zip(shapes.items(), sizes[:-1], sizes[1:], strict=True)
    }


TEXT_HALF = {
    "positional_embedding": np.zeros((7, 8)),
    "text_projection": np.zeros((8, 5)),
    "transformer.resblocks.0.ln_1.weight": np.zeros(8),
    "text.transformer.embeddings.word_embeddings.weight": np.zeros((9, 8)),
    "logit_scale": np.zeros(()),
}


def test_a_description():
    assert describe(CONFIG) == {
        "model_type": "clip",
        "projection_dim": 5,
        "vision_config": {
            "hidden_size": 4,
            "intermediate_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_channels": 3,
            "image_size": 6,
            "patch_size": 3,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
        },
        "image_mean": (0.1, 0.2, 0.3),
        "image_std": (0.4, 0.5, 0.6),
    }


def test_what_open_clip_takes_when_a_field_is_absent():
    described = describe({"model_cfg": {"embed_dim": 512, "vision_cfg": {}}})
    assert described["vision_config"] == {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }
    assert described["image_mean"] == (0.48145466, 0.4578275, 0.40821073)
    assert described["image_std"] == (0.26862954, 0.26130258, 0.27577711)


def test_quick_gelu():
    described = describe(with_fields("model_cfg", quick_gelu=True))
    assert described["vision_config"]["hidden_act"] == "quick_gelu"


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("vision_cfg", {"patch_dropout": 0.5, "attentional_pool": False, "timm_pool": "avg"}),
        ("vision_cfg", {"image_size": [6, 6], "patch_size": [3, 3], "norm_kwargs": {}}),
        ("vision_cfg", {"timm_model_name": None, "pool_type": "tok", "block_type": None}),
        ("preprocess_cfg", {"interpolation": "random", "resize_mode": "shortest", "mode": "RGB"}),
        ("preprocess_cfg", {"size": 6, "fill_color": 0, "interpolation": None}),
    ],
)
def test_fields_that_change_nothing(part, fields):
    assert describe(with_fields(part, **fields)) == describe(CONFIG)


def test_one_number_for_all_channels():
    described = describe(with_fields("preprocess_cfg", mean=0.5, std=0.25))
    assert (described["image_mean"], described["image_std"]) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("part", "field", "value", "reason"),
    [
        ("vision_cfg", "timm_model_name", "convnext_base", "towers of timm"),
        ("vision_cfg", "layers", [3, 4, 6, 3], "ResNets"),
        ("vision_cfg", "layers", "12", "whole number"),
        ("vision_cfg", "attentional_pool", True, "only False"),
        ("vision_cfg", "attentional_pool", "parallel", "only False"),
        ("vision_cfg", "output_tokens", True, "only False"),
        ("vision_cfg", "pool_type", "avg", "only 'tok'"),
        ("vision_cfg", "global_average_pool", True, "only False"),
        ("vision_cfg", "input_patchnorm", True, "only False"),
        ("vision_cfg", "final_ln_after_pool", True, "only False"),
        ("vision_cfg", "no_ln_pre", True, "only False"),
        ("vision_cfg", "ls_init_value", 1e-4, "only None"),
        ("vision_cfg", "pos_embed_type", "sin_cos_2d", "only 'learnable'"),
        ("vision_cfg", "norm_kwargs", {"eps": 1e-6}, "only None"),
        ("vision_cfg", "act_kwargs", {"approximate": "tanh"}, "only None"),
        ("vision_cfg", "qk_norm", True, "only False"),
        ("vision_cfg", "block_type", "custom", "only 'default'"),
        ("vision_cfg", "rope", True, "unknown"),
        ("vision_cfg", "image_size", [6, 9], "must be square"),
        ("vision_cfg", "patch_size", None, "whole number"),
        ("vision_cfg", "mlp_ratio", "4", "must be a number"),
        ("vision_cfg", "head_width", 5, "makes 0 heads of width = 4"),
        ("vision_cfg", "head_width", 1.5, "whole number"),
        ("model_cfg", "embed_dim", None, "whole number"),
        ("preprocess_cfg", "interpolation", "bilinear", "with 'bicubic'"),
        ("preprocess_cfg", "resize_mode", "squash", "with 'shortest'"),
        ("preprocess_cfg", "mode", "L", "with 'RGB'"),
    ],
)
def test_what_is_refused(part, field, value, reason):
    with pytest.raises(ConfigError) as caught:
        describe(with_fields(part, **{field: value}))
    message = str(caught.value)
    assert message.startswith(f"vision_tower: open_clip_config.json: {field} = {value!r} cannot")
    assert reason in message


def test_heads_that_do_not_divide():
    with pytest.raises(ConfigError, match="head_width = 3 .* 3 heads of width = 10"):
        describe(with_fields("vision_cfg", width=10, head_width=3))


@pytest.mark.parametrize("config", [{}, {"model_cfg": {}}, {"vision_cfg": TOWER}])
def test_no_model(config):
    with pytest.raises(ConfigError, match="no model_cfg with a vision_cfg"):
        describe(config)


def test_names_and_layouts():
    ours, theirs = vision_arrays(state() | TEXT_HALF), state()
    block, layer = "visual.transformer.resblocks.1", "vision_model.encoder.layers.1"
    pairs = {
        "vision_model.embeddings.class_embedding": theirs["visual.class_embedding"],
        "vision_model.embeddings.position_embedding.weight": theirs["visual.positional_embedding"],
        "vision_model.embeddings.patch_embedding.weight": theirs["visual.conv1.weight"],
        "vision_model.pre_layrnorm.weight": theirs["visual.ln_pre.weight"],
        "vision_model.pre_layrnorm.bias": theirs["visual.ln_pre.bias"],
        "vision_model.post_layernorm.weight": theirs["visual.ln_post.weight"],
        "vision_model.post_layernorm.bias": theirs["visual.ln_post.bias"],
        "visual_projection.weight": theirs["visual.proj"].T,
        f"{layer}.layer_norm1.weight": theirs[f"{block}.ln_1.weight"],
        f"{layer}.layer_norm1.bias": theirs[f"{block}.ln_1.bias"],
        f"{layer}.self_attn.q_proj.weight": theirs[f"{block}.attn.in_proj_weight"][:4],
        f"{layer}.self_attn.k_proj.weight": theirs[f"{block}.attn.in_proj_weight"][4:8],
        f"{layer}.self_attn.v_proj.weight": theirs[f"{block}.attn.in_proj_weight"][8:],
        f"{layer}.self_attn.q_proj.bias": theirs[f"{block}.attn.in_proj_bias"][:4],
        f"{layer}.self_attn.k_proj.bias": theirs[f"{block}.attn.in_proj_bias"][4:8],
        f"{layer}.self_attn.v_proj.bias": theirs[f"{block}.attn.in_proj_bias"][8:],
        f"{layer}.self_attn.out_proj.weight": theirs[f"{block}.attn.out_proj.weight"],
        f"{layer}.self_attn.out_proj.bias": theirs[f"{block}.attn.out_proj.bias"],
        f"{layer}.layer_norm2.weight": theirs[f"{block}.ln_2.weight"],
        f"{layer}.layer_norm2.bias": theirs[f"{block}.ln_2.bias"],
        f"{layer}.mlp.fc1.weight": theirs[f"{block}.mlp.c_fc.weight"],
        f"{layer}.mlp.fc1.bias": theirs[f"{block}.mlp.c_fc.bias"],
        f"{layer}.mlp.fc2.weight": theirs[f"{block}.mlp.c_proj.weight"],
        f"{layer}.mlp.fc2.bias": theirs[f"{block}.mlp.c_proj.bias"],
    }
    assert set(ours) == set(pairs) | {
        key.replace("layers.1", "layers.0") for key in pairs if "layers.1" in key
    }
    for key, expected in pairs.items():
        np.testing.assert_array_equal(ours[key], expected, err_msg=key)


def test_there_and_back():
    back = open_clip_arrays(vision_arrays(state()))
    assert set(back) == set(state())
    for key, value in state().items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    for quick_gelu in (False, True):
        described = describe(with_fields("model_cfg", quick_gelu=quick_gelu))
        config = CLIPVisionConfig(**described["vision_config"])
        assert open_clip_vision(config) == ({**TOWER, "mlp_ratio": 3.0}, quick_gelu)


def test_widths_survive_open_clip_rounding_down():
    config = CLIPVisionConfig(hidden_size=7, num_attention_heads=1, intermediate_size=61)
    fields, _ = open_clip_vision(config)
    assert int(7 * (61 / 7)) == 60, "why this needs care"
    assert int(7 * fields["mlp_ratio"]) == 61


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_act", "gelu_new"), ("hidden_act", "relu"), ("layer_norm_eps", 1e-6)],
)
def test_a_tower_that_open_clip_does_not_have(field, value):
    with pytest.raises(ConfigError, match="^--open_clip: hidden_act .* cannot carry"):
        open_clip_vision(CLIPVisionConfig(**{field: value}))


@pytest.mark.parametrize(
    "extra",
    [
        "visual.attn_pool.query",
        "visual.transformer.resblocks.0.ls_1.gamma",
        "visual.transformer.resblocks.0.attn.ln_q.weight",
        "visual.conv1.bias",
    ],
)
def test_weights_of_more_than_a_clip_tower(extra):
    with pytest.raises(ConfigError, match=f"^vision_tower: {extra} has no counterpart"):
        vision_arrays({**state(), extra: np.zeros(4)})


@pytest.mark.parametrize(
    "arrays",
    [
        TEXT_HALF,
        {"visual.trunk.blocks.0.norm1.weight": np.zeros(4)},
        {"visual.conv1.weight": np.zeros((4, 3, 3, 3)), "visual.layer1.0.conv1.weight": None},
    ],
    ids=["none", "timm", "resnet"],
)
def test_weights_without_a_vision_transformer(arrays):
    with pytest.raises(ConfigError, match="^vision_tower: .* no vision transformer of open_clip"):
        vision_arrays(arrays)


def test_the_tower_that_is_built(tmp_path):
    """All of it arrives in the Flax tower, and nothing of the tower is left random."""
    arrays = vision_arrays(state())
    path = write_folder(tmp_path / "clip", describe(CONFIG), pytorch=arrays, processor=None)
    model = tiny_model(vision_tower=path, vision_config=None, projection_dim=5)
    assert (model.image_size, model.image_mean) == (6, (0.1, 0.2, 0.3))
    params = model.init(0)
    built = pytorch_names(params["vision_model"])
    assert set(built) | {"visual_projection.weight"} == set(arrays)
    for key, value in built.items():
        np.testing.assert_array_equal(value, arrays[key], err_msg=key)
    kernel = params["visual_projection"]["kernel"]
    np.testing.assert_array_equal(kernel, state()["visual.proj"])
