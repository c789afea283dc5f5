"""The validation loss over padded batches equals the same pairs without padding."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from clip_italian.training import losses
from clip_italian.training.parallel import make_parallel
from clip_italian.training.step import loss_per_pair
from clip_italian.training.validation import make_loss_evaluator
from tests import toy


@pytest.mark.parametrize("kind", ["mesh", "pmap"])
def test_padding_does_not_count(kind):
    config, params = toy.config(), toy.init_params()
    parallel = make_parallel(kind, jax.devices()[:4])
    full, tail = toy.batch(1, pairs=8), toy.batch(2, pairs=8)
    valid = np.arange(8) < 3
    evaluate = make_loss_evaluator(
        config,
        parallel,
        toy.apply_fn,
        [SimpleNamespace(name="a", loss_batches=lambda: [(full, np.ones(8, bool)), (tail, valid)])],
    )
    found = dict(evaluate(parallel.replicate(params)))
    short = jax.tree.map(lambda x: x[:3], tail)
    sums = [float(np.sum(plain(config, params, batch))) for batch in (full, short)]
    np.testing.assert_allclose(found["validation/loss"], sum(sums) / 11, rtol=1e-6)


def test_several_sets_are_named():
    config, params = toy.config(), toy.init_params()
    parallel = make_parallel("mesh", jax.devices()[:2])
    sets = [
        SimpleNamespace(
            name=name,
            loss_batches=lambda seed=seed: [(toy.batch(seed, pairs=4), np.ones(4, bool))],
        )
        for seed, name in enumerate(("wit", "il_post"))
    ]
    found = dict(make_loss_evaluator(config, parallel, toy.apply_fn, sets)(params))
    assert list(found) == ["wit/validation/loss", "il_post/validation/loss"]
    expected = losses.mean_over(plain(config, params, toy.batch(1, pairs=4)))
    np.testing.assert_allclose(found["il_post/validation/loss"], expected, rtol=1e-6)


def plain(config, params, batch):
    output = toy.apply_fn(params, batch, None, (), 1)
    return loss_per_pair(config, output, batch)
