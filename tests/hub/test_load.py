"""Runs as training leaves them: tiny towers, random weights, no training."""

import copy
import dataclasses
import io
import json
import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from PIL import Image

from clip_italian import flags
from clip_italian.batch import TokenGroup
from clip_italian.config import Config, ConfigError, DataConfig, ModelConfig, TrainConfig, resolve
from clip_italian.hub.load import RunEncoder, load_run
from clip_italian.model.towers import build
from clip_italian.training import manifest
from clip_italian.training.checkpoint import FORMAT_VERSION, Checkpoints
from clip_italian.training.parallel import make_parallel
from clip_italian.training.step import TrainState
from tests.data.conftest import make_tokenizer
from tests.model.checkpoints import assert_equal_trees, random_like
from tests.tiny import TINY_BERT, TINY_VIT

SCORES = {2: 0.5, 4: 0.75, 6: None}  # step → best_metric; the last one was not evaluated
TEXTS = ["un gatto", "un cane nero dorme", "un", "gatto gatto", "nero"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with three checkpoints, its config, and the parameters of each."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    words = folder.parent / "tokenizer"
    make_tokenizer().save_pretrained(words)
    config = resolve(
        Config(
            model=ModelConfig(
                vision_config=TINY_VIT,
                text_config={**TINY_BERT, "vocab_size": 9},
                projection_dim=16,
                tokenizer=str(words),
            ),
            data=DataConfig(max_length=8, reader_threads=2),
            train=TrainConfig(workdir=str(folder), steps=6, keep_checkpoints=3),
        )
    )
    model = build(config.model, loss="infonce")
    checkpoints = Checkpoints(config, "data")
    params = {}
    for step, score in SCORES.items():
        params[step] = random_like(model.shapes(), seed=step)
        moments = {"vision": {"mu": np.ones((1000, 1000), np.float32)}}
        state = TrainState(np.int32(step), params[step], moments, np.zeros(2, np.uint32))
        metrics = None if score is None else {config.eval.best_metric: score}
        checkpoints.save(state, metrics)
    checkpoints.close()
    (folder / "config.py").write_text(flags.dump(config))
    return folder, config, params


@pytest.fixture(scope="module")
def encoder(run):
    return RunEncoder(load_run(str(run[0])), batch_size=3)


def files(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("suffix", "step"),
    [("", 6), ("@best", 4), ("@2", 2), ("/checkpoints/2", 2), ("/", 6)],
)
def test_the_chosen_checkpoint_is_loaded(run, suffix, step):
    folder, config, params = run
    loaded = load_run(f"{folder}{suffix}")
    assert (loaded.step, loaded.name) == (step, f"tiny@{step}")
    assert loaded.config == config
    assert loaded.model.image_size == 32
    assert_equal_trees(loaded.params, params[step])
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(loaded.params))
    assert loaded.tokenizer("un gatto")["input_ids"] == [2, 4, 5, 3]


def test_loading_changes_no_file(run):
    folder, _, _ = run
    unfinished = folder / "checkpoints" / "8.orbax-checkpoint-tmp-1"
    unfinished.mkdir()
    before = files(folder)
    assert load_run(str(folder)).step == 6
    assert files(folder) == before
    unfinished.rmdir()


def test_the_optimizer_state_is_not_read(run, monkeypatch):
    folder, _, _ = run
    whole = ocp.PyTreeCheckpointer().metadata(folder / "checkpoints" / "6" / "state")
    assert "opt_state" in str(whole), "there is one to leave out"
    restored = []
    restore = ocp.CheckpointManager.restore

    def spy(self, *args, **kwargs):
        restored.append(restore(self, *args, **kwargs))
        return restored[-1]

    monkeypatch.setattr(ocp.CheckpointManager, "restore", spy)
    load_run(str(folder))
    states = [found["state"] for found in restored if found.get("state") is not None]
    assert [set(state) for state in states] == [{"params"}]


def test_relative_paths(run, monkeypatch):
    folder, _, params = run
    monkeypatch.chdir(folder.parent)
    assert_equal_trees(load_run("tiny@2").params, params[2])
    monkeypatch.chdir(folder)
    assert load_run(".").name == "tiny@6"


def test_a_relative_tokenizer_is_found_from_where_training_was_started(run, tmp_path, monkeypatch):
    folder, config, _ = run
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "checkpoints").symlink_to(folder / "checkpoints")
    model = dataclasses.replace(config.model, tokenizer="tokenizer")
    (moved / "config.py").write_text(flags.dump(dataclasses.replace(config, model=model)))
    monkeypatch.chdir(tmp_path)
    # The checkpoint, too, says which tokenizer the run had.
    rewrite(moved, folder, "tokenizer", "tokenizer")
    with pytest.raises(ConfigError, match="tokenizer = 'tokenizer' cannot be loaded(?s:.*)started"):
        load_run(str(moved))
    assert load_run(str(moved), tokenizer=str(folder.parent / "tokenizer")).step == 6
    monkeypatch.chdir(folder.parent)
    assert load_run(str(moved)).step == 6


def rewrite(moved, folder, name, value, version=FORMAT_VERSION):
    """Gives `moved` checkpoints of its own, links but for what they say of the run, and sealed."""
    (moved / "checkpoints").unlink(missing_ok=True)
    for step in ("2", "4", "6"):
        target = moved / "checkpoints" / step
        target.mkdir(parents=True)
        for path in (folder / "checkpoints" / step).iterdir():
            if path.name not in ("run", manifest.NAME):
                os.symlink(path, target / path.name)
        (target / "run").mkdir()
        for path in (folder / "checkpoints" / step / "run").iterdir():
            text = path.read_text()
            if path.name == "metadata":
                said = json.loads(text)
                said["config"][name] = value
                said["format_version"] = version
                text = json.dumps(said)
            (target / "run" / path.name).write_text(text)
        manifest.write(epath.Path(target))


@pytest.mark.parametrize(
    ("name", "value", "version", "message"),
    [
        ("max_length", 16, 2, "does not belong to the config.py beside it: max_length differ"),
        ("steps", 7, 3, "written by a newer version .checkpoint format 3, .* up to 2"),
        ("steps", 7, 2, None),
        ("steps", 7, 1, None),
    ],
)
def test_what_the_checkpoint_says_of_itself_is_checked(
    run, tmp_path, name, value, version, message
):
    folder, _, _ = run
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "config.py").write_text((folder / "config.py").read_text())
    rewrite(moved, folder, name, value, version)
    if message is None:
        assert load_run(str(moved)).step == 6
        return
    with pytest.raises(ConfigError, match=f"moved, step 6 .*{message}"):
        load_run(str(moved))


def damage(folder, step):
    """Flips a bit in the arrays of a checkpoint."""
    place = folder / "checkpoints" / str(step) / "state" / "d"
    largest = max(place.iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def test_a_damaged_checkpoint_is_not_loaded(run, tmp_path, caplog):
    copy = tmp_path / "tiny"
    shutil.copytree(run[0], copy)
    damage(copy, 6)
    before = files(copy)
    assert load_run(str(copy)).name == "tiny@4"
    assert "step 6 in" in caplog.text and "is DAMAGED and is not used" in caplog.text
    assert "the checkpoint of step 4 is used instead" in caplog.text
    with pytest.raises(ConfigError, match="step 6 in .* is DAMAGED: state/d/.* other contents"):
        load_run(f"{copy}@6")
    damage(copy, 4)
    with pytest.raises(ConfigError, match="step 4 in .* is DAMAGED"):
        load_run(f"{copy}@best")
    assert load_run(str(copy)).name == "tiny@2"
    damage(copy, 2)
    with pytest.raises(ConfigError, match=r"all checkpoints of .* are DAMAGED: steps \[2, 4, 6\]"):
        load_run(str(copy))
    assert files(copy) == before
    # Where the values cannot be believed, which is the best one cannot be said.
    shutil.rmtree(copy)
    shutil.copytree(run[0], copy)
    (copy / "checkpoints" / "2" / "metrics" / "metrics").write_text("{}")
    with pytest.raises(ConfigError, match="step 2 in .* is DAMAGED: metrics/metrics has 2 bytes"):
        load_run(f"{copy}@best")


def test_a_checkpoint_without_manifest_loads_with_a_warning(run, tmp_path, caplog):
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "config.py").write_text((run[0] / "config.py").read_text())
    rewrite(moved, run[0], "steps", 7, version=1)
    for step in ("2", "4", "6"):
        (moved / "checkpoints" / step / manifest.NAME).unlink()
    assert load_run(str(moved)).step == 6
    assert "cannot be known" in caplog.text and "DAMAGED" not in caplog.text


def test_what_is_missing_is_named(run, tmp_path):
    folder, _, _ = run
    with pytest.raises(ConfigError, match=r"no such file: .*none/config\.py"):
        load_run(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"no checkpoint of step 5; it has \[2, 4, 6\]"):
        load_run(f"{folder}@5")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.py").write_text((folder / "config.py").read_text())
    with pytest.raises(ConfigError, match="bare holds no folder `checkpoints`"):
        load_run(str(bare))
    (bare / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="bare holds no whole checkpoint"):
        load_run(str(bare))
    with pytest.raises(ConfigError, match="no checkpoint has been evaluated by 'text_to_image"):
        load_run(f"{bare}@best")


def test_a_tokenizer_of_another_model_is_refused(run, tmp_path):
    larger = make_tokenizer()
    larger.add_tokens(["verde"])
    larger.save_pretrained(tmp_path / "larger")
    with pytest.raises(ConfigError, match="ids up to 9, but the text tower has 9"):
        load_run(str(run[0]), tokenizer=str(tmp_path / "larger"))


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_images_are_embedded_as_the_model_does(run, encoder):
    _, config, params = run
    pixels = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3)).astype(np.uint8)
    asked = []

    def read(numbers):
        asked.extend(numbers.tolist())
        return [png(pixels[number]) for number in numbers]

    embeds = encoder.encode_images(read, [str(i) for i in range(11)])
    assert sorted(asked) == list(range(11)), "each image is read once"
    model = build(config.model, loss="infonce")
    expected = np.asarray(jax.jit(model.encode_image)(params[6], pixels))
    assert embeds.dtype == np.float32
    np.testing.assert_allclose(embeds, expected, atol=1e-5)
    assert np.abs(expected - expected[0]).max() > 0.05, "images can be told apart"


def test_texts_are_embedded_as_the_model_does(run, encoder):
    _, config, params = run
    texts = TEXTS * 3  # 15: more than one batch, and a tail
    embeds = encoder.encode_texts(texts)
    tokens = make_tokenizer()(texts, padding="max_length", max_length=8, return_tensors="np")
    group = TokenGroup(*(np.int32(tokens[name]) for name in ("input_ids", "attention_mask")))
    model = build(config.model, loss="infonce")
    expected = np.asarray(jax.jit(model.encode_text)(params[6], group))
    np.testing.assert_allclose(embeds, expected, atol=1e-5)
    assert np.abs(expected[1:5] - expected[0]).max(axis=1).min() > 0.01


@pytest.mark.parametrize("images", [1, 8, 11])
def test_pixels_are_embedded_as_images_are(encoder, images):
    pixels = np.random.default_rng(1).integers(0, 256, (images, 32, 32, 3)).astype(np.uint8)
    names = [str(i) for i in range(images)]
    expected = encoder.encode_images(lambda some: [png(pixels[i]) for i in some], names)
    embeds = encoder.encode_pixels(pixels)
    assert embeds.dtype == np.float32
    np.testing.assert_allclose(embeds, expected, atol=1e-6)


def test_patches_are_embedded_as_the_model_does(run, encoder):
    _, config, params = run
    pixels = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3)).astype(np.uint8)
    model = build(config.model, loss="infonce")
    expected = np.asarray(jax.jit(model.encode_patches)(params[6], pixels))
    embeds = encoder.patch_embeds(pixels)
    assert embeds.shape == (11, 2, 2, 16) and embeds.dtype == np.float32
    np.testing.assert_allclose(embeds, expected, atol=1e-5)
    assert np.abs(expected - expected[0, 0, 0]).max() > 0.02, "patches can be told apart"


@pytest.mark.parametrize("method", ["encode_pixels", "patch_embeds"])
def test_pixels_of_another_shape_are_refused(encoder, method):
    take = getattr(encoder, method)
    with pytest.raises(ConfigError, match=r"takes uint8 \[n, 32, 32, 3\]"):
        take(np.zeros((2, 16, 16, 3), np.uint8))
    with pytest.raises(ConfigError, match="pixel_values are float32"):
        take(np.zeros((2, 32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="nothing to encode"):
        take(np.zeros((0, 32, 32, 3), np.uint8))


def test_tokens_are_counted_whole(encoder):
    texts = ["", "un gatto", "un cane " * 20, "un cane nero dorme"]
    counts = encoder.token_counts(texts)
    assert counts.tolist() == [2, 4, 42, 6] and counts.dtype == np.int64
    assert encoder.max_length == 8 and encoder.token_counts([]).shape == (0,)
    np.testing.assert_array_equal(*encoder.encode_texts([texts[2], "un cane " * 3]))


def test_an_encoder_says_its_scale_and_bias(run, encoder):
    _, _, params = run
    assert encoder.image_size == 32 and encoder.logit_bias is None
    assert encoder.logit_scale == pytest.approx(np.exp(params[6]["logit_scale"]))
    loaded = load_run(str(run[0]))
    numbers = {"logit_scale": np.log(np.float32(7)), "logit_bias": np.float32(-3)}
    sigmoid = RunEncoder(dataclasses.replace(loaded, params=loaded.params | numbers))
    assert sigmoid.logit_scale == pytest.approx(7) and sigmoid.logit_bias == -3
    assert {type(sigmoid.logit_scale), type(sigmoid.logit_bias)} == {float}


def test_parameters_on_the_devices_are_not_copied(run):
    loaded = load_run(str(run[0]))
    params = make_parallel("mesh").replicate(loaded.params)
    loaded = dataclasses.replace(loaded, params=params)
    pointers = [
        [
            shard.data.unsafe_buffer_pointer()
            for leaf in jax.tree.leaves(tree)
            for shard in leaf.addressable_shards
        ]
        for tree in (params, RunEncoder(loaded)._params, RunEncoder(loaded)._params)
    ]
    assert pointers[0] == pointers[1] == pointers[2]


def test_a_broken_image_is_named(encoder):
    with pytest.raises(ConfigError, match="'second' cannot be decoded"):
        encoder.encode_images(lambda numbers: [b"no image"] * len(numbers), ["second"])


def test_the_fingerprint_covers_what_decides_the_embeddings(run):
    folder, _, _ = run
    loaded = load_run(str(folder))

    def changed(part, **fields):
        section = dataclasses.replace(getattr(loaded.config, part), **fields)
        return dataclasses.replace(
            loaded, config=dataclasses.replace(loaded.config, **{part: section})
        )

    other_words = make_tokenizer()
    other_words.add_tokens(["verde"])
    module = dataclasses.replace(loaded.model.module, image_mean=(0.1, 0.2, 0.3))

    def acting(side):
        tower = copy.deepcopy(getattr(loaded.model, f"{side}_config"))
        tower.hidden_act = "relu"
        model = dataclasses.replace(loaded.model, **{f"{side}_config": tower})
        return dataclasses.replace(loaded, model=model)

    different = [
        acting("vision"),
        acting("text"),
        load_run(f"{folder}@4"),
        dataclasses.replace(loaded, tokenizer=other_words),
        dataclasses.replace(loaded, model=dataclasses.replace(loaded.model, module=module)),
        changed("data", max_length=7),
        changed("model", dtype="bfloat16"),
    ]
    equal = [
        load_run(str(folder)),
        changed("train", steps=7),
        changed("eval", eval_batch_size=8),
        dataclasses.replace(loaded, name="other"),
    ]
    own = RunEncoder(loaded).fingerprint
    assert {RunEncoder(one).fingerprint for one in equal} == {own}
    fingerprints = [RunEncoder(one).fingerprint for one in different]
    assert len({own, *fingerprints}) == 8 and len(own) == 64
