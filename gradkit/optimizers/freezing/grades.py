"""GradES: a tensor that has stopped learning is frozen for good."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment, inside, transformation, zeros
from gradkit.engine.norms import packed_sums
from gradkit.leaves import (
    Layout,
    axes_of,
    check_mask,
    check_mask_form,
    map_named,
    matrices_by_default,
    names,
    resolve_mask,
    tensor_axes,
)
from gradkit.types import Mask, Scalar

PAPER = Paper(
    "GradES: Significantly Faster Training in Transformers with Gradient-Based Early Stopping",
    "Wen et al.",
    2025,
    "2509.01842",
)
METRICS = ("grad", "grad_change", "update")


class FreezeOnConvergenceState(NamedTuple):
    """Number of updates made; per tensor 1 where it is frozen, else 0; the previous gradient, for "grad_change"; the
    inner state."""

    count: jax.Array
    frozen: Any
    previous: Any
    inner: Any


def _keep(frozen: Any, new: Any, old: Any) -> Any:
    """A leaf of the inner state after the step: the old leaf where its tensor is frozen."""
    if frozen is False:
        return new
    if frozen.ndim != new.ndim:
        if frozen.size != 1:
            return new
        frozen = frozen.reshape((1,) * new.ndim)
    return jnp.where(frozen, old, new)


def _slots(param_names: list[str], sizes: list[int], groups: Callable[[str], Hashable] | None) -> np.ndarray:
    """For every tensor, in the order of the packed vector, the number of its group."""
    first: dict[Hashable, tuple[int, int]] = {}
    out, fresh = [], 0
    for name, size in zip(param_names, sizes, strict=True):
        group = None if groups is None else groups(name)
        key = ("leaf", name) if group is None else ("group", group)
        start, of = first.setdefault(key, (fresh, size))
        if of != size:
            raise ValueError(
                f"groups: the stacks of a group must have equally many tensors, but {name!r} is a stack of {size}, "
                f"others of {group!r} of {of}; write a group of its own for {name!r}"
            )
        fresh = max(fresh, start + size)
        out.extend(range(start, start + size))
    return np.asarray(out, np.int32)


def freeze_on_convergence(
    inner: optax.GradientTransformation,
    *,
    tau: Scalar,
    total_steps: int,
    alpha: Scalar = 0.5,
    metric: str = "grad",
    groups: Callable[[str], Hashable] | None = None,
    mask: Mask | None = None,
    max_frozen_ratio: Any = 1.0,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Freezes every tensor whose gradient, or update, has become small, around any optimizer.

    Equations, for every tensor that is not yet frozen, from step int(alpha total_steps) on, with these metrics:

        "grad"          sum |g_t|                  a tensor that is frozen in step t gets no update in step t
        "grad_change"   sum |g_t - g_{t-1}|        likewise, from the second step on
        "update"        sum |u_t|                  measured after the update: frozen from step t + 1 on

    A tensor is frozen where its metric is below tau. A gradient that is 0 everywhere is no measurement: an expert to
    which no token was routed has not converged. So nothing is frozen in a step where g_t = 0, nor, for "grad_change",
    where g_{t-1} = 0. The update of a frozen tensor is 0, weight decay included; the inner optimizer sees the gradient
    0, and its state of the tensor does not change.

    A compiled step saves nothing by itself. Now and then read `gk.frozen_mask(state)` and compile the step again with
    the frozen leaves behind `jax.lax.stop_gradient`: their gradients are then not computed, and the trajectory is the
    same.

    Args:
      inner: a complete optimizer.
      tau: threshold, > 0, in the units of the metric. The metric is a SUM over the tensor, so tau scales with its size.
      total_steps: length of the run, >= 1.
      alpha: share of the run before which nothing is frozen, in [0, 1). Default 0.5; the class of the official code has
        0.3, its examples of language models 0.55.
      metric: "grad" (paper), "grad_change" or "update" (the metric of the released code). Default "grad".
      groups: a function from the name of a leaf to its group, or to None for a leaf by itself; the metrics of a group
        are added up and it is frozen as one, as the pair of a low-rank adapter should be. Default None: every tensor by
        itself.
      mask: which leaves may be frozen. Default all.
      max_frozen_ratio: largest share of the tensors (groups) that may be frozen, in [0, 1]; where more are below tau,
        the first ones in the order of the tree are frozen. Default 1.
      layout: which axes are stacks: every layer of a scan is frozen by itself.

    Returns:
      A transformation. State: one number per tensor, a counter, the inner state; with "grad_change" 1 word per
      parameter. Collectives: one scalar per tensor; two with "update", three with "grad_change". A tensor whose
      gradient is always 0 is never frozen: exclude it by `mask`, or `all_frozen` is never True.

    Raises:
      ValueError: an argument outside its range; a group of stacks of different lengths.

    Example:
      >>> tx = freeze_on_convergence(optax.sgd(0.1), tau=0.5, total_steps=10, alpha=0.0)
      >>> x = {"a": jnp.ones(2), "b": jnp.ones(2)}
      >>> g = {"a": jnp.ones(2), "b": 0.1 * jnp.ones(2)}
      >>> updates, state = tx.update(g, tx.init(x), x)
      >>> updates["b"].tolist(), frozen_mask(state)
      ([0.0, 0.0], {'a': False, 'b': True})

    Reference: Wen et al. GradES: Significantly Faster Training in Transformers with Gradient-Based Early Stopping.
    2025, arXiv 2509.01842. In the released code a first step without a previous value counts as no change, so with
    alpha = 0 it freezes everything at once; here a metric without a previous value freezes nothing. It also freezes for
    good an expert that had no tokens in one step; here a gradient of zeros freezes nothing.
    """
    checks.layout(layout)
    checks.real("tau", tau, "(0, inf)")
    total_steps = checks.integer("total_steps", total_steps, 1)
    checks.real("alpha", alpha, "[0, 1)")
    checks.choice("metric", metric, METRICS)
    checks.real("max_frozen_ratio", max_frozen_ratio, "[0, 1]")
    if groups is not None:
        checks.function("groups", groups)
    inner = inside(inner)

    def flag(name: str, x: Any) -> jax.Array:
        summed = tensor_axes(axes_of(layout, name, x.shape), x.shape)
        return jnp.zeros_like(x, dtype=jnp.int32, shape=[1 if a in summed else n for a, n in enumerate(x.shape)])

    check_mask_form(mask=mask)

    def init(params: optax.Params) -> FreezeOnConvergenceState:
        check_mask(mask, params, method="freeze_on_convergence", argument="mask", instead="mask=False")
        previous = zeros(params) if metric == "grad_change" else None
        return FreezeOnConvergenceState(jnp.zeros((), jnp.int32), map_named(flag, params), previous, inner.init(params))

    linked = groups is not None or not (isinstance(max_frozen_ratio, int | float) and max_frozen_ratio == 1)
    share, most = checks.readable(alpha), checks.readable(max_frozen_ratio)

    def small(value: jax.Array, seen: Sequence[jax.Array]) -> jax.Array:
        """Whether the metric is below the threshold and was measured: none of the sums that it comes from is 0."""
        found = value < jnp.asarray(tau).astype(value.dtype)
        for one in seen:
            found &= one > 0
        return found

    def together(
        value: jax.Array,
        seen: Sequence[jax.Array],
        old: jax.Array,
        param_names: list[str],
        sizes: list[int],
        on: list[bool],
    ) -> jax.Array:
        """Which tensors are to be frozen, where they are frozen in groups or up to a share."""
        slots = _slots(param_names, sizes, groups)
        number = int(slots.max(initial=-1)) + 1
        may = np.concatenate([np.full(n, flag) for n, flag in zip(sizes, on, strict=True)] or [np.zeros(0, bool)])
        able = np.zeros(number, bool)
        able[slots[may]] = True
        value, already, *seen = (jnp.zeros(number, row.dtype).at[slots].add(row) for row in (value, old, *seen))
        already = already > 0
        newly_frozen = small(value, seen) & ~already & jnp.asarray(able)
        count = int(able.sum())
        if most is None:
            room = jnp.floor(jnp.asarray(max_frozen_ratio).astype(jnp.float32) * count).astype(jnp.int32)
        else:
            room = jnp.int32(int(most * count))
        fits = jnp.cumsum(newly_frozen.astype(jnp.int32)) + jnp.sum(already, dtype=jnp.int32) <= room
        return (newly_frozen & fits)[slots]

    def decide(measured: Any, frozen: Any, allowed: jax.Array, *sources: Any) -> Any:
        """The flags after this measurement; `sources` are the gradients that it comes from, if it is not their norm."""
        leaves, structure = jax.tree.flatten(measured)
        param_names, old = names(measured), jax.tree.leaves(frozen)
        on = jax.tree.leaves(resolve_mask(mask, measured))
        rows = [[jnp.abs(x) for x in jax.tree.leaves(tree)] for tree in (measured, *sources)]
        # Flags of stacked layers may be sharded: where all must be known at once, they are all-reduced with the sums.
        spread = [jnp.broadcast_to(f.astype(x.dtype), x.shape) for f, x in zip(old, rows[0], strict=True)]
        sums = packed_sums(param_names, "tensor", layout, *rows, *([spread] if linked else []), like=leaves)
        value, seen = sums.vectors[0], sums.vectors[1 : len(rows)] or sums.vectors[:1]
        last = sums.vectors[-1]
        newly_frozen = together(value, seen, last, param_names, sums.sizes, on) if linked else small(value, seen)
        newly_frozen = sums.spread((newly_frozen & allowed).astype(value.dtype))
        new = [jnp.maximum(f, n.astype(f.dtype)) if may else f for f, n, may in zip(old, newly_frozen, on, strict=True)]
        return structure.unflatten(new)

    def update(updates: Any, state: FreezeOnConvergenceState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        first = jnp.asarray(alpha * total_steps).astype(jnp.int32) if share is None else int(share * total_steps)
        allowed = state.count + 1 >= first
        measured, previous, sources = updates, None, ()
        if metric == "grad_change":
            measured, previous = jax.tree.map(jnp.subtract, updates, state.previous), updates
            sources = (updates, state.previous)
            allowed &= state.count > 0
        # The flags already contain the measurement of the previous update; this update is measured after it is made.
        frozen = state.frozen if metric == "update" else decide(measured, state.frozen, allowed, *sources)
        is_frozen = jax.tree.map(lambda f: f > 0, frozen)
        g = jax.tree.map(lambda f, g: jnp.where(f, jnp.zeros_like(g), g), is_frozen, updates)
        u, new = inner.update(g, state.inner, params, **extra)
        u = jax.tree.map(lambda f, u: jnp.where(f, jnp.zeros_like(u), u), is_frozen, u)

        def belongs(leaf: Any, f: Any) -> Any:
            return leaf if isinstance(leaf, optax.MaskedNode) else f

        state_is_frozen = optax.tree.map_params(
            inner.init,
            belongs,
            new,
            is_frozen,
            transform_non_params=lambda _: False,
            is_leaf=lambda x: isinstance(x, optax.MaskedNode),
        )
        new = jax.tree.map(_keep, state_is_frozen, new, state.inner)
        if metric == "update":
            frozen = decide(u, frozen, allowed, updates)
        return u, FreezeOnConvergenceState(increment(state.count), frozen, previous, new)

    return transformation("freeze_on_convergence", init, update, complex_leaves=True)


def grades(
    inner: optax.GradientTransformation,
    *,
    tau: Scalar,
    total_steps: int,
    alpha: Scalar = 0.5,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """GradES as in the paper: weight matrices whose gradient is small are frozen; biases and scales are not.

    This is `gk.freeze_on_convergence` with metric="grad" on weight matrices. From step int(alpha total_steps) on:

        a matrix is frozen in the first step with 0 < sum |g_t| < tau, and in all later ones: its update is 0

    Args:
      inner: a complete optimizer.
      tau: threshold of the sum of |g| over a matrix, > 0; it scales with the size of the matrix.
      total_steps: length of the run, >= 1.
      alpha: share of the run before which nothing is frozen, in [0, 1). Default 0.5; the class of the official code has
        0.3, its examples of language models 0.55.
      layout: which axes are stacks, and thereby which leaves are matrices.

    Returns:
      A transformation. State and collectives: those of `freeze_on_convergence`.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> tx = grades(optax.sgd(0.1), tau=0.5, total_steps=10, alpha=0.0)
      >>> x = {"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}
      >>> _, state = tx.update(jax.tree.map(lambda x: 0.1 * x, x), tx.init(x), x)
      >>> frozen_mask(state)
      {'bias': False, 'kernel': True}

    Reference: Wen et al. 2025, arXiv 2509.01842.
    """
    checks.layout(layout)
    matrices = matrices_by_default(layout)
    return freeze_on_convergence(inner, tau=tau, total_steps=total_steps, alpha=alpha, mask=matrices, layout=layout)


def _found(state: Any) -> FreezeOnConvergenceState:
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, FreezeOnConvergenceState))
    found = [node for node in nodes if isinstance(node, FreezeOnConvergenceState)]
    if len(found) != 1:
        raise ValueError(
            f"frozen_mask: the state must contain one state of freeze_on_convergence, got {len(found)}; write "
            "frozen_mask(state) with the state of one such wrapper"
        )
    return found[0]


def _whole(flags: jax.Array) -> Any:
    frozen = jnp.all(flags > 0)
    return frozen if isinstance(frozen, Tracer) else bool(frozen)


def frozen_mask(state: Any) -> Any:
    """Which leaves are completely frozen, so that a recompiled step need not differentiate them.

    Args:
      state: the state of `freeze_on_convergence` or `grades`, or a state that contains it.

    Returns:
      A tree like the parameters of Python booleans (of arrays where the state is traced). A stack of layers has True
      once all of them are frozen.

    Raises:
      ValueError: no such state, or more than one, in `state`.

    Example:
      >>> tx = freeze_on_convergence(optax.sgd(0.1), tau=0.5, total_steps=10, alpha=0.0)
      >>> x = {"a": jnp.ones(2), "b": jnp.ones(2)}
      >>> _, state = tx.update({"a": jnp.ones(2), "b": 0.1 * jnp.ones(2)}, tx.init(x), x)
      >>> still = lambda x: jax.tree.map(lambda p, f: jax.lax.stop_gradient(p) if f else p, x, frozen_mask(state))
      >>> loss = lambda x: jnp.sum(still(x)["a"] * still(x)["b"])  # for the next compilation
      >>> jax.grad(loss)(x)["b"].tolist()
      [0.0, 0.0]

    Reference: Wen et al. 2025, arXiv 2509.01842.
    """
    return jax.tree.map(_whole, _found(state).frozen)


def all_frozen(state: Any) -> Any:
    """Whether every leaf is frozen, so that the run may stop.

    Args:
      state: a state, as in `frozen_mask`.

    Returns:
      A Python boolean; an array where the state is traced.

    Raises:
      ValueError: no such state, or more than one, in `state`.

    Example:
      >>> tx = freeze_on_convergence(optax.sgd(0.1), tau=0.5, total_steps=10)
      >>> all_frozen(tx.init(jnp.ones(2)))
      False

    Reference: Wen et al. 2025, arXiv 2509.01842.
    """
    flags = [jnp.all(x > 0).astype(jnp.int32) for x in jax.tree.leaves(_found(state).frozen)]
    return _whole(jnp.stack(flags)) if flags else True


FIELDS = {
    "collectives": "norms",
    "example": {"tau": 0.05, "total_steps": 4},
    "opt_outs": {
        "layout": "its effect shows at a threshold between one layer and all: see tests/papers/test_grades.py"
    },
}
register(freeze_on_convergence, form="wrapper", paper=PAPER, **FIELDS)
register(grades, form="wrapper", paper=PAPER, **FIELDS)
