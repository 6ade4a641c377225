"""COCOB: coin betting on the sign of every parameter's gradients, without a learning rate."""

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
    """The initial parameters x_0; the scale L, the sum G of magnitudes, the reward R, and theta."""

    start: Any
    largest: Any
    magnitudes: Any
    reward: Any
    total: Any

    exact_fields = ("start", "largest", "magnitudes", "reward", "total")  # the parameters are computed from all of them


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
    """Replaces the gradient by the difference of the parameters before and after COCOB's bet.

    Equations: L, G, R, theta and the new x of `cocob` with a learning rate of 1; the direction is the old x minus the
    new x. A factor of the gradient has no effect; a factor of the direction does: put a schedule after it.

    Args:
      alpha: in the first steps at most the fraction 1 / alpha of the wealth is bet, > 0. Default 100 (paper).
      eps: the first L, > 0. Default 1e-8.

    Returns:
      A transformation that needs `params`; `init` must get the initial parameters, of which it keeps a copy. State: 5
      words per parameter. Elementwise: no collective.

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
    """Training by coin betting (COCOB): every parameter finds its own step, and there is no learning rate to tune.

    Equations, elementwise, with the initial parameters x_0:

        L = max(L, |g|),   L_0 = eps                     the largest gradient so far
        G = G + |g|
        R = max(R - g (x - x_0), 0)                      the reward
        theta = theta - g
        x <- x + learning_rate (x_0 + theta / (L max(G + L, alpha L)) (L + R) - x)

    Args:
      learning_rate: factor >= 0 of the step, or a schedule. Default 1 (paper, which has none).
      alpha: in the first steps at most the fraction 1 / alpha of the wealth is bet, > 0. Default 100 (paper).
      eps: the first L, > 0. Default 1e-8.

    Returns:
      A transformation that needs `params`; `init` must get the initial parameters, of which it keeps a copy. State: 5
      words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `params` missing.

    Example:
      >>> tx = cocob(alpha=10.0)
      >>> x = jnp.array([3.0, -50.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.1  0.1]

    Reference: Orabona, Tommasi. Training Deep Networks without Learning Rates Through Coin Betting. 2017, arXiv
    1705.07795. `optax.contrib.cocob` agrees except for its learning_rate, which is a factor of the gradient and so has
    no effect on the rule: a schedule does nothing there.
    """
    return optimizer(
        Method("cocob", learning_rate), scale_by_cocob(alpha=alpha, eps=eps), scale_by_learning_rate(learning_rate)
    )


COMMON: dict[str, Any] = {"paper": PAPER, "words": 5, "golden": ("modern/cocob",)}
register(scale_by_cocob, form="primitive", **COMMON)
register(cocob, form="optimizer", **COMMON, race=Race(None, schedule=None))
