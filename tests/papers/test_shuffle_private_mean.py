"""Shuffle private means (Cheu, Joseph, Mao, Peng, 2021)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.parallel import shuffle_private_mean

G = np.random.default_rng(0).uniform(-0.5, 0.5, (6, 3)).astype(np.float32)


def test_the_mean_is_right_and_the_variance_is_known() -> None:
    n, g, b, p, L, keys = 6, 5, 8, 0.25, 1.0, 3000
    draw = jax.jit(
        lambda keys: jax.vmap(lambda k: shuffle_private_mean(G, key=k, bound=L, levels=g, noise_trials=b))(keys)
    )
    x = np.asarray(draw(jax.random.split(jax.random.key(0), keys)))
    part = (G + L) / (2 * L) * g % 1
    variance = (2 * L / g) ** 2 * (n * b * p * (1 - p) + (part * (1 - part)).sum(0)) / n**2
    # Of three means, five standard errors; of a nearly normal sample's variance, five deviations sqrt(2 / 3000).
    assert np.abs(x.mean(0) - G.mean(0)).max() < 5 * np.sqrt(variance.max() / keys)
    np.testing.assert_allclose(x.var(0), variance, rtol=5 * np.sqrt(2 / keys))


def test_without_noise_and_with_many_levels_it_is_the_clipped_mean() -> None:
    """Clipped over the whole tree: a user with the norm 10 counts as one with the norm 1."""
    tree = {"a": jnp.array([[6.0], [0.3]]), "b": jnp.array([8.0, 0.0])}
    got = shuffle_private_mean(tree, key=0, bound=1.0, levels=10**6, noise_trials=0)
    np.testing.assert_allclose(got["a"], [0.45], atol=1e-5)
    np.testing.assert_allclose(got["b"], 0.4, atol=1e-5)


def test_the_order_of_users_changes_no_bit() -> None:
    """Sums of whole numbers: with values on the levels, where the rounding draws nothing."""
    on_levels = jnp.asarray(np.random.default_rng(1).integers(-4, 5, (8, 3)) / 16, jnp.float32)
    given = {"key": 3, "bound": 1.0, "levels": 32, "noise_trials": 5}
    want = shuffle_private_mean(on_levels, **given)
    np.testing.assert_array_equal(shuffle_private_mean(on_levels[::-1], **given), want)


def test_users_on_replicas_are_users() -> None:
    rows = jnp.asarray(np.random.default_rng(1).integers(-4, 5, (8, 3)) / 16, jnp.float32)
    given = {"key": 3, "bound": 1.0, "levels": 32, "noise_trials": 0}
    got = jax.vmap(lambda g: shuffle_private_mean(g, axis_name="replica", **given), axis_name="replica")(
        rows.reshape(4, 2, 3)
    )
    np.testing.assert_array_equal(got, np.tile(shuffle_private_mean(rows, **given), (4, 1)))


def test_bad_arguments_are_refused() -> None:
    given = {"key": 0, "bound": 1.0, "levels": 4, "noise_trials": 4}
    for name, bad, message in (
        ("bound", 0.0, r"bound must be in \(0, inf\)"),
        ("noise_p", 1.0, r"noise_p must be in \(0, 1\)"),
        ("levels", 2**30, "would not fit into int32"),
    ):
        with pytest.raises(ValueError, match=message):
            shuffle_private_mean(G, **{**given, name: bad})
