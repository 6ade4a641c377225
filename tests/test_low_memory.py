"""Little memory, measured in the compiled step; and decompositions that are made only when they are due."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import normal

N, M, R = 64, 256, 16
# Of an n x m matrix, n <= m, with r directions: the words of the papers' tables. Matrices stand both ways; biases have
# Adam's two words.
STATES: dict[str, tuple[Callable[[], Any], int]] = {
    "galore": (lambda: gk.galore(0.1, rank=R), N * R + 2 * R * M),
    "fira": (lambda: gk.fira(0.1, rank=R), N * R + 2 * R * M + 1),
    "conda": (lambda: gk.conda(0.1), 2 * N * M + N * N),
    "dion": (lambda: gk.dion(0.1, rank=R, key=0, adam_learning_rate=0.1), N * M + N * R),
    "adamw": (lambda: gk.adamw(0.1), 2 * N * M),
}


@pytest.mark.full_pipeline
@pytest.mark.parametrize("name", STATES)
def test_state_bytes(name: str) -> None:
    """What a step is given beside parameters and gradients is the state of the paper's table, and a few counters; it
    is written back in place."""
    make, words = STATES[name]
    shapes = {"a": {"kernel": (N, M), "bias": (M,)}, "b": {"kernel": (M, N), "bias": (N,)}}
    params = {k: {f: jax.ShapeDtypeStruct(shape, jnp.float32) for f, shape in own.items()} for k, own in shapes.items()}
    tx = make()
    state = jax.eval_shape(tx.init, params)

    def step(params: Any, state: Any, grads: Any) -> Any:
        return tx.update(grads, state, params)

    program = jax.jit(step, keep_unused=True, donate_argnums=(1, 2)).lower(params, state, params).compile()
    memory = program.memory_analysis()
    assert memory is not None
    tree = 4 * (2 * N * M + M + N)
    most = 4 * 2 * words + 8 * (M + N) + 4 * 16
    own = memory.argument_size_in_bytes - 2 * tree
    assert 4 * 2 * words <= own <= most
    assert memory.alias_size_in_bytes >= own + tree - 4 * 16


BASES = gk.kronecker_bases(update_interval=3)
REFRESHED: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "conda": ("optimizers.matrix.conda", "singular_basis", lambda **o: gk.scale_by_conda(update_interval=3, **o)),
    "soap": ("optimizers.matrix.soap", "next_bases", lambda **o: gk.scale_by_soap(update_interval=3, **o)),
    "soap's first": (
        "optimizers.matrix.soap",
        "first_bases",
        lambda **o: gk.scale_by_soap(update_interval=3, **o),
    ),
    "a basis": ("transforms.in_basis", "next_bases", lambda: gk.in_basis(gk.scale_by_adam(), bases=BASES)),
    "the first": ("transforms.in_basis", "first_bases", lambda: gk.in_basis(gk.scale_by_adam(), bases=BASES)),
    "shampoo": (
        "optimizers.matrix.shampoo",
        "roots",
        lambda **o: gk.scale_by_shampoo(eps=0.01, update_interval=3, start_preconditioning_step=1, solver="eigh", **o),
    ),
}
# Of steps 0 to 6, and how often with the counters 0, 1 and 2 of three seeds together.
STEPS = {
    "conda": ([0, 3, 6], 7),
    "soap": ([3, 6], 6),
    "soap's first": ([0], 1),
    "a basis": ([3, 6], 6),
    "the first": ([0], 1),
    "shampoo": ([0, 2, 5], 7),
}


@pytest.mark.parametrize("name", REFRESHED)
def test_decompositions_when_due_also_for_many_seeds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All seeds of a `vmap` together and at no other step; where every seed counts for itself, at the steps of each."""
    module, function, make = REFRESHED[name]
    home, calls = sys.modules[f"gradkit.{module}"], []
    plain = getattr(home, function)

    def counted(*args: Any, **options: Any) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return plain(*args, **options)

    monkeypatch.setattr(home, function, counted)
    due, apart = STEPS[name]
    tx = make()
    g = jnp.stack([jnp.stack([normal(10 * s + t, 3, 3) for t in range(7)]) for s in range(3)]).astype(jnp.float32)

    def run(state: Any, own: jax.Array) -> Any:
        def one(state: Any, x: jax.Array) -> tuple[Any, Any]:
            d, state = tx.update({"w": x}, state)
            return state, d["w"]

        return jax.lax.scan(one, state, own)[1]

    def count(f: Any, *args: Any) -> tuple[Any, int]:
        calls.clear()
        out = jax.block_until_ready(jax.jit(f)(*args))
        jax.effects_barrier()
        return out, len(calls)

    start = tx.init({"w": g[0, 0]})
    alone = []
    for own in g:
        d, made = count(run, start, own)
        assert made == len(due)
        alone.append(d)
    within, made = count(jax.vmap(run, (None, 0)), start, g)
    assert made == len(due)
    np.testing.assert_allclose(within, jnp.stack(alone), rtol=1e-4, atol=1e-5)
    states = jax.tree.map(lambda x: jnp.stack([x] * 3), start)
    shifted = states._replace(count=jnp.arange(3, dtype=jnp.int32))
    got, made = count(jax.vmap(run), shifted, g)
    assert made == apart
    for s in range(3):
        want, _ = count(run, jax.tree.map(lambda x, s=s: x[s], shifted), g[s])
        np.testing.assert_allclose(got[s], want, rtol=1e-4, atol=1e-5)
