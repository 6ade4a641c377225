"""LoRA-RITE (Yen et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.parallel import init_sharded
from tests.by_numpy import by_numpy
from tests.papers.replay import assert_equal, normal

M, N, RANK = 6, 5, 2


def factors(seed: int = 0) -> dict[str, Any]:
    return {"lora_a": normal(seed, M, RANK), "lora_b": normal(seed + 1, RANK, N)}


def dense(W: Any, t: int) -> Any:
    """The gradient of the product at step t: of a quadratic, with noise."""
    curvature = jnp.asarray(np.random.default_rng(100).uniform(0.1, 2.0, (M, N)))
    return curvature * W + normal(200 + t, M, N)


def run(tx: Any, x: Any, steps: int = 5) -> list[Any]:
    """The products after every step, with the gradients that the chain rule gives the factors."""
    state, update, out = tx.init(x), by_numpy(tx.update), []
    for t in range(steps):
        G = dense(x["lora_a"] @ x["lora_b"], t)
        g = {"lora_a": G @ x["lora_b"].T, "lora_b": x["lora_a"].T @ G}
        u, state = update(g, state, x)
        x = optax.apply_updates(x, u)
        out.append(x["lora_a"] @ x["lora_b"])
    return out


@pytest.mark.parametrize("escape", [True, False])
def test_the_product_does_not_know_its_factors(escape: bool, x64: None) -> None:
    """(A T, T^{-1} b) for a T of condition 30; Adam, for comparison, does."""
    x, T = factors(), jnp.asarray([[3.0, 1.0], [0.2, 0.1]])
    other = {"lora_a": x["lora_a"] @ T, "lora_b": jnp.linalg.inv(T) @ x["lora_b"]}
    tx = gk.lora_rite(0.1, eps=0.0, max_norm=2.0, escape=escape)
    assert_equal(run(tx, x), run(tx, other), rtol=1e-8, atol=1e-10)
    adam = gk.adam(0.1)
    assert float(jnp.abs(run(adam, x)[-1] - run(adam, other)[-1]).max()) > 0.1


def test_the_algorithm_in_numpy(x64: None) -> None:
    """With every part: the clip, the change of basis, the escaped mass, both running means; other leaves take Adam."""
    A, B = np.asarray(factors()["lora_a"]), np.asarray(factors()["lora_b"]).T
    basis: list[Any] = [np.zeros((M, RANK)), np.zeros((N, RANK))]
    mu, nu, rho = [np.zeros_like(b) for b in basis], [np.zeros((RANK, RANK))] * 2, [0.0, 0.0]
    got = run(gk.lora_rite(0.1, b1=0.8, b2=0.6, eps=1e-3, max_norm=1.5), factors())
    for t, product in enumerate(got, 1):
        b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (0.8, 0.6))
        G = np.asarray(dense(jnp.asarray(A @ B.T), t - 1))
        (U, R), (W, K) = np.linalg.qr(A), np.linalg.qr(B)
        plain = [G @ B @ np.linalg.inv(K), G.T @ A @ np.linalg.inv(R)]
        size = np.sqrt(sum((g**2).sum() for g in plain))
        new = []
        for k, (g, other, old, inverse) in enumerate(
            zip(plain, (W, U), basis[::-1], (np.linalg.inv(K), np.linalg.inv(R)), strict=True)
        ):
            g = g / max(1, size / 1.5)
            P = other.T @ old
            kept = P @ nu[k] @ P.T
            apart = np.linalg.eigvalsh(nu[k]) - np.linalg.eigvalsh(kept)
            rho[k] = b2 * (rho[k] + max(0, min(apart.max(), apart.sum())))
            nu[k] = b2 * kept + (1 - b2) * g.T @ g / len(g)
            values, Q = np.linalg.eigh(nu[k])
            mu[k] = b1 * mu[k] @ P.T + (1 - b1) * g @ (Q / (np.sqrt(values + rho[k]) + 1e-3)) @ Q.T
            new.append(mu[k] @ inverse.T)
        A, B, basis = A - 0.1 * new[0], B - 0.1 * new[1], [U, W]
        assert_equal(product, A @ B.T, rtol=1e-8, atol=1e-10)
    assert rho[0] > 0


def test_where_the_other_factor_is_zero_a_factor_stays(x64: None) -> None:
    """The start of every adapter: b = 0 has no basis, a does not move, and b does; nothing is NaN later."""
    x = {**factors(), "lora_b": jnp.zeros((RANK, N))}
    tx = gk.lora_rite(0.1)
    G = dense(jnp.zeros((M, N)), 0)
    u, _ = tx.update({"lora_a": G @ x["lora_b"].T, "lora_b": x["lora_a"].T @ G}, tx.init(x), x)
    assert_equal(u["lora_a"], jnp.zeros((M, RANK)))
    assert float(jnp.abs(u["lora_b"]).min()) > 0
    assert all(np.isfinite(np.asarray(W)).all() for W in run(tx, x))


def test_stacked_adapters_are_as_if_they_were_apart(x64: None) -> None:
    """But for the clip, which is of all adapters together."""
    one, two = factors(), factors(7)
    g = [{k: normal(50 + i, *v.shape) for k, v in x.items()} for i, x in enumerate((one, two))]
    tx = gk.lora_rite(0.1, max_norm=None)
    stack = {k: jnp.stack([one[k], two[k]]) for k in one}
    whole, _ = tx.update({k: jnp.stack([g[0][k], g[1][k]]) for k in one}, tx.init(stack), stack)
    for i, x in enumerate((one, two)):
        apart, _ = tx.update(g[i], tx.init(x), x)
        assert_equal(jax.tree.map(lambda v, i=i: v[i], whole), apart, rtol=1e-10)


def test_other_leaves_take_adam_and_adapters_are_found_by_name(x64: None) -> None:
    x = {"up": factors(), "bias": normal(3, 4)}
    tx = gk.lora_rite(0.1, eps=1e-8)
    u, _ = tx.update(x, tx.init(x), x)
    adam = gk.adam(0.1)
    assert_equal(u["bias"], adam.update(x, adam.init(x), x)[0]["bias"])
    with pytest.raises(ValueError, match="lora_rite: the leaf 'lora_a' has no partner 'lora_b'"):
        tx.init({"lora_a": x["up"]["lora_a"]})


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_sharded_adapters_take_the_steps_of_one_device(kind: AxisType) -> None:
    """Both factors along what is not r, on four devices; momentum and basis are sharded as their factor."""
    x = {"lora_a": np.asarray(normal(0, 8, 2), np.float32), "lora_b": np.asarray(normal(1, 2, 4), np.float32)}
    g = {"lora_a": np.asarray(normal(2, 8, 2), np.float32), "lora_b": np.asarray(normal(3, 2, 4), np.float32)}
    tx = gk.lora_rite(0.1)
    want, _ = tx.update(g, tx.init(x), x)
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,), devices=jax.devices()[:4])
    specs = {"lora_a": P("x"), "lora_b": P(None, "x")}
    there, grads = ({k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in tree.items()} for tree in (x, g))
    with jax.set_mesh(mesh):
        state = init_sharded(tx, there)
        got, state = jax.jit(tx.update)(grads, state, there)
    for field in (state[0].mu, state[0].basis):
        assert all(v.sharding.is_equivalent_to(there[k].sharding, 2) for k, v in field.items())
    # Decompositions of 8 by 2 matrices in float32, in another order of sums.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)
