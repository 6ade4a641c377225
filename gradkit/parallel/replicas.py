"""Replicas: copies of the parameters that train apart, and how they are laid out.

A quantity of a replica is one array with a leading axis, one entry per replica; on a mesh this axis is sharded over
the mesh axis of the replicas, and the others as the parameter's own:  P("replica", *spec of the parameter).

What is written for one replica against the name of the axis then runs

    on one device, or on a mesh whose other axes the compiler fills in      jax.jit(jax.vmap(fn, axis_name="replica"))
    on a mesh, every axis by hand                                            jax.jit(jax.shard_map(fn, ...))

The first asks for mesh axes of type Auto: a sum over an Explicit axis that `vmap` maps is an error in JAX.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from gradkit import checks
from gradkit.engine.core import wide_dtype
from gradkit.leaves import names
from gradkit.parallel.shardings import state_shardings
from gradkit.types import PyTree


def wide_mean(method: str, tree: PyTree, axis_name: Any) -> Any:
    """The mean over the replicas in float32 or wider, not rounded back."""
    for name, x in zip(names(tree), jax.tree.leaves(tree), strict=True):
        if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
            raise ValueError(f"{method}: the leaf {name!r} has dtype {jnp.result_type(x)}, of which there is no mean")
    try:
        return jax.lax.pmean(jax.tree.map(lambda x: jnp.asarray(x).astype(wide_dtype(x.dtype)), tree), axis_name)
    except NameError as error:
        how = f"jax.vmap(..., axis_name={axis_name!r}) or jax.shard_map over a mesh axis of this name"
        raise ValueError(f"{method}: there is no axis {axis_name!r} here; call it under {how}") from error


def replica_mean(tree: PyTree, axis_name: Any = "replica") -> Any:
    """The mean of a tree over the replicas, the same bits on each of them.

    Also what a run is evaluated at between two exchanges, and its result where it does not end with one.

    Args:
      tree: floating point or complex leaves, of one replica.
      axis_name: name of the axis of the replicas, of `jax.vmap` or `jax.shard_map`; or a tuple of names. Default
        "replica".

    Returns:
      A tree like the one given, of its dtypes; the sum is taken in float32 or wider. Under `jax.shard_map` its type
      says that it is the same on all replicas. Collectives: one all-reduce of the tree.

    Raises:
      ValueError: a leaf of integers; no axis of this name.

    Example:
      >>> x = jnp.array([[1.0, 2.0], [3.0, 6.0]])  # two replicas
      >>> print(jax.vmap(replica_mean, axis_name="replica")(x))
      [[2. 4.]
       [2. 4.]]
    """
    checks.axis_name("axis_name", axis_name, optional=False)
    return jax.tree.map(lambda m, x: m.astype(x.dtype), wide_mean("replica_mean", tree, axis_name), tree)


def alike(x: Any, y: Any) -> Any:
    """x with the types of y, of the same structure: what is the same on all replicas may then differ, as the results
    of two branches must agree on. Compiles to nothing."""

    def over(x: jax.Array, y: jax.Array) -> jax.Array:
        new = jax.typeof(y).manual_axis_type.varying - jax.typeof(x).manual_axis_type.varying
        return jax.lax.pcast(x, tuple(sorted(new, key=str)), to="varying") if new else x

    return jax.tree.map(over, x, y)


def check_own(method: str, updates: PyTree, axis_name: Any) -> None:
    """Raises where gradients are already sums over the replicas.

    `shard_map` sums the gradient with respect to what is the same on all replicas by itself (`check_vma`, its default):
    the replicas would exchange equal sums, each the number of replicas times the mean.
    """
    axes = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    try:
        known = jax.typeof(jax.lax.axis_index(axes)).manual_axis_type.varying
    except NameError:
        return  # What is then to be written is said where the axis is used.
    for name, x in zip(names(updates), jax.tree.leaves(updates), strict=True):
        if known and not known & jax.typeof(x).manual_axis_type.varying:
            raise ValueError(
                f"{method}: the gradient of {name!r} is the same on all replicas of {axis_name!r}: in jax.shard_map, "
                "jax.grad with respect to parameters that they share (in_specs P()) is a sum over them. Differentiate "
                f"with respect to jax.lax.pcast(params, {axis_name!r}, to='varying'), or give the parameters a leading "
                "axis of replicas"
            )


def _placed(tree: Any, axis_name: Any) -> bool:
    """Whether the leaves are on a mesh that has an axis of the replicas: all of them, or none."""
    on = [
        not isinstance(x, Tracer) and isinstance(x.sharding, NamedSharding) and axis_name in x.sharding.mesh.axis_names
        for x in jax.tree.leaves(tree)
    ]
    if any(on) and not all(on):
        odd = [name for name, there in zip(names(tree), on, strict=True) if not there]
        raise ValueError(f"some leaves are on a mesh with an axis {axis_name!r}, and {odd} are not")
    return any(on)


def replicate(tree: PyTree, replicas: int, *, axis_name: str = "replica") -> Any:
    """Gives every leaf a leading axis of equal copies, one per replica.

    Args:
      tree: arrays of one replica. Where they carry a `NamedSharding` on a mesh that has the axis of the replicas, its
        spec must leave that axis free; copies are made where they belong.
      replicas: how many, >= 1; on a mesh, the length of its axis.
      axis_name: name of the mesh axis of the replicas. Default "replica". Not read where leaves are on no such mesh.

    Returns:
      The tree with leaves of shape (replicas, *shape), sharded P(axis_name, *spec) on a mesh. No collective.

    Raises:
      ValueError: `replicas` is not the length of the mesh axis; a leaf that is already sharded along it; leaves of
        which only some are on such a mesh.

    Example:
      >>> replicate({"w": jnp.ones(3)}, 4)["w"].shape
      (4, 3)
    """
    checks.axis_name("axis_name", axis_name, optional=False)
    checks.integer("replicas", replicas, 1)

    def copies(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.broadcast(x, (replicas,)), tree)

    tree = jax.tree.map(jnp.asarray, tree)
    if not _placed(tree, axis_name):
        return jax.jit(copies)(tree)
    for name, x in zip(names(tree), jax.tree.leaves(tree), strict=True):
        length = x.sharding.mesh.shape[axis_name]
        if length != replicas:
            raise ValueError(f"replicas must be the length {length} of the mesh axis {axis_name!r}, got {replicas!r}")
        if any(axis_name in (e if isinstance(e, tuple) else (e,)) for e in x.sharding.spec):
            raise ValueError(f"replicate: {name!r} is already sharded along {axis_name!r}: {x.sharding.spec}")
    return jax.jit(copies, out_shardings=jax.tree.map(lambda x: ahead(x.sharding, axis_name), tree))(tree)


def resize_replicas(tree: PyTree, replicas: int) -> Any:
    """Parameters and states of all replicas, for another number of replicas: the mean of what the old ones held.

        floating leaves      (1/W) sum_k x_k for every new replica; exactly x where all of them held x
        integers, booleans   those of the first replica: counters, which all have in common
        random keys          of new replica i: fold_in(the key of replica i mod W, i div W)

    What the replicas have in common, such as where a round started, stays as it is; so does the mean of all others, and
    of what error feedback remembers: nothing that was not yet sent is lost.

    Args:
      tree: leaves with a leading axis of the old replicas, as `init_replicas` gives them; between two rounds, after
        `synchronize`, or anywhere else.
      replicas: of the new run, >= 1.

    Returns:
      The tree with leading axes of the new length, on one device; `jax.device_put` places it on a mesh.

    Raises:
      ValueError: replicas < 1; leaves of different numbers of replicas.

    Example:
      >>> print(resize_replicas(jnp.array([1.0, 3.0]), 3))
      [2. 2. 2.]
    """
    checks.integer("replicas", replicas, 1)
    tree = jax.tree.map(jnp.asarray, tree)
    counts = {x.shape[:1] for x in jax.tree.leaves(tree)}
    if len(counts) > 1 or () in counts:
        found = {name: x.shape for name, x in zip(names(tree), jax.tree.leaves(tree), strict=True)}
        raise ValueError(f"resize_replicas: all leaves must have one leading axis of replicas, got {found}")

    def resized(x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            i = jnp.arange(replicas)
            return jax.vmap(jax.random.fold_in)(x[i % len(x)], i // len(x))
        one = x[0]
        if jnp.issubdtype(x.dtype, jnp.inexact):
            mean = jnp.mean(x.astype(wide_dtype(x.dtype)), axis=0).astype(x.dtype)
            one = jnp.where(jnp.all(x == x[:1], axis=0), one, mean)
        return jax.lax.broadcast(one, (replicas,))

    return jax.jit(lambda tree: jax.tree.map(resized, tree))(tree)


def init_replicas(tx: optax.GradientTransformation, params: PyTree, *, axis_name: str = "replica") -> Any:
    """Makes the state of a transformation for every replica, where it belongs.

    Args:
      tx: the transformation, written for one replica.
      params: parameters of all replicas, as `replicate` gives them.
      axis_name: name of the axis of the replicas. Default "replica".

    Returns:
      The state, every leaf with a leading axis of replicas (a counter has shape (replicas,)). On a mesh it is sharded
      as the parameters are, from birth: without shardings, what is made under `jit` would be on one device. Other
      leaves, P(axis_name).

    Raises:
      ValueError: leaves of which only some are on a mesh with such an axis.

    Example:
      >>> state = init_replicas(optax.adam(0.1), replicate({"w": jnp.ones(3)}, 4))
      >>> state[0].count.shape, state[0].mu["w"].shape
      ((4,), (4, 3))
    """
    checks.axis_name("axis_name", axis_name, optional=False)
    checks.transformation(tx=tx)
    init = jax.vmap(tx.init, axis_name=axis_name)
    if not _placed(params, axis_name):
        return jax.jit(init)(params)

    def one(x: jax.Array) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(x.sharding.mesh, PartitionSpec(*x.sharding.spec[1:]))  # pyright: ignore
        return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=sharding)

    shardings = state_shardings(tx, jax.tree.map(one, params))
    return jax.jit(init, out_shardings=jax.tree.map(lambda s: ahead(s, axis_name), shardings))(params)


def ahead(sharding: NamedSharding, axis_name: str | None) -> NamedSharding:
    """The sharding below a leading axis of replicas."""
    return NamedSharding(sharding.mesh, PartitionSpec(axis_name, *sharding.spec), memory_kind=sharding.memory_kind)
