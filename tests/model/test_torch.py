"""Against PyTorch: run where the torch extra is installed, with `-m torch`."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.model.checkpoints import (
    pixels,
    pytorch_names,
    random_like,
    run,
    tiny_model,
    tokens,
    write_folder,
)
from tests.tiny import (
    TINY_BEIT,
    TINY_BERT,
    TINY_CLIP,
    TINY_DINOV2,
    TINY_DISTILBERT,
    TINY_ELECTRA,
    TINY_ROBERTA,
    TINY_VIT,
)

pytestmark = pytest.mark.torch

PAIRS = [
    pytest.param(TINY_VIT, TINY_BERT, id="vit-bert"),
    pytest.param(TINY_CLIP, TINY_BERT, id="clip-bert"),
    pytest.param(TINY_VIT, TINY_ROBERTA, id="vit-roberta"),
    pytest.param(TINY_DINOV2, TINY_BERT, id="dinov2-bert"),
    pytest.param(TINY_BEIT, TINY_BERT, id="beit-bert"),
]


@pytest.mark.parametrize(("vision", "text"), PAIRS)
def test_equals_pytorch(vision, text):
    import torch
    from transformers import AutoConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    configs = [AutoConfig.for_model(**config) for config in (vision, text)]
    config = VisionTextDualEncoderConfig.from_vision_text_configs(*configs, projection_dim=16)
    theirs = VisionTextDualEncoderModel(config).eval()
    model = tiny_model(vision_config=vision, text_config=text)
    params = random_like(model.shapes())
    state = {name: torch.tensor(value) for name, value in pytorch_names(params).items()}
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all("position_ids" in key or "token_type_ids" in key for key in missing.missing_keys)

    images, captions = pixels(6), tokens(6, pad=int(text is TINY_ROBERTA))
    scaled = (images.astype(np.float32) / 255 - model.image_mean) / model.image_std
    with torch.no_grad():
        expected = theirs(
            pixel_values=torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32),
            input_ids=torch.tensor(captions.input_ids, dtype=torch.long),
            attention_mask=torch.tensor(captions.attention_mask, dtype=torch.long),
        )
    ours = run(model, params, images, (captions,))
    np.testing.assert_allclose(ours.image_embeds, expected.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(ours.text_embeds, expected.text_embeds.numpy(), atol=1e-5)
    differences = [
        float(np.abs(mine - other.numpy()).max())
        for mine, other in (
            (ours.image_embeds, expected.image_embeds),
            (ours.text_embeds, expected.text_embeds),
        )
    ]
    print("largest differences (image, text):", differences)


@pytest.mark.parametrize("text", [TINY_DISTILBERT, TINY_ELECTRA], ids=["distilbert", "electra"])
def test_text_towers_without_a_pooler(text):
    import torch
    from transformers import AutoConfig, AutoModel

    theirs = AutoModel.from_config(AutoConfig.for_model(**text)).eval()
    model = tiny_model(text_config=text)
    params, captions = random_like(model.shapes()), tokens(6)
    state = pytorch_names(params["text_model"])
    state = {name: torch.tensor(value) for name, value in state.items()}
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all("position_ids" in key or "token_type_ids" in key for key in missing.missing_keys)
    with torch.no_grad():
        hidden = theirs(
            input_ids=torch.tensor(captions.input_ids, dtype=torch.long),
            attention_mask=torch.tensor(captions.attention_mask, dtype=torch.long),
        ).last_hidden_state
    projected = hidden[:, 0].numpy() @ params["text_projection"]["kernel"]
    expected = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    ours = run(model, params, (captions,), method="encode_text")
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize(
    "vision", [TINY_VIT, TINY_CLIP, TINY_DINOV2], ids=lambda v: v["model_type"]
)
def test_a_tower_saved_by_pytorch_at_another_image_size(vision, tmp_path):
    """Its position table is resized as PyTorch resizes pictures, antialiased."""
    import torch
    from transformers import AutoConfig, AutoModel

    theirs = AutoModel.from_config(AutoConfig.for_model(**{**vision, "image_size": 64}))
    own = theirs.state_dict()
    name = next(key for key in own if "position_embedding" in key and key.endswith(("s", "weight")))
    own[name].normal_()
    table = own[name].reshape(17, 32)
    theirs.save_pretrained(tmp_path / "tower")
    (tmp_path / "tower" / "preprocessor_config.json").write_text("{}")
    grid = table[1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (2, 2), mode="bicubic", antialias=True)
    expected = torch.cat([table[:1], grid.permute(0, 2, 3, 1).reshape(4, 32)])
    model = tiny_model(vision_tower=str(tmp_path / "tower"), vision_config=None, image_size=32)
    params = flatten_dict(model.init(0)["vision_model"], sep=".")
    found = next(value for key, value in params.items() if "position_embedding" in key)
    np.testing.assert_allclose(found.reshape(5, 32), expected.numpy(), atol=1e-5)


def test_bin_is_read_with_torch(tmp_path):
    import torch

    model = tiny_model()
    own = random_like(model.shapes()["text_model"])
    path = write_folder(tmp_path / "bert", TINY_BERT)
    state = {name: torch.tensor(value) for name, value in pytorch_names(own).items()}
    state["embeddings.LayerNorm.weight"] = state["embeddings.LayerNorm.weight"].bfloat16()
    torch.save(state, tmp_path / "bert" / "pytorch_model.bin")
    params = tiny_model(text_tower=path, text_config=None).init(0)["text_model"]
    scale = params["embeddings"]["LayerNorm"].pop("scale")
    np.testing.assert_allclose(scale, own["embeddings"]["LayerNorm"].pop("scale"), rtol=1e-2)
    for name, value in pytorch_names(own).items():
        np.testing.assert_array_equal(pytorch_names(params)[name], value)


def test_a_folder_saved_by_pytorch(tmp_path):
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    sizes = {key: value for key, value in TINY_CLIP.items() if key != "model_type"}
    text = CLIPTextConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=99)
    parts = {"vision_config": CLIPVisionConfig(**sizes), "text_config": text}
    halves = {name: part.to_dict() for name, part in parts.items()}
    theirs = CLIPModel(CLIPConfig(**halves, projection_dim=16))
    theirs.save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text("{}")
    model = tiny_model(vision_tower=str(tmp_path / "clip"), vision_config=None)
    params = model.init(0)
    kernel = theirs.visual_projection.weight.detach().numpy().T
    np.testing.assert_array_equal(params["visual_projection"]["kernel"], kernel)
    ours = pytorch_names(params["vision_model"])
    for name, value in theirs.vision_model.state_dict().items():
        np.testing.assert_array_equal(ours[f"vision_model.{name}"], value.numpy())
