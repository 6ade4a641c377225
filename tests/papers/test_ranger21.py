"""Ranger21 (Wright, Demeure, 2021)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, descend, normal, updates

LEAVES = {"bias": (3,), "kernel": (4, 5)}


def draw(seed: int, scale: float = 1.0) -> dict:
    return {name: scale * np.asarray(normal(seed + i, *shape)) for i, (name, shape) in enumerate(LEAVES.items())}


def unit(x: np.ndarray) -> np.ndarray:
    return np.sqrt((x**2).sum(0, keepdims=True))


def reference(x: dict, gradients: list, h: dict) -> dict:
    """One step after the other, in place, as the algorithm is written."""
    m, v, v_max, slow = ([{k: np.zeros_like(w) for k, w in x.items()} for _ in range(2)] for _ in range(4))
    v, v_max, slow, T = v[0], v_max[0], {k: w.copy() for k, w in x.items()}, h["total_steps"]
    start = T - h["warmdown_steps"]
    for t, g in enumerate(gradients, 1):
        lr = h["learning_rate"] * min(1, t / h["warmup_steps"])
        if t >= start:
            lr = max(lr - (lr - h["min_learning_rate"]) * min(1, (t + 1 - start) / (T - start + 1)), 3e-5)
        g = {k: w.copy() for k, w in g.items()}
        for k in x:
            limit = h["clipping"] * np.maximum(unit(x[k]), 1e-3)
            g[k] = g[k] * np.minimum(1, limit / unit(g[k]))
            if g[k].ndim > 1:
                g[k] -= g[k].mean(0, keepdims=True)
            g[k] /= g[k].std(ddof=1) + 1e-8
            v[k] = h["b2"] * v[k] + (1 - h["b2"]) * g[k] ** 2
            v_max[k] = np.maximum(v_max[k], v[k])
        c1, c2 = 1 - h["b1"] ** t, 1 - h["b2"] ** t
        mean = sum(w.sum() for w in v.values()) / sum(w.size for w in v.values()) / c2
        positive, negative = m[t % 2], m[1 - t % 2]
        for k in x:
            x[k] = x[k] * (1 - lr * h["weight_decay"] / np.sqrt(mean))
            x[k] = x[k] * (1 - lr * 2 * h["norm_loss"] * (1 - 1 / (unit(x[k]) + 1e-8)))
            positive[k] = h["b1"] ** 2 * positive[k] + (1 - h["b1"] ** 2) * g[k]
            u = ((1 + h["b0"]) * positive[k] - h["b0"] * negative[k]) / np.hypot(1 + h["b0"], h["b0"])
            d = np.log1p(np.exp(h["softplus_beta"] * (np.sqrt(v_max[k] / c2) + 1e-8))) / h["softplus_beta"]
            x[k] = x[k] - lr / c1 * u / d
            if t % h["sync_every"] == 0:
                x[k] = slow[k] = h["slow_step_size"] * x[k] + (1 - h["slow_step_size"]) * slow[k]
    return x


def test_the_chain_is_the_algorithm(x64: None) -> None:
    """Every part on, decays large enough that their order shows: they act one after the other."""
    h = {
        "learning_rate": 0.05,
        "total_steps": 16,
        "b0": 0.7,
        "b1": 0.8,
        "b2": 0.9,
        "clipping": 0.5,
        "softplus_beta": 5.0,
        "norm_loss": 0.3,
        "weight_decay": 0.4,
        "sync_every": 3,
        "slow_step_size": 0.4,
        "warmup_steps": 4,
        "warmdown_steps": 6,
        "min_learning_rate": 1e-3,
    }
    gradients, x = [draw(10 * t) for t in range(1, 17)], draw(0)
    tx = gk.ranger21(**h)
    y, state = jax.tree.map(jnp.asarray, x), None
    state = tx.init(y)
    for g in gradients:
        u, state = tx.update(jax.tree.map(jnp.asarray, g), state, y)
        y = optax.apply_updates(y, u)
    # The norms' 1e-8 is added before one decay here and between both there.
    assert_equal(y, reference(x, gradients, h), rtol=1e-9)


def test_without_its_parts_it_is_amsgrad_under_every_second_gradient(x64: None) -> None:
    """b0 = b1 = 0: the gradient over the largest second moment so far. With growing gradients, that is RMSProp."""
    parts = {"norm_loss": 0.0, "weight_decay": 0.0, "sync_every": 99, "clipping": jnp.inf, "use_softplus": False}
    tx = gk.ranger21(
        0.1, total_steps=100, warmup_steps=1, b0=0.0, b1=0.0, centralize=False, normalize=False, eps=0.0, **parts
    )
    growing = lambda x: {"w": jnp.array([2.0, -3.0]) * jnp.exp(-x["w"] * jnp.array([1.0, -1.0]))}  # noqa: E731
    x = {"w": jnp.zeros(2)}
    got = descend(tx, x, growing, 6)
    want = descend(gk.adam(0.1, b1=0.0, eps=0.0), x, growing, 6)
    assert_equal(got, want)


def test_eps_is_also_that_of_the_norm_loss(x64: None) -> None:
    """With zero gradients and no decay only the norm loss acts: -2 n (1 - 1 / (|column| + eps)) x, at rate 1."""
    x = {"kernel": jnp.asarray([[3.0, 0.1], [4.0, 0.2]])}
    tx = gk.ranger21(1.0, total_steps=100, warmup_steps=1, eps=0.1, norm_loss=0.2, weight_decay=0.0)
    got = updates(tx, x, [{"kernel": jnp.zeros((2, 2))}])[0]
    want = -2 * 0.2 * (1 - 1 / (np.array([5.0, np.sqrt(0.05)]) + 0.1)) * np.asarray(x["kernel"])
    assert_equal(got, {"kernel": want}, rtol=1e-12)


def test_a_run_ends_with_the_smallest_learning_rate(x64: None) -> None:
    """After the last iteration the learning rate is the smallest one; the metric is that of the schedule."""
    tx = gk.ranger21(0.1, total_steps=10, warmup_steps=2, warmdown_steps=4, min_learning_rate=1e-3)
    x = {"w": normal(0, 4)}
    state, rates = tx.init(x), []
    for _ in range(12):
        _, state = tx.update(x, state, x)
        rates.append(float(gk.diagnostics.metrics(state)["learning_rate"]))
    schedule = gk.schedules.ranger21_schedule(0.1, total_steps=10, warmup_steps=2, warmdown_steps=4, min_value=1e-3)
    np.testing.assert_allclose(rates, schedule(jnp.arange(12)), rtol=1e-6)
    np.testing.assert_allclose(rates[9:], 1e-3, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 10, "warmup_steps": 6, "warmdown_steps": 5}, "total_steps must be at least"),
        ({"total_steps": 10, "warmup_steps": -1}, "warmup_steps must be"),
        ({"total_steps": 10, "softplus_beta": 0.0}, "softplus_beta must be"),
    ],
)
def test_bad_input(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gk.ranger21(0.1, **settings)
    with pytest.raises(TypeError, match="total_steps"):
        gk.ranger21(0.1)  # pyright: ignore[reportCallIssue]


def test_the_length_of_the_warm_up_can_be_traced() -> None:
    """All hyperparameters injected, b2 among them: its warm-up of 2 / (1 - b2) = 4 steps is exact."""
    x = {"w": normal(0, 4)}
    settings: dict = {"learning_rate": 0.1, "total_steps": 40, "b2": 0.5}
    tx, injected = gk.ranger21(**settings), gk.inject_hyperparams(gk.ranger21)(**settings)
    for got, want in zip(updates(injected, x, [x] * 5), updates(tx, x, [x] * 5), strict=True):
        # A few roundings of float32 per operation.
        np.testing.assert_allclose(got["w"], want["w"], rtol=1e-5)
