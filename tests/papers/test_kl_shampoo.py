"""KL-Shampoo (Lin et al., 2025), and what other codes do differently."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.engine import kl
from tests.by_numpy import by_numpy
from tests.papers.replay import assert_equal, normal, updates


def directions(tx: Any, gradients: list[Any]) -> list[Any]:
    return updates(tx, gradients[0], gradients)


def reference(
    gradients: list[np.ndarray], b1: float, beta: float, eps: float, every: int, b2: float | None = None
) -> list[np.ndarray]:
    """KL-Shampoo in NumPy, or with b2 KL-SOAP: the factors of before the call enter everywhere."""
    n, p = gradients[0].shape
    g = gradients[0]
    S = [(1 - beta) * g @ g.T / p, (1 - beta) * g.T @ g / n]
    Q = [np.linalg.eigh(s)[1][:, ::-1] for s in S]
    r, m, v, out = [np.full(n, 0.1**-0.5), np.full(p, 0.1**-0.5)], 0 * g, 0 * g, [0 * g]
    for c, g in enumerate(gradients[1:], 1):
        turned = Q[0].T @ g @ Q[1]
        m = b1 * m + (1 - b1) * (g if b2 is None else turned)
        if b2 is None:
            D = np.outer(*r)
            inner = (Q[0].T @ m @ Q[1]) * D / (1 + eps * D)
        else:
            v = b2 * v + (1 - b2) * turned**2
            inner = m / (np.sqrt(v) + eps)
        out.append(Q[0] @ inner @ Q[1].T)
        Y, Z = g @ Q[1] * r[1], r[0][:, None] * (Q[0].T @ g)
        S = [beta * S[0] + (1 - beta) * Y @ Y.T / p, beta * S[1] + (1 - beta) * Z.T @ Z / n]
        a = [np.mean((turned * r[1]) ** 2, axis=1), np.mean((turned * r[0][:, None]) ** 2, axis=0)]
        r = [np.minimum((beta / x**2 + (1 - beta) * y) ** -0.5, 10) for x, y in zip(r, a, strict=True)]
        if c % every == 0:
            m = m if b2 is None else Q[0] @ m @ Q[1].T
            Q = [np.linalg.qr(s @ q)[0] for s, q in zip(S, Q, strict=True)]
            m = m if b2 is None else Q[0].T @ m @ Q[1]
    return out


def test_the_algorithm(x64: None) -> None:
    """A square matrix, so that no eigenvector is arbitrary."""
    g = [normal(i, 5, 5) for i in range(7)]
    tx = gk.scale_by_kl_shampoo(b1=0.8, shampoo_beta=0.9, eps=1e-3, update_interval=3)
    want = reference([np.asarray(x) for x in g], 0.8, 0.9, 1e-3, 3)
    assert_equal(directions(tx, g), want, 1e-9, 1e-10)


@pytest.mark.parametrize("method", [gk.scale_by_kl_shampoo, gk.scale_by_kl_soap])
def test_the_first_update_is_zero_and_the_transpose_commutes(method: Any, x64: None) -> None:
    g = [normal(i, 4, 4) for i in range(6)]
    tx = method(shampoo_beta=0.9, update_interval=2)
    got, transposed = directions(tx, g), directions(tx, [x.T for x in g])
    assert not np.asarray(got[0]).any()
    assert_equal([x.T for x in transposed], got, 1e-8, 1e-9)


def test_eigenvalues_start_where_they_are_said_to(x64: None) -> None:
    """While r is at its start the direction is m / init_factor; codes that start at 0 and clamp at 1e-8 make the first
    second moment 1e8 times too large, and their basis stays that of the first gradient."""
    g = [normal(i, 4, 6) for i in range(2)]
    got = directions(gk.scale_by_kl_shampoo(init_factor=0.5, eps=0.25), g)[1]
    assert_equal(got, 0.1 * g[1] / 0.5 / (1 + 0.25 / 0.5), 1e-12)
    tx, rng = gk.kl_statistics(shampoo_beta=0.95, update_interval=1), np.random.default_rng(0)
    G = [jnp.asarray(np.diag([4.0, 1, 1, 1, 1, 1]) @ rng.standard_normal((6, 6))) for _ in range(101)]
    G[0] = jnp.asarray(np.diag([1.0, 1, 1, 1, 1, 8]) @ rng.standard_normal((6, 6)))
    state, update = tx.init(G[0]), jax.jit(tx.update)
    for x in G:
        _, state = update(x, state)
    S = np.asarray(state.S["0"])
    assert np.argmax(np.diag(S)) == 0 and abs(np.linalg.eigh(S)[1][0, -1]) > 0.9


def test_gaussian_gradients_are_whitened(x64: None) -> None:
    """G = A Z C^T: the factors tend to A A^T and C C^T, which Shampoo's are too large for by a product of traces."""
    rng = np.random.default_rng(0)
    A, C = (np.eye(d) + 0.3 * rng.standard_normal((d, d)) for d in (3, 4))
    Z = rng.standard_normal((3000, 3, 4))
    G = jnp.asarray(A @ Z @ C.T)
    tx = gk.scale_by_kl_shampoo(b1=0.0, shampoo_beta=0.99, update_interval=10)

    @jax.jit
    def run(G: jax.Array) -> Any:
        def step(state: Any, g: jax.Array) -> Any:
            u, state = tx.update(g, state)
            return state, u

        return jax.lax.scan(step, tx.init(G[0]), G)

    state, u = run(G)
    want = np.kron(A @ A.T, C @ C.T)
    own = [
        np.asarray(q) * np.asarray(r)[:, 0] ** -2 @ np.asarray(q).T for q, r in ((state.Q[i], state.r[i]) for i in "01")
    ]
    # A mean over 1 / (1 - beta) = 100 draws of 3 to 4 columns each: relative deviation sqrt(2 / 400) = 7 % per factor.
    for product in (np.kron(state.S["0"], state.S["1"]), np.kron(*own)):
        assert np.linalg.norm(product - want) < 0.2 * np.linalg.norm(want)
    late = np.asarray(u[1000:]).reshape(-1, 12)
    # 2000 draws: entries of a covariance deviate by sqrt(2 / 2000) = 3 %, and 7 % per factor.
    assert abs(np.cov(late.T) - np.eye(12)).max() < 0.3


def test_exponents_are_a_half_for_each_side_and_one_for_the_other(x64: None) -> None:
    """Of one entry g at every step, lambda_1 lambda_2 tends to g^2 and the direction to sign(g). With exponents of a
    quarter, which Meta's class has by default, lambda_i = g^2 / sqrt(lambda_j) tends to g^(4/3), and the direction to
    g^(1/3) = 2."""
    g = jnp.full((1, 1), 8.0)
    got = directions(gk.scale_by_kl_shampoo(b1=0.0, shampoo_beta=0.5, eps=0.0, init_factor=1.0), [g] * 12)
    # With beta = 1/2 it is Newton's iteration for the root of g^2, of which ten steps are exact.
    assert_equal(got[-1], np.ones((1, 1)))


@pytest.mark.parametrize(
    ("method", "shares"),
    [
        (gk.scale_by_kl_shampoo, (0.1 / 6, 0.1 / 4)),
        (gk.scale_by_kl_soap, (0.1 / 6, 0.1 / 4)),
        (gk.scale_by_soap, (0.1, 0.1)),
        (gk.scale_by_soap_muon, (0.1, 0.1)),
        (lambda shampoo_beta: gk.scale_by_splus(b2=shampoo_beta), (0.1, 0.1)),
    ],
    ids=["kl_shampoo", "kl_soap", "soap", "soap_muon", "splus"],
)
def test_the_first_statistic_has_the_share_of_one_gradient(method: Any, shares: tuple[float, float], x64: None) -> None:
    """(1 - beta) G G^T, over the length of the other side for KL: a code that starts with G G^T itself gives the first
    gradient the weight of 1 / (1 - beta) later ones."""
    g = normal(0, 4, 6)
    tx = method(shampoo_beta=0.9)
    S = by_numpy(tx.update)(g, tx.init(g))[1].S
    for (name, share), x in zip(zip("01", shares, strict=True), (np.asarray(g), np.asarray(g).T), strict=True):
        assert_equal(S[name], share * x @ x.T, 1e-12)


def test_bases_stay_orthogonal_and_arbitrary_columns_what_they_were() -> None:
    """In float32 over 1000 refreshes; of a second moment of rank 1 the other columns stay."""
    rng = np.random.default_rng(0)
    S = jnp.asarray(rng.standard_normal((1, 6, 6)), jnp.float32)
    S = S @ jnp.swapaxes(S, 1, 2)
    Q = jax.lax.fori_loop(0, 1000, lambda _, q: kl.next_bases([S], [q])[0], jnp.eye(6)[None])
    # 6 products of 6 terms each, rounded to 2^-24.
    np.testing.assert_allclose(jnp.swapaxes(Q, 1, 2) @ Q, np.eye(6)[None], atol=3e-6)
    e = np.zeros((1, 4, 4), np.float32)
    e[0, 0, 0] = 1
    np.testing.assert_allclose(np.abs(kl.next_bases([jnp.asarray(e)], [jnp.eye(4)[None]])[0][0]), np.eye(4), atol=1e-6)
    np.testing.assert_allclose(kl.next_bases([jnp.asarray(0 * e)], [jnp.eye(4)[None]])[0][0], np.eye(4), atol=1e-6)


@pytest.mark.parametrize("method", [gk.scale_by_kl_shampoo, gk.scale_by_kl_soap])
def test_bases_of_the_method_are_orthogonal_after_a_thousand_refreshes(method: Any) -> None:
    """In float32, with another gradient and a refresh at every step."""
    G = jnp.asarray(np.random.default_rng(0).standard_normal((1001, 5, 7)), jnp.float32)
    tx = method(update_interval=1)

    @jax.jit
    def run(G: jax.Array) -> Any:
        return jax.lax.scan(lambda state, g: (tx.update(g, state)[1], None), tx.init(G[0]), G)[0]

    state = run(G)
    assert int(state.failed) == 0
    for name, d in (("0", 5), ("1", 7)):
        Q = np.asarray(state.Q[name], np.float64)
        # The last decomposition: d reflections, each rounded to 2^-24 in both of its products.
        np.testing.assert_allclose(Q.T @ Q, np.eye(d), atol=2 * d * 2**-24)


def test_more_axes_are_whitened_from_before_the_call(x64: None) -> None:
    """A tensor whose third axis has length 1 is the matrix; one of three is no matter of the order of its axes."""
    g = [normal(i, 3, 3, 3) for i in range(5)]
    tensor = gk.leaves.layout((gk.leaves.by_rank(), {"stack": ()}))
    tx = gk.scale_by_kl_shampoo(layout=tensor, shampoo_beta=0.8, update_interval=2)
    got = directions(tx, g)
    turned = directions(tx, [x.transpose(2, 0, 1) for x in g])
    assert_equal([x.transpose(1, 2, 0) for x in turned], got, 1e-8, 1e-9)


def test_vectors_long_axes_and_rayleigh(x64: None) -> None:
    """What the official code raises at; with a diagonal where an axis is too long."""
    g = [normal(i, 5) for i in range(4)]
    got, v, m = directions(gk.scale_by_kl_shampoo(b1=0.5, shampoo_beta=0.8, max_inverse_root=None), g), 0.1, 0.0
    for x, u in zip(g[1:], got[1:], strict=True):
        m = 0.5 * m + 0.5 * np.asarray(x)
        assert_equal(u, m / np.sqrt(v) / (1 + 1e-8 / np.sqrt(v)), 1e-10)
        v = 0.8 * v + 0.2 * np.asarray(x) ** 2
    state = jax.eval_shape(gk.scale_by_kl_shampoo(max_dim=4).init, jnp.ones((3, 6)))
    assert set(state.Q) == {"0"} and state.r["1"].shape == (6, 1)
    wide = directions(gk.scale_by_kl_shampoo(max_dim=4, eigenvalues="rayleigh"), [normal(i, 3, 6) for i in range(4)])
    assert np.isfinite(wide).all() and np.asarray(wide[-1]).any()


def test_zeros_and_bad_input() -> None:
    for method in (gk.scale_by_kl_shampoo, gk.scale_by_kl_soap):
        assert np.isfinite(directions(method(eps=0.0), [jnp.zeros((3, 4))] * 3)).all()
    for options, message in (
        ({"init_factor": 0.0}, "init_factor must be"),
        ({"eigenvalues": "trace"}, "eigenvalues must be one of"),
        ({"damping": -1.0}, "damping must be"),
        ({"update_interval": 0}, "update_interval must be"),
        ({"shampoo_beta": 1.0}, "shampoo_beta must be"),
    ):
        for factory in (gk.kl_shampoo, gk.kl_soap, gk.kl_statistics):
            with pytest.raises(ValueError, match=message):
                factory(**options)
