"""DProxSGT and its compressed form (Yan et al., 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit import parallel

W = 5
TOP = parallel.top_k_compressor
WHOLE: Any = {"compressor_x": TOP(1.0), "compressor_y": TOP(1.0), "gamma_x": 1.0, "gamma_y": 1.0}
SPARSE: Any = {"compressor_x": TOP(0.4), "compressor_y": TOP(0.4)}


def soft(tree: Any, eta: Any) -> Any:
    """The proximal map of 0.3 |x|_1."""
    return jax.tree.map(lambda x: jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.3 * eta, 0.0), tree)


def problem() -> tuple[np.ndarray, np.ndarray]:
    """Curvatures and minima, one row per replica."""
    rng = np.random.default_rng(0)
    return rng.uniform(0.5, 1.5, (W, 6)), rng.standard_normal((W, 6))


def run(tx: Any, steps: int, noise: float = 0.0) -> tuple[list[np.ndarray], list[Any], list[np.ndarray]]:
    """Parameters and states after every step, and the gradients that were handed over."""
    A, b = problem()
    x: Any = jnp.zeros((W, 6))
    state, step = parallel.init_replicas(tx, x), jax.jit(jax.vmap(tx.update, axis_name="replica"))
    xs, states, gs = [], [], []
    for t in range(steps):
        g = jnp.asarray(A * (np.asarray(x) - b) + noise * np.random.default_rng([1, t]).standard_normal((W, 6)))
        updates, state = step(g, state, x)
        x = optax.apply_updates(x, updates)
        xs, states, gs = [*xs, np.asarray(x)], [*states, state], [*gs, np.asarray(g)]
    return xs, states, gs


@pytest.mark.parametrize("form", ["whole", "compressed"])
def test_the_tracked_gradients_have_the_mean_of_the_gradients(form: str, x64: None) -> None:
    """At every step, whatever is lost on the way: the mixture of what is known moves no mean."""
    tx = parallel.dproxsgt(0.1) if form == "whole" else parallel.compressed_dproxsgt(0.1, **SPARSE)
    _, states, gs = run(tx, 6, noise=0.1)
    for state, g in zip(states, gs, strict=True):
        np.testing.assert_allclose(np.asarray(state.y).mean(0), g.mean(0), rtol=0, atol=1e-13)


def test_with_nothing_lost_the_compressed_form_is_the_other(x64: None) -> None:
    for prox in (None, soft):
        whole, _, _ = run(parallel.dproxsgt(0.1, prox=prox), 6)
        compressed, _, _ = run(parallel.compressed_dproxsgt(0.1, prox=prox, **WHOLE), 6)
        np.testing.assert_allclose(whole, compressed, rtol=0, atol=1e-13)


def test_when_all_talk_to_all_it_is_proximal_sgd(x64: None) -> None:
    xs, _, _ = run(parallel.dproxsgt(0.1, mixing=np.full((W, W), 1 / W), prox=soft), 5)
    A, b = problem()
    x = np.zeros(6)
    for got in xs:
        x = np.asarray(soft(jnp.asarray(x - 0.1 * (A * (x - b)).mean(0)), 0.1))
        np.testing.assert_allclose(got, np.tile(x, (W, 1)), rtol=0, atol=1e-13)


def test_three_steps_of_the_compressed_algorithm(x64: None) -> None:
    """In NumPy, on a ring: the receiver's sums and the sender's are of the same payloads."""
    M = parallel.ring_mixing(W)
    xs, _, gs = run(parallel.compressed_dproxsgt(0.1, prox=soft, **SPARSE), 3)

    def top(x: np.ndarray) -> np.ndarray:
        out = np.zeros_like(x)
        for row, to in zip(x, out, strict=True):
            S = np.argsort(-np.abs(row), kind="stable")[:3]  # ceil(0.4 * 6)
            to[S] = row[S]
        return out

    x = np.zeros((W, 6))
    y, before, kx, mx, ky, my = (np.zeros((W, 6)) for _ in range(6))
    for g, got in zip(gs, xs, strict=True):
        h, before = y + g - before, g
        q = top(h - ky)
        ky, my = ky + q, my + M @ q
        y = h + 0.8 * (my - ky)
        z = x - 0.1 * y
        z = np.sign(z) * np.maximum(np.abs(z) - 0.3 * 0.1, 0)
        q = top(z - kx)
        kx, mx = kx + q, mx + M @ q
        x = z + 0.8 * (mx - kx)
        np.testing.assert_allclose(got, x, rtol=0, atol=1e-12)


def test_replicas_reach_the_minimum_of_all_from_their_neighbours_alone(x64: None) -> None:
    A, b = problem()
    want = (A * b).sum(0) / A.sum(0)
    for tx in (parallel.dproxsgt(0.2), parallel.compressed_dproxsgt(0.1, gamma_x=0.5, gamma_y=0.5, **SPARSE)):
        xs, _, _ = run(tx, 400)
        np.testing.assert_allclose(xs[-1], np.tile(want, (W, 1)), rtol=0, atol=1e-6)


def test_mixing_keeps_the_mean_and_follows_the_matrix(x64: None) -> None:
    x = jnp.asarray(np.random.default_rng(3).standard_normal((4, 3)))
    uneven = np.array([[0.5, 0.5, 0, 0], [0.5, 0.25, 0.25, 0], [0, 0.25, 0.25, 0.5], [0, 0, 0.5, 0.5]])
    for M in (parallel.ring_mixing(4), uneven, np.eye(4)):
        got = jax.vmap(lambda x, M=M: parallel.gossip_mix(x, M), axis_name="replica")(x)
        np.testing.assert_allclose(got, M @ np.asarray(x), rtol=0, atol=1e-14)


@pytest.mark.full_pipeline
@pytest.mark.parametrize("form", ["whole", "compressed"])
def test_on_a_mesh_neighbours_exchange_payloads_alone(form: str) -> None:
    """The numbers of one device; two exchanges with two neighbours each, of all entries or of the k largest."""
    n, size, k = 8, 64, 7
    tx = (
        parallel.dproxsgt(0.1)
        if form == "whole"
        else parallel.compressed_dproxsgt(0.1, compressor_x=TOP(0.1), compressor_y=TOP(0.1))
    )
    mesh = jax.make_mesh((n,), ("replica",), axis_types=(AxisType.Auto,))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((n, size)), jnp.float32)
    state = parallel.init_replicas(tx, x)

    def block(*args: Any) -> Any:
        out = tx.update(*jax.tree.map(lambda v: v[0], args))
        return jax.tree.map(lambda v: v[None], out)

    program = jax.jit(jax.shard_map(block, mesh=mesh, in_specs=P("replica"), out_specs=P("replica")))
    got, want = program(x, state, x), jax.jit(jax.vmap(tx.update, axis_name="replica"))(x, state, x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # A few roundings of numbers below 4.
        np.testing.assert_allclose(a, b, rtol=0, atol=4 * 8 * 2**-24)
    rows = parallel.collective_bytes(program.lower(x, state, x).compile())
    assert {row.opcode for row in rows} == {"collective-permute"}
    words = 4 * size if form == "whole" else 4 * 2 * k
    assert sum(row.result_bytes for row in rows) == 4 * words


def test_bad_arguments_are_refused() -> None:
    for bad in (np.eye(3)[:2], [[0.9, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.4, 0.6]], "star"):
        with pytest.raises(ValueError, match="mixing must be 'ring', or a symmetric matrix"):
            parallel.dproxsgt(0.1, mixing=bad)
    with pytest.raises(ValueError, match="got 3 rows and 2 replicas"):
        jax.vmap(lambda x: parallel.gossip_mix(x, np.eye(3)), axis_name="replica")(jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="compressor_x must be a compressor whose payload is of one replica"):
        parallel.compressed_dproxsgt(0.1, compressor_x=parallel.int8_compressor(), compressor_y=TOP(0.1))
    with pytest.raises(ValueError, match=r"gamma_x must be in \(0, 1\]"):
        parallel.compressed_dproxsgt(0.1, **{**SPARSE, "gamma_x": 0.0})
    with pytest.raises(ValueError, match="compressor_y must be a compressor"):
        parallel.compressed_dproxsgt(0.1, compressor_x=TOP(0.1), compressor_y=gk.sgd(0.1))
