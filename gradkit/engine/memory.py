"""Memory of the host: arrays that are kept there between steps, and come to the device where they are read.

A device lists kinds of memory, `device.addressable_memories()`: "device" and, where the backend has it, "pinned_host",
from which the device copies by itself while it computes.
"""

from typing import Any

import jax

KINDS = (None, "pinned_host")
# To fetch a smaller array takes longer than the room is worth.
SMALLEST = 1024


def check_memory(method: str, kind: str | None) -> None:
    """Raises where the backend has no such memory. It starts the devices: for an `init`, not where a method is made."""
    if kind is None:
        return
    device = jax.devices()[0]
    have = [memory.kind for memory in device.addressable_memories()]
    if kind not in have:
        raise ValueError(
            f"{method}: memory_kind={kind!r}, and the memories of {device.platform} devices are {have}; "
            f"write memory_kind=None"
        )


def to_host(tree: Any) -> Any:
    """The arrays of at least 1 KiB in the memory of the host."""
    return _moved(tree, jax.memory.Space.Host)


def to_device(tree: Any) -> Any:
    """The same arrays in the memory of the device."""
    return _moved(tree, jax.memory.Space.Device)


def _moved(tree: Any, space: Any) -> Any:
    def one(x: Any) -> Any:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) or x.size * x.dtype.itemsize < SMALLEST:
            return x
        return jax.device_put(x, space)

    return jax.tree.map(one, tree)
