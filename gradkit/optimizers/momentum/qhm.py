"""Quasi-hyperbolic momentum: a step between the gradient and its running mean, plain and over Adam's denominator."""

import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import may_be_zero
from gradkit.engine.core import optimizer
from gradkit.leaves import Method
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.transforms.momenta import Mean, root_mean_square, weighted_momenta
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("Quasi-hyperbolic momentum and Adam for deep learning", "Ma, Yarats", 2018, "1810.06801")


def scale_by_qhm(
    *, b1: Scalar = 0.999, nu: Scalar = 0.7, mu_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """A weighted mean of the gradient and its running mean.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t                           not corrected for m_0 = 0
        u_t = (1 - nu) g_t + nu m_t

    Args:
      b1: decay of the running mean, in [0, 1). Default 0.999 (paper).
      nu: weight of the running mean, in [0, 1]. Default 0.7 (paper). 0 is the gradient, 1 damped momentum, b1
        Nesterov's momentum.
      mu_dtype: dtype in which the running mean is kept. Default float32.

    Returns:
      A transformation. State: 1 word per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_qhm(b1=0.5, nu=0.5)
      >>> g = jnp.array(1.0)
      >>> float(tx.update(g, tx.init(g))[0])
      0.75

    Reference: Ma, Yarats. Quasi-hyperbolic momentum and Adam for deep learning. 2018, arXiv 1810.06801. Read as
    variance reduction: Tondji et al. Variance Reduction in Deep Learning: More Momentum is All You Need. 2021,
    arXiv 2111.11828.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("b1", b1, "[0, 1)")
    checks.real("nu", nu, "[0, 1]")
    return weighted_momenta("scale_by_qhm", [Mean(b1, nu)], 1 - nu, mu_dtype=mu_dtype)


def qhm(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.999,
    nu: Scalar = 0.7,
    l2: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with quasi-hyperbolic momentum.

    Equations, where g_t is the gradient plus l2 x_{t-1}:

        m_t = b1 m_{t-1} + (1 - b1) g_t                           not corrected for m_0 = 0
        u_t = (1 - nu) g_t + nu m_t
        x_t = x_{t-1} - learning_rate (u_t + weight_decay x_{t-1})

    Args:
      learning_rate: step size >= 0, or a schedule. The momentum is a mean: to compare with momentum that is a
        sum, divide its learning rate by 1 - b1.
      b1: decay of the running mean, in [0, 1). Default 0.999 (paper).
      nu: weight of the running mean, in [0, 1]. Default 0.7 (paper).
      l2: coefficient of the L2 penalty, >= 0: its gradient enters the momentum. Default 0.
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay, by `l2` and by `weight_decay`. Default all.
      mu_dtype: dtype in which the running mean is kept. Default float32.

    Returns:
      A transformation; with `l2` or `weight_decay` it needs `params`. State: 1 word per parameter. Elementwise: no
      collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = qhm(0.1, b1=0.5, nu=0.5)
      >>> x = jnp.array(1.0)
      >>> round(float(tx.update(x, tx.init(x), x)[0]), 4)
      -0.075

    Reference: Ma, Yarats. Quasi-hyperbolic momentum and Adam for deep learning. 2018, arXiv 1810.06801.
    """
    checks.real("l2", l2, "[0, inf)")
    return optimizer(
        Method("qhm", learning_rate, weight_decay, weight_decay_mask),
        add_decayed_weights(l2, weight_decay_mask=weight_decay_mask),
        scale_by_qhm(b1=b1, nu=nu, mu_dtype=mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


def scale_by_qhadam(
    *,
    b1: Scalar = 0.995,
    b2: Scalar = 0.999,
    nu1: Scalar = 0.7,
    nu2: Scalar = 1.0,
    eps: Scalar = 1e-8,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam's direction with both moments averaged with the current gradient.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t            v_t = b2 v_{t-1} + (1 - b2) |g_t|^2
        u_t = ((1 - nu1) g_t + nu1 m_t / (1 - b1^t)) / (sqrt((1 - nu2) |g_t|^2 + nu2 v_t / (1 - b2^t)) + eps)

    Args:
      b1: decay of the first moment, in [0, 1). Default 0.995 (the authors' documentation).
      b2: decay of the second moment, in [0, 1). Default 0.999 (the authors' documentation).
      nu1: weight of the first moment against the gradient, in [0, 1]. Default 0.7 (the authors' documentation).
      nu2: weight of the second moment against the squared gradient, in [0, 1]. Default 1 (the authors' documentation).
      eps: added to the root, >= 0. Default 1e-8 (official code). With 0, coordinates whose denominator is 0 get the
        update 0.
      mu_dtype: dtype in which the first moment is kept. Default float32.

    Returns:
      A transformation. State: 2 words per parameter and two counters. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_qhadam()
      >>> g = jnp.array([3.0, -0.1])
      >>> print(tx.update(g, tx.init(g))[0].round(4))
      [ 1. -1.]

    Reference: Ma, Yarats. Quasi-hyperbolic momentum and Adam for deep learning. 2018, arXiv 1810.06801. The state of
    the official code has means divided by the sum of their weights instead of dividing by 1 - b^t: the same numbers.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    for name, value in (("b1", b1), ("b2", b2)):
        checks.real(name, value, "[0, 1)")
    for name, value in (("nu1", nu1), ("nu2", nu2)):
        checks.real(name, value, "[0, 1]")
    denominator = root_mean_square(b2=b2, eps=eps, nu=nu2)
    means = [Mean(b1, nu1, bias_correction=True)]
    return weighted_momenta(
        "scale_by_qhadam",
        means,
        1 - nu1,
        denominator=denominator,
        positive=not may_be_zero(eps),
        mu_dtype=mu_dtype,
    )


def qhadam(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.995,
    b2: Scalar = 0.999,
    nu1: Scalar = 0.7,
    nu2: Scalar = 1.0,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with quasi-hyperbolic moments; nu1 = nu2 = 1 is Adam.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t            v_t = b2 v_{t-1} + (1 - b2) |g_t|^2
        u_t = ((1 - nu1) g_t + nu1 m_t / (1 - b1^t)) / (sqrt((1 - nu2) |g_t|^2 + nu2 v_t / (1 - b2^t)) + eps)
        x_t = x_{t-1} - learning_rate (u_t + weight_decay x_{t-1})

    Args:
      learning_rate: step size >= 0, or a schedule. The paper has 1e-3.
      b1: decay of the first moment, in [0, 1). Default 0.995 (the authors' documentation).
      b2: decay of the second moment, in [0, 1). Default 0.999 (the authors' documentation).
      nu1: weight of the first moment against the gradient, in [0, 1]. Default 0.7 (the authors' documentation).
      nu2: weight of the second moment against the squared gradient, in [0, 1]. Default 1 (the authors' documentation).
      eps: added to the root, >= 0. Default 1e-8 (official code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which the first moment is kept. Default float32.

    Returns:
      A transformation; with `weight_decay` it needs `params`. State: 2 words per parameter. Elementwise: no
      collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = qhadam(0.5)
      >>> x = jnp.array([2.0, -0.01])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.5  0.5]

    Reference: Ma, Yarats. Quasi-hyperbolic momentum and Adam for deep learning. 2018, arXiv 1810.06801.
    """
    return optimizer(
        Method("qhadam", learning_rate, weight_decay, weight_decay_mask),
        scale_by_qhadam(b1=b1, b2=b2, nu1=nu1, nu2=nu2, eps=eps, mu_dtype=mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(scale_by_qhm, form="primitive", paper=PAPER, words=1, golden=("adaptive/qhm",))
register(
    qhm,
    form="optimizer",
    paper=PAPER,
    words=1,
    golden=("adaptive/qhm",),
    race=Race(5e-1),
)
register(scale_by_qhadam, form="primitive", paper=PAPER, words=2, golden=("adaptive/qhadam",))
register(
    qhadam,
    form="optimizer",
    paper=PAPER,
    words=2,
    golden=("adaptive/qhadam",),
    race=Race(5e-3),
)
