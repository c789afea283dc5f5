"""The plan of a run: cost and memory by hand, for a tiny model on eight devices."""

import dataclasses
import re
from types import SimpleNamespace

import pytest

from clip_italian.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    resolve,
)
from clip_italian.training import plan
from clip_italian.training.plan import describe_run
from tests.model import test_flops as flops
from tests.model.checkpoints import tiny_model
from tests.tiny import TINY_BERT, TINY_VIT

WIDE = {"hidden_size": 256, "intermediate_size": 512}
TOWERS = {"vision_config": {**TINY_VIT, **WIDE}, "text_config": {**TINY_BERT, **WIDE}}


def run(steps=10, data=None, train=None, model=None, **optim):
    return resolve(
        Config(
            model=ModelConfig(**TOWERS, **(model or {}), projection_dim=16),
            data=DataConfig(max_length=20, **(data or {})),
            train=TrainConfig(**{"steps": steps, "batch_size": 64, **(train or {})}),
            optim=OptimConfig(**{"vision_thaw_step": 4, **optim}),
        )
    )


@pytest.fixture(scope="module")
def model():
    return tiny_model(**TOWERS)


def phases(config, model, lengths=None):
    """{steps: the cells of its row}."""
    lines = describe_run(config, model, lengths).splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("steps  "))
    rows = [re.split(r"\s{2,}", line) for line in lines[start + 2 : start + 4]]
    return {row[0]: row[1:] for row in rows}


def last_layer(length, queries):
    return flops.last_layer(length, width=256, middle=512, queries=queries)


IMAGE = 2 * 4 * 16 * 16 * 3 * 256 + last_layer(5, queries=5) + 2 * 256**2


def text(length):
    return last_layer(length, queries=1) + 2 * 256**2


def test_flops_are_of_real_tokens_where_the_lengths_are_known(model, monkeypatch):
    monkeypatch.setattr(plan, "_kept_per_pair", lambda *given: float(given[-1]))
    config = run()
    found = phases(config, model)
    # 0.0 GF is all that the table shows of a tiny model, so the exact numbers come from below.
    assert found["0–4"][:2] == ["text, projection", f"{(IMAGE + 3 * text(20)) / 1e9:.1f}"]
    assert found["4–10"][1] == f"{3 * (IMAGE + text(20)) / 1e9:.1f}"
    phase = plan.plan(config)[1][1]
    assert plan._flops(model, phase, set(), 20) == pytest.approx(3 * (IMAGE + text(20)))
    assert plan._flops(model, phase, set(), 7.5) == pytest.approx(3 * (IMAGE + text(7.5)))
    said = describe_run(
        config, model, SimpleNamespace(mean=7.5, padded=9.2, text="Groups: 48 of 8, 16 of 12")
    )
    assert "\n\nGroups: 48 of 8, 16 of 12\n\n" in said
    assert "both towers at 7.5 tokens, the mean" in said
    assert "both towers at 20 tokens, the longest" in describe_run(config, model)
    lengths = []
    monkeypatch.setattr(plan, "_kept_per_pair", lambda *given: lengths.append(given[-1]) or 0.0)
    phases(config, model, SimpleNamespace(mean=7.5, padded=9.2, text=""))
    assert lengths == [9, 9]  # what is kept is kept of padding as well


def test_cached_towers_cost_nothing_until_they_move(model):
    config = run(data={"cached_views": 1}, text_thaw_step=None)
    _, (frozen, moving) = plan.plan(config)
    both = (frozen, moving)
    assert plan._cached(config, both, frozen) == {"vision", "text"}
    assert plan._cached(config, both, moving) == {"text"}
    assert plan._flops(model, frozen, {"vision", "text"}, 20) == 0
    assert plan._flops(model, moving, {"text"}, 20) == 3 * IMAGE
    assert plan._cached(run(), both, frozen) == set()
    # Frozen again, a tower is no longer what its files were made from.
    again = dataclasses.replace(frozen, start=20)
    assert "vision" not in plan._cached(config, (*both, again), again)


def state_bytes(config, model, phase=-1):
    optimizer, all_phases = plan.plan(config)
    return plan._state_bytes(config, model.shapes(), optimizer, all_phases[phase])


def test_the_state_of_one_device(model):
    parameters = 4 * plan._count(model.shapes())
    counts = 8 + 8 + 3 * 4  # the step, the key, and a count of each of three groups
    assert state_bytes(run(), model) == pytest.approx(4 * parameters, abs=counts + 8)
    frozen = state_bytes(run(text_thaw_step=None), model, phase=0)
    projections = 4 * 2 * 256 * 16  # gradients and two moments of these only
    assert frozen == pytest.approx(parameters + 3 * projections, abs=counts)
    average = state_bytes(run(ema_decay=0.99), model) - state_bytes(run(), model)
    assert average == pytest.approx(parameters)
    # An eighth of parameters and moments; parameters and gradients are whole for the step.
    split = state_bytes(run(train={"shard_params": True}), model)
    assert split == pytest.approx(parameters * (3 / 8 + 2), abs=counts)


def test_memory_of_the_batch_is_pictures_ahead_and_one_micro_batch():
    pixels, kept = 3 * 32 * 32, 5000.0
    ahead = 64 * pixels * (2 + 2)  # in use, on its way, and two that wait
    assert plan._batch_bytes(run(), kept, pixels) == (ahead + 64 * kept) / 8
    micro = run(train={"micro_batch": 16})
    assert plan._batch_bytes(micro, kept, pixels) == (ahead + 16 * kept) / 8


def test_less_is_kept_where_layers_are_computed_again():
    config = run()
    model, remat = (
        tiny_model(**{side: {**own, "num_hidden_layers": 3} for side, own in TOWERS.items()}, **how)
        for how in ({}, {"remat": "full"})
    )
    optimizer, all_phases = plan.plan(config)

    def kept(model):
        return plan._kept_per_pair(model.shapes(), model, optimizer, all_phases[-1], 20)

    assert kept(remat) < kept(model) / 3
    # The input of each layer: 5 patches and 20 tokens of 256 numbers, and what is outside layers.
    assert kept(remat) > 3 * 25 * 256 * 4


def test_layer_decay_is_shown_for_towers_that_move(model):
    said = describe_run(run(layer_decay=0.5, text_thaw_step=None), model)
    rows = said[said.index("learning rate times") :].splitlines()
    assert [re.split(r"\s{2,}", row) for row in (rows[0], *rows[2:])] == [
        ["learning rate times", "embeddings", "first layer", "last layer"],
        ["vision", "0.25", "0.5", "0.5"],
    ]
    assert "learning rate times" not in describe_run(run(), model)
