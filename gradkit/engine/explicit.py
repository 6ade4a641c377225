"""Work on whole leaves over Explicit mesh axes, where a product along a sharded axis has to name its sharding."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding


def by_compiler(function: Callable[..., Any], *args: Any, like: Any) -> Any:
    """`function(*args)`, for which the compiler finds the exchanges, as it does over Auto axes.

    Args:
      function: of trees of arrays.
      *args: its arguments.
      like: a tree of arrays (or of `jax.ShapeDtypeStruct`s, which are whole everywhere) as the results are.

    Returns:
      What the function returns, lying as `like` does.

    >>> import jax.numpy as jnp
    >>> by_compiler(lambda x: x.T @ x, jnp.ones((3, 1)), like=jax.ShapeDtypeStruct((1, 1), "float32")).tolist()
    [[3.0]]
    """
    shardings = [jax.typeof(x).sharding for x in jax.tree.leaves(args)]
    cut = [s.mesh for s in shardings if AxisType.Explicit in s.mesh.axis_types and any(s.spec)]
    if not cut:
        return function(*args)
    mesh = cut[0]
    whole = jax.sharding.PartitionSpec()

    def place(x: Any) -> NamedSharding:
        spec = whole if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x).sharding.spec
        return NamedSharding(mesh, spec)

    axes = tuple(a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit)
    return jax.sharding.auto_axes(function, axes=axes, out_sharding=jax.tree.map(place, like))(*args)
