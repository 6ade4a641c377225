"""A hidden layer trained by gradient boosting (Emami, Martínez-Muñoz, 2019)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.layers import boost, gradient_boosted_layers
from tests.papers.replay import assert_equal, normal

N, D, T, J = 24, 3, 5, 2


def squared(output: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(output - target)) / 2


def network(layers: Any, x: Any) -> np.ndarray:
    """The joined network, in NumPy."""
    hidden, output = ({k: np.asarray(v) for k, v in layers[name].items()} for name in ("hidden", "output"))
    return 1 / (1 + np.exp(-(x @ hidden["kernel"] + hidden["bias"]))) @ output["kernel"] + output["bias"]


def trained(loss: Any, y: Any, **more: Any) -> tuple[np.ndarray, Any]:
    x = normal(0, N, D)
    fit = lambda x, y: boost(loss, x, y, gk.adam(0.1), key=0, num_blocks=T, units=J, steps=3, **more)  # noqa: E731
    return np.asarray(x), jax.jit(fit)(x, y)


def test_a_squared_loss_falls_with_every_block_and_any_number_of_them_is_a_network(x64: None) -> None:
    """After three steps, a bad fit: the joined first t blocks have the loss F_t; all T of them too. F_0 is the mean,
    and every block takes the step of least squares along itself."""
    y = normal(1, N, 2)
    x, blocks = trained(squared, y, num_outputs=2)
    y = np.asarray(y)
    assert_equal(blocks.constant, y.mean(axis=0), rtol=1e-12)
    assert (np.diff(blocks.losses) < 0).all()
    F = np.broadcast_to(y.mean(axis=0), y.shape)
    for t in range(1, T + 1):
        found = network(gradient_boosted_layers(blocks, t), x)
        np.testing.assert_allclose(((found - y) ** 2).sum(axis=1).mean() / 2, blocks.losses[t], rtol=1e-12)
        # The residual has no part left along the block.
        np.testing.assert_allclose(np.vdot(y - found, found - F), 0, atol=1e-12)
        F = found
    layers = gradient_boosted_layers(blocks)
    assert layers["hidden"]["kernel"].shape == (D, T * J) and layers["output"]["kernel"].shape == (T * J, 2)


def test_half_of_the_step_and_of_the_examples(x64: None) -> None:
    """The shrinkage is a share of the Newton step: 1 - (1 - s)^2 of what a whole step takes off the loss."""
    y = normal(1, N)[:, None]
    _x, whole = trained(squared, y, subsample=0.5)
    _, half = trained(squared, y, subsample=0.5, shrinkage=0.5)
    fall = [float(blocks.losses[0] - blocks.losses[1]) for blocks in (half, whole)]
    assert fall[0] == pytest.approx(0.75 * fall[1], rel=1e-12)
    assert_equal(half.output_kernel[0], whole.output_kernel[0] / 2, rtol=1e-12)


def test_classes_start_at_their_frequencies(x64: None) -> None:
    """F_0 has the frequencies of the labels; the cross entropy falls, and pseudo-residuals are those of the softmax."""
    y = jnp.asarray(np.arange(N) % 4 % 3)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    x, blocks = trained(loss, y, num_outputs=3)
    shares = np.exp(blocks.constant) / np.exp(blocks.constant).sum()
    np.testing.assert_allclose(shares, np.bincount(np.asarray(y)) / N, rtol=1e-10)
    assert blocks.losses[-1] < blocks.losses[0]
    logits = network(gradient_boosted_layers(blocks), x)
    entropy = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(N), np.asarray(y)]
    np.testing.assert_allclose(entropy.mean(), blocks.losses[-1], rtol=1e-12)


def test_bad_input() -> None:
    x, tx = jnp.ones((4, 2)), optax.sgd(0.1)
    for given, message in (
        ({"num_blocks": 0}, "num_blocks must be"),
        ({"shrinkage": 1.5}, r"shrinkage must be in \(0, 1\]"),
        ({"subsample": 0.0}, "subsample must be in"),
        ({"targets": jnp.ones(3)}, "targets must have a leading axis of 4"),
        ({"inputs": jnp.ones(4)}, "inputs must be floating point with 2 axes"),
        ({"loss_fn": lambda output, target: output - target}, "loss_fn must give a scalar"),
    ):
        with pytest.raises(ValueError, match=message):
            boost(**{"loss_fn": squared, "inputs": x, "targets": jnp.ones(4), "inner": tx, "key": 0, **given})
    _, blocks = trained(squared, jnp.ones((N, 1)))
    with pytest.raises(ValueError, match="num_blocks must be an integer >= 1 and <= 5"):
        gradient_boosted_layers(blocks, 6)
