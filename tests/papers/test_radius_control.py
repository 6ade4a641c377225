"""How long a step may be, and which way it may change the norm of the weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.leaves import by_path, layout
from tests.papers.replay import assert_equal, normal, updates

norm = np.linalg.norm


def step(tx: Any, w: Any, u: Any) -> np.ndarray:
    """The weights after one step."""
    return np.asarray(w + updates(tx, w, [u])[0])


def test_with_all_defaults_it_is_the_learning_rate() -> None:
    """Bit for bit, for a number and for a schedule; and it needs no parameters."""
    u = {"kernel": np.asarray(normal(0, 6, 4)).astype(np.float32), "bias": np.ones(4, np.float32)}
    for rate in (0.1, lambda step: jnp.where(step == 0, 0.1, 0.3)):
        one, other = gk.radius_control(rate), gk.scale_by_learning_rate(rate)
        a, b = one.init(u), other.init(u)
        for _ in range(2):
            (got, a), (want, b) = one.update(u, a), other.update(u, b)
            jax.tree.map(np.testing.assert_array_equal, got, want)


def reference(w: np.ndarray, u: np.ndarray, lr: float, **how: Any) -> np.ndarray:
    """The order of record 46 for one matrix, with direct norms."""
    k = how.get("outward", 1.0) if np.sum(u * w) < 0 else how.get("inward", 1.0)
    u = u + (k - 1) * np.sum(u * w) / np.sum(w * w) * w
    axis = 0 if how.get("block") == "unit" else (0, 1)
    if "ratio" in how:
        sizes = [np.sqrt(np.sum(x * x, axis=axis, keepdims=True)) for x in (w, u)]
        u = u * np.maximum(1, how["ratio"] * sizes[0] / sizes[1])
    y = w - lr * u
    if how.get("pin"):
        y = y * (norm(w) - lr * np.sum(u * w) / norm(w)) / norm(y)
    return y * (1 - lr * how.get("cautious_decay", 0.0) * (u * w > 0))


@pytest.mark.parametrize("block", ["tensor", "unit"])
def test_the_order_is_that_of_the_record(block: str, x64: None) -> None:
    """Brake, floor, step, pin, decay, in any combination; all norms come from three sums per block."""
    how: dict[str, Any] = {"ratio": 0.9, "block": block, "outward": 0.5, "inward": 0.25, "pin": True}
    how["cautious_decay"] = 0.3
    for drop in ((), ("pin",), ("ratio",), ("outward", "inward"), ("cautious_decay", "pin")):
        own = {name: value for name, value in how.items() if name not in drop}
        for seed in range(2):  # of which one step goes outwards
            w, u = np.asarray(normal(seed, 5, 4)), np.asarray(normal(10 + seed, 5, 4)) * (1 - 2 * seed)
            assert_equal(step(gk.radius_control(0.2, **own), w, u), reference(w, u, 0.2, **own), rtol=1e-11)


def test_a_large_ratio_sets_the_norm_of_every_block(x64: None) -> None:
    """Layers of a stack, units, fused weights: |u| = ratio |W| of each."""
    x = {"ScanBlock_0": {"kernel": normal(0, 2, 5, 4)}}
    g = {"ScanBlock_0": {"kernel": normal(1, 2, 5, 4)}}
    for block, axes in (("tensor", (1, 2)), ("unit", 1)):
        tx = gk.radius_control(0.1, ratio=100.0, block=block)
        u = -updates(tx, x, [g])[0]["ScanBlock_0"]["kernel"] / 0.1
        assert_equal(norm(u, axis=axes), 100 * norm(x["ScanBlock_0"]["kernel"], axis=axes))
    fused = layout((by_path("qkv"), {"splits": (4, 2)}))
    w, g = {"qkv": normal(2, 5, 6)}, {"qkv": normal(3, 5, 6)}
    for how in ({"ratio": 2.0}, {"ratio": 2.0, "block": "unit", "pin": True, "outward": 0.5}):
        got = updates(gk.radius_control(0.1, layout=fused, **how), w, [g])[0]["qkv"]
        for part in (slice(0, 4), slice(4, 6)):
            alone = updates(gk.radius_control(0.1, **how), w["qkv"][:, part], [g["qkv"][:, part]])[0]
            assert_equal(got[:, part], alone)


def test_a_full_brake_and_a_pin_keep_the_norm(x64: None) -> None:
    w = normal(0, 5, 4)
    for i in range(4):
        u = normal(1 + i, 5, 4)
        assert_equal(norm(step(gk.radius_control(0.5, outward=0.0, inward=0.0, pin=True), w, u)), norm(w))
        # Without a pin a step at right angles makes it grow, by the second order.
        free = step(gk.radius_control(0.5, outward=0.0, inward=0.0), w, u)
        assert norm(free) > norm(w)
        w = free


def test_the_brake_of_the_norm_acts_after_the_step(x64: None) -> None:
    w = normal(0, 5, 4)
    for u, k in ((-w, 0.5), (w, 0.25), (normal(1, 5, 4), 0.5)):
        plain = w - 0.3 * u
        k = 0.5 if norm(plain) > norm(w) else 0.25
        got = step(gk.radial_brake(0.3, outward=0.5, inward=0.25), w, u)
        assert_equal(norm(got), norm(w) + k * (norm(plain) - norm(w)))
        assert_equal(got / norm(got), plain / norm(plain))


@pytest.mark.parametrize(
    "tx",
    [
        gk.update_ratio_floor(0.1),
        gk.row_floor(0.1),
        gk.radial_brake(0.1),
        gk.pin_radius(0.1),
        gk.radius_control(0.1, ratio=0.5, block="unit", outward=0.5, pin=True, cautious_decay=0.1),
    ],
)
def test_zero_weights_can_be_trained_and_zero_steps_stay(tx: Any, x64: None) -> None:
    """|W| = 0 gives the plain step, also of one unit or one layer of many; u = 0 gives none, and never NaN."""
    x = {"a": jnp.zeros((3, 4)), "ScanBlock_0": {"kernel": normal(0, 2, 3, 4).at[0].set(0)}}
    u = {"a": normal(1, 3, 4), "ScanBlock_0": {"kernel": normal(2, 2, 3, 4)}}
    first, second, nothing = updates(tx, x, [u, u, jax.tree.map(jnp.zeros_like, u)])
    assert_equal(first["a"], -0.1 * u["a"])
    assert_equal(first["ScanBlock_0"]["kernel"][0], -0.1 * u["ScanBlock_0"]["kernel"][0])
    for leaf in jax.tree.leaves((second, nothing)):
        assert np.isfinite(leaf).all()
    assert all(np.abs(leaf).max() < 1e-14 for leaf in jax.tree.leaves(nothing))
    assert norm(first["a"] + second["a"]) > 0.12 * norm(u["a"])


def test_vectors_are_left_alone(x64: None) -> None:
    x, u = {"bias": normal(0, 4), "kernel": normal(1, 3, 4)}, {"bias": normal(2, 4), "kernel": normal(3, 3, 4)}
    assert_equal(updates(gk.update_ratio_floor(0.1, ratio=50.0), x, [u])[0]["bias"], -0.1 * u["bias"])
    everything = updates(gk.update_ratio_floor(0.1, ratio=50.0, mask=gk.leaves.everything()), x, [u])[0]["bias"]
    assert_equal(norm(everything), 0.1 * 50 * norm(x["bias"]))


def test_the_decay_is_that_of_the_group(x64: None) -> None:
    """Cautious decay is weight decay, which a group of parameters multiplies."""
    x, u = {"kernel": normal(0, 3, 4)}, {"kernel": normal(1, 3, 4)}
    rule = (gk.leaves.everything(), gk.radius_control(0.1, cautious_decay=0.4), {"decay": 0.5})
    got = updates(gk.leaves.groups([rule]), x, [u])
    assert_equal(got, updates(gk.radius_control(0.1, cautious_decay=0.2), x, [u]))


def test_presets_are_the_method_with_one_control(x64: None) -> None:
    x, u = {"kernel": normal(0, 3, 4)}, {"kernel": normal(1, 3, 4)}
    for one, how in (
        (gk.update_ratio_floor, {"ratio": 0.35}),
        (gk.row_floor, {"ratio": 0.3825, "block": "unit"}),
        (gk.radial_brake, {"outward": 0.5, "brake": "norm"}),
        (gk.pin_radius, {"pin": True}),
    ):
        assert_equal(updates(one(0.1), x, [u]), updates(gk.radius_control(0.1, **how), x, [u]))
        assert [row.method for row in gk.leaves.describe(optax.chain(one(0.1)), x).rows] == [one.__name__]


def test_what_is_refused() -> None:
    for bad, message in (
        ({"outward": 1.5}, r"outward must be in \[0, 1\]"),
        ({"inward": -0.1}, r"inward must be in \[0, 1\]"),
        ({"ratio": -1.0}, r"ratio must be in \[0, inf\)"),
        ({"pin": True, "brake": "norm"}, "pin must be False with brake='norm'"),
        ({"brake": "size"}, "brake must be one of 'direction', 'norm'"),
    ):
        with pytest.raises(ValueError, match=message):
            gk.radius_control(0.1, **bad)
    x = {"kernel": jnp.ones((2, 3))}
    tx = gk.pin_radius(0.1)
    with pytest.raises(ValueError, match="pin_radius needs params"):
        tx.update(x, tx.init(x))
