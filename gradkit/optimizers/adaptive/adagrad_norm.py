"""AdaGrad-Norm: one learning rate for all coordinates, divided by the root of the sum of squared gradient norms."""

import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.transforms import scale_by_rss
from gradkit.types import Scalar


def scale_by_adagrad_norm(initial_accumulator_value: Scalar = 1e-2) -> optax.GradientTransformationExtraArgs:
    """Divides updates by the root of the sum of all squared norms so far, the norm of this update included.

    Equations, with |g| the norm over all leaves together and b_0^2 = initial_accumulator_value:

        b_t^2 = b_{t-1}^2 + |g_t|^2
        u_t = g_t / b_t

    Args:
      initial_accumulator_value: b_0^2 >= 0, a square. Default 1e-2. With 0 the first update has norm 1, and is 0 where
        there is no gradient.

    Returns:
      A transformation. State: one scalar. Collectives: one scalar where leaves are sharded.

    Raises:
      ValueError: a negative accumulator, or NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_adagrad_norm(144.0)
      >>> g = {"a": jnp.array(3.0), "b": jnp.array(4.0)}
      >>> updates, _ = tx.update(g, tx.init(g))
      >>> [round(float(u) * 13, 4) for u in updates.values()]  # sqrt(144 + 25) = 13
      [3.0, 4.0]

    Reference: Lau, Liu, Kolar. AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods. 2024, arXiv
    2402.11215; the method is of Ward, Wu, Bottou 2019. The official repository's class of this name keeps one sum per
    output row, which is another method. `gk.scale_by_rss(norm=True)` is this with more options.
    """
    checks.real("initial_accumulator_value", initial_accumulator_value, "[0, inf)")
    return scale_by_rss(initial_accumulator_value=initial_accumulator_value, norm=True, eps=0.0)


register(
    scale_by_adagrad_norm,
    form="primitive",
    paper=Paper(
        "AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods", "Lau, Liu, Kolar", 2024, "2402.11215"
    ),
    collectives="norms",
)
