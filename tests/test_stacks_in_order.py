"""Stacks that are worked on one after another, as on CPU those of large trees are: the same numbers, less memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.engine import mapping, planning

METHODS = {
    "soap": lambda: gk.scale_by_soap(update_interval=2),
    "shampoo": lambda: gk.scale_by_shampoo(b1=0.9, b2=0.9, eps=0.1),
    "distributed_shampoo": lambda: gk.distributed_shampoo(1.0, eps=0.1, max_dim=5),
    "kron": lambda: gk.scale_by_kron(update_probability=1.0, key=jax.random.key(0)),
    "conda": lambda: gk.scale_by_conda(update_interval=2),
    "dion": lambda: gk.scale_by_dion(rank=2, key=0),
}
# A layer axis, a transposed matrix, a fused weight beside plain ones.
SHAPES = {"0": (8, 6), "1": (8, 6), "2": (8, 6), "3": (6, 8), "ScanBlock_0": (2, 8, 6)}


def draw(step: int, poison: bool = False) -> Any:
    rng = np.random.default_rng(step)
    out = {k: {"kernel": jnp.asarray(rng.standard_normal(s))} for k, s in SHAPES.items()}
    return jax.tree.map(lambda x: x * jnp.nan, out) if poison else out


def steps(tx: Any, poison: bool) -> Any:
    state, out = tx.init(draw(0)), []
    update = jax.jit(jax.vmap(tx.update))
    state = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    for t in range(3):
        pair = [draw(t, poison and t == 1), draw(t + 10)]
        d, state = update(jax.tree.map(lambda *x: jnp.stack(x), *pair), state)
        out.append(d)
    return out, state


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", METHODS)
def test_the_numbers_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `vmap` over two members, of which one has a gradient that is not finite: `jnp.where` would let it pass."""
    want = steps(METHODS[name](), poison=True)
    monkeypatch.setattr(planning, "LEAVES_PER_STACK", 2)
    monkeypatch.setattr(mapping, "IN_ORDER", 0)
    got = steps(METHODS[name](), poison=True)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            continue
        # Three steps of products of 8 terms, and roots with a condition below 1e4: 1e5 roundings.
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10)


@pytest.mark.full_pipeline
def test_one_stack_at_a_time_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LEAVES_PER_STACK", 2)
    grads = {f"{i:02}": {"kernel": jax.ShapeDtypeStruct((64, 64), np.float32)} for i in range(16)}
    held = []
    for least in (1 << 40, 0):
        monkeypatch.setattr(mapping, "IN_ORDER", least)
        tx = gk.scale_by_shampoo(update_interval=10)  # JAX remembers what it has traced of another
        state = jax.eval_shape(tx.init, grads)
        program = jax.jit(tx.update, donate_argnums=(0, 1)).lower(grads, state).compile()
        held.append(program.memory_analysis().temp_size_in_bytes)
    # Eight stacks, all or one at a time; what the compiler keeps besides is the same in both.
    assert held[1] < held[0] / 3
