"""Random entries, the same on all replicas: their positions are derived from a key and are not sent."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit.catalogue import Paper, register
from gradkit.engine.keys import check_key, first_key, needed_key
from gradkit.parallel.compressors import Compressor, compressing, number_of_replicas
from gradkit.parallel.deep_gradient_compression import check_ratio, entries_sent
from gradkit.parallel.replicas import alike, wide_mean
from gradkit.types import Key, Scalar

PAPER = Paper("Sparsified SGD with Memory", "Stich, Cordonnier, Jaggi", 2018, "1809.07599")
NAME = "random_k_compressor"


class RandomKState(NamedTuple):
    """The random key of the next step; None where it comes with the step."""

    key: Any


def random_k_compressor(
    ratio: Scalar = 0.01, *, key: Key | None = None, axis_name: Any = "replica"
) -> optax.GradientTransformationExtraArgs:
    """The compressor that sends the same random entries from every replica.

    Equations:

        k = ceil(ratio * entries),   S of k entries at random,   sent = p on S, and 0 elsewhere

    It is biased: use it inside `error_feedback`, which sends the rest later.

    Args:
      ratio: fraction of the entries of a leaf that is sent, in (0, 1]. Default 0.01. A Python number: it fixes the
        lengths of arrays.
      key: a random key (typed key or integer) from which the keys of all steps are derived, the same on all replicas.
        Default None: `update` needs `key=`, which takes precedence where both are given.
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica".

    Returns:
      A compressor, and as a transformation: the gradient of a replica in, the mean of what was sent out. State: a key.
      Collectives: one all-reduce of k words of every leaf.

    Raises:
      ValueError: an argument outside its range; at `update`, no key, or no axis of this name.

    Example:
      >>> tx = random_k_compressor(0.5, key=0)
      >>> g = jnp.array([[1.0, 2.0], [3.0, 4.0]])  # two replicas: one entry of two is sent
      >>> out = jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="replica")(g)[0]
      >>> out.tolist() in ([2.0, 0.0], [0.0, 3.0])
      True

    Reference: Stich, Cordonnier, Jaggi. Sparsified SGD with Memory. 2018, arXiv 1809.07599.
    """
    check_ratio(ratio)
    check_key(key)

    def init(like: Any) -> RandomKState:
        del like
        return RandomKState(first_key(key))

    def exchange(tree: Any, state: RandomKState, axis_name: Any, *, key: Any = None) -> tuple[Any, Any, Any]:
        number_of_replicas(NAME, axis_name)
        kept, now = needed_key(NAME, state.key, key)
        state = RandomKState(state.key if key is not None else kept)
        leaves, structure = jax.tree.flatten(tree)
        if not leaves:
            return tree, tree, state
        keys, counts = jax.random.split(now, len(leaves)), entries_sent(ratio, leaves)
        places = [jax.random.permutation(k, x.size)[:n] for k, x, n in zip(keys, leaves, counts, strict=True)]
        own = [x.reshape(-1)[i] for x, i in zip(leaves, places, strict=True)]

        def spread(values: list[jax.Array]) -> Any:
            out = []
            for x, i, v in zip(leaves, places, values, strict=True):
                zero = alike(jnp.zeros((x.size,), x.dtype), v)
                out.append(zero.at[i].set(v, unique_indices=True).reshape(x.shape))
            return structure.unflatten(out)

        return spread(wide_mean(NAME, own, axis_name)), spread(own), state

    return compressing(NAME, Compressor(init, exchange), axis_name)


register(
    random_k_compressor,
    form="exchange",
    paper=PAPER,
    collectives="replicas",
    example={"ratio": 0.25, "key": 0},
    opt_outs={"nan": "an entry that is not sent now is seen later: error feedback keeps it"},
    notes="where entries are does not travel",
)
