"""SPlus (Frans, Levine, Abbeel, 2025), and where its official files disagree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates
from tests.papers.test_normuon import directions


def test_the_algorithm(x64: None) -> None:
    g = [np.asarray(normal(i, 4, 4)) for i in range(6)]
    m, S, Q, want = 0.0, [0.0, 0.0], [np.eye(4), np.eye(4)], []
    for t, x in enumerate(g, 1):
        m = 0.8 * m + 0.2 * x
        want.append(2 / 8 * Q[0] @ np.sign(Q[0].T @ m @ Q[1]) @ Q[1].T)
        S = [0.9 * s + 0.1 * y for s, y in zip(S, (x @ x.T, x.T @ x), strict=True)]
        if t == 1 or t % 3 == 0:
            Q = [np.linalg.eigh(s)[1] for s in S]
    got = directions(gk.scale_by_splus(b1=0.8, b2=0.9, update_interval=3), [normal(i, 4, 4) for i in range(6)])
    # Signs of eigenvectors cancel.
    assert_equal(got, want, 1e-8, 1e-9)


def test_its_norm_is_known_and_the_first_step_is_a_sign(x64: None) -> None:
    g = [normal(i, 4, 6) for i in range(5)]
    got = directions(gk.scale_by_splus(update_interval=2), g)
    assert_equal(got[0], 0.2 * np.sign(np.asarray(g[0])))
    np.testing.assert_allclose([np.linalg.norm(u) for u in got], 0.2 * np.sqrt(24), rtol=1e-10)
    # Without a basis it is the sign of the mean, at every step.
    m = 0.0
    for x, u in zip(g, directions(gk.scale_by_splus(max_dim=3, standard_dim=6), g), strict=True):
        m = 0.9 * m + 0.1 * np.asarray(x)
        assert_equal(u, 0.2 * np.sign(m))


def test_scales_at_the_largest_dimension(x64: None) -> None:
    """The torch file rotates below max_dim and has 2 / (in + out) up to it; the optax file not: two arguments here."""
    tree = {
        "a": normal(0, 4, 6),
        "b": normal(1, 4, 7),
        "bias": normal(2, 4),
        "embed": {"embedding": normal(3, 5, 4)},
    }
    tx = gk.scale_by_splus(max_dim=5, standard_dim=6, nonstandard_scale=0.01)
    state = tx.init(tree)
    assert set(state.Q["a"]) == {"0"} and not state.Q["bias"] and not state.Q["embed"]["embedding"]
    got = directions(tx, [tree])[0]
    sizes = {"a": 0.2, "b": 0.01, "bias": 0.01}
    for name, size in sizes.items():
        np.testing.assert_allclose(np.abs(got[name]), size, rtol=1e-12)
    np.testing.assert_allclose(np.abs(got["embed"]["embedding"]), 0.01, rtol=1e-12)


def test_decay_is_scaled_and_the_mean_is_of_parameters_after_the_step(x64: None) -> None:
    """Or, as in the optax file, of those from before it, one step behind."""
    x, g = {"w": normal(0, 4, 6)}, [{"w": normal(i, 4, 6)} for i in (1, 2, 3)]
    tx = gk.splus(0.5, weight_decay=0.3, ema_rate=0.8)
    plain = updates(gk.splus(0.5, weight_decay=0.0), x, g[:1])[0]
    assert_equal(updates(tx, x, g[:1])[0], {"w": plain["w"] - 0.5 * 0.2 * 0.3 * x["w"]}, 1e-12)
    start = x
    for before_step in (False, True):
        tx = gk.splus(0.5, weight_decay=0.3, ema_rate=0.8, average_before_step=before_step)
        x, state, e, update = start, tx.init(start), 0.0, jax.jit(tx.update)
        for t, y in enumerate(g, 1):
            u, state = update(y, state, x)
            before, x = x, optax.apply_updates(x, u)
            e = 0.8 * e + 0.2 * np.asarray((before if before_step else x)["w"])
            assert_equal(gk.eval_params(state, x)["w"], e / (1 - 0.8**t), 1e-12)


def test_zeros_and_bad_input() -> None:
    assert not np.asarray(directions(gk.scale_by_splus(eps=0.0), [jnp.zeros((3, 4))] * 2)).any()
    for options, message in (
        ({"nonstandard_scale": 0.0}, "nonstandard_scale must be"),
        ({"b2": 1.0}, "b2 must be"),
        ({"update_interval": 0}, "update_interval must be"),
    ):
        with pytest.raises(ValueError, match=message):
            gk.splus(**options)
    with pytest.raises(ValueError, match="ema_rate must be"):
        gk.splus(ema_rate=1.0)
