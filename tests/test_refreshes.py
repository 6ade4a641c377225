"""What is computed only every so many steps: together, or each matrix at a step of its own."""

import sys
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.engine.owned import phases
from gradkit.engine.planning import plan_stacks
from tests.by_numpy import by_numpy
from tests.papers.replay import assert_equal, normal

METHODS = {
    "soap": lambda every, **o: gk.scale_by_soap(update_interval=every, **o),
    "shampoo": lambda every, **o: gk.scale_by_shampoo(
        b1=0.9, b2=0.9, eps=0.01, update_interval=every, start_preconditioning_step=1, **o
    ),
    # Of every matrix four blocks, which have phases of their own.
    "blocks": lambda every, **o: gk.distributed_shampoo(0.1, b2=0.9, eps=0.01, max_dim=3, update_interval=every, **o),
    "conda": lambda every, **o: gk.scale_by_conda(update_interval=every, **o),
    "galore": lambda every, **o: gk.project_low_rank(rank=2, update_interval=every, rotate_moments=True, **o),
    "fira": lambda every, **o: gk.fira(0.1, rank=2, update_interval=every, **o),
}
NEVER = 10**6
SHAPES = {"a": (4, 5), "b": (5, 4), "c": (4, 5), "d": (4, 5), "e": (4, 5), "f": (5, 5)}


def draw(t: int) -> dict[str, jax.Array]:
    return {k: normal(10 * t + i, *s) for i, (k, s) in enumerate(SHAPES.items())}


def phase_of(names: list[str], interval: int) -> dict[str, int]:
    """Numbered size by size, in the order of the tree."""
    sizes: dict[Any, list[str]] = {}
    for name in names:
        sizes.setdefault(tuple(sorted(SHAPES[name])), []).append(name)
    return {name: i % interval for i, name in enumerate(n for size in sizes.values() for n in size)}


@pytest.mark.parametrize("name", [n for n in METHODS if n != "blocks"])
def test_every_matrix_is_alone_with_its_phase(name: str, x64: None) -> None:
    """Against two methods in turn, one that computes anew at every step and one that never does after the first."""
    interval, steps = 3, 8
    tx = METHODS[name](interval, stagger=True)
    update, x = by_numpy(tx.update), draw(99)
    state, got = tx.init(x), []
    for t in range(steps):
        d, state = update(draw(t), state, x)
        got.append(d)
    always, never = (METHODS[name](every) for every in (1, NEVER))
    now, later = by_numpy(always.update), by_numpy(never.update)
    for leaf, phase in phase_of(list(SHAPES), interval).items():
        alone = {"w": x[leaf]}
        state = always.init(alone)
        for t in range(steps):
            turn = t == 0 or (t + (name == "shampoo") + phase) % interval == 0
            d, state = (now if turn else later)({"w": draw(t)[leaf]}, state, alone)
            assert_equal(got[t][leaf], d["w"], 1e-9, 1e-9)


def test_blocks_take_turns(x64: None) -> None:
    """Of one matrix cut in four, one block has new roots at every step, after the first."""
    tx = METHODS["blocks"](4, start_preconditioning_step=4, stagger=True)
    x = {"w": normal(0, 6, 6)}
    state, roots, changed = tx.init(x), [], []
    for t in range(9):
        _, state = tx.update({"w": normal(t, 6, 6)}, state, x)
        roots.append(np.asarray(optax.tree.get(state, "P")["w"]["0"]["0"].reshape(4, 3, 3)))
        if t:
            changed.append(np.flatnonzero((roots[-1] != roots[-2]).any((1, 2))).tolist())
    assert changed == [[], [], [0, 1, 2, 3], [3], [2], [1], [0], [3]]


@pytest.mark.parametrize("interval", [1, 4, 10])
def test_the_work_is_spread_evenly(interval: int) -> None:
    """On every device, of a stack cut in four, no step has more matrices than any even share, rounded up."""
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4])
    tree = {f"{i}": jax.ShapeDtypeStruct((4, 6) if i % 3 else (6, 6), jnp.float32) for i in range(33)}
    shard = gk.MatrixSharding(mesh, "x", min_dim=0, specs=jax.sharding.PartitionSpec())
    options: Any = {"method": "m", "layout": gk.leaves.default_layout, "transpose": lambda n, m: n > m}
    many, one = (plan_stacks(tree, shard=s, **options) for s in (shard, None))
    everywhere: Counter[int] = Counter()
    for of_stack in phases(many, interval):
        assert of_stack is not None and len(of_stack) % 4 == 0
        for own in np.asarray(of_stack).reshape(4, -1):
            counts = Counter(own[own >= 0].tolist())
            assert max(counts.values()) <= -(-len(own) // interval)
            everywhere += counts
    want: Counter[int] = Counter()
    for of_stack in phases(one, interval):
        want += Counter(np.asarray(of_stack).tolist())
    assert everywhere == want
    assert max(want.values()) - min(want[i] for i in range(interval)) <= 1


def test_only_what_is_due_is_computed_also_for_many_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five matrices, an interval of five: five bases at the first step and one at each of the next, for all seeds
    together; also where every seed counts for itself."""
    module, calls = sys.modules["gradkit.transforms.project_low_rank"], []
    plain = module.singular_basis

    def counted(x: jax.Array, rank: int, sign: str) -> jax.Array:
        jax.debug.callback(lambda: calls.append(1))
        return plain(x, rank, sign=sign)

    monkeypatch.setattr(module, "singular_basis", counted)
    tx = gk.project_low_rank(optax.identity(), rank=1, update_interval=5, stagger=True)
    g = jnp.stack([jnp.stack([normal(10 * s + t, 5, 3, 4) for t in range(4)]) for s in range(3)]).astype(jnp.float32)

    def steps(state: Any, g: jax.Array) -> Any:
        def one(state: Any, x: jax.Array) -> tuple[Any, Any]:
            d, state = tx.update({f"{i}": x[i] for i in range(5)}, state)
            return state, d

        return jax.lax.scan(one, state, g)[1]

    start = tx.init({f"{i}": g[0, 0, i] for i in range(5)})
    alone = [steps(start, own) for own in g]
    jax.effects_barrier()
    assert len(calls) == 3 * (5 + 3)
    calls.clear()
    within = jax.jit(jax.vmap(lambda own: steps(start, own)))(g)
    jax.effects_barrier()
    assert len(calls) == 5 + 3
    calls.clear()
    states = jax.tree.map(lambda x: jnp.stack([x] * 3), start)
    shifted = states._replace(count=jnp.array([0, 1, 3], jnp.int32))
    got = jax.jit(jax.vmap(steps))(shifted, g)
    jax.effects_barrier()
    # All five while the first is at its first step, then those of three counters: t, t + 1 and t + 3.
    assert len(calls) == 5 + 3 + 3 + 3
    for s in range(3):
        mine = jax.tree.map(lambda x, s=s: x[s], (within, got))
        want = steps(jax.tree.map(lambda x, s=s: x[s], shifted), g[s])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), mine, (alone[s], want))


@pytest.mark.parametrize("name", METHODS)
def test_stagger_is_a_boolean(name: str) -> None:
    with pytest.raises(ValueError, match="stagger must be one of"):
        METHODS[name](2, stagger=3)


LOW_RANK = {
    "galore": lambda: gk.galore(0.01, rank=2),
    "galore, staggered": lambda: gk.galore(0.01, rank=2, stagger=True),
    "fira": lambda: gk.fira(0.01, rank=1),
    "dion": lambda: gk.dion(0.01, rank_fraction=0.5, key=0),
    **{
        f"project_low_rank, {side}": lambda side=side: optax.chain(
            gk.project_low_rank(rank=1, side=side), optax.scale(-0.01)
        )
        for side in ("short", "long", "inputs", "outputs")
    },
    **{
        f"conda, {side}": lambda side=side: gk.conda(0.01, projection=side)
        for side in ("std", "reverse_std", "left", "right", "full")
    },
}


@pytest.mark.parametrize("name", LOW_RANK)
def test_a_gradient_of_zeros_fixes_no_basis(name: str) -> None:
    """As of an expert that is not routed, or behind a layer that starts from zero: nineteen steps of one gradient G of
    rank 1 move the parameters along G whether or not zeros came before; with an arbitrary basis they do not move."""
    params, zero = {"w": np.full((6, 4), 0.5, np.float32)}, {"w": np.zeros((6, 4), np.float32)}
    G = {"w": np.outer([0, 0, 0, 0, 1, 1], [0, 0, 1, -1]).astype(np.float32)}
    moved = []
    for first in (zero, G):
        tx = LOW_RANK[name]()
        update, state, w = by_numpy(tx.update), tx.init(params), params
        for step in range(20):
            u, state = update(G if step else first, state, w)
            w = {"w": w["w"] + np.asarray(u["w"])}
        moved.append(-float(np.sum((w["w"] - params["w"]) * G["w"])))
    # Moments that began with zeros and are corrected for twenty steps make shorter steps at first, never half as long.
    assert moved[0] > moved[1] / 2 > 0


def test_zeros_leave_the_basis_that_there_is() -> None:
    """A new basis is due at a step whose gradient is zero: the old one stays, and the next gradient is seen."""
    tx = gk.project_low_rank(optax.identity(), rank=1, update_interval=2)
    G = {"w": np.outer([0.0, 1.0, 1.0], [1.0, 0.0, 2.0]).astype(np.float32)}
    zero = {"w": np.zeros((3, 3), np.float32)}
    update, state = by_numpy(tx.update), tx.init(zero)
    for g in (G, G, zero):
        _, state = update(g, state, zero)
    basis = np.asarray(jax.tree.leaves(state.basis)[0]).reshape(3, 1)
    # The leading left singular vector of G, on the side that is compressed: a unit vector.
    np.testing.assert_allclose(
        np.abs(basis[:, 0]), np.abs([1, 0, 2]) / 5**0.5 if basis[1] == 0 else [0, 0.5**0.5, 0.5**0.5], atol=1e-6
    )
    u, _ = update(G, state, zero)
    np.testing.assert_allclose(u["w"], G["w"], atol=1e-6)
