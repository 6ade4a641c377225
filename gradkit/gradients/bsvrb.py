"""Bilevel problems with many lower problems, of which a few are looked at in a step: variance reduction by blocks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import at_count, increment, scalar
from gradkit.gradients.bilevel_directions import Bilevel, BilevelState, bilevel_directions, stepped
from gradkit.types import ScalarOrSchedule

PAPER = Paper(
    "Blockwise Stochastic Variance-Reduced Methods with Parallel Speedup for Multi-Block Bilevel Optimization",
    "Hu et al.",
    2023,
    "2305.18730",
)


def storm_blocks(u: Any, h: Any, h_previous: Any, indices: Any, *, a: Any) -> Any:
    """Estimates of a quantity of every block, of which the sampled ones are corrected (MSVR).

        i sampled:  u_i <- (1 - a) u_i + a h_i + c (h_i - h'_i),    c = (m - I) / (I (1 - a)) + (1 - a);    others stay
        h_i of the batch at this point, h'_i of the SAME batch at the point of the step before; I of m blocks are
        sampled

    With all blocks in every step (m = I) c is 1 - a, and this is STORM.

    Args:
      u: the estimates, a tree of arrays with a leading axis of m blocks.
      h: at this point, a tree like u with a leading axis of I sampled blocks.
      h_previous: at the point before, like h.
      indices: numbers of the sampled blocks, int (I,), each once.
      a: weight of what is new, in (0, 1). May be traced.

    Returns:
      The new estimates.

    Raises:
      ValueError: an argument outside its range; trees or leading axes that do not fit.

    Example:
      >>> u, h, before = jnp.array([1.0, 5.0]), jnp.array([3.0]), jnp.array([1.0])
      >>> storm_blocks(u, h, before, jnp.array([0]), a=0.5).tolist()  # 0.5 + 1.5 + 2.5 * 2
      [7.0, 5.0]

    Reference: Hu et al. Blockwise Stochastic Variance-Reduced Methods with Parallel Speedup for Multi-Block Bilevel
    Optimization. 2023, arXiv 2305.18730; Jiang et al. Multi-block-Single-probe Variance Reduced Estimator for Coupled
    Compositional Optimization. 2022, arXiv 2207.08540. The constant c could not be verified against the paper's text.
    """
    checks.arrays(u=u, h=h, h_previous=h_previous, indices=indices)
    checks.real("a", a, "(0, 1)")
    indices = jnp.asarray(indices)
    sampled = indices.shape[0] if indices.ndim == 1 else -1
    structures = {jax.tree.structure(tree) for tree in (u, h, h_previous)}
    if len(structures) > 1 or any(jnp.shape(x)[:1] != (sampled,) for x in jax.tree.leaves((h, h_previous))):
        raise ValueError(
            f"storm_blocks: h and h_previous must be trees like u with a leading axis of {sampled} sampled blocks, got "
            f"{jax.tree.map(jnp.shape, h)} and {jax.tree.map(jnp.shape, h_previous)}"
        )

    def leaf(u: jax.Array, h: jax.Array, before: jax.Array) -> jax.Array:
        b, m = scalar(a, u), u.shape[0]
        c = (m - sampled) / (sampled * (1 - b)) + (1 - b)
        return u.at[indices].set((1 - b) * u[indices] + b * h + c * (h - before))

    return jax.tree.map(leaf, u, h, h_previous)


class BsvrbMemory(NamedTuple):
    """Estimates of d_y and d_v of every block, which blocks have one, that of d_x, and the point of the step before."""

    s: Any
    u: Any
    seen: jax.Array
    z: Any
    previous: tuple[Any, Any, Any]


def bsvrb(
    upper: Callable[[Any, Any, Any], Any],
    lower: Callable[[Any, Any, Any], Any],
    *,
    learning_rate: ScalarOrSchedule,
    lower_learning_rate: ScalarOrSchedule,
    linear_learning_rate: ScalarOrSchedule,
    a: Any = 0.1,
) -> Bilevel:
    """Bilevel optimization over m blocks with variance-reduced estimates: min_x mean_i F_i(x, y_i*(x)).

        s_i, u_i of the sampled blocks: `storm_blocks` of d_y and d_v of `bilevel_directions`
        z <- d + (1 - a) (z - d'),    d the mean of d_x over the sampled blocks, d' the same at the point before (STORM)
        y_i <- y_i - lower_learning_rate s_i,    v_i <- v_i - linear_learning_rate u_i        of ALL blocks
        x <- x - learning_rate z

    The first time that a block is sampled its estimates are its own directions.

    Args:
      upper: F_i, (x, y_i, batch_i) -> scalar, of one block.
      lower: g_i, (x, y_i, batch_i) -> scalar, of one block.
      learning_rate: of x, >= 0, or a schedule.
      lower_learning_rate: of y, >= 0, or a schedule.
      linear_learning_rate: of v, >= 0, or a schedule.
      a: weight of what is new, in (0, 1). Default 0.1.

    Returns:
      `Bilevel`. init(x, y) -> state: every leaf of y has a leading axis of m blocks. step(state, indices,
      upper_batches=None, lower_batches=None) -> (state, mean F of the sampled blocks): I numbers of blocks, and batches
      with a leading axis of I. State: x; y, v, s, u per block; z; and x, y, v of the step before. Two evaluations of
      the directions per step, both on the same batches.

    Raises:
      ValueError: an argument outside its range; trees or leading axes that do not fit.

    Example:
      >>> upper, lower = (lambda x, y, _: (y - 1.0) ** 2 / 2), (lambda x, y, b: (y - x - b) ** 2 / 2)
      >>> rates = dict(learning_rate=0.2, lower_learning_rate=0.5, linear_learning_rate=0.5)
      >>> method, shifts = bsvrb(upper, lower, **rates), jnp.array([-1.0, 1.0])
      >>> state, step = method.init(jnp.array(4.0), jnp.zeros(2)), jax.jit(method.step)
      >>> for _ in range(200):
      ...     state, value = step(state, jnp.arange(2), None, shifts)
      >>> round(float(state.x), 3)
      1.0

    Reference: Hu et al. Blockwise Stochastic Variance-Reduced Methods with Parallel Speedup for Multi-Block Bilevel
    Optimization. 2023, arXiv 2305.18730, the version for high dimensions (v2). The one that tracks and inverts Hessians
    is left out; constants could not be verified against the paper's text.
    """
    checks.function("upper", upper)
    checks.function("lower", lower)
    rates = {
        "learning_rate": learning_rate,
        "lower_learning_rate": lower_learning_rate,
        "linear_learning_rate": linear_learning_rate,
    }
    for name, value in rates.items():
        checks.real(name, value, "[0, inf)", schedule=True)
    checks.real("a", a, "(0, 1)")
    directions = bilevel_directions(upper, lower)

    def init(x: Any, y: Any) -> BilevelState:
        lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(y)}
        if len(lengths) != 1 or () in lengths:
            raise ValueError(
                f"bsvrb: every leaf of y must have a leading axis of blocks, got lengths {sorted(lengths)}"
            )
        (m,) = lengths.pop()
        x, y = (jax.tree.map(lambda p: jnp.array(p, copy=True), tree) for tree in (x, y))
        zero = lambda tree: jax.tree.map(jnp.zeros_like, tree)  # noqa: E731
        copy = jax.tree.map(lambda p: jnp.array(p, copy=True), (x, y))
        memory = BsvrbMemory(zero(y), zero(y), jnp.zeros((m,), bool), zero(x), (*copy, zero(y)))
        return BilevelState(jnp.zeros((), jnp.int32), x, y, zero(y), memory)

    def step(
        state: BilevelState, indices: Any, upper_batches: Any = None, lower_batches: Any = None
    ) -> tuple[BilevelState, jax.Array]:
        count, x, y, v, kept = state
        i = jnp.asarray(indices)

        def at(point: tuple[Any, Any, Any]) -> tuple[Any, dict[str, Any]]:
            x, y, v = point
            of_block = lambda y, v, *batches: directions({"x": x, "y": y, "v": v}, *batches)  # noqa: E731
            rows = jax.tree.map(lambda p: p[i], (y, v))
            value, d = jax.vmap(of_block)(*rows, upper_batches, lower_batches)
            return jnp.mean(value), {**d, "x": jax.tree.map(lambda g: jnp.mean(g, axis=0), d["x"])}

        (value, d), (_, before) = at((x, y, v)), at(kept.previous)

        def tracked(u: Any, name: str) -> Any:
            def first(old: jax.Array, new: jax.Array, h: jax.Array) -> jax.Array:
                known = kept.seen[i].reshape(-1, *(1,) * (h.ndim - 1))
                return old.at[i].set(jnp.where(known, new[i], h))

            new = storm_blocks(u, d[name], before[name], i, a=a)
            return jax.tree.map(first, u, new, d[name])

        s, u = tracked(kept.s, "y"), tracked(kept.u, "v")

        def storm(z: jax.Array, d: jax.Array, before: jax.Array) -> jax.Array:
            return jnp.where(count == 0, d, d + (1 - scalar(a, d)) * (z - before))

        z = jax.tree.map(storm, kept.z, d["x"], before["x"])
        moves = {"learning_rate": (x, z), "lower_learning_rate": (y, s), "linear_learning_rate": (v, u)}
        new_x, new_y, new_v = (stepped(tree, at_count(rates[n], count, n), g) for n, (tree, g) in moves.items())
        memory = BsvrbMemory(s, u, kept.seen.at[i].set(True), z, (x, y, v))
        return BilevelState(increment(count), new_x, new_y, new_v, memory), value

    return Bilevel(init, step)


register(bsvrb, form="program", paper=PAPER, words=4, notes="words are per parameter of a block")
register(
    storm_blocks,
    form="function",
    paper=PAPER,
    example={
        "u": jax.ShapeDtypeStruct((4, 3), "float32"),
        "h": jax.ShapeDtypeStruct((2, 3), "float32"),
        "h_previous": jax.ShapeDtypeStruct((2, 3), "float32"),
        "indices": jax.ShapeDtypeStruct((2,), "int32"),
        "a": 0.5,
    },
)
