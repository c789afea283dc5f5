"""Every leaf of a state comes back; a state that was saved without one of them does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_italian.training import checkpoint, loop, optim
from clip_italian.training.checkpoint import Checkpoints
from clip_italian.training.step import TrainState, init_state
from tests import toy
from tests.training.test_loop import make_config

STEP = 9  # all groups move
LEAVES = [("params", "logit_scale"), ("opt_state", "text"), ("ema", "text_projection", "kernel")]


def config_in(folder):
    return make_config(folder, ema_decay=0.9)


@pytest.fixture
def state(tmp_path):
    """All leaves of a state, each with values of its own."""
    config = config_in(tmp_path)
    optimizer, phases = loop.plan(config)
    shapes = init_state(toy.init_params(), optimizer, optim.phase_at(phases, STEP), 0)
    rng = np.random.default_rng(0)
    filled = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(1, 100, x.shape).astype(x.dtype)), shapes
    )
    return filled._replace(step=jnp.asarray(STEP, shapes.step.dtype))


def abstract(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def round_trip(folder, state):
    checkpoints = Checkpoints(config_in(folder), "fingerprint")
    checkpoints.save(state, None)
    checkpoints.close()
    again = Checkpoints(config_in(folder), "fingerprint")
    try:
        return again.restore(STEP, jax.tree.map(abstract, state))
    finally:
        again.close()


def test_every_leaf_comes_back(state, tmp_path):
    restored = round_trip(tmp_path, state)
    before, after = (jax.tree_util.tree_leaves_with_path(tree) for tree in (state, restored))
    assert [path for path, _ in before] == [path for path, _ in after]
    for (path, saved), (_, found) in zip(before, after, strict=True):
        np.testing.assert_array_equal(found, saved, err_msg=jax.tree_util.keystr(path))
        assert found.dtype == saved.dtype and np.all(np.asarray(saved) != 0)
    names = {str(path[0]) for path, _ in before}
    assert names == {f".{name}" for name in TrainState._fields}, "no field is empty here"
    # A count per group and two moments for each of six parameters, and all the rest.
    assert len(jax.tree.leaves(state.opt_state)) == 4 + 2 * 6


def without(tree, path):
    """A tree of dicts (and of tuples with names) without one leaf or branch."""
    name, *rest = path
    tree = dict(tree)
    if rest:
        tree[name] = without(tree[name], rest)
    else:
        del tree[name]
    return tree


@pytest.mark.parametrize("path", [*((name,) for name in TrainState._fields), *LEAVES])
def test_what_is_left_out_is_missed(state, tmp_path, monkeypatch, path):
    parts = checkpoint._parts
    given = [True, False]  # as it is saved, and as it is asked for

    def leaving_out(whole):
        return without(parts(whole), path) if given.pop(0) else parts(whole)

    monkeypatch.setattr(checkpoint, "_parts", leaving_out)
    with pytest.raises((ValueError, KeyError)) as caught:
        round_trip(tmp_path, state)
    assert any(name in str(caught.value) for name in path[-2:])
    assert given == []
