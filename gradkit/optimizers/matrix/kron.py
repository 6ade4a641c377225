"""PSGD Kron: momentum whitened by a learned Kronecker product with one factor per axis."""

from typing import Any

import optax

from gradkit import checks
from gradkit.catalogue import Race, register
from gradkit.engine.core import optimizer
from gradkit.engine.presets import called, preset
from gradkit.leaves import Layout, Method
from gradkit.transforms import MatrixSharding, add_decayed_weights, scale_by_kron, scale_by_learning_rate
from gradkit.transforms.kron import SHARED
from gradkit.types import DTypeLike, Key, Mask, Scalar, ScalarOrSchedule


def kron(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: Scalar = 0.9,
    precond_lr: Scalar = 0.1,
    precond_init_scale: Scalar = 1.0,
    update_probability: ScalarOrSchedule | None = None,
    max_dim: int = 8192,
    min_ndim_triangular: int = 2,
    memory_save_mode: str | None = None,
    momentum_into_precond_update: bool = True,
    balance_probability: Scalar = 0.01,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    key: Key | None = None,
    probe: Any = None,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """PSGD Kron: momentum whitened by a learned Kronecker product with one factor per axis.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t
        P   = Q_1^T Q_1 x ... x Q_k^T Q_k                    refreshed with a probability so that E[P m m^T P] = I
        p_t = P m_t / (1 - b1^t)
        u_t = p_t / max(1, rms(p_t) / 1.1)
        x_t = x_{t-1} - learning_rate (u_t + weight_decay x_{t-1})

    Args:
      learning_rate: step size >= 0, or a schedule. Default 1e-3 (official code): a third of Adam's.
      b1: decay of the momentum, in [0, 1). Default 0.9 (official code).
      precond_lr: step size of the factors, > 0. Default 0.1 (official code).
      precond_init_scale: of the product of the first factors, > 0. Default 1 (official code).
      update_probability: fraction of steps that refresh, in (0, 1], or a schedule. Default None: p(t) of
        `scale_by_kron`.
      max_dim: axes longer than this have a diagonal factor, >= 0. Default 8192 (official code).
      min_ndim_triangular: tensors of fewer axes have diagonal factors, >= 0. Default 2 (official code).
      memory_save_mode: None; "one_diag": the longest axis is diagonal; "all_diag". Default None.
      momentum_into_precond_update: whether the factors are learned from the momentum or from the gradient. Default
        True (official code).
      balance_probability: fraction of refreshes that balance the factors, in [0, 1]. Default 0.01 (official code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      key: a typed key or integer, from which those of all steps follow. Default None: `update` needs `key=`.
      probe: V instead of draws, as in `scale_by_kron`. Default None.
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are distributed. Default None.

    Returns:
      A transformation that needs `params` where weights decay. State: 1 word per parameter, and per axis of a tensor
      d^2 words, or d. Collectives: those of `scale_by_kron`.

    Raises:
      ValueError: a hyperparameter outside its range; no key.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> tx = kron(0.5, key=jax.random.key(0))
      >>> x = jnp.ones((2, 2))
      >>> tx.update(x, tx.init(x), x)[0].shape
      (2, 2)

    Reference: Pooladzandi, Li. Curvature-Informed SGD via General Purpose Lie-Group Preconditioners. 2024, arXiv
    2402.04553; Li. Preconditioned Stochastic Gradient Descent. 2015, arXiv 1512.04202.
    """
    checks.arrays(probe=probe)
    return optimizer(
        Method(called("kron"), learning_rate, weight_decay, weight_decay_mask),
        scale_by_kron(
            b1=b1,
            precond_lr=precond_lr,
            precond_init_scale=precond_init_scale,
            update_probability=update_probability,
            max_dim=max_dim,
            min_ndim_triangular=min_ndim_triangular,
            memory_save_mode=memory_save_mode,
            momentum_into_precond_update=momentum_into_precond_update,
            balance_probability=balance_probability,
            key=key,
            probe=probe,
            mu_dtype=mu_dtype,
            layout=layout,
            shard=shard,
        ),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


psgd_kron = preset(kron, "psgd_kron", "PSGD Kron under the name of its family.")


register(
    kron,
    form="optimizer",
    **SHARED,
    race=Race(2e-3),
)
register(
    psgd_kron,
    form="optimizer",
    **SHARED,
    same_as="kron",
    race=Race(2e-3),
)
