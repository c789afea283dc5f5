import json
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from clip_italian.config import ConfigError, ModelConfig
from clip_italian.model import weights
from clip_italian.model.architectures import ARCHITECTURES
from clip_italian.model.towers import KINDS, build
from tests.model.checkpoints import (
    PROCESSOR,
    assert_equal_trees,
    tiny_model,
    tower_weights,
    write_folder,
)
from tests.tiny import TINY_BERT, TINY_CLIP, TINY_VIT

PAPER = {
    "vision_tower": "openai/clip-vit-base-patch32",
    "text_tower": "dbmdz/bert-base-italian-xxl-uncased",
}


@pytest.fixture
def no_hub(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(weights, "hf_hub_download", refuse)


def count(model):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(model.shapes()))


def test_parameters_of_the_paper(no_hub):
    model = build(ModelConfig(**PAPER), loss="infonce")
    # CLIP's image side 87,456,000 and its projection 768 × 512; BERT-base with 32,102 rows of
    # tokens 110,695,680; a text projection; one scale. 796 MB in float32, as the paper's was.
    assert count(model) == 87_456_000 + 2 * 768 * 512 + 110_695_680 + 1 == 198_938_113
    assert (model.image_size, model.vocab_size, model.max_positions) == (224, 32102, 512)
    assert model.image_mean == (0.48145466, 0.4578275, 0.40821073)
    # With a row for each of the tokenizer's 31,102 pieces only, it would be this many.
    stated = {"model_type": "bert", "vocab_size": 31102}
    model = build(ModelConfig(vision_tower=PAPER["vision_tower"], text_config=stated), loss="x")
    assert count(model) == 198_170_113


@pytest.mark.parametrize(
    ("vision", "text", "dim", "expected"),
    [
        # vision tower + its projection + text tower + its projection + scale
        (
            "openai/clip-vit-base-patch16",
            "bert-base-multilingual-cased",
            512,
            85_799_424 + 768 * 512 + 177_853_440 + 768 * 512 + 1,
        ),
        (
            "openai/clip-vit-large-patch14",
            "FacebookAI/roberta-base",
            768,
            303_179_776 + 1024 * 768 + 124_645_632 + 768 * 768 + 1,
        ),
        (
            "google/vit-base-patch16-224-in21k",
            "FacebookAI/xlm-roberta-base",
            512,
            86_389_248 + 768 * 512 + 278_043_648 + 768 * 512 + 1,
        ),
    ],
    ids=["B/16 mBERT", "L/14 RoBERTa", "ViT XLM-R"],
)
def test_other_known_towers(no_hub, vision, text, dim, expected):
    config = ModelConfig(vision_tower=vision, text_tower=text, projection_dim=dim)
    assert count(build(config, loss="infonce")) == expected


def test_every_known_checkpoint_has_a_kind():
    assert {row["model_type"] for row in ARCHITECTURES.values()} <= set(KINDS)
    for name, row in ARCHITECTURES.items():
        if KINDS[row["model_type"]].side == "vision":
            assert len(row["image_mean"]) == len(row["image_std"]) == 3, name


def test_processor(tmp_path, caplog):
    def mean(name, processor):
        path = write_folder(tmp_path / name, TINY_CLIP, processor=processor)
        model = tiny_model(vision_tower=path, vision_config=None)
        return model.image_mean, model.image_std

    assert mean("plain", {"do_normalize": False}) == ((0, 0, 0), (1, 1, 1))
    assert not caplog.records
    clip = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    assert mean("none", None) == clip
    assert "no preprocessor_config.json" in caplog.text
    with pytest.raises(ConfigError, match=r"rescale_factor 1.0 is not allowed; give 1/255"):
        mean("bytes", {**PROCESSOR, "rescale_factor": 1.0})
    assert tiny_model().image_mean == (0.5, 0.5, 0.5)  # ViT's processor


def test_stated_configuration_must_describe_the_tower(tmp_path, no_hub):
    wide = {**TINY_BERT, "hidden_size": 64, "vocab_size": 50}
    path = write_folder(tmp_path / "bert", TINY_BERT)
    differ = "text_config does not describe .* hidden_size is 32, not 64; vocab_size is 99, not 50"
    with pytest.raises(ConfigError, match=differ):
        tiny_model(text_tower=path, text_config=wide)
    assert tiny_model(text_tower=path, text_config=TINY_BERT).vocab_size == 99
    with pytest.raises(ConfigError, match="vocab_size is 32102, not 31102"):
        stated = {"model_type": "bert", "vocab_size": 31102}
        build(ModelConfig(**PAPER, text_config=stated), loss="infonce")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_config": TINY_BERT}, "vision_tower: model_type 'bert' is not allowed; give vit"),
        ({"text_config": {"model_type": "gpt2"}}, "model_type 'gpt2' is not allowed; give bert, r"),
        ({"text_config": {**TINY_BERT, "hiden_size": 3}}, "text_config: hiden_size: no such field"),
        (
            {"text_config": {**TINY_BERT, "position_embedding_type": "relative_key"}},
            "position_embedding_type must be 'absolute'",
        ),
    ],
    ids=["side", "kind", "typo", "positions"],
)
def test_wrong_configurations_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        tiny_model(**fields)


def fake_hub(monkeypatch, tmp_path, seen, *, online=True):
    """The hub as a folder: `owner/name` → tmp_path/owner/name."""

    def download(name, filename, *, revision):
        seen.append((name, filename, revision))
        if not online:
            raise LocalEntryNotFoundError("no network")
        path = tmp_path / name / filename
        if not path.is_file():
            raise EntryNotFoundError(f"404: {filename}")
        return str(path)

    monkeypatch.setattr(weights, "hf_hub_download", download)


def test_hub_tower_with_its_revision(tmp_path, monkeypatch):
    own, seen = tower_weights("text", TINY_BERT), []
    write_folder(tmp_path / "ada" / "bert", TINY_BERT, flax=own)
    fake_hub(monkeypatch, tmp_path, seen)
    params = tiny_model(text_tower="ada/bert", text_config=None, text_revision="v2").init(0)
    assert_equal_trees(params["text_model"], own)
    assert ("ada/bert", "flax_model.msgpack", "v2") in seen and {row[2] for row in seen} == {"v2"}


def test_hub_must_agree_when_it_is_reached(tmp_path, monkeypatch):
    seen = []
    write_folder(tmp_path / "ada" / "bert", TINY_BERT)
    fake_hub(monkeypatch, tmp_path, seen)
    model = tiny_model(text_tower="ada/bert", text_config={**TINY_BERT, "vocab_size": 50})
    assert model.shapes() and not seen  # planning needs no hub
    with pytest.raises(
        ConfigError, match=r"text_tower does not describe 'ada/bert'.* is 99, not 50"
    ):
        model.init(0)
    # A known name whose hub configuration has changed, and pixel constants not as stated.
    shutil.copytree(tmp_path / "ada" / "bert", tmp_path / PAPER["text_tower"])
    with pytest.raises(ConfigError, match="vocab_size is 99, not 32102"):
        tiny_model(text_tower=PAPER["text_tower"], text_config=None).init(0)
    write_folder(tmp_path / "ada" / "vit", TINY_VIT)
    with pytest.raises(
        ConfigError, match=r"image_mean is \(0.1, 0.2, 0.3\), not \(0.5, 0.5, 0.5\)"
    ):
        tiny_model(vision_tower="ada/vit").init(0)


def test_hub_out_of_reach(tmp_path, monkeypatch):
    fake_hub(monkeypatch, tmp_path, [], online=False)
    with pytest.raises(
        ConfigError, match=r"text_tower = 'ada/bert' is no folder here.* no network"
    ):
        tiny_model(text_tower="ada/bert", text_config=None)
    model = tiny_model(text_tower="ada/bert")
    with pytest.raises(ConfigError, match="no network"):
        model.init(0)


def test_random_start():
    model = tiny_model()
    params = model.init(7)
    assert_equal_trees(params, model.init(7))
    flat, other = (flatten_dict(tree, sep=".") for tree in (params, model.init(8)))
    for name, value in flat.items():
        leaf = name.rpartition(".")[2]
        if leaf in ("bias", "scale"):
            assert (value == (leaf == "scale")).all(), name
        elif name != "logit_scale":
            spread = np.sqrt(np.mean(np.square(value)))
            assert abs(spread - 0.02) < 0.02 * 3 / np.sqrt(2 * value.size), name
            assert (value != other[name]).all(), name
    draws = [flat[f"{side}_projection.kernel"] for side in ("visual", "text")]
    assert (draws[0] != draws[1]).all()
    wider = tiny_model(vision_config={**TINY_VIT, "initializer_range": 0.1}).init(7)
    kernel = wider["vision_model"]["pooler"]["dense"]["kernel"]
    np.testing.assert_allclose(
        kernel, 5 * params["vision_model"]["pooler"]["dense"]["kernel"], rtol=1e-5
    )


def test_configurations_are_plain_json():
    for config in (tiny_model().vision_config, tiny_model().text_config):
        assert json.loads(config.to_json_string())["hidden_size"] == 32
