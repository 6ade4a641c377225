"""LoRA-Pro (Wang et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates

S = 1.5
CHOICES = ("sylvester", "zero", "symmetric")


def adapter() -> tuple[Any, Any, np.ndarray]:
    """The factors, their gradients, and the gradient of the product."""
    x = {"lora_a": normal(0, 7, 2), "lora_b": normal(1, 2, 5)}
    G = normal(2, 7, 5)
    return x, {"lora_a": S * G @ x["lora_b"].T, "lora_b": S * x["lora_a"].T @ G}, np.asarray(G)


def moved(x: Any, d: Any) -> np.ndarray:
    return np.asarray(S * (d["lora_a"] @ x["lora_b"] + x["lora_a"] @ d["lora_b"]))


@pytest.mark.parametrize("choose_x", CHOICES)
@pytest.mark.parametrize("damping", [0.0, 1e-8])
def test_equal_rows_of_a_factor_move_the_product_as_the_rows_that_differ(damping: float, choose_x: str) -> None:
    """The Gram matrix is singular, in float32: what the factors can do is what pseudo-inverses say."""
    x, _, G = adapter()
    x = {"lora_a": x["lora_a"].astype(np.float32), "lora_b": jnp.stack([x["lora_b"][0]] * 2).astype(np.float32)}
    G = G.astype(np.float32)
    g = {"lora_a": S * G @ x["lora_b"].T, "lora_b": S * x["lora_a"].T @ G}
    d = updates(gk.adjust_lora_gradients(S, damping=damping, choose_x=choose_x), x, [g])[0]
    columns, rows = (np.asarray(x[k], np.float64) for k in ("lora_a", "lora_b"))
    P_a, P_b = columns @ np.linalg.pinv(columns), np.linalg.pinv(rows) @ rows
    # Products of 7 x 5 entries of size 3, through Gram matrices whose condition is below 100 where they have any.
    np.testing.assert_allclose(moved(x, d), P_a @ G + G @ P_b - P_a @ G @ P_b, atol=100 * 2**-23 * 3)


@pytest.mark.parametrize("choose_x", CHOICES)
def test_the_product_moves_by_the_nearest_to_the_full_gradient(choose_x: str, x64: None) -> None:
    x, g, G = adapter()
    d = updates(gk.adjust_lora_gradients(S, damping=0.0, choose_x=choose_x), x, [g])[0]
    columns, rows = (np.asarray(x[k]) for k in ("lora_a", "lora_b"))
    P_a, P_b = columns @ np.linalg.pinv(columns), np.linalg.pinv(rows) @ rows
    E = moved(x, d)
    assert_equal(E, P_a @ G + G @ P_b - P_a @ G @ P_b, rtol=1e-9)
    # Of all that factors can do this is the nearest: what is left is orthogonal to both.
    np.testing.assert_allclose((G - E) @ rows.T, 0, atol=1e-11)
    np.testing.assert_allclose(columns.T @ (G - E), 0, atol=1e-11)
    assert np.sum(G * E) >= 0


def test_sylvester_stays_nearest_to_the_gradients(x64: None) -> None:
    """Any other Y moves the factors further from (g_a, g_b), and the product alike."""
    x, g, _ = adapter()
    a, b = x["lora_a"], x["lora_b"]
    d = {c: updates(gk.adjust_lora_gradients(S, damping=0.0, choose_x=c), x, [g])[0] for c in CHOICES}
    far = lambda d: float(sum(jnp.sum((d[k] - g[k]) ** 2) for k in d))  # noqa: E731
    near = d["sylvester"]
    assert far(near) < min(far(d["zero"]), far(d["symmetric"]))
    for seed in range(4):
        Y = 1e-3 * normal(seed, 2, 2)
        other = {"lora_a": near["lora_a"] + a @ Y, "lora_b": near["lora_b"] - Y @ b}
        assert far(other) > far(near)
        np.testing.assert_allclose(moved(x, other), moved(x, near), atol=1e-12)
    # Symmetric: each factor moves the product by half of what both can move.
    both = S * d["symmetric"]["lora_a"] @ b
    np.testing.assert_allclose(a.T @ both @ b.T, a.T @ (S * a @ d["symmetric"]["lora_b"]) @ b.T, atol=1e-10)


def test_the_first_step_from_b_zero(x64: None) -> None:
    x, _, G = adapter()
    x = {**x, "lora_b": jnp.zeros((2, 5))}
    g = {"lora_a": jnp.zeros((7, 2)), "lora_b": S * x["lora_a"].T @ jnp.asarray(G)}
    d = updates(gk.adjust_lora_gradients(S), x, [g])[0]
    gram = x["lora_a"].T @ x["lora_a"]
    assert_equal(d["lora_a"], jnp.zeros((7, 2)))
    assert_equal(d["lora_b"], jnp.linalg.solve(gram, g["lora_b"]) / S**2, rtol=1e-7)  # damping of 1e-8


def test_a_scaling_is_no_change_of_the_run(x64: None) -> None:
    """The product moves as full training would, whatever s; plain gradients of factors move it by s^2."""
    x, g, _ = adapter()
    d = updates(gk.adjust_lora_gradients(S), x, [g])[0]
    half = jax.tree.map(lambda v: v / 2, g)  # of the scaling S / 2
    e = updates(gk.adjust_lora_gradients(S / 2), x, [half])[0]
    assert_equal(S * d["lora_a"] @ x["lora_b"], S / 2 * e["lora_a"] @ x["lora_b"], rtol=1e-7)


def test_adam_is_of_the_product(x64: None) -> None:
    """The moments are those of Adam on E; behind the stateless link they are of the factors, another method."""
    x, g, _ = adapter()
    x["bias"], g["bias"] = normal(4, 3), normal(5, 3)
    tx = gk.lora_pro_adam(0.1, scaling=S)
    state = tx.init(x)
    u, state = tx.update(g, state, x)
    E = moved(x, updates(gk.adjust_lora_gradients(S, choose_x="zero"), x, [g])[0])
    # (7, 5) of the product and (3,) of the bias, twice.
    inner = state[0]
    assert inner.mu["lora_a"].shape == (7, 5) and isinstance(inner.mu["lora_b"], optax.MaskedNode)
    assert_equal(inner.mu["lora_a"], 0.1 * E)
    assert_equal(inner.nu["lora_a"], 0.001 * E**2, rtol=1e-9)
    assert_equal(u["bias"], updates(gk.adam(0.1), x["bias"], [g["bias"]])[0])
    # The first direction of Adam is the sign of E: what the product moves by is the nearest to it.
    a, b = np.asarray(x["lora_a"]), np.asarray(x["lora_b"])
    left = np.sign(E) - moved(x, jax.tree.map(lambda v: -v / 0.1, u))
    # eps = 1e-8 against entries of E above 1e-2, and damping of 1e-8 against Gram matrices of about 1.
    np.testing.assert_allclose(left @ b.T, 0, atol=1e-5)
    np.testing.assert_allclose(a.T @ left, 0, atol=1e-5)
    chain = optax.chain(gk.adjust_lora_gradients(S), gk.scale_by_adam(), gk.scale_by_learning_rate(0.1))
    rest = {k: x[k] for k in ("lora_a", "lora_b")}
    v = updates(chain, rest, [{k: g[k] for k in rest}])[0]
    assert float(jnp.abs(v["lora_a"] - u["lora_a"]).max()) > 1e-3


def test_descent_is_that_of_the_full_matrix_where_adapters_can_follow(x64: None) -> None:
    """A gradient in the rows of b: the product moves by -rate G, and by the square of the rate."""
    x, _, _ = adapter()
    a, b = x["lora_a"], x["lora_b"]
    G = normal(8, 7, 2) @ b
    g = {"lora_a": S * G @ b.T, "lora_b": S * a.T @ G}
    for rate in (0.1, 1e-3):
        u = updates(gk.lora_pro(rate, scaling=S, damping=0.0), x, [g])[0]
        y = optax.apply_updates(x, u)
        square = S * u["lora_a"] @ u["lora_b"]
        assert_equal(S * (y["lora_a"] @ y["lora_b"] - a @ b) - square, -rate * G, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["adjust_lora_gradients", "lora_pro_adam"])
def test_stacked_adapters_are_adapters(name: str, x64: None) -> None:
    tx = gk.adjust_lora_gradients(S) if name == "adjust_lora_gradients" else gk.lora_pro_adam(0.1, scaling=S)
    layers = [{"lora_a": normal(i, 4, 2), "lora_b": normal(9 + i, 2, 3)} for i in (0, 1)]
    gradients = [{"lora_a": normal(20 + i, 4, 2), "lora_b": normal(29 + i, 2, 3)} for i in (0, 1)]
    stack = lambda trees: {"scan": jax.tree.map(lambda *v: jnp.stack(v), *trees)}  # noqa: E731
    together = updates(tx, stack(layers), [stack(gradients)] * 2)
    for i in (0, 1):
        for whole, alone in zip(together, updates(tx, layers[i], [gradients[i]] * 2), strict=True):
            assert_equal(jax.tree.map(lambda v, i=i: v[i], whole["scan"]), alone, rtol=1e-10)


def test_in_nnx_and_in_low_precision() -> None:
    layer = nnx.LoRA(4, 2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(layer, gk.lora_pro_adam(0.1, scaling=1.0), wrt=nnx.Param)
    x = jnp.ones((5, 4))
    before = float(jnp.mean((layer(x) - 1) ** 2))
    for _ in range(20):
        grads = nnx.grad(lambda m: jnp.mean((m(x) - 1) ** 2), argnums=nnx.DiffState(0, nnx.Param))(layer)
        optimizer.update(layer, grads)
    assert float(jnp.mean((layer(x) - 1) ** 2)) < 0.1 * before
    narrow = {"lora_a": jnp.ones((4, 2), jnp.bfloat16).at[0, 0].set(3), "lora_b": jnp.eye(2, dtype=jnp.bfloat16)}
    u = updates(gk.lora_pro_adam(0.1, scaling=1.0), narrow, [narrow])[0]
    wide = jax.tree.map(lambda v: v.astype(jnp.float32), narrow)
    want = updates(gk.lora_pro_adam(0.1, scaling=1.0), wide, [wide])[0]
    for k, v in u.items():
        assert v.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(v, np.float32), want[k], rtol=2**-8 * 1.01, atol=1e-6)


def test_on_a_mesh() -> None:
    """a cut along `in`, b along `out`: as on one device, over Auto and Explicit axes."""
    x = {"lora_a": normal(0, 8, 2), "lora_b": normal(1, 2, 4)}
    g = {"lora_a": normal(2, 8, 2), "lora_b": normal(3, 2, 4)}
    tx = gk.lora_pro_adam(0.1, scaling=S, eps=1e-3)
    want, _ = tx.update(g, tx.init(x), x)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(kind,) * 2, devices=jax.devices()[:4])
        lies = {"lora_a": NamedSharding(mesh, P("fsdp")), "lora_b": NamedSharding(mesh, P(None, "tensor"))}
        there, grads = (jax.tree.map(jax.device_put, tree, lies) for tree in (x, g))
        with jax.set_mesh(mesh):
            state = tx.init(there)
            got, after = jax.jit(tx.update)(grads, state, there)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        for k in x:
            np.testing.assert_allclose(np.asarray(got[k]), np.asarray(want[k]), atol=1e-5)


def test_bad_input() -> None:
    a, b = jnp.ones((4, 2)), jnp.ones((2, 3))
    tx = gk.adjust_lora_gradients(S)
    with pytest.raises(ValueError, match="'up/lora_b' has no partner 'up/lora_a'"):
        tx.init({"up": {"lora_b": b}, "z": {"lora_a": a}})
    with pytest.raises(ValueError, match="have no common rank"):
        tx.init({"lora_a": a, "lora_b": jnp.ones((3, 3))})
    with pytest.raises(ValueError, match=r"factors are called 'lora_a', and no leaf is; did you mean .*'lora_A'"):
        tx.init({"lora_A": a, "lora_B": b})
    gk.adjust_lora_gradients(S, pairs=("lora_A", "lora_B")).init({"lora_A": a, "lora_B": b})
    with pytest.raises(ValueError, match=r"scaling must be in \(0, inf\)"):
        gk.lora_pro_adam(0.1, scaling=0.0)
    with pytest.raises(ValueError, match="choose_x must be one of"):
        gk.adjust_lora_gradients(S, choose_x="silvester")
