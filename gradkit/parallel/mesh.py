"""From one device to a mesh: the mesh from a line of text, and how parameters and batches are placed on it.

axis of the mesh                        what is cut along it
"fsdp"                                  every parameter, on its longest axis
"tensor"                                every parameter with inputs, on its last output axis
all others ("data", "replica", ...)     no parameter
"replica", "data", "fsdp"               every batch, on its examples
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gradkit import checks
from gradkit.leaves import Layout, map_named, resolve_layout
from gradkit.types import PyTree

BATCH_AXES = ("replica", "data", "fsdp")
# All that parameters, batches and replicas are sharded along.
USED_AXES = (*BATCH_AXES, "tensor")


def parse_axes(axes: str | Mapping[str, int]) -> dict[str, int]:
    """Names and lengths of the axes of a mesh, from text or a mapping; a length of -1 is kept.

    >>> parse_axes("data=4,fsdp=2")
    {'data': 4, 'fsdp': 2}
    """
    if isinstance(axes, str):
        pairs = [part.split("=") for part in axes.split(",")]
        if any(len(pair) != 2 or not pair[0].strip().isidentifier() for pair in pairs):
            raise ValueError(f"axes must be written like data=4,fsdp=2, got {axes!r}")
        names = [name.strip() for name, _ in pairs]
        if len(set(names)) != len(names):
            raise ValueError(f"axes must have each name once, got {axes!r}")
        try:
            axes = {name: int(length) for name, (_, length) in zip(names, pairs, strict=True)}
        except ValueError:
            raise ValueError(f"axes must be written like data=4,fsdp=2, got {axes!r}") from None
    if not axes:
        raise ValueError("axes must name one axis or more")
    for name, length in axes.items():
        if not (isinstance(length, int) and (length >= 1 or length == -1)):
            raise ValueError(f"the length of the mesh axis {name!r} must be >= 1, or -1 for what is left, got {length}")
    if list(axes.values()).count(-1) > 1:
        raise ValueError(f"only one length of axes may be -1, got {dict(axes)}")
    return dict(axes)


def check_used_axes(axes: str, *, own: bool = False) -> None:
    """Checks that something is sharded along every axis of a mesh that is given as text, as on the command line.

    Args:
      axes: "data=4,fsdp=2".
      own: whether code of the user's own takes part, which may know other axes: then only a name that is nearly one of
        the usual ones is refused.

    >>> check_used_axes("fspd=2")
    Traceback (most recent call last):
    ValueError: an axis of mesh must be one of 'replica', 'data', 'fsdp', 'tensor', got 'fspd'; did you mean 'fsdp'?
    >>> check_used_axes("workers=2", own=True)
    """
    for name in parse_axes(axes):
        if not own or checks.nearest(name, USED_AXES):
            checks.choice("an axis of mesh", name, USED_AXES)


def make_mesh(axes: str | Mapping[str, int], *, devices: Sequence[Any] | None = None, explicit: bool = False) -> Mesh:
    """A mesh of all devices from names and lengths of its axes.

    The first axis is the slowest: over several processes it runs across them, the last one inside each.

    Args:
      axes: "data=4,fsdp=2", or the same as a mapping, whose lengths multiply to the number of devices. One length may
        be -1: what is left.
      devices: default all devices of all processes.
      explicit: whether the axes are of type Explicit, where shardings are part of types and `jax.set_mesh` is needed,
        rather than Auto, where the compiler derives them. Default False.

    Returns:
      The mesh.

    Raises:
      ValueError: text of another form, or lengths that do not multiply to the number of devices.

    Example:
      >>> make_mesh("data=-1,fsdp=1").axis_names
      ('data', 'fsdp')
    """
    checks.switch(explicit=explicit)
    lengths = parse_axes(axes)
    count = jax.device_count() if devices is None else len(devices)
    known = math.prod(n for n in lengths.values() if n != -1)
    if -1 in lengths.values() and count % known == 0:
        lengths = {name: count // known if n == -1 else n for name, n in lengths.items()}
    if math.prod(lengths.values()) != count:
        text = ",".join(f"{name}={n}" for name, n in lengths.items())
        raise ValueError(f"the axes {text} must multiply to the number of devices, {count}")
    kinds = (AxisType.Explicit if explicit else AxisType.Auto,) * len(lengths)
    return jax.make_mesh(tuple(lengths.values()), tuple(lengths), axis_types=kinds, devices=devices)


def param_shardings(params: PyTree, mesh: Mesh, *, layout: Layout | None = None) -> Any:
    """How parameters are placed on a mesh with axes named "fsdp" and "tensor"; over all other axes they are replicated.

    A parameter with inputs and outputs is cut along "tensor" on its last output axis; then every parameter is cut
    along "fsdp" on the longest axis that is left, the first of several. Stack axes, which a scan walks through, are
    never cut, nor is an axis that the mesh axis does not divide: such a parameter is replicated.

    Args:
      params: arrays or `jax.ShapeDtypeStruct`s.
      mesh: the mesh.
      layout: what the axes of a parameter mean. Default None: what is inferred from the tree.

    Returns:
      A tree of `NamedSharding`s like `params`, for `jax.device_put` or `out_shardings`.

    Example:
      >>> mesh = make_mesh("fsdp=1,tensor=-1", devices=jax.devices()[:1])
      >>> params = {"dense": {"kernel": jax.ShapeDtypeStruct((8, 4), "float32")}}
      >>> param_shardings(params, mesh)["dense"]["kernel"].spec
      P('fsdp', 'tensor')
    """
    declared = resolve_layout(layout, params, method="param_shardings")

    def place(name: str, x: Any) -> NamedSharding:
        shape, axes = np.shape(x), declared(name, np.shape(x))
        spec: list[str | None] = [None] * len(shape)
        tensor, fsdp = (mesh.shape.get(axis, 0) for axis in ("tensor", "fsdp"))
        if tensor and axes.inputs and axes.outputs and shape[axes.outputs[-1]] % tensor == 0:
            spec[axes.outputs[-1]] = "tensor"
        free = [a for a, n in enumerate(shape) if a not in axes.stack and spec[a] is None and n]
        free = [a for a in free if fsdp and shape[a] % fsdp == 0]
        if free:
            spec[max(free, key=lambda a: (shape[a], -a))] = "fsdp"
        while spec and spec[-1] is None:
            spec.pop()
        return NamedSharding(mesh, PartitionSpec(*spec))

    return map_named(place, params)


def batch_sharding(mesh: Mesh, *, batch_axes: Sequence[str] = BATCH_AXES) -> NamedSharding:
    """How a batch is placed: its first axis, the examples, cut along every axis of the mesh that has to do with data.

    Args:
      mesh: the mesh.
      batch_axes: names of axes along which examples are cut; those the mesh lacks are passed over. Default
        "replica", "data" and "fsdp".

    Returns:
      One sharding, for every leaf of a batch with a leading axis of examples.

    Raises:
      ValueError: a name that is none of the three usual ones, and which the mesh lacks.

    Example:
      >>> batch_sharding(make_mesh("data=-1,tensor=1")).spec
      P('data',)
    """
    for name in batch_axes:
        if name not in BATCH_AXES:
            checks.choice("batch_axes", name, mesh.axis_names)
    used = tuple(name for name in batch_axes if name in mesh.axis_names)
    return NamedSharding(mesh, PartitionSpec(used) if used else PartitionSpec())
