"""How much gradient AutoSparse lets through below the threshold, over a run."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import Phase, Schedule, real_array
from gradkit.types import Scalar

PAPER = Paper(
    "AUTOSPARSE: Towards Automated Sparse Training of Deep Neural Networks", "Kundu et al.", 2023, "2304.06941"
)


def sigmoid_cosine_decay(total_steps: int, init: Scalar = 0.75) -> Schedule:
    """The larger of a cosine and a sigmoid, both falling: alpha of `gk.layers.sparse_weight` over a run.

        alpha_t = init max((1 + cos(pi t / T)) / 2, 1 - sigmoid(12 t / T - 6)),    T = total_steps

    At the end the sigmoid's term, 0.0025 init, is left: where gradients must be exact zeros, put 0 after it, as in
    `take(sigmoid_cosine_decay(T), T) + hold(value=0.0)`.

    Args:
      total_steps: T, >= 1.
      init: alpha at the start, in [0, 1]; may be traced. Default 0.75.

    Returns:
      A schedule step -> alpha. No state, no collective.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(sigmoid_cosine_decay(4, 1.0)(jnp.arange(5)).round(3))
      [1.    0.953 0.5   0.146 0.002]

    Reference: Kundu et al. AUTOSPARSE: Towards Automated Sparse Training of Deep Neural Networks. 2023, arXiv
    2304.06941. When the paper sets alpha to 0 is not known; 0.75 is unverified.
    """
    total_steps = checks.integer("total_steps", total_steps, 1)
    checks.real("init", init, "[0, 1]")

    def at(since: jax.Array, before: Any = None) -> jax.Array:
        del before
        share = real_array(jnp.clip(since, 0, total_steps)) / total_steps
        cosine = jnp.square(jnp.cos(share * (math.pi / 2)))
        return real_array(init) * jnp.maximum(cosine, jax.nn.sigmoid(6 - 12 * share))

    return Schedule((Phase(total_steps, at, lambda _: at(jnp.asarray(total_steps, int))),))


register(sigmoid_cosine_decay, form="schedule", paper=PAPER, example={"total_steps": 20, "init": 0.75})
