"""On which devices all of it lies: meshes, the shardings of a state, and what a compiled step moves between devices."""

from gradkit.parallel.mesh import batch_sharding, make_mesh, param_shardings
from gradkit.parallel.shardings import init_sharded, state_shardings
from gradkit.parallel.traffic import Collective, collective_bytes

__all__ = [
    "Collective",
    "batch_sharding",
    "collective_bytes",
    "init_sharded",
    "make_mesh",
    "param_shardings",
    "state_shardings",
]
