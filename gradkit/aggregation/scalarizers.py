"""Scalarizers: the losses of all tasks into one number, whose gradient is a weighted sum of the tasks' gradients.

With a function s of the losses L_1 ... L_m, the gradient of s(L(x)) is  sum_i (ds / dL_i) g_i:  one backward pass.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_losses
from gradkit.aggregation.preferences import check_vector, vector_of
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.types import Scalar

STCH = Paper("Smooth Tchebycheff Scalarization for Multi-Objective Optimization", "Lin et al.", 2024, "2402.19078")
GEOMETRIC = Paper(
    "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task Learning",
    "Chennupati et al.", 2019, "1904.08492",
)  # fmt: skip
COSMOS = Paper("Scalable Pareto Front Approximation for Deep Multi-Objective Learning", "Ruchte, Grabocka", 2021,
               "2103.13392")  # fmt: skip
PBI = Paper("MOEA/D: A Multiobjective Evolutionary Algorithm Based on Decomposition", "Zhang, Li", 2007)


def of_scalar(method: str, value: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformationExtraArgs:
    """An aggregator whose weights are the derivative of a function of the losses, (m,) -> scalar."""

    def weigh(losses: jax.Array, state: Any, **extra: Any) -> tuple[jax.Array, Any]:
        del extra
        return jax.grad(value)(losses.astype(wide_dtype(losses.dtype))), state

    return weights_of_losses(method, weigh)


def norm(x: jax.Array) -> jax.Array:
    """The norm, with a derivative at 0: as if it were 1e-8 there."""
    return jnp.sqrt(jnp.sum(jnp.square(x)) + 1e-16)


def stch_value(L: jax.Array, weights: jax.Array, reference: jax.Array, mu: Any) -> jax.Array:
    """The smooth Tchebycheff value of the losses."""
    mu = jnp.asarray(mu, L.dtype)
    return mu * jax.nn.logsumexp(weights * (L - reference) / mu)


def cosmos_value(L: jax.Array, weights: jax.Array, lambda_: Any) -> jax.Array:
    """The weighted sum of the losses, less their cosine with the weights."""
    cosine = jnp.dot(weights, L, precision="highest") / (norm(weights) * norm(L))
    return jnp.sum(weights * L) - jnp.asarray(lambda_, L.dtype) * cosine


def pbi_value(L: jax.Array, weights: jax.Array, reference: jax.Array, theta: Any) -> jax.Array:
    """The distance along the ray of the weights, and the distance from it."""
    f, ray = L - reference, weights / norm(weights)
    along = jnp.dot(f, ray, precision="highest")
    away = jnp.sqrt(jnp.sum(jnp.square(f - along * ray)) + jnp.asarray(1e-12, L.dtype))
    return along + jnp.asarray(theta, L.dtype) * away


def stch(*, mu: Scalar = 0.1, weights: Any = None, reference: Any = None) -> optax.GradientTransformationExtraArgs:
    """Smooth Tchebycheff scalarization: nearly the largest of the weighted losses, and smooth.

        s(L) = mu log sum_i exp(lam_i (L_i - z_i) / mu)
        result = sum_i (ds / dL_i) g_i,      ds / dL_i = lam_i softmax(lam (L - z) / mu)_i

    Args:
      mu: smoothness, > 0, in the unit of lam (L - z): the limit 0 is the largest alone. Default 0.1 (torchjd).
      weights: lam, m numbers >= 0. Default 1 / m each.
      reference: z, m finite numbers: the best value that each loss can have. Default 0 each.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; `update` needs
      `losses`, which every loop has. No state. One backward pass; nothing moves between devices.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, no losses, another number of tasks,
        leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = stch(mu=0.01, weights=[1.0, 1.0])
      >>> print(tx.update(jnp.eye(2), tx.init(jnp.zeros(2)), losses=jnp.array([1.0, 2.0]))[0])
      [0. 1.]

    Reference: Lin et al. Smooth Tchebycheff Scalarization for Multi-Objective Optimization. 2024, arXiv 2402.19078.
    """
    checks.real("mu", mu, "(0, inf)")
    check_vector("weights", weights, positive=True)
    check_vector("reference", reference)

    def value(L: jax.Array) -> jax.Array:
        lam = vector_of("stch", "weights", weights, len(L), L.dtype)
        return stch_value(L, lam, vector_of("stch", "reference", reference, len(L), L.dtype, 0.0), mu)

    return of_scalar("stch", value)


def geometric_mean_loss() -> optax.GradientTransformationExtraArgs:
    """The geometric mean of the losses: the scale of a loss does not matter.

        s(L) = (L_1 L_2 ... L_m)^(1 / m)
        result = sum_i s / (m L_i) g_i

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; `update` needs
      `losses`, which every loop has; they must be positive, and others give NaN. No state. One backward pass; nothing
      moves between devices.

    Raises:
      ValueError: no losses, another number of tasks, leading axes that differ or are missing, gradients that do not
        match the parameters.

    Example:
      >>> tx = geometric_mean_loss()
      >>> u = tx.update(jnp.eye(2), tx.init(jnp.zeros(2)), losses=jnp.array([1.0, 4.0]))[0]  # of geometric mean 2
      >>> [round(float(x), 4) for x in u]
      [1.0, 0.25]

    Reference: Chennupati et al. MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task
    Learning. 2019, arXiv 1904.08492.
    """
    return of_scalar("geometric_mean_loss", lambda L: jnp.exp(jnp.mean(jnp.log(L))))


def cosmos(*, lambda_: Scalar = 0.5, weights: Any = None) -> optax.GradientTransformationExtraArgs:
    """COSMOS: the weighted sum of the losses, drawn towards the ray of the weights by their cosine.

        s(L) = r . L - lambda_ (r . L) / (|r| |L|)
        result = sum_i (ds / dL_i) g_i

    Args:
      lambda_: weight of the cosine, >= 0. Default 0.5. The paper tunes it per data set, from 1 to 8.
      weights: r, m numbers >= 0. Default 1 / m each; the paper draws them anew for every batch.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; `update` needs
      `losses`, which every loop has. No state. One backward pass; nothing moves between devices. A weight may be
      negative where losses are small.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, no losses, another number of tasks,
        leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = cosmos(lambda_=0.0)
      >>> print(tx.update(jnp.eye(2), tx.init(jnp.zeros(2)), losses=jnp.array([1.0, 4.0]))[0])
      [0.5 0.5]

    Reference: Ruchte, Grabocka. Scalable Pareto Front Approximation for Deep Multi-Objective Learning. 2021,
    arXiv 2103.13392. The loss alone; that the network is told r is up to the user.
    """
    checks.real("lambda_", lambda_, "[0, inf)")
    check_vector("weights", weights, positive=True)
    return of_scalar(
        "cosmos", lambda L: cosmos_value(L, vector_of("cosmos", "weights", weights, len(L), L.dtype), lambda_)
    )


def pbi(*, theta: Scalar = 5.0, weights: Any = None, reference: Any = None) -> optax.GradientTransformationExtraArgs:
    """Penalty-based boundary intersection: along the ray of the weights, and not away from it.

        f = L - z,   u = weights / |weights|,   d1 = f . u
        s(L) = d1 + theta sqrt(|f - d1 u|^2 + 1e-12)
        result = sum_i (ds / dL_i) g_i

    Args:
      theta: penalty of the distance from the ray, >= 0. Default 5 (paper).
      weights: m numbers >= 0, the direction of the ray. Default equal ones.
      reference: z, m finite numbers, where the ray begins. Default 0 each.

    Returns:
      A transformation whose updates come in with a leading axis of length m and leave without it; `update` needs
      `losses`, which every loop has. No state. One backward pass; nothing moves between devices. Far from the ray the
      weight of a loss that is too small is negative: that loss rises.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, no losses, another number of tasks,
        leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = pbi(theta=0.0, weights=[3.0, 4.0])
      >>> u = tx.update(jnp.eye(2), tx.init(jnp.zeros(2)), losses=jnp.array([1.0, 4.0]))[0]
      >>> [round(float(x), 4) for x in u]
      [0.6, 0.8]

    Reference: Zhang, Li. MOEA/D: A Multiobjective Evolutionary Algorithm Based on Decomposition. 2007. The paper has it
    for evolution; 1e-12 under the root gives it a derivative on the ray, as torchjd.
    """
    checks.real("theta", theta, "[0, inf)")
    check_vector("weights", weights, positive=True)
    check_vector("reference", reference)

    def value(L: jax.Array) -> jax.Array:
        ray = vector_of("pbi", "weights", weights, len(L), L.dtype)
        return pbi_value(L, ray, vector_of("pbi", "reference", reference, len(L), L.dtype, 0.0), theta)

    return of_scalar("pbi", value)


GOLDEN = ("estimators/scalarizers",)
register(stch, form="aggregator", paper=STCH, needs=("losses",), golden=GOLDEN)
register(geometric_mean_loss, form="aggregator", paper=GEOMETRIC, needs=("losses",), golden=GOLDEN)
register(cosmos, form="aggregator", paper=COSMOS, needs=("losses",), golden=GOLDEN)
register(pbi, form="aggregator", paper=PBI, needs=("losses",), golden=GOLDEN)
