"""Stochastic gradient descent, with momentum in its two forms, and Nesterov's accelerated gradient."""

from typing import Any

import jax
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import optimizer, scalar
from gradkit.leaves import Method
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate, shifted_parameters, trace
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("An overview of gradient descent optimization algorithms", "Ruder", 2016, "1609.04747")


def _refuse_nesterov_alone(name: str, momentum: Any, nesterov: bool) -> None:
    if nesterov and checks.absent(momentum):
        raise ValueError(
            f"{name} must be in (0, 1] with nesterov=True, got {momentum}; write momentum=0.9, or nesterov=False"
        )


def sgd(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Scalar | None = None,
    dampening: Scalar | None = None,
    nesterov: bool = False,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with optional momentum, the learning rate outside the momentum.

    Equations, where g_t is the gradient plus weight_decay x_{t-1}:

        v_t = momentum v_{t-1} + (1 - dampening) g_t,   v_1 = g_1
        x_t = x_{t-1} - learning_rate(t) v_t,   or with nesterov  g_t + momentum v_t for v_t

    A change of the learning rate rescales the momentum too; while it is constant, this is `gk.momentum`.

    Args:
      learning_rate: step size >= 0, or a schedule.
      momentum: decay of the momentum, in [0, 1]. Default None: plain descent without state, as with 0.
      dampening: share of every gradient except the first that is left out, in [0, 1). Default None: no share, as with
        0.
      nesterov: whether to look ahead. Default False.
      weight_decay: coefficient of the L2 penalty, >= 0: added to the gradient, before the momentum. Default 0.
      weight_decay_mask: which leaves are penalised. Default all.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation. State: 1 word per parameter, none without momentum. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; Nesterov or dampening without momentum.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = sgd(0.1, momentum=0.9)
      >>> x = jnp.array(1.0)
      >>> round(float(tx.update(x, tx.init(x), x)[0]), 4)
      -0.1

    Reference: Ruder. An overview of gradient descent optimization algorithms. 2016, arXiv 1609.04747;
    Sutskever et al. 2013. The conventions are those of torch's SGD; optax's has no dampening.
    """
    checks.real("momentum", momentum, "[0, 1]", optional=True)
    _refuse_nesterov_alone("momentum", momentum, nesterov)
    plain = checks.absent(momentum)
    if plain and not checks.absent(dampening):
        raise ValueError(
            f"dampening must be 0 without momentum, got {dampening}; write momentum=0.9, or leave dampening out"
        )
    kept = (
        []
        if plain or momentum is None
        else [trace(momentum, dampening=dampening, nesterov=nesterov, mu_dtype=mu_dtype)]
    )
    return optimizer(
        Method("sgd", learning_rate, weight_decay, weight_decay_mask),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        *kept,
        scale_by_learning_rate(learning_rate),
    )


def momentum(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Scalar = 0.9,
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with momentum, the learning rate inside the momentum (the classical form).

    Equations:

        v_t = momentum v_{t-1} + learning_rate(t) g_t
        x_t = x_{t-1} - v_t,   or with nesterov  learning_rate(t) g_t + momentum v_t for v_t

    A change of the learning rate acts on new gradients only: earlier ones keep the learning rate that they entered the
    momentum with.

    Args:
      learning_rate: step size >= 0, or a schedule.
      momentum: decay of the momentum, in [0, 1]. Default 0.9.
      nesterov: whether to look ahead: x_t = x_{t-1} - (learning_rate g_t + momentum v_t). Default False.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation. State: 1 word per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = momentum(0.1, momentum=0.5)
      >>> x = jnp.array(1.0)
      >>> _, state = tx.update(x, tx.init(x), x)
      >>> round(float(tx.update(x, state, x)[0]), 4)
      -0.15

    Reference: Polyak. Some methods of speeding up the convergence of iteration methods. 1964; Ruder. An
    overview of gradient descent optimization algorithms. 2016, arXiv 1609.04747.
    """
    checks.real("momentum", momentum, "[0, 1]")
    _refuse_nesterov_alone("momentum", momentum, nesterov)
    return optimizer(
        Method("momentum", learning_rate),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov=nesterov, mu_dtype=mu_dtype),
    )


def nag(
    learning_rate: ScalarOrSchedule, *, momentum: Scalar = 0.9, mu_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Nesterov's accelerated gradient: the gradient is taken where the momentum alone would lead.

    Equations:

        v_t = momentum v_{t-1} + learning_rate(t) (gradient at x_{t-1} - momentum v_{t-1})
        x_t = x_{t-1} - v_t

    The user's parameters are y_t = x_t - momentum v_t, where the next gradient is taken; those to evaluate and save are
    x = `gk.eval_params(state, params)`. y_t is the x_t of `gk.momentum` with `nesterov=True`.

    Args:
      learning_rate: step size >= 0, or a schedule.
      momentum: decay of the momentum, in [0, 1]. Default 0.9.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> from gradkit.transforms import eval_params
      >>> tx = nag(0.5, momentum=0.5)
      >>> y = jnp.array(1.0)
      >>> updates, state = tx.update(y, tx.init(y), y)
      >>> y = y + updates
      >>> float(y), float(eval_params(state, y))
      (0.25, 0.5)

    Reference: Nesterov. A method for solving the convex programming problem with convergence rate O(1/k^2). 1983;
    Ruder. An overview of gradient descent optimization algorithms. 2016, arXiv 1609.04747.
    """
    checks.real("momentum", momentum, "[0, 1]")
    inner = optax.chain(scale_by_learning_rate(learning_rate), trace(momentum, mu_dtype=mu_dtype))
    ahead = lambda u: jax.tree.map(lambda x: scalar(momentum, x) * x, u)  # noqa: E731
    return optimizer(Method("nag", learning_rate), shifted_parameters(inner, ahead))


register(
    sgd,
    form="optimizer",
    paper=PAPER,
    words=1,
    golden=("adaptive/sgd",),
    example={"momentum": 0.9},
    race=Race(1e-1),
    variants={"nesterov": Race(1e-1, {"momentum": 0.9, "nesterov": True})},
)
register(
    momentum,
    form="optimizer",
    paper=PAPER,
    words=1,
    race=Race(1e-1),
)
register(
    nag,
    form="optimizer",
    paper=PAPER,
    words=2,
    race=Race(1e-1),
)
