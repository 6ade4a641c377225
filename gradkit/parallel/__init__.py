"""On which devices all of it lies: the shardings of a state, and what a compiled step moves between devices."""

from gradkit.parallel.shardings import init_sharded, state_shardings
from gradkit.parallel.traffic import Collective, collective_bytes

__all__ = ["Collective", "collective_bytes", "init_sharded", "state_shardings"]
