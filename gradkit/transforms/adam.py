"""Adam's direction: the running mean of gradients over the root of the running mean of their squares."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import ema, ema_of_square, over_root
from gradkit.engine.core import (
    bias_correction as correction,
)
from gradkit.engine.core import (
    cast,
    increment,
    once_per_dtype,
    pair,
    transformation,
    weights,
    zeros,
)
from gradkit.types import DTypeLike, Scalar


@functools.partial(jax.jit, inline=True)
def _ahead(m: jax.Array, g: jax.Array, b1: tuple[Any, Any], m_by: Any, g_by: Any) -> jax.Array:
    b, rest = weights(b1, g)
    m, g = b * cast(m, g.dtype), rest * g
    return m + g if m_by is None else m / m_by + g / g_by


class ScaleByAdamState(NamedTuple):
    """Number of updates made, and the two moments."""

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_adam(
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    bias_correction: bool = True,
    eps_in_hat: bool = True,
    nesterov: bool = False,
    nesterov_correction: str = "next",
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Rescales updates by Adam's rule; the sign and the learning rate belong to the next link.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t            v_t = b2 v_{t-1} + (1 - b2) |g_t|^2
        u_t = (m_t / (1 - b1^t)) / (sqrt(v_t / (1 - b2^t) + eps_root) + eps)

    With `nesterov` the numerator m_t / (1 - b1^t) becomes

        b1 m_t / (1 - b1^(t+1)) + (1 - b1) g_t / (1 - b1^t)        "next" (Dozat 2016; optax's form)
        (b1 m_t + (1 - b1) g_t) / (1 - b1^t)                       "same" (AdamP's code)

    Differences from `optax.scale_by_adam`: its moments have the parameters' dtype (with bfloat16 parameters the second
    moment stops decaying), it promotes int32 counters implicitly, and a bfloat16 first moment makes it slower.

    Args:
      b1: decay of the first moment, in [0, 1). Default 0.9 (paper).
      b2: decay of the second moment, in [0, 1). Default 0.999 (paper).
      eps: added to the root, in the gradient's units, >= 0. Default 1e-8 (paper). With 0, coordinates
        whose second moment is 0 get the update 0.
      eps_root: added under the root, >= 0. Default 0; positive values make the update differentiable at 0.
      bias_correction: whether moments are divided by 1 - b^t. Default True (paper).
      eps_in_hat: whether eps is added to the root of the corrected moment, or (False) to that of v_t, and corrected
        with it, which multiplies eps by 1 / sqrt(1 - b2^t). Default True (paper); False in the first Adam of
        HuggingFace's transformers, on which the codes of GaLore, Fira, Conda and SOAP are built.
      nesterov: whether the numerator looks one step ahead. Default False.
      nesterov_correction: "next" or "same", see above; not used without `nesterov`.
      mu_dtype: dtype in which the first moment is kept between steps; arithmetic stays in float32.
        Default: float32, or float64 for float64 parameters. The second moment is never narrowed: in
        bfloat16 it would stop decaying.

    Returns:
      A transformation. State: 2 words per parameter and a counter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = scale_by_adam(eps=0.0)
      >>> g = {"w": jnp.array([3.0, -0.1])}
      >>> updates, state = tx.update(g, tx.init(g))  # the first direction is the sign of the gradient
      >>> updates["w"].round(4).tolist()
      [1.0, -1.0]

    Reference: Kingma, Ba. Adam: A Method for Stochastic Optimization. 2014, arXiv 1412.6980.
    """
    checks.switch(bias_correction=bias_correction, eps_in_hat=eps_in_hat, nesterov=nesterov)
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("b1", b1, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.real("eps_root", eps_root, "[0, inf)")
    checks.choice("nesterov_correction", nesterov_correction, ("next", "same"))

    def init(params: optax.Params) -> ScaleByAdamState:
        return ScaleByAdamState(jnp.zeros((), jnp.int32), zeros(params, mu_dtype), zeros(params, real=True))

    def update(updates: Any, state: ScaleByAdamState, params: Any = None, **extra: Any) -> tuple[Any, ScaleByAdamState]:
        del params, extra
        count = increment(state.count)

        mu = jax.tree.map(lambda m, g: ema(m, g, b1), state.mu, updates)
        nu = jax.tree.map(lambda v, g: ema_of_square(v, g, b2), state.nu, updates)

        def corrections(g: jax.Array) -> tuple[Any, Any, Any, Any]:
            if not bias_correction:
                return None, None, None, None
            c1, c2 = correction(b1, count, g), correction(b2, count, g)
            next_one = nesterov and nesterov_correction == "next"
            ahead = correction(b1, count + 1, g) if next_one else c1
            return cast(ahead, g.dtype), cast(c1, g.dtype), c2, None if eps_in_hat else jax.lax.rsqrt(c2)

        of_dtype = once_per_dtype(corrections)

        def direction(m: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
            m_by, g_by, v_by, of_eps = of_dtype(g)
            m = _ahead(m, g, pair(b1), m_by, g_by) if nesterov else cast(m, g.dtype)
            return over_root(m, v, eps, eps_root, x_by=None if nesterov else m_by, v_by=v_by, of_eps=of_eps)

        return jax.tree.map(direction, mu, nu, updates), ScaleByAdamState(count, mu, nu)

    return transformation("scale_by_adam", init, update, complex_leaves=True)


register(
    scale_by_adam,
    form="primitive",
    paper=Paper("Adam: A Method for Stochastic Optimization", "Kingma, Ba", 2014, "1412.6980"),
    words=2,
    golden=("adaptive/adam", "adaptive/adam_l2"),
)
