"""What a compressor is: how replicas agree on the mean of a tree while less than the tree travels.

    init(like) -> state                                    of one replica
    exchange(tree, state, axis_name) -> (mean, sent, state)
        sent    what this replica contributed: its tree as the others have understood it
        mean    (1/W) sum_w sent_w, the same on all replicas

The tree minus `sent` is what this replica failed to say; error feedback keeps that for the next step. Because `mean` is
the mean of what was sent, and of nothing else, everything is said in the end, whatever the compressor.

A compressor is an optax transformation too: its `update` takes the gradient of one replica and gives the mean.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.engine.core import transformation
from gradkit.leaves import names
from gradkit.parallel.replicas import alike, check_own
from gradkit.types import PyTree


class Compressor(NamedTuple):
    """What a strategy calls of a compressor; `compressor_of` reads it off the transformation.

    Attributes:
      init: like -> state, of one replica.
      exchange: (tree, state, axis_name, *, key=None) -> (mean, sent, state), on leaves of float32 or wider. To be
        called under the axis of the replicas.
      encode: (tree, state, *, worker, key=None) -> (payload, state), where the payload of a replica has a meaning of
        its own; None where the exchange takes several rounds. The payload is a tuple of arrays, the only thing that
        travels. `worker`: the number of the replica.
      decode: (payload, like) -> tree; None where `encode` is.
    """

    init: Callable[[Any], Any]
    exchange: Callable[..., tuple[Any, Any, Any]]
    encode: Callable[..., tuple[Any, Any]] | None = None
    decode: Callable[[Any, Any], Any] | None = None


def compressing(
    method: str, compressor: Compressor, axis_name: Any, *, complex_leaves: bool = False
) -> optax.GradientTransformationExtraArgs:
    """The transformation of a compressor.

    Args:
      method: the public name, for messages.
      compressor: the pair.
      axis_name: of the replicas, where its `update` is called; a strategy hands over its own.
      complex_leaves: whether it means something for complex leaves.
    """
    checks.axis_name("axis_name", axis_name, optional=False)

    def update(updates: Any, state: Any, params: Any = None, *, key: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        check_own(method, updates, axis_name)
        mean, _, new = compressor.exchange(updates, state, axis_name, key=key)
        return mean, alike(new, state)

    tx = transformation(method, compressor.init, update, complex_leaves=complex_leaves)
    tx.update.compressor = compressor  # pyright: ignore[reportFunctionMemberAccess]
    return tx


def compressor_of(tx: Any, argument: str = "exchange") -> Compressor:
    """The compressor behind a transformation that a user handed over.

    Args:
      tx: what one of the compressors of `gk.parallel` returned, or `error_feedback` around it.
      argument: the name of the argument, for the message.

    Returns:
      Its `Compressor`.

    Raises:
      ValueError: a transformation that is no compressor, or no transformation.

    Example:
      >>> import gradkit as gk
      >>> state = compressor_of(gk.parallel.mean_compressor()).init({"w": jnp.ones(2)})
    """
    checks.transformation(**{argument: tx})
    found = getattr(tx.update, "compressor", None)
    if found is None:
        raise ValueError(
            f"{argument} must be a compressor of gk.parallel, such as gk.parallel.error_feedback("
            "gk.parallel.top_k_compressor(0.01)), got another transformation; put it behind the exchange in a chain"
        )
    return found


def number_of_replicas(method: str, axis_name: Any) -> int:
    """W, the length of the axis of the replicas.

    Raises:
      ValueError: no axis of this name.
    """
    try:
        return jax.lax.axis_size(axis_name)
    except NameError as error:
        how = f"jax.vmap(..., axis_name={axis_name!r}) or jax.shard_map over a mesh axis of this name"
        raise ValueError(f"{method}: there is no axis {axis_name!r} here; call it under {how}") from error


def check_floating(method: str, tree: PyTree) -> None:
    """Raises where a leaf has no rounding that means anything: integers, and complex numbers."""
    for name, x in zip(names(tree), jax.tree.leaves(tree), strict=True):
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise ValueError(
                f"{method}: the leaf {name!r} has dtype {jnp.result_type(x)}; it compresses real floating point "
                "leaves: exchange the others by gk.parallel.replica_mean"
            )


def exchange_of(
    method: str, encode: Callable[..., tuple[Any, Any]], decode: Callable[[Any, Any], Any]
) -> Callable[..., tuple[Any, Any, Any]]:
    """The exchange of a compressor whose payloads are gathered: every replica decodes all, in the order of replicas.

    Decoded one after another, so that one tree is in memory, and summed in the same order everywhere: the bits agree.
    """

    def exchange(tree: Any, state: Any, axis_name: Any, *, key: Any = None) -> tuple[Any, Any, Any]:
        replicas = number_of_replicas(method, axis_name)
        if not jax.tree.leaves(tree):
            return tree, tree, state
        payload, state = encode(tree, state, worker=jax.lax.axis_index(axis_name), key=key)
        everyone = jax.lax.all_gather(payload, axis_name)

        def add(total: Any, row: Any) -> tuple[Any, None]:
            return alike(jax.tree.map(jnp.add, total, decode(row, tree)), total), None

        start = jax.tree.map(lambda x: alike(jnp.zeros_like(x), x), tree)
        start = alike(start, jax.tree.map(lambda _: payload[0], tree))
        total, _ = jax.lax.scan(add, start, everyone)
        return jax.tree.map(lambda x: x / replicas, total), decode(payload, tree), state

    return exchange


def no_state(like: Any) -> optax.EmptyState:
    """The state of a compressor that keeps nothing."""
    del like
    return optax.EmptyState()


def join(pieces: list[jax.Array]) -> tuple[jax.Array, ...]:
    """Flat arrays joined, one for each dtype there is, in the order in which dtypes come: what travels together."""
    groups: dict[Any, list[jax.Array]] = {}
    for x in pieces:
        groups.setdefault(x.dtype, []).append(x.reshape(-1))
    return tuple(jnp.concatenate(group) for group in groups.values())


def separate(joined: tuple[jax.Array, ...], like: list[Any]) -> list[jax.Array]:
    """The inverse of `join`; `like` has the shapes and dtypes of the pieces."""
    rest, ends = {x.dtype: x for x in joined}, dict.fromkeys((x.dtype for x in joined), 0)
    out = []
    for x in like:
        start, ends[x.dtype] = ends[x.dtype], ends[x.dtype] + x.size
        out.append(rest[x.dtype][start : start + x.size].reshape(x.shape))
    return out
