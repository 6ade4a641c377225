"""How often data sets of very different sizes are drawn: by temperature, or by the weights that stand for it."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper("Upsample or Upweight? Balanced Training on Heavily Imbalanced Datasets", "Li et al.", 2024, "2410.04579")


def _log_probs(sizes: Any, tau: Any) -> jax.Array:
    checks.real("tau", tau, "(0, inf]")
    sizes = jnp.asarray(sizes)
    if sizes.ndim != 1 or not sizes.size or jnp.issubdtype(sizes.dtype, jnp.complexfloating):
        raise ValueError(f"sizes must be numbers of shape (data sets,), got {sizes.dtype} of shape {sizes.shape}")
    if not isinstance(sizes, jax.core.Tracer) and not bool((sizes > 0).all()):
        raise ValueError("sizes must be positive, got one that is not; leave out data sets without examples")
    logs = jnp.log(sizes.astype(float))
    return jax.nn.log_softmax(logs / jnp.asarray(tau).astype(logs.dtype))


def temperature_probs(sizes: Any, tau: ScalarOrSchedule) -> jax.Array:
    """How often each data set is drawn at a temperature.

        p_i = |D_i|^(1/tau) / sum_j |D_j|^(1/tau)        tau = 1: in proportion to sizes; tau = infinity: all alike

    Args:
      sizes: of the data sets, > 0, (data sets,); up to 1e12 and more: computed from logarithms. May be traced.
      tau: > 0, also infinity; a number, or traced: `gk.schedules.cooldown` changes it over a run.

    Returns:
      Probabilities, (data sets,).

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(temperature_probs(jnp.array([900.0, 100.0]), 2.0))  # 30 to 10
      [0.75 0.25]

    Reference: Li et al. Upsample or Upweight? Balanced Training on Heavily Imbalanced Datasets. 2024, arXiv 2410.04579.
    """
    checks.arrays(sizes=sizes)
    return jnp.exp(_log_probs(sizes, tau))


def scalarization_weights(sizes: Any, tau: Scalar) -> jax.Array:
    """The weights of losses that stand for a temperature where data are drawn in proportion to sizes.

        w_i = p_i(tau) / p_i(1),        sum_i p_i(1) w_i = 1

    The mean gradient is that of sampling at tau, its variance is larger: by sum_i p_i(tau)^2 / p_i(1) >= 1 where all
    data sets have the same second moment.

    Args:
      sizes: of the data sets, > 0, (data sets,). May be traced.
      tau: > 0, also infinity; a number, or traced.

    Returns:
      Weights, (data sets,).

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(scalarization_weights(jnp.array([900.0, 100.0]), 2.0).round(4))  # 0.75 / 0.9, 0.25 / 0.1
      [0.8333 2.5   ]

    Reference: Li et al. Upsample or Upweight? Balanced Training on Heavily Imbalanced Datasets. 2024, arXiv 2410.04579.
    """
    checks.arrays(sizes=sizes)
    return jnp.exp(_log_probs(sizes, tau) - _log_probs(sizes, 1.0))


EXAMPLE = {"sizes": (900.0, 100.0), "tau": 2.0}
register(temperature_probs, form="function", paper=PAPER, example=EXAMPLE)
register(scalarization_weights, form="function", paper=PAPER, example=EXAMPLE)
