"""One method for matrices, another for everything else."""

from typing import Any

import jax.numpy as jnp
import optax

from gradkit.engine.core import optimizer
from gradkit.leaves import Layout, Method, axes_of
from gradkit.leaves.derived import label_nodes

ROLES = ("matrix", "conv", "expert")


def by_role(
    described: Method,
    matrices: optax.GradientTransformation,
    others: optax.GradientTransformation,
    layout: Layout | None,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that gives matrices, convolutions and experts to one transformation, and embeddings, heads, vectors
    and scalars to another.

    Args:
      described: the name, rate and decay of the whole; `gk.leaves.describe` prints those of the two.
      matrices: a ready optimizer.
      others: a ready optimizer.
      layout: what decides the roles.
    """
    members: dict[Any, Any] = {"matrices": matrices, "others": others}

    def labels(tree: Any) -> Any:
        return label_nodes(
            lambda name, x: "matrices" if axes_of(layout, name, jnp.shape(x)).role in ROLES else "others", tree
        )

    return optimizer(described, optax.partition(members, labels))
