"""Shared RMSProp: the server has one second moment of the gradients of all workers."""

import optax

from gradkit.catalogue import Paper, Race, register
from gradkit.optimizers.adaptive import rmsprop
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper("Asynchronous Methods for Deep Reinforcement Learning", "Mnih et al.", 2016, "1602.01783")


def shared_rmsprop(
    learning_rate: ScalarOrSchedule, *, decay: Scalar = 0.99, eps: Scalar = 0.1
) -> optax.GradientTransformationExtraArgs:
    """The server of A3C: `gk.rmsprop` with eps under the root, applied to the gradients in the order of their arrival.

    Equations, for each arriving gradient g:

        v     <- decay v + (1 - decay) g^2
        theta <- theta - learning_rate g / sqrt(v + eps)

    It is the `server` of `simulate_events`, whose phase returns the gradient that a worker has summed up over its
    environment steps (5 in the paper) at the parameters that it read.

    Args:
      learning_rate: step size >= 0, or a schedule of the arrivals; the paper's falls linearly to 0.
      decay: of the second moment, in [0, 1). Default 0.99 (paper).
      eps: added under the root, >= 0. Default 0.1 (paper's supplement).

    Returns:
      A transformation. State: 1 word per parameter, on the server alone. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, g = shared_rmsprop(1.0, decay=0.75, eps=0.0), jnp.array([3.0])
      >>> print(tx.update(g, tx.init(g))[0].round(4))
      [-2.]

    Reference: Mnih et al. Asynchronous Methods for Deep Reinforcement Learning. 2016, arXiv 1602.01783. An arrival is
    atomic: the races of threads without locks are not reproduced. Their variant of one second moment per worker is
    `gk.rmsprop` within the phase.
    """
    return rmsprop(learning_rate, decay=decay, eps=eps, eps_in_sqrt=True)


register(
    shared_rmsprop,
    form="optimizer",
    paper=PAPER,
    delay="any, as it is",
    words=1,
    race=Race(5e-3),
    notes="of a server that workers reach one by one",
)
