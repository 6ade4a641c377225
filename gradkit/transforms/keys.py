"""Random keys of methods that draw: one given where they are built, or one that comes with the step."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp


def check_key(key: Any) -> None:
    """Raises where a key given at construction is no typed random key."""
    if key is not None and not jnp.issubdtype(getattr(key, "dtype", float), jax.dtypes.prng_key):
        raise ValueError(f"key must be a typed random key, as jax.random.key makes it, got {key!r}")


def first_key(key: Any) -> Any:
    """The key of a fresh state: of its own, so that a donated state does not take the user's along."""
    return None if key is None else jnp.array(key, copy=True)


def next_key(method: str, kept: Any, given: Any) -> tuple[Any, Any]:
    """The key to keep, and the key of this step; the latter is None where there is no key at all.

    A key that comes with the step goes before the one that is kept. Every method makes another number of it.
    """
    if given is not None:
        return kept, jax.random.fold_in(given, zlib.crc32(method.encode()))
    if kept is None:
        return None, None
    kept, now = jax.random.split(kept)
    return kept, now
