"""diffGrad: Adam with friction where the gradient does not change."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import inside, optimizer, transformation, zeros
from gradkit.leaves import Method
from gradkit.transforms import add_decayed_weights, scale_by_adam, scale_by_learning_rate
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("diffGrad: An Optimization Method for Convolutional Neural Networks", "Dubey et al.", 2019, "1909.11015")


class ScaleByGradientChangeState(NamedTuple):
    """The gradient of the step before, and the state of the inner transformation."""

    before: Any
    inner: Any


def scale_by_gradient_change(
    inner: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Shortens an inner direction, coordinate by coordinate, by up to a half where the gradient stays the same.

    Equations, with d_t the direction that `inner` makes of g_t:

        xi_t = 1 / (1 + exp(-|g_{t-1} - g_t|)),   g_0 = 0                in [1/2, 1)
        u_t = xi_t d_t

    Args:
      inner: the transformation that gives the direction. Default None: the direction is the gradient.

    Returns:
      A transformation. State: 1 word per parameter (the gradient of the step before) and the inner state. Elementwise:
      no collective.

    Raises:
      ValueError: complex leaves.

    Example:
      >>> tx = scale_by_gradient_change()
      >>> g = jnp.array([1.0, 64.0])
      >>> first, state = tx.update(g, tx.init(g))
      >>> print(first.round(3), tx.update(g, state)[0])  # all of it after a large change, a half after none
      [ 0.731 64.   ] [ 0.5 32. ]

    Reference: Dubey et al. diffGrad: An Optimization Method for Convolutional Neural Networks. 2019, arXiv
    1909.11015. The authors' first code, with which the paper's figures were made, compares every gradient with itself:
    there xi is always 1/2. Here, as in the paper and in their second code, the previous gradient is part of the state.
    """
    direction = inside(optax.identity() if inner is None else inner)

    def init(params: optax.Params) -> ScaleByGradientChangeState:
        return ScaleByGradientChangeState(zeros(params), direction.init(params))

    def update(
        updates: Any, state: ScaleByGradientChangeState, params: Any = None, **extra: Any
    ) -> tuple[Any, ScaleByGradientChangeState]:
        u, inner_state = direction.update(updates, state.inner, params, **extra)

        def friction(u: jax.Array, before: jax.Array, g: jax.Array) -> jax.Array:
            return jax.nn.sigmoid(jnp.abs(before - g)) * u

        u = jax.tree.map(friction, u, state.before, updates)
        return u, ScaleByGradientChangeState(updates, inner_state)

    return transformation("scale_by_gradient_change", init, update)


def diffgrad(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    l2: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam whose steps are shortened, by up to a half, where the gradient no longer changes.

    Equations, where g_t is the gradient plus l2 x_{t-1}:

        m_t = b1 m_{t-1} + (1 - b1) g_t            v_t = b2 v_{t-1} + (1 - b2) g_t^2
        xi_t = 1 / (1 + exp(-|g_{t-1} - g_t|)),    g_0 = 0                         in [1/2, 1)
        u_t = xi_t (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t)) + eps)
        x_t = x_{t-1} - learning_rate (u_t + weight_decay x_{t-1})

    |g_{t-1} - g_t| is in the gradient's units: where those are small, xi is close to 1/2 everywhere, and this is Adam
    with half the learning rate.

    Args:
      learning_rate: step size >= 0, or a schedule. The official code has 1e-3.
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-8 (official code).
      l2: coefficient of the L2 penalty, >= 0: part of both gradients that are compared. Default 0.
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay, by `l2` and by `weight_decay`. Default all.
      mu_dtype: dtype in which the first moment is kept. Default float32.

    Returns:
      A transformation; with `l2` or `weight_decay` it needs `params`. State: 3 words per parameter. Elementwise: no
      collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> tx = diffgrad(0.5)
      >>> x = jnp.array([100.0, -1.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.5     0.3655]

    Reference: Dubey et al. diffGrad: An Optimization Method for Convolutional Neural Networks. 2019, arXiv
    1909.11015. eps is added after bias correction; the official code adds it before.
    """
    checks.real("l2", l2, "[0, inf)")
    return optimizer(
        Method("diffgrad", learning_rate, weight_decay, weight_decay_mask),
        add_decayed_weights(l2, weight_decay_mask=weight_decay_mask),
        scale_by_gradient_change(scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype)),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


GOLDEN = ("adaptive/diffgrad",)
register(scale_by_gradient_change, form="wrapper", wraps="direction", paper=PAPER, words=1, golden=GOLDEN)
register(diffgrad, form="optimizer", paper=PAPER, words=3, golden=GOLDEN)
