"""Weight standardization, and batch-channel normalization (Qiao et al., 2019)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import gradkit as gk
from gradkit.layers import RunningStatistics, batch_channel_norm, standardize_weight
from tests.golden import build, fixture
from tests.papers.replay import assert_equal, descend, normal


def test_units_have_mean_0_and_variance_1(x64: None) -> None:
    """To eps / (2 var); exactly with eps 0, whatever scale and offset a unit had."""
    w = normal(0, 3, 3, 2, 5)
    W = standardize_weight(w, eps=0.0)
    assert_equal(W.mean((0, 1, 2)), np.zeros(5), atol=1e-15)
    assert_equal(W.var((0, 1, 2)), np.ones(5))
    assert_equal(standardize_weight(3 * w - 7, eps=0.0), W, rtol=1e-11)
    assert_equal(standardize_weight(w).var((0, 1, 2)), w.var((0, 1, 2)) / (w.var((0, 1, 2)) + 1e-5))


def test_both_codes_of_the_authors(x64: None) -> None:
    w = np.asarray(normal(0, 6, 4))
    centred = w - w.mean(0, keepdims=True)
    torch = centred / (w.std(0, ddof=1, keepdims=True) + 0.1)
    tensorflow = centred / (w.std(0, keepdims=True) + 0.1)
    assert_equal(standardize_weight(jnp.asarray(w), eps=0.1, ddof=1, eps_in_sqrt=False), torch)
    assert_equal(standardize_weight(jnp.asarray(w), eps=0.1, eps_in_sqrt=False), tensorflow)
    rows = standardize_weight(jnp.asarray(w).T, eps=0.1, axis=1)
    assert_equal(rows.T, standardize_weight(jnp.asarray(w), eps=0.1))


def test_the_gradient_stands_at_right_angles_to_ones_and_to_the_weights(x64: None) -> None:
    """(G - mean(G) - W^ mean(G W^)) / sigma, per unit."""
    w, G = normal(0, 6, 4), normal(1, 6, 4)
    W, back = jax.vjp(lambda w: standardize_weight(w, eps=0.0), w)
    (d,) = back(G)
    assert_equal(d.sum(0), np.zeros(4), atol=1e-14)
    assert_equal((d * W).sum(0), np.zeros(4), atol=1e-14)
    sigma = np.asarray(w.std(0, keepdims=True))
    want = (G - G.mean(0, keepdims=True) - W * (G * W).mean(0, keepdims=True)) / sigma
    assert_equal(d, want, rtol=1e-11)


@pytest.mark.parametrize("kwargs", [{"eps": 0.0}, {}, {"eps": 0.0, "eps_in_sqrt": False}, {"ddof": 1}])
def test_equal_weights_give_zero_and_a_finite_gradient(kwargs: Any) -> None:
    w = jnp.ones((3, 2)).at[0, 0].set(2.0)
    value, d = jax.value_and_grad(lambda w: standardize_weight(w, **kwargs)[0].sum())(w)
    assert np.isfinite(value) and np.isfinite(d).all()
    assert (standardize_weight(w, **kwargs)[:, 1] == 0).all()


def test_in_a_chain_it_is_the_layer(x64: None) -> None:
    """`gk.reparameterize` around momentum, on standardised weights: the latent weights of the golden trajectory."""
    golden = fixture.read(fixture.Path(fixture.__file__).parent / "data/large_batch/weight_standardization.npz")
    latent = {leaf: jnp.asarray(value) for leaf, value in fixture.params(golden).items()}
    standard = lambda z: jax.tree.map(standardize_weight, z)  # noqa: E731
    hyper = golden.meta["hyper"]
    tx = gk.reparameterize(gk.sgd(hyper["learning_rate"], momentum=hyper["momentum"]), lambda w: latent, standard)
    grads = iter([fixture.grads(golden, t) for t in range(len(golden.steps))])
    start = standard(latent)
    tx = optax.GradientTransformation(tx.init, jax.jit(tx.update))
    path = descend(tx, start, lambda _: jax.tree.map(jnp.asarray, next(grads)), len(golden.steps) - 1)
    for leaf, want in golden.extra().items():
        assert_equal(path[-1][leaf.removeprefix("effective_last/")], want, rtol=1e-10, atol=1e-11)
    assert golden.method in build.TRANSFORMATIONS


def test_batch_statistics_then_groups_are_flax_layers(x64: None) -> None:
    """The form for large batches: batch normalization, then group normalization."""
    x, scale, bias = normal(0, 6, 3, 4), normal(1, 4), normal(2, 4)
    start = RunningStatistics(normal(3, 4), jnp.square(normal(4, 4)))
    y, state = batch_channel_norm(x, scale, bias, start, num_groups=2, decay=0.8, estimated=False)
    batch = nn.BatchNorm(use_running_average=False, momentum=0.8, use_scale=False, use_bias=False, param_dtype=x.dtype)
    with jax.numpy_dtype_promotion("standard"):  # Flax's own arithmetic
        z, stats = batch.apply({"batch_stats": start._asdict()}, x, mutable=["batch_stats"])
    group = nn.GroupNorm(2, epsilon=1e-5, param_dtype=x.dtype)
    with jax.numpy_dtype_promotion("standard"):
        want = group.apply({"params": {"scale": scale, "bias": bias}}, z)
    assert_equal(y, want, rtol=1e-9)
    assert_equal(state._asdict(), stats["batch_stats"])


def test_estimated_statistics_normalise_and_carry_no_gradient(x64: None) -> None:
    """With one group per channel the channel norm of positions undoes any scale: instead look at the gradient, which is
    that of the affine map with constant statistics followed by the group norm."""
    x, ones, zeros = normal(0, 3, 5, 4), jnp.ones(4), jnp.zeros(4)
    start = RunningStatistics(normal(1, 4), 1 + jnp.square(normal(2, 4)))
    _, state = batch_channel_norm(x, ones, zeros, start, num_groups=2)
    group = nn.GroupNorm(2, epsilon=1e-5, use_scale=False, use_bias=False, param_dtype=x.dtype)

    def constant(x: jax.Array) -> jax.Array:
        z = (x - state.mean.reshape(1, 1, 4)) / jnp.sqrt(state.var.reshape(1, 1, 4) + 1e-5)
        return jnp.sum(group.apply({}, z) ** 3)

    with jax.numpy_dtype_promotion("standard"):
        want, dwant = jax.value_and_grad(constant)(x)
    value = lambda x: jnp.sum(batch_channel_norm(x, ones, zeros, start, num_groups=2)[0] ** 3)  # noqa: E731
    got, dgot = jax.value_and_grad(value)(x)
    assert_equal(got, want, rtol=1e-10)
    assert_equal(dgot, dwant, rtol=1e-8, atol=1e-10)
    y, same = batch_channel_norm(x, ones, zeros, state, num_groups=2, use_running_average=True)
    assert_equal(same, state)
    assert_equal(jnp.sum(y**3), want, rtol=1e-10)


def test_bad_input() -> None:
    x, c = jnp.ones((2, 4)), jnp.ones(4)
    with pytest.raises(ValueError, match="w must be floating point"):
        standardize_weight(jnp.ones((2, 2), int))
    with pytest.raises(ValueError, match="eps must be in"):
        standardize_weight(x, eps=-1.0)
    with pytest.raises(ValueError, match="axis must name axes"):
        standardize_weight(x, axis=2)
    with pytest.raises(ValueError, match="groups must divide"):
        batch_channel_norm(x, c, c, RunningStatistics(c, c), num_groups=3)
    with pytest.raises(ValueError, match=r"state.mean must have shape \(4,\)"):
        batch_channel_norm(x, c, c, RunningStatistics(c[:2], c), num_groups=2)
