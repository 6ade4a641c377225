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
    undecided: str = "",
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that gives matrices, convolutions and experts to one transformation, and embeddings, heads, vectors
    and scalars to another.

    Args:
      described: the name, rate and decay of the whole; `gk.leaves.describe` prints those of the two.
      matrices: a ready optimizer.
      others: a ready optimizer.
      layout: what decides the roles.
      undecided: where it was not said how far the others go: what is wrong with that, and what to write. Default: it
        was said.

    Raises:
      ValueError: at `init`, undecided, and there are other leaves.
    """
    members: dict[Any, Any] = {"matrices": matrices, "others": others}

    def label(name: str, x: Any) -> str:
        if axes_of(layout, name, jnp.shape(x)).role in ROLES:
            return "matrices"
        if undecided:
            raise ValueError(f"{described.name}: {name!r} is no matrix and takes AdamW, {undecided}")
        return "others"

    return optimizer(described, optax.partition(members, lambda tree: label_nodes(label, tree)))
