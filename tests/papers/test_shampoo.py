"""Shampoo (Gupta et al., 2018; Morwani et al., 2024): against NumPy, and what it reduces to."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.diagnostics import metrics
from tests.papers.replay import assert_equal, normal

# Roots of statistics with an eps of 0.1 amplify the roundings of float64 by 0.1^-1.25 per axis at most.
RTOL = 1e-11


def replay(tx: optax.GradientTransformation, gradients: list[Any], **extra: list[Any]) -> tuple[list[Any], Any]:
    """The directions of a run, and its last state; the loop is one program."""
    tx = optax.with_extra_args_support(tx)

    def step(state: Any, row: Any) -> Any:
        g, more = row
        u, state = tx.update(g, state, g, **more)
        return state, u

    rows = (
        jax.tree.map(lambda *g: jnp.stack(g), *gradients),
        {k: jax.tree.map(lambda *g: jnp.stack(g), *v) for k, v in extra.items()},
    )
    state, out = jax.jit(lambda s: jax.lax.scan(step, s, rows))(tx.init(gradients[0]))
    return [jax.tree.map(lambda u, i=i: u[i], out) for i in range(len(gradients))], state


def power(A: np.ndarray, e: float) -> np.ndarray:
    values, Q = np.linalg.eigh(A)
    return Q * values**e @ Q.T


def contraction(G: np.ndarray, axis: int) -> np.ndarray:
    x = np.moveaxis(G, axis, 0).reshape(G.shape[axis], -1)
    return x @ x.T


def reference(
    gradients: list[np.ndarray],
    *,
    b1: float = 0.0,
    b2: float = 1.0,
    eps: float,
    e: Any = None,
    frequency: int = 1,
    start: int | None = None,
    diagonal: tuple[int, ...] = (),
    trace: bool = False,
) -> list[np.ndarray]:
    """The box of the algorithm, for one tensor."""
    shape = np.shape(gradients[0])
    k = len(shape)
    e = [1 / (2 * k)] * k if e is None else e
    start = frequency if start is None else start
    L = [np.zeros((d, d)) for d in shape]
    P = [np.eye(d) for d in shape]
    m, out = np.zeros(shape), []
    for t, G in enumerate(map(np.asarray, gradients), 1):
        for i in range(k):
            S = contraction(G, i)
            S = np.diag(np.diag(S)) if i in diagonal else S
            L[i] = L[i] + S if b2 == 1 else b2 * L[i] + (1 - b2) * S
        c = 1 if b2 == 1 else 1 - b2**t
        if t == start or (t > start and t % frequency == 0):
            P = [power(L[i] / c + eps * np.eye(d), -e[i]) for i, d in enumerate(shape)]
            if trace:
                P[0] = P[0] * np.trace(L[0] / c) ** e[0]
        m = b1 * m + (1 - b1) * G
        d = m / (1 - b1**t)
        for i in range(k):
            d = np.moveaxis(np.tensordot(P[i], d, (1, i)), 0, i)
        out.append(d)
    return out


SHAPES = {"kernel": (3, 4), "stack": (2, 3, 2), "vector": (3,)}
GRADIENTS = [{k: np.random.default_rng([t, 3]).standard_normal(s) for k, s in SHAPES.items()} for t in range(5)]


def gradients() -> list[Any]:
    return jax.tree.map(jnp.asarray, GRADIENTS)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {}),
        ({"b1": 0.8, "b2": 0.9, "update_interval": 2}, {"b1": 0.8, "b2": 0.9, "frequency": 2}),
        (
            {"update_interval": 2, "start_preconditioning_step": 3, "max_dim": 3},
            {"frequency": 2, "start": 3, "max_dim": 3},
        ),
    ],
    ids=["the paper", "means", "late, diagonal"],
)
def test_the_algorithm(options: dict[str, Any], wanted: dict[str, Any], x64: None) -> None:
    """Tensors of order 1 to 3: exponents 1/2, 1/4 and 1/6; an axis above max_dim keeps a diagonal."""
    got, _ = replay(gk.scale_by_shampoo(eps=0.1, **options), gradients())
    most = wanted.pop("max_dim", 100)
    for name, shape in SHAPES.items():
        diagonal = tuple(i for i, d in enumerate(shape) if d > most)
        want = reference([g[name] for g in GRADIENTS], eps=0.1, diagonal=diagonal, **wanted)
        assert_equal([u[name] for u in got], want, rtol=RTOL, atol=RTOL)


@pytest.mark.parametrize("exponent", ["shampoo2", 0.3, {0: 0.5, -1: 0.2}])
def test_exponents(exponent: Any, x64: None) -> None:
    """A number is of matrices alone; a dict is of the axes of every tensor, the others have what the paper gives."""
    rows = [{k: g[k] for k in ("kernel", "stack")} for g in gradients()]
    got, _ = replay(gk.scale_by_shampoo(eps=0.1, exponent=exponent), rows)
    e = {"shampoo2": ([0.5, 0.5], None), 0.3: ([0.3, 0.3], None)}.get(
        exponent if not isinstance(exponent, dict) else ""
    )
    e = ([0.5, 0.2], [0.5, 1 / 6, 0.2]) if e is None else e
    for name, own in zip(("kernel", "stack"), e, strict=True):
        want = reference([g[name] for g in GRADIENTS], eps=0.1, e=own)
        assert_equal([u[name] for u in got], want, rtol=RTOL, atol=RTOL)


def test_one_gradient_gives_the_orthogonal_factor(x64: None) -> None:
    """(G G^T)^(-1/4) G (G^T G)^(-1/4) = U V^T: Muon without iterations."""
    g = normal(0, 4, 4)
    U, _, Vt = np.linalg.svd(np.asarray(g))
    got, _ = replay(gk.scale_by_shampoo(eps=0.0), [g])
    assert_equal(got[0], U @ Vt, rtol=0, atol=1e-12)


def test_diagonal_gradients_are_adagrad(x64: None) -> None:
    """Of a diagonal matrix L and R are the sums of squares: G (sum G^2 + eps)^(-1/2)."""
    rows = [jnp.diag(normal(i, 3)) for i in range(4)]
    got, _ = replay(gk.scale_by_shampoo(eps=1e-6), rows)
    squares = np.cumsum(np.square(rows), axis=0)
    assert_equal(got, [g * (s + 1e-6) ** -0.5 for g, s in zip(np.asarray(rows), squares, strict=True)], rtol=1e-9)


def test_it_turns_with_the_coordinates(x64: None) -> None:
    """Shampoo(Q1 G Q2) = Q1 Shampoo(G) Q2."""
    Q1, Q2 = (np.linalg.qr(np.random.default_rng(i).standard_normal((d, d)))[0] for i, d in ((0, 3), (1, 4)))
    rows = [normal(i, 3, 4) for i in range(3)]
    tx = gk.scale_by_shampoo(b1=0.5, b2=0.9, eps=0.01)
    plain, _ = replay(tx, rows)
    turned, _ = replay(tx, [jnp.asarray(Q1 @ g @ Q2) for g in map(np.asarray, rows)])
    assert_equal(turned, [Q1 @ np.asarray(u) @ Q2 for u in plain], rtol=1e-10, atol=1e-10)


def test_the_square_of_shampoo_is_the_best_kronecker_root(x64: None) -> None:
    """Of moments that are a Kronecker product: Tr(L)^(1/2) L^(-1/2) G R^(-1/2) = H^(-1/2) vec G."""
    rng = np.random.default_rng(0)
    A, B = (x @ x.T + np.eye(len(x)) for x in (rng.standard_normal((2, 2)), rng.standard_normal((3, 3))))
    a, b = np.linalg.cholesky(A), np.linalg.cholesky(B)
    # The six matrices a E_ij b^T have exactly the moments A (x) B / 6.
    rows = [jnp.asarray(np.outer(a[:, i], b[:, j])) for i in range(2) for j in range(3)]
    H = sum(np.outer(g.ravel(), g.ravel()) for g in map(np.asarray, rows))
    got, _ = replay(
        gk.scale_by_shampoo(eps=0.0, exponent="shampoo2", trace_correction=True, start_preconditioning_step=6), rows
    )
    want = (power(H, -0.5) @ np.ravel(rows[-1])).reshape(2, 3)
    assert_equal(got[-1], want, rtol=1e-10)
    # Until the first roots nothing is changed.
    assert_equal(got[:-1], rows[:-1])


def test_statistics_of_single_examples(x64: None) -> None:
    """Means over examples: with one example the batch's own; with the same gradient three times too."""
    rows = [{"w": normal(i, 2, 3), "b": normal(9 + i, 2)} for i in range(2)]
    plain, _ = replay(gk.scale_by_shampoo(eps=0.1, b2=0.9), rows)
    tx = gk.scale_by_shampoo(eps=0.1, b2=0.9, factor_source="per_example")
    three = [jax.tree.map(lambda g: jnp.stack([g] * 3), row) for row in rows]
    same, _ = replay(tx, rows, factor_grads=three)
    assert_equal(same, plain, rtol=1e-12)
    examples = [jax.tree.map(lambda g, i=i: normal(50 + i, 3, *g.shape), row) for i, row in enumerate(rows)]
    _, state = replay(tx, rows, factor_grads=examples)
    L = sum(0.1 * 0.9 ** (1 - i) * np.mean([g @ g.T for g in np.asarray(e["w"])], 0) for i, e in enumerate(examples))
    assert_equal(state.L["w"]["0"], L, rtol=1e-12)
    with pytest.raises(ValueError, match="scale_by_shampoo needs the extra argument factor_grads"):
        tx.update(rows[0], tx.init(rows[0]))
    for bad in (rows[0], {"w": jnp.ones((2, 2, 3)), "b": jnp.ones((3, 2))}, {"w": jnp.ones((2, 2, 3))}):
        with pytest.raises(ValueError, match="one common leading axis"):
            tx.update(rows[0], tx.init(rows[0]), factor_grads=bad)


def test_a_root_that_fails_leaves_the_last_one_and_is_counted(x64: None) -> None:
    """Without eps a gradient with an empty row and column has no root, and two together have one; NaN has none, and the
    old ones stay."""
    rows = [jnp.diag(jnp.array([2.0, 0.0])), normal(2, 2, 2), jnp.full((2, 2), jnp.nan), normal(3, 2, 2)]
    got, state = replay(gk.scale_by_shampoo(eps=0.0), rows)
    want = reference(rows[:2], eps=0.0, start=2)
    assert_equal(got[:2], want, rtol=1e-8)
    second = [power(sum(contraction(np.asarray(g), i) for g in rows[:2]), -0.25) for i in (0, 1)]
    assert_equal(got[3], second[0] @ np.asarray(rows[3]) @ second[1], rtol=1e-8)
    # Two axes in the first step, and two in each of the last two.
    assert int(metrics(state)["failed_roots"]) == 6


def test_stacks_of_the_layout_are_tensors_and_all_else_is_an_axis(x64: None) -> None:
    """Declared layers equal separate ones; undeclared, the leading axis is one of the tensor."""
    rows = [normal(i, 2, 3, 4) for i in range(2)]
    layout = gk.leaves.layout((gk.leaves.by_path("blocks"), {"stack": 1}))
    got, _ = replay(gk.scale_by_shampoo(eps=0.1, layout=layout), [{"blocks": g} for g in rows])
    for i in range(2):
        want = reference([np.asarray(g)[i] for g in rows], eps=0.1)
        assert_equal([u["blocks"][i] for u in got], want, rtol=RTOL)
    got, _ = replay(gk.scale_by_shampoo(eps=0.1), [{"blocks": g} for g in rows])
    assert_equal([u["blocks"] for u in got], reference([np.asarray(g) for g in rows], eps=0.1), rtol=RTOL)


@pytest.mark.parametrize("solver", ["coupled_newton", "higher_order"])
def test_the_solvers_agree(solver: str, x64: None) -> None:
    """To the tolerance 1e-6 at which iterations stop."""
    got, _ = replay(gk.scale_by_shampoo(eps=0.1, solver=solver), gradients()[:2])
    want, _ = replay(gk.scale_by_shampoo(eps=0.1), gradients()[:2])
    assert_equal(got, want, rtol=1e-4, atol=1e-5)


def test_decay_is_decoupled(x64: None) -> None:
    g = normal(0, 2, 3)
    tx, plain = gk.shampoo(0.1, eps=0.1, weight_decay=0.5), gk.shampoo(0.1, eps=0.1)
    with_decay, without = (t.update(g, t.init(g), g)[0] for t in (tx, plain))
    assert_equal(with_decay, without - 0.05 * g)


def test_bad_input() -> None:
    for kwargs, message in [
        ({"exponent": "shampoo3"}, "exponent must be one of"),
        ({"exponent": 0.0}, "exponent must be in"),
        ({"exponent": {0: -1.0}}, "exponent must be in"),
        ({"exponent": {0: 0.5}, "trace_correction": True}, "needs one exponent"),
        ({"factor_source": "fisher"}, "factor_source must be one of"),
        ({"solver": "svd"}, "solver must be one of"),
        ({"start_preconditioning_step": 0}, "start_preconditioning_step must be"),
        ({"shard": 3}, "shard must be a MatrixSharding"),
    ]:
        with pytest.raises(ValueError, match=message):
            gk.scale_by_shampoo(**kwargs)
    with pytest.raises(ValueError, match="names the axis 1, but there is a tensor of order 1"):
        gk.scale_by_shampoo(exponent={1: 0.5}).init({"b": jnp.ones(3)})


def test_gradients_of_low_rank_in_float32() -> None:
    """One direction u v^T again and again, of sizes s: the step is u v^T s_t / sqrt(s_1^2 + ... + s_t^2). The default
    eps is far below the rounding of the statistics, whose null spaces have 47 and 39 dimensions."""
    u, v = (np.asarray(normal(i, n)) / np.linalg.norm(normal(i, n)) for i, n in enumerate((48, 40)))
    tx, sizes = gk.scale_by_shampoo(), np.abs(np.asarray(normal(2, 60))) + 0.5
    out, state = replay(tx, [{"w": jnp.asarray(s * np.outer(u, v), jnp.float32)} for s in sizes])
    for t in (1, 10, 60):
        # A rounding of 2^-24 in a null direction grows by 2^(23/4) on either side, as the floor there is 2^-23.
        expected = np.outer(u, v) * sizes[t - 1] / np.sqrt(np.sum(sizes[:t] ** 2))
        error = np.linalg.norm(out[t - 1]["w"] - expected) / np.linalg.norm(expected)
        assert error < 2**-0.5 * 2**-24 * 2 ** (23 / 2) * np.sqrt(48 + 40)
    assert metrics(state)["failed_roots"] == 0
