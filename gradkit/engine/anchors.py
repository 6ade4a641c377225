"""The parameters that a run started from, and how far it has come from them.

    x_0        a copy that `init` makes: parameters may be donated, and it is sharded like them
    r_t        the largest distance |x_k - x_0| over all k <= t, of the whole tree or of every tensor

What is measured stays in float32 or wider (`scalar_dtype`), whatever the dtype of the parameters.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.engine.core import abs_sq, divide, scalar, wide_dtype
from gradkit.engine.norms import global_sums, packed_sums
from gradkit.leaves import Layout, axes_of, map_named, names, resolve_layout, tensor_axes

INIT_STEPS = ("heuristic", "distance", "learning_rate")


def scalar_dtype(params: Any) -> Any:
    """The dtype of numbers that are measured over a whole tree: float32, or the widest real dtype of its leaves.

    >>> scalar_dtype({"a": jnp.zeros(2, jnp.bfloat16)})
    dtype('float32')
    """
    dtypes = [jnp.finfo(wide_dtype(jnp.result_type(x))).dtype for x in jax.tree.leaves(params)]
    return max(dtypes, key=lambda d: d.itemsize, default=jnp.dtype(jnp.float32))


def copied(params: Any, dtype: Any = None) -> Any:
    """Arrays of their own with the values of the parameters, so that the parameters may be donated.

    Args:
      params: arrays; of `jax.ShapeDtypeStruct`s, which have no values, zeros are made of the same form.
      dtype: of the copies. Default: float32, or the leaf's own where that is wider.

    >>> x = jnp.ones(2)
    >>> copied({"a": x})["a"] is x
    False
    """

    def copy(x: Any) -> jax.Array:
        own = dtype or wide_dtype(x.dtype)
        return jnp.zeros_like(x, own) if isinstance(x, jax.ShapeDtypeStruct) else jnp.array(x, own, copy=True)

    return jax.tree.map(copy, params)


class DistanceFromStart(NamedTuple):
    """x_0, and the largest distance from it so far: one number, or one per tensor of every leaf."""

    start: Any
    farthest: Any

    exact_fields = ("start",)  # parameters, which gk.precision(state=...) must not round


def distance_from_start(
    method: str, params: Any, *, per_tensor: bool = False, layout: Layout | None = None
) -> DistanceFromStart:
    """The anchor at the parameters that `init` sees, with distance 0.

    >>> distance_from_start("dog", {"w": jnp.ones(2)}).farthest.item()
    0.0
    """
    if not per_tensor:
        return DistanceFromStart(copied(params), jnp.zeros((), scalar_dtype(params)))
    return DistanceFromStart(copied(params), numbers_per_tensor(method, params, layout))


def numbers_per_tensor(method: str, params: Any, layout: Layout | None) -> Any:
    """A zero for every tensor of every leaf: a leaf that stacks ten layers has ten."""
    resolve_layout(layout, params, method=method, matters=True)

    def zero(name: str, x: Any) -> jax.Array:
        summed = tensor_axes(axes_of(layout, name, x.shape), x.shape)
        shape = [1 if axis in summed else n for axis, n in enumerate(x.shape)]
        return jnp.zeros(shape, jnp.finfo(wide_dtype(x.dtype)).dtype)

    return map_named(zero, params)


def squared_sums(like: Any, *trees: Any, per_tensor: bool = False, layout: Layout | None = None) -> tuple[Any, ...]:
    """Per tree, the sum of |entry|^2: one number over all leaves, or a tree of one number per tensor. One exchange.

    >>> x = {"a": jnp.array([3.0, 4.0]), "b": jnp.array(1.0)}
    >>> float(squared_sums(x, x)[0]), squared_sums(x, x, per_tensor=True)[0]["a"].tolist()
    (26.0, [25.0])
    """
    squares = [jax.tree.map(abs_sq, tree) for tree in trees]
    if not per_tensor:
        return tuple(global_sums(*squares))
    leaves, structure = jax.tree.flatten(like)
    sums = packed_sums(names(like), "tensor", layout, *map(jax.tree.leaves, squares), like=leaves)
    return tuple(structure.unflatten(sums.own(part)) for part in sums.parts)


def offsets(anchor: DistanceFromStart, params: Any) -> Any:
    """x - x_0."""
    return jax.tree.map(jnp.subtract, params, anchor.start)


def check_init_step(method: str, init_step: Any, kinds: Collection[str] = INIT_STEPS) -> tuple[str, Any]:
    """The kind and the value of a first step.

    Raises:
      ValueError: not a pair of a known kind and a positive number.

    >>> check_init_step("dog", ("heuristic", 1e-6))
    ('heuristic', 1e-06)
    """
    if not isinstance(init_step, tuple | list) or len(init_step) != 2:
        raise ValueError(
            f"{method}: init_step must be a pair of one of {', '.join(map(repr, kinds))} and a number > 0, got "
            f"{init_step!r}; write init_step=('heuristic', 1e-6)"
        )
    kind, value = init_step
    checks.choice(f"{method}: the kind of init_step", kind, kinds)
    checks.real(f"{method}: the value of init_step", value, "(0, inf)")
    return kind, value


def first_distance(init_step: tuple[str, Any], square: jax.Array) -> jax.Array:
    """r_epsilon, the distance that a run is taken to have come before its first step; `square` is |x_0|^2."""
    kind, value = init_step
    if kind == "learning_rate":
        return jnp.zeros_like(square)
    value = jnp.broadcast_to(jnp.asarray(value, square.dtype), square.shape)
    return value * (1 + root_of(square)) if kind == "heuristic" else value


def root_of(square: jax.Array) -> jax.Array:
    """sqrt(square), with the derivative 0 at 0: the distance 0 of the first step makes no NaN of a gradient through it.

    >>> jax.grad(root_of)(0.0).item()
    0.0
    """
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, jnp.ones_like(square))), jnp.zeros_like(square))


def over_root_of(x: jax.Array, total: jax.Array, eps: Any) -> jax.Array:
    """x / sqrt(total + eps), and 0 where that is 0: a gradient of zeros is an ordinary one."""
    return divide(x, root_of(total + scalar(eps, total)))
