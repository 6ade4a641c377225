"""AdaGrad on clipped gradients: both the step and the sum of squares have the clipped gradient."""

import optax

from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import optimizer
from gradkit.leaves import Layout, Method
from gradkit.transforms import scale_by_delayed_rss, scale_by_learning_rate, scale_by_rss
from gradkit.transforms.clip_block import clip_by
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper(
    "Gradient Clipping Improves AdaGrad when the Noise Is Heavy-Tailed", "Chezhegov et al.", 2024, "2406.04443"
)


def clip_adagrad(
    learning_rate: ScalarOrSchedule,
    *,
    max_norm: Scalar = 1.0,
    reweight: Scalar = 1.0,
    initial_accumulator_value: Scalar = 0.0,
    norm: bool = False,
    clipping: str = "local",
    eps: Scalar = 1e-10,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad, or AdaGrad-Norm, on clipped gradients.

    Equations, with |c|^2 per coordinate, or with norm=True over all leaves together, and
    s_0 = initial_accumulator_value:

        c_t = clip(g_t, max_norm)
        s_t = s_{t-1} + reweight |c_t|^2
        x_t = x_{t-1} - learning_rate c_t / (sqrt(s_t) + eps)

    Args:
      learning_rate: step size >= 0, or a schedule.
      max_norm: the clipping level, > 0: a norm, or with "elementwise" an absolute value. Default 1. With infinity
        this is AdaGrad.
      reweight: eta, the weight of every square, > 0. Default 1.
      initial_accumulator_value: s_0 >= 0, a square. Default 0 (AdaGrad).
      norm: whether there is one sum, of the squared norm over all leaves, and not one per coordinate. Default False
        (the form of the code).
      clipping: "global" (all leaves together), "local" (every tensor) or "elementwise". Default "local" (code).
      eps: added to the root, >= 0. Default 1e-10 (code).
      layout: which axes are stacks, for "local".

    Returns:
      A transformation. State: 1 word per parameter, one number with `norm`. Collectives: those of the clipping norms.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves with "elementwise".

    Example:
      >>> import jax.numpy as jnp
      >>> tx = clip_adagrad(0.5, clipping="elementwise")
      >>> x = jnp.array([8.0, -0.01])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.5  0.5]

    Reference: Chezhegov et al. Gradient Clipping Improves AdaGrad when the Noise Is Heavy-Tailed. 2024, arXiv
    2406.04443. Departure from its code, which decays weights after the step: decay is a link of the chain here.
    """
    return optimizer(
        Method("clip_adagrad", learning_rate),
        clip_by(clipping, max_norm, layout),
        scale_by_rss(initial_accumulator_value=initial_accumulator_value, reweight=reweight, norm=norm, eps=eps),
        scale_by_learning_rate(learning_rate),
    )


def clip_radagradd(
    learning_rate: ScalarOrSchedule,
    *,
    max_norm: Scalar = 1.0,
    reweight: Scalar = 1.0,
    initial_accumulator_value: Scalar = 1e-4,
    norm: bool = True,
    clipping: str = "global",
    eps: Scalar = 1e-10,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Clipped, reweighted AdaGrad with delay: the denominator does not contain the current gradient.

    Equations, with |c|^2 per coordinate, or with norm=True over all leaves together, and
    s_0 = initial_accumulator_value:

        c_t = clip(g_t, max_norm)
        x_t = x_{t-1} - learning_rate c_t / (sqrt(s_{t-1}) + eps)
        s_t = s_{t-1} + reweight |c_t|^2

    The first step is `learning_rate c_1 / sqrt(initial_accumulator_value)`: however large the gradient is, it is
    clipped.

    Args:
      learning_rate: step size >= 0, or a schedule.
      max_norm: the clipping level, > 0: a norm, or with "elementwise" an absolute value. Default 1.
      reweight: eta, the weight of every square, > 0. Default 1.
      initial_accumulator_value: s_0 > 0, a square (the paper's b_0^2). Default 1e-4, with which the first step for
        a clipped gradient of norm 1 is 100 learning rates long; the square of a typical gradient starts more gently.
      norm: whether there is one sum, of the squared norm over all leaves (paper), or one per coordinate. Default True.
      clipping: "global" (all leaves together, paper), "local" (every tensor) or "elementwise". Default "global".
      eps: added to the root, >= 0. Default 1e-10.
      layout: which axes are stacks, for "local".

    Returns:
      A transformation. State: one number, or 1 word per parameter without `norm`. Collectives: those of the norms.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves with "elementwise".

    Example:
      >>> import jax.numpy as jnp
      >>> tx = clip_radagradd(0.5, initial_accumulator_value=0.25)
      >>> x = jnp.array([300.0, -400.0])
      >>> [round(float(u), 4) for u in tx.update(x, tx.init(x), x)[0]]
      [-0.6, 0.8]

    Reference: Chezhegov et al. Gradient Clipping Improves AdaGrad when the Noise Is Heavy-Tailed. 2024, arXiv
    2406.04443. Departure from its code, which steps with the gradient of the step before: a stale variable there, and
    not what the paper says.
    """
    return optimizer(
        Method("clip_radagradd", learning_rate),
        clip_by(clipping, max_norm, layout),
        scale_by_delayed_rss(
            initial_accumulator_value=initial_accumulator_value, reweight=reweight, norm=norm, eps=eps
        ),
        scale_by_learning_rate(learning_rate),
    )


register(
    clip_adagrad,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="norms",
    golden=("adaptive/clip_adagrad",),
    race=Race(5e-2),
)
register(
    clip_radagradd,
    form="optimizer",
    paper=PAPER,
    collectives="norms",
    example={"initial_accumulator_value": 1.0},
    opt_outs={"layout": "the default norm is of all leaves together; tests/papers checks layouts with 'local'"},
    race=Race(1.0, {"initial_accumulator_value": 1.0}),
)
