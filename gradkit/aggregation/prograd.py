"""ProGrad: the gradient of a domain, without what goes against general knowledge.

Equations: in the docstring of `prograd`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.bloop import product, two_of
from gradkit.aggregation.makers import aggregator
from gradkit.catalogue import Paper, Tasks, register
from gradkit.engine.core import scalar
from gradkit.types import Scalar

PAPER = Paper("Prompt-aligned Gradient for Prompt Tuning", "Zhu et al.", 2022, "2205.14865")


def prograd(*, strength: Scalar = 1.0, per_leaf: bool = True) -> optax.GradientTransformationExtraArgs:
    """Prompt-aligned gradient: fine-tuning that does not unlearn what a general model knows.

    With the gradient a of the domain (cross-entropy) and the general one b (distillation from the model before):

        result = a - strength <a, b> / <b, b> b    where <a, b> < 0,      a otherwise

    The general gradient is not followed, it only forbids.

    Args:
      strength: how much of the conflict is taken out, in [0, 1]. Default 1 (paper).
      per_leaf: whether every parameter is treated by itself (default), as in the authors' code, which trains one prompt
        tensor; or all of them as one vector.

    Returns:
      A transformation whose updates come in as two gradients along a leading axis, domain and general, and leave as
      one; put it first in a chain. No state. Sharded gradients cost two sums per tensor.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, another number of gradients than
        two, leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = prograd()
      >>> g = jnp.array([[2.0, 1.0], [-3.0, 0.0]])
      >>> print(tx.update(g, tx.init(g[0]))[0])
      [0. 1.]

    Reference: Zhu et al. Prompt-aligned Gradient for Prompt Tuning. 2022, arXiv 2205.14865 (ICCV 2023). Where b is 0
    the result is a.
    """
    checks.real("strength", strength, "[0, 1]")
    checks.switch(per_leaf=per_leaf)

    def update(gradients: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        a, b = two_of("prograd", gradients)
        like = gradients.like if hasattr(gradients, "like") else gradients
        shared = None if per_leaf else (product(a, b), product(b, b))

        def leaf(x: jax.Array, y: jax.Array, like: jax.Array) -> jax.Array:
            inner, square = (product(x, y), product(y, y)) if shared is None else shared
            conflict = inner < 0
            k = jnp.where(conflict, inner / jnp.where(conflict, square, jnp.ones_like(square)), jnp.zeros_like(inner))
            return (x - scalar(strength, x) * k.astype(x.dtype) * y).astype(like.dtype)

        return jax.tree.map(leaf, a, b, like), state

    return aggregator("prograd", update)


register(
    prograd,
    form="aggregator",
    paper=PAPER,
    collectives="norms",
    tasks=Tasks(2, 2),
    opt_outs={"stacked": "every parameter is projected by itself, and a stack of layers is one"},
    notes="two gradients: domain, general",
)
