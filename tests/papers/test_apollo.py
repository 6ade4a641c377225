"""APOLLO and APOLLO-Mini (Zhu et al., 2024)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.golden.translate import ARRAYS
from tests.papers.replay import assert_equal, normal, updates

PLAIN: dict[str, Any] = {"key": 0, "growth_limit": math.inf}


def orthogonal(number: Any, dims: tuple[int, int], rank: int) -> jax.Array:
    """A square orthogonal matrix, the same at every step."""
    del number
    assert rank == dims[0]
    return jnp.asarray(np.linalg.qr(np.random.default_rng(5).standard_normal((rank, rank)))[0])


def test_every_channel_goes_along_its_gradient(x64: None) -> None:
    """Columns of a wide matrix, rows of a tall one: the cosine is 1 in the third step, momentum or not."""
    for shape, axis in (((4, 9), 0), ((9, 4), 1)):
        gradients = [normal(i, *shape) for i in range(3)]
        u = -np.asarray(updates(gk.apollo(0.1, rank=2, **PLAIN), gradients[0], gradients)[-1])
        g = np.asarray(gradients[-1])
        cosines = (u * g).sum(axis) / np.linalg.norm(u, axis=axis) / np.linalg.norm(g, axis=axis)
        np.testing.assert_allclose(cosines, 1, rtol=1e-12)
        ratios = np.linalg.norm(u, axis=axis) / np.linalg.norm(g, axis=axis)
        assert ratios.std() > 0.01 * ratios.mean()
        # One length per matrix: along the whole gradient.
        u = -np.asarray(updates(gk.apollo_mini(0.1, **PLAIN), gradients[0], gradients)[-1])
        assert_equal(jnp.asarray(u / np.linalg.norm(u)), jnp.asarray(g / np.linalg.norm(g)))


def test_a_square_orthogonal_projection_gives_the_length_of_adam(x64: None) -> None:
    """Of gradients rotated by P: Adam is not invariant, and what is compared is Adam on P^T G."""
    gradients = [normal(i, 4, 9) for i in range(3)]
    tx = gk.apollo(1.0, rank=4, projection=orthogonal, growth_limit=math.inf)
    got = updates(tx, gradients[0], gradients)
    P = orthogonal(0, (4, 9), 4)
    adam = updates(gk.scale_by_adam(eps=1e-6, eps_in_hat=False), gradients[0], [P.T @ g for g in gradients])
    for u, a, g in zip(got, adam, gradients, strict=True):
        size, own = np.linalg.norm(np.asarray(a), axis=0), np.linalg.norm(np.asarray(g), axis=0)
        # 1e-8 is added to |R|.
        assert_equal(-u, size / (own + 1e-8) * np.asarray(g), rtol=1e-10)


def test_the_state_is_rows_of_the_longer_side() -> None:
    x = {"wide": {"kernel": jnp.zeros((4, 9))}, "tall": {"kernel": jnp.zeros((9, 4))}, "bias": jnp.zeros(3)}
    for tx, r in ((gk.apollo(0.1, rank=2, key=0), 2), (gk.apollo_mini(0.1, key=0), 1)):
        state = tx.init(x)[0]
        sizes = [sum(v.size for v in jax.tree.leaves(part)) for part in (state.mu, state.nu, state.norm, state.rest)]
        assert sizes == [2 * r * 9, 2 * r * 9, 2, 2 * 3 + 1]


def test_the_projection_changes_when_it_is_due(x64: None) -> None:
    """Steps 1 and 2 have one, steps 3 and 4 the next; by tables in the place of random numbers."""
    seen = jnp.stack([jnp.eye(4)[:, :1], jnp.eye(4)[:, 1:2], jnp.eye(4)[:, 2:3]])

    def table(number: Any, dims: tuple[int, int], rank: int) -> jax.Array:
        return seen[number]

    g = normal(0, 4, 9)
    tx = gk.apollo(1.0, b1=0.0, b2=0.0, eps=0.0, rank=1, projection=table, update_interval=2, growth_limit=math.inf)
    for t, u in enumerate(updates(tx, g, [g] * 5)):
        # Without memory the length is 1 / |R| of every column, R the row of the projection.
        assert_equal(-u, g / (jnp.abs(g[t // 2])[None] + 1e-8), rtol=1e-12)


def test_random_projections_keep_lengths_on_average(x64: None) -> None:
    """E |P^T x|^2 = |x|^2: entries have the variance 1 / r. Over 2000 columns the mean is right to 5 / sqrt(2000 r)."""
    from gradkit.optimizers.matrix.apollo import _random

    for r in (1, 8):
        P = np.stack([np.asarray(_random(3)(jnp.asarray(i), (16, 20), r)) for i in range(64)])
        squares = (P**2).sum(-1).mean()
        assert abs(squares - 1) < 5 * np.sqrt(2 / (64 * 16 * r))


def test_an_svd_needs_no_key_and_sees_the_leading_directions(x64: None) -> None:
    """Of a gradient of rank one nothing is lost: f = |a| / |R| with |R| = |G| in every column."""
    g = normal(0, 4, 1) * normal(1, 1, 9)
    tx = gk.apollo(1.0, b1=0.0, b2=0.0, eps=0.0, rank=1, projection="svd", growth_limit=math.inf)
    (u,) = updates(tx, g, [g])
    assert_equal(-u, g / (jnp.linalg.norm(g, axis=0, keepdims=True) + 1e-8), rtol=1e-10)
    assert int(gk.diagnostics.metrics(tx.init(g))["failed_refreshes"]) == 0


def test_the_decay_comes_after_the_step(x64: None) -> None:
    x, g = normal(1, 4, 9), normal(0, 4, 9)
    (plain,), (decayed,) = (updates(gk.apollo(0.1, weight_decay=w, **PLAIN), x, [g]) for w in (0.0, 0.5))
    assert_equal(decayed, plain - 0.1 * 0.5 * (x + plain))


def test_growth_is_limited_before_or_after_the_scale(x64: None) -> None:
    """The limit does not see a scale behind it; nor one in front, but for the eps of 1e-8 of the first norm."""
    gradients = [normal(0, 4, 9), 100 * normal(1, 4, 9)]
    for front in (False, True):
        tx = gk.apollo(1.0, b1=0.0, b2=0.9, rank=2, scale=4.0, scale_front=front, growth_limit=1.01, key=0)
        sizes = [float(jnp.linalg.norm(u)) for u in updates(tx, gradients[0], gradients)]
        c = math.sqrt(1 - 0.9**2) / math.sqrt(1 - 0.9)
        assert sizes[1] / sizes[0] <= 1.01 * c * (1 + 1e-6)


def test_layers_of_a_stack_are_as_if_they_were_leaves(x64: None) -> None:
    layers = gk.leaves.layout((gk.leaves.by_rank(3), {"stack": (0,)}), default=ARRAYS)
    gradients = [normal(i, 2, 6, 4) * jnp.asarray([1.0, 9.0]).reshape(2, 1, 1) for i in range(3)]
    whole = updates(gk.apollo(0.1, rank=2, key=0, layout=layers), gradients[0], gradients)
    for layer in range(2):
        alone = updates(
            gk.apollo(0.1, rank=2, key=0, layout=ARRAYS), gradients[0][layer], [g[layer] for g in gradients]
        )
        assert_equal([u[layer] for u in whole], alone)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="apollo draws projections: key must be"):
        gk.apollo(0.1)
    tx = gk.apollo(0.1, rank=2, projection=lambda number, dims, rank: jnp.zeros((1, 1)))
    g = jnp.ones((3, 4))
    with pytest.raises(ValueError, match=r"projection must give an array of shape \(3, 2\)"):
        tx.update(g, tx.init(g), g)
