"""Variance reduced gradients by their signal-to-noise ratio (Jiang et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal

SHAPES = {"bias": (5,), "kernel": (3, 4)}
BASES = {
    "vr_sgd": (gk.vr_sgd, gk.sgd, {}),
    "vr_momentum": (gk.vr_momentum, gk.momentum, {}),
    "vr_adam": (gk.vr_adam, gk.adam, {}),
    "vr_lars": (gk.vr_lars, gk.lars, {"weight_decay": 0.1}),
    "vr_lamb": (gk.vr_lamb, gk.lamb, {"weight_decay": 0.1}),
}


def tree(seed: int, *lead: int) -> dict[str, jax.Array]:
    return {name: normal(seed + i, *lead, *shape) for i, (name, shape) in enumerate(SHAPES.items())}


def moments(parts: dict[str, jax.Array]) -> gk.gradients.GradientMoments:
    """The moments of a leading axis of gradients."""
    k = len(parts["bias"])
    mean, squares = ({n: (x**p).mean(0) for n, x in parts.items()} for p in (1, 2))
    return gk.gradients.GradientMoments(mean, squares, jnp.zeros(()), jnp.asarray(k))


def run(tx: optax.GradientTransformation, steps: list[Any], params: Any) -> list[Any]:
    tx, out = optax.with_extra_args_support(tx), []
    state, update = tx.init(params), jax.jit(tx.update)
    for grads, extra in steps:
        u, state = update(grads, state, params, **extra)
        params = optax.apply_updates(params, u)
        out.append(u)
    return out


def reference(parts: np.ndarray, gamma: float) -> np.ndarray:
    """The ratio of one tensor, from the gradients of its parts."""
    r = parts.mean(0) ** 2 / parts.var(0)
    return np.clip(r / r.mean(), gamma, 1)


@pytest.mark.parametrize("b3", [None, 0.0, 0.7])
def test_is_the_ratio_times_the_gradient(b3: float | None, x64: None) -> None:
    """Against NumPy, leaf by leaf, with the running mean of the ratio corrected for its start at 0."""
    steps, p = [tree(10 * t, 4) for t in range(3)], dict.fromkeys(SHAPES, 0.0)
    given = [((m := moments(parts)).mean, {"grad_moments": m}) for parts in steps]
    got = run(gk.scale_by_gsnr(gamma=0.2, b3=b3), given, tree(99))
    for t, (parts, u) in enumerate(zip(steps, got, strict=True)):
        for name, x in parts.items():
            r, b = reference(np.asarray(x), 0.2), b3 or 0.0
            p[name] = b * p[name] + (1 - b) * r
            assert_equal(u[name], p[name] / (1 - b ** (t + 1)) * np.asarray(x).mean(0), rtol=1e-11)
            assert np.all(np.abs(u[name]) >= 0.2 * np.abs(x.mean(0)) * (1 - 1e-12))
            assert np.all(np.abs(u[name]) <= np.abs(x.mean(0)) * (1 + 1e-12))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_identical_parts_change_nothing(dtype: Any, x64: None) -> None:
    """Also where rounding leaves a little variance: the mean of three equal squares is not always the square."""
    g = {name: x.astype(dtype) for name, x in tree(0).items()} | {"half": jnp.array([0.0, 0.0, 3.0], dtype)}
    mean, squares = {n: (x + x + x) / 3 for n, x in g.items()}, {n: (x * x + x * x + x * x) / 3 for n, x in g.items()}
    moments = gk.gradients.GradientMoments(mean, squares, jnp.zeros(()), jnp.asarray(3))
    (got,) = run(gk.scale_by_gsnr(), [(g, {"grad_moments": moments})], g)
    assert_equal(got, g, rtol=4 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize(
    ("name", "own"), [*((name, {}) for name in BASES), *((n, {"second_moment": "raw"}) for n in ("vr_adam", "vr_lamb"))]
)
def test_without_rescaling_is_the_base_rule(name: str, own: dict[str, str], x64: None) -> None:
    ours, base, hyper = BASES[name]
    given = [((m := moments(tree(10 * t, 4))).mean, {"grad_moments": m}) for t in range(3)]
    got = run(ours(0.1, gamma=1.0, **hyper, **own), given, tree(99))
    assert_equal(got, run(base(0.1, **hyper), given, tree(99)), rtol=1e-11)


@pytest.mark.parametrize("name", BASES)
def test_is_the_base_rule_on_the_scaled_gradient(name: str, x64: None) -> None:
    """A chain: the ratio has a memory where the paper gives it one, and has none in front of SGD and LARS."""
    ours, base, hyper = BASES[name]
    given = [((m := moments(tree(10 * t, 4))).mean, {"grad_moments": m}) for t in range(3)]
    b3 = None if name in ("vr_sgd", "vr_lars") else 0.9
    scaled = [(u, {}) for u in run(gk.scale_by_gsnr(b3=b3), given, tree(99))]
    assert_equal(run(ours(0.1, **hyper), given, tree(99)), run(base(0.1, **hyper), scaled, tree(99)), rtol=1e-11)


def test_a_raw_second_moment_keeps_the_ratio_in_the_step(x64: None) -> None:
    """Adam forgets a factor of its gradient, so with scaled moments a constant ratio is lost; with the raw one not."""
    g = {"w": normal(0, 6)}
    squares = {"w": g["w"] ** 2 * (1 + jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, 100.0]))}
    steps = [(g, {"grad_sq": squares})] * 3
    for second_moment, share in (("scaled", 1.0), ("raw", 0.1)):
        for u in run(gk.vr_adam(1.0, eps=0.0, second_moment=second_moment), steps, g):
            assert_equal(u["w"][:5], -jnp.sign(g["w"][:5]), rtol=1e-10)
            assert_equal(u["w"][5], -share * jnp.sign(g["w"][5]), rtol=1e-10)


def test_where_nothing_varies_or_nothing_is(x64: None) -> None:
    """r is 1 without noise, gamma without either, decided before the mean of the leaf is taken; 0 without signal."""
    g, noise = jnp.array([2.0, 0.0, 0.0, 3.0]), jnp.array([0.0, 0.0, 1.0, 9.0])
    r = np.array([1.0, 0.25, 0.0, 1.0])
    (got,) = run(gk.scale_by_gsnr(gamma=0.25, b3=None), [(g, {"grad_sq": g**2 + noise})], g)
    assert_equal(got, np.clip(r / r.mean(), 0.25, 1) * np.asarray(g))
    silent = run(gk.scale_by_gsnr(), [(0 * g, {"grad_sq": noise})] * 2, g)
    assert not np.any(silent)


def test_from_a_source_of_moments(x64: None) -> None:
    """The moments of `gradient_moments` go in as they are, and less noisy coordinates go further."""
    x = jnp.stack([jnp.linspace(0.9, 1.1, 8), jnp.linspace(-9.0, 11.0, 8)], axis=1)
    source = gk.gradients.gradient_moments(lambda w, batch: jnp.mean(batch @ w), 4)
    w = jnp.zeros(2)
    _, found = source(w, x)
    tx = gk.vr_sgd(1.0)
    u, _ = jax.jit(lambda w, m: tx.update(m.mean, tx.init(w), w, grad_moments=m))(w, found)
    assert_equal(u, -jnp.array([1.0, 0.1]) * jnp.array([1.0, 1.0]), rtol=1e-9)


def test_bad_input() -> None:
    w = {"a": jnp.ones(3)}
    tx = gk.scale_by_gsnr()
    with pytest.raises(ValueError, match="scale_by_gsnr needs the extra argument grad_moments"):
        tx.update(w, tx.init(w), w)
    with pytest.raises(ValueError, match="at least 2 parts of the batch, got 1"):
        tx.update(w, tx.init(w), w, grad_moments=gk.gradients.GradientMoments(w, w, jnp.ones(()), jnp.asarray(1)))
    with pytest.raises(ValueError, match="gradients do not match"):
        other = gk.gradients.GradientMoments({"b": jnp.ones(3)}, w, jnp.ones(()), jnp.asarray(2))
        tx.update(w, tx.init(w), w, grad_moments=other)
    with pytest.raises(ValueError, match=r"grad_moments must be a gk.gradients.GradientMoments.*got tuple"):
        tx.update(w, tx.init(w), w, grad_moments=(w, w))
    with pytest.raises(ValueError, match="second_moment must be one of"):
        gk.vr_adam(0.1, second_moment="both")
