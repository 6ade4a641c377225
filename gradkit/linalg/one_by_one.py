"""Decompositions of a batch of matrices: on CPU one after another, elsewhere in one call.

On CPU XLA hands the matrices of a batched decomposition to its threads, and the thread that asked waits until all are
done. Where all of its threads ask at once, none of them ever ends: `jnp.linalg.qr(a @ a)` beside
`jnp.linalg.qr(b @ b)`, of shape (8, 256, 256), in one program hangs on two processors (jax 0.10.2). A call with one
matrix does not wait. Under `vmap`, over seeds or layers, the matrices are still taken one by one; under
differentiation they are not.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.custom_batching import sequential_vmap


def waits() -> bool:
    """Whether a batched decomposition may wait for threads that wait themselves."""
    return jax.default_backend() == "cpu"


def one_by_one(decompose: Callable[..., Any], *arrays: jax.Array) -> Any:
    """A function of matrices, applied to batches of them.

    Args:
      decompose: (n, m), ... -> a tree of arrays; and the same of arrays with leading axes.
      arrays: (..., n, m), with the same leading axes.

    >>> import jax.numpy as jnp
    >>> one_by_one(jnp.linalg.eigvalsh, jnp.stack([jnp.eye(2), 2 * jnp.eye(2)])).tolist()
    [[1.0, 1.0], [2.0, 2.0]]
    """
    if not waits() or not all(x.size for x in arrays):
        return decompose(*arrays)

    @sequential_vmap
    def alone(*matrices: jax.Array) -> Any:  # without the options of `decompose`, which would be traced
        return decompose(*matrices)

    @jax.custom_jvp
    def run(*matrices: jax.Array) -> Any:
        return alone(*matrices)

    @run.defjvp
    def slope(primals: Any, tangents: Any) -> Any:  # a loop has no way back
        return jax.jvp(decompose, primals, tangents)

    batched: Callable[..., Any] = run
    for _ in arrays[0].shape[:-2]:
        batched = jax.vmap(batched)
    return batched(*arrays)
