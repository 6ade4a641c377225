"""Lion: the sign of an interpolation between momentum and gradient."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import cast, once_per_dtype, optimizer, scalar, transformation, zeros
from gradkit.leaves import Layout, Method
from gradkit.transforms import add_decayed_weights, cautious, scale_by_learning_rate
from gradkit.transforms.cautious import PAPER as CAUTIOUS
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("Symbolic Discovery of Optimization Algorithms", "Chen et al.", 2023, "2302.06675")


def _is(value: Any, number: int) -> bool:
    return isinstance(value, int | float) and value == number


@functools.partial(jax.jit, inline=True)
def _sign(m: jax.Array, g: jax.Array, of_m: Any, of_g: Any) -> jax.Array:
    return jnp.sign(of_m * cast(m, g.dtype) + of_g * g)


class ScaleByLionState(NamedTuple):
    """The momentum."""

    mu: Any


def scale_by_lion(
    *, b1: Scalar = 0.9, b2: Scalar = 0.99, mu_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Replaces updates by the sign of Lion's interpolation.

    Equations, with sign(0) = 0:

        c_t = b1 m_{t-1} + (1 - b1) g_t
        u_t = sign(c_t)
        m_t = b2 m_{t-1} + (1 - b2) g_t

    Args:
      b1: weight of the momentum in the interpolation, in [0, 1]. Default 0.9 (paper).
      b2: decay of the momentum, in [0, 1]. Default 0.99 (paper). A traced value must be > 0.
      mu_dtype: dtype in which the momentum is kept between steps. Default: float32, or float64 for float64
        parameters.

    Returns:
      A transformation. State: 1 word per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves, which have no sign.

    Example:
      >>> tx = scale_by_lion()
      >>> g = jnp.array([0.2, -3.0, 0.0])
      >>> tx.update(g, tx.init(g))[0].tolist()
      [1.0, -1.0, 0.0]

    Reference: Chen et al. Symbolic Discovery of Optimization Algorithms. 2023, arXiv 2302.06675. c_t is computed from
    m_t, as (b1/b2) m_t + (1 - b1 - (b1/b2)(1 - b2)) g_t, which is the same number and does not need the old momentum,
    whose memory may be reused; it rounds differently, so the sign of a tie within rounding may differ. With the numbers
    b1 = 1 or b2 = 0 the paper's form is used, whose ties are exact.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("b1", b1, "[0, 1]")
    checks.real("b2", b2, "[0, 1]")

    plain = _is(b2, 0) or _is(b1, 1)

    def coefficients(g: jax.Array) -> tuple[Any, Any]:
        """The weights of the momentum (with `plain`, the paper's form, of the one before this step) and of the
        gradient."""
        b = scalar(b1, g)
        if plain:
            return b, 1 - b
        share = b / scalar(b2, g)
        return share, (1 - b) - share * (1 - scalar(b2, g))

    def update(updates: Any, state: ScaleByLionState, params: Any = None, **extra: Any) -> tuple[Any, ScaleByLionState]:
        del params, extra

        mu = jax.tree.map(lambda m, g: ema(m, g, b2), state.mu, updates)
        of = once_per_dtype(coefficients)
        signs = jax.tree.map(lambda m, g: _sign(m, g, *of(g)), state.mu if plain else mu, updates)
        return signs, ScaleByLionState(mu)

    return transformation("scale_by_lion", lambda params: ScaleByLionState(zeros(params, mu_dtype)), update)


def lion(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion: every coordinate moves by exactly the learning rate, plus decoupled weight decay.

    Equations, with sign(0) = 0:

        c_t = b1 m_{t-1} + (1 - b1) g_t
        u_t = sign(c_t)
        m_t = b2 m_{t-1} + (1 - b2) g_t
        x_t = x_{t-1} - learning_rate (u_t + weight_decay x_{t-1})

    Args:
      learning_rate: step size >= 0, or a schedule. The paper advises 3 to 10 times less than for AdamW, with
        3 to 10 times more decay, so that their product is the same.
      b1: weight of the momentum in the interpolation, in [0, 1]. Default 0.9 (paper).
      b2: decay of the momentum, in [0, 1]. Default 0.99 (paper).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0 (official code; optax has 1e-3).
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = lion(0.5)
      >>> x = jnp.array([1.0, -5.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.5  0.5]

    Reference: Chen et al. Symbolic Discovery of Optimization Algorithms. 2023, arXiv 2302.06675.
    """
    return optimizer(
        Method("lion", learning_rate, weight_decay, weight_decay_mask),
        scale_by_lion(b1=b1, b2=b2, mu_dtype=mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


def cautious_lion(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.95,
    b2: Scalar = 0.98,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    normalize: str | None = "count",
    floor: Any = 1e-3,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion that moves no entry against its gradient; the weight decay is not masked.

    Equations, with n the number of entries of a tensor:

        c_t = b1 m_{t-1} + (1 - b1) g_t,  u_t = sign(c_t),  m_t = b2 m_{t-1} + (1 - b2) g_t
        phi = 1[u_t g_t > 0]                                                        entrywise
        d_t = u_t phi n / (sum(phi) + 1)                                            normalize="count"
        d_t = u_t phi / max(mean(phi), floor)                                       normalize="mean"
        x_t = x_{t-1} - learning_rate (d_t + weight_decay x_{t-1})

    Args:
      learning_rate: step size >= 0, or a schedule.
      b1: weight of the momentum in the interpolation, in [0, 1]. Default 0.95 (official code).
      b2: decay of the momentum, in [0, 1]. Default 0.98 (official code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0 (official code).
      weight_decay_mask: which leaves decay. Default all.
      normalize: "count" (default, official code), "mean" or None, see `cautious`.
      floor: smallest mean of the mask that is divided by with "mean", in (0, 1]. Default 1e-3.
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are stacks: every layer of a scan is rescaled by itself.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter. Collectives: one scalar per tensor where
      leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves, which have no sign.

    Example:
      >>> tx = cautious_lion(0.5)
      >>> x = jnp.array([1.0, -5.0, 3.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))  # 3 / (3 + 1) of the rate
      [-0.375  0.375 -0.375]

    Reference: Liang et al. Cautious Optimizers: Improving Training with One Line of Code. 2024, arXiv 2411.16085.
    """
    return optimizer(
        Method("cautious_lion", learning_rate, weight_decay, weight_decay_mask),
        cautious(scale_by_lion(b1=b1, b2=b2, mu_dtype=mu_dtype), normalize=normalize, floor=floor, layout=layout),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(scale_by_lion, form="primitive", paper=PAPER, words=1, golden=("adaptive/lion",))
register(
    lion,
    form="optimizer",
    paper=PAPER,
    words=1,
    golden=("adaptive/lion",),
    race=Race(2e-3),
)
register(
    cautious_lion,
    form="optimizer",
    paper=CAUTIOUS,
    words=1,
    collectives="norms",
    golden=("modern/cautious_lion",),
    race=Race(2e-3),
)
