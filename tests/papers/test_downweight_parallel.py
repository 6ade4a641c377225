"""Updates with a smaller component along a reference (Sadat, Hilliges, Weber, 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def oracle(gs: Any, xs: Any, eta: float, limit: float, momentum: float) -> list[np.ndarray]:
    """The rule by its definition, of one tensor, in the order momentum, limit, projection."""
    a, out = np.zeros_like(gs[0]), []
    for g, r in zip(gs, xs, strict=True):
        a = momentum * a + g
        b = a * min(1.0, limit / np.linalg.norm(a))
        n = r / np.linalg.norm(r)
        out.append(b - (1 - eta) * np.vdot(b, n) * n)
    return out


def test_momentum_then_limit_then_projection(x64: None) -> None:
    """Against the definition; the sum is accumulated without its limit. The component along r is multiplied by eta."""
    gs, r = [np.asarray(normal(i, 3, 4)) for i in range(3)], np.asarray(normal(9, 3, 4))
    tx = gk.downweight_parallel(lambda x: r, eta=0.25, max_norm=2.5, momentum=-0.75)
    got = updates(tx, jnp.zeros((3, 4)), gs)
    assert_equal(got, oracle(gs, [r] * 3, 0.25, 2.5, -0.75), rtol=1e-12)
    g = gs[0]
    tx = gk.downweight_parallel(eta=0.25)
    out = tx.update(g, tx.init(r), r)[0]
    assert_equal(np.vdot(out, r), 0.25 * np.vdot(g, r))
    assert tx.init(r).trace is None


def test_the_end_points_are_the_identity_and_a_projection(x64: None) -> None:
    x, g = normal(0, 3, 4), normal(1, 3, 4)
    one = gk.downweight_parallel(eta=1.0)
    assert_equal(one.update(g, one.init(x), x)[0], g, rtol=0, atol=0)
    assert_equal(updates(gk.downweight_parallel(), x, [g]), updates(gk.orthogonalize_to_params(), x, [g]))


def test_a_reference_of_zero_changes_nothing(x64: None) -> None:
    """Also the first update, with the sum of earlier ones as the reference; the second has no part along the first."""
    g, h = normal(0, 5), normal(1, 5)
    assert_equal(updates(gk.downweight_parallel(), 0 * g, [g])[0], g, rtol=0, atol=0)
    first, second = updates(gk.downweight_parallel("momentum", momentum=0.5), g, [g, h])
    assert_equal(first, g, rtol=0, atol=0)
    assert_equal(second, h - jnp.vdot(h, g) / jnp.vdot(g, g) * g, rtol=1e-12)


def test_layers_of_a_stack_are_projected_separately(x64: None) -> None:
    x, g = normal(0, 2, 3, 4), normal(1, 2, 3, 4)
    tx = gk.downweight_parallel(eta=0.5, max_norm=1.0)
    whole, alone = {"ScanBlock_0": {"kernel": x}}, [{"kernel": x} for x in x]
    stacked = tx.update({"ScanBlock_0": {"kernel": g}}, tx.init(whole), whole)[0]["ScanBlock_0"]["kernel"]
    assert_equal(
        stacked,
        jnp.stack([tx.update({"kernel": g}, tx.init(x), x)[0]["kernel"] for g, x in zip(g, alone, strict=True)]),
    )


def test_one_all_reduce_of_scalars() -> None:
    """Of three numbers for each of two tensors that are sharded: one all-reduce, whatever their sizes."""
    mesh = jax.make_mesh((8,), ("f",), (jax.sharding.AxisType.Auto,))
    lies = jax.NamedSharding(mesh, jax.P("f"))
    x = {name: jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=lies) for name in "ab"}
    tx = gk.downweight_parallel(max_norm=1.0)
    update = jax.jit(lambda g, x: tx.update(g, tx.init(x), x)[0])
    found = gk.parallel.collective_bytes(update.lower(x, x).compile())
    assert {row.opcode for row in found} == {"all-reduce"}
    assert sum(row.result_bytes for row in found) == 4 * 3 * 2


def test_bad_input() -> None:
    for given, message in (
        ({"reference": "weights"}, "reference must be one of"),
        ({"eta": 1.5}, r"eta must be in \[0, 1\]"),
        ({"max_norm": 0.0}, "max_norm must be in"),
        ({"momentum": -1.0}, "momentum must be in"),
        ({"reference": "momentum"}, "needs a momentum"),
    ):
        with pytest.raises(ValueError, match=message):
            gk.downweight_parallel(**given)
    x = {"w": jnp.ones(2)}
    tx = gk.downweight_parallel(lambda params: {"v": params["w"]})
    with pytest.raises(ValueError, match=r"reference\(params\).*missing \['w'\]"):
        tx.update(x, tx.init(x), x)
