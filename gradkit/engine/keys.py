"""Random keys of methods that draw: one given where they are built, or one that comes with the step."""

import contextlib
import numbers
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import serialization
from jax.core import Tracer

# The remedy that every message about a missing key ends with.
IN_A_STEP = "with gk.training.make_train_step, step.init(params, key=0) gives every step one"


def check_key(key: Any, *, optional: bool = True) -> None:
    """Raises where a key given at construction is neither one typed random key nor an integer that makes one.

    >>> check_key(10**30)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: key must be a typed random key, as jax.random.key makes it, or an integer in [-2**31, 2**32), got 1...
    """
    integer = isinstance(key, numbers.Integral) and not isinstance(key, bool)
    typed = jnp.issubdtype(getattr(key, "dtype", float), jax.dtypes.prng_key) and not getattr(key, "shape", ())
    if (key is None and optional) or (integer and -(2**31) <= int(key) < 2**32) or typed:
        return
    raise ValueError(
        f"key must be a typed random key, as jax.random.key makes it, or an integer in [-2**31, 2**32), got {key!r}"
    )


def _bits(key: Any) -> bool:
    """Whether an array holds typed keys, or one untyped key, as `jax.random.PRNGKey` makes it."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return typed or (key.dtype == jnp.uint32 and jnp.ndim(key) == 1)


def as_key(key: Any) -> Any:
    """The key that a function is called with: an integer as `jax.random.key` makes one of it, any other as it is.

    >>> as_key(3) == jax.random.key(3)
    Array(True, dtype=bool)
    """
    if not hasattr(key, "dtype") or isinstance(key, type) or not _bits(key):
        check_key(key, optional=False)
    return jax.random.key(int(key)) if isinstance(key, numbers.Integral) else key


class NoKey(ValueError):
    """A method that draws has no key; the message names every way to give one."""

    def __init__(self, method: str, purpose: str = "", call: str = "") -> None:
        """Of the method's public name, what the key is for, and, of a source of gradients, how that is called."""
        what = f"{method} needs a random key" + (f" {purpose}" if purpose else "")
        ways = f"call it as {call}" if call else f"{method}(..., key=0) or update(..., key=...)"
        super().__init__(f"{what}: {ways}; {IN_A_STEP}")
        self.purpose, self.call = purpose, call

    def of(self, method: str) -> "NoKey":
        """The same, of the method that the user has called."""
        return NoKey(method, self.purpose, self.call)


def needed_key(method: str, kept: Any, given: Any, purpose: str = "") -> tuple[Any, Any]:
    """`next_key` of a method that cannot do without one.

    Args:
      method: the public name, for the numbers and for the message.
      kept: the key in the state, or None.
      given: the key that came with the step, or None.
      purpose: what it is for, for the message.

    Raises:
      ValueError: there is neither.
    """
    kept, now = next_key(method, kept, given)
    if now is None:
        raise NoKey(method, purpose)
    return kept, now


def serializable(key: Any) -> Any:
    """The key, of a type that `flax.serialization` can write from then on: as its numbers.

    Flax has no form of typed keys. It is told of one where a method puts a key into its state: the type is known from a
    key alone, and an import must not make one, as that starts the devices.
    """
    if isinstance(key, Tracer):
        with jax.ensure_compile_time_eval():
            serializable(jax.random.key(0))
        return key

    def read(like: Any, saved: Any) -> Any:
        return jax.random.wrap_key_data(jnp.asarray(saved), impl=jax.random.key_impl(like))

    # Told already, or a Flax that has a form of its own.
    with contextlib.suppress(ValueError):
        serialization.register_serialization_state(type(key), jax.random.key_data, read)
    return key


def first_key(key: Any) -> Any:
    """The key of a fresh state: of its own, so that a donated state does not take the user's along. An integer becomes
    one here, and not where a method is built, as that would start the devices."""
    if key is None:
        return None
    return serializable(as_key(key) if isinstance(key, numbers.Integral) else jnp.array(key, copy=True))


def next_key(method: str, kept: Any, given: Any) -> tuple[Any, Any]:
    """The key to keep, and the key of this step; the latter is None where there is no key at all.

    A key that comes with the step goes before the one that is kept. Every method makes another number of it.
    """
    if given is not None:
        return kept, jax.random.fold_in(as_key(given), zlib.crc32(method.encode()))
    if kept is None:
        return None, None
    kept, now = jax.random.split(kept)
    return kept, now
