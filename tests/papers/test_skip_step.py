"""SkipStep (code of OLMo-core)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.by_numpy import by_numpy
from tests.papers.replay import normal


def run(losses: Sequence[float], gradients: Sequence[Any], **given: Any) -> tuple[list[float], list[Any]]:
    """Which steps were skipped, and the states of the inner Adam."""
    tx = gk.skip_step(gk.adam(0.1), **given)
    x = gradients[0]
    state, update, skipped, inner = tx.init(x), by_numpy(tx.update), [], []
    for loss, g in zip(losses, gradients, strict=True):
        u, state = update(g, state, x, value=jnp.asarray(loss))
        skipped.append(float(state.metrics["skipped"]))
        assert (float(jnp.abs(u).max()) == 0) == bool(skipped[-1])
        inner.append(state.inner)
    return skipped, inner


def same(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


def test_spike_of_the_loss_leaves_no_trace(x64: None) -> None:
    losses = [1.0 + 0.1 * (i % 3) for i in range(8)]
    skipped, inner = run([*losses, 50.0, 1.0], [normal(i, 4) for i in range(10)], window_size=8, threshold=4.0)
    assert skipped == [0.0] * 8 + [1.0, 0.0]
    assert same(inner[8], inner[7]) and not same(inner[9], inner[8])


def test_no_skip_before_half_of_the_window(x64: None) -> None:
    """Step 4 of a window of 8 is the first that may be skipped."""
    gradients = [normal(0, 4)] * 4
    assert run([1.0, 1.1, 90.0, 1.0], gradients, window_size=8)[0] == [0.0] * 4
    assert run([1.0, 1.1, 1.0, 90.0], gradients, window_size=8)[0] == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_no_number_costs_one_step(where: str, x64: None) -> None:
    """Copies let it into the history, and skip the next `window_size` steps."""
    losses, gradients = [1.0 + 0.1 * (i % 2) for i in range(14)], [normal(0, 4)] * 14
    if where == "loss":
        losses[5] = float("nan")
    else:
        gradients[5] = gradients[5] * jnp.nan
    assert run(losses, gradients, window_size=8)[0] == [float(i == 5) for i in range(14)]


def test_new_level_of_the_loss_is_accepted(x64: None) -> None:
    losses = [1.0 + 0.1 * (i % 2) for i in range(8)] + [9.0 + 0.1 * (i % 2) for i in range(9)]
    skipped, _ = run(losses, [normal(0, 4)] * 17, window_size=8, threshold=2.0)
    assert skipped[8] == 1.0 and skipped[-1] == 0.0


def test_norms_alone(x64: None) -> None:
    """Without the loss in `watch`, none is needed; `max_norm` holds from the first step on."""
    tx, x = gk.skip_step(gk.sgd(0.1), watch=("norm",), max_norm=5.0), jnp.ones(4)
    u, state = tx.update(10 * x, tx.init(x), x)
    assert not u.any() and tx.update(x, state, x)[0].all()
    with pytest.raises(ValueError, match="value"):
        gk.skip_step(gk.sgd(0.1)).update(x, gk.skip_step(gk.sgd(0.1)).init(x), x)
