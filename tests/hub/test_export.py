"""The exported folder: its files, and what reads them without PyTorch."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from flax.serialization import msgpack_restore
from safetensors import safe_open
from transformers import AutoTokenizer, CLIPImageProcessor

from clip_italian import flags
from clip_italian.config import ConfigError
from clip_italian.evaluation.encoders import is_run
from clip_italian.hub import export, readers, verify
from clip_italian.hub.load import load_model, load_pretrained
from clip_italian.hub.torch_layout import to_pytorch
from tests.hub.exports import collection, tiny_loaded
from tests.model.checkpoints import assert_equal_trees
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


def written(folder, loaded):
    folder.mkdir()
    export.write(folder, loaded)
    return folder


@pytest.fixture(scope="module")
def loaded():
    return tiny_loaded()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, loaded):
    return written(tmp_path_factory.mktemp("export") / "tiny", loaded)


def tensors(folder):
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses a file without
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_torch_layout():
    """Numbers worked out by hand: [in, out] → [out, in]; [height, width, in, out] → OIHW."""
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    filters = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    tree = {
        "a": {"kernel": kernel, "bias": kernel[0]},
        "conv": {"kernel": filters},
        "norm": {"scale": kernel[0], "bias": kernel[1]},
        "table": {"embedding": kernel},
        "layer_scale1": {"lambda1": kernel[0]},
        "logit_scale": np.float32(3),
    }
    found = to_pytorch(tree)
    assert set(found) == {
        "a.weight", "a.bias", "conv.weight", "norm.weight", "norm.bias", "table.weight",
        "layer_scale1.lambda1", "logit_scale",
    }  # fmt: skip
    assert found["a.weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["conv.weight"].shape == (4, 3, 1, 2)
    assert found["conv.weight"][1, 2, 0, 1] == filters[0, 1, 2, 1]
    assert found["table.weight"].tolist() == kernel.tolist()
    assert found["logit_scale"].shape == ()
    assert all(array.flags.c_contiguous for array in found.values())


def test_files_and_both_layouts_of_the_weights(folder, loaded):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json", "model.safetensors", "flax_model.msgpack", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json",
        "training_config.py",
    }  # fmt: skip
    stored = tensors(folder)
    assert_equal_trees(stored, to_pytorch(loaded.params))
    assert all(array.dtype == np.float32 for array in stored.values())
    assert stored["logit_scale"].shape == () and stored["logit_scale"] == np.float32(np.log(20))
    flax = msgpack_restore((folder / "flax_model.msgpack").read_bytes())
    assert_equal_trees(flax, loaded.params)


def test_all_files_may_be_read_by_the_same_people(folder):
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_configuration(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "vision-text-dual-encoder"
    assert config["architectures"] == ["VisionTextDualEncoderModel"]
    assert (config["projection_dim"], config["dtype"]) == (16, "float32")
    assert config["logit_scale_init_value"] == pytest.approx(np.log(20))
    assert config["vision_config"]["model_type"] == "vit"
    assert config["vision_config"]["layer_norm_eps"] == 1e-12
    assert config["text_config"]["vocab_size"] == 9
    assert config["text_config"]["pad_token_id"] == 0
    assert "logit_bias" not in config
    # Neither how to generate text, nor what only this program knows.
    assert not {"top_k", "image_mean", "_name_or_path"} & {*config["vision_config"], *config}


def test_tokenizer_cuts_where_training_did_and_pictures_are_read_as_in_evaluation(folder, loaded):
    loaded.tokenizer(["un gatto"], padding="max_length", max_length=5, truncation=True)
    again = written(folder.parent / "after_use", loaded)
    assert (again / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 8
    assert len(tokenizer("un gatto " * 9, truncation=True)["input_ids"]) == 8
    assert tokenizer("un gatto")["input_ids"] == [2, 4, 5, 3]
    processor = CLIPImageProcessor.from_pretrained(folder)
    assert (processor.size, processor.crop_size) == (
        {"shortest_edge": 32},
        {"height": 32, "width": 32},
    )
    assert tuple(processor.image_mean) == loaded.model.image_mean
    said = json.loads((folder / "preprocessor_config.json").read_text())
    assert said["processor_class"] == "VisionTextDualEncoderProcessor"


def test_training_config_is_a_valid_config(folder, loaded):
    assert flags.load(str(folder / "training_config.py")) == loaded.config
    foreign = dataclasses.replace(loaded, step=None)
    other = written(folder.parent / "foreign", foreign)
    assert not (other / "training_config.py").exists()


def test_the_same_model_is_written_as_the_same_bytes(folder, loaded):
    """So that a push that is made again sends nothing again."""
    again = written(folder.parent / "again", loaded)
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        pytest.param(TINY_VIT, TINY_BERT, id="vit-bert"),
        pytest.param(TINY_CLIP, TINY_ROBERTA, id="clip-roberta"),
        pytest.param(TINY_DINOV2, TINY_BERT, id="dinov2-bert"),
        pytest.param(TINY_BEIT, TINY_BERT, id="beit-bert"),
    ],
)
def test_the_folder_is_the_model(tmp_path, vision, text):
    """Read by transformers' Flax class and by us: the same vectors, the same parameters."""
    loaded = tiny_loaded(vision, text)
    folder = written(tmp_path / "m", loaded)
    reference = verify.make_reference(loaded, collection(), 20)
    flax, ours = readers.check_flax(folder, reference)
    for one in (flax, ours):
        verify.require(one, folder)
        assert max(one.image_embeds, one.text_embeds) <= 1e-5 and one.logits <= 1e-4
        assert one.same_top1 == one.pictures == 20
        assert (one.data, one.captions) == ("drawn", 20)
    assert "Flax" in flax.library and "clip_italian" in ours.library
    assert flax.own_image_embeds is not None
    assert flax.own_image_embeds <= 1e-5 and flax.own_same_top1 == 20
    again = load_pretrained(str(folder))
    assert_equal_trees(again.params, loaded.params)
    assert again.config.data.max_length == 8 and again.step is None


def test_verification_sees_another_model(tmp_path, loaded):
    reference = verify.make_reference(loaded, collection(), 20)
    other = written(tmp_path / "m", tiny_loaded(seed=1))
    for one in readers.check_flax(other, reference):
        with pytest.raises(ConfigError, match=r"not the model it was made of: read by .* differ"):
            verify.require(one, other)
    good = verify.compare(
        reference,
        "x",
        lambda _: reference.image_embeds[:16],
        lambda *_: reference.text_embeds,
        20.0,
    )
    assert good.library == "x"
    for bad in (
        {"image_embeds": float("nan")},
        {"text_embeds": 2e-4},
        {"same_top1": 19},
        {"logits": 0.02},
    ):
        with pytest.raises(ConfigError, match="is not the model"):
            verify.require(dataclasses.replace(PERFECT, **bad), other)
    verify.require(PERFECT, other)


PERFECT = verify.Check("x", "drawn", 20, 20, 0.0, 0.0, 0.0, 20)


def test_a_scale_that_is_not_the_models_is_refused(tmp_path, loaded):
    """The best caption is the same, the probabilities are not."""
    reference = verify.make_reference(loaded, collection(), 20)
    params = {**loaded.params, "logit_scale": np.float32(np.log(2.6592))}
    other = written(tmp_path / "m", dataclasses.replace(loaded, params=params))
    for one in readers.check_flax(other, reference):
        assert one.same_top1 == 20 and one.image_embeds < 1e-5
        with pytest.raises(ConfigError, match=r"logits by [\d.]+ .allowed: 0.01."):
            verify.require(one, other)


def test_pictures_that_a_library_reads_in_another_way_are_seen(tmp_path):
    loaded = tiny_loaded()
    folder = written(tmp_path / "m", loaded)
    said = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**said, "image_mean": [0, 0, 0]}))
    flax, _ = readers.check_flax(folder, verify.make_reference(loaded, collection(), 20))
    assert flax.image_embeds <= 1e-5 and flax.own_image_embeds > 0.01


def test_a_model_trained_in_bfloat16_is_exported_in_float32(tmp_path):
    rough = tiny_loaded(dtype="bfloat16")
    loaded = export.exact(rough)
    assert loaded.config == rough.config
    folder = written(tmp_path / "m", loaded)
    reference = verify.make_reference(loaded, collection(), 20)
    assert readers.check_flax(folder, reference)[0].image_embeds <= 1e-5
    own = verify.make_reference(rough, collection(), 20)
    assert np.abs(own.image_embeds - reference.image_embeds).max() > 1e-4


def test_a_model_of_the_sigmoid_loss(tmp_path):
    loaded = tiny_loaded(loss="sigmoid")
    loaded.params["logit_bias"] = np.float32(-9.5)
    folder = written(tmp_path / "m", loaded)
    assert json.loads((folder / "config.json").read_text())["logit_bias"] == -9.5
    # transformers' class has no such parameter: it would be an unexpected key.
    assert "logit_bias" not in tensors(folder)
    assert "logit_bias" not in msgpack_restore((folder / "flax_model.msgpack").read_bytes())
    again = load_model(str(folder))
    assert again.config.loss.loss == "sigmoid" and again.params["logit_bias"] == -9.5


def test_no_code_of_a_downloaded_folder_is_run(folder, tmp_path):
    copied = tmp_path / "downloaded"
    shutil.copytree(folder, copied)
    (copied / "config.py").write_text("raise SystemExit('executed')")
    (copied / "checkpoints").mkdir()
    assert not is_run(str(copied))
    assert load_model(str(copied)).step is None


@pytest.mark.parametrize(
    ("text", "kind"), [(TINY_DISTILBERT, "distilbert"), (TINY_ELECTRA, "electra")]
)
def test_towers_that_the_class_cannot_hold_are_refused(tmp_path, text, kind):
    loaded = tiny_loaded(text=text)
    with pytest.raises(ConfigError, match=rf"a {kind} text tower cannot be exported: .*pooled"):
        written(tmp_path / "m", loaded)
    assert not any((tmp_path / "m").iterdir())


def test_sentence_transformers_files(tmp_path):
    export.write_sentence_transformers(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    assert kinds == ["Transformer", "Normalize"] and modules[0]["path"] == ""
    said = json.loads((tmp_path / "sentence_bert_config.json").read_text())
    assert said["modality_config"]["image"]["method"] == "get_image_features"


def test_captions_that_are_equal_are_asked_once(loaded):
    images = collection(6)
    twice = dataclasses.replace(images, captions=[*images.captions[:3], *images.captions[:3]])
    reference = verify.make_reference(loaded, twice, 6)
    assert len(reference.image_embeds) == 6 and len(reference.text_embeds) == 3
    # In upper case these words are unknown, and one caption is like the other.
    shouted = dataclasses.replace(images, captions=["UN GATTO", "UN CANE"] * 3)
    with pytest.raises(ConfigError, match="6 pictures with 1 different captions"):
        verify.make_reference(loaded, shouted, 6)
    with pytest.raises(ConfigError, match="drawn has 6 pictures with 1 different captions"):
        verify.make_reference(loaded, dataclasses.replace(images, captions=["un"] * 6), 6)
    with pytest.raises(ConfigError, match="drawn has 1 pictures"):
        verify.make_reference(loaded, images, 1)
