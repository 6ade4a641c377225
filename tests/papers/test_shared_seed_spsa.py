"""Gradients of one number per worker (Zelikman et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gradkit import sgd
from gradkit.engine.directions import direction
from gradkit.parallel import (
    collective_bytes,
    log_byte_decode,
    log_byte_encode,
    shared_seed_gradient,
    shared_seed_spsa,
)
from tests.papers.replay import assert_equal, normal

W, STEPS = 4, 3


def loss(params: dict, x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.tanh(x @ params["kernel"] + params["bias"][None]) ** 2)


def setting() -> tuple[dict, jax.Array]:
    return {"kernel": normal(0, 3, 2), "bias": normal(1, 2)}, normal(2, W, 5, 3)


@jax.jit
def applied(params: dict, g: dict) -> dict:
    tx = sgd(0.1)
    return jax.tree.map(jnp.add, params, tx.update(g, tx.init(params), params)[0])


def trained(quantize: str | None, mapped: Any) -> tuple[list, list]:
    """Parameters of every worker after every step, and the numbers that travelled."""
    source = shared_seed_spsa(loss, num_samples=2, quantize=quantize, with_scalars=True, axis_name="worker")
    program = mapped(lambda params, x, key: source(params, x, key=key))
    params, x = setting()
    workers, seen, sent = [params] * W, [], []
    for t in range(STEPS):
        stacked = jax.tree.map(lambda *p: np.stack(p), *workers)
        (_, scalars), g = program(stacked, x, jax.random.key(t))
        workers = [applied(p, jax.tree.map(lambda g, w=w: g[w], g)) for w, p in enumerate(workers)]
        seen.append(workers)
        sent.append(np.asarray(scalars))
    return seen, sent


def by_vmap(step: Any) -> Any:
    return jax.jit(jax.vmap(step, in_axes=(0, 0, None), axis_name="worker"))


def on_mesh(step: Any) -> Any:
    def block(params: Any, x: jax.Array, key: jax.Array) -> Any:
        out = step(jax.tree.map(lambda p: p[0], params), x[0], key)
        return jax.tree.map(lambda o: o[None], out)

    mesh = jax.make_mesh((W,), ("worker",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:W])
    specs = (P("worker"), P("worker"), P())
    return jax.jit(jax.shard_map(block, mesh=mesh, in_specs=specs, out_specs=P("worker")))


@pytest.mark.full_pipeline
@pytest.mark.parametrize("quantize", [None, "log_byte"])
def test_a_run_is_replayed_from_keys_and_numbers_alone(quantize: str | None) -> None:
    """All workers have the same bits after every step, under vmap and on a mesh, and so has who was not there."""
    (seen, sent), (meshed, sent_too) = (trained(quantize, mapped) for mapped in (by_vmap, on_mesh))
    params, replay = setting()[0], jax.jit(shared_seed_gradient)
    for t in range(STEPS):
        assert sent[t].dtype == (np.int8 if quantize else np.float32) and sent[t].shape == (W, W, 2)
        np.testing.assert_array_equal(sent[t], sent_too[t])
        params = applied(params, replay(jax.random.key(t), sent[t][0], params))
        for worker in (*seen[t], *meshed[t]):
            for a, b in zip(jax.tree.leaves(worker), jax.tree.leaves(params), strict=True):
                np.testing.assert_array_equal(a, b)
    assert np.abs(params["kernel"] - setting()[0]["kernel"]).max() > 1e-2


@pytest.mark.parametrize(("quantize", "size"), [(None, 4), ("log_byte", 1)])
def test_only_scalars_travel(quantize: str | None, size: int) -> None:
    """W n numbers, or bytes, and the value; the kernel has 3000 times as many entries."""
    source = shared_seed_spsa(loss, num_samples=2, quantize=quantize, axis_name="worker")
    program = on_mesh(lambda params, x, key: source(params, x, key=key))
    params = {"kernel": jnp.zeros((W, 3, 10_000)), "bias": jnp.zeros((W, 10_000))}
    moved = collective_bytes(program.lower(params, setting()[1], jax.random.key(0)).compile())
    sizes = sorted(c.result_bytes for c in moved)
    assert sum(sizes) == W * 2 * size + 4, moved


def test_one_worker_is_the_central_difference(x64: None) -> None:
    params, x = setting()
    (value, c), g = shared_seed_spsa(loss, epsilon=0.01, with_scalars=True)(params, x[0], key=7)
    z = direction(jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 0), 0), params)
    at = [loss(jax.tree.map(lambda p, z, s=s: p + s * z, params, z), x[0]) for s in (0.01, -0.01)]
    want = (float(at[0]) - float(at[1])) / 0.02
    np.testing.assert_allclose(c, [[want]], rtol=1e-10)
    np.testing.assert_allclose(value, (float(at[0]) + float(at[1])) / 2, rtol=1e-12)
    assert_equal(g, jax.tree.map(lambda z: want * z, z), rtol=1e-10)


def test_of_a_quadratic_the_number_is_the_slope(x64: None) -> None:
    """Central differences have no error of second order; "sqrt" is larger by the root of the number of samples."""
    A, x = normal(0, 4, 4), normal(1, 4)
    H = A @ A.T
    source = {r: shared_seed_spsa(lambda x: x @ H @ x / 2, num_samples=4, reduction=r, with_scalars=True)
              for r in ("mean", "sqrt")}  # fmt: skip
    (_, c), g = source["mean"](x, key=0)
    z = np.stack([direction(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), s), x) for s in range(4)])
    # A difference of losses near 10, over 2e-3, with roundings of 2^-53.
    np.testing.assert_allclose(c[0], z @ np.asarray(H @ x), rtol=0, atol=1e-10)
    np.testing.assert_allclose(g, np.asarray(c[0]) @ z / 4, rtol=1e-12)
    np.testing.assert_allclose(source["sqrt"](x, key=0)[1], 2 * np.asarray(g), rtol=1e-12)


def test_the_mean_over_keys_is_the_gradient(x64: None) -> None:
    w, draws = normal(0, 5), 4000
    fn = shared_seed_spsa(lambda w: jnp.sum(jnp.square(w)) / 2)
    g = np.asarray(jax.jit(jax.vmap(lambda key: fn(w, key=key)[1]))(jax.random.split(jax.random.key(1), draws)))
    assert np.all(np.abs(g.mean(0) - w) < 5 * g.std(0) / np.sqrt(draws))


def test_a_byte_has_a_sign_a_size_and_codes_for_zero_and_nan() -> None:
    """Within e^(1/16) - 1 of the number over the whole range, and monotone; what is sent is the byte."""
    c = np.concatenate([s * np.geomspace(3.8e-4, 2600, 997) for s in (-1, 1)]).astype(np.float32)
    got = np.asarray(log_byte_decode(log_byte_encode(c)))
    assert np.abs(got / c - 1).max() <= np.expm1(1 / 16) + 1e-5
    assert np.all(np.diff(got[997:]) >= 0) and len(np.unique(got)) == 254
    special = np.array([0.0, np.nan, np.inf, 1e-30, -1e30], np.float32)
    byte = np.asarray(log_byte_encode(special))
    np.testing.assert_array_equal(byte, [0, -128, -128, 1, -127])
    np.testing.assert_array_equal(np.isnan(log_byte_decode(byte)), [False, True, True, False, False])
    fn = shared_seed_spsa(lambda x: jnp.sum(x), quantize="log_byte", with_scalars=True)
    (_, sent), g = fn(jnp.ones(3), key=0)
    z = direction(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0), jnp.ones(3))
    np.testing.assert_allclose(g, log_byte_decode(sent)[0, 0] * z, rtol=1e-6)
    assert abs(float(log_byte_decode(sent)[0, 0]) / float(jnp.sum(z)) - 1) > 1e-3


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="needs a random key"):
        shared_seed_spsa(jnp.sum)(jnp.ones(2))
    with pytest.raises(ValueError, match=r"must return a scalar, got an array of shape \(2,\)"):
        shared_seed_spsa(lambda x: x)(jnp.ones(2), key=0)
    with pytest.raises(ValueError, match=r"scalars must have shape \(workers, samples\)"):
        shared_seed_gradient(0, jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match="byte must be int8"):
        log_byte_decode(jnp.ones(2))
    with pytest.raises(ValueError, match="c must be real floating point"):
        log_byte_encode(jnp.ones(2, jnp.int32))
