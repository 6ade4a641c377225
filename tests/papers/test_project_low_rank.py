"""GaLore's projection (Zhao et al., 2024): a method on the leading directions of every matrix."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def fixed(U: np.ndarray) -> np.ndarray:
    """Every column turned so that its largest entry is positive."""
    return U * np.sign(U[np.abs(U).argmax(0), np.arange(U.shape[1])])


def directions(tx: optax.GradientTransformation, gradients: list[Any]) -> list[Any]:
    update = jax.jit(tx.update)
    state, out = tx.init(gradients[0]), []
    for g in gradients:
        d, state = update(g, state)
        out.append(d)
    return out


def reference(gradients: list[np.ndarray], *, rank: int, interval: int, rows_first: bool, rotate: bool) -> list[Any]:
    """Adam (b1 = 0.9, b2 = 0.99, eps = 1e-8) of the projection, in plain NumPy."""
    m = v = np.zeros(())
    B, out = np.zeros(()), []
    for t, g in enumerate(gradients):
        x = g if rows_first else g.T
        if t % interval == 0:
            new = fixed(np.linalg.svd(x, full_matrices=False)[0][:, :rank])
            if rotate and t:
                m, v = new.T @ B @ m, (new.T @ B) ** 2 @ v
            B = new
        R = B.T @ x
        m, v = 0.9 * m + 0.1 * R, 0.99 * v + 0.01 * R**2
        d = B @ (m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.99 ** (t + 1))) + 1e-8))
        out.append(2.0 * (d if rows_first else d.T))
    return out


@pytest.mark.parametrize(
    ("side", "shape", "rows_first"),
    [
        ("short", (4, 6), True),
        ("short", (6, 4), False),
        ("short", (5, 5), False),
        ("long", (5, 5), True),
        ("long", (4, 6), False),
        ("inputs", (6, 4), True),
        ("outputs", (6, 4), False),
    ],
)
@pytest.mark.parametrize("rotate", [False, True], ids=["carried", "rotated"])
def test_the_algorithm(side: str, shape: tuple[int, int], rows_first: bool, rotate: bool, x64: None) -> None:
    """Also over two changes of the basis with a first moment, where signs matter."""
    gradients = [normal(i, *shape) for i in range(5)]
    tx = gk.project_low_rank(
        gk.scale_by_adam(b2=0.99), rank=2, update_interval=2, scale=2.0, side=side, rotate_moments=rotate
    )
    want = reference([np.asarray(g) for g in gradients], rank=2, interval=2, rows_first=rows_first, rotate=rotate)
    assert_equal(directions(tx, gradients), want, rtol=1e-9, atol=1e-10)


def test_all_directions_and_no_method_change_nothing(x64: None) -> None:
    g = {"wide": normal(0, 4, 6), "tall": normal(1, 6, 4), "bias": normal(2, 4)}
    for rank in (4, 1000):
        assert_equal(directions(gk.project_low_rank(optax.identity(), rank=rank), [g])[0], g, 1e-12, 1e-12)


def test_rank_and_turned_spaces(x64: None) -> None:
    """The direction has rank r; without a method it turns with the spaces of both sides, and with Adam with that of the
    compressed one, whose signs it does not feel."""
    g = normal(0, 4, 6)
    P, Q = (np.linalg.qr(np.asarray(normal(i, n, n)))[0] for i, n in ((1, 4), (2, 6)))
    for inner, right in ((optax.identity(), Q), (gk.scale_by_adam(), np.eye(6))):
        tx = gk.project_low_rank(inner, rank=2)
        d = directions(tx, [g, 2 * g])[1]
        assert np.linalg.matrix_rank(np.asarray(d)) == 2
        turned = jnp.asarray(P @ np.asarray(g) @ right.T)
        assert_equal(directions(tx, [turned, 2 * turned])[1], P @ np.asarray(d) @ right.T, 1e-10, 1e-10)


@pytest.mark.full_pipeline
def test_state_bytes() -> None:
    """n r + 2 r m words of an n x m matrix, n <= m, and a counter or two; the compiled step takes no more."""
    params = {"a": jax.ShapeDtypeStruct((64, 256), jnp.float32), "b": jax.ShapeDtypeStruct((256, 64), jnp.bfloat16)}
    tx = gk.project_low_rank(rank=16)
    state = jax.eval_shape(tx.init, params)
    words = 64 * 16 + 2 * 16 * 256
    counters = 4 * (1 + 1 + 1 + 2)  # the two counts of steps and that of failures; per matrix a count
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) == 2 * 4 * words + counters
    memory = jax.jit(tx.update, keep_unused=True).lower(params, state).compile().memory_analysis()
    assert memory is not None and memory.argument_size_in_bytes == 64 * 256 * (4 + 2) + 2 * 4 * words + counters


def test_a_basis_is_computed_when_due_also_for_many_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps, an interval of three, four seeds: two bases each, whether the counter is one for all or each has its
    own; and with counters that differ each seed keeps to its own."""
    import sys

    module, calls = sys.modules["gradkit.transforms.project_low_rank"], []
    plain = module.singular_basis

    def counted(x: jax.Array, rank: int, sign: str) -> jax.Array:
        jax.debug.callback(lambda: calls.append(1))
        return plain(x, rank, sign=sign)

    monkeypatch.setattr(module, "singular_basis", counted)
    tx = gk.project_low_rank(optax.identity(), rank=1, update_interval=3)
    g = jnp.stack([jnp.stack([normal(10 * s + t, 3, 4) for t in range(6)]) for s in range(4)]).astype(jnp.float32)

    def steps(state: Any, g: jax.Array) -> Any:
        return jax.lax.scan(lambda s, x: tx.update(x, s)[::-1], state, g)[1]

    alone = jnp.stack([steps(tx.init(g[0, 0]), own) for own in g])
    jax.effects_barrier()
    assert len(calls) == 4 * 2
    calls.clear()
    within = jax.jit(jax.vmap(lambda own: steps(tx.init(own[0]), own)))(g)
    jax.effects_barrier()
    assert len(calls) == 2  # for all seeds at once
    calls.clear()
    states = jax.vmap(tx.init)(g[:, 0])
    apart = jax.jit(jax.vmap(steps))(states, g)
    jax.effects_barrier()
    assert len(calls) == 2
    # The same arithmetic in three programs, in float32.
    assert_equal(within, alone, 1e-5, 1e-5)
    assert_equal(apart, alone, 1e-5, 1e-5)
    shifted = states._replace(count=jnp.array([0, 1, 0, 2], jnp.int32))
    got = jax.vmap(steps)(shifted, g)
    for s in range(4):
        want = steps(jax.tree.map(lambda x, s=s: x[s], shifted), g[s])
        assert_equal(got[s], want, 1e-5, 1e-5)


def test_a_basis_that_fails_is_not_taken(x64: None) -> None:
    tx = gk.project_low_rank(optax.identity(), rank=1, update_interval=1)
    g = {"a": normal(0, 3, 4), "b": normal(1, 3, 4)}
    _, state = tx.update(g, tx.init(g))
    before = state.basis
    assert gk.diagnostics.metrics(state)["failed_refreshes"] == 0
    _, state = jax.jit(tx.update)({**g, "a": g["a"].at[0, 0].set(jnp.nan)}, state)
    jax.tree.map(assert_equal, state.basis, before)
    assert gk.diagnostics.metrics(state)["failed_refreshes"] == 1
    d, _ = tx.update(g, state)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(d))


def test_a_tree_of_ranks(x64: None) -> None:
    """Every leaf has its own; a leaf without one goes whole; equal shapes of different ranks are apart."""
    g = {"a": normal(0, 4, 6), "b": normal(1, 4, 6), "c": normal(2, 6, 4), "d": normal(3, 4, 6), "bias": normal(4, 6)}
    tx = gk.project_low_rank(optax.identity(), rank={"a": 1, "b": 3, "c": np.array([1, 2]), "d": None})
    d = directions(tx, [g])[0]
    assert {k: int(np.linalg.matrix_rank(np.asarray(d[k]))) for k in "abc"} == {"a": 1, "b": 3, "c": 2}
    assert_equal((d["d"], d["bias"]), (g["d"], g["bias"]))
    with pytest.raises(ValueError, match=r"do not have: \['e'\]"):
        gk.project_low_rank(rank={"e": 1}).init(g)
    with pytest.raises(ValueError, match=r"'bias' of shape .* is no matrix"):
        gk.project_low_rank(rank={"bias": 1}).init(g)


def test_bad_input() -> None:
    g = {"kernel": jnp.ones((3, 4))}
    tx = gk.project_low_rank(optax.add_decayed_weights(0.1), rank=1)
    with pytest.raises(ValueError, match="inner needs the parameters of 'kernel'"):
        tx.update(g, tx.init(g), g)
    with pytest.raises(ValueError, match="growth_limit limits the residual"):
        gk.project_low_rank(growth_limit=1.01)
    with pytest.raises(ValueError, match=r"rotate_moments rotates the fields .* which also has 'weird'"):
        inner = optax.GradientTransformation(lambda p: {"weird": p}, lambda g, s, p=None: (g, s))
        tx = gk.project_low_rank(inner, rank=1, rotate_moments=True)
        tx.update(g, tx.init(g))
    with pytest.raises(ValueError, match="shard must be"):
        gk.project_low_rank(shard=3)  # pyright: ignore[reportArgumentType]


def test_optax_compresses_the_other_side() -> None:
    """The pointer of the docstring: optax's projector of a 4 x 6 matrix has 6 rows, ours 4."""
    g = {"w": jnp.ones((4, 6))}
    assert gk.project_low_rank(rank=2).init(g).basis["w"]["inputs"].shape == (4, 2)
    assert gk.project_low_rank(rank=2, side="long").init(g).basis["w"]["outputs"].shape == (6, 2)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = jax.eval_shape(optax.contrib.galore(0.1, rank=2).init, g)
    assert (6, 2) in [x.shape for x in jax.tree.leaves(theirs)]


def test_decay_stands_outside() -> None:
    """A chain with decay outside."""
    x = jnp.ones((2, 2))
    tx = optax.chain(gk.project_low_rank(optax.identity(), rank=2), gk.add_decayed_weights(0.5))
    assert_equal(updates(tx, x, [jnp.zeros((2, 2))])[0], 0.5 * x)
