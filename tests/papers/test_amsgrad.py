"""AMSGrad (Reddi, Kale, Kumar, 2018)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def reference(gradients: list, form: str, b1: float, b2: float, eps: float, eps_root: float) -> list:
    m = v = w = np.zeros(gradients[0].shape)
    out = []
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * np.asarray(g), b2 * v + (1 - b2) * np.asarray(g) ** 2
        c1, c2 = 1 - b1**t, 1 - b2**t
        w = np.maximum(w, v / c2 if form == "before_max" else v)
        denominator = np.sqrt((w / c2 if form == "after_max" else w) + eps_root) + eps
        out.append((m if form == "none" else m / c1) / denominator)
    return out


@pytest.mark.parametrize("form", ["none", "after_max", "before_max"])
def test_equations(form: str, x64: None) -> None:
    """Gradients that shrink, so that the maximum binds."""
    gradients = [normal(i, 6) / (i + 1) for i in range(7)]
    kwargs = {"b1": 0.7, "b2": 0.6, "eps": 1e-3, "eps_root": 1e-2}
    got = updates(gk.scale_by_amsgrad(bias_correction=form, **kwargs), gradients[0], gradients)
    assert_equal(got, reference(gradients, form, **kwargs))


def test_forms_differ_and_are_adam_while_moments_grow(x64: None) -> None:
    """Corrected or not, a maximum that never binds is Adam's moment; one that binds differs from form to form."""
    growing = [normal(0, 6) * 3.0**i for i in range(5)]
    falling = [normal(i, 6) / 2.0**i for i in range(5)]
    adam = updates(gk.scale_by_adam(b2=0.8), growing[0], growing)
    after, before, none = (
        lambda g, form=form: updates(gk.scale_by_amsgrad(b2=0.8, bias_correction=form), g[0], g)
        for form in ("after_max", "before_max", "none")
    )
    assert_equal(after(growing), adam)
    assert_equal(before(growing), adam)
    last = [f(falling)[-1] for f in (after, before, none)]
    assert all(jnp.abs(a - b).max() > 1e-2 for a, b in ((last[0], last[1]), (last[1], last[2]), (last[0], last[2])))


def test_the_example_of_the_first_theorem(x64: None) -> None:
    """The gradient is 4 every third step and -1 otherwise, on [-1, 1]: Adam ends at the worst point, 1; AMSGrad and
    AdamNC near the best, -1, within the length of a few of their last steps, 0.5 / sqrt(30000) = 0.003."""
    steps = 30_000
    rate = lambda step: 0.5 / jnp.sqrt(step.astype(float) + 1)  # noqa: E731
    kwargs = {"b1": 0.0, "b2": 1 / 17, "eps": 0.0}

    def last(tx: object) -> float:
        def step(carry: tuple, t: jax.Array) -> tuple:
            x, state = carry
            u, state = tx.update(jnp.where(t % 3 == 1, 4.0, -1.0), state, x)
            return (jnp.clip(x + u, -1.0, 1.0), state), None

        start = jnp.zeros(())
        return float(jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), jnp.arange(1, steps + 1))[0][0])())

    assert last(gk.adam(rate, **kwargs)) == 1.0
    assert last(gk.amsgrad(rate, bias_correction="none", **kwargs)) < -0.99
    assert last(gk.adamnc(rate, b1=0.0, eps=0.0)) < -0.99


def test_refuses_an_unknown_correction() -> None:
    with pytest.raises(ValueError, match="bias_correction must be one of 'none', 'after_max', 'before_max'"):
        gk.amsgrad(0.1, bias_correction="after")
