"""Fira: GaLore plus the residual of its projection, scaled column by column as Adam scales the projected gradient."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Race, register
from gradkit.engine.core import bias_correction, increment, optimizer, transformation
from gradkit.leaves import Layout, Method
from gradkit.transforms import (
    MatrixSharding,
    add_decayed_weights,
    project_low_rank,
    scale_by_adam,
    scale_by_learning_rate,
)
from gradkit.transforms.limit_norm_growth import PAPER
from gradkit.transforms.project_low_rank import Numbered
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule


class CorrectBiasState(NamedTuple):
    """Number of updates made."""

    count: jax.Array


def _correct_bias(b1: Any, b2: Any) -> optax.GradientTransformationExtraArgs:
    """The factor of Adam's two bias corrections, applied after the steps that compare uncorrected norms."""

    def update(u: Any, state: CorrectBiasState, params: Any = None, **extra: Any) -> tuple[Any, CorrectBiasState]:
        del params, extra
        t = increment(state.count)

        def one(x: jax.Array) -> jax.Array:
            return x * (jnp.sqrt(bias_correction(b2, t, x)) / bias_correction(b1, t, x))

        return jax.tree.map(one, u), CorrectBiasState(t)

    return transformation("fira", lambda params: CorrectBiasState(jnp.zeros((), jnp.int32)), update)


def _adam(numbers: dict[str, Any], **options: Any) -> optax.GradientTransformation:
    return scale_by_adam(**numbers, bias_correction=False, **options)


def fira(
    learning_rate: ScalarOrSchedule,
    *,
    rank: int | Mapping[str, Any] = 128,
    update_interval: int = 200,
    stagger: bool = False,
    alpha: Scalar = 1.0,
    side: str = "short",
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    growth_limit: Scalar = 1.01,
    rotate_moments: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam on a few directions of every matrix, and the rest of the gradient scaled to match.

    Equations, of an n x m matrix with n <= m (of the transpose where n > m), with t = 1, 2, ...:

        if (t - 1) % update_interval == 0:   B = the first r singular vectors of G_t along its side n
        R = B^T G_t                                                          (r, m)
        psi = m_t / (sqrt(v_t) + eps)                                        Adam's moments of R, uncorrected
        phi = |psi| / (|R| + 1e-8)                                           of every column
        E = (G_t - alpha B R) phi,   shortened so that |E| <= growth_limit |E of the step before|
        d = (alpha B psi + E) sqrt(1 - b2^t) / (1 - b1^t)
        x_t = x_{t-1} - learning_rate (d + weight_decay x_{t-1})

    Embeddings, heads, vectors and scalars take plain Adam without a projection. Updates have full rank, with the state
    of `gk.galore`.

    Args:
      learning_rate: step size >= 0, or a schedule. Published: 0.01 with alpha 0.25, for models of 60M to 1B.
      rank: directions kept, >= 1, or a tree of ranks, as in `gk.project_low_rank`. Default 128 (official code). With
        all directions and alpha = 1 the residual is zero and the method is GaLore.
      update_interval: steps from one basis to the next, >= 1. Default 200 (paper).
      stagger: whether every matrix has a step of its own for it, as in `gk.project_low_rank`. Default False.
      alpha: factor of the projected part, >= 0. Default 1 (official code). Another value leaves 1 - alpha of the
        projected part in the residual (official code).
      side: "short", "long", "inputs" or "outputs": which side is compressed. Default "short" (official code).
      b1: decay of the first moment, in [0, 1). Default 0.9.
      b2: decay of the second moment, in [0, 1). Default 0.999.
      eps: added to the root before the bias is corrected, >= 0. Default 1e-6 (official code).
      growth_limit: largest factor by which the norm of the residual grows per step, >= 1; infinity limits nothing.
        Default 1.01 (paper).
      rotate_moments: whether moments are rotated into a new basis, as in `gk.project_low_rank`. Default False (official
        code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0 (official code).
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which first moments are kept. Default float32.
      layout: which leaves are matrices, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are distributed, as in `gk.project_low_rank`.

    Returns:
      A transformation that needs `params` where leaves decay. State: n r + 2 r m words and one number per n x m matrix,
      n <= m. Collectives: those of `gk.project_low_rank`.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = fira(0.1, rank=1)
      >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> tx.update(x, tx.init(x), x)[0].shape
      (2, 2)

    Reference: Chen et al. Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint? 2024, arXiv
    2410.01623. Departures from the official code: the decay does not multiply the step that precedes it; signs of
    singular vectors are fixed; after a residual of zero the next one is not limited.
    """
    checks.arrays(rank=rank)
    checks.real("alpha", alpha, "[0, inf)")
    checks.real("growth_limit", growth_limit, "[1, inf]")
    return optimizer(
        Method("fira", learning_rate, weight_decay, weight_decay_mask),
        project_low_rank(
            Numbered(partial(_adam, mu_dtype=mu_dtype), {"b1": b1, "b2": b2, "eps": eps}),
            rank=rank,
            update_interval=update_interval,
            stagger=stagger,
            scale=alpha,
            side=side,
            rotate_moments=rotate_moments,
            residual="norm_scaled",
            growth_limit=growth_limit,
            layout=layout,
            shard=shard,
        ),
        _correct_bias(b1, b2),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(
    fira,
    form="optimizer",
    paper=PAPER,
    words=1.5,
    collectives="matrices",
    golden=("matrix/fira", "matrix/fira_refresh"),
    notes="n r + 2 r m words and one number per n x m matrix; the words above are at r = n / 2",
    race=Race(5e-3),
)
