"""AdaDelta: steps in the units of the parameters, by a running mean of squared steps over one of squared gradients."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema_of_square, may_be_zero
from gradkit.engine.core import cast, divide, optimizer, scalar, transformation, zeros
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper("An overview of gradient descent optimization algorithms", "Ruder", 2016, "1609.04747")


@functools.partial(jax.jit, static_argnames="guarded")
def _step(g: jax.Array, e_g: jax.Array, e_x: jax.Array, eps: Any, *, guarded: bool) -> jax.Array:
    x, y = (cast(jnp.sqrt(e + scalar(eps, e)), g.dtype) for e in (e_x, e_g))
    return divide(g * x, y) if guarded else g * x / y


class ScaleByAdadeltaState(NamedTuple):
    """Running means of squared gradients and of squared steps."""

    e_g: Any
    e_x: Any


def scale_by_adadelta(*, rho: Scalar = 0.9, eps: Scalar = 1e-6) -> optax.GradientTransformationExtraArgs:
    """Rescales updates by AdaDelta's rule.

    Equations, with E the running mean of squared gradients and D that of squared steps, both 0 at the start:

        E_t = rho E_{t-1} + (1 - rho) |g_t|^2
        d_t = sqrt(D_{t-1} + eps) / sqrt(E_t + eps) g_t
        D_t = rho D_{t-1} + (1 - rho) |d_t|^2

    Args:
      rho: decay of both means, in [0, 1). Default 0.9 (torch, optax; the paper's best run has 0.95).
      eps: added under both roots, in the squared units of gradients and of steps, >= 0. Default 1e-6 (torch, optax; the
        paper's best run). It starts the method: with 0 no step is ever made.

    Returns:
      A transformation. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = scale_by_adadelta(rho=0.75, eps=1e-6)
      >>> g = jnp.array(1.0)
      >>> round(float(tx.update(g, tx.init(g))[0]), 6)  # sqrt(1e-6) / sqrt(0.25)
      0.002

    Reference: Zeiler. ADADELTA: An Adaptive Learning Rate Method. 2012, arXiv 1212.5701; Ruder. An overview of
    gradient descent optimization algorithms. 2016, arXiv 1609.04747. optax's link keeps its means in the parameters'
    dtype, and bfloat16 loses steps that small.
    """
    checks.real("rho", rho, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")

    def update(updates: Any, state: ScaleByAdadeltaState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra

        e_g = jax.tree.map(lambda e, g: ema_of_square(e, g, rho), state.e_g, updates)
        guarded = may_be_zero(eps)
        d = jax.tree.map(lambda g, e, d: _step(g, e, d, eps, guarded=guarded), updates, e_g, state.e_x)
        e_x = jax.tree.map(lambda e, d: ema_of_square(e, d, rho), state.e_x, d)
        return d, ScaleByAdadeltaState(e_g, e_x)

    def init(params: optax.Params) -> ScaleByAdadeltaState:
        return ScaleByAdadeltaState(zeros(params, real=True), zeros(params, real=True))

    return transformation("scale_by_adadelta", init, update, complex_leaves=True)


def adadelta(
    learning_rate: ScalarOrSchedule = 1.0, *, rho: Scalar = 0.9, eps: Scalar = 1e-6
) -> optax.GradientTransformationExtraArgs:
    """AdaDelta: scaling the loss by a constant changes nothing but the weight of eps.

    Equations, with E the running mean of squared gradients and D that of squared steps, both 0 at the start:

        E_t = rho E_{t-1} + (1 - rho) |g_t|^2
        d_t = sqrt(D_{t-1} + eps) / sqrt(E_t + eps) g_t
        D_t = rho D_{t-1} + (1 - rho) |d_t|^2
        x_t = x_{t-1} - learning_rate d_t

    Args:
      learning_rate: factor of the step >= 0, or a schedule. Default 1 (paper).
      rho: decay of both means, in [0, 1). Default 0.9 (torch, optax; the paper's best run has 0.95).
      eps: added under both roots, >= 0. Default 1e-6 (torch, optax; the paper's best run). It starts the
        method: the size of the first step is about its root.

    Returns:
      A transformation. State: 2 words per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = adadelta(rho=0.75)
      >>> x = jnp.array([2.0, -1.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.002  0.002]

    Reference: Zeiler. ADADELTA: An Adaptive Learning Rate Method. 2012, arXiv 1212.5701; Ruder. An overview of
    gradient descent optimization algorithms. 2016, arXiv 1609.04747. Coupled decay, as torch and optax have it, is
    `optax.chain(gk.add_decayed_weights(l2), gk.adadelta())`.
    """
    return optimizer(
        Method("adadelta", learning_rate), scale_by_adadelta(rho=rho, eps=eps), scale_by_learning_rate(learning_rate)
    )


register(scale_by_adadelta, form="primitive", paper=PAPER, words=2, golden=("adaptive/adadelta",))
register(
    adadelta,
    form="optimizer",
    paper=PAPER,
    words=2,
    golden=("adaptive/adadelta",),
    # Its steps have the units of the parameters, and a race is too short for the small steps that it starts with.
    race=Race(10.0),
)
