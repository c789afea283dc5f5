"""Flags, config files, validation and the fields that make up a run's identity."""

import ast
import dataclasses
import inspect
import re

import pytest

from clip_italian.config import (
    FREE_FIELDS,
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimConfig,
    Segment,
    TrainConfig,
    identity,
    leaves,
    resolve,
)
from clip_italian.flags import dump, load, parse, validate

TOWERS = ["--vision_tower", "some/vit", "--text_tower", "some/bert"]
FROM_SCRATCH = Config(
    model=ModelConfig(
        vision_config={"model_type": "vit", "hidden_size": 8}, text_config={"model_type": "bert"}
    )
)
FILE_ONLY = {
    "image_size",
    "vision_config", "text_config", "prefetch", "segments", "b1", "b2", "class_names",
    "eval_language",
    "logit_scale_max", "logit_bias", "vision_revision", "text_revision", "patch_dropout",
    "length_groups", "layer_decay", "rewind",
}  # fmt: skip


def change(config: Config, **values) -> Config:
    """The config with some leaves replaced, whatever section they are in."""
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        own = {field.name for field in dataclasses.fields(part)} & set(values)
        part = dataclasses.replace(part, **{name: values.pop(name) for name in own})
        config = dataclasses.replace(config, **{section.name: part})
    assert not values
    return config


def test_flat_flags_set_nested_fields():
    flags = ["--learning_rate", "3e-4", "--steps", "7", "--flip", "--vision_thaw_step", "None"]
    run = parse([*TOWERS, *flags, "--sources", "a", "b", "--weights", "1", "0.5"]).run
    assert run.optim.learning_rate == 3e-4
    assert run.train.steps == 7
    assert run.data.flip is True
    assert run.optim.vision_thaw_step is None
    assert run.data.sources == ("a", "b")
    assert run.data.weights == (1.0, 0.5)


def test_fields_that_rest_on_others_are_filled():
    flags = ["--learning_rate", "2e-3", "--text_learning_rate", "1e-5", "--steps", "30"]
    run = parse([*TOWERS, *flags, "--sources", "a", "b"]).run
    assert run.optim.vision_learning_rate == 2e-3
    assert run.optim.text_learning_rate == 1e-5
    assert run.optim.projection_learning_rate == 2e-3
    assert run.optim.decay_steps == 30
    assert run.data.weights == (1.0, 1.0)
    assert run.model.tokenizer == "some/bert"
    assert resolve(run) == run


def test_names_of_fields_are_unique():
    names = [name for name, _ in leaves(Config())]
    assert len(names) == len(set(names))
    assert not {"config", "dry_run", "run"} & set(names)


@pytest.mark.parametrize("flag", ["--config PATH", "--config=PATH"])
def test_flags_override_the_config_file(tmp_path, flag):
    path = tmp_path / "experiment.py"
    path.write_text(
        "from clip_italian.config import Config, ModelConfig, TrainConfig\n"
        "config = Config(\n"
        '    model=ModelConfig(vision_config={"model_type": "vit"}, text_tower="some/bert"),\n'
        "    train=TrainConfig(steps=11, seed=5),\n)\n"
    )
    arguments = parse([*flag.replace("PATH", str(path)).split(), "--seed", "6", "--dry_run"])
    assert arguments.config == str(path)
    assert arguments.dry_run is True
    assert arguments.run.model.vision_config == {"model_type": "vit"}
    assert (arguments.run.train.steps, arguments.run.train.seed) == (11, 6)


def test_dump_is_a_config_file_that_loads_to_an_equal_config(tmp_path):
    segments = (Segment("text", 0, 1e-5, 10, 100), Segment("projection", 50, 5e-5, 0, 50))
    tower = {"model_type": "vit", "layers": [1, 2], "nested": {"activation": "gelu"}, "none": None}
    config = resolve(
        Config(
            model=ModelConfig(vision_config=tower, text_tower='l\'à/"b"', dropout=0.1),
            data=DataConfig(sources=("wit", "il_post"), weights=(1.0, 3.3e-7)),
            optim=OptimConfig(segments=segments, clip_norm=1.0),
            train=TrainConfig(workdir="gs://bucket/run7"),
        )
    )
    path = tmp_path / "config.py"
    path.write_text(dump(config), encoding="utf-8")
    assert load(str(path)) == config
    assert parse(["--config", str(path)]).run == config


def test_config_file_that_is_absent_or_defines_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no such file: .*absent\.py"):
        load(str(tmp_path / "absent.py"))
    (tmp_path / "empty.py").write_text("configuration = 1\n")
    with pytest.raises(ConfigError, match=r"empty\.py must define `config = Config"):
        load(str(tmp_path / "empty.py"))


def test_wrong_flag_exits_with_2_and_suggests_the_right_one(capsys):
    with pytest.raises(SystemExit) as stop:
        parse([*TOWERS, "--learning_rat", "1e-4"])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "--learning_rat," in message
    assert "Perhaps you meant" in message
    assert "--learning_rate FLOAT" in message


@pytest.mark.parametrize(
    ("flag", "value", "allowed"), [("--steps", "many", "INT"), ("--dtype", "float16", "bfloat16")]
)
def test_value_of_the_wrong_type_exits_with_2(capsys, flag, value, allowed):
    with pytest.raises(SystemExit) as stop:
        parse([*TOWERS, flag, value])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in (flag, value, allowed))


@pytest.fixture
def help_text(capsys, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_has_every_flag_and_no_more(help_text):
    flags = set(re.findall(r"^[│ ] --(\w+)", help_text, flags=re.MULTILINE))
    assert flags == {name for name, _ in leaves(Config())} - FILE_ONLY | {"config", "dry_run"}
    assert len(flags) <= 57


def test_help_says_the_sentence_and_the_default_of_a_flag(help_text):
    words = " ".join(help_text.replace("│", " ").split())
    assert "--batch_size INT Pairs per step over all devices of all hosts. (default: 256)" in words


def docstring_of_fields(cls: type) -> dict[str, str]:
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, below in zip(body.body, [*body.body[1:], ast.Pass()], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = below.value if isinstance(below, ast.Expr) else None
            docs[field.target.id] = str(text.value) if isinstance(text, ast.Constant) else ""
    return docs


@pytest.mark.parametrize("section", [field.name for field in dataclasses.fields(Config)])
def test_every_field_is_documented(section):
    for name, text in docstring_of_fields(type(getattr(Config(), section))).items():
        assert re.fullmatch(r"[A-Za-z][\s\S]{15,}[.)]", text), f"{name}: {text!r}"
        assert text.startswith("Config file only: ") == (name in FILE_ONLY), name


def test_segment_documents_every_attribute():
    for field in dataclasses.fields(Segment):
        assert f"\n      {field.name}: " in str(Segment.__doc__)


def test_a_sound_config_passes():
    validate(resolve(FROM_SCRATCH))


def test_towers_are_required():
    with pytest.raises(ConfigError, match=r"^vision_tower is empty and vision_config is not set"):
        validate(resolve(Config()))
    with pytest.raises(ConfigError, match=r"^text_tower is empty and text_config is not set"):
        validate(resolve(Config(model=ModelConfig(vision_tower="some/vit"))))


POSITIVE = """projection_dim logit_scale logit_scale_max max_length reader_threads prefetch steps
    batch_size log_every save_every keep_checkpoints eval_every eval_batch_size learning_rate
    length_groups layer_decay"""
NOT_NEGATIVE = """vision_learning_rate text_learning_rate projection_learning_rate warmup_steps
    decay_steps vision_thaw_step text_thaw_step weight_decay agc_clip clip_norm eval_images seed
    cached_views micro_batch"""
WRONG = [
    # field, value, what the message allows, other fields needed to get there
    *((name, 0, "a number above 0", {}) for name in POSITIVE.split()),
    *((name, -1, "0 or more", {}) for name in NOT_NEGATIVE.split()),
    ("dropout", 1.0, "0 ≤ value < 1", {}),
    ("b1", -0.1, "0 ≤ value < 1", {}),
    ("b2", 1.5, "0 ≤ value < 1", {}),
    ("ema_decay", 1.0, "0 ≤ value < 1", {}),
    ("patch_dropout", 1.0, "0 ≤ value < 1", {}),
    ("layer_decay", 1.1, "0 < value ≤ 1", {}),
    ("cached_views", 2, "1: without augmentation", {}),
    ("cached_views", 1, "0, or freeze a tower: both move from the first step", {}),
    ("micro_batch", 48, "0 or a divisor of batch_size (256)", {}),
    ("shard_params", True, "it with --parallel mesh only", {"parallel": "pmap"}),
    ("logit_bias", float("nan"), "a finite number", {}),
    ("learning_rate", float("inf"), "a finite number", {}),
    ("agc_clip", float("inf"), "a finite number", {}),
    ("vision_config", {"hidden_size": 8}, "with its model_type", {}),
    ("text_config", {}, "with its model_type", {"text_tower": "some/bert"}),
    ("sources", (), "at least one source", {}),
    ("sources", ("a", "a"), "each source once", {}),
    ("weights", (1.0, 2.0), "one weight for each of the 1 sources ('sample',)", {}),
    ("weights", (0.0,), "weights above 0", {}),
    ("vision_thaw_step", 95, "thaw + warmup_steps ≤ decay_steps (100)", {"warmup_steps": 6}),
    ("text_thaw_step", 101, "or None", {}),
    ("segments", (Segment("head", 0, 1e-4, 0, 9),), "a group out of ('vision', 'text',", {}),
    ("segments", (Segment("text", -1, 1e-4, 0, 9),), "start_step ≥ 0", {}),
    ("segments", (Segment("text", 0, -1e-4, 0, 9),), "learning_rate ≥ 0", {}),
    ("segments", (Segment("text", 0, 1e-4, 10, 9),), "warmup_steps ≤ decay_steps", {}),
]


@pytest.mark.parametrize(("field", "value", "allowed", "others"), WRONG)
def test_error_names_field_value_and_what_is_allowed(field, value, allowed, others):
    sound = {"steps": 100, "decay_steps": 100}
    config = change(resolve(FROM_SCRATCH), **(sound | others | {field: value}))
    with pytest.raises(ConfigError) as error:
        validate(config)
    message = str(error.value)
    shown = value[0] if field == "segments" else value
    assert message.startswith(f"{field} = {shown!r} is not allowed; give ")
    assert allowed in message


def test_wrong_value_at_the_shell_is_refused_with_its_name():
    with pytest.raises(ConfigError, match=r"^batch_size = -4 is not allowed; give a number above"):
        parse([*TOWERS, "--batch_size", "-4"])


def test_last_step_that_a_thaw_may_have():
    validate(change(resolve(FROM_SCRATCH), decay_steps=100, text_thaw_step=90, warmup_steps=10))


def test_identity_is_model_data_order_and_optimizer():
    names = set(identity(Config()))
    assert names == {
        "init_from", "vision_tower", "text_tower", "vision_revision", "text_revision",
        "vision_config", "text_config", "tokenizer", "image_size",
        "projection_dim", "dtype", "dropout", "logit_scale",
        "learn_logit_scale", "logit_scale_max", "logit_bias", "sources", "weights", "max_length",
        "augment", "flip", "loss", "mask_duplicates", "optimizer", "learning_rate",
        "vision_learning_rate", "text_learning_rate", "projection_learning_rate", "schedule",
        "warmup_steps", "decay_steps", "vision_thaw_step", "text_thaw_step", "segments", "b1",
        "b2", "weight_decay", "agc_clip", "clip_norm", "batch_size", "seed", "patch_dropout",
        "cached_views", "layer_decay", "ema_decay",
    }  # fmt: skip
    assert names | FREE_FIELDS == {name for name, _ in leaves(Config())}


def test_identity_tells_runs_apart():
    run = resolve(FROM_SCRATCH)
    assert identity(change(run, steps=5, workdir="b", parallel="pmap")) == identity(run)
    assert identity(change(run, seed=1)) != identity(run)
