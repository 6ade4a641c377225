"""INNA and INNAprop: a damped inertial system with a term of Newton's method, by gradients alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import may_be_zero
from gradkit.engine.core import (
    at_count,
    check_decay_mask,
    counter,
    increment,
    optimizer,
    scalar,
    transformation,
    zeros,
)
from gradkit.leaves import Method, check_mask_form, resolve_mask
from gradkit.leaves.scopes import decay_here
from gradkit.transforms import scale_by_learning_rate
from gradkit.transforms.momenta import root_mean_square, weighted_momenta
from gradkit.types import Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "A second-order-like optimizer with adaptive gradient scaling for deep learning",
    "Bolte, Boustany, Pauwels, Purica",
    2024,
    "2410.05871",
)
INNA = Paper("An Inertial Newton Algorithm for Deep Learning", "Castera, Bolte, Févotte, Pauwels", 2019, "1905.12278")


class ScaleByInnaState(NamedTuple):
    """Number of updates made (None where no argument is a schedule), and the difference of psi from (1 - alpha beta)
    times the parameters."""

    count: Any
    shift: Any


def scale_by_inna(
    learning_rate: ScalarOrSchedule,
    *,
    alpha: Scalar = 0.1,
    beta: Scalar = 0.1,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of the inertial step of INNA, for a link of the same learning rate behind it.

    Equations, with g the incoming update and u the direction:

        y = (1 - learning_rate weight_decay) x                  the decay comes first: all that follows has y
        q = (alpha - 1 / beta) y + psi / beta                   psi_0 = (1 - alpha beta) x_0
        psi <- psi - learning_rate q
        u = weight_decay x + q + beta g

    The state holds the difference of psi from (1 - alpha beta) x, not psi: psi is about as large as the parameters, and
    its rounding errors would swamp a small velocity.

    Args:
      learning_rate: the step size of psi, >= 0 and below beta, or a schedule. The direction is not multiplied by it:
        the `scale_by_learning_rate` that follows does so, and must have the same learning rate.
      alpha: viscous damping, >= 0. Default 0.1; the INNA paper has 0.5.
      beta: Newtonian damping, > 0. Default 0.1 (INNA paper).
      weight_decay: decoupled decay >= 0, or a schedule; the inertial term has the decayed parameters. Default 0.
      weight_decay_mask: which leaves decay. Default all.

    Returns:
      A transformation that needs `params` where weights decay. State: 1 word per parameter, and a counter where an
      argument is a schedule. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; a constant learning rate not below beta.

    Example:
      >>> tx = optax.chain(scale_by_inna(0.1, alpha=0.5, beta=0.2), scale_by_learning_rate(0.1))
      >>> x = jnp.array(1.0)
      >>> state = tx.init(x)
      >>> for _ in range(2):
      ...     updates, state = tx.update(x, state, x)
      >>> round(float(updates), 4)  # the first step was 0.1 * 0.2 * 1, of which 0.018 / 0.2 go on
      -0.029

    Reference: Castera, Bolte, Févotte, Pauwels. An Inertial Newton Algorithm for Deep Learning. 2019, arXiv 1905.12278;
    with adaptive scaling: Bolte, Boustany, Pauwels, Purica. 2024, arXiv 2410.05871. The official code has psi itself
    as its state, and divides by beta - learning_rate: the same numbers.
    """
    beta_is_known = isinstance(beta, int | float) and beta > 0
    checks.real("beta", beta, "(0, inf)")
    checks.real("learning_rate", learning_rate, f"[0, {beta})" if beta_is_known else "[0, inf)", schedule=True)
    checks.real("alpha", alpha, "[0, inf)")
    checks.real("weight_decay", weight_decay, "[0, inf)", schedule=True)
    without_decay = isinstance(weight_decay, int | float) and weight_decay == 0
    check_mask_form(weight_decay_mask=weight_decay_mask)

    def init(params: optax.Params) -> ScaleByInnaState:
        check_decay_mask("scale_by_inna", weight_decay_mask, params)
        return ScaleByInnaState(counter(callable(learning_rate) or callable(weight_decay)), zeros(params))

    def update(updates: Any, state: ScaleByInnaState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        rate = at_count(learning_rate, state.count, "innaprop: learning_rate")
        decay = decay_here(at_count(weight_decay, state.count, "innaprop: weight_decay"))
        decayed = jax.tree.map(jnp.zeros_like, updates)
        if not without_decay:
            mask = resolve_mask(weight_decay_mask, updates)
            decayed = jax.tree.map(lambda z, x, on: scalar(decay, x) * x if on else z, decayed, params, mask)

        def rest(like: jax.Array) -> Any:
            return 1 - scalar(alpha, like) * scalar(beta, like)

        def velocity(r: jax.Array, w: jax.Array) -> jax.Array:
            return (r + rest(r) * scalar(rate, r) * w) / scalar(beta, r)

        q = jax.tree.map(velocity, state.shift, decayed)
        direction = jax.tree.map(lambda w, q, d: w + q + scalar(beta, d) * d, decayed, q, updates)

        def follow(r: jax.Array, q: jax.Array, u: jax.Array) -> jax.Array:
            return r + scalar(rate, r) * (rest(r) * u - q)

        shift = jax.tree.map(follow, state.shift, q, direction)
        return direction, ScaleByInnaState(increment(state.count), shift)

    return transformation("scale_by_inna", init, update, needs_params=not without_decay, complex_leaves=True)


def inna(
    learning_rate: ScalarOrSchedule,
    *,
    alpha: Scalar = 0.1,
    beta: Scalar = 0.1,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """INNA: an inertial method whose second damping follows the curvature.

    Equations:

        y = (1 - learning_rate weight_decay) x                  the decay comes first: all that follows has y
        q = (alpha - 1 / beta) y + psi / beta                   psi_0 = (1 - alpha beta) x_0
        psi <- psi - learning_rate q
        x <- y - learning_rate (q + beta g)

    As the learning rate goes to 0 this is  x'' + alpha x' + beta (Hessian x') + gradient = 0.

    Args:
      learning_rate: step size >= 0, below beta, or a schedule. The official code has 0.01.
      alpha: viscous damping, >= 0. Default 0.1 (code of INNAprop); the INNA paper has 0.5.
      beta: Newtonian damping, > 0. Default 0.1 (INNA paper).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.

    Returns:
      A transformation; with `weight_decay` it needs `params`. State: 1 word per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; a constant learning rate not below beta.

    Example:
      >>> tx = inna(0.05)
      >>> x = jnp.array(1.0)
      >>> round(float(tx.update(x, tx.init(x), x)[0]), 4)  # at rest, the first step is learning_rate beta g
      -0.005

    Reference: Castera, Bolte, Févotte, Pauwels. An Inertial Newton Algorithm for Deep Learning. 2019, arXiv 1905.12278.
    """
    return optimizer(
        Method("inna", learning_rate, weight_decay, weight_decay_mask),
        scale_by_inna(
            learning_rate, alpha=alpha, beta=beta, weight_decay=weight_decay, weight_decay_mask=weight_decay_mask
        ),
        scale_by_learning_rate(learning_rate),
    )


def scale_by_innaprop(
    learning_rate: ScalarOrSchedule,
    *,
    alpha: Scalar = 0.1,
    beta: Scalar = 0.9,
    sigma: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of INNAprop, for a link of the same learning rate behind it.

    Equations, with u the direction:

        v <- sigma v + (1 - sigma) |g|^2,   d = g / (sqrt(v / (1 - sigma^t)) + eps)
        y = (1 - learning_rate weight_decay) x                  the decay comes first: all that follows has y
        q = (alpha - 1 / beta) y + psi / beta                   psi_0 = (1 - alpha beta) x_0
        psi <- psi - learning_rate q
        u = weight_decay x + q + beta d

    Args:
      learning_rate: the step size of psi, >= 0 and below beta, or a schedule; see `scale_by_inna`.
      alpha: viscous damping, >= 0. Default 0.1.
      beta: Newtonian damping, > 0. Default 0.9. The paper advises (alpha, beta) = (0.1, 0.9) for a fast start and
        (2, 2) for the best end.
      sigma: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-8 (official code).
      weight_decay: decoupled decay >= 0, or a schedule; the inertial term has the decayed parameters. Default 0.
      weight_decay_mask: which leaves decay. Default all.

    Returns:
      A transformation that needs `params` where weights decay. State: 2 words per parameter and counters. Elementwise:
      no collective.

    Raises:
      ValueError: a hyperparameter outside its range; a constant learning rate not below beta.

    Example:
      >>> tx = scale_by_innaprop(0.1)
      >>> g = jnp.array([3.0, -0.2])
      >>> print(tx.update(g, tx.init(g))[0].round(4))  # beta times the sign
      [ 0.9 -0.9]

    Reference: Bolte, Boustany, Pauwels, Purica. A second-order-like optimizer with adaptive gradient scaling for deep
    learning. 2024, arXiv 2410.05871. Departures: those of `scale_by_inna`.
    """
    checks.real("sigma", sigma, "[0, 1)")
    root = root_mean_square(b2=sigma, eps=eps)
    scaled = weighted_momenta("scale_by_innaprop", (), 1.0, denominator=root, positive=not may_be_zero(eps))
    inertia = scale_by_inna(
        learning_rate, alpha=alpha, beta=beta, weight_decay=weight_decay, weight_decay_mask=weight_decay_mask
    )
    chain = optax.chain(scaled, inertia)
    return transformation("scale_by_innaprop", chain.init, chain.update, complex_leaves=True)


def innaprop(
    learning_rate: ScalarOrSchedule,
    *,
    alpha: Scalar = 0.1,
    beta: Scalar = 0.9,
    sigma: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.01,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """INNAprop: INNA's inertia over RMSProp's scaling; with alpha = beta = 1 it is AdamW with b1 = 0.

    Equations:

        v <- sigma v + (1 - sigma) |g|^2,   d = g / (sqrt(v / (1 - sigma^t)) + eps)
        y = (1 - learning_rate weight_decay) x                  the decay comes first: all that follows has y
        q = (alpha - 1 / beta) y + psi / beta                   psi_0 = (1 - alpha beta) x_0
        psi <- psi - learning_rate q
        x <- y - learning_rate (q + beta d)

    Args:
      learning_rate: step size >= 0, below beta, or a schedule. The official code has 1e-3.
      alpha: viscous damping, >= 0. Default 0.1.
      beta: Newtonian damping, > 0. Default 0.9. The paper advises (alpha, beta) = (0.1, 0.9) for a fast start and
        (2, 2) for the best end.
      sigma: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-8 (official code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.01 (official code).
      weight_decay_mask: which leaves decay. Default all.

    Returns:
      A transformation; with `weight_decay` it needs `params`. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; a constant learning rate not below beta.

    Example:
      >>> tx = innaprop(0.5, weight_decay=0.0)
      >>> x = jnp.array([2.0, -0.01])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.45  0.45]

    Reference: Bolte, Boustany, Pauwels, Purica. A second-order-like optimizer with adaptive gradient scaling for deep
    learning. 2024, arXiv 2410.05871.
    """
    link = scale_by_innaprop(
        learning_rate,
        alpha=alpha,
        beta=beta,
        sigma=sigma,
        eps=eps,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
    )
    described = Method("innaprop", learning_rate, weight_decay, weight_decay_mask)
    return optimizer(described, link, scale_by_learning_rate(learning_rate))


# The contract takes learning rates up to 0.5, which must stay below beta.
DAMPED, RATE = {"beta": 0.9}, {"learning_rate": 0.01}
register(scale_by_inna, form="primitive", paper=INNA, words=1, golden=("adaptive/inna",), example={**DAMPED, **RATE})
register(
    inna,
    form="optimizer",
    paper=INNA,
    words=1,
    golden=("adaptive/inna",),
    example=DAMPED,
    race=Race(3e-2),
)
register(scale_by_innaprop, form="primitive", paper=PAPER, words=2, golden=("adaptive/innaprop",), example=RATE)
register(
    innaprop,
    form="optimizer",
    paper=PAPER,
    words=2,
    golden=("adaptive/innaprop",),
    race=Race(5e-3),
)
