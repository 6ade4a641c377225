"""Precision: rounding is right in the mean, a master is a float32 run, a narrow state follows its averages."""

import importlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.engine.codecs import Blocks, Narrow, between, decode, encode_bfloat16, encode_int8

pytestmark = pytest.mark.slow

# The package attribute of this name is the function.
module = importlib.import_module("gradkit.transforms.precision")

# optax's types do not say what a tree holds.
precision: Any = module.precision
BF16: Any = jnp.bfloat16


def run(tx: Any, params: Any, grads: Any) -> Any:
    """Scans the transformation over gradients with a leading axis of steps; scan refuses a state that changes."""

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.jit(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g))(params, grads)


def test_rounding_is_exact_in_the_mean() -> None:
    """Over all 2^16 thresholds the mean of the two neighbours is the number itself, to the last bit."""
    x = jnp.array([1.001, -3.1415927, 1e-30, 255.99, 0.0, 1.0], jnp.float32).reshape(-1, 1)
    y = between(x, jnp.arange(2**16, dtype=jnp.uint32).reshape(1, -1))
    np.testing.assert_array_equal(np.asarray(y, np.float64).mean(1, keepdims=True), np.asarray(x, np.float64))
    np.testing.assert_array_equal(y.astype(BF16).astype(jnp.float32), y)
    assert all(len(np.unique(row)) <= 2 for row in np.asarray(y))
    odd = jnp.array([jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    np.testing.assert_array_equal(between(odd, jnp.full(3, 0xFFFF, jnp.uint32)), odd)


@pytest.mark.parametrize("u", [1e-3, -1e-3, -0.9993, -0.4, 1.7, -1.6])
def test_parameters_move_in_the_mean(u: float) -> None:
    """1 + 1e-3 is no bfloat16; nearest rounding stays at 1. Also where one update cannot reach every number."""
    n = 2**14
    p = jnp.ones(n, BF16)
    nearest = precision(optax.scale(1.0))
    g = jnp.full(n, u, jnp.float32)
    stuck, _ = nearest.update(g, nearest.init(p), p)
    if abs(u) == 1e-3:
        assert float((p + stuck)[0]) == 1.0
    tx = precision(optax.scale(1.0), rounding="stochastic", key=jax.random.key(1))
    updates, _ = tx.update(g, tx.init(p), p)
    assert updates.dtype == BF16
    got = np.asarray(optax.apply_updates(p, updates), np.float64)
    # Two values a spacing of at most 2^-7 apart, twice rounded: a deviation below 2^-8 each; five of them.
    assert abs(got.mean() - (1 + np.float32(u))) < 5 * np.sqrt(2) * 2**-8 / np.sqrt(n)
    # Two roundings, each by less than a spacing of the largest number involved.
    assert np.abs(got - (1 + u)).max() < 2 * 2**-7


def test_key_of_the_state_and_key_of_the_step() -> None:
    p, g = jnp.ones(64, BF16), jnp.full(64, 1e-3, BF16)
    own = precision(optax.scale(1.0), rounding="stochastic", key=jax.random.key(0))
    first, state = own.update(g, own.init(p), p)
    second, _ = own.update(g, state, p)
    assert np.any(np.asarray(first) != np.asarray(second))
    given = precision(optax.scale(1.0), rounding="stochastic")
    a, b, c = (given.update(g, given.init(p), p, key=jax.random.key(seed))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.any(np.asarray(a) != np.asarray(c))
    with pytest.raises(ValueError, match="precision needs a random key to round stochastically"):
        given.update(g, given.init(p), p)


def test_leaves_draw_apart_and_wide_leaves_are_untouched() -> None:
    params = {"a": jnp.ones(64, BF16), "b": jnp.ones(64, BF16), "wide": jnp.ones(64)}
    tx = precision(optax.scale(1.0), rounding="stochastic", master=True, key=jax.random.key(0))
    updates, state = tx.update(jax.tree.map(lambda p: jnp.full_like(p, 1e-3), params), tx.init(params), params)
    assert np.any(np.asarray(updates["a"]) != np.asarray(updates["b"]))
    np.testing.assert_array_equal(updates["wide"], np.full(64, 1e-3, np.float32))
    assert isinstance(state.residual["wide"], optax.MaskedNode)


def test_master_is_a_float32_run() -> None:
    """With steps that keep every parameter within a factor of 2, parameters + residual are the bits of the float32
    run, and the parameters are those numbers rounded. Rate and momentum are powers of 2, so that it does not matter
    where a compiler fuses a product and a sum."""
    rng = np.random.default_rng(0)
    start = jnp.asarray(rng.uniform(1, 2, (3, 5)), BF16)
    grads = jnp.asarray(rng.standard_normal((50, 3, 5)), BF16)
    make = lambda: gk.sgd(2**-8, momentum=0.5)  # noqa: E731
    wide = start.astype(jnp.float32)
    _, want = run(make(), wide, grads.astype(jnp.float32))
    (_, state), got = run(precision(make(), master=True), start, grads)
    np.testing.assert_array_equal(got, want.astype(BF16))
    np.testing.assert_array_equal(got[-1].astype(jnp.float32) + state.residual, want[-1])


@pytest.mark.parametrize("dtype", [BF16, jnp.float16])
def test_master_survives_any_step(dtype) -> None:
    """Where one update in few bits cannot lead to the rounded master, the next one does, and nothing is lost."""
    rng = np.random.default_rng(1)
    p = jnp.asarray(rng.standard_normal(4096), dtype)
    jump = jnp.asarray(rng.standard_normal(4096) * 3, jnp.float32)
    tx = precision(optax.scale(1.0), master=True)
    x = p.astype(jnp.float32) + jump
    updates, state = tx.update(jump, tx.init(p), p)
    p = p + updates
    # x - p is exact where the two are near, and otherwise rounded to 24 bits, here of numbers below 16.
    np.testing.assert_allclose(np.asarray(p.astype(jnp.float32) + state.residual), x, rtol=0, atol=2**-20)
    updates, _ = tx.update(jnp.zeros(4096), state, p)
    np.testing.assert_array_equal(p + updates, (p.astype(jnp.float32) + state.residual).astype(dtype))


def test_master_follows_the_user() -> None:
    """Parameters that are set from outside stay set."""
    p = jnp.ones(4, BF16)
    tx = precision(optax.sgd(1e-3), master=True)
    _, state = tx.update(jnp.ones(4, BF16), tx.init(p), p)
    p = jnp.full(4, 7.0, BF16)
    updates, _ = tx.update(jnp.zeros(4, BF16), state, p)
    np.testing.assert_array_equal(p + updates, p)


# Per block: sizes that differ by up to 30, in one block with the largest.
SIZES = jnp.array([1.0, 0.7, 0.3, 0.1, 0.05, 0.03], jnp.float32)


@pytest.mark.parametrize(("state", "rtol"), [(None, 1e-4), ("bfloat16", 2**-6), ("int8-block", 0.35)])
def test_second_moments_do_not_stall(state: str | None, rtol: float) -> None:
    """1000 gradients of size 1, then 2000 a hundred times smaller, with bfloat16 parameters: rounded to nearest in
    bfloat16, the second moment rests at 0.5; its true value is 0.0856.

    Tolerances: bfloat16 differs by a few spacings of 2^-8; in 8 bits numbers with a square below 1/1000 of the
    largest lie where the spacing 2 sqrt(v max) / 255 is a third of v.
    """
    sizes = jnp.concatenate([jnp.ones(1000), jnp.full(2000, 0.01)])
    grads = (sizes.reshape(-1, 1) * SIZES.reshape(1, -1)).astype(BF16)
    p = jnp.zeros(6, BF16)
    tx = precision(gk.scale_by_adam(), state=state)
    (_, end), _ = run(tx, p, grads)
    nu = np.zeros(6)
    for g in np.asarray(grads, np.float64):
        nu = 0.999 * nu + 0.001 * g**2
    assert 0.08 < nu[0] < 0.09
    np.testing.assert_allclose(decode(end.inner).nu, nu, rtol=rtol)

    with jax.numpy_dtype_promotion("standard"):
        (_, stalled), _ = run(optax.scale_by_adam(), p, grads)
    assert stalled.nu.dtype == BF16 and stalled.nu[0] >= 0.5


def test_codes_keep_what_must_be_kept() -> None:
    rng = np.random.default_rng(2)
    signed = jnp.asarray(rng.standard_normal((3, 20)), jnp.float32)
    squares = jnp.square(signed) * 10.0 ** -jnp.arange(20.0).reshape(1, 20)
    squares = squares.at[:, 3].set(0.0)
    for s in (signed, squares, jnp.zeros((3, 20))):
        code = jax.jit(encode_int8, static_argnums=2)(s, jnp.int32(5), 8)
        assert code.codes.dtype == jnp.int8 and code.codes.shape == s.shape and code.scales.shape == (3, 3)
        back = np.asarray(code.decode(), np.float64)
        blocks = np.pad(np.asarray(s, np.float64), ((0, 0), (0, 1))).reshape(3, 3, 7)
        largest = np.abs(blocks).max(-1, keepdims=True)
        back = np.pad(back, ((0, 0), (0, 1))).reshape(blocks.shape)
        np.testing.assert_array_equal(back[np.abs(blocks) == largest], blocks[np.abs(blocks) == largest])
        np.testing.assert_array_equal(back == 0, blocks == 0) if s is not signed else None
        # One spacing: 1/127 of the largest, or, next to the root r of 255 levels, (2 r + 1) / 255^2, r = 255 at most.
        assert np.all(np.abs(back - blocks) <= largest / 127)


def test_codes_are_right_in_the_mean() -> None:
    """Over a run of steps, for every column: the thresholds of any 1000 steps are even to 1 % (three-distance
    theorem: (3 + log2 T) / T at most), so the mean is the number to 1.4 % of a spacing."""
    steps = jnp.arange(7, 1007, dtype=jnp.int32)
    signed = jnp.linspace(-1.0, 0.97, 16).reshape(1, 16)
    squares = jnp.linspace(0.01, 1.0, 16).reshape(1, 16) ** 2
    for s, spacing in ((signed, 1 / 127), (squares, (2 * 255 + 1) / 255**2)):
        mean = jax.jit(jax.vmap(lambda t, s=s: encode_int8(s, t, 256).decode()))(steps).mean(0)
        np.testing.assert_allclose(mean, s, rtol=0, atol=0.014 * spacing)
    narrow = jax.vmap(lambda t: encode_bfloat16(signed, t).decode())(steps).mean(0)
    np.testing.assert_allclose(narrow, signed, rtol=0, atol=0.014 * 2**-8)


def test_states_are_stable_abstract_and_small() -> None:
    params = {"w": jnp.ones((8, 300), BF16), "b": jnp.ones(4), "s": jnp.ones((), BF16)}
    shapes = jax.eval_shape(lambda: params)
    signature = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)  # noqa: E731
    for state in (None, "bfloat16", "int8-block"):
        for master in (False, True):
            tx = precision(gk.adam(1e-3), master=master, state=state)
            first = tx.init(params)
            assert signature(first) == signature(jax.eval_shape(tx.init, params)) == signature(tx.init(shapes))
            _, second = jax.eval_shape(tx.update, params, first, params)
            assert signature(first) == signature(second)
            size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(second))
            entries = 8 * 300 + 4
            per_moment = {None: 4 * entries, "bfloat16": 2 * entries, "int8-block": entries + 4 * (8 * 2 + 1)}[state]
            # Two moments of each leaf, those of the scalar in float32; two counters and the published learning
            # rate; the residuals of the bfloat16 leaves.
            assert size == 2 * (per_moment + 4) + 3 * 4 + (4 * (8 * 300 + 1) if master else 0)
    kinds = {type(x) for x in jax.tree.leaves(first, is_leaf=lambda x: isinstance(x, Narrow | Blocks))}
    assert Blocks in kinds and Narrow not in kinds


def test_stacked_layers_are_rounded_as_they_are_apart() -> None:
    w = jnp.asarray(np.random.default_rng(3).standard_normal((5, 3, 20)), jnp.float32)
    g = 0.1 * w
    tx = precision(gk.adam(1e-2), state="int8-block", block_size=8)
    (together, _), _ = run(tx, w, jnp.stack([g, -0.5 * g, g]))
    for i in range(5):
        (alone, _), _ = run(tx, w[i], jnp.stack([g[i], -0.5 * g[i], g[i]]))
        np.testing.assert_allclose(together[i], alone, rtol=1e-6)


@pytest.mark.parametrize("state", ["bfloat16", "int8-block"])
def test_training_with_a_narrow_state_ends_where_float32_does(state: str) -> None:
    """Least squares with AdamW: the loss after 300 steps is within 10 % of float32's (which falls 100-fold)."""
    rng = np.random.default_rng(4)
    a, b = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((64, 16), (64, 4)))
    loss = lambda x: jnp.mean(jnp.square(a @ x - b))  # noqa: E731

    def final(tx: Any) -> jax.Array:
        def step(carry, _):
            x, s = carry
            updates, s = tx.update(jax.grad(loss)(x), s, x)
            return (optax.apply_updates(x, updates), s), None

        x = jnp.full((16, 4), 3.0)
        return loss(jax.lax.scan(step, (x, tx.init(x)), length=300)[0][0])

    wide, narrow = jax.jit(lambda: (final(gk.adamw(0.05)), final(precision(gk.adamw(0.05), state=state))))()
    assert wide < 0.01 * loss(jnp.full((16, 4), 3.0))
    assert narrow < 1.1 * wide


def test_moments_of_any_method_are_float32() -> None:
    params = {"w": jnp.ones((2, 3), BF16)}
    adam: Any = optax.adam(1e-3)
    assert adam.init(params)[0].nu["w"].dtype == BF16
    assert precision(adam).init(params).inner[0].nu["w"].dtype == jnp.float32


def test_own_parameters_are_found_through_the_codes() -> None:
    p = jnp.linspace(1.0, 2.0, 8)
    ahead = gk.shifted_parameters(optax.sgd(0.1), lambda u: u)
    for state in (None, "bfloat16"):
        tx = precision(ahead, state=state)
        updates, s = tx.update(p, tx.init(p), p)
        # x = p - 0.1 p, up to the bfloat16 of the displacement of 0.1 p <= 0.2
        np.testing.assert_allclose(gk.eval_params(s, p + updates), 0.9 * p, rtol=1e-6, atol=0.2 * 2**-7)
    tx = precision(optax.sgd(0.1))
    assert gk.eval_params(tx.init(p), p) is p


def test_bad_arguments_are_named() -> None:
    tx = optax.sgd(0.1)
    for kwargs, message in (
        ({"rounding": "stochastik"}, "rounding must be one of .*did you mean 'stochastic'"),
        ({"state": "int8"}, "state must be one of"),
        ({"master": "yes"}, "master must be one of"),
        ({"block_size": 0}, "block_size must be an integer >= 1"),
        ({"key": jax.random.key(0)}, re.escape('key is used only with rounding="stochastic"')),
        ({"rounding": "stochastic", "key": 0.5}, "key must be a typed random key"),
    ):
        with pytest.raises(ValueError, match=message):
            precision(tx, **kwargs)
    p = {"w": jnp.ones(3, BF16)}
    for kwargs in ({"master": True}, {"rounding": "stochastic"}):
        with pytest.raises(ValueError, match="precision needs params"):
            precision(tx, **kwargs).update(p, precision(tx, **kwargs).init(p))
    with pytest.raises(ValueError, match="'h' is float16"):
        precision(tx, rounding="stochastic").init({"h": jnp.ones(2, jnp.float16)})
