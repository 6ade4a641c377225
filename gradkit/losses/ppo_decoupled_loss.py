"""PPO with separate behavior and proximal policies."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.types import Scalar

PAPER = Paper("Batch size-invariance for policy optimization", "Hilton, Cobbe, Schulman", 2021, "2110.00641")


def _wide(ratio_max: Any, **given: Any) -> list[jax.Array]:
    """The arrays in float32 or wider, with lp_behavior increased where the ratio would exceed `ratio_max`."""
    arrays = {name: jnp.asarray(x) for name, x in given.items()}
    shapes = {name: x.shape for name, x in arrays.items()}
    if len({*shapes.values()}) != 1:
        raise ValueError(f"log-probabilities and advantages must have one shape, got {shapes}")
    for name, x in arrays.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating point, got {x.dtype}")
    dtype = max((wide_dtype(x.dtype) for x in arrays.values()), key=lambda d: d.itemsize)
    lp, behavior, proximal, advantages = (x.astype(dtype) for x in arrays.values())
    behavior, proximal, advantages = map(jax.lax.stop_gradient, (behavior, proximal, advantages))
    log_max = jnp.log(jnp.asarray(ratio_max, dtype))
    return [lp, jnp.maximum(behavior, jax.lax.stop_gradient(lp) - log_max), proximal, advantages]


def ppo_decoupled_loss(
    log_prob: Any,
    behavior_log_prob: Any,
    proximal_log_prob: Any,
    advantages: Any,
    *,
    epsilon: Scalar = 0.2,
    ratio_max: Scalar = 100.0,
) -> jax.Array:
    """PPO's clipped loss, with a behavior policy for the importance weights and a proximal policy for the step.

    Equations, with log-probabilities lp of the actions under the policy, lp_behavior under the one that chose them,
    lp_proximal under the one that limits the step, and advantages A:

        lp_behavior <- max(lp_behavior, stop_gradient(lp) - log(ratio_max))
        near = clip(lp - lp_proximal, log(1 - epsilon), log(1 + epsilon)) + lp_proximal
        loss = mean(max(-A exp(lp - lp_behavior), -A exp(near - lp_behavior)))

    With both policies the same this is PPO. To make training invariant to the batch size, the proximal policy is a
    running mean of the parameters, `gk.proximal_ewma`: with batches c times smaller, Adam's learning rate is sqrt(c)
    times smaller (SGD's c times), and the mean extends over c times as many steps.

    Args:
      log_prob: lp, floating point of any shape; what is differentiated.
      behavior_log_prob: log-probabilities under the policy that chose the actions, same shape.
      proximal_log_prob: log-probabilities under the policy that limits the step, same shape.
      advantages: A, same shape; usually with mean 0 and variance 1.
      epsilon: largest difference of the ratio to the proximal policy from 1, in (0, 1). Default 0.2.
      ratio_max: largest ratio to the behavior policy, > 0. Default 100 (official code).

    Returns:
      A scalar in float32 or wider, to be minimised. No gradient flows into anything but `log_prob`.

    Raises:
      ValueError: shapes that differ, arrays that are not floating point, a hyperparameter outside its range.

    Example:
      >>> lp = jnp.log(jnp.array([0.5, 0.9]))
      >>> old, A = jnp.log(jnp.array([0.5, 0.5])), jnp.array([1.0, 1.0])
      >>> round(float(ppo_decoupled_loss(lp, old, old, A)), 4)  # -(1 + 1.2) / 2: the second is clipped
      -1.1

    Reference: Hilton, Cobbe, Schulman. Batch size-invariance for policy optimization. 2021, arXiv 2110.00641.
    """
    checks.arrays(
        log_prob=log_prob,
        behavior_log_prob=behavior_log_prob,
        proximal_log_prob=proximal_log_prob,
        advantages=advantages,
    )
    checks.real("epsilon", epsilon, "(0, 1)")
    checks.real("ratio_max", ratio_max, "(0, inf]")
    lp, behavior, proximal, A = _wide(
        ratio_max,
        log_prob=log_prob,
        behavior_log_prob=behavior_log_prob,
        proximal_log_prob=proximal_log_prob,
        advantages=advantages,
    )
    e = jnp.asarray(epsilon, lp.dtype)
    near = jnp.clip(lp - proximal, jnp.log1p(-e), jnp.log1p(e)) + proximal
    return jnp.mean(jnp.maximum(-A * jnp.exp(lp - behavior), -A * jnp.exp(near - behavior)))


def ppo_decoupled_kl_loss(
    log_prob: Any,
    behavior_log_prob: Any,
    proximal_log_prob: Any,
    advantages: Any,
    *,
    kl_coefficient: Scalar = 1.0,
    ratio_max: Scalar = 100.0,
) -> jax.Array:
    """PPO's penalized loss, with a behavior policy for the importance weights and a proximal policy for the step.

    Equations: those of `ppo_decoupled_loss`, with another loss:

        loss = mean(-A exp(lp - lp_behavior)) + kl_coefficient / 2 mean((lp - lp_proximal)^2)

    Half the mean square of a difference of log-probabilities is the Kullback-Leibler divergence to second order.

    Args:
      log_prob: lp, floating point of any shape; what is differentiated.
      behavior_log_prob: log-probabilities under the policy that chose the actions, same shape.
      proximal_log_prob: log-probabilities under the policy that limits the step, same shape.
      advantages: A, same shape.
      kl_coefficient: weight of the penalty, >= 0. Default 1.
      ratio_max: largest ratio to the behavior policy, > 0. Default 100 (official code).

    Returns:
      A scalar in float32 or wider, to be minimised. No gradient flows into anything but `log_prob`.

    Raises:
      ValueError: shapes that differ, arrays that are not floating point, a hyperparameter outside its range.

    Example:
      >>> lp, old, A = jnp.zeros(2), jnp.zeros(2), jnp.array([1.0, 1.0])
      >>> float(ppo_decoupled_kl_loss(lp, old, old - 2, A, kl_coefficient=0.5))  # -1 + 0.5 / 2 * 4
      0.0

    Reference: Hilton, Cobbe, Schulman. 2021, arXiv 2110.00641.
    """
    checks.arrays(
        log_prob=log_prob,
        behavior_log_prob=behavior_log_prob,
        proximal_log_prob=proximal_log_prob,
        advantages=advantages,
    )
    checks.real("kl_coefficient", kl_coefficient, "[0, inf)")
    checks.real("ratio_max", ratio_max, "(0, inf]")
    lp, behavior, proximal, A = _wide(
        ratio_max,
        log_prob=log_prob,
        behavior_log_prob=behavior_log_prob,
        proximal_log_prob=proximal_log_prob,
        advantages=advantages,
    )
    penalty = jnp.mean(jnp.square(lp - proximal)) / 2
    return jnp.mean(-A * jnp.exp(lp - behavior)) + jnp.asarray(kl_coefficient, lp.dtype) * penalty


register(ppo_decoupled_loss, form="layer", paper=PAPER)
register(ppo_decoupled_kl_loss, form="layer", paper=PAPER)
