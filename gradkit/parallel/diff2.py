"""DIFF2: private gradients from differences of gradients, with noise proportional to the length of the step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment, widen, zeros
from gradkit.engine.keys import as_key
from gradkit.parallel.replicas import alike
from gradkit.types import Scalar

PAPER = Paper(
    "DIFF2: Differential Private Optimization via Gradient Differences for Nonconvex Distributed Learning",
    "Murata, Suzuki",
    2023,
    "2302.03884",
)


class Diff2State(NamedTuple):
    """Number of rounds, the estimate v, and the parameters of the last round."""

    count: jax.Array
    v: Any
    previous: Any

    exact_fields = ("previous",)  # read only in a small difference


class Diff2(NamedTuple):
    """Two pure functions.

    Attributes:
      init: parameters -> `Diff2State`.
      estimate: (params, batch, state, key) -> (v, state); the batch has a leading axis of examples; the key, a typed
        key or an integer, is another one in every round and the same on all replicas, so that noise is added once.
    """

    init: Callable[[Any], Diff2State]
    estimate: Callable[..., tuple[Any, Diff2State]]


def _norm(tree: Any) -> jax.Array:
    squares = [jnp.sum(jnp.square(x)).astype(float) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), float)))


def diff2(
    loss_fn: Callable[[Any, Any], Any],
    *,
    clip: Scalar = 1.0,
    difference_clip: Scalar = 1.0,
    noise_multiplier: Scalar = 1.0,
    difference_noise_multiplier: Scalar = 1.0,
    restart: int = 10,
    axis_name: Any = None,
) -> Diff2:
    """Private estimates of the gradient from clipped differences between this round's and the last round's parameters.

    Equations of round r, with n examples, T = restart, and clip(u, c) = u min(1, c / |u|) over all leaves. Where
    r mod T = 0:

        v = (1/n) [sum_i clip(grad f_i(x_r), C1) + sigma1 C1 N(0, I)]

    Otherwise:

        c = C2 |x_r - x_{r-1}|
        v <- v + (1/n) [sum_i clip(grad f_i(x_r) - grad f_i(x_{r-1}), c) + sigma2 c N(0, I)]

    v replaces the gradient in any optimizer `tx`:

        private = gk.parallel.diff2(loss_of_example, clip=1.0, difference_clip=10.0, noise_multiplier=2.0, restart=20)
        memory = private.init(params)
        ...
        v, memory = private.estimate(params, batch, memory, key)
        updates, state = tx.update(v, state, params)

    The (epsilon, delta) of a run is not computed here: an accountant for Gaussian noise gives both multipliers from the
    number of rounds of their kind.

    Args:
      loss_fn: (params, example) -> scalar, of one example.
      clip: C1, the largest norm of an example's gradient in the sum, in (0, inf]. Default 1.
      difference_clip: C2, the largest norm of an example's difference as a multiple of the step's length, in (0, inf];
        at the smoothness of the losses nothing is clipped. Default 1.
      noise_multiplier: sigma1 >= 0. Default 1.
      difference_noise_multiplier: sigma2 >= 0. Default 1.
      restart: T, rounds from one full gradient to the next, >= 1; 1 is DP-GD. Default 10.
      axis_name: axis of `vmap` or `shard_map` whose members have different examples of the batch. Default None.

    Returns:
      A `Diff2`. State: 2 words per parameter. A round costs two gradients of every example, one after a restart.
      Collectives: with `axis_name` one all-reduce of the tree.

    Raises:
      ValueError: an argument outside its range; when called, a batch without a leading axis.

    Example:
      >>> rules = diff2(lambda x, a: a * x**2 / 2, clip=100.0, difference_clip=100.0, noise_multiplier=0.0, restart=2)
      >>> x, state = jnp.array(3.0), rules.init(jnp.array(3.0))
      >>> v, state = rules.estimate(x, jnp.array([1.0, 3.0]), state, 0)
      >>> float(v)
      6.0

    Reference: Murata, Suzuki. DIFF2: Differential Private Optimization via Gradient Differences for Nonconvex
    Distributed Learning. ICML 2023, arXiv 2302.03884: DIFF2-GD. The radius C2 |x_r - x_{r-1}| of an example's
    difference follows the abstract and summaries of the paper; its second subroutine, BVR-L-SGD, is not included.
    """
    checks.function("loss_fn", loss_fn)
    for name, value in {"clip": clip, "difference_clip": difference_clip}.items():
        checks.real(name, value, "(0, inf]")
    checks.real("noise_multiplier", noise_multiplier, "[0, inf)")
    checks.real("difference_noise_multiplier", difference_noise_multiplier, "[0, inf)")
    restart = checks.integer("restart", restart, 1)
    checks.axis_name("axis_name", axis_name)

    def init(params: Any) -> Diff2State:
        previous = jax.tree.map(lambda x: jnp.array(x, copy=True), widen(params))
        return Diff2State(jnp.zeros((), jnp.int32), zeros(params), previous)

    def examples(params: Any, batch: Any) -> Any:
        return jax.vmap(lambda example: jax.grad(loss_fn)(params, example))(batch)

    def clipped(gradients: Any, radius: jax.Array) -> Any:
        """The sum over examples, each clipped to the radius."""
        norms = jax.vmap(_norm)(gradients)
        factor = jnp.where(norms > radius, radius / jnp.where(norms > 0, norms, jnp.ones_like(norms)), 1.0)

        def leaf(g: jax.Array) -> jax.Array:
            return jnp.sum(g * factor.astype(g.dtype).reshape(-1, *[1] * (g.ndim - 1)), axis=0)

        return jax.tree.map(leaf, gradients)

    def estimate(params: Any, batch: Any, state: Diff2State, key: Any) -> tuple[Any, Diff2State]:
        sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(batch)}
        if len(sizes) != 1 or () in sizes:
            raise ValueError(
                f"diff2: batch must have the same leading axis of examples on every leaf, got {sorted(sizes)}; write "
                "one row per example"
            )
        n, x = sizes.pop()[0], widen(params)
        if axis_name is not None:
            n *= jax.lax.axis_size(axis_name)
        step = _norm(jax.tree.map(jnp.subtract, x, state.previous))

        # Both branches must have the same types: sums over the examples of this replica.
        anything = step + sum((jnp.sum(b).astype(step.dtype) * 0 for b in jax.tree.leaves(batch)), jnp.zeros_like(step))
        like = (jax.tree.map(lambda _: anything, x), step)
        # With replicated parameters `jax.grad` would sum over replicas before clipping.
        here, before = (alike(point, like[0]) for point in (x, state.previous))

        def noise(multiplier: Any, radius: Any) -> jax.Array:
            none = jnp.asarray(multiplier, step.dtype) == 0  # also for an infinite radius
            return jnp.where(none, 0.0, jnp.asarray(multiplier, step.dtype) * radius)

        def whole() -> Any:
            radius = jnp.asarray(clip, step.dtype)
            return alike((clipped(examples(here, batch), radius), noise(noise_multiplier, radius)), like)

        def difference() -> Any:
            apart = jax.tree.map(jnp.subtract, examples(here, batch), examples(before, batch))
            radius = jnp.where(step > 0, jnp.asarray(difference_clip, step.dtype) * step, jnp.zeros_like(step))
            return alike((clipped(apart, radius), noise(difference_noise_multiplier, radius)), like)

        start = state.count % restart == 0
        total, std = jax.lax.cond(start, whole, difference)
        if axis_name is not None:
            total = jax.lax.psum(total, axis_name)
        leaves, structure = jax.tree.flatten(total)
        keys = jax.random.split(as_key(key), len(leaves))
        drawn = [
            t + std.astype(t.dtype) * jax.random.normal(k, t.shape, t.dtype) for t, k in zip(leaves, keys, strict=True)
        ]
        v = jax.tree.map(
            lambda d, v: d / n + jnp.where(start, jnp.zeros_like(v), v), structure.unflatten(drawn), state.v
        )
        new = alike(Diff2State(increment(state.count), v, x), state)
        return jax.tree.map(lambda v, p: v.astype(jnp.asarray(p).dtype), v, params), new

    return Diff2(init, estimate)


register(
    diff2,
    form="program",
    paper=PAPER,
    words=2,
    collectives="replicas",
    notes="private gradients from differences; privacy accounting is out of scope",
)
