"""Bloop and the dynamic barrier: the order of the paper, and what stays of the main gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.aggregation import bloop, dynamic_barrier, project_out
from tests.papers.stacks import aggregate, draw, runner


@pytest.mark.parametrize("ema_first", [False, True])
@pytest.mark.parametrize("init", ["zeros", "grad"])
def test_four_steps(ema_first: bool, init: str, x64: None) -> None:
    """The paper projects with the average of the steps before, the authors' code with that of this step as well."""
    run, state, e = runner(bloop(aux_weight=0.7, ema_rate=0.3, eps=1e-3, ema_first=ema_first, init=init)), None, None
    for t in range(4):
        J = draw(t, 2)
        g, h = J
        e = (g if init == "grad" else 0 * g) if e is None else e
        new = e + 0.3 * (g - e)
        used = new if ema_first else e
        k = used @ h / (used @ used + 1e-3)
        out, state = run(J, state)
        np.testing.assert_allclose(out, g + 0.7 * (h - k * used), rtol=1e-12, atol=1e-14)
        e = new


def test_without_an_average_the_main_task_falls_as_without_the_auxiliary_one(x64: None) -> None:
    """<d, g> = |g|^2 with the average that is g, updated first; the plain g enters d, not the average."""
    J = draw(1, 2)
    out = aggregate(bloop(aux_weight=3.0, ema_rate=1.0, eps=0.0, ema_first=True), J)
    np.testing.assert_allclose(out @ J[0], J[0] @ J[0], rtol=1e-12)
    np.testing.assert_array_equal(aggregate(bloop(aux_weight=0.0), J), J[0])
    np.testing.assert_allclose(aggregate(bloop(aux_weight=0.5), J), J[0] + 0.5 * J[1], rtol=1e-14)  # the average is 0


def test_the_projection_is_unbiased_with_the_average_of_the_steps_before(x64: None) -> None:
    """It is linear in h and does not depend on this step's g: over signs of the noise the direction is that of the
    means. With the average updated first it is not."""
    rng = np.random.default_rng(0)
    g, h, noise = draw(2, 1)[0], draw(3, 1)[0], rng.standard_normal((2, 9))

    def mean(ema_first: bool) -> np.ndarray:
        run = runner(bloop(aux_weight=1.0, ema_rate=0.9, eps=0.0, ema_first=ema_first))
        state = run(np.stack([g, h]))[1]
        outs = [run(np.stack([g + s * noise[0], h + s * noise[1]]), state)[0] for s in (-1, 1)]
        exact = run(np.stack([g, h]), state)[0]
        return np.abs(np.mean(outs, axis=0) - exact).max()

    assert mean(False) < 1e-12
    assert mean(True) > 1e-3


def test_the_barrier_follows_an_auxiliary_gradient_that_does_more_than_enough(x64: None) -> None:
    g, J = draw(4, 1)[0], draw(4, 2)
    J[1] += 9 * g
    np.testing.assert_allclose(aggregate(dynamic_barrier(aux_weight=0.5), J), 0.5 * J[1], atol=1e-13)
    J[1] -= 18 * g
    out = aggregate(dynamic_barrier(aux_weight=0.5, eps=0.0), J)
    np.testing.assert_allclose(out @ g, g @ g, rtol=1e-10)
    np.testing.assert_allclose(out, aggregate(bloop(aux_weight=0.5, ema_rate=1.0, ema_first=True, eps=0.0), J))


def test_project_out_runs_over_the_whole_tree(x64: None) -> None:
    a, b = draw(5, 2)
    split = lambda x: {"a": jnp.asarray(x[:4]), "b": jnp.asarray(x[4:])}  # noqa: E731
    out = np.concatenate(jax.tree.leaves(project_out(split(a), split(b))))
    np.testing.assert_allclose(out, a - a @ b / (b @ b) * b, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(project_out(jnp.asarray(a), jnp.zeros(9)), a)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="bloop: 3 gradients came, and it takes two"):
        aggregate(bloop(), draw(0, 3).astype(np.float32))
    with pytest.raises(ValueError, match=r"ema_rate must be in \[0, 1\]"):
        dynamic_barrier(ema_rate=1.5)
    with pytest.raises(ValueError, match="init must be one of 'zeros', 'grad'"):
        bloop(init="ones")
