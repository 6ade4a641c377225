"""Sums over blocks of many arrays, with one exchange between devices for all of them.

A sum over an axis that is cut over devices is a sum over devices. Asked for leaf by leaf it is one exchange per leaf;
here every device adds up what it has of every leaf, and all of these numbers cross in one vector:

    part     what one device has of the sums of one leaf, 0 where another device counts the same entries
    vector   the parts of all leaves, each at its place, added up over the devices

How the leaves are cut is known

    under jit              to the compiler, which asks back when it partitions the program (custom_partitioning)
    inside shard_map       to the user, who declares it (`declared`, `gk.parallel.inside_shard_map`)
    on one device          nothing is cut, and nothing of this is in the program

Three things JAX does not do, on more than one device, with a program in which the compiler asks back: mix meshes in it,
export it, and find it in the cache of compiled programs that another process left (unless the option
`jax_remove_custom_partitioning_ptr_from_cache_key` is set, which is safe for what is here). Inside `shard_map` with
declared specs nobody asks.
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gradkit.engine.at_once import at_once
from gradkit.engine.backend import one_device

Cut = tuple[tuple[str, ...], ...]  # per array axis: the mesh axes it is cut over
AxesOf = tuple[tuple[int, ...], ...]  # per array: the axes summed over

_DECLARED: ContextVar[Mapping[str, PartitionSpec | None] | None] = ContextVar("declared", default=None)


@contextlib.contextmanager
def declared(specs: Mapping[str, PartitionSpec | None]) -> Iterator[None]:
    """Within, leaves of these names are shards, cut as the specs say; only while tracing inside `shard_map`."""
    token = _DECLARED.set(specs)
    try:
        yield
    finally:
        _DECLARED.reset(token)


def _cut(spec: PartitionSpec | None, rank: int) -> Cut:
    """A spec with one tuple of mesh axes for every array axis."""
    entries = () if spec is None else tuple(spec)
    found = [(e,) if isinstance(e, str) else tuple(e) if isinstance(e, tuple) else () for e in entries]
    return (*found, *[()] * (rank - len(found)))


def _declared_cut(name: str, rank: int) -> Cut:
    """How a leaf is cut, as declared; uncut where nothing is declared at all."""
    specs = _DECLARED.get()
    if specs is None:
        return _cut(None, rank)
    if name not in specs:
        raise ValueError(f"the specs declared inside shard_map say nothing of the leaf {name!r}: they have {[*specs]}")
    cut = _cut(specs[name], rank)
    if len(cut) > rank:
        raise ValueError(f"the spec {specs[name]} of {name!r} has more entries than the leaf has axes, {rank}")
    return cut


def _ways(over: tuple[str, ...]) -> int:
    return math.prod(jax.lax.axis_size(name) for name in over)


def whole_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a leaf of which a device has a shard of this shape."""
    return tuple(n * _ways(over) for n, over in zip(shape, _declared_cut(name, len(shape)), strict=True))


def own_key(key: jax.Array, name: str, rank: int) -> jax.Array:
    """A random key for what this device has of a leaf: the same on all that have the same shard of it."""
    for over in _declared_cut(name, rank):
        key = jax.random.fold_in(key, jax.lax.axis_index(over)) if over else key
    return key


def _plain(xs: Sequence[jax.Array], axes: AxesOf) -> list[jax.Array]:
    return [jnp.sum(x, axis=own, keepdims=True) for x, own in zip(xs, axes, strict=True)]


def _exchanged(xs: Sequence[jax.Array], axes: AxesOf, cuts: Sequence[Cut]) -> list[jax.Array]:
    """The sums over whole leaves from the shards of each device, where mesh axes have names."""
    everyone = sorted({name for cut in cuts for over in cut for name in over})
    sums = _plain(xs, axes)
    if not everyone:
        return sums
    parts = []
    for s, own, cut in zip(sums, axes, cuts, strict=True):
        among = [name for over in cut for name in over]
        for name in everyone:
            if name not in among:  # every device along this mesh axis has the same: one of them counts it
                s = jnp.where(jax.lax.axis_index(name) == 0, s, jnp.zeros_like(s))
        for axis, over in enumerate(cut):
            if axis not in own and over:
                length = s.shape[axis]
                shape = (*s.shape[:axis], length * _ways(over), *s.shape[axis + 1 :])
                start = jax.lax.axis_index(over) * length
                s = jax.lax.dynamic_update_slice_in_dim(jnp.zeros(shape, s.dtype), s, start, axis)
        parts.append(s)
    dtype = max((s.dtype for s in parts), key=lambda d: d.itemsize)
    vector = jax.lax.psum(jnp.concatenate([s.reshape(-1).astype(dtype) for s in parts]), tuple(everyone))
    ends = np.cumsum([s.size for s in parts])[:-1].tolist()
    return [piece.reshape(s.shape).astype(s.dtype) for piece, s in zip(jnp.split(vector, ends), parts, strict=True)]


def _replicated(x: jax.Array) -> jax.Array:
    """Over Explicit axes the sums are typed as what they are, whole on every device."""
    sharding = jax.typeof(x).sharding
    cut = any(entry is not None for entry in sharding.spec)
    # With its mesh: an `init` runs where no mesh is set.
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec())) if cut else x


def _whole(xs: Sequence[jax.Array], axes: AxesOf) -> list[jax.Array]:
    """The sums, one exchange each."""
    return [_replicated(s) for s in _plain(xs, axes)]


# The types of operands and results say all there is to say (an axis is summed where its length becomes 1), so two
# calls that look the same to a cache of compiled programs are the same.
_partitioned = custom_partitioning(_whole, static_argnums=(1,))


def _partition(axes: AxesOf, mesh: Mesh, args: Any, results: Any) -> Any:
    (shapes,) = args
    if mesh.empty:  # shardings without names of axes: leaves are gathered, which is slow, and right
        mesh = Mesh(np.array(sorted(shapes[0].sharding.device_set, key=lambda d: d.id)), ("everyone",))
        specs = [PartitionSpec() for _ in shapes]
    else:
        specs = [_even(x, mesh) for x in shapes]
    cuts = [_cut(spec, len(x.shape)) for spec, x in zip(specs, shapes, strict=True)]

    def local(xs: Sequence[jax.Array]) -> list[jax.Array]:
        return _exchanged(xs, axes, cuts)

    return (
        mesh,
        local,
        [NamedSharding(mesh, PartitionSpec()) for _ in results],
        ([NamedSharding(mesh, spec) for spec in specs],),
    )


def _even(x: Any, mesh: Mesh) -> PartitionSpec:
    """The spec of an operand, without the axes where shards would have to be padded."""
    cut = _cut(x.sharding.spec, len(x.shape))
    ways = [math.prod(mesh.shape[axis] for axis in over) for over in cut]
    return PartitionSpec(*[over or None if n % k == 0 else None for over, n, k in zip(cut, x.shape, ways, strict=True)])


_partitioned.def_partition(_partition)


@functools.lru_cache(maxsize=1024)
def _sums(axes: AxesOf) -> Any:
    """The sums as a function that jit, vmap and derivatives understand."""

    @custom_vmap
    def batched(xs: list[jax.Array]) -> list[jax.Array]:
        return _partitioned(xs, axes)

    @batched.def_vmap
    def rule(size: int, mapped: Any, xs: list[jax.Array]) -> Any:
        del size
        (flags,) = mapped
        shifted = [tuple(a + 1 for a in own) if on else own for own, on in zip(axes, flags, strict=True)]
        return _sums(tuple(shifted))(xs), flags

    @jax.custom_jvp
    def sums(xs: list[jax.Array]) -> list[jax.Array]:
        return batched(xs)

    @sums.defjvp
    def derivative(primals: Any, tangents: Any) -> Any:
        return jax.jvp(lambda xs: _plain(xs, axes), primals, tangents)

    return sums


def _summed(xs: Sequence[jax.Array], axes: AxesOf) -> list[jax.Array]:
    """The sums where no specs are declared; scalars and empty arrays, which no device shares, are left as they are."""
    asked = not one_device()
    chosen = [i for i, x in enumerate(xs) if asked and x.size and x.ndim and _asks_back(x)]
    others = sorted(set(range(len(xs))) - set(chosen))
    found: dict[int, jax.Array] = {}
    if chosen:
        sums = _sums(tuple(axes[i] for i in chosen))([xs[i] for i in chosen])
        found |= dict(zip(chosen, sums, strict=True))
    if others:
        sums = _whole_at_once([xs[i] for i in others], tuple(axes[i] for i in others))
        found |= dict(zip(others, sums, strict=True))
    return [found[i] for i in range(len(xs))]


_whole_at_once = at_once(_whole, static_argnums=(1,))


def _asks_back(x: jax.Array) -> bool:
    """Whether the compiler can be told about this array when it partitions the program, and has a reason to ask.

    Not where the array is on one device, which is seen where it is not traced. Not where some mesh axes are manual
    already. Nor for 64 bits that are allowed in this thread alone: the compiler asks in one of its own, where they
    would be cut to 32.
    """
    if not isinstance(x, Tracer) and len(x.sharding.device_set) == 1:
        return False
    if jax.sharding.get_abstract_mesh().manual_axes:
        return False
    if x.dtype.itemsize <= 4:
        return True
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: bool(jax.config.jax_enable_x64)).result()  # pyright: ignore


def block_sums(names: Sequence[str], xs: Sequence[jax.Array], axes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """The sum of every array over some of its axes, which stay with length 1.

    Args:
      names: of the leaves, as `gk.leaves.names` gives them; an array is cut as its leaf is.
      xs: the arrays.
      axes: per array, the axes summed over.

    Returns:
      Sums over whole leaves, the same on every device, also inside `shard_map` where specs are declared: there an
      axis that is kept has the length of the whole leaf, and `own_part` picks what belongs to a shard.

    >>> [x.tolist() for x in block_sums(["a", "b"], [jnp.ones((2, 3)), jnp.ones(4)], [(1,), (0,)])]
    [[[3.0], [3.0]], [4.0]]
    """
    if _DECLARED.get() is not None:
        cuts = [_declared_cut(name, x.ndim) for name, x in zip(names, xs, strict=True)]
        return _exchanged(xs, tuple(axes), cuts)
    return _summed(xs, tuple(axes))


def whole(names: Sequence[str], leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """The leaves, whole on every device; one exchange for all of them."""
    return block_sums(names, leaves, ((),) * len(leaves))


def own_parts(names: Sequence[str], leaves: Sequence[jax.Array], whole: Sequence[jax.Array]) -> list[jax.Array]:
    """Of numbers along whole leaves, or of length 1 where they were summed, those that belong to this device's shards.

    Args:
      names: of the leaves.
      leaves: what this device has of them.
      whole: the numbers, per leaf; the same on every device.

    Returns:
      Per leaf, numbers that broadcast against it.
    """
    parts = list(whole)
    if _DECLARED.get() is not None:
        return [_declared_part(name, x, part) for name, x, part in zip(names, leaves, parts, strict=True)]
    if one_device():
        return parts
    # A sum over nothing: the compiler would otherwise cut all that these numbers are made of as it cuts the leaf, and
    # exchange again what every device has.
    many = [i for i, part in enumerate(parts) if part.size > 1]
    for i, part in zip(many, _summed([parts[i] for i in many], ((),) * len(many)), strict=True):
        parts[i] = part
    return [_typed_as(x, part) for x, part in zip(leaves, parts, strict=True)]


def zeros_along(x: Any, summed: Sequence[int], dtype: Any) -> jax.Array:
    """Zeros for what is kept of a leaf that is summed over some of its axes, which have length 1: over Explicit axes
    typed as `own_parts` makes what is added.

    >>> zeros_along(jnp.ones((3, 2)), (0,), jnp.float32).tolist()
    [[0.0, 0.0]]
    """
    zeros = jnp.zeros([1 if a in summed else n for a, n in enumerate(x.shape)], dtype)
    return zeros if isinstance(x, jax.ShapeDtypeStruct) else _typed_as(x, zeros)


def _declared_part(name: str, leaf: jax.Array, whole: jax.Array) -> jax.Array:
    for axis, over in enumerate(_declared_cut(name, leaf.ndim)):
        if (ways := _ways(over)) > 1 and whole.shape[axis] == ways * leaf.shape[axis]:
            start = jax.lax.axis_index(over) * leaf.shape[axis]
            whole = jax.lax.dynamic_slice_in_dim(whole, start, leaf.shape[axis], axis)
    return whole


def _typed_as(leaf: jax.Array, part: jax.Array) -> jax.Array:
    """Over Explicit axes, numbers along a leaf must be cut as the leaf is before they meet what is."""
    sharding = jax.typeof(leaf).sharding
    if all(entry is None for entry in sharding.spec):
        return part
    pairs = zip(part.shape, leaf.shape, sharding.spec, strict=True)
    spec = PartitionSpec(*[entry if n == m else None for n, m, entry in pairs])
    return jax.sharding.reshard(part, NamedSharding(sharding.mesh, spec))
