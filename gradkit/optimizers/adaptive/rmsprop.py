"""RMSProp: gradients over the root of the running mean of their squares."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, ema_of_square, inside_or_outside, over_root
from gradkit.engine.core import abs_sq, optimizer, transformation, zeros
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate, trace
from gradkit.types import DTypeLike, Scalar, ScalarOrSchedule

PAPER = Paper("An overview of gradient descent optimization algorithms", "Ruder", 2016, "1609.04747")


@functools.partial(jax.jit, inline=True)
def _variance(v: jax.Array, m: jax.Array) -> jax.Array:
    return jax.lax.max(v - abs_sq(m), np.zeros((), v.dtype))


class ScaleByRmsState(NamedTuple):
    """Running means of squared gradients and, with `centered`, of gradients."""

    nu: Any
    mu: Any


def scale_by_rms(
    *, decay: Scalar = 0.9, eps: Scalar = 1e-8, centered: bool = False, eps_in_sqrt: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Divides updates by the root of the running mean of their squares, or by their standard deviation.

    Equations:

        v_t = decay v_{t-1} + (1 - decay) |g_t|^2
        m_t = decay m_{t-1} + (1 - decay) g_t                with `centered`, else m_t = 0
        u_t = g_t / (sqrt(v_t - |m_t|^2) + eps)              with `eps_in_sqrt`  g_t / sqrt(v_t - |m_t|^2 + eps)

    There is no bias correction; with it, this is `gk.scale_by_adam(b1=0.0)`.

    Args:
      decay: decay of the running means, in [0, 1). Default 0.9 (Hinton, Ruder, optax; torch has 0.99).
      eps: added to the root, >= 0. Default 1e-8. With 0, coordinates without a gradient get the update 0.
      centered: whether the squared mean is subtracted from the mean square. Default False.
      eps_in_sqrt: whether eps is added under the root instead (Ruder, optax). Default False (torch).

    Returns:
      A transformation. State: 1 word per parameter, 2 centred. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_rms(decay=0.75, eps=0.0)
      >>> g = jnp.array([3.0, -0.1])
      >>> tx.update(g, tx.init(g))[0].round(4).tolist()
      [2.0, -2.0]

    Reference: Hinton, Srivastava, Swersky. Neural Networks for Machine Learning, lecture 6. 2012; Ruder. An overview
    of gradient descent optimization algorithms. 2016, arXiv 1609.04747; centred: Graves. Generating Sequences With
    Recurrent Neural Networks. 2013, arXiv 1308.0850. A variance that is negative by rounding is set to 0.
    """
    checks.switch(centered=centered, eps_in_sqrt=eps_in_sqrt)
    checks.real("decay", decay, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    outside, inside = inside_or_outside(eps, eps_in_sqrt)

    def init(params: optax.Params) -> ScaleByRmsState:
        return ScaleByRmsState(zeros(params, real=True), zeros(params) if centered else None)

    def update(updates: Any, state: ScaleByRmsState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        nu = jax.tree.map(lambda v, g: ema_of_square(v, g, decay), state.nu, updates)
        mu, variance = None, nu
        if centered:
            mu = jax.tree.map(lambda m, g: ema(m, g, decay), state.mu, updates)
            variance = jax.tree.map(_variance, nu, mu)
        u = jax.tree.map(lambda g, v: over_root(g, v, outside, inside), updates, variance)
        return u, ScaleByRmsState(nu, mu)

    return transformation("scale_by_rms", init, update, complex_leaves=True)


def rmsprop(
    learning_rate: ScalarOrSchedule,
    *,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    centered: bool = False,
    eps_in_sqrt: bool = False,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """RMSProp, with optional momentum of the rescaled gradients.

    Equations:

        v_t = decay v_{t-1} + (1 - decay) |g_t|^2
        m_t = decay m_{t-1} + (1 - decay) g_t                with `centered`, else m_t = 0
        u_t = g_t / (sqrt(v_t - |m_t|^2) + eps)              with `eps_in_sqrt`  g_t / sqrt(v_t - |m_t|^2 + eps)
        b_t = momentum b_{t-1} + u_t
        x_t = x_{t-1} - learning_rate b_t                    with `nesterov`  u_t + momentum b_t for b_t

    Args:
      learning_rate: step size >= 0, or a schedule. Ruder: 1e-3.
      decay: decay of the running means, in [0, 1). Default 0.9 (Hinton, Ruder, optax; torch has 0.99).
      eps: added to the root, >= 0. Default 1e-8.
      centered: whether the squared mean gradient is subtracted from the mean square. Default False.
      eps_in_sqrt: whether eps is added under the root instead (Ruder, optax). Default False (torch).
      momentum: decay of the momentum, in [0, 1]. Default None: no momentum, as with 0.
      nesterov: whether the momentum looks ahead. Default False.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation. State: 1 word per parameter, one more each when centred and with momentum. Elementwise: no
      collective.

    Raises:
      ValueError: a hyperparameter outside its range; Nesterov without momentum.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = rmsprop(0.5, decay=0.75)
      >>> x = jnp.array([2.0, -0.01])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))  # sign / sqrt(1 - decay) times the rate
      [-1.  1.]

    Reference: Hinton, Srivastava, Swersky. Neural Networks for Machine Learning, lecture 6. 2012; Ruder. An overview
    of gradient descent optimization algorithms. 2016, arXiv 1609.04747. The learning rate comes after the momentum, as
    in torch. optax and TensorFlow have it before the momentum, which differs where the learning rate changes: that is
    `optax.chain(gk.scale_by_rms(), gk.scale_by_learning_rate(rate), gk.trace(0.9))`.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("momentum", momentum, "[0, 1]", optional=True)
    plain = checks.absent(momentum)
    if plain and nesterov:
        raise ValueError(
            f"momentum must be in (0, 1] with nesterov=True, got {momentum}; write momentum=0.9, or nesterov=False"
        )
    kept = [] if plain or momentum is None else [trace(momentum, nesterov=nesterov, mu_dtype=mu_dtype)]
    return optimizer(
        Method("rmsprop", learning_rate),
        scale_by_rms(decay=decay, eps=eps, centered=centered, eps_in_sqrt=eps_in_sqrt),
        *kept,
        scale_by_learning_rate(learning_rate),
    )


register(scale_by_rms, form="primitive", paper=PAPER, words=1, golden=("adaptive/rmsprop",))
register(
    rmsprop,
    form="optimizer",
    paper=PAPER,
    words=1,
    golden=("adaptive/rmsprop",),
    race=Race(5e-3),
)
