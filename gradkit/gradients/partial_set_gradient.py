"""Gradients of large sets from random subsets of them: exact forward, unbiased backward, constant memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.keys import NoKey, as_key

PAPER = Paper(
    "Scalable Set Encoding with Universal Mini-Batch Consistency and Unbiased Full Set Gradient Approximation",
    "Willette et al.",
    2023,
    "2208.12401",
)


def replace_forward(exact: Any, surrogate: Any, scale: Any = 1.0) -> Any:
    """One tree in the forward pass, the gradient of another in the backward pass.

        y = sg(exact) + scale (surrogate - sg(surrogate)),    sg = jax.lax.stop_gradient

    Args:
      exact: what y is, a tree of real arrays.
      surrogate: a tree like it, finite: what is differentiated.
      scale: of the gradient. Default 1.

    Returns:
      y: bit for bit `exact` where the surrogate is finite. No state, no collective.

    Raises:
      ValueError: trees of different structure or shapes.

    Example:
      >>> jax.value_and_grad(lambda x: replace_forward(jnp.round(x), x, 2.0))(1.6)[1].item()
      2.0

    Reference: Willette et al. Scalable Set Encoding with Universal Mini-Batch Consistency and Unbiased Full Set
    Gradient Approximation. 2023, arXiv 2208.12401, whose stop-gradient form it is; straight-through estimators are the
    same.
    """
    checks.arrays(scale=scale)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (exact, surrogate)]
    if jax.tree.structure(exact) != jax.tree.structure(surrogate) or shapes[0] != shapes[1]:
        raise ValueError(
            f"surrogate must have the structure and shapes of exact, got {shapes[1]} for {shapes[0]}; broadcast it"
        )

    def leaf(y: Any, s: Any) -> jax.Array:
        y, s = jax.lax.stop_gradient(jnp.asarray(y)), jnp.asarray(s)
        change = s - jax.lax.stop_gradient(s)
        return y + (jnp.asarray(scale).astype(s.dtype) * change).astype(y.dtype)

    return jax.tree.map(leaf, exact, surrogate)


def partial_set_gradient(
    encode: Callable[[Any, Any], Any],
    statistics: Callable[[Any, Any], Any],
    finish: Callable[..., Any],
    *,
    axis_name: Any = None,
) -> Callable[..., Any]:
    """A function of a set whose value is of all elements, and whose gradient is of some, unbiased.

        Z_all = sum over all elements of statistics(encode(x_i)),    in chunks, nothing kept
        Z_S   = the sum over |S| random elements,                    with a gradient
        Z     = sg(Z_all) + (N / |S|) (Z_S - sg(Z_S))
        value = finish(Z)

    The gradient by the parameters of encoder and statistics is scaled by N / |S|, that of `finish` is exact. It is
    unbiased because Z, and with it the derivative by Z, does not depend on S; not where a statistic is normalized per
    chunk, or where `finish` sees features of S besides.

    Args:
      encode: (params, xs) -> features, row by row: (n, ...) for n elements.
      statistics: (params, features) -> a tree of sums over the rows; for a mean, a sum and a count; for attention
        over slots, numerators and denominators.
      finish: (params, Z, *args) -> anything, such as a loss.
      axis_name: axis of `vmap` or `shard_map` whose members hold equal parts of the set: statistics are summed over
        them, and gradients averaged as of any replicas. Default None; under plain jit a sharded set needs no name.

    Returns:
      fn(params, xs, *args, key, grad_size, chunk=None) -> what `finish` returns, to be differentiated. `xs` is a tree
      of arrays with a leading axis of N; `grad_size` = |S|, in [1, N]; `chunk` elements are encoded at once, default
      `grad_size`; `key` is a typed key or an integer, another one every step. No state. Memory: the activations of |S|
      elements and of one chunk. Collectives: twice the statistics with `axis_name`.

    Raises:
      ValueError: at construction, no functions; when called, no key, an empty set, sizes outside their range.

    Example:
      >>> total = partial_set_gradient(lambda w, x: w * x, lambda w, h: jnp.sum(h), lambda w, Z: Z)
      >>> x = jnp.array([1.0, 2.0, 3.0, 4.0])
      >>> value, g = jax.value_and_grad(total)(2.0, x, key=0, grad_size=4)
      >>> value.item(), g.item()
      (20.0, 10.0)

    Reference: Willette et al. Scalable Set Encoding with Universal Mini-Batch Consistency and Unbiased Full Set
    Gradient Approximation. 2023, arXiv 2208.12401. The code scales the gradients of the encoder afterwards, which is
    wrong for a parameter that encoder and decoder share.
    """
    checks.axis_name("axis_name", axis_name)
    for name, function in (("encode", encode), ("statistics", statistics), ("finish", finish)):
        checks.function(name, function)

    def summed(params: Any, xs: Any) -> Any:
        return statistics(params, encode(params, xs))

    def fn(params: Any, xs: Any, *args: Any, key: Any = None, grad_size: int, chunk: int | None = None) -> Any:
        if key is None:
            raise NoKey("partial_set_gradient", call="fn(params, xs, key=..., grad_size=...)")
        xs = jax.tree.map(jnp.asarray, xs)
        sizes = {x.shape[0] if x.ndim else 0 for x in jax.tree.leaves(xs)}
        if len(sizes) != 1 or not min(sizes):
            raise ValueError(
                f"partial_set_gradient: xs must have one leading axis of elements, at least one, got sizes {sizes}; "
                "write a tree of arrays (elements, ...)"
            )
        N = sizes.pop()
        size = checks.integer("grad_size", grad_size, 1, maximum=N)
        step = min(checks.integer("chunk", chunk, 1, optional=True) or size, N)
        random = as_key(key)
        if axis_name is not None:
            random = jax.random.fold_in(random, jax.lax.axis_index(axis_name))
        chosen = jax.random.choice(random, N, (size,), replace=False)
        partly = summed(params, jax.tree.map(lambda x: x[chosen], xs))
        constant, rows = jax.lax.stop_gradient((params, xs))
        whole = N // step * step
        stacked = jax.tree.map(lambda x: x[:whole].reshape(N // step, step, *x.shape[1:]), rows)
        start = jax.tree.map(jnp.zeros_like, jax.lax.stop_gradient(partly))
        add = partial(jax.tree.map, jnp.add)
        exact = jax.lax.scan(lambda total, x: (add(total, summed(constant, x)), None), start, stacked)[0]
        if whole < N:
            exact = add(exact, summed(constant, jax.tree.map(lambda x: x[whole:], rows)))
        if axis_name is not None:
            exact, partly = jax.lax.psum((exact, partly), axis_name)
        return finish(params, replace_forward(exact, partly, N / size), *args)

    return fn


register(partial_set_gradient, form="program", paper=PAPER, notes="memory of a subset, value of the set")
register(
    replace_forward,
    form="function",
    paper=PAPER,
    example={"exact": jax.ShapeDtypeStruct((3,), "float32"), "surrogate": jax.ShapeDtypeStruct((3,), "float32")},
)
