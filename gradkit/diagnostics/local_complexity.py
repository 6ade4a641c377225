"""How many units of a network bend around its inputs: a count of the borders of linear regions that are near."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import reals
from gradkit.engine.keys import as_key
from gradkit.types import Key, PyTree, Scalar

PAPER = Paper("Deep Networks Always Grok and Here is Why", "Humayun, Balestriero, Baraniuk", 2024, "2402.15555")


class LocalComplexity(NamedTuple):
    """What is counted.

    Attributes:
      complexity: the mean over the inputs of the number of units that change their sign, in all layers.
      layers: (L,), the same of every layer.
    """

    complexity: jax.Array
    layers: jax.Array


def local_complexity(
    preactivations: Callable[[Any, jax.Array], Sequence[Any]],
    params: PyTree,
    inputs: Any,
    key: Key,
    *,
    radius: Scalar = 0.005,
    directions: int = 20,
) -> LocalComplexity:
    """The density of a network's linear regions around its inputs: how many units change their sign nearby.

        v_1 ... v_P    random orthonormal directions, the same for every input
        C(x)           the corners x + radius v_p and x - radius v_p, 2 P of them
        LC(x)        = sum over layers of the number of units whose pre-activation is positive at one corner of C(x)
                       and negative at another

    The boundary where a unit of a ReLU network changes its sign is a border of linear regions. Over training it falls,
    rises, and falls again where regions move away from the training data, which is when such networks grok.

    Args:
      preactivations: (params, points (m, ...)) -> the pre-activations of every layer, arrays (m, ...); of a convolution
        a unit is one channel at one place. A network without hidden layers gives an empty list, and has complexity 0.
      params: what `preactivations` is given.
      inputs: (n, ...), floating point: training examples, test examples, or random points.
      key: a typed key or an integer, for the directions.
      radius: distance of the corners, > 0, in the units of the inputs. Default 0.005 (official code, for images with
        mean 0 and standard deviation 1.25).
      directions: P, from 1 to the number of features of one input. Default 20 (official code: 40 corners; 25 for MLPs).

    Returns:
      `LocalComplexity`. Forward passes of 2 P points, input by input; can be jitted. Scaling all pre-activations of a
      layer by a positive number changes nothing. Collectives: none but those of `preactivations`.

    Raises:
      ValueError: an argument outside its range; inputs that are not floating point; pre-activations without an axis of
        points.

    Example:
      >>> layer = lambda w, x: [x @ w]
      >>> w = jnp.eye(2)  # the borders of both units go through (1, 0): that of unit 2 alone
      >>> found = local_complexity(layer, w, jnp.array([[1.0, 0.0], [1.0, 1.0]]), 0, radius=0.1, directions=2)
      >>> float(found.complexity), found.layers.tolist()
      (0.5, [0.5])

    Reference: Humayun, Balestriero, Baraniuk. Deep Networks Always Grok and Here is Why. 2024, arXiv 2402.15555.
    Departure from the code: a pre-activation of exactly 0, as of a dead unit, is of neither sign, where the code counts
    it as a third one.
    """
    checks.arrays(params=params, inputs=inputs)
    checks.integer("directions", directions, 1)
    checks.function("preactivations", preactivations)
    checks.real("radius", radius, "(0, inf)")
    x = reals("local_complexity", "inputs", inputs)
    if x.ndim < 2:
        raise ValueError(f"local_complexity: inputs must have shape (n, ...), got {x.shape}; write inputs[:, None]")
    size = x[0].size
    count = checks.integer("directions", directions, 1, maximum=size)
    # The orthonormal factor of normal numbers, with its signs as they come: corners are on both sides.
    v = jnp.linalg.qr(jax.random.normal(as_key(key), (size, count), x.dtype))[0].T.reshape(count, *x.shape[1:])
    offsets = jnp.asarray(radius).astype(x.dtype) * jnp.concatenate([v, -v])

    def crossed(x: jax.Array) -> jax.Array:
        found = []
        for z in preactivations(params, x[None] + offsets):
            z = jnp.asarray(z)
            if z.shape[:1] != offsets.shape[:1]:
                raise ValueError(
                    f"local_complexity: preactivations must give arrays (m, ...) for m = {len(offsets)} points, got "
                    f"shape {z.shape}"
                )
            found.append(jnp.sum((jnp.min(z, axis=0) < 0) & (jnp.max(z, axis=0) > 0)))
        return jnp.stack(found).astype(x.dtype) if found else jnp.zeros((0,), x.dtype)

    layers = jnp.mean(jax.lax.map(crossed, x), axis=0)
    return LocalComplexity(jnp.sum(layers), layers)


register(local_complexity, form="program", paper=PAPER)
