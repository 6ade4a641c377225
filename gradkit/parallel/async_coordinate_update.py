"""Asynchronous coordinate updates (DEGAS): one block of a fixed-point iteration at a time, from stale blocks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar

PAPER = Paper("Delay-agnostic Asynchronous Coordinate Update Algorithm", "Wu et al.", 2023, "2305.08535")


def async_coordinate_update(
    operator: Callable[[Any, Any], Any],
    x: Any,
    blocks: Any,
    reads: Any,
    *,
    relaxation: Scalar = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Runs a table of block updates from stale reads.

    Equations, for x = (x_1, ..., x_m), where event k updates the block i = i_k from block j at version r_kj <= k:

        xhat    = (x_1 at r_k1, ..., x_m at r_km)
        x_i    <- (1 - w) x_i + w T_i(xhat)                 the other blocks do not change

    T_i(x) = x_i - step grad_i f(x) is block gradient descent. Where T is a contraction in a weighted maximum norm (a
    diagonally dominant matrix, a step below 1/L_i), it converges whatever the delays are, as long as every block is
    updated and read again and again.

    Args:
      operator: (xhat, i) -> T_i(xhat), the new block i, of shape `x.shape[1:]`; i is traced: `T(xhat)[i]` is one.
      x: the blocks at the start, (m, ...), floating point.
      blocks: (events,) integers, the block i_k of each event.
      reads: (events, m) integers, the version of each block that an event reads: 0 is the start, k + 1 the result of
        event k; at most k at event k.
      relaxation: w in (0, 1]. Default 1.

    Returns:
      (x at the end, path): the blocks, and all events + 1 versions along a leading axis. Memory: as many copies as the
      oldest read goes back, and the path.

    Raises:
      ValueError: a block or a version that does not exist; `x` without a leading axis.

    Example:
      >>> T = lambda x, i: 0.5 * x[1 - i] + 1.0  # the fixed point is (2, 2)
      >>> x, _ = async_coordinate_update(T, jnp.zeros(2), [0, 1, 0], [[0, 0], [1, 1], [2, 2]])
      >>> print(x)
      [1.75 1.5 ]

    Reference: Wu et al. Delay-agnostic Asynchronous Coordinate Update Algorithm. 2023, arXiv 2305.08535. The iteration
    and its parameters are those of the plain block iteration; the paper's guarantees for operators that are not
    contractions in a maximum norm need a splitting of T, which the user must provide.
    """
    checks.function("operator", operator)
    checks.real("relaxation", relaxation, "(0, 1]")
    x = jnp.asarray(x)
    if x.ndim < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating point with a leading axis of blocks, got {x.dtype} of shape {x.shape}")
    m, who, read = len(x), np.asarray(blocks), np.asarray(reads)
    events = len(who) if who.ndim == 1 else -1
    if events < 1 or who.dtype.kind not in "iu" or (who < 0).any() or (who >= m).any():
        raise ValueError(f"blocks must be integers from 0 to {m - 1}, one per event, got {blocks!r}")
    now = np.arange(events)[:, None]
    if read.shape != (events, m) or read.dtype.kind not in "iu" or (read < 0).any() or (read > now).any():
        raise ValueError(
            f"reads must be integers (events, blocks) = {(events, m)} from 0 to the number of events before, got "
            f"{read.dtype} of shape {read.shape}"
        )
    length = int((now - read).max()) + 1
    history = jnp.broadcast_to(x, (length, *x.shape))

    def event(carry: Any, row: Any) -> Any:
        x, history = carry
        k, i, slots = row
        stale = history[slots, jnp.arange(m)]
        w = jnp.asarray(relaxation).astype(x.dtype)
        x = x.at[i].set((1 - w) * x[i] + w * jnp.asarray(operator(stale, i)).astype(x.dtype))
        return (x, history.at[(k + 1) % length].set(x)), x

    rows = (jnp.arange(events), jnp.asarray(who, jnp.int32), jnp.asarray(read % length, jnp.int32))
    (end, _), path = jax.lax.scan(event, (x, history), rows)
    return end, jnp.concatenate([x[None], path])


def degas(
    grad_fn: Callable[[Any], Any],
    x: Any,
    step: Scalar,
    blocks: Any,
    reads: Any,
    *,
    prox: Callable[[Any, Any], Any] | None = None,
    relaxation: Scalar = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Asynchronous block gradient descent: `async_coordinate_update` with a proximal gradient step as its operator.

    Equations:

        T_i(x) = prox(x_i - step_i grad_i f(x), step_i)

    Args:
      grad_fn: blocks (m, ...) -> gradient of the same shape, such as `jax.grad(f)`.
      x: the blocks at the start, (m, ...), floating point.
      step: > 0, a number or one per block; below 1/L_i with a diagonally dominant Hessian it converges at any delay.
      blocks: as in `async_coordinate_update`.
      reads: as in `async_coordinate_update`.
      prox: (block, step) -> block, of a separable term of the loss. Default None: none.
      relaxation: w in (0, 1]. Default 1.

    Returns:
      (x at the end, path), as `async_coordinate_update`.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> f = lambda x: jnp.sum((x - 3.0) ** 2) / 2
      >>> print(degas(jax.grad(f), jnp.zeros(2), 1.0, [0, 1], [[0, 0], [0, 0]])[0])
      [3. 3.]

    Reference: Wu et al. Delay-agnostic Asynchronous Coordinate Update Algorithm. 2023, arXiv 2305.08535 (asynchronous
    block coordinate descent; its variants of ADMM are operators of `async_coordinate_update`).
    """
    checks.function("grad_fn", grad_fn)
    if prox is not None:
        checks.function("prox", prox)
    steps = jnp.asarray(step, jnp.asarray(x).dtype)
    if steps.shape not in ((), jnp.shape(x)[:1]) or not bool((steps > 0).all()):
        raise ValueError(f"step must be a number > 0, or one per block, got {step!r}")
    steps = jnp.broadcast_to(steps, jnp.shape(x)[:1])

    def operator(x: Any, i: Any) -> Any:
        moved = x[i] - steps[i] * grad_fn(x)[i]
        return moved if prox is None else prox(moved, steps[i])

    return async_coordinate_update(operator, x, blocks, reads, relaxation=relaxation)


register(async_coordinate_update, form="program", paper=PAPER, delay="any, while every block is read again and again")
register(degas, form="program", paper=PAPER, delay="any, while every block is read again and again")
