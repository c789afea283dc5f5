"""Bad steps, spikes and rewinds: what the state, the checkpoints and `faults.jsonl` say after."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_italian.batch import batch_number
from clip_italian.training import faults, loop, step
from clip_italian.training.checkpoint import Checkpoints
from clip_italian.training.monitor import Monitor, read_metrics
from clip_italian.training.parallel import make_parallel
from tests import toy

STEPS = 20
NAN, INFINITE, SPIKE = -1, -2, -3


@jax.custom_vjp
def through(x, factor):
    """x; its gradient times a factor."""
    return x


through.defvjp(lambda x, factor: (x, factor), lambda f, g: (g * f, jnp.zeros_like(f)))


def apply_fn(params, batch, *rest):
    """The toy model, which does what the first id of its rows asks for."""
    asked = batch.image_id[:, 0]
    output = toy.apply_fn(params, batch, *rest)
    factor = jnp.where((asked == INFINITE).any(), jnp.inf, 1.0)
    added = jnp.where((asked == NAN).any(), jnp.nan, 0.0)
    output.image_embeds = through(output.image_embeds, factor) + added
    output.logit_scale += jnp.where((asked == SPIKE).any(), 4.0, 0.0)
    return output


def wrong(number, what):
    """Batch of the order that asks for a fault, in one row only."""
    batch = toy.batch(number)
    image_id = batch.image_id.copy()
    image_id[3, 0] = what
    return batch._replace(image_id=image_id)


def batches_with(wanted):
    """`batches_from` with faults, {batch of the order: which}."""

    def batches_from(first, skipped=()):
        while True:
            number = batch_number(first, skipped)
            yield wrong(number, wanted[number]) if number in wanted else toy.batch(number)
            first += 1

    return batches_from


class Named:
    """Names of the toy's examples."""

    def __init__(self, *broken):
        self.broken = broken

    def names_of(self, step, skipped):
        return [f"toy/{batch_number(step, skipped)}-{row}" for row in range(16)]


def make_config(workdir, *, train=None, **changes):
    fields = {"workdir": str(workdir), "log_every": 1, "save_every": 3, "keep_checkpoints": 4}
    config = toy.config(
        steps=STEPS,
        train={**fields, **(train or {})},
        **{"decay_steps": STEPS, "warmup_steps": 2, **changes},
    )
    evaluation = dataclasses.replace(config.eval, eval_every=100, best_metric="score")
    return toy.learned(dataclasses.replace(config, eval=evaluation))


def run(config, wanted, *, until=STEPS, kind="mesh", examples=None, batches_from=None, seed=0):
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=until))
    parallel = make_parallel(kind, jax.devices()[:2], shard_params=config.train.shard_params)
    checkpoints = Checkpoints(config, "fingerprint")
    state = loop.start_state(config, parallel, toy.init_params, toy.init_params, checkpoints)
    return loop.train(
        config,
        state,
        parallel=parallel,
        apply_fn=apply_fn,
        batches_from=batches_from or batches_with(wanted),
        evaluate=lambda params: [("score", 0.0)],
        checkpoints=checkpoints,
        monitor=Monitor(config.train, first_step=int(state.step)),
        examples=examples or Named(),
    )[0]


def kept(workdir):
    names = [path.name for path in Path(workdir, "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


def losses(workdir):
    return [(x["step"], x.get("train/loss"), x["batch_digest"]) for x in read_metrics(str(workdir))
            if "batch_digest" in x]  # fmt: skip


def assert_same(one, other):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        a, b = np.asarray(a), np.asarray(b)
        assert a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("what", [NAN, INFINITE], ids=["loss", "gradient"])
@pytest.mark.parametrize(
    ("kind", "devices", "fields"),
    [
        ("mesh", 1, {}),
        ("mesh", 8, {"micro_batch": 8}),
        ("mesh", 2, {"shard_params": True}),
        ("pmap", 2, {"micro_batch": 8}),
        ("pmap", 8, {}),
    ],
    ids=["one", "mesh-micro", "split", "pmap-micro", "pmap"],
)
def test_a_bad_step_changes_no_bit(tmp_path, kind, devices, fields, what):
    config = make_config(tmp_path, train=fields, ema_decay=0.9, vision_thaw_step=7)
    split = config.train.shard_params
    parallel = make_parallel(kind, jax.devices()[:devices], shard_params=split)
    optimizer, phases = loop.plan(config)
    state = parallel.place_state(step.init_state(toy.init_params(), optimizer, phases[0], 0))
    compiled = loop.compile_step(config, parallel, apply_fn, phases[0])

    def go(state, number, what=None):
        batch = toy.batch(number) if what is None else wrong(number, what)
        before = jax.device_get(state)
        after, metrics = compiled(state, parallel.place(batch))
        return before, after, jax.device_get(metrics)

    for number in (0, 2):  # the very first step, and one whose moments are not zero
        before, state, metrics = go(state, number, what)
        assert metrics["train/skipped"] == 1
        assert np.isfinite(metrics["train/loss"]) == (what == INFINITE)
        assert not np.isfinite(metrics["train/grad_norm"])
        assert_same(state._replace(step=0), before._replace(step=0))
        assert int(state.step) == before.step + 1
        before, state, metrics = go(state, number + 1)
        assert metrics["train/skipped"] == 0
        both = zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True)
        moved = [bool(np.any(a != b)) for a, b in both]
        # All but the two parameters and averages of the frozen vision tower, and the key.
        assert moved.count(False) == 2 + 2 + 1


def test_the_largest_gradient_leaves_finite_moments():
    twice = np.float32(2 * step.LARGEST_NORM)  # AdaBelief squares gradient - moment
    assert np.isfinite(twice * twice)
    assert np.float32(step.LARGEST_NORM) > 1e18


@pytest.mark.parametrize("kind", ["mesh", "pmap"])
def test_bad_steps_are_left_out_and_said(tmp_path, kind, caplog):
    wanted = {0: NAN, 7: INFINITE, 11: NAN}  # the first, the thaw and the last step
    config = make_config(tmp_path, ema_decay=0.9, vision_thaw_step=7)
    state = run(config, wanted, until=12, kind=kind)
    assert int(state.step) == 12 and kept(tmp_path) == [3, 6, 9, 12]
    for leaf in jax.tree.leaves(state):
        assert np.isfinite(np.asarray(leaf)).all()
    logged = {x["step"]: x for x in read_metrics(str(tmp_path)) if "train/skipped" in x}
    assert [s for s, line in logged.items() if line["train/skipped"]] == [1, 8, 12]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    first, second, last = faults.read_faults(str(tmp_path))
    names = [f"toy/0-{row}" for row in range(16)]
    assert first == {
        "step": 1, "fault": "non-finite", "loss": "nan", "grad_norm": "nan", "in_a_row": 1,
        "examples": names,
    }  # fmt: skip
    assert second["step"] == 8 and second["loss"] == logged[8]["train/loss"]
    assert second["grad_norm"] in ("inf", "nan") and second["examples"][0] == "toy/7-0"
    assert (last["step"], last["in_a_row"]) == (12, 1)
    said = [r.getMessage() for r in caplog.records if r.name == faults.__name__]
    assert len(said) == 3 and all(name in said[0] for name in names)


def test_a_bad_step_at_the_thaw_leaves_what_has_thawed(tmp_path):
    plain, early = (make_config(tmp_path / name, vision_thaw_step=4) for name in "ab")
    plain, early = run(plain, {}, until=4), run(early, {4: NAN}, until=5)
    assert_same(early.params, plain.params)
    assert int(early.opt_state["vision"][0].count) == 0
    assert_same(early.opt_state, plain.opt_state)


def test_nine_in_a_row_go_on_and_ten_end_the_run(tmp_path):
    nine = {n: NAN for n in range(1, 10)}
    # A good step between them, and the count starts anew.
    more = {**nine, **{n: INFINITE for n in range(11, 20)}}
    assert int(run(make_config(tmp_path / "nine"), more).step) == STEPS
    rows = [line["in_a_row"] for line in faults.read_faults(str(tmp_path / "nine"))]
    assert rows == 2 * list(range(1, 10))
    message = r"10 bad steps in a row, 2 to 11: loss nan.*newest is of step 9.*clip_norm, or rewind"
    for _ in range(2):  # and again: what was counted is in the checkpoint
        with pytest.raises(FloatingPointError, match=message):
            run(make_config(tmp_path / "ten"), {**nine, 10: NAN})
        assert kept(tmp_path / "ten") == [3, 6, 9]
        lines = faults.read_faults(str(tmp_path / "ten"))
        assert [(x["step"], x["in_a_row"]) for x in lines] == [(n + 1, n) for n in range(1, 11)]
    checkpoints = Checkpoints(make_config(tmp_path / "ten"), "fingerprint")
    parallel = make_parallel("mesh", jax.devices()[:1])
    for number in (3, 6, 9):
        args = (make_config(tmp_path / "ten"), parallel, toy.init_params(), checkpoints, number)
        faults.check_finite(loop.restore(*args))
    checkpoints.close()


def test_a_state_that_is_not_finite_is_never_saved(tmp_path, monkeypatch):
    whole = toy.init_params

    def damaged(seed=0):  # a token that no caption has: no loss or gradient would see it
        params = whole(seed)
        table = params["text_model"]["embeddings"]["embedding"].at[0].set(jnp.nan)
        return {**params, "text_model": {"embeddings": {"embedding": table}}}

    batch = toy.batch(0)
    ids = np.maximum(batch.text[0].input_ids, 1)
    batch = batch._replace(text=(batch.text[0]._replace(input_ids=ids),))

    def same(first, skipped):
        while True:
            yield batch

    monkeypatch.setattr(toy, "init_params", damaged)
    with pytest.raises(FloatingPointError, match=r"\.params\['text_model'\].*finite at step 0"):
        run(make_config(tmp_path), {}, batches_from=same)
    checked = iter([lambda state: None])  # as if it came about later
    monkeypatch.setattr(loop, "check_finite", lambda s: next(checked, faults.check_finite)(s))
    with pytest.raises(FloatingPointError, match="finite at step 3"):
        run(make_config(tmp_path), {}, batches_from=same)
    assert kept(tmp_path) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_every_number_of_a_state_is_looked_at(bad, dtype):
    largest = float(jnp.finfo(dtype).max)
    whole = np.full((7, 33), largest, dtype)  # whose sum would not be finite
    for devices in (1, 8):
        parallel = make_parallel("mesh", jax.devices()[:devices], shard_params=True)

        def check(values, parallel=parallel):
            table = np.concatenate([values, np.zeros((25, 33), dtype)])
            params = {"first": np.ones(3, dtype), "table": table}
            state = step.TrainState(jnp.int32(4), params, {}, jnp.full(2, 2**32 - 1, jnp.uint32))
            faults.check_finite(parallel.place_state(state))

        check(whole)
        for place in ((0, 0), (3, 17), (6, 32)):
            values = whole.copy()
            values[place] = bad
            with pytest.raises(FloatingPointError, match=r"'table'\] is not finite at step 4"):
                check(values)


def sample_losses():
    return json.loads(Path(__file__).with_name("sample_losses.json").read_text())


def found(series):
    return [
        n for n in range(len(series)) if is_spike(series[max(0, n - faults.WINDOW) : n], series[n])
    ]


def is_spike(before, loss):
    limit = faults.spike_limit(before)
    return limit is not None and loss > limit


def test_the_limit_by_hand():
    def limit(losses):
        return faults.spike_limit(losses) or 0.0

    assert faults.spike_limit([2.0] * 49) is None
    # Median 3; the deviations are 1 or 2 (their median is 1).
    window = [1.0, 2.0, 3.0, 4.0, 5.0] * 10 + [3.0]
    np.testing.assert_allclose(limit(window), 3 + 7 * 1.4826)
    # A loss that stands still: 1% of it for each of the seven deviations.
    np.testing.assert_allclose(limit([2.0] * 100), 2.14)
    # One earlier spike in ten hardly moves it.
    assert limit([2.0, 2.1, 1.9, 2.0, 2.1, 1.9, 2.0, 2.1, 1.9, 50.0] * 10) < 3.2


def test_the_sample_has_no_spike_and_one_put_there_is_found():
    series = sample_losses()
    assert len(series) == 900 and found(series) == []
    for place in (300, 500, 700, 899):
        series = sample_losses()
        series[place] = 3 * np.median(series[place - 100 : place])
        assert found(series) == [place]


@pytest.fixture
def quick(monkeypatch):
    """Spikes that a short run can have."""
    monkeypatch.setattr(faults, "FEWEST", 5)
    monkeypatch.setattr(faults, "WINDOW", 8)
    monkeypatch.setattr(faults, "BEFORE", 2)


def test_a_spike_is_said_once_and_again_after_a_while(tmp_path, quick, caplog):
    wanted = {n: SPIKE for n in (9, 10, 11, 19)}
    state = run(make_config(tmp_path), wanted)
    assert int(state.step) == STEPS
    lines = faults.read_faults(str(tmp_path))
    assert [(x["step"], x["fault"], x["examples"][2]) for x in lines] == [
        (10, "spike", "toy/9-2"),
        (20, "spike", "toy/19-2"),
    ]
    assert lines[0]["loss"] > lines[0]["limit"] > 1
    assert "the loss rose to" in caplog.text and "toy/9-15" in caplog.text


def test_resumed_runs_find_the_same_faults(tmp_path, quick):
    wanted = {4: NAN, 9: SPIKE, 13: INFINITE, 19: SPIKE}
    run(make_config(tmp_path / "whole"), wanted)
    for until in (5, 10):
        run(make_config(tmp_path / "cut"), wanted, until=until)
    run(make_config(tmp_path / "cut"), wanted)
    whole, cut = (faults.read_faults(str(tmp_path / name)) for name in ("whole", "cut"))
    assert cut == whole and [line["step"] for line in whole] == [5, 10, 14, 20]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def left_out(skipped):
    """`batches_from` of an order without these batches from the start."""
    return lambda first, _: toy.batches_from(first, skipped)


def test_a_run_that_went_back_is_one_without_these_examples(tmp_path, quick):
    config = make_config(tmp_path / "rewound", train={"rewind": True}, vision_thaw_step=7)
    wanted = {10: SPIKE, 19: NAN}
    state = run(config, wanted)
    # The spike: its batch and the two before, back to step 6. The bad step 17 (+ 3 left out).
    skipped = [8, 9, 10, 19]
    plain = make_config(tmp_path / "plain", vision_thaw_step=7)
    plain = run(plain, {}, batches_from=left_out(skipped))
    assert_same(state, plain)
    assert losses(tmp_path / "rewound") == losses(tmp_path / "plain")
    assert [s for s, *_ in losses(tmp_path / "rewound")] == list(range(1, STEPS + 1))
    lines = faults.read_faults(str(tmp_path / "rewound"))
    facts = ("step", "from_step", "cause", "skipped")
    assert [[line[name] for name in facts] for line in lines] == [
        [6, 11, "spike", [8, 9, 10]],
        [15, 17, "non-finite", [19]],
    ]
    assert lines[0]["examples"][0] == "toy/10-0" and lines[1]["examples"][0] == "toy/19-0"
    checkpoints = Checkpoints(config, "fingerprint")
    assert checkpoints.faults(STEPS)["skipped"] == skipped
    assert checkpoints.faults(STEPS)["rewinds"] == 2
    assert checkpoints.faults(STEPS - 1) == {}
    checkpoints.close()


SLOW = pytest.mark.slow


@pytest.mark.parametrize("until", [pytest.param(10, marks=SLOW), 12, pytest.param(16, marks=SLOW)])
def test_a_run_that_went_back_is_resumed_without_these_examples(tmp_path, quick, until):
    config = make_config(tmp_path / "cut", train={"rewind": True})
    run(config, {10: SPIKE}, until=until)
    state = run(config, {10: SPIKE})
    plain = run(make_config(tmp_path / "plain"), {}, batches_from=left_out([8, 9, 10]))
    assert_same(state, plain)
    assert losses(tmp_path / "cut") == losses(tmp_path / "plain")
    assert [line["fault"] for line in faults.read_faults(str(tmp_path / "cut"))] == ["rewind"]
    # The list is the checkpoint's, whatever the config says by now.
    longer = make_config(tmp_path / "cut")
    longer = dataclasses.replace(longer, train=dataclasses.replace(longer.train, steps=STEPS + 2))
    run(longer, {10: SPIKE}, until=STEPS + 2)
    assert losses(tmp_path / "cut")[-1][0] == STEPS + 2
    assert Checkpoints(longer, "fingerprint").faults(STEPS + 2)["skipped"] == [8, 9, 10]


def test_checkpoints_of_what_was_taken_back_are_gone(tmp_path, quick):
    config = make_config(tmp_path, train={"rewind": True})
    run(config, {10: SPIKE}, until=11)  # at its last step it goes back, behind the checkpoint of 9
    checkpoints = Checkpoints(config, "fingerprint")
    assert checkpoints.steps() == [3, 6, 9, 11]
    assert [len(checkpoints.faults(step)["skipped"]) for step in (3, 6, 9, 11)] == [0, 0, 3, 3]
    checkpoints.delete_after(6)
    assert checkpoints.steps() == kept(tmp_path) == [3, 6]
    checkpoints.close()


def test_a_run_without_a_checkpoint_goes_on(tmp_path):
    config = make_config(tmp_path, train={"rewind": True})
    assert int(run(config, {1: NAN}, until=4).step) == 4
    assert [line["fault"] for line in faults.read_faults(str(tmp_path))] == ["non-finite"]


@pytest.mark.slow
def test_a_run_goes_back_ten_times_and_then_ends(tmp_path):
    config = make_config(tmp_path, train={"rewind": True})
    message = r"loss nan.* at step 5.*, after 10 rewinds\..*newest is of step 3"
    with pytest.raises(FloatingPointError, match=message):
        run(config, {n: NAN for n in range(4, 40)})
    lines = faults.read_faults(str(tmp_path))
    assert [line["skipped"] for line in lines if line["fault"] == "rewind"] == [
        [n] for n in range(4, 14)
    ]


def test_lines_of_what_comes_again_are_dropped(tmp_path):
    """A process was killed at step 8, its newest checkpoint is of step 5, with batch 1 left out."""
    lines = [
        {"step": 2, "fault": "rewind", "skipped": [1]},
        {"step": 3, "fault": "non-finite"},
        {"step": 4, "fault": "rewind", "skipped": [6]},  # no checkpoint knows of it
        {"step": 7, "fault": "spike"},
    ]
    text = "\n".join([*map(json.dumps, lines), '{"step": 8, "fau'])
    (tmp_path / "faults.jsonl").write_text(text)
    checkpoints: Any = SimpleNamespace(faults=lambda step: {"skipped": [1]} if step == 5 else {})
    watch = faults.Watch(make_config(tmp_path), 5, checkpoints)
    assert faults.read_faults(str(tmp_path)) == lines[:2] and watch.skipped == (1,)


def test_broken_records_are_written_once(tmp_path):
    broken = Named(("n/3", "no JPEG"), ("n/8", "cut short"))
    run(make_config(tmp_path), {}, until=4, examples=broken)
    run(make_config(tmp_path), {}, until=6, examples=broken)
    assert faults.read_faults(str(tmp_path)) == [
        {"step": 1, "fault": "broken record", "record": "n/3", "reason": "no JPEG"},
        {"step": 1, "fault": "broken record", "record": "n/8", "reason": "cut short"},
    ]


def test_broken_records_stay_written_when_the_run_goes_back(tmp_path, quick):
    class Late(Named):
        """Meets a record in a step that is taken back."""

        @property
        def broken(self):
            done = read_metrics(str(tmp_path))
            return [("n/3", "no JPEG")] if done and int(done[-1]["step"]) >= 8 else []

        @broken.setter
        def broken(self, _):
            pass

    run(make_config(tmp_path, train={"rewind": True}), {10: SPIKE}, examples=Late())
    lines = faults.read_faults(str(tmp_path))
    found = [(line["step"], line["fault"]) for line in lines]
    assert found == [(8, "broken record"), (6, "rewind")]


def test_each_process_writes_the_broken_records_of_its_share(tmp_path, monkeypatch):
    """Process 0 may be rewriting its own file, after a kill that cut a line short, meanwhile."""
    (tmp_path / "faults.jsonl").write_text('{"step": 8, "fau')
    monkeypatch.setattr(faults.jax, "process_index", lambda: 1)
    monkeypatch.setattr(faults, "is_first", lambda: False)
    checkpoints: Any = SimpleNamespace(faults=lambda step: {}, steps=lambda: [])
    for first, wanted in ((0, ["n/3"]), (5, ["n/3", "n/4"])):
        examples = Named(*[(name, "no JPEG") for name in wanted])
        watch = faults.Watch(make_config(tmp_path), first, checkpoints, examples)
        values = {"train/loss": float("nan"), "train/skipped": 1.0, "train/grad_norm": 1.0}
        assert watch.check(first + 1, values) is None
    assert [x["record"] for x in faults.read_faults(str(tmp_path), 1)] == ["n/3", "n/4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faults.1.jsonl", "faults.jsonl"]
    assert (tmp_path / "faults.jsonl").read_text() == '{"step": 8, "fau'


def test_long_lists_of_names_are_cut_in_messages():
    assert faults._some([]) == "unknown"
    said = faults._some([str(n) for n in range(30)])
    assert said.startswith("0, 1, ") and said.endswith("19, and 10 more in faults.jsonl")
