"""Models merged and copied (Zou, Zhang, Deng, 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.leaves import Merge, coalesce, decoalesce, interpolate_params, names, v_cycle
from tests.papers.replay import assert_equal, normal

HIDDEN = Merge(((0, 2), (1,), (3, 4, 5)), 2)  # unequal groups, of blocks that are no neighbours
PLAN: Any = {
    "up/kernel": {1: HIDDEN},
    "up/bias": {0: HIDDEN},
    "down/kernel": {0: HIDDEN._replace(input_side=True)},
}


def mlp(hidden: int) -> Any:
    return {
        "up": {"kernel": normal(0, 3, hidden), "bias": normal(1, hidden)},
        "down": {"kernel": normal(2, hidden, 2)},
    }


def apply(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["up"]["kernel"] + p["up"]["bias"][None]) @ p["down"]["kernel"]


def test_a_wider_network_computes_the_same(x64: None) -> None:
    """And merging it again gives the small one back."""
    small, x = mlp(6), normal(3, 5, 3)
    big = decoalesce(small, PLAN)
    assert big["up"]["kernel"].shape == (3, 12)
    assert_equal(apply(big, x), apply(small, x))
    assert_equal(coalesce(big, PLAN), small)


def test_copies_are_equal_and_merging_is_a_mean_or_a_sum(x64: None) -> None:
    small, big = mlp(6), mlp(12)
    wide = np.asarray(decoalesce(small, PLAN)["up"]["kernel"]).reshape(3, 6, 2)
    np.testing.assert_array_equal(wide[:, 0], wide[:, 2])
    np.testing.assert_array_equal(wide[:, 3], wide[:, 5])
    merged = coalesce(big, PLAN)
    up = np.asarray(big["up"]["kernel"]).reshape(3, 6, 2)
    np.testing.assert_allclose(merged["up"]["kernel"][:, :2], (up[:, 0] + up[:, 2]) / 2, rtol=1e-14)
    down = np.asarray(big["down"]["kernel"]).reshape(6, 2, 2)
    np.testing.assert_allclose(merged["down"]["kernel"][4:], down[3] + down[4] + down[5], rtol=1e-13)


def test_gradients_are_mapped_as_first_moments(x64: None) -> None:
    """The gradient of the small parameters, of a loss of the large model they stand for; and in the other direction."""
    small, big, x, y = mlp(6), mlp(12), normal(3, 5, 3), normal(4, 5, 2)
    loss = lambda p: jnp.sum((apply(p, x) - y) ** 2)  # noqa: E731
    want = jax.grad(lambda p: loss(decoalesce(p, PLAN)))(small)
    assert_equal(coalesce(jax.grad(loss)(decoalesce(small, PLAN)), PLAN, kind="first_moment"), want)
    want = jax.grad(lambda p: loss(coalesce(p, PLAN)))(big)
    assert_equal(decoalesce(jax.grad(loss)(coalesce(big, PLAN)), PLAN, kind="first_moment"), want)


def test_second_moments_are_those_of_independent_gradients(x64: None) -> None:
    """E (sum_i a_i g_i)^2 = sum_i a_i^2 E g_i^2: from unit vectors, one after another, the squares of first moments."""
    plan = {"w": {0: HIDDEN._replace(factor=2.0), 1: Merge(((0, 1),), 1, True)}}
    v = np.asarray(normal(0, 12, 2)) ** 2
    for f, shape, given in ((coalesce, (12, 2), v), (decoalesce, (6, 1), v[:6, :1])):
        want = 0
        for place in np.ndindex(*shape):
            e = np.zeros(shape)
            e[place] = 1
            want = want + np.asarray(f({"w": e}, plan, kind="first_moment")["w"]) ** 2 * given[place]
        np.testing.assert_allclose(f({"w": given}, plan, kind="second_moment")["w"], want, rtol=1e-12)


def test_embeddings_and_depth(x64: None) -> None:
    """With the official factor 2 of pairs a tied table keeps its logits; layers are copied, and merged by the mean."""
    table = normal(0, 7, 4)
    plan = {"table": {1: Merge(((0, 1),), 2, factor=2.0)}, "layers": {0: Merge(((0, 1), (2, 3)))}}
    tree = {"table": table[:, :2], "layers": normal(1, 2, 3)}
    big = decoalesce(tree, plan)
    np.testing.assert_allclose(2 * big["table"] @ big["table"].T, table[:, :2] @ table[:, :2].T, rtol=1e-13)
    np.testing.assert_array_equal(big["layers"], np.repeat(tree["layers"], 2, axis=0))
    assert_equal(coalesce(big, plan), tree)


def test_a_cycle_of_three_levels(x64: None) -> None:
    """Every level is trained on the way down and up, in this order, and what it had breaks the symmetry of copies."""
    plans = [{"w": {0: Merge(((0, 1), (2, 3)))}}, {"w": {0: Merge(((0, 1),))}}]
    calls = []

    def train(p: Any, level: int, steps: int) -> Any:
        calls.append((level, steps, p["w"].shape[0]))
        return p

    x = normal(0, 4)
    out = v_cycle(train, {"w": x}, plans, down=[1, 2], bottom=9, up=[5, 4], alpha=0.5)["w"]
    assert calls == [(0, 1, 4), (1, 2, 2), (2, 9, 1), (1, 4, 2), (0, 5, 4)]
    pairs = np.asarray(x).reshape(2, 2).mean(axis=1)
    middle = (pairs + pairs.mean()) / 2
    np.testing.assert_allclose(out, (np.asarray(x) + np.repeat(middle, 2)) / 2, rtol=1e-14)


def test_bad_input() -> None:
    tree = {"w": jnp.ones((4, 2))}
    for plan, message in (
        ({"w": {0: Merge(((0, 1), (1, 2)))}}, "must have every block from 0 on in one group"),
        ({"w": {0: Merge(((0, 1), (2,)))}}, "must have 3 blocks of 1"),
        ({"w": {0: Merge(((0, 1),), 3)}}, "must have 2 blocks of 3"),
        ({"w": {2: Merge(((0, 1),))}}, "axis 2 of 'w'"),
        ({"v": {}}, "plan has"),
    ):
        with pytest.raises(ValueError, match=message):
            coalesce(tree, plan)
    tied = {"table": tree["w"], "head": tree["w"]}
    pairs = {0: Merge(((0, 1), (2, 3)))}
    with pytest.raises(ValueError, match="are one array, and would be mapped twice"):
        coalesce(tied, dict.fromkeys(names(tied), pairs))
    with pytest.raises(ValueError, match="back must be like big"):
        interpolate_params(tree, {"w": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="up must have one number of steps per plan, 1, got 0"):
        v_cycle(lambda *a: a[0], tree, [{"w": pairs}], down=[1], bottom=1, up=[])
