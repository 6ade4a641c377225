"""Gradient descent with the gradient of every class normalized, so that classes of few examples are learned as fast."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.gramian import combine
from gradkit.aggregation.makers import aggregator, number_of
from gradkit.aggregation.preferences import dtype_of
from gradkit.catalogue import Paper, register
from gradkit.engine.core import abs_sq, divide, scalar, wide_dtype
from gradkit.engine.lazy_gradients import LazyGradients, fold
from gradkit.types import Scalar

PAPER = Paper(
    "A Theoretical Analysis of the Learning Dynamics under Class Imbalance",
    "Francazi, Baity-Jesi, Lucchi",
    2023,
    "2207.00391",
)


def per_class_normalized(*, eps: Scalar = 0.0, mean: bool = False) -> optax.GradientTransformationExtraArgs:
    """PCNGD and PCNSGD: the sum of the normalized gradients of all classes.

        result = sum_l g_l / (|g_l| + eps),    0 for a class without gradient

    g_l is the part of the batch's gradient that class l has, of any scale (`gk.gradients.per_class_gradients`); norms
    run over the whole tree. Full gradients are slow on a class of few examples, since the majority's gradient is
    longer: here it does not matter how many examples a class has. The step has a length of up to K learning rates.

    Args:
      eps: added to the norms, >= 0. Default 0 (paper).
      mean: whether the sum is divided by the number of classes. Default False (paper).

    Returns:
      A transformation whose updates come in with a leading axis of classes and leave without it. No state. Two backward
      passes per class, and two gradients in memory. Collectives: K scalars where parameters are sharded; of replicas,
      gradients must be means over them before, as a source with `axis_name` makes them.

    Raises:
      ValueError: a hyperparameter outside its range; when called, leading axes that differ or are missing, gradients
        that do not match the parameters.

    Example:
      >>> tx = per_class_normalized()
      >>> g = jnp.array([[30.0, 40.0], [0.0, 0.1], [0.0, 0.0]])
      >>> print(tx.update(g, tx.init(g[0]))[0].round(4))
      [0.6 1.8]

    Reference: Francazi, Baity-Jesi, Lucchi. A Theoretical Analysis of the Learning Dynamics under Class Imbalance.
    2023, arXiv 2207.00391. PCNSGD+O is this with `gk.batches.class_balanced_batches`; PCNSGD+R, which divides by the
    cosine of each class's gradient with that of all data, needs a full pass per class and is left out. Batch
    normalization couples classes; the official code replaces it by group normalization.
    """
    checks.real("eps", eps, "[0, inf)")
    checks.switch(mean=mean)

    def update(gradients: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        m = number_of(gradients)
        one = gradients.like if isinstance(gradients, LazyGradients) else gradients
        dtype = dtype_of(one)

        def add(total: jax.Array, rows: Any, numbers: jax.Array) -> jax.Array:
            squares = [
                jnp.sum(abs_sq(x.astype(wide_dtype(x.dtype))).reshape(len(x), -1), axis=1)
                for x in jax.tree.leaves(rows)
            ]
            return total.at[numbers].set(sum(x.astype(dtype) for x in squares))

        norms = jnp.sqrt(fold(gradients, add, jnp.zeros((m,), dtype)))
        weights = jnp.where(norms > 0, divide(jnp.ones_like(norms), norms + scalar(eps, norms)), jnp.zeros_like(norms))
        return combine(gradients, weights / m if mean else weights), state

    return aggregator("per_class_normalized", update)


register(per_class_normalized, form="aggregator", paper=PAPER, collectives="gramian")
