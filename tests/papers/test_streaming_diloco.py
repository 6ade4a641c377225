"""Streaming DiLoCo: torchft's own fixture, what it reduces to, and which bytes move in which step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.parallel import collective_bytes, diloco, fragment_steps, streaming_diloco, synchronize

W = 4
SHAPES = {"a": (3,), "b": (2, 2), "c": (5,)}


def draw(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return {leaf: rng.standard_normal(shape) for leaf, shape in SHAPES.items()}


def train(tx: Any, steps: int, sync: Any = None, replicas: int = W) -> Any:
    """Replicas pulled to points of their own; all parameters after each step, and the last state."""
    goals = jax.tree.map(lambda *x: jnp.stack(x), *[draw(10 + k) for k in range(replicas)])
    x = jax.tree.map(lambda x: jnp.tile(x, (replicas, *[1] * x.ndim)), draw(0))
    state = jax.vmap(tx.init)(x)
    programs, path = {}, []
    for t in range(steps):
        s = None if sync is None else sync[t]
        if s not in programs:

            def step(x: Any, state: Any, goal: Any, s: Any = s) -> Any:
                u, state = tx.update(jax.tree.map(jnp.subtract, x, goal), state, x, sync=s)
                return optax.apply_updates(x, u), state

            programs[s] = jax.jit(jax.vmap(step, axis_name="replica"))
        x, state = programs[s](x, state, goals)
        path.append(x)
    return jax.tree.map(lambda *x: np.stack(x), *path), state


def close(a: Any, b: Any, rtol: float = 1e-12) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-14), a, b)


@pytest.mark.parametrize(
    ("delay", "want"),
    [(0, [-1, -3, -11, -13, -15, -17, -19, -21, -35]), (1, [-1, -3, -7, -9, -11, -13, -15, -17, -27])],
)
def test_a_constant_gradient_by_hand(delay: int, want: list[int]) -> None:
    """Gradient 2, inner rate 1, outer rate 2 without momentum, two fragments in a round of 6, from 1: the first one."""
    tx = streaming_diloco(
        optax.sgd(1.0), sync_every=6, fragments=2, delay=delay, outer_learning_rate=2.0, outer_momentum=0.0
    )

    def step(carry: Any, _: None) -> Any:
        x, state = carry
        u, state = tx.update(jax.tree.map(lambda v: jnp.full_like(v, 2.0), x), state, x)
        return (jax.tree.map(jnp.add, x, u), state), x["a"] + u["a"]

    def run(x: Any) -> Any:
        return jax.lax.scan(step, (x, tx.init(x)), None, 9)[1]

    path = jax.jit(jax.vmap(run, axis_name="replica"))({"a": jnp.ones(2), "b": jnp.ones(2)})
    np.testing.assert_array_equal(path[0], want)


def test_one_fragment_without_delay_is_diloco(x64: None) -> None:
    inner = gk.adamw(0.05)
    path, _ = train(streaming_diloco(inner, sync_every=3), 7)
    close(path, train(diloco(inner, sync_every=3), 7)[0])


@pytest.mark.parametrize("delay", [0, 1])
def test_fragments_are_due_in_turn(delay: int, x64: None) -> None:
    """Fragment f is the same on all replicas after the steps (f + 1) h, and moves as in DiLoCo of that phase."""
    path, _ = train(streaming_diloco(optax.sgd(0.1), sync_every=6, fragments=3, delay=delay), 12)
    for f, leaf in enumerate(SHAPES):
        apart = np.array([np.ptp(path[leaf][t], axis=0).max() for t in range(12)])
        due = np.isin(np.arange(1, 13) % 6, [(f + 1) * 2 % 6])
        assert (apart[due] < 1e-14).all() and (apart[~due] > 1e-3).all()


def test_a_mixing_of_one_never_listens(x64: None) -> None:
    path, state = train(streaming_diloco(optax.sgd(0.1), sync_every=2, mixing=1.0), 6)
    goals = np.stack([draw(10 + k)["a"] for k in range(W)])
    want = goals + 0.9**6 * (draw(0)["a"] - goals)
    np.testing.assert_allclose(path["a"][-1], want, rtol=1e-12)
    assert np.abs(state.start["a"][0] - draw(0)["a"]).max() > 1e-3


def test_what_is_taken_over_is_mixed_with_where_replicas_are_now(x64: None) -> None:
    """Sent after step 2 of 4, due after step 4: theta from the former, the share alpha from the latter."""
    tx = streaming_diloco(optax.sgd(0.1), sync_every=4, delay=2, mixing=0.25, outer_learning_rate=0.5)
    path, _ = train(tx, 4)
    goals, start = np.stack([draw(10 + k)["b"] for k in range(W)]), draw(0)["b"]
    at = lambda t: goals + 0.9**t * (start - goals)  # noqa: E731
    D = (start - at(2)).mean(0)
    theta = start - 0.5 * (D + 0.9 * D)
    np.testing.assert_allclose(path["b"][-1], 0.75 * theta + 0.25 * at(4), rtol=1e-12)


@pytest.mark.parametrize("delay", [0, 1])
def test_programs_of_known_steps_are_the_one_that_reads_the_state(delay: int, x64: None) -> None:
    tx = streaming_diloco(gk.sgd(0.1, momentum=0.9), sync_every=6, fragments=3, delay=delay, mixing=0.3)
    steps = fragment_steps(6, 3, 13, delay=delay).tolist()
    got, want = train(tx, 13, steps), train(tx, 13)
    close(got, want)


def test_a_step_sends_its_fragment_alone() -> None:
    """Also in the program of all steps each fragment has a collective of its own, within a branch."""
    tx = streaming_diloco(optax.sgd(0.1), sync_every=6, fragments=3, delay=1)
    mesh = jax.make_mesh((W,), ("replica",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.tree.map(lambda x: jnp.tile(jnp.asarray(x, jnp.float32), (W, *[1] * x.ndim)), draw(0))
    state = jax.vmap(tx.init)(x)

    def sizes(sync: Any) -> list[int]:
        def block(*args: Any) -> Any:
            x, state, g = jax.tree.map(lambda v: v[0], args)
            u, state = tx.update(g, state, x, sync=sync)
            return jax.tree.map(lambda v: v[None], (u, state))

        program = jax.jit(jax.shard_map(block, mesh=mesh, in_specs=P("replica"), out_specs=P("replica")))
        return sorted(row.result_bytes for row in collective_bytes(program.lower(x, state, x).compile()))

    assert sizes(False) == sizes(-1) == []
    assert [sizes(f) for f in range(3)] == [[12], [16], [20]]
    assert sizes(None) == [12, 16, 20]


def test_replicas_hold_the_same_bits_after_synchronize() -> None:
    tx = streaming_diloco(gk.sgd(0.1), sync_every=6, fragments=2, delay=2, mixing=0.5)
    path, state = train(tx, 5)
    x = jax.tree.map(lambda v: jnp.asarray(v[-1]), path)
    x, _ = jax.jit(jax.vmap(lambda x, s: synchronize(tx, x, s), axis_name="replica"))(x, state)
    for v in map(np.asarray, jax.tree.leaves(x)):
        np.testing.assert_array_equal(v, np.broadcast_to(v[:1], v.shape))


def test_leaves_are_dealt_out_or_numbered() -> None:
    tree = {"a": 1, "b": 0, "c": 1}
    one = streaming_diloco(optax.sgd(0.1), sync_every=4, fragments=tree)
    two = streaming_diloco(optax.sgd(0.1), sync_every=4, fragments=lambda params: tree)
    close(train(one, 5)[0], train(two, 5)[0], 0)


def test_bad_input() -> None:
    make, x = lambda **own: streaming_diloco(optax.sgd(0.1), **own), draw(0)
    for own, text in (
        ({"sync_every": 5, "fragments": 2}, "sync_every must be a multiple of the 2 fragments, got 5; write 6"),
        ({"sync_every": 4, "fragments": 2, "delay": 2}, "delay must be below sync_every / fragments = 2, got 2"),
        ({"sync_every": 8, "fragments": 4}, "fragments must be at most the number of leaves, got 4 for 3; write"),
        ({"fragments": {"a": 0}}, "fragments must be an integer >= 1, or a number per leaf"),
        ({"fragments": {"a": 0, "b": 2, "c": 2}}, "without gaps, got none of"),
    ):
        with pytest.raises(ValueError, match=text):
            make(**own).init(x)
    with pytest.raises(ValueError, match="mixing must be"):
        make(mixing=1.5)
    tx = make(sync_every=4, fragments=2)
    with pytest.raises(ValueError, match="sync must be None, True, False or a fragment from 0 to 1, got 2"):
        tx.update(x, tx.init(x), x, sync=2)
