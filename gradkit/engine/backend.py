"""What the devices of this process are.

XLA's CPU compiler makes a kernel of every place in an array that is read, and a pass over memory of every sum; where it
works for one device alone, some programs are written otherwise.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import numpy as np


def one_device() -> bool:
    """Whether no program of this process is partitioned: JAX has one device, and no mesh of others is set."""
    return jax.device_count() == 1 and jax.sharding.get_abstract_mesh().size <= 1


def one_cpu() -> bool:
    """Whether this one device is the CPU."""
    return one_device() and jax.default_backend() == "cpu"


def rows_between(x: jax.Array, ends: Sequence[int]) -> list[jax.Array]:
    """The rows of an array from each of these numbers to the next. On the CPU slices of one size are one kernel, which
    is told the place as it runs.

    >>> [rows.tolist() for rows in rows_between(jax.numpy.arange(6.0), [0, 2, 4])]
    [[0.0, 1.0], [2.0, 3.0]]
    """
    if len(ends) < 3 or not one_cpu():
        return [jax.lax.slice_in_dim(x, a, b) for a, b in itertools.pairwise(ends)]
    # The compiler writes a scalar that it knows into the kernel, and a vector not. The barrier hides it until then.
    places = jax.lax.optimization_barrier([np.array([a, -1], np.int32) for a in ends[:-1]])
    return [_rows(x, place, b - a) for place, (a, b) in zip(places, itertools.pairwise(ends), strict=True)]


@functools.partial(jax.jit, static_argnums=2)
def _rows(x: jax.Array, place: jax.Array, count: int) -> jax.Array:
    starts = [jax.lax.index_in_dim(place, 0, keepdims=False), *[0] * (x.ndim - 1)]
    return jax.lax.dynamic_slice(x, starts, (count, *x.shape[1:]), allow_negative_indices=False)
