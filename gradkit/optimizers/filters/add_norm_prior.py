"""A pull of latents towards the norm that Gaussian noise has, for optimizing the noise of a generator."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar, transformation
from gradkit.engine.norms import entries, packed_sums
from gradkit.leaves import Axes, names
from gradkit.types import Scalar

PAPER = Paper(
    "ReNO: Enhancing One-step Text-to-Image Models through Reward-based Noise Optimization",
    "Eyring et al.",
    2024,
    "2406.04312",
)


def add_norm_prior(weight: Scalar = 0.01, *, batch_axes: int = 0) -> optax.GradientTransformationExtraArgs:
    """Adds the gradient of a prior for the norm of a latent: the norm of d independent normal numbers.

    Equations:

        K(x) = |x|^2 / 2 - (d - 1) log|x|
        g   <- g + weight (1 - (d - 1) / |x|^2) x

    The added term is 0 at |x| = sqrt(d - 1), and otherwise pulls the norm there. The paper's recipe is
    `optax.chain(gk.add_norm_prior(), optax.clip_by_global_norm(0.1), gk.sgd(5.0, momentum=0.9, nesterov=True))` for 50
    steps, and the latent of the best reward of all of them.

    Args:
      weight: weight of the prior, >= 0. Default 0.01 (official code).
      batch_axes: number of leading axes of every leaf that index latents, >= 0; |x| and d are over all other axes.
        Default 0: a leaf is one latent.

    Returns:
      A transformation that needs `params`. No state. The gradient of a latent of zeros, which has no direction, is not
      changed.
      Collectives: one scalar per latent that is sharded.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves; at `update`, `params` missing, or a leaf of fewer
        axes than `batch_axes`.

    Example:
      >>> tx, x = add_norm_prior(1.0), jnp.array([3.0, 0.0, 0.0])  # 1 - 2 / 9
      >>> print(tx.update(jnp.zeros(3), tx.init(x), x)[0].round(4))
      [2.3333 0.     0.    ]

    Reference: Eyring et al. ReNO: Enhancing One-step Text-to-Image Models through Reward-based Noise Optimization.
    2024, arXiv 2406.04312. The code has |x| of a complete batch with the d of one latent, which is right for a
    batch of 1.
    """
    checks.real("weight", weight, "[0, inf)")
    batch_axes = checks.integer("batch_axes", batch_axes, 0)

    def one_latent(name: str, shape: Any) -> Axes:
        """The leading axes count latents, as a stack counts tensors."""
        del name
        if len(shape) < batch_axes:
            raise ValueError(
                f"add_norm_prior: batch_axes must be at most the {len(shape)} axes of every leaf, got {batch_axes}; "
                f"write batch_axes={len(shape)}"
            )
        return Axes("vector", stack=tuple(range(batch_axes)), outputs=tuple(range(batch_axes, len(shape))))

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        del extra
        g, structure = jax.tree.flatten(updates)
        x, param_names = jax.tree.leaves(params), names(updates)
        sizes = iter([entries(name, "tensor", one_latent, x.shape) for name, x in zip(param_names, x, strict=True)])
        sums = packed_sums(param_names, "tensor", one_latent, [x * x for x in x], like=g)
        squares = sums.own(sums.parts[0])

        def leaf(g: jax.Array, x: jax.Array, square: jax.Array) -> jax.Array:
            some = square > 0
            share = (next(sizes) - 1) / jnp.where(some, square, jnp.ones_like(square))
            return g + scalar(weight, g) * jnp.where(some, 1 - share, jnp.zeros_like(square)) * x

        return structure.unflatten([leaf(*row) for row in zip(g, x, squares, strict=True)]), state

    return transformation("add_norm_prior", lambda params: optax.EmptyState(), update, needs_params=True)


register(
    add_norm_prior,
    form="primitive",
    paper=PAPER,
    collectives="norms",
    opt_outs={"stacked": "a leaf is one latent, or has leading axes of latents; names of stacks have no effect"},
    notes="for latents of a generator, in front of a clip",
)
