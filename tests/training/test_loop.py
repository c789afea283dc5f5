"""The loop on random arrays: phases, resume, evaluation, checkpoints, refusals."""

import dataclasses
import json
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from etils import epath

from clip_italian.config import ConfigError, TrainConfig
from clip_italian.training import loop, saved
from clip_italian.training.checkpoint import Checkpoints, check_same_run, describe
from clip_italian.training.feed import batch_digest
from clip_italian.training.fellows import Preempted
from clip_italian.training.monitor import Monitor, read_metrics
from clip_italian.training.parallel import make_parallel, shares
from tests import toy

STEPS = 12


def make_config(workdir, **changes):
    config = toy.config(
        steps=STEPS,
        train={"workdir": str(workdir), "log_every": 1, "save_every": 3, "keep_checkpoints": 2},
        **{"vision_thaw_step": 7, "decay_steps": STEPS, "warmup_steps": 2, **changes},
    )
    evaluation = dataclasses.replace(config.eval, eval_every=4, best_metric="score")
    return toy.learned(dataclasses.replace(config, eval=evaluation))


def run(config, *, until=STEPS, kind="mesh", devices=2, batches_from=toy.batches_from, score=None):
    """Trains up to step `until` as if the process ended there; returns the state."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=until))
    parallel = make_parallel(kind, jax.devices()[:devices], shard_params=config.train.shard_params)
    checkpoints = Checkpoints(config, "fingerprint")
    state = loop.start_state(config, parallel, toy.init_params, toy.init_params, checkpoints)
    return loop.train(
        config,
        state,
        parallel=parallel,
        apply_fn=toy.apply_fn,
        batches_from=batches_from,
        evaluate=score or (lambda params: [("score", float(params["logit_scale"]))]),
        checkpoints=checkpoints,
        monitor=Monitor(config.train, first_step=int(state.step)),
    )[0]


def losses(workdir):
    return [
        (line["step"], line["train/loss"], line["batch_digest"])
        for line in read_metrics(str(workdir))
        if "train/loss" in line
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(make_config(workdir))


@pytest.mark.parametrize("stop", [5, 7], ids=["mid-phase", "at-the-thaw"])
def test_train_stop_resume_equals_train(whole, tmp_path, stop):
    run(make_config(tmp_path), until=stop)
    state = run(make_config(tmp_path))
    assert losses(tmp_path) == losses(whole[0])
    assert [step for step, *_ in losses(tmp_path)] == list(range(1, STEPS + 1))
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])


def test_the_average_of_parameters_is_saved_restored_and_evaluated(tmp_path):
    seen = []

    def score(params):
        seen.append(float(params["logit_scale"]))
        return [("score", 0.0)]

    whole = run(make_config(tmp_path / "whole", ema_decay=0.9), score=score)
    run(make_config(tmp_path / "cut", ema_decay=0.9), until=5)
    state = run(make_config(tmp_path / "cut", ema_decay=0.9))
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    assert seen[-1] == float(whole.ema["logit_scale"]) != float(whole.params["logit_scale"])


def test_split_parameters_go_on_whole_under_pmap(whole, tmp_path):
    config = make_config(tmp_path)
    split = dataclasses.replace(config.train, shard_params=True)
    run(dataclasses.replace(config, train=split), until=5)
    state = run(config, kind="pmap")
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_before_averages_goes_on(whole, tmp_path):
    class Before(NamedTuple):
        step: Any
        params: Any
        opt_state: Any
        rng: Any

    checkpoints = Checkpoints(make_config(tmp_path), "fingerprint")
    checkpoints.save(Before(*whole[1][:4]), None)
    checkpoints.close()
    config = make_config(tmp_path)
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=STEPS + 1))
    parallel = make_parallel("mesh", jax.devices()[:2])
    checkpoints = Checkpoints(longer, "fingerprint")
    state = loop.start_state(longer, parallel, toy.init_params, toy.init_params, checkpoints)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, state, whole[1])


def test_a_pmap_checkpoint_goes_on_under_the_mesh(whole, tmp_path):
    run(make_config(tmp_path), until=5, kind="pmap")
    state = run(make_config(tmp_path), kind="mesh")
    np.testing.assert_allclose(
        [loss for _, loss, _ in losses(tmp_path)],
        [loss for _, loss, _ in losses(whole[0])],
        rtol=1e-5,
    )
    assert int(state.step) == STEPS


def test_the_frozen_tower_stays_and_then_moves(whole, tmp_path):
    state = run(make_config(tmp_path), until=7)
    kernel = ("vision_model", "layer", "kernel")
    start, frozen, moved = (
        np.asarray(params[kernel[0]][kernel[1]][kernel[2]])
        for params in (toy.init_params(42), state.params, whole[1].params)
    )
    np.testing.assert_array_equal(frozen, start)
    assert np.abs(moved - start).max() > 1e-3
    assert "vision" in state.opt_state  # the state at step 7 has the structure of its phase


def test_checkpoints_kept_are_the_latest_and_the_best(tmp_path):
    scores = iter([5.0, 1.0, 2.0])
    run(make_config(tmp_path), score=lambda params: [("score", next(scores))])
    checkpoints = Checkpoints(make_config(tmp_path), "fingerprint")
    # Saved at 3, 4, 6, 8, 9, 12; the evaluations at 4, 8, 12 scored 5, 1, 2.
    assert sorted(p.name for p in tmp_path.joinpath("checkpoints").iterdir()) == ["12", "4", "9"]
    assert checkpoints.best() == (4, 5.0)
    checkpoints.close()


def test_an_evaluation_cut_short_is_made_up_and_counts(tmp_path, monkeypatch):
    asked = []
    scores = iter([5.0, 5.0, 1.0, 2.0])

    def score(params):
        asked.append(jax.device_get(params))
        yield "score", next(scores)

    with monkeypatch.context() as now, pytest.raises(Preempted):
        now.setattr(loop.distributed, "preempted", lambda: len(asked) == 1)
        run(make_config(tmp_path), score=score)
    assert not saved.metrics(epath.Path(tmp_path) / "checkpoints", 4)
    run(make_config(tmp_path), score=score)
    evaluated = [(x["step"], x["score"]) for x in read_metrics(str(tmp_path)) if "score" in x]
    assert evaluated == [(4, 5.0), (8, 1.0), (12, 2.0)]
    jax.tree.map(np.testing.assert_array_equal, asked[0], asked[1])
    kept = epath.Path(tmp_path) / "checkpoints"
    assert not any(saved.problems(kept, step) for step in saved.steps(kept))
    assert saved.best(kept, "score") == (4, 5.0)


def test_the_time_of_compilation_is_no_time_of_training(tmp_path, monkeypatch):
    events = []

    def tell(owner, name):
        own = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: events.append(name) or own(*given))

    tell(loop, "compile_step")
    tell(Monitor, "restart_clock")
    tell(Monitor, "count_step")
    run(make_config(tmp_path))
    compiled = [at for at, event in enumerate(events) if event == "compile_step"]
    assert len(compiled) == 2  # one for each phase
    for at in compiled:
        assert events[at + 1 : at + 3] == ["restart_clock", "count_step"]


def test_a_step_costs_what_its_own_phase_trains(monkeypatch):
    trained = []
    monkeypatch.setattr(loop, "work_of", lambda batch, moving, *rest: trained.append(moving))
    phases = loop.plan(make_config("unused"))[1]
    for step in (6, 7):
        loop._work(phases, toy, step, toy.batch(step))
    assert trained == [phases[0].moving, phases[1].moving]
    assert "vision" not in trained[0] and "vision" in trained[1]


def test_groups_are_dealt_to_every_micro_batch_of_every_device():
    train = TrainConfig(batch_size=32, micro_batch=8)
    config = dataclasses.replace(make_config("unused"), train=train)
    assert shares(config, make_parallel("mesh", jax.devices()[:2])) == 2 * 4


def test_evaluation_is_logged_at_its_steps(whole):
    assert [x["step"] for x in read_metrics(str(whole[0])) if "score" in x] == [4, 8, 12]
    assert list(whole[0].joinpath("tensorboard").iterdir())


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("learning_rate", {"learning_rate": 3e-3}),
        ("vision_thaw_step", {"vision_thaw_step": 6}),
        ("optimizer", {"optimizer": "adabelief"}),
    ],
)
def test_another_run_is_refused_by_name(tmp_path, field, changes):
    saved = describe(make_config(tmp_path), "fingerprint")
    with pytest.raises(ConfigError, match=f"workdir.*{field} was"):
        check_same_run(saved, describe(make_config(tmp_path, **changes), "fingerprint"), "x")


def test_other_data_are_refused_and_free_fields_are_not(tmp_path):
    config = make_config(tmp_path)
    saved = describe(config, "fingerprint")
    with pytest.raises(ConfigError, match="data_fingerprint was 'fingerprint', is 'other'"):
        check_same_run(saved, describe(config, "other"), "x")
    longer = dataclasses.replace(
        config, train=dataclasses.replace(config.train, steps=99, log_every=7, workdir="elsewhere")
    )
    check_same_run(saved, describe(longer, "fingerprint"), "x")


def test_a_run_of_before_a_field_existed_goes_on(tmp_path):
    description = describe(make_config(tmp_path), "f")
    older = {
        part: {name: value for name, value in description[part].items() if name != "init_from"}
        for part in ("identity", "config")
    }
    saved = {**description, **older}
    check_same_run(saved, description, "x")
    begun = {**description["identity"], "init_from": "exports/a"}
    with pytest.raises(ConfigError, match="init_from was '', is 'exports/a'"):
        check_same_run(saved, {**description, "identity": begun}, "x")


def test_a_newer_checkpoint_format_is_refused(tmp_path):
    description = describe(make_config(tmp_path), "f")
    with pytest.raises(ConfigError, match="format 3"):
        check_same_run({**description, "format_version": 3}, description, "x")


def test_every_leaf_of_the_state_is_saved(whole):
    workdir, state = whole
    checkpoints = Checkpoints(make_config(workdir), "fingerprint")
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    restored = checkpoints.restore(STEPS, like)
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert int(restored.step) == STEPS and restored.rng.shape == (2,)
    assert len(jax.tree.leaves(restored.opt_state)) == 4 + 2 * 6  # a count per group, two moments


def test_a_line_cut_by_a_kill_and_later_steps_are_dropped(tmp_path):
    lines = [json.dumps({"step": s, "train/loss": 1.0}) for s in (1, 2, 3)]
    tmp_path.joinpath("metrics.jsonl").write_text("\n".join([*lines, '{"step": 4, "tra']))
    Monitor(TrainConfig(workdir=str(tmp_path), steps=5), first_step=2).close()
    assert [line["step"] for line in read_metrics(str(tmp_path))] == [1, 2]


def test_the_digest_tells_batches_apart_and_not_their_order():
    batch = toy.batch(0)
    turned = batch._replace(image_id=batch.image_id[::-1], caption_id=batch.caption_id[::-1])
    torn = batch._replace(image_id=batch.image_id[::-1])  # other images for the same captions
    assert batch_digest(batch) == batch_digest(toy.batch(0)) == batch_digest(turned)
    assert len({batch_digest(b) for b in (batch, toy.batch(1), torn)}) == 3
