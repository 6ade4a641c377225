"""MARS (Yuan et al., 2024): the correction, and the steps of AdamW and Lion behind it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, descend, normal, updates

SHARE = 0.025 * 0.95 / 0.05


def corrected(gradients: list, clip: float = 1.0, first: float = 0.0) -> list[np.ndarray]:
    """The paper's two lines, in NumPy."""
    out, before = [], first * np.asarray(gradients[0])
    for g in map(np.asarray, gradients):
        c = g + SHARE * (g - before)
        out.append(c / max(1.0, np.linalg.norm(c) / clip))
        before = g
    return out


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0], ids=["never clipped", "sometimes", "always clipped"])
def test_equations_of_the_paper(scale: float, x64: None) -> None:
    gradients = [scale * (1 + 2 * (i % 2)) * normal(i, 4, 6) for i in range(6)]
    got = updates(gk.mars_correction(), gradients[0], gradients)
    assert_equal(got, corrected(gradients))
    lengths = [float(jnp.linalg.norm(c)) for c in got]
    assert max(lengths) <= 1 + 1e-15
    clipped = sum(length > 1 - 1e-12 for length in lengths)
    assert clipped == {1e-3: 0, 1.0: 6}.get(scale, clipped) and (scale != 0.1 or 0 < clipped < 6)


def test_the_first_step(x64: None) -> None:
    """Official code: a previous gradient of zero. Paper: no correction. The same where the clip acts."""
    for scale, same in ((0.01, False), (10.0, True)):
        g = [scale * normal(i, 5) for i in range(3)]
        zero, skip = (updates(gk.mars_correction(first_step=s), g[0], g) for s in ("zero", "skip"))
        assert np.allclose(zero[0], skip[0], rtol=1e-12) == same
        assert_equal(skip, corrected(g, first=1.0))
        assert_equal(zero[1:], skip[1:])


def test_a_constant_gradient_is_itself_from_the_second_step(x64: None) -> None:
    g = 0.01 * normal(0, 8)
    first, *rest = updates(gk.mars_correction(), g, [g] * 4)
    assert_equal(first, (1 + SHARE) * g)
    assert_equal(rest, [g] * 3)


def test_what_is_clipped_is_the_whole_and_per_tensor(x64: None) -> None:
    g = {"a": 10 * normal(0, 5), "b": 0.01 * normal(1, 5)}
    (c,) = updates(gk.mars_correction(first_step="skip"), g, [g])
    assert_equal(c, {"a": g["a"] / jnp.linalg.norm(g["a"]), "b": g["b"]})
    layout = gk.leaves.layout((gk.leaves.by_path("a"), {"stack": 1}))
    (c,) = updates(gk.mars_correction(first_step="skip", layout=layout), g, [g])
    assert_equal(c["a"], g["a"] / jnp.maximum(1.0, jnp.abs(g["a"])))  # five tensors of one entry


def test_without_correction_and_clip_it_is_adamw(x64: None) -> None:
    gradients = [normal(i, 7) for i in range(6)]
    mars = gk.mars_adamw(0.1, gamma=0.0, max_norm=np.inf, weight_decay=0.1)
    adamw = gk.adamw(0.1, b1=0.95, b2=0.99, weight_decay=0.1)
    assert_equal(*(updates(tx, gradients[0], gradients) for tx in (mars, adamw)))


def test_lion_has_one_rate(x64: None) -> None:
    gradients, m = [0.1 * normal(i, 30) for i in range(6)], np.zeros(30)
    x = gradients[0]
    got = updates(gk.mars_lion(0.5, weight_decay=0.2), x, gradients)
    for c, u in zip(corrected(gradients), got, strict=True):
        m = 0.95 * m + 0.05 * c
        assert_equal(u, -0.5 * (np.sign(m) + 0.2 * x))
        x = x + u


def curve(x: jax.Array) -> jax.Array:
    return 0.02 * (x**3 - x)


@pytest.mark.parametrize("method", [gk.mars_adamw, gk.mars_lion, gk.mars_shampoo])
def test_exact_and_approximate_agree_on_one_batch(method: Any, x64: None) -> None:
    """Where the loss is the same at every step, last step's gradient is the gradient at the last point."""
    x = normal(0, 3, 4)
    exact = gk.mars_exact if method is gk.mars_adamw else lambda rate: method(rate, exact=True)
    for source in ("grad_fn", "previous_grads"):
        tx, state, y, before, path = exact(0.05), exact(0.05).init(x), x, 0 * x, [x]
        for _ in range(5):
            g = curve(y)
            u, state = tx.update(g, state, y, **{source: curve if source == "grad_fn" else before})
            y, before = y + u, g
            path.append(y)
        assert_equal(path, descend(method(0.05), x, curve, 5), rtol=1e-11)


def test_exact_subtracts_this_loss_at_the_previous_point(x64: None) -> None:
    """Losses s_t |x|^2 / 2: the correction has s_t (x - x_before), not s_t x - s_{t-1} x_before."""
    tx, x = gk.mars_correction(exact=True, max_norm=np.inf), normal(0, 4)
    state = tx.init(x)
    before = 0 * x
    for s in (1.0, 3.0, 0.5):
        c, state = tx.update(s * x, state, x, grad_fn=lambda y, s=s: s * y)
        assert_equal(c, s * x + SHARE * s * (x - before))
        before, x = x, x - 0.1 * c


def test_exact_asks_for_what_it_misses() -> None:
    for tx in (gk.mars_correction(exact=True), gk.mars_exact(0.1)):
        with pytest.raises(ValueError, match="needs the extra argument previous_grads or grad_fn"):
            tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
