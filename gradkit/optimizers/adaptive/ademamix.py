"""AdEMAMix: Adam with a second, much slower momentum."""

import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import may_be_zero
from gradkit.engine.core import optimizer
from gradkit.leaves import Method
from gradkit.schedules import ademamix_alpha_schedule, ademamix_b3_schedule
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.transforms.momenta import Mean, root_mean_square, weighted_momenta
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("The AdEMAMix Optimizer: Better, Faster, Older", "Pagliardini, Ablin, Grangier", 2024, "2409.03137")


def scale_by_ademamix(
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 5.0,
    alpha_warmup: int | None = None,
    b3_warmup: int | None = None,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides the sum of a fast and a slow momentum by the root of the second moment, as Adam does.

    Equations:

        m1_t = b1 m1_{t-1} + (1 - b1) g_t               v_t = b2 v_{t-1} + (1 - b2) |g_t|^2
        m2_t = b3_t m2_{t-1} + (1 - b3_t) g_t           not corrected for its start at 0
        u_t = (m1_t / (1 - b1^t) + alpha_t m2_t) / (sqrt(v_t / (1 - b2^t) + eps_root) + eps)

    With a warm-up of T steps, alpha_t = alpha min(t / T, 1), and the half-life of b3_t grows linearly from that of b1
    at t = 0 to that of b3 at t = T (`gk.schedules.ademamix_b3_schedule`); otherwise alpha_t = alpha and b3_t = b3.

    Args:
      b1: decay of the fast momentum, in [0, 1). Default 0.9 (paper). With the number 0 it is the gradient, without
        state.
      b2: decay of the second moment, in [0, 1). Default 0.999 (paper).
      b3: decay of the slow momentum, in [0, 1), or a schedule. Default 0.9999 (paper).
      alpha: weight of the slow momentum, >= 0, or a schedule. Default 5 (paper: 4 to 10).
      alpha_warmup: steps over which alpha grows from 0, >= 1. Default None: alpha from the start. The paper takes all
        steps of the training, as for b3.
      b3_warmup: steps over which the decay of the slow momentum grows from b1 to b3, >= 1; it needs 0 < b1 <= b3.
        Default None: b3 from the start.
      eps: added to the root, >= 0. Default 1e-8 (official code).
      eps_root: added under the root, >= 0. Default 0.
      mu_dtype: dtype in which both momenta are kept. Default float32. The second moment is never narrowed.

    Returns:
      A transformation. State: 3 words per parameter (2 with b1 = 0) and two counters. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; a schedule where there is a warm-up too.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_ademamix(b3=0.9)
      >>> g = jnp.array([0.2, -3.0])
      >>> print(tx.update(g, tx.init(g))[0].round(4))  # sign(g) (1 + alpha (1 - b3))
      [ 1.5 -1.5]

    Reference: Pagliardini, Ablin, Grangier. The AdEMAMix Optimizer: Better, Faster, Older. 2024, arXiv 2409.03137. The
    first update has t = 1 in both warm-ups, as in the official code; optax's first update has t = 0. A schedule for b3
    or alpha is called with the number of earlier updates, like every schedule here.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    for name, value in (("b1", b1), ("b2", b2)):
        checks.real(name, value, "[0, 1)")
    checks.real("b3", b3, "[0, 1)", schedule=b3_warmup is None)
    checks.real("alpha", alpha, "[0, inf)", schedule=alpha_warmup is None)
    alpha_warmup = checks.integer("alpha_warmup", alpha_warmup, 1, optional=True)
    b3_warmup = checks.integer("b3_warmup", b3_warmup, 1, optional=True)
    if alpha_warmup is not None and not callable(alpha):
        alpha = ademamix_alpha_schedule(alpha, warmup_steps=alpha_warmup)
    if b3_warmup is not None and not callable(b3):
        b3 = ademamix_b3_schedule(b3, b1=b1, warmup_steps=b3_warmup)
    no_fast = isinstance(b1, int | float) and b1 == 0
    slow = Mean(b3, alpha, called=("b3", "alpha"))
    means = [slow] if no_fast else [Mean(b1, 1.0, bias_correction=True), slow]
    denominator = root_mean_square(b2=b2, eps=eps, eps_root=eps_root)
    return weighted_momenta(
        "scale_by_ademamix",
        means,
        1.0 if no_fast else 0.0,
        denominator=denominator,
        positive=not may_be_zero(eps, eps_root),
        mu_dtype=mu_dtype,
    )


def ademamix(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 5.0,
    alpha_warmup: int | None = None,
    b3_warmup: int | None = None,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with a fast and a slow momentum; with alpha = 0 it is AdamW.

    Equations:

        m1_t = b1 m1_{t-1} + (1 - b1) g_t               v_t = b2 v_{t-1} + (1 - b2) |g_t|^2
        m2_t = b3_t m2_{t-1} + (1 - b3_t) g_t           not corrected for its start at 0
        u_t = (m1_t / (1 - b1^t) + alpha_t m2_t) / (sqrt(v_t / (1 - b2^t) + eps_root) + eps)
        x_t = x_{t-1} - learning_rate (u_t + weight_decay x_{t-1})

    With a warm-up of T steps, alpha_t = alpha min(t / T, 1), and the half-life of b3_t grows linearly from that of b1
    at t = 0 to that of b3 at t = T (`gk.schedules.ademamix_b3_schedule`); otherwise alpha_t = alpha and b3_t = b3.

    Args:
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the fast momentum, in [0, 1). Default 0.9 (paper). With the number 0 it is the gradient, without
        state.
      b2: decay of the second moment, in [0, 1). Default 0.999 (paper).
      b3: decay of the slow momentum, in [0, 1), or a schedule. Default 0.9999 (paper).
      alpha: weight of the slow momentum, >= 0, or a schedule. Default 5 (paper: 4 to 10; its torch code has 2).
      alpha_warmup: steps over which alpha grows from 0, >= 1. Default None: alpha from the start. The paper takes all
        steps of the training.
      b3_warmup: steps over which the decay of the slow momentum grows from b1 to b3, >= 1. Default None: b3 from the
        start.
      eps: added to the root, >= 0. Default 1e-8 (official code).
      eps_root: added under the root, >= 0. Default 0.
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which both momenta are kept. Default float32.

    Returns:
      A transformation; with `weight_decay` it needs `params`. State: 3 words per parameter (2 with b1 = 0).
      Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; a schedule where there is a warm-up too.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = ademamix(0.1, b3=0.9)
      >>> x = jnp.array([2.0, -0.5])
      >>> [round(float(u), 4) for u in tx.update(x, tx.init(x), x)[0]]
      [-0.15, 0.15]

    Reference: Pagliardini, Ablin, Grangier. The AdEMAMix Optimizer: Better, Faster, Older. 2024, arXiv 2409.03137.
    """
    link = scale_by_ademamix(
        b1=b1,
        b2=b2,
        b3=b3,
        alpha=alpha,
        alpha_warmup=alpha_warmup,
        b3_warmup=b3_warmup,
        eps=eps,
        eps_root=eps_root,
        mu_dtype=mu_dtype,
    )
    return optimizer(
        Method("ademamix", learning_rate, weight_decay, weight_decay_mask),
        link,
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(scale_by_ademamix, form="primitive", paper=PAPER, words=3, golden=("adaptive/ademamix",))
register(
    ademamix,
    form="optimizer",
    paper=PAPER,
    words=3,
    golden=("adaptive/ademamix",),
    race=Race(5e-3),
)
