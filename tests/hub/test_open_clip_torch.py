"""Both ways against open_clip itself: run where the torch extra is installed, with `-m torch`."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from clip_italian.config import ConfigError
from clip_italian.data.tokens import encode
from clip_italian.hub.open_clip_export import open_clip_config, write_open_clip
from clip_italian.hub.torch_layout import to_pytorch
from clip_italian.model.open_clip_layout import describe, vision_arrays
from tests.data.conftest import WORDS, make_tokenizer
from tests.hub import hub_cache
from tests.model.checkpoints import pixels, random_like, run, tiny_model, write_folder
from tests.tiny import TINY_BERT, TINY_CLIP, TINY_ROBERTA, TINY_XLM_ROBERTA

pytestmark = pytest.mark.torch

VISION = {
    "image_size": 32, "patch_size": 8, "layers": 2, "width": 24, "head_width": 8, "mlp_ratio": 2.7,
}  # fmt: skip
TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
TEXTS = [
    "un gatto",
    "un cane nero dorme",
    "gatto",
    "un gatto nero un cane nero un gatto un cane",  # to be cut
]


def randomised(model, seed=0):
    """Every parameter random, biases and scales included, in evaluation mode."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(0.02, 0.2)
    return model.eval()


def theirs_of(ours, quick_gelu):
    """An open_clip model in its own format, as files in the folder `ours`."""
    import open_clip
    from safetensors.torch import save_file

    config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": quick_gelu}
    model = randomised(open_clip.CLIP(**config))
    ours.mkdir()
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (ours / "open_clip_config.json").write_text(text)
    save_file(model.state_dict(), ours / "open_clip_model.safetensors")
    return model


def scaled(images, mean=MEAN, std=STD):
    """Uint8 [n, height, width, 3] → the tensor that PyTorch's models take."""
    import torch

    values = (images.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return torch.tensor(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_vision_tower_of_open_clip(tmp_path, quick_gelu):
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    model = theirs_of(tmp_path / "theirs", quick_gelu)
    raw = describe(json.loads((tmp_path / "theirs" / "open_clip_config.json").read_text()))
    arrays = vision_arrays(load_file(tmp_path / "theirs" / "open_clip_model.safetensors"))

    config = CLIPVisionConfig(**raw["vision_config"], projection_dim=raw["projection_dim"])
    peer = CLIPVisionModelWithProjection(config).eval()
    peer.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})
    images = pixels(6)
    with torch.no_grad():
        expected = model.encode_image(scaled(images), normalize=True).numpy()
        found = peer(pixel_values=scaled(images)).image_embeds
    found = torch.nn.functional.normalize(found, dim=-1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected - expected[0]).max(axis=1)[1:].min() > 1e-3, "images can be told apart"

    # and in our own tower
    path = write_folder(tmp_path / "clip", raw, pytorch=arrays, processor=None)
    own = tiny_model(vision_tower=path, vision_config=None)
    embeds = run(own, own.init(0), images, method="encode_image")
    np.testing.assert_allclose(embeds, expected, atol=1e-5)
    print("largest differences:", np.abs(found - expected).max(), np.abs(embeds - expected).max())


B32 = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_channels": 3, "image_size": 224, "patch_size": 32,
    "hidden_act": "gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
L14 = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "patch_size": 14,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dim", "fields"),
    [
        ("ViT-B-32", 512, B32),
        ("ViT-B-32-quickgelu", 512, {**B32, "hidden_act": "quick_gelu"}),
        ("ViT-L-14", 768, {**B32, **L14}),
        ("xlm-roberta-base-ViT-B-32", 512, B32),
    ],
)
def test_descriptions_of_known_models(name, dim, fields):
    import open_clip

    described = describe({"model_cfg": open_clip.get_model_config(name)})
    assert (described["projection_dim"], described["vision_config"]) == (dim, fields)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("ViT-SO400M-14-SigLIP", "timm_model_name"),
        ("convnext_base", "timm_model_name"),
        ("RN50", "layers"),
        ("coca_ViT-B-32", "attentional_pool"),
        ("ViT-L-14-CLIPA", "no_ln_pre"),
        ("ViT-M-16-alt", "ls_init_value"),
    ],
)
def test_known_models_that_are_refused(name, field):
    import open_clip

    with pytest.raises(ConfigError, match=f"open_clip_config.json: {field} = "):
        describe({"model_cfg": open_clip.get_model_config(name)})


def test_every_known_model_that_is_described_fits():
    """Names and shapes of all weights; the sizes that open_clip derives are ours."""
    import open_clip
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    found = 0
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        try:
            raw = describe({"model_cfg": config})
        except ConfigError:
            continue
        # The deepest ones in one layer: the others are its copies.
        tower = {**config["vision_cfg"], "layers": 1}
        layout = {**raw["vision_config"], "num_hidden_layers": 1}
        with torch.device("meta"):
            model = open_clip.CLIP(config["embed_dim"], tower, TEXT, config.get("quick_gelu"))
            own = CLIPVisionConfig(**layout, projection_dim=raw["projection_dim"])
            peer = CLIPVisionModelWithProjection(own)
        zeros = {
            key: np.broadcast_to(np.float32(0), value.shape)
            for key, value in model.state_dict().items()
        }
        shapes = {key: value.shape for key, value in vision_arrays(zeros).items()}
        assert shapes == {key: tuple(value.shape) for key, value in peer.state_dict().items()}, name
        attention = model.visual.transformer.resblocks[0].attn
        assert attention.num_heads == own.num_attention_heads, name
        found += 1
    assert found >= 45, "of open_clip 3.3"


TOWERS = {"bert": TINY_BERT, "roberta": TINY_ROBERTA, "xlm-roberta": TINY_XLM_ROBERTA}
EXPORTS = [
    ("bert", "infonce", "quick_gelu"),
    ("bert", "sigmoid", "gelu"),
    ("roberta", "infonce", "gelu"),
    ("xlm-roberta", "sigmoid", "quick_gelu"),
]


def exported(tmp_path, monkeypatch, kind, loss, hidden_act):
    """A model, its PyTorch state and the folder written of it; its text tower is on the hub."""
    words = make_tokenizer(pad_token="[PAD]" if kind == "bert" else "[UNK]")
    text = {**TOWERS[kind], "vocab_size": len(WORDS), "pad_token_id": words.pad_token_id}
    vision = {**TINY_CLIP, "num_hidden_layers": 2, "hidden_act": hidden_act}
    vision |= {"image_mean": MEAN, "image_std": STD}
    model = tiny_model(loss, vision_config=vision, text_config=text, projection_dim=12)
    params = random_like(model.shapes())
    state = to_pytorch(params)

    folder, cache = tmp_path / "exported", tmp_path / "cache"
    hub_cache.use(monkeypatch, cache)
    hub_cache.add(cache, "texts/tower", write_folder(tmp_path / "text", text, processor=None))
    names = {"text_tower": "texts/tower", "tokenizer_name": "us/model"}
    # What the folder of a whole model holds besides, to be left alone by open_clip.
    write_folder(folder, {"model_type": "vision-text-dual-encoder"}, pytorch={"a": np.zeros(1)})
    words.save_pretrained(folder)
    write_open_clip(folder, open_clip_config(model, words, **names, max_length=8), state)
    hub_cache.add(cache, "us/model", folder)
    return model, words, params, state, folder


def dual_encoder_embeds(model, state, images, tokens):
    """Embeddings and logits of transformers' own dual encoder with the same weights."""
    import torch
    from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        model.vision_config, model.text_config, projection_dim=12
    )
    peer = VisionTextDualEncoderModel(config).eval()
    missing = peer.load_state_dict(
        {name: torch.tensor(value) for name, value in state.items()}, strict=False
    )
    assert not missing.missing_keys
    assert set(missing.unexpected_keys) <= {"logit_bias"}
    with torch.no_grad():
        found = peer(
            pixel_values=scaled(images),
            input_ids=torch.tensor(tokens.input_ids, dtype=torch.long),
            attention_mask=torch.tensor(tokens.attention_mask, dtype=torch.long),
        )
    logits = found.logits_per_image.numpy() + state.get("logit_bias", np.float32(0))
    return found.image_embeds.numpy(), found.text_embeds.numpy(), logits


@pytest.mark.parametrize(("kind", "loss", "hidden_act"), EXPORTS)
@pytest.mark.parametrize("place", ["local-dir", "hf-hub"])
def test_open_clip_reads_what_is_written(tmp_path, monkeypatch, kind, loss, hidden_act, place):
    import open_clip
    import torch

    parts = exported(tmp_path, monkeypatch, kind, loss, hidden_act)
    model, words, params, state, folder = parts
    name = f"local-dir:{folder}" if place == "local-dir" else "hf-hub:us/model"
    theirs, _ = open_clip.create_model_from_pretrained(name)
    theirs.eval()
    ids = open_clip.get_tokenizer(name)(TEXTS)
    tokens, images = encode(words, TEXTS, 8), pixels(5)
    np.testing.assert_array_equal(ids.numpy(), tokens.input_ids)
    with torch.no_grad():
        embeds = [
            theirs.encode_image(scaled(images), normalize=True).numpy(),
            theirs.encode_text(ids, normalize=True).numpy(),
            theirs.get_logits(scaled(images), ids)[0].numpy(),
        ]
    expected = dual_encoder_embeds(model, state, images, tokens)
    for one, two, atol in zip(embeds, expected, (1e-5, 1e-5, 1e-4), strict=True):
        np.testing.assert_allclose(one, two, atol=atol)
    ours = run(model, params, images[: len(TEXTS)], (tokens,))
    np.testing.assert_allclose(embeds[0][: len(TEXTS)], ours.image_embeds, atol=1e-5)
    np.testing.assert_allclose(embeds[1], ours.text_embeds, atol=1e-5)
    for one in embeds[:2]:
        assert np.abs(one[1:] - one[0]).max(axis=1).min() > 1e-3, "they can be told apart"
    assert (theirs.logit_bias is None) == (loss == "infonce")
    pairs = zip(embeds, expected, strict=True)
    print("largest differences:", [float(np.abs(one - two).max()) for one, two in pairs])


def test_pictures_are_prepared_alike(tmp_path, monkeypatch):
    import open_clip
    from transformers import CLIPImageProcessor

    *_, folder = exported(tmp_path, monkeypatch, *EXPORTS[0])
    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    size = {"shortest_edge": 32}
    crop = {"height": 32, "width": 32}
    own = CLIPImageProcessor(size=size, crop_size=crop, image_mean=MEAN, image_std=STD)
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((100, 64), Image.Resampling.BICUBIC)
    expected = own(picture, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(preprocess(picture).numpy(), expected, atol=1e-5)


def test_its_own_tokenizer_repairs_text_first(tmp_path, monkeypatch):
    """What the file's first lines say; who wants the model's own reading takes AutoTokenizer."""
    import open_clip
    from transformers import AutoTokenizer

    _, words, *_, folder = exported(tmp_path, monkeypatch, *EXPORTS[0])
    text = ["un gatto&nbsp;nero"]
    repaired = open_clip.get_tokenizer(f"local-dir:{folder}")(text).numpy()
    np.testing.assert_array_equal(repaired, encode(words, ["un gatto nero"], 8).input_ids)
    own = AutoTokenizer.from_pretrained(folder)
    ids = encode(own, text, 8).input_ids
    np.testing.assert_array_equal(ids, encode(words, text, 8).input_ids)
    assert (ids != repaired).any()


def test_the_folder_itself_cannot_describe_the_text_tower(tmp_path, monkeypatch):
    """Why the text tower needs a hub id of its own."""
    import open_clip

    *_, folder = exported(tmp_path, monkeypatch, *EXPORTS[0])
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = str(folder)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match="add_pooling_layer|vision_config|vision-text"):
        open_clip.create_model_from_pretrained(f"local-dir:{other}")


@pytest.mark.parametrize("how", ["safetensors", "bin", "timm"])
def test_training_starts_from_a_tower_of_open_clip(tmp_path, how):
    import torch
    from safetensors.numpy import save_file

    folder = tmp_path / "tower"
    theirs = theirs_of(folder, True)
    if how == "bin":
        torch.save(theirs.state_dict(), folder / "open_clip_pytorch_model.bin")
        (folder / "open_clip_model.safetensors").unlink()
    if how == "timm":  # whose repositories hold files of its own under transformers' names
        (folder / "config.json").write_text('{"architecture": "vit_base"}')
        save_file({"blocks.0": np.zeros(1)}, folder / "model.safetensors")
    model = tiny_model(vision_tower=str(folder), vision_config=None)
    images = pixels(6)
    with torch.no_grad():
        expected = theirs.encode_image(scaled(images), normalize=True).numpy()
    ours = run(model, model.init(0), images, method="encode_image")
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_a_description_of_other_weights_is_refused(tmp_path):
    folder = tmp_path / "tower"
    theirs_of(folder, True)
    said = json.loads((folder / "open_clip_config.json").read_text())
    said["model_cfg"]["vision_cfg"]["layers"] = 3
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    with pytest.raises(ConfigError, match="vision_tower = .* lacks the weights"):
        tiny_model(vision_tower=str(folder), vision_config=None).init(0)
