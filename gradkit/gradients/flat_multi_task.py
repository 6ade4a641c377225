"""Task-based flat regions: every task has its own step uphill; losses and their flatness are aggregated separately."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype, widen
from gradkit.gradients.sam import ascent
from gradkit.types import Scalar

PAPER = Paper("Improving Multi-task Learning via Seeking Task-based Flat Regions", "Phan et al.", 2022, "2211.13723")


class FlatMultiTask(NamedTuple):
    """A source of gradients with the states of its two aggregators, as a pair of functions.

    Attributes:
      init: shared parameters -> state.
      gradients: (state, shared, heads, *args) -> (losses, (shared direction, gradients of the heads), state).
    """

    init: Callable[[Any], Any]
    gradients: Callable[..., tuple[jax.Array, tuple[Any, list[Any]], Any]]


def flat_multi_task(
    task_losses: Sequence[Callable[..., jax.Array]],
    aggregator: optax.GradientTransformation,
    rho: Scalar = 0.05,
    *,
    adaptive: bool = False,
) -> FlatMultiTask:
    """Sharpness-aware minimization of many tasks, with any aggregator of their gradients.

    Equations, for task i, with the shared parameters s, its head h_i, and the aggregator A of the shared parts:

        g_i = gradient of L_i at (s, h_i)
        e_i = rho g_i / (|g_i| + 1e-12)
        e_i = rho T^2 g_i / (|T g_i| + 1e-12),   T = |(s, h_i)|                   adaptive=True
        f_i = gradient of L_i at (s, h_i) + e_i
        u_s = A(g_1, ..., g_m) + A(f_1 - g_1, ..., f_m - g_m)                     direction of the shared parameters
        u_i = f_i                                                                 direction of head i

    Args:
      task_losses: per task a function (shared, head, *args) -> scalar.
      aggregator: one of `gk.aggregation`, or any transformation of gradients stacked along a leading axis into one.
      rho: length of the steps uphill, >= 0. Default 0.05 (SAM). May be traced.
      adaptive: whether steps uphill are relative to the absolute values of parameters, as in ASAM without its eta.
        Default False.

    Returns:
      A pair (init, gradients). `gradients(state, shared, heads, *args)`, with one tree per task in `heads`, gives the
      losses (m,), the directions for an optimizer (to be descended), and the state: one of the aggregator for losses
      and one for flatness. Costs 2 m gradients. Collectives: a norm per task, and those of the aggregator twice.

    Raises:
      ValueError: an argument outside its range; a number of heads other than that of tasks.

    Example:
      >>> mean = optax.stateless(lambda g, _: jax.tree.map(lambda x: x.mean(0), g))
      >>> tasks = [lambda s, h: (s + h - 1) ** 2, lambda s, h: (s * h) ** 2]
      >>> source = flat_multi_task(tasks, mean, rho=0.0)
      >>> s, heads = jnp.array(2.0), [jnp.array(0.0), jnp.array(1.0)]
      >>> losses, (shared, own), _ = source.gradients(source.init(s), s, heads)
      >>> print(losses, shared, *own)
      [1. 4.] 3.0 2.0 8.0

    Reference: Phan et al. Improving Multi-task Learning via Seeking Task-based Flat Regions. 2022, arXiv 2211.13723.
    """
    checks.sequence_of_functions(task_losses=task_losses)
    task_losses = list(task_losses)
    if not task_losses:
        raise ValueError("flat_multi_task: task_losses must hold a loss per task, got none; write [loss_1, loss_2]")
    for i, loss in enumerate(task_losses):
        checks.function(f"task_losses[{i}]", loss)
    checks.transformation(aggregator=aggregator)
    checks.real("rho", rho, "[0, inf)")
    checks.switch(adaptive=adaptive)
    tx = optax.with_extra_args_support(aggregator)

    def stacked(parts: list[Any]) -> Any:
        return jax.tree.map(lambda *x: jnp.stack(x), *parts)

    def init(shared: Any) -> Any:
        return tx.init(shared), tx.init(shared)

    def gradients(state: Any, shared: Any, heads: Sequence[Any], *args: Any) -> tuple[Any, Any, Any]:
        if len(heads) != len(task_losses):
            raise ValueError(
                f"flat_multi_task: heads must hold one tree per task, {len(task_losses)}, got {len(heads)}; write () "
                "for a task without a head"
            )
        losses, near, flat, own = [], [], [], []
        for loss, head in zip(task_losses, heads, strict=True):
            both = (shared, head)
            value, g = jax.value_and_grad(lambda both, loss=loss: loss(*both, *args))(both)
            T = jax.tree.map(jnp.abs, widen(both)) if adaptive else None
            e = ascent(widen(g), rho, T)
            there = jax.tree.map(_moved, both, e)
            f = jax.grad(lambda both, loss=loss: loss(*both, *args))(there)
            losses.append(value)
            near.append(g[0])
            flat.append(jax.tree.map(jnp.subtract, f[0], g[0]))
            own.append(f[1])
        values = jnp.stack(losses)
        of_losses, first = tx.update(stacked(near), state[0], shared, losses=values)
        of_flatness, second = tx.update(stacked(flat), state[1], shared, losses=values)
        return values, (jax.tree.map(jnp.add, of_losses, of_flatness), own), (first, second)

    return FlatMultiTask(init, gradients)


def _moved(x: jax.Array, e: jax.Array) -> jax.Array:
    wide = wide_dtype(x.dtype)
    return (x.astype(wide) + e.astype(wide)).astype(x.dtype)


register(flat_multi_task, form="program", paper=PAPER, notes="2 gradients per task; the aggregator runs twice")
