"""The sharding of the state of a transformation, derived from the shardings of its parameters."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax.core import meta
from jax.core import Tracer
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from optax import GradientTransformation

from gradkit import checks
from gradkit.engine.owned import specs_of_stacks
from gradkit.leaves import names
from gradkit.leaves.boxes import axes_of_box
from gradkit.leaves.derived import Placed, flatten, unboxed
from gradkit.types import PyTree


def state_shardings(
    tx: GradientTransformation, params: PyTree, *, mesh: Mesh | None = None, zero_axis: str | None = None
) -> Any:
    """Derives the sharding of every leaf of a transformation's state from those of its parameters.

    A leaf of the state belongs to the parameter whose name is found in the leaf's own name, the nearest to its end:
    `0/mu/dense/kernel` belongs to `dense/kernel`. Its sharding is

        the parameter's (with `zero_axis`, sharded once more)     for a leaf in the shape of the parameter
        the parameter's, on the axes of full length               for a leaf of the same rank with some shorter axes
        the parameter's, behind replicated leading axes           for a leaf with more leading axes (a window, a table)
        the mesh axes of the parameter that divide it             for a leaf that belongs to some axes of the parameter
        over the mesh axes that the method distributes over       for a leaf stacked on its owner devices (`Owned`); for
                                                                  a single matrix along its own axes
        replicated over the mesh of the parameters                for every other leaf

    What `init` puts into host memory, as `gk.precision(memory_kind=...)` does, is in host memory in the sharding, too.
    Pass the result as `out_shardings` of a compiled `init` and of a compiled step: without it, zeros that `init` makes
    under `jit` are on one device, whatever the shardings of the parameters.

    Args:
      tx: any transformation.
      params: parameters, or `jax.ShapeDtypeStruct`s with a sharding. Mesh axes may be Auto or Explicit.
      mesh: where it is given, parameters without a `NamedSharding` count as replicated over it. Default None: the
        parameters' own mesh, and each of them needs a `NamedSharding`.
      zero_axis: name of a mesh axis, usually of data parallelism. State in the shape of its parameter is sharded over
        it too, on the first axis that is not sharded and whose length it divides (ZeRO, stage 1); a leaf without such
        an axis, or already sharded over it, stays as it is. Give the step `out_shardings` for the parameters too:
        without them, the new parameters may come out sharded as the state is. Default None.

    Returns:
      A tree like `tx.init(params)` with a `NamedSharding` per leaf. Nothing is allocated and nothing is computed.

    Raises:
      ValueError: a parameter without a `NamedSharding` where no mesh is given, or traced over Auto axes (then its
        sharding is not known); parameters on different meshes; no parameters and no mesh; an axis the mesh lacks.

    Example:
      >>> import optax
      >>> mesh = jax.make_mesh((1, 1), ("data", "fsdp"))
      >>> lies = NamedSharding(mesh, PartitionSpec("fsdp"))
      >>> params = {"w": jax.ShapeDtypeStruct((4, 2), "float32", sharding=lies)}
      >>> adam = state_shardings(optax.adam(1e-3), params)[0]
      >>> adam.count.spec, adam.mu["w"].spec
      (P(), P('fsdp',))
      >>> state_shardings(optax.adam(1e-3), params, zero_axis="data")[0].mu["w"].spec
      P('fsdp', 'data')

    Reference: Rajbhandari et al. ZeRO: Memory Optimizations Toward Training Trillion Parameter Models. 2019, arXiv
    1910.02054. Departure: an axis of a leaf is sharded, not the flattened leaf, so that specs stay readable.
    """
    checks.transformation(tx=tx)
    leaves, known = jax.tree.leaves(params), names(params)
    placed = [_sharding(name, x, mesh) for name, x in zip(known, leaves, strict=True)]
    if mesh is None and not placed:
        raise ValueError("state_shardings: mesh must be given where there are no parameters, got None; write mesh=...")
    home = placed[0].mesh if mesh is None else mesh
    for name, sharding in zip(known, placed, strict=True):
        if sharding.mesh != home:
            raise ValueError(
                f"state_shardings: all parameters must be on one mesh, got {name!r} on {sharding.mesh} and others on "
                f"{home}; put them on one mesh with jax.device_put"
            )
    if zero_axis is not None and zero_axis not in home.axis_names:
        raise ValueError(f"zero_axis must be one of the mesh axes {home.axis_names}, got {zero_axis!r}")

    parameters = {name: (np.shape(x), s) for name, x, s in zip(known, leaves, placed, strict=True)}
    # The type in the traced program says in which memory an array is; a shape does not.
    program, state = jax.make_jaxpr(tx.init, return_shape=True)(params)
    on_host = [aval.memory_space == jax.memory.Space.Host for aval in program.out_avals]

    def one(path: str, x: Any, spec: PartitionSpec | None, own: NamedSharding | None) -> NamedSharding:
        if spec is not None:
            return NamedSharding(home, spec)
        parameter = parameters.get(_owner(path, parameters))
        if own is None or (parameter is not None and parameter == (x.shape, own)):
            return _derived(x.shape, parameter, home, zero_axis)
        return own

    specs, told = specs_of_stacks(state, home.shape), _told(tx, params, placed)
    found = [one(*row) for row in zip(names(state), jax.tree.leaves(state), specs, told, strict=True)]
    found = [s.with_memory_kind("pinned_host") if host else s for s, host in zip(found, on_host, strict=True)]
    return jax.tree.structure(state).unflatten(found)


def _told(tx: GradientTransformation, params: Any, placed: list[NamedSharding]) -> list[NamedSharding | None]:
    """The sharding of each leaf of the state that the transformation itself derives, or None: it gets parameters in
    boxes that carry their shardings."""
    nodes, structure = flatten(params)
    rows = zip(nodes, placed, strict=True)
    boxed = structure.unflatten([Placed(jax.tree.leaves(node)[0], s, axes_of_box(node)) for node, s in rows])
    state = jax.tree.leaves(jax.eval_shape(tx.init, boxed), is_leaf=lambda node: isinstance(node, Placed))
    # A box around nothing has no leaf in the state; one around a code has several, of shapes of their own.
    counts = [len(jax.tree.leaves(node)) for node in state]
    told = [
        node.sharding if isinstance(node, Placed) and n == 1 else None for node, n in zip(state, counts, strict=True)
    ]
    return [sharding for sharding, n in zip(told, counts, strict=True) for _ in range(n)]


def init_sharded(tx: GradientTransformation, params: PyTree, *, zero_axis: str | None = None) -> Any:
    """Makes the state of a transformation sharded: no sharded leaf is ever on one device as a whole.

    It is `tx.init` compiled with `state_shardings` as its `out_shardings`.

    Args:
      tx: any transformation.
      params: parameters with a `NamedSharding` each; or `jax.ShapeDtypeStruct`s with one. Traced parameters (a call
        inside `jit`) are allowed over Explicit axes, under `jax.set_mesh`; over Auto axes a trace knows no sharding:
        there, call `state_shardings` outside and constrain `tx.init(params)` to it with
        `jax.lax.with_sharding_constraint`.
      zero_axis: as in `state_shardings`: a mesh axis over which the state is sharded once more. Default None.

    Returns:
      What `tx.init(params)` returns, sharded. Of `jax.ShapeDtypeStruct`s, `jax.ShapeDtypeStruct`s with shardings, as
      a restore of a checkpoint and an ahead-of-time compilation ask for.

    Raises:
      ValueError: as `state_shardings` does.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> mesh = jax.make_mesh((1,), ("fsdp",))
      >>> w = jax.device_put(jnp.ones((4, 2)), NamedSharding(mesh, PartitionSpec("fsdp")))
      >>> init_sharded(optax.trace(0.9), {"w": w}).trace["w"].sharding.spec
      P('fsdp',)
    """
    checks.transformation(tx=tx)
    shardings = state_shardings(tx, params, zero_axis=zero_axis)
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params)):
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s, weak_type=x.weak_type),
            jax.eval_shape(tx.init, params),
            shardings,
        )
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(params)):
        # In an inner jit the compiler silently drops out_shardings that differ from the type.
        return jax.tree.map(jax.sharding.reshard, tx.init(params), shardings)
    return jax.jit(tx.init, out_shardings=shardings)(params)


def partition_fn(
    tx: GradientTransformation, spec: Callable[[tuple[int, ...], Any, PartitionSpec], Any]
) -> Callable[[Any], Any]:
    """The `partition` function for trainers whose optimizers are (init, update, partition), such as axlearn's
    `PartitionedGradientTransformation`.

    Args:
      tx: any transformation.
      spec: (shape, dtype, PartitionSpec) -> the trainer's description of a leaf of the state.

    Returns:
      A function of a tree with a description of every parameter: an object with `shape`, `dtype` (None: float32) and
      `mesh_axes`. It returns a tree like the state, with what `spec` makes of every leaf.

    Example:
      >>> import optax, types
      >>> w = types.SimpleNamespace(shape=(8, 4), dtype=None, mesh_axes=("fsdp", "model"))
      >>> partition_fn(optax.trace(0.9), lambda shape, dtype, axes: axes)({"w": w}).trace["w"]
      P('fsdp', 'model')
    """
    checks.transformation(tx=tx)

    def described(node: Any) -> bool:
        return hasattr(node, "mesh_axes")

    def is_box(node: Any) -> bool:
        return isinstance(node, meta.Partitioned)

    # Names of mesh axes say nothing about what the axes of a parameter mean, so they must not look like logical names.
    mark = " of the mesh"

    def box(node: Any) -> Any:
        x = jax.ShapeDtypeStruct(tuple(node.shape), node.dtype or "float32")
        return meta.Partitioned(x, names=jax.tree.map(lambda axis: axis + mark, tuple(node.mesh_axes or ())))

    def axes(node: Any) -> PartitionSpec:
        names = node.names if is_box(node) else ()
        return PartitionSpec(*jax.tree.map(lambda name: name.removesuffix(mark), tuple(names)))

    def partition(specs: Any) -> Any:
        params = jax.tree.map(box, specs, is_leaf=described)
        bare = jax.tree.structure(jax.eval_shape(tx.init, unboxed(params)))
        state = jax.tree.leaves(jax.eval_shape(tx.init, params), is_leaf=is_box)
        rows = [(unboxed(node), axes(node)) for node in state]
        return bare.unflatten([spec(x.shape, x.dtype, own) for x, own in rows])

    return partition


def _sharding(name: str, x: Any, mesh: Mesh | None) -> NamedSharding:
    """The sharding of a parameter; for a traced parameter the sharding in its type, which Auto axes do not have."""
    traced = isinstance(x, Tracer)
    sharding = jax.typeof(x).sharding if traced else getattr(x, "sharding", None)
    if isinstance(sharding, NamedSharding) and not (traced and not sharding.mesh.are_all_axes_explicit):
        return sharding
    if mesh is not None and not traced:
        return NamedSharding(mesh, PartitionSpec())
    what = "is traced over Auto axes, where no sharding is known" if traced else f"has {sharding}"
    raise ValueError(f"state_shardings: every parameter must carry a NamedSharding; {name!r} {what}")


def _owner(path: str, known: Iterable[str]) -> str:
    """The name of the parameter that a leaf of the state belongs to, or "" where it belongs to none.

    The name may be followed by more parts: a quantized moment is `.../kernel/codes`, `.../kernel/scale`.
    """
    pieces = path.split("/")
    for end in range(len(pieces), 0, -1):
        for start in range(end):
            if (name := "/".join(pieces[start:end])) in known:
                return name
    return ""  # This is also the name of a parameter that is a single array.


def _derived(
    shape: tuple[int, ...],
    parameter: tuple[tuple[int, ...], NamedSharding] | None,
    mesh: Mesh | AbstractMesh,
    zero_axis: str | None,
) -> NamedSharding:
    """The sharding of one leaf of the state."""
    more = 0 if parameter is None else len(shape) - len(parameter[0])
    if parameter is not None and more > 0 and shape[more:] == parameter[0]:
        own = _derived(shape[more:], parameter, mesh, zero_axis)
        spec = PartitionSpec(*[None] * more, *own.spec) if len(own.spec) else own.spec
        return NamedSharding(mesh, spec, memory_kind=own.memory_kind)
    if parameter is None or len(shape) != len(parameter[0]):
        return NamedSharding(mesh, PartitionSpec())
    whole, sharding = parameter
    spec = [*sharding.spec, *[None] * (len(whole) - len(sharding.spec))]
    if shape == whole and zero_axis is None:
        return sharding
    if shape == whole:
        free = _free_axis(shape, spec, mesh, zero_axis)
        spec = [zero_axis if i == free else entry for i, entry in enumerate(spec)]
    else:
        spec = [entry if a == b else None for a, b, entry in zip(shape, whole, spec, strict=True)]
    while spec and spec[-1] is None:
        spec.pop()
    return NamedSharding(mesh, PartitionSpec(*spec), memory_kind=sharding.memory_kind)


def _free_axis(shape: tuple[int, ...], spec: list[Any], mesh: Mesh | AbstractMesh, zero_axis: str | None) -> int:
    """The first axis of an array that is not sharded and that the mesh axis divides; -1 where there is none."""
    used = {name for entry in spec for name in (entry if isinstance(entry, tuple) else (entry,))}
    if zero_axis is None or zero_axis in used:
        return -1
    ways = mesh.shape[zero_axis]
    fits = (i for i, length in enumerate(shape) if spec[i] is None and length and length % ways == 0)
    return next(fits, -1)
