"""Sums over the blocks of a ring of devices: one operand stays, the other visits every device once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.gradients.replicas import own_copy
from gradkit.leaves import names
from gradkit.parallel.replicas import alike

PAPER = Paper("Sigmoid Loss for Language Image Pre-Training", "Zhai et al.", 2023, "2303.15343")
Visit = Callable[[Any, Any, Any], tuple[Any, Any]]


def visit_all(
    visit: Visit, acc: Any, block: Any, empty: Any, axis_name: Any, n: int, first: Visit | None = None
) -> tuple[Any, Any, Any]:
    """Lets every block visit every device once, its own one first.

    Args:
      visit: (what a device sums, block, what the block gathers) -> (the first, the last).
      acc: what this device sums.
      block: what is sent round.
      empty: what a block gathers, before it has.
      axis_name: the axis of the ring.
      n: its length; 1 for a device alone.
      first: the visit of the device's own block, where that is another function. Default None: `visit`.

    Returns:
      (what this device summed, what its block gathered at home, what it gathered elsewhere).
    """
    acc, home = (first or visit)(acc, block, empty)
    if n == 1:
        return acc, home, empty

    def send(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.ppermute(x, axis_name, [(i, (i + 1) % n) for i in range(n)]), tree)

    def hop(carry: Any, _: None) -> tuple[Any, None]:
        acc, block, gathered = carry
        ahead = send(block)  # nothing waits for it: it is under way while this block is worked on
        acc, gathered = visit(acc, block, gathered)
        return (acc, ahead, send(gathered)), None

    (acc, block, gathered), _ = jax.lax.scan(hop, (acc, send(block), alike(empty, home)), None, n - 2)
    acc, gathered = visit(acc, block, gathered)
    return acc, home, send(gathered)


BlockFn = Callable[[Any, Any, bool], Any]


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _as_wide(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(wide_dtype(x.dtype)), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def _reduce(block_fn: BlockFn, stationary: Any, travelling: Any, axis_name: Any, n: int) -> Any:
    def first(acc: Any, block: Any, gathered: Any) -> tuple[Any, Any]:
        return block_fn(stationary, block, True), gathered

    def visit(acc: Any, block: Any, gathered: Any) -> tuple[Any, Any]:
        return _add(acc, block_fn(stationary, block, False)), gathered

    return visit_all(visit, None, travelling, None, axis_name, n, first)[0]


def _forward(block_fn: BlockFn, stationary: Any, travelling: Any, axis_name: Any, n: int) -> tuple[Any, Any]:
    return _reduce(block_fn, stationary, travelling, axis_name, n), (stationary, travelling)


def _backward(block_fn: BlockFn, axis_name: Any, n: int, kept: Any, cotangent: Any) -> tuple[Any, Any]:
    stationary, travelling = kept

    def gradients(block: Any, own: bool) -> tuple[Any, Any]:
        _, back = jax.vjp(lambda s, t: block_fn(s, t, own), stationary, block)
        ds, dt = back(cotangent)
        return _as_wide(ds), _as_wide(dt)

    def first(acc: Any, block: Any, gathered: Any) -> tuple[Any, Any]:
        return gradients(block, True)

    def visit(acc: Any, block: Any, gathered: Any) -> tuple[Any, Any]:
        ds, dt = gradients(block, False)
        return _add(acc, ds), _add(gathered, dt)

    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, wide_dtype(x.dtype)), travelling)
    ds, home, elsewhere = visit_all(visit, None, travelling, empty, axis_name, n, first)
    dt = _add(home, alike(elsewhere, home))
    return (
        jax.tree.map(lambda x, g: g.astype(x.dtype), stationary, ds),
        jax.tree.map(lambda x, g: g.astype(x.dtype), travelling, dt),
    )


_reduce.defvjp(_forward, _backward)


def ring_reduce(block_fn: BlockFn, stationary: Any, travelling: Any, *, axis_name: Any) -> Any:
    """A sum over all pairs of blocks, of which no device ever holds more than two.

        total_i = block_fn(s_i, t_i, True) + sum over j != i of block_fn(s_i, t_j, False)        on device i of n
        forward: t_j visits one device after another; backward: (t_j, its gradient) does, and comes home

    The blocks are computed again in the backward pass: between the passes s_i and t_i alone are kept, whatever n is.
    Automatic differentiation of the same loop would keep every visited block.

    Args:
      block_fn: (stationary, travelling block, whether it is the device's own) -> array or tree; the last is a Python
        bool. What it is to be differentiated in are its two operands: it must not close over traced values.
      stationary: tree of floating point arrays that stay: the rows of this device, a temperature, a bias.
      travelling: tree of floating point arrays of the same shapes on all devices.
      axis_name: axis of `shard_map` (or `vmap`) that is the ring, or a tuple of axes.

    Returns:
      total_i: of this device; a `psum` of it is the sum over all pairs. Collectives per device: forward n - 1 times
      the travelling tree, backward 2 (n - 1) times: it and its gradient, which is float32 or wider. Reverse mode, once.

    Raises:
      ValueError: a leaf that is not floating point; no axis of this name.

    Example:
      >>> x = jnp.arange(1.0, 4.0)  # three devices that `vmap` stands in for; every pair of two of them once
      >>> f = lambda x: ring_reduce(lambda s, t, own: 0 * s * t if own else s * t, x, x, axis_name="i")
      >>> print(jax.vmap(f, axis_name="i")(x))
      [5. 8. 9.]

    Reference: Zhai et al. Sigmoid Loss for Language Image Pre-Training. 2023, arXiv 2303.15343, whose loss goes round
    such a ring; the backward pass that lets the gradient travel is ours. `gk.parallel.ring_contrastive_loss` has
    the same ring with a pass of its own.
    """
    checks.axis_name("axis_name", axis_name, optional=False)
    checks.function("block_fn", block_fn)
    for argument, tree in (("stationary", stationary), ("travelling", travelling)):
        for name, x in zip(names(tree), jax.tree.leaves(tree), strict=True):
            if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
                raise ValueError(
                    f"ring_reduce: {argument} must be floating point, got {jnp.result_type(x)} at {name!r}; write "
                    f"x.astype(jnp.float32), or let block_fn hold what is a constant"
                )
    try:
        n = jax.lax.axis_size(axis_name)
    except NameError as error:
        how = f"jax.shard_map over a mesh axis of this name, or jax.vmap(..., axis_name={axis_name!r})"
        raise ValueError(
            f"ring_reduce: axis_name must be an axis here, got {axis_name!r}; call it under {how}"
        ) from error
    stationary, travelling = own_copy((stationary, travelling), axis_name)
    return _reduce(block_fn, stationary, travelling, axis_name, n)


register(ring_reduce, form="program", paper=PAPER, notes="the engine of losses over all pairs of a sharded batch")
