"""Optimistic AMSGrad (Wang, Li, Karimi, Li, 2019)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.optimizers.adaptive.optimistic_amsgrad import extrapolate
from tests.papers.replay import assert_equal, normal


def run(tx: object, gradients: list, predictions: list | None = None) -> tuple[list, object]:
    """The parameters w_2, w_3, ..., from w_1 = 0, and the last state."""
    w, state, out = jnp.zeros_like(gradients[0]), tx.init(gradients[0]), []
    for t, g in enumerate(gradients):
        extra = {} if predictions is None else {"predicted_grads": predictions[t]}
        u, state = tx.update(g, state, w, **extra)
        w = w + u
        out.append(w)
    return out, state


@pytest.mark.parametrize("form", ["none", "after_max", "before_max"])
def test_equations(form: str, x64: None) -> None:
    gradients = [normal(i, 6) / (1 + i) for i in range(6)]
    b1, b2, eps = 0.7, 0.6, 1e-2
    rate = lambda step: 0.1 / (1 + step.astype(float))  # noqa: E731
    tx = gk.optimistic_amsgrad(rate, b1=b1, b2=b2, eps=eps, bias_correction=form)
    theta = v = largest = half = predicted = np.zeros(6)
    for t, (g, w) in enumerate(zip(map(np.asarray, gradients), run(tx, gradients)[0], strict=True), 1):
        before, theta = theta, b1 * theta + (1 - b1) * g
        v = b2 * v + (1 - b2) * (g - predicted) ** 2
        c1, c2 = (1, 1) if form == "none" else (1 - b1**t, 1 - b2**t)
        largest = np.maximum(largest, v / c2 if form == "before_max" else v)
        denominator = c1 * (np.sqrt(largest / (c2 if form == "after_max" else 1)) + eps)
        predicted = g
        half = half - 0.1 / t * theta / denominator
        assert_equal(w, half - 0.1 / t * (b1 * before + (1 - b1) * predicted) / denominator)


def test_with_predictions_of_zero_the_half_steps_are_amsgrad(x64: None) -> None:
    """And the second step is what is left of the momentum: rate b1 theta_{t-1} / (sqrt(V) + eps)."""
    gradients = [normal(i, 6) for i in range(6)]
    zero = [jnp.zeros(6)] * 6
    w, _ = run(gk.optimistic_amsgrad(0.1, b2=0.9), gradients, zero)
    amsgrad = gk.scale_by_amsgrad(b2=0.9, bias_correction="none")
    state, half, theta = amsgrad.init(gradients[0]), jnp.zeros(6), jnp.zeros(6)
    for g, got in zip(gradients, w, strict=True):
        u, state = amsgrad.update(g, state)
        half = half - 0.1 * u
        assert_equal(got, half - 0.1 * 0.9 * theta / (jnp.sqrt(state.nu_max) + 1e-8))
        theta = state.mu


def test_the_second_moment_is_that_of_the_error(x64: None) -> None:
    """With perfect predictions it only decays from the first gradient, of which there was none; that one being 0,
    it stays 0."""
    gradients = [normal(i, 6) for i in range(5)]
    tx = gk.optimistic_amsgrad(0.1, b2=0.5, eps=1.0)
    _, state = run(tx, gradients[:4], gradients[1:])
    assert_equal(state[0].nu, 0.5**4 * gradients[0] ** 2)
    _, state = run(tx, [0 * gradients[0], *gradients[:3]], gradients[:4])
    assert not state[0].nu.any() and not state[0].nu_max.any()


def test_extrapolation_of_a_linear_sequence(x64: None) -> None:
    """s_{i+1} = A s_i + b of dimension 3: four differences determine the limit (Cayley-Hamilton)."""
    a = jnp.diag(jnp.array([0.9, 0.5, -0.3]))
    b, history = jnp.array([1.0, 2.0, 3.0]), [jnp.array([1.0, -1.0, 2.0])]
    for _ in range(4):
        history.append(a @ history[-1] + b)
    limit = jnp.linalg.solve(jnp.eye(3) - a, b)
    # The ridge moves the weights by about its share of the smallest eigenvalue of D'D that counts, about 1e-6.
    got = extrapolate(history, jnp.int32(5), 1e-13)
    assert jnp.abs(got - limit).max() < 1e-4 * jnp.abs(history[-1] - limit).max()


def test_extrapolation_uses_only_the_gradients_so_far(x64: None) -> None:
    """Half a history is a shorter one; one gradient is its own extrapolation; a constant one extrapolates to itself."""
    seen = [{"a": normal(i, 4), "b": normal(7 + i, 2, 2)} for i in range(3)]
    nothing = jax.tree.map(jnp.zeros_like, seen[0])
    assert_equal(extrapolate([nothing, nothing, *seen], jnp.int32(3), 1e-3), extrapolate(seen, jnp.int32(3), 1e-3))
    assert_equal(extrapolate([nothing, nothing, seen[0]], jnp.int32(1), 1e-3), seen[0])
    assert_equal(extrapolate([seen[0]] * 4, jnp.int32(4), 1e-3), seen[0])

    d = np.stack([np.concatenate([np.ravel(y[k] - x[k]) for k in "ab"]) for x, y in itertools.pairwise(seen)])
    z = np.linalg.solve(d @ d.T + 1e-3 * np.eye(2), np.ones(2))
    want = jax.tree.map(lambda x, y: (z[0] * x + z[1] * y) / z.sum(), *seen[:2])
    assert_equal(extrapolate(seen, jnp.int32(3), 1e-3), want)


def test_the_extrapolated_prediction_is_used(x64: None) -> None:
    gradients = [normal(i, 4) for i in range(5)]
    tx = gk.optimistic_amsgrad(0.1, predictor="rmpe", span=3)
    _, state = run(tx, gradients)
    assert_equal(state[0].prediction, extrapolate(gradients[2:], jnp.int32(3), 1e-3))
    assert_equal(list(state[0].history), gradients[2:])


def test_bad_input() -> None:
    for kwargs, message in (
        ({"span": 1}, "span must be an integer >= 2"),
        ({"ridge": 0.0}, r"ridge must be in \(0, inf\)"),
        ({"predictor": "next"}, "predictor must be one of 'last', 'rmpe'"),
        ({"bias_correction": "adam"}, "bias_correction must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            gk.optimistic_amsgrad(0.1, **kwargs)
    x = jnp.ones(2)
    tx = gk.optimistic_amsgrad(0.1)
    with pytest.raises(ValueError, match="has shape"):
        tx.update(x, tx.init(x), x, predicted_grads=jnp.ones(3))
