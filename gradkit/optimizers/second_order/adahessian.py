"""AdaHessian: Adam with the diagonal of the Hessian in place of the gradient in the second moment."""

from typing import Any

import optax

from gradkit import checks
from gradkit.catalogue import Race, register
from gradkit.engine.core import optimizer
from gradkit.leaves import Layout, Method
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.transforms.diag_curvature import diag_curvature
from gradkit.transforms.with_curvature import PAPER, hutchinson_estimator, supply_curvature
from gradkit.types import DTypeLike, Key, Mask, Scalar, ScalarOrSchedule


def scale_by_adahessian(
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-4,
    hessian_power: Scalar = 1.0,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides the mean of the gradients by the root of the mean of squared curvature.

    Equations: m_t, v_t and u_t of `adahessian`, with h_t the extra argument `curvature`.

    Args:
      b1: decay of the mean of the gradients, in [0, 1). Default 0.9 (official code).
      b2: decay of the mean of squared curvature, in [0, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-4 (official code).
      hessian_power: k, in [0, 1]. Default 1 (official code); with 0 the direction is the momentum.
      mu_dtype: dtype in which the mean of the gradients is kept. Default float32.

    Returns:
      A transformation that needs the extra argument `curvature`, which `gk.with_curvature` computes. State: 2 words per
      parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, curvature missing or of another structure.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_adahessian(eps=0.0)
      >>> g = jnp.array([3.0, 5.0])
      >>> print(tx.update(g, tx.init(g), curvature=jnp.array([1.0, 10.0]))[0].round(4))
      [3.  0.5]

    Reference: Yao et al. ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning. 2020, arXiv 2006.00719.
    The official code gives a parameter of three axes the curvature of the previous parameter; here it gets its own.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("b1", b1, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.real("hessian_power", hessian_power, "[0, 1]")
    return diag_curvature(
        "scale_by_adahessian",
        b1=b1,
        b2=b2,
        second="rms",
        floor="add",
        power=hessian_power,
        eps=eps,
        bias_correction=True,
        start="zero",
        mu_dtype=mu_dtype,
    )


def adahessian(
    learning_rate: ScalarOrSchedule = 0.15,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-4,
    hessian_power: Scalar = 1.0,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    update_interval: int = 1,
    num_samples: int = 1,
    spatial_average: str | None = "conv",
    key: Key | None = None,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaHessian: Adam with an estimate of the diagonal of the Hessian, from `hvp_fn` where it is not given.

    Equations, with a random vector of signs z, and k = hessian_power:

        h_t = |z (H z)|, averaged over the window of a convolution                `gk.gradients.hutchinson_diag`
        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + (1 - b2) h_t^2
        u_t = (m_t / (1 - b1^t)) / ((v_t / (1 - b2^t))^(k/2) + eps)
        x_t = x_{t-1} - learning_rate (u_t + weight_decay x_{t-1})

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.15 (official code).
      b1: decay of the mean of the gradients, in [0, 1). Default 0.9 (official code).
      b2: decay of the mean of squared curvature, in [0, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-4 (official code).
      hessian_power: k, in [0, 1]. Default 1 (official code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      update_interval: steps for which one estimate is used, >= 1. Default 1; the paper finds up to 5 as good.
      num_samples: random vectors per estimate, >= 1. Default 1 (official code).
      spatial_average: of the estimate: None, "conv" or "all", as in `gk.gradients.hutchinson_diag`. Default "conv"
        (its code for images). A given curvature is not averaged.
      key: a typed key or integer, from which the keys of all steps are derived. Default None: `update` needs `key=`,
        unless the curvature is given.
      mu_dtype: dtype in which the mean of the gradients is kept. Default float32.
      layout: which axes of a leaf are averaged by `spatial_average`.

    Returns:
      A transformation that needs `curvature`, or `hvp_fn` and a key. State: 2 words per parameter, 3 with
      `update_interval` > 1. Elementwise except for the estimate, which has the collectives of a gradient.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, neither `curvature` nor `hvp_fn`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> tx = adahessian(0.5, eps=0.0, key=jax.random.key(0))
      >>> x, a = jnp.array([2.0, 4.0]), jnp.array([1.0, 10.0])  # the loss is a x^2 / 2
      >>> print(tx.update(a * x, tx.init(x), x, hvp_fn=lambda v: a * v)[0].round(4))  # half of Newton's step
      [-1. -2.]

    Reference: Yao et al. ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning. 2020, arXiv 2006.00719.
    """
    estimator = hutchinson_estimator(
        num_samples=num_samples, absolute=True, spatial_average=spatial_average, layout=layout
    )
    described = Method("adahessian", learning_rate, weight_decay, weight_decay_mask)
    chain = optax.chain(
        scale_by_adahessian(b1=b1, b2=b2, eps=eps, hessian_power=hessian_power, mu_dtype=mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    return optimizer(
        described, supply_curvature("adahessian", chain, estimator, update_interval=update_interval, key=key)
    )


SHARED: dict[str, Any] = {"paper": PAPER, "needs": ("curvature",), "words": 2, "golden": ("matrix/adahessian",)}
register(scale_by_adahessian, form="primitive", **SHARED)
register(
    adahessian,
    form="optimizer",
    **SHARED,
    notes="makes the curvature from hvp_fn and a key where none is given",
    race=Race(1e-1),
)
