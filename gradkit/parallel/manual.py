"""Methods with norms inside `shard_map`, where a program sees shards and must be told so.

    |w|^2 = sum over the devices that hold different entries of w of the squares each of them has

Entries are cut over the mesh axes in the leaf's spec. Over any other axis the leaf is there several times, and counts
once; a gradient that differs over such an axis (one per replica, not yet averaged) has one norm per replica.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, cast

import jax
import optax
from jax.sharding import PartitionSpec

from gradkit import checks
from gradkit.engine.sums import declared
from gradkit.leaves import names
from gradkit.types import PyTree


@contextlib.contextmanager
def declare_specs(tree: PyTree, specs: Any) -> Iterator[None]:
    """Says how leaves are cut while something of this library is traced inside `shard_map`.

    For sources, such as `gk.gradients.sam`; around a transformation there is `inside_shard_map`.

    Args:
      tree: parameters (or gradients), whose leaves give the names.
      specs: how they are cut, as in `inside_shard_map`.

    Returns:
      A context manager. Norms taken within it are those of whole leaves: one all-reduce over the axes in the specs.

    Raises:
      ValueError: when a norm is taken of a leaf without a spec, or whose spec is longer than its shape.

    Example:
      >>> import gradkit as gk
      >>> import jax.numpy as jnp
      >>> def gradient(w):
      ...     with declare_specs(w, PartitionSpec("fsdp")):
      ...         return gk.gradients.sam(lambda w: jnp.sum(w**2) / 2, rho=0.5)(w)[1]
      >>> shards = jnp.array([[3.0], [4.0]])  # of one leaf, on two devices that `vmap` stands in for
      >>> print(jax.vmap(gradient, axis_name="fsdp")(shards).round(4))
      [[3.3]
       [4.4]]
    """
    found: list[PartitionSpec | None] = []
    if isinstance(specs, PartitionSpec) or not checks.is_function(specs, tree):
        for spec, below in zip(*_pairs(specs, tree), strict=True):
            found += [spec] * len(jax.tree.leaves(below))
    else:
        for name, x in zip(names(tree), jax.tree.leaves(tree), strict=True):
            found.append(cast(PartitionSpec, specs(name, x.shape)))
    with declared(dict(zip(names(tree), found, strict=True))):
        yield


def _pairs(specs: Any, tree: Any) -> tuple[list[Any], list[Any]]:
    """The specs of a prefix, and what of the tree each stands for."""
    entries, structure = jax.tree.flatten(specs, is_leaf=lambda x: x is None or isinstance(x, PartitionSpec))
    return entries, structure.flatten_up_to(tree)


def inside_shard_map(inner: optax.GradientTransformation, specs: Any) -> optax.GradientTransformationExtraArgs:
    """A transformation whose norms are those of whole leaves, where its `update` runs on shards inside `shard_map`.

    Under plain `jit` nothing of this is needed: there arrays are whole, and the compiler knows how they are sharded.
    Elementwise methods do not need it either.

    Args:
      inner: any transformation or chain of this library. Optax's own links with norms know nothing of shards, nor do
        `gk.gravity` and `gk.clip_by_quantile`, which take maxima and counts.
      specs: how parameters and gradients are cut: what `in_specs` of `shard_map` says of them. A tree of
        `PartitionSpec`s, a prefix of one (one spec for all leaves), or a function (path, local shape) -> spec. Mesh
        axes that are in no spec are not summed over.

    Returns:
      A transformation, to be used inside `shard_map` (or under `vmap` with axis names) over the axes in the specs.
      State: the inner one. Collectives: one all-reduce of all norms together wherever `inner` takes norms.

    Raises:
      ValueError: at `update`, a leaf that the specs do not cover, or a spec longer than its leaf's shape.

    Example:
      >>> import gradkit as gk
      >>> import jax.numpy as jnp
      >>> tx = inside_shard_map(gk.clip_by_global_norm(1.0), PartitionSpec("fsdp"))
      >>> shards = jnp.array([[3.0], [4.0]])  # of one leaf, on two devices that `vmap` stands in for
      >>> clip = jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="fsdp")
      >>> [[round(float(x), 4) for x in shard] for shard in clip(shards)]
      [[0.6], [0.8]]
    """
    checks.transformation(inner=inner)
    inner = optax.with_extra_args_support(inner)

    @functools.wraps(inner.init)
    def init(params: optax.Params) -> Any:
        with declare_specs(params, specs):
            return inner.init(params)

    def update(updates: optax.Updates, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        with declare_specs(updates, specs):
            return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)
