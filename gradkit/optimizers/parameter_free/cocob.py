"""COCOB: every parameter is the stake of a gambler who bets on the signs of its gradients.

Entry by entry, with x_0 the start:

    L = max(L, |g|),   L_0 = eps                     the largest gradient so far
    G = G + |g|
    R = max(R - g (x - x_0), 0)                      what has been won
    theta = theta - g
    x <- x_0 + theta / (L max(G + L, alpha L)) (L + R)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.anchors import copied
from gradkit.engine.core import optimizer, scalar, transformation, zeros
from gradkit.engine.mismatches import check_fit
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate
from gradkit.types import Scalar, ScalarOrSchedule

NAME = "scale_by_cocob"
PAPER = Paper(
    "Training Deep Networks without Learning Rates Through Coin Betting", "Orabona, Tommasi", 2017, "1705.07795"
)


class ScaleByCocobState(NamedTuple):
    """x_0; L, the sum G of magnitudes, the reward R, and theta."""

    start: Any
    largest: Any
    magnitudes: Any
    reward: Any
    total: Any

    exact_fields = ("start", "largest", "magnitudes", "reward", "total")  # the parameters are made of all of them


@jax.jit
def _bet(
    g: jax.Array, x: jax.Array, start: jax.Array, L: jax.Array, G: jax.Array, R: jax.Array, theta: jax.Array, alpha: Any
) -> tuple[jax.Array, ...]:
    L = jnp.maximum(L, jnp.abs(g))
    G = G + jnp.abs(g)
    R = jnp.maximum(R - g * (x - start), 0)
    theta = theta - g
    new = theta / (L * jnp.maximum(G + L, scalar(alpha, L) * L)) * (L + R)
    return (x - start) - new, L, G, R, theta


def scale_by_cocob(*, alpha: Scalar = 100.0, eps: Scalar = 1e-8) -> optax.GradientTransformationExtraArgs:
    """From a gradient to the parameters before the bet minus those after it.

    Equations: at the head of this file. A factor of the gradient changes nothing; one of what leaves does: a schedule
    stands behind it.

    Args:
      alpha: the fraction of the wealth that is bet at most is 1 / alpha in the first steps, > 0. Default 100 (paper).
      eps: the first L, > 0. Default 1e-8.

    Returns:
      A transformation that needs `params`; `init` must see the parameters that training starts from, of which it keeps
      a copy. State: 5 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `params` missing.

    Example:
      >>> tx = scale_by_cocob(alpha=10.0)
      >>> g = jnp.array([3.0, -50.0])
      >>> print(tx.update(g, tx.init(g), g)[0].round(4))  # the first bet is 1 / alpha, of the sign
      [ 0.1 -0.1]

    Reference: Orabona, Tommasi. Training Deep Networks without Learning Rates Through Coin Betting. 2017, arXiv
    1705.07795.
    """
    checks.real("alpha", alpha, "(0, inf)")
    checks.real("eps", eps, "(0, inf)")

    def init(params: Any) -> ScaleByCocobState:
        L = jax.tree.map(lambda z: z + scalar(eps, z), zeros(params))
        return ScaleByCocobState(copied(params), L, *(zeros(params) for _ in range(3)))

    def update(g: Any, state: ScaleByCocobState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        check_fit(NAME, params, state.start)
        found = jax.tree.map(lambda *row: _bet(*row, alpha), g, params, *state)
        u, *new = (jax.tree.map(lambda _, row, i=i: row[i], g, found) for i in range(5))
        return u, ScaleByCocobState(state.start, *new)

    return transformation(NAME, init, update, needs_params=True)


def cocob(
    learning_rate: ScalarOrSchedule = 1.0, *, alpha: Scalar = 100.0, eps: Scalar = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Training by betting on coins (COCOB): every parameter finds its own step, and there is no learning rate to tune.

        L = max(L, |g|),   G = G + |g|,   R = max(R - g (x - x_0), 0),   theta = theta - g
        x <- x + learning_rate (x_0 + theta / (L max(G + L, alpha L)) (L + R) - x)

    Args:
      learning_rate: factor >= 0 of the step, or a schedule. Default 1 (paper, which has none).
      alpha: the fraction of the wealth that is bet at most is 1 / alpha in the first steps, > 0. Default 100 (paper).
      eps: the first L, > 0. Default 1e-8.

    Returns:
      A transformation that needs `params`; `init` must see the parameters that training starts from, of which it keeps
      a copy. State: 5 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `params` missing.

    Example:
      >>> tx = cocob(alpha=10.0)
      >>> x = jnp.array([3.0, -50.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.1  0.1]

    Reference: Orabona, Tommasi. Training Deep Networks without Learning Rates Through Coin Betting. 2017, arXiv
    1705.07795. `optax.contrib.cocob` agrees, but for its learning_rate, which is a factor of the gradient, to which the
    rule is blind: a schedule does nothing there.
    """
    return optimizer(
        Method("cocob", learning_rate), scale_by_cocob(alpha=alpha, eps=eps), scale_by_learning_rate(learning_rate)
    )


COMMON: dict[str, Any] = {"paper": PAPER, "words": 5, "golden": ("modern/cocob",)}
register(scale_by_cocob, form="primitive", **COMMON)
register(cocob, form="optimizer", **COMMON, race=Race(None, schedule=None))
