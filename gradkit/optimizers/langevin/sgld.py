"""Stochastic gradient Langevin dynamics: gradient descent that samples from the posterior."""

import optax

from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import optimizer
from gradkit.leaves import Method
from gradkit.transforms import add_langevin_noise, scale_by_learning_rate
from gradkit.types import Key, Scalar, ScalarOrSchedule

PAPER = Paper("Bayesian Learning via Stochastic Gradient Langevin Dynamics", "Welling, Teh", 2011)
NOT_STACKED = {
    "stacked": "the noise of ten layers in one leaf has the distribution of that of ten leaves, not its values"
}


def sgld(
    learning_rate: ScalarOrSchedule, *, temperature: Scalar = 1.0, num_data: Scalar = 1.0, key: Key | None = None
) -> optax.GradientTransformationExtraArgs:
    """Stochastic gradient Langevin dynamics: samples of the posterior, from gradients of minibatches (SGLD).

    Equation:

        x <- x - learning_rate_t g_t + sqrt(2 learning_rate_t temperature / num_data) xi,    xi ~ N(0, I)

    g is the gradient of the MEAN loss over num_data examples, with the prior in it as -log prior / num_data. With the
    step e = 2 learning_rate / num_data this is the form of the textbooks,
    x + (e / 2) (grad log prior + num_data mean grad log likelihood) + N(0, e). Common mistakes elsewhere are noise in
    proportion to the learning rate instead of its root, a missing num_data, and a missing prior. At a constant learning
    rate the loss a x^2 / 2 has the stationary variance temperature / (num_data a (1 - learning_rate a / 2)).

    Args:
      learning_rate: step size > 0, or a schedule; the noise has the learning rate of the same step.
      temperature: factor of the variance of the noise, >= 0. Default 1: the posterior. 0 is gradient descent.
      num_data: number of examples of the complete data, >= 1. Default 1: the loss is the energy itself.
      key: a typed key or integer, from which the noise of all steps follows. Default None: `update` needs `key=`.

    Returns:
      A transformation that needs the extra argument `key`, unless it is given here. State: a key, and two counters
      where the rate is a schedule. Elementwise: no collective; replicas must have the same key.

    Raises:
      ValueError: a hyperparameter outside its range; a missing key; complex leaves.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = sgld(0.5, temperature=0.0, key=0)
      >>> x = jnp.array(1.0)
      >>> float(tx.update(x, tx.init(x), x)[0])
      -0.5

    Reference: Welling, Teh. Bayesian Learning via Stochastic Gradient Langevin Dynamics. 2011. As there, no step is
    rejected: learning rates must fall, or a bias of their order remains.
    """
    return optimizer(
        Method("sgld", learning_rate),
        scale_by_learning_rate(learning_rate),
        add_langevin_noise(learning_rate, temperature=temperature, num_data=num_data, key=key),
    )


register(
    sgld,
    form="optimizer",
    paper=PAPER,
    needs=("key",),
    example={"num_data": 1_000_000},
    opt_outs=NOT_STACKED,
    race=Race(1e-1, {"num_data": 1_000_000}),
    notes="a sampler: num_data is the number of examples that the loss is a mean over",
)
