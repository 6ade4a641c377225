"""The argument `shard` of methods that work on matrices: over which devices the work and the state are spread."""

import dataclasses
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec, Sharding

from gradkit import checks


@dataclasses.dataclass(frozen=True)
class MatrixSharding:
    """How matrix work is spread over a mesh: every matrix is worked on by one device, its owner.

    Work on a leaf is shared by the devices along `axis`, and along every mesh axis that the leaf itself is sharded
    along. A matrix of which something is kept and that is the only one of its shape, as an embedding or a head may be,
    has no owner: all of these devices work on it, each has its share of the state, and the state is gathered for the
    step.

    Attributes:
      mesh: the mesh. None: the update itself stands inside `jax.shard_map` (or `jax.vmap`) over `axis`, and leaves are
        the shards of one device.
      axis: name of a mesh axis, or several.
      comm_dtype: dtype in which results are sent, such as `jnp.bfloat16`; every device rounds alike, so replicas stay
        equal. Default None: their own.
      min_dim: a replicated matrix whose short side is below this is worked on by every device, as sending it would take
        longer. Default 96: where one product of 400 TFLOP/s equals sending over 300 GB/s; about 500 for 50 GB/s.
      specs: the shardings of the leaves: a tree of `PartitionSpec`s or `NamedSharding`s with the names of the
        parameters, or one for all leaves. Needed under `jit` over Auto axes, where a trace knows no sharding; over
        Explicit axes, and outside `jit`, it is read off the leaves. Default None.

    Raises:
      ValueError: an axis that the mesh lacks, a negative `min_dim`.

    Example:
      >>> import jax
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> MatrixSharding(mesh, "data").min_dim
      96
    """

    mesh: Mesh | AbstractMesh | None
    axis: str | tuple[str, ...]
    comm_dtype: Any = None
    min_dim: int = 96
    specs: Any = None

    def __post_init__(self) -> None:
        if self.mesh is not None and not isinstance(self.mesh, Mesh | AbstractMesh):
            raise ValueError(
                f"mesh must be a jax.sharding.Mesh or None, got {self.mesh!r}; write gk.parallel.make_mesh"
            )
        checks.axis_name("axis", self.axis, optional=False)
        for spec in jax.tree.leaves(self.specs, is_leaf=lambda x: isinstance(x, PartitionSpec)):
            if not isinstance(spec, PartitionSpec | Sharding):
                raise ValueError(f"specs must be a tree of PartitionSpecs or NamedShardings, got {spec!r}")
        checks.integer("min_dim", self.min_dim)
        checks.floating_dtype(comm_dtype=self.comm_dtype)
        for name in self.axes:
            checks.choice("axis", name, (name,) if self.mesh is None else self.mesh.axis_names)

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes."""
        return (self.axis,) if isinstance(self.axis, str) else tuple(self.axis)


def check_shard(shard: Any) -> None:
    """Raises where `shard` says nothing of devices.

    >>> check_shard(None)
    """
    if shard is not None and not isinstance(shard, MatrixSharding):
        raise ValueError(
            f"shard must be a MatrixSharding or None, got {shard!r}; write gk.MatrixSharding(mesh, 'name of an axis')"
        )
