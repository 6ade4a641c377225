"""The tuned baseline of large batches: Nesterov's momentum with a warm-up and a quadratic decay."""

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import at_count, optimizer
from gradkit.leaves import Method
from gradkit.schedules import warmup_polynomial_schedule
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate, trace
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule


def nesterov_large_batch(
    learning_rate: ScalarOrSchedule,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    momentum: Scalar = 0.9,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Mask | None = None,
    init_factor: Scalar = 0.0,
    end_factor: Scalar = 0.0,
    power: Scalar = 2.0,
    warmup_power: Scalar = 1.0,
    decay_end: int = -1,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Nesterov's momentum under the schedule of LARS.

    Equations, with factor(t) the `gk.schedules.warmup_polynomial_schedule` whose peak is 1:

        d_t = g_t + weight_decay w_{t-1}
        v_t = momentum v_{t-1} + d_t
        w_t = w_{t-1} - learning_rate factor(t) (d_t + momentum v_t)

    Args:
      learning_rate: peak of the learning rate, >= 0. A schedule is multiplied by the factor as well.
      total_steps: steps of the run, >= `warmup_steps` and >= 1.
      warmup_steps: steps of the warm-up, >= 0. Default 0: none.
      momentum: decay of the momentum, in (0, 1]. Default 0.9; the paper tunes 1 - momentum on a logarithmic scale.
      weight_decay: coefficient of the L2 penalty, >= 0: added to the gradient, before the momentum. Default 0.
      weight_decay_mask: which leaves are penalised. Default all, also those of normalisation.
      init_factor: learning rate of the first step divided by the peak, >= 0. Default 0.
      end_factor: last learning rate divided by the peak, >= 0. Default 0.
      power: power of the decay, > 0. Default 2, as in the recipe of LARS.
      warmup_power: power of the warm-up, > 0. Default 1.
      decay_end: step from which the learning rate is constant, > 0. Default -1: no such step.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = nesterov_large_batch(0.5, total_steps=3, momentum=0.5)  # D = 4
      >>> x = jnp.array(1.0)
      >>> updates, state = tx.update(x, tx.init(x), x)
      >>> float(updates), float(tx.update(0 * x, state, x)[0])  # -0.5 (1 + 0.5), -0.5 (3/4)^2 0.5 0.5
      (-0.75, -0.0703125)

    Reference: Nado et al. A Large Batch Optimizer Reality Check: Traditional, Generic Optimizers Suffice Across Batch
    Sizes. 2021, arXiv 2102.06356. The paper tunes peak, length of the warm-up, momentum, weight decay, label smoothing
    and the initial scale of the last normalisation of a block; a comparison with LARS is fair if both are tuned alike.
    """
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.real("momentum", momentum, "(0, 1]")
    for name, value in (("init_factor", init_factor), ("end_factor", end_factor)):
        checks.real(name, value, "[0, inf)")
    factor = warmup_polynomial_schedule(
        1.0,
        warmup_steps=warmup_steps,
        total_steps=total_steps,
        init_value=init_factor,
        end_value=end_factor,
        power=power,
        warmup_power=warmup_power,
        decay_end=decay_end,
    )

    def rate(count: jax.Array) -> jax.Array:
        now = factor(count)
        return (
            jnp.asarray(at_count(learning_rate, count, "nesterov_large_batch: learning_rate")).astype(now.dtype) * now
        )

    return optimizer(
        Method("nesterov_large_batch", rate, weight_decay, weight_decay_mask),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        trace(momentum, nesterov=True, mu_dtype=mu_dtype),
        scale_by_learning_rate(rate),
    )


register(
    nesterov_large_batch,
    form="optimizer",
    paper=Paper(
        "A Large Batch Optimizer Reality Check: Traditional, Generic Optimizers Suffice Across Batch Sizes",
        "Nado et al.",
        2021,
        "2102.06356",
    ),
    words=1,
    example={"total_steps": 1000},
    # The race has a schedule of its own: over so many steps that of the method is constant.
    race=Race(1e-1, {"total_steps": 2**30}),
)
