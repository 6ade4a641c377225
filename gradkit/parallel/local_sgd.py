"""Local SGD: each replica steps by its own gradients, and every few steps the parameters are averaged."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment, inside, scalar, transformation
from gradkit.optimizers.momentum import sgd
from gradkit.parallel.local_updates import anchor, local_updates
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper("Local SGD Converges Fast and Communicates Little", "Stich", 2018, "1805.09767")


def local_sgd(
    learning_rate: ScalarOrSchedule,
    *,
    sync_every: Any = 8,
    axis_name: Any = "replica",
    momentum: Scalar = 0.0,
    nesterov: bool = False,
    average_state: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Local SGD: `gk.sgd` on every replica, and the mean of their parameters every few steps.

    Equations, for replica k of W at step t = 0, 1, ..., with H = sync_every:

        x_k <- x_k - gamma_t g_k(x_k)
        x_k <- (1/W) sum_j x_j                     after every H steps

    The theorem for strongly convex losses (curvature at least mu, condition number kappa) has gamma_t = 4 / (mu (a +
    t)) with a > max(16 kappa, H), and is about a weighted average of the iterates, `quadratic_weighted_average`, over
    all replicas. The method is `local_updates(gk.sgd(...))`: see there how to run it, and for the arguments of
    `update`.

    Args:
      learning_rate: step size >= 0, or a schedule of the steps of a replica.
      sync_every: H, as in `local_updates`. Default 8 (with 1, data-parallel SGD).
      axis_name: name of the axis of the replicas. Default "replica".
      momentum: decay of the momentum of each replica, in [0, 1]. Default 0: the paper's SGD.
      nesterov: whether the momentum looks ahead. Default False.
      average_state: whether the momenta are averaged with the parameters. Default False.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter with momentum, else none. Collectives: one
      all-reduce of the parameters per round.

    Raises:
      ValueError: a hyperparameter outside its range; leaves of integers; no axis of this name (at a sync step).

    Example:
      >>> tx = local_sgd(0.5, sync_every=1)
      >>> x, g = jnp.array([1.0, 1.0]), jnp.array([0.0, 2.0])
      >>> updates, _ = jax.vmap(tx.update, axis_name="replica")(g, jax.vmap(tx.init)(x), x)
      >>> print(updates)
      [-0.5 -0.5]

    Reference: Stich. Local SGD Converges Fast and Communicates Little. 2018, arXiv 1805.09767. Departure: the paper's
    learning rate falls as 1 / (a + t), and its output is an average; here any schedule, and the last iterate. For the
    average see `quadratic_weighted_average`.
    """
    checks.axis_name("axis_name", axis_name, optional=False)
    checks.switch(average_state=average_state)
    inner = sgd(learning_rate, momentum=momentum, nesterov=nesterov)
    return local_updates(inner, sync_every=sync_every, axis_name=axis_name, average_state=average_state)


class QuadraticWeightedAverageState(NamedTuple):
    """Number of steps; the average of the parameters before them; the inner state."""

    count: jax.Array
    average: Any
    inner: Any

    exact_fields = ("average",)  # parameters, which gk.precision(state=...) must not round

    def eval_params(self, params: Any) -> Any:
        """The average; before the first step the initial parameters."""
        return jax.tree.map(lambda a, x: a.astype(x.dtype), self.average, params)


def quadratic_weighted_average(
    inner: optax.GradientTransformation, *, offset: Scalar
) -> optax.GradientTransformationExtraArgs:
    """Keeps the average of all iterates with weights that grow with the square of the step.

    Equations, with a = offset:

        w_t = (a + t)^2,    S_T = sum_{t < T} w_t
        xhat = (1/S_T) sum_{t < T} w_t x_t,    updated by    xhat <- xhat + (w_t / S_{t+1}) (x_t - xhat)

    The updates of `inner` do not change.

    Args:
      inner: any transformation.
      offset: a > 0; a number of steps. The theorem requires more than 16 kappa and more than `sync_every`. May be
        traced.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter and the inner state. The average is
      `gk.eval_params(state, params)`, of one replica; `gk.parallel.replica_mean` of it is that of all. Elementwise: no
      collective.

    Raises:
      ValueError: an offset that is not positive.

    Example:
      >>> tx = quadratic_weighted_average(optax.sgd(1.0), offset=1.0)
      >>> x, state = jnp.array(0.0), tx.init(jnp.array(0.0))
      >>> for _ in range(2):  # from 0 to 1 to 2: the average of 0 and 1, with weights 1 and 4
      ...     updates, state = tx.update(jnp.array(-1.0), state, x)
      ...     x = x + updates
      >>> print(f"{state.eval_params(x):.3f}")
      0.800

    Reference: Stich. Local SGD Converges Fast and Communicates Little. 2018, arXiv 1805.09767. The average is of the
    points where gradients were taken, from the initial parameters on and without the last iterate.
    """
    checks.real("offset", offset, "(0, inf)")
    inner = inside(inner)

    def init(params: Any) -> QuadraticWeightedAverageState:
        return QuadraticWeightedAverageState(jnp.zeros((), jnp.int32), anchor(params), inner.init(params))

    def update(
        updates: Any, state: QuadraticWeightedAverageState, params: Any = None, **extra: Any
    ) -> tuple[Any, QuadraticWeightedAverageState]:
        count = increment(state.count)

        def towards(average: jax.Array, x: jax.Array) -> jax.Array:
            return average + _share(state.count, offset, average) * (x - average)

        average = jax.tree.map(towards, state.average, params)
        updates, own = inner.update(updates, state.inner, params, **extra)
        return updates, QuadraticWeightedAverageState(count, average, own)

    return transformation("quadratic_weighted_average", init, update, needs_params=True, complex_leaves=True)


def _share(count: jax.Array, offset: Any, like: jax.Array) -> jax.Array:
    """w_t / S_{t+1}, from the closed form of the sum, so that the state has no sum of large numbers."""
    real = jnp.finfo(like.dtype).dtype
    t, a = count.astype(real), scalar(offset, jnp.zeros((), real))
    # sum_{i <= t} (a + i)^2 = (t + 1) (a^2 + a t + t (2 t + 1) / 6)
    S = (t + 1) * (a * a + a * t + t * (2 * t + 1) / 6)
    return ((a + t) * (a + t) / S).astype(like.dtype)


register(
    local_sgd,
    form="strategy",
    paper=PAPER,
    collectives="replicas",
    example={"sync_every": 2},
)
register(quadratic_weighted_average, form="wrapper", paper=PAPER, words=1, example={"offset": 16.0})
