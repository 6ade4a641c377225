"""Descent in the metric that the graph of the loss has in its surroundings: large gradients shorten the step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, over, root
from gradkit.engine.core import (
    abs_sq,
    bias_correction,
    bias_corrections,
    increment,
    need,
    once_per_dtype,
    optimizer,
    scalar,
    transformation,
    zeros,
)
from gradkit.engine.norms import global_sums
from gradkit.leaves import Method
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "The Optimiser Hidden in Plain Sight: Training with the Loss Landscape's Induced Metric",
    "Harvey",
    2025,
    "2509.03594",
)


class ScaleByInducedMetricState(NamedTuple):
    """Number of updates made, the running mean of xi G, the momentum, and for "rms" the second moment."""

    count: jax.Array
    k: jax.Array
    mu: Any
    nu: Any


def scale_by_induced_metric(
    *,
    xi: Scalar = 0.1,
    beta: Scalar = 0.8,
    kind: str = "loss",
    momentum: Scalar = 0.9,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-8,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Momentum, shortened by the running mean of the squared gradient norm.

    Equations, with G_t one number for all leaves together:

        m_t = momentum m_{t-1} + (1 - momentum) g_t
        d_t = 1,   or for "rms"  sqrt(v_t / (1 - b2^t)) + eps,   v_t = b2 v_{t-1} + (1 - b2) |g_t|^2
        G_t = sum of |g_t|^2 / d_t
        k_t = beta k_{t-1} + (1 - beta) xi G_t,    K_t = k_t / (1 - beta^t)
        s_t = 1 / (1 + K_t),   or for "log"  L / (L^2 + K_t),   L the loss before the step
        u_t = s_t m_t / ((1 - momentum^t) d_t)

    With momentum = beta = 0 the update of "loss" is g / (1 + xi |g|^2), which is at most 1 / (2 sqrt(xi)) long: a
    smooth clipping.

    Args:
      xi: weight of the metric, >= 0. Default 0.1 (code). With 0 only the momentum is left.
      beta: decay of the mean of the squared norm, in [0, 1). Default 0.8 (code).
      kind: the surface: "loss", "log" (of the logarithm of the loss; needs `value`) or "rms" (of the loss, with
        RMSProp's preconditioner). Default "loss".
      momentum: decay of the momentum, in [0, 1). Default 0.9 (code).
      b2: decay of the second moment, in [0, 1); used by "rms". Default 0.99 (code).
      eps: added to its root, >= 0; used by "rms". Default 1e-8 (code).
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation; "log" needs the extra argument `value`, a loss > 0. State: 1 word per parameter, 2 for "rms",
      a counter and one number. Collectives: one scalar.

    Raises:
      ValueError: a hyperparameter outside its range; for "log" at `update`, a missing `value`, or a known one outside
        (0, inf).

    Example:
      >>> tx = scale_by_induced_metric(xi=1.0)
      >>> g = jnp.array([3.0, 0.0])
      >>> [round(float(u), 4) for u in tx.update(g, tx.init(g))[0]]  # 3 / (1 + 9)
      [0.3, 0.0]

    Reference: Harvey. The Optimiser Hidden in Plain Sight: Training with the Loss Landscape's Induced Metric. 2025,
    arXiv 2509.03594.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.choice("kind", kind, ("loss", "log", "rms"))
    for name, value in (("xi", xi), ("eps", eps)):
        checks.real(name, value, "[0, inf)")
    for name, value in (("beta", beta), ("momentum", momentum), ("b2", b2)):
        checks.real(name, value, "[0, 1)")

    def init(params: optax.Params) -> ScaleByInducedMetricState:
        k = jnp.zeros((), jnp.result_type(float))
        nu = zeros(params, real=True) if kind == "rms" else None
        return ScaleByInducedMetricState(jnp.zeros((), jnp.int32), k, zeros(params, mu_dtype), nu)

    def update(updates: Any, state: ScaleByInducedMetricState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        count, nu = increment(state.count), None
        squares, denominators = jax.tree.map(abs_sq, updates), None
        if kind == "rms":
            nu = jax.tree.map(lambda v, s: ema(v, s, b2), state.nu, squares)
            c2 = bias_corrections(b2, count)
            denominators = jax.tree.map(lambda v: root(v / c2(v), eps), nu)
            squares = jax.tree.map(over, squares, denominators)
        k = ema(state.k, scalar(xi, state.k) * global_sums(squares)[0].astype(state.k.dtype), beta)
        mean = k / bias_correction(beta, count, k)
        if kind == "log":
            loss = need("scale_by_induced_metric", extra, "value")
            checks.real("value", loss, "(0, inf)")
            loss = jnp.asarray(loss).astype(k.dtype)
            s = loss / (jnp.square(loss) + mean)
        else:
            s = 1 / (1 + mean)
        mu = jax.tree.map(lambda m, g: ema(m, g, momentum), state.mu, updates)

        share = once_per_dtype(lambda g: s.astype(g.dtype) / bias_correction(momentum, count, g).astype(g.dtype))

        def direction(m: jax.Array, g: jax.Array) -> jax.Array:
            return m.astype(g.dtype) * share(g)

        u = jax.tree.map(direction, mu, updates)
        if denominators is not None:
            u = jax.tree.map(over, u, denominators)
        return u, ScaleByInducedMetricState(count, k, mu, nu)

    return transformation("scale_by_induced_metric", init, update, complex_leaves=True)


def _optimizer(
    name: str, learning_rate: Any, weight_decay: Any, weight_decay_mask: Any, link: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    return optimizer(
        Method(name, learning_rate, weight_decay, weight_decay_mask),
        link,
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


def induced_metric_sgd(
    learning_rate: ScalarOrSchedule = 0.1,
    *,
    momentum: Scalar = 0.9,
    xi: Scalar = 0.1,
    beta: Scalar = 0.8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Momentum in the metric of the loss surface.

    Equations, with G_t one number for all leaves together:

        m_t = momentum m_{t-1} + (1 - momentum) g_t
        G_t = sum of |g_t|^2
        k_t = beta k_{t-1} + (1 - beta) xi G_t,    K_t = k_t / (1 - beta^t)
        s_t = 1 / (1 + K_t)
        x_t = x_{t-1} - learning_rate (s_t m_t / (1 - momentum^t) + weight_decay x_{t-1})

    With xi = 0 this is gradient descent with a bias-corrected running mean for momentum.

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.1 (code).
      momentum: decay of the momentum, in [0, 1). Default 0.9 (code).
      xi: weight of the metric, >= 0. Default 0.1 (code).
      beta: decay of the mean of the squared norm, in [0, 1). Default 0.8 (code).
      weight_decay: decoupled decay >= 0, which the metric does not scale, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation. State: 1 word per parameter. Collectives: one scalar.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = induced_metric_sgd(0.5, xi=1.0)
      >>> x = jnp.array([3.0, 0.0])
      >>> round(float(tx.update(x, tx.init(x), x)[0][0]), 4)
      -0.15

    Reference: Harvey. The Optimiser Hidden in Plain Sight: Training with the Loss Landscape's Induced Metric. 2025,
    arXiv 2509.03594.
    """
    link = scale_by_induced_metric(xi=xi, beta=beta, momentum=momentum, mu_dtype=mu_dtype)
    return _optimizer("induced_metric_sgd", learning_rate, weight_decay, weight_decay_mask, link)


def induced_metric_log(
    learning_rate: ScalarOrSchedule = 0.1,
    *,
    momentum: Scalar = 0.9,
    xi: Scalar = 0.1,
    beta: Scalar = 0.8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Momentum in the metric of the surface of the logarithm of the loss.

    This is `gk.induced_metric_sgd` with another s_t, with L the loss before the step:

        s_t = L / (L^2 + K_t)

    With xi = 0 and without momentum the direction is the gradient of ln L.

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.1 (code).
      momentum: decay of the momentum, in [0, 1). Default 0.9 (code).
      xi: weight of the metric, >= 0. Default 0.1 (code).
      beta: decay of the mean of the squared norm, in [0, 1). Default 0.8 (code).
      weight_decay: decoupled decay >= 0, which the metric does not scale, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation that needs the extra argument `value`, the loss of this minibatch at `params`, > 0. State: 1
      word per parameter. Collectives: one scalar.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, a missing `value`, or a known one outside (0, inf).

    Example:
      >>> tx = induced_metric_log(0.5, xi=1.0)
      >>> x = jnp.array([3.0, 0.0])
      >>> round(float(tx.update(x, tx.init(x), x, value=1.0)[0][0]), 4)
      -0.15

    Reference: Harvey. The Optimiser Hidden in Plain Sight: Training with the Loss Landscape's Induced Metric. 2025,
    arXiv 2509.03594.
    """
    link = scale_by_induced_metric(xi=xi, beta=beta, kind="log", momentum=momentum, mu_dtype=mu_dtype)
    return _optimizer("induced_metric_log", learning_rate, weight_decay, weight_decay_mask, link)


def induced_metric_rms(
    learning_rate: ScalarOrSchedule = 0.1,
    *,
    momentum: Scalar = 0.9,
    xi: Scalar = 0.1,
    beta: Scalar = 0.8,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Momentum in the metric of the loss surface, on top of RMSProp's preconditioner.

    Equations, with G_t one number for all leaves together:

        m_t = momentum m_{t-1} + (1 - momentum) g_t
        d_t = sqrt(v_t / (1 - b2^t)) + eps,        v_t = b2 v_{t-1} + (1 - b2) |g_t|^2
        G_t = sum of |g_t|^2 / d_t
        k_t = beta k_{t-1} + (1 - beta) xi G_t,    K_t = k_t / (1 - beta^t)
        s_t = 1 / (1 + K_t)
        x_t = x_{t-1} - learning_rate (s_t m_t / ((1 - momentum^t) d_t) + weight_decay x_{t-1})

    With xi = 0 this is Adam, its bias corrections included.

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.1 (code).
      momentum: decay of the momentum, in [0, 1). Default 0.9 (code).
      xi: weight of the metric, >= 0. Default 0.1 (code).
      beta: decay of the mean of the squared norm, in [0, 1). Default 0.8 (code).
      b2: decay of the second moment, in [0, 1). Default 0.99 (code).
      eps: added to its root, >= 0. Default 1e-8 (code).
      weight_decay: decoupled decay >= 0, which the metric does not scale, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation. State: 2 words per parameter. Collectives: one scalar.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = induced_metric_rms(0.5, xi=1.0)
      >>> x = jnp.array([3.0, 0.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))  # sign / (1 + |g|) times the rate
      [-0.125 -0.   ]

    Reference: Harvey. The Optimiser Hidden in Plain Sight: Training with the Loss Landscape's Induced Metric. 2025,
    arXiv 2509.03594.
    """
    link = scale_by_induced_metric(xi=xi, beta=beta, kind="rms", momentum=momentum, b2=b2, eps=eps, mu_dtype=mu_dtype)
    return _optimizer("induced_metric_rms", learning_rate, weight_decay, weight_decay_mask, link)


SGD, LOG, RMS = (f"adaptive/induced_metric_{kind}" for kind in ("sgd", "log", "rms"))
register(scale_by_induced_metric, form="primitive", paper=PAPER, words=1, collectives="norms", golden=(SGD, LOG, RMS))
register(
    induced_metric_sgd,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="norms",
    golden=(SGD,),
    race=Race(1.0),
)
register(
    induced_metric_log,
    form="optimizer",
    paper=PAPER,
    needs=("value",),
    words=1,
    collectives="norms",
    golden=(LOG,),
    race=Race(1.0),
)
register(
    induced_metric_rms,
    form="optimizer",
    paper=PAPER,
    words=2,
    collectives="norms",
    golden=(RMS,),
    race=Race(5e-3),
)
