"""GaLore: Adam on the leading directions of every matrix."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import optax

from gradkit import checks
from gradkit.catalogue import Race, register
from gradkit.engine.core import optimizer
from gradkit.leaves import Layout, Method
from gradkit.transforms import (
    MatrixSharding,
    add_decayed_weights,
    project_low_rank,
    scale_by_adam,
    scale_by_learning_rate,
)
from gradkit.transforms.project_low_rank import PAPER, Numbered
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule


def _adam(numbers: dict[str, Any], **options: Any) -> optax.GradientTransformation:
    return scale_by_adam(**numbers, **options)


def galore(
    learning_rate: ScalarOrSchedule,
    *,
    rank: int | Mapping[str, Any] = 128,
    update_interval: int = 200,
    stagger: bool = False,
    scale: Scalar = 0.25,
    side: str = "short",
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    eps_in_hat: bool = False,
    rotate_moments: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam whose state for a matrix covers only its few leading directions.

    Equations, of an n x m matrix with n <= m (of the transpose where n > m), with t = 1, 2, ...:

        if (t - 1) % update_interval == 0:   B = the first r singular vectors of G_t along its side n
        R_t = B^T G_t                                        (r, m)
        m_t = b1 m_{t-1} + (1 - b1) R_t,     v_t = b2 v_{t-1} + (1 - b2) R_t^2
        u_t = sqrt(1 - b2^t) / (1 - b1^t) m_t / (sqrt(v_t) + eps)
        x_t = x_{t-1} - learning_rate (scale B u_t + weight_decay x_{t-1})

    Embeddings, heads, vectors and scalars take plain Adam without a projection. An n x m matrix, n <= m, has
    n r + 2 r m words of state in place of 2 n m.

    Args:
      learning_rate: step size >= 0, or a schedule. Published: 0.01 with scale 0.25, for models of 60M to 1B.
      rank: directions kept, >= 1, or a tree of ranks, as in `gk.project_low_rank`. Default 128 (official code);
        published: a quarter to a half of the width.
      update_interval: steps from one basis to the next, >= 1. Default 200 (paper).
      stagger: whether every matrix has a step of its own for it, as in `gk.project_low_rank`. Default False.
      scale: factor of the steps of matrices, >= 0. Default 0.25 (paper).
      side: "short", "long", "inputs" or "outputs": which side is compressed. Default "short" (official code).
      b1: decay of the first moment, in [0, 1). Default 0.9.
      b2: decay of the second moment, in [0, 1). Default 0.999.
      eps: added to the root, >= 0. Default 1e-6 (official code).
      eps_in_hat: whether eps is added to the corrected root instead (the paper's equation). Default False (official
        code); with eps <= 1e-8 the difference is negligible.
      rotate_moments: whether moments are rotated into a new basis, as in `gk.project_low_rank`. Default False (official
        code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0 (official code).
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which first moments are kept. Default float32.
      layout: which leaves are matrices, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are distributed, as in `gk.project_low_rank`.

    Returns:
      A transformation that needs `params` where leaves decay. State and collectives: those of `gk.project_low_rank`.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = galore(0.1, rank=1, scale=1.0)
      >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> print(tx.update(x, tx.init(x), x)[0].round(3) + 0.0)
      [[-0.1  0. ]
       [ 0.   0. ]]

    Reference: Zhao et al. GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection. 2024, arXiv
    2403.03507. Departures from the official code: the decay does not multiply the step that precedes it; signs of
    singular vectors are fixed. optax's `contrib.galore` compresses the long side, which is another method.
    """
    checks.arrays(rank=rank)
    adam = partial(_adam, eps_in_hat=eps_in_hat, mu_dtype=mu_dtype)
    return optimizer(
        Method("galore", learning_rate, weight_decay, weight_decay_mask),
        project_low_rank(
            Numbered(adam, {"b1": b1, "b2": b2, "eps": eps}),
            rank=rank,
            update_interval=update_interval,
            stagger=stagger,
            scale=scale,
            side=side,
            rotate_moments=rotate_moments,
            layout=layout,
            shard=shard,
        ),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(
    galore,
    form="optimizer",
    paper=PAPER,
    words=1.5,
    collectives="matrices",
    golden=("matrix/galore", "matrix/galore_refresh"),
    notes="n r + 2 r m words per n x m matrix; the words above are at r = n / 2",
    race=Race(1e-2),
)
