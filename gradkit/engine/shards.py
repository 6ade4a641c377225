"""The argument `shard` of methods that work on matrices."""

from typing import Any

from gradkit.engine.matrices import MatrixSharding


def check_shard(shard: Any) -> None:
    """Raises where `shard` says nothing of devices.

    >>> check_shard(None)
    """
    if shard is not None and not isinstance(shard, MatrixSharding):
        raise ValueError(
            f"shard must be a MatrixSharding or None, got {shard!r}; write gk.MatrixSharding(mesh, 'name of an axis')"
        )
