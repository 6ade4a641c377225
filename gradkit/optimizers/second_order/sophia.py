"""Sophia: momentum over a curvature that is refreshed every few steps, every coordinate clipped."""

import optax

from gradkit import checks
from gradkit.catalogue import Race, register
from gradkit.engine.core import optimizer
from gradkit.engine.presets import called, preset
from gradkit.leaves import Method
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate, scale_by_sophia
from gradkit.transforms.sophia import SHARED
from gradkit.transforms.with_curvature import hutchinson_estimator, supply_curvature
from gradkit.types import DTypeLike, Key, Mask, Scalar, ScalarOrSchedule

GAMMA = {"gnb": 0.05, "hutchinson": 0.01}


def sophia(
    learning_rate: ScalarOrSchedule,
    *,
    estimator: str = "gnb",
    b1: Scalar = 0.965,
    b2: Scalar = 0.99,
    gamma: Scalar | None = None,
    eps: Scalar = 1e-12,
    clip: Scalar = 1.0,
    update_interval: int = 10,
    denominator: str = "max",
    bias_correction: bool = False,
    lagged: bool = False,
    measure_win_rate: bool = False,
    weight_decay: ScalarOrSchedule = 0.1,
    weight_decay_mask: Mask | None = None,
    num_samples: int = 1,
    key: Key | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Sophia: momentum over a curvature that is refreshed every few steps, every coordinate clipped.

    Equations, with h_t an estimate of the diagonal of the Hessian, and k = update_interval:

        every k steps:   h = b2 h + (1 - b2) h_t
        m_t = b1 m_{t-1} + (1 - b1) g_t
        d_t = m_t / max(gamma h, eps), clipped to [-clip, clip]             denominator="max" (paper)
        d_t = sign(m_t) min(|m_t| / (gamma h + eps), clip)                  denominator="add" (official code)
        x_t = x_{t-1} - learning_rate (d_t + weight_decay x_{t-1})

    Sophia-G (`sophia_g`) estimates by `gk.gradients.gauss_newton_bartlett_diag`, Sophia-H (`sophia_h`) by Hutchinson's
    z (H z). Where the denominator is not positive, the direction of a coordinate is clip sign(m_t).

    Args:
      learning_rate: step size >= 0, or a schedule.
      estimator: "gnb": the caller passes the curvature, from `gk.gradients.gauss_newton_bartlett_diag`, which needs the
        logits; "hutchinson": where it is not passed it is computed from the extra argument `hvp_fn`. Default "gnb"
        (official code).
      b1: decay of the momentum, in [0, 1). Default 0.965 (official code's class default).
      b2: decay of the curvature per refresh, in [0, 1). Default 0.99 (official code's class default).
      gamma: scale of the curvature, > 0. Default None: 0.05 for "gnb", 0.01 for
        "hutchinson", as the paper is quoted, which was not read; the official code's class default is 0.04.
      eps: smallest denominator, or added to it, >= 0. Default 1e-12 (official code of Sophia-H; that of
        Sophia-G adds 1e-15).
      clip: largest entry of the direction, > 0. Default 1 (paper).
      update_interval: steps between refreshes of the curvature, >= 1. Default 10 (official
        configurations).
      denominator: "max" (paper) or "add" (official code). Default "max".
      bias_correction: whether the momentum is divided by 1 - b1^t. Default False (paper).
      lagged: whether a step uses the curvature of the previous refresh. Default False (paper).
      measure_win_rate: whether the fraction of entries that are not clipped is published. Default False.
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.1 (official code's class default;
        its configurations for language models have 0.2).
      weight_decay_mask: which leaves decay. Default all.
      num_samples: random vectors per estimate of Hutchinson's, >= 1. Default 1.
      key: a typed key or integer, from which the keys of all steps are derived. Default None: `update` needs `key=`
        where the curvature is estimated here.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation that needs `curvature` on steps that refresh, or with "hutchinson" `hvp_fn` and a key. State: 2
      words per parameter. Elementwise except for the estimate, which has the collectives of a gradient.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, no curvature where it is needed.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> tx = sophia(0.5, estimator="hutchinson", b1=0.0, b2=0.0, gamma=1.0, weight_decay=0.0, key=jax.random.key(0))
      >>> x, a = jnp.array([0.5, 40.0]), jnp.array([1.0, 10.0])  # the loss is a x^2 / 2
      >>> print(tx.update(a * x, tx.init(x), x, hvp_fn=lambda v: a * v)[0])  # half of Newton's step; clipped
      [-0.25 -0.5 ]

    Reference: Liu et al. Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training. 2023,
    arXiv 2305.14342. With "gnb", denominator "add", gamma 0.04 and eps 1e-15 it is the official code; Hutchinson's
    estimate takes vectors of signs, which vary less than the paper's normal ones.
    """
    checks.choice("estimator", estimator, tuple(GAMMA))
    method, hutchinson = called("sophia"), estimator == "hutchinson"
    chain = optax.chain(
        scale_by_sophia(
            b1=b1,
            b2=b2,
            gamma=GAMMA[estimator] if gamma is None else gamma,
            eps=eps,
            clip=clip,
            update_interval=update_interval,
            denominator=denominator,
            bias_correction=bias_correction,
            lagged=lagged,
            measure_win_rate=measure_win_rate,
            mu_dtype=mu_dtype,
        ),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    estimate = hutchinson_estimator(num_samples=num_samples)
    if not hutchinson and (key is not None or num_samples != 1):
        raise ValueError(
            f"{method}: num_samples and key are used only with estimator='hutchinson', got estimator='gnb'; leave them "
            "out, or write estimator='hutchinson'"
        )
    if hutchinson:
        chain = supply_curvature(method, chain, estimate, key=key, lazy=True)
    return optimizer(Method(method, learning_rate, weight_decay, weight_decay_mask), chain)


sophia_g = preset(
    sophia,
    "sophia_g",
    "Sophia-G: `sophia` with the curvature of sampled labels, which the caller passes.",
    fixed={"estimator": "gnb", "num_samples": 1, "key": None},
    gamma=GAMMA["gnb"],
)
sophia_h = preset(
    sophia,
    "sophia_h",
    "Sophia-H: `sophia` with Hutchinson's curvature, computed from `hvp_fn` where it is not passed.",
    fixed={"estimator": "hutchinson"},
    gamma=GAMMA["hutchinson"],
)

LABELS = "the curvature is gk.gradients.gauss_newton_bartlett_diag's"
ALONE = {"race": "its curvature needs the logits, which the loop of a race does not know"}
register(
    sophia,
    form="optimizer",
    **SHARED,
    notes=f'by default {LABELS}; "hutchinson" makes it from hvp_fn and a key',
    # A race knows no logits, of which Sophia-G samples labels.
    race=Race(5e-3, {"estimator": "hutchinson"}),
)
register(sophia_g, form="optimizer", **SHARED, same_as="sophia", opt_outs=ALONE, notes=LABELS)
register(
    sophia_h,
    form="optimizer",
    **SHARED,
    notes="makes the curvature from hvp_fn and a key where none is given",
    race=Race(5e-3),
)
