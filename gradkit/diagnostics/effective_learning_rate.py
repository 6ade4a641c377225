"""The learning rate that weights in front of a normalization see: of their direction, as their length is not seen."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import reals
from gradkit.leaves import names
from gradkit.types import PyTree, Scalar

PAPER = Paper("L2 Regularization versus Batch and Weight Normalization", "van Laarhoven", 2017, "1706.05350")
RULES = ("sgd", "adam")


def effective_learning_rate(
    params: PyTree,
    learning_rate: Scalar,
    *,
    rule: str = "sgd",
    where: Callable[[str], bool] | None = None,
    per_unit: bool = False,
) -> dict[str, jax.Array]:
    """The step of the direction w / |w| of scale-invariant leaves, per unit of the gradient.

        sgd     eta / |w|^2        the gradient of a scale-invariant loss is that at w / |w|, divided by |w|
        adam    eta / |w|          steps whose length does not depend on the gradient's

    With weight decay lambda the norm settles, and with it the rate: `settled_learning_rate`.

    Args:
      params: a tree of parameters.
      learning_rate: eta >= 0; may be traced.
      rule: "sgd" (also with momentum) or "adam" (any rule with steps of a fixed length). Default "sgd".
      where: name of a leaf (`gk.leaves.names`) -> whether it is scale-invariant, such as kernels in front of a
        normalization. Default None: all leaves.
      per_unit: whether each output unit, an entry of the last axis, has a norm of its own, as in front of a batch
        normalization. Default False: one norm per leaf, as in front of a layer normalization.

    Returns:
      Name of a leaf -> its effective learning rate, a scalar or one per unit, in float32 or wider; infinite for zeros.

    Raises:
      ValueError: an argument outside its range; a leaf that is not floating point.

    Example:
      >>> {name: float(rate) for name, rate in effective_learning_rate({"w": jnp.array([0.6, 0.8]) * 2}, 0.1).items()}
      {'w': 0.02500000037252903}

    Reference: van Laarhoven. L2 Regularization versus Batch and Weight Normalization. 2017, arXiv 1706.05350.
    `gk.normalize_and_project` and `gk.sgdp` hold the norm, and with it this rate.
    """
    checks.arrays(params=params)
    if where is not None:
        checks.function("where", where)
    checks.choice("rule", rule, RULES)
    checks.switch(per_unit=per_unit)
    checks.real("learning_rate", learning_rate, "[0, inf)")
    found = {}
    for name, x in zip(names(params), jax.tree.leaves(params), strict=True):
        if where is not None and not where(name):
            continue
        w = reals("effective_learning_rate", f"the leaf {name!r}", x)
        axes = tuple(range(w.ndim - 1)) if per_unit else None
        square = jnp.sum(jnp.square(w), axis=axes)
        found[name] = jnp.asarray(learning_rate).astype(w.dtype) / (square if rule == "sgd" else jnp.sqrt(square))
    return found


def settled_learning_rate(learning_rate: Scalar, weight_decay: Scalar, grad_square: Any) -> jax.Array:
    """The effective learning rate at which SGD with weight decay settles, of a scale-invariant leaf.

        |w|^4 = eta E|g|^2 / (2 lambda),    eta / |w|^2 = sqrt(2 eta lambda / E|g|^2)

    g is the gradient at w / |w|. Only the product eta lambda matters: decay does not regularize, it sets a rate.

    Args:
      learning_rate: eta > 0.
      weight_decay: lambda > 0: w <- w - eta (g + lambda w).
      grad_square: E|g|^2 > 0, of the noisy gradient at unit norm: |w|^2 times that at w.

    Returns:
      A scalar.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> round(float(settled_learning_rate(0.1, 0.05, 1.0)), 4)
      0.1

    Reference: van Laarhoven. L2 Regularization versus Batch and Weight Normalization. 2017, arXiv 1706.05350. To first
    order in eta lambda.
    """
    for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay), ("grad_square", grad_square)):
        checks.real(name, value, "(0, inf)")
    eta, decay, square = (jnp.asarray(x, jnp.result_type(float)) for x in (learning_rate, weight_decay, grad_square))
    return jnp.sqrt(2 * eta * decay / square)


register(
    effective_learning_rate,
    form="function",
    paper=PAPER,
    example={"params": {"kernel": jax.ShapeDtypeStruct((8, 4), "float32")}, "learning_rate": 0.1},
)
register(
    settled_learning_rate,
    form="function",
    paper=PAPER,
    example={"learning_rate": 0.1, "weight_decay": 1e-2, "grad_square": 1.0},
)
