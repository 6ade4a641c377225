"""The root of the sum of all squares so far, per coordinate or of the norm of the gradient, as a denominator."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import inside_or_outside, over_root
from gradkit.engine.anchors import scalar_dtype
from gradkit.engine.core import (
    abs_sq,
    cast,
    scalar,
    transformation,
    zeros,
)
from gradkit.engine.norms import global_norm
from gradkit.types import Scalar


@functools.partial(jax.jit, inline=True)
def _plus_square(s: jax.Array, g: jax.Array, weight: Any) -> jax.Array:
    return s + scalar(weight, s) * cast(abs_sq(g), s.dtype)


class ScaleByRssState(NamedTuple):
    """The sum of squares: a tree like the parameters, or one number."""

    sum_of_squares: Any


def _rss(
    method: str, start: Any, reweight: Any, norm: bool, eps: Any, eps_in_sqrt: bool, delayed: bool
) -> optax.GradientTransformationExtraArgs:
    checks.real("reweight", reweight, "(0, inf)")
    checks.real("eps", eps, "[0, inf)")
    outside, inside = inside_or_outside(eps, eps_in_sqrt)

    def init(params: optax.Params) -> ScaleByRssState:
        if not norm:
            return ScaleByRssState(jax.tree.map(lambda s: s + scalar(start, s), zeros(params, real=True)))
        one = jnp.ones((), scalar_dtype(params))
        return ScaleByRssState(one * scalar(start, one))

    def update(updates: Any, state: ScaleByRssState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra

        old = state.sum_of_squares
        new = (
            _plus_square(old, global_norm(updates), reweight)
            if norm
            else jax.tree.map(lambda s, g: _plus_square(s, g, reweight), old, updates)
        )
        used = old if delayed else new
        spread = jax.tree.map(lambda g: used, updates) if norm else used
        return jax.tree.map(lambda g, s: over_root(g, s, outside, inside), updates, spread), ScaleByRssState(new)

    return transformation(method, init, update, complex_leaves=True)


def scale_by_rss(
    *,
    initial_accumulator_value: Scalar = 0.0,
    reweight: Scalar = 1.0,
    norm: bool = False,
    eps: Scalar = 1e-10,
    eps_in_sqrt: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Divides updates by the root of the sum of all squares, their own included.

    Equations, with |g|^2 per coordinate, or with norm=True one number over all leaves together:

        s_t = s_{t-1} + reweight |g_t|^2,    s_0 = initial_accumulator_value
        u_t = g_t / (sqrt(s_t) + eps)

    Args:
      initial_accumulator_value: s_0 >= 0, a square. Default 0 (paper, torch; optax has 0.1).
      reweight: weight of every square, > 0. Default 1 (paper).
      norm: whether one sum is kept of the squared norm over all leaves (AdaGrad-Norm). Default False.
      eps: added to the root, >= 0. Default 1e-10 (torch). With 0, coordinates that never had a gradient get 0.
      eps_in_sqrt: whether eps is added under the root instead (Ruder, optax). Default False.

    Returns:
      A transformation. State: 1 word per parameter, one number with `norm`. Elementwise: no collective; with `norm`
      one scalar.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = scale_by_rss(eps=0.0)
      >>> g = jnp.array([3.0, 0.0])
      >>> _, state = tx.update(g, tx.init(g))
      >>> [round(float(u), 4) for u in tx.update(4 / 3 * g, state)[0]]  # 4 / sqrt(9 + 16)
      [0.8, 0.0]

    Reference: Duchi, Hazan, Singer. Adaptive Subgradient Methods for Online Learning and Stochastic Optimization. 2011.
    """
    checks.switch(norm=norm, eps_in_sqrt=eps_in_sqrt)
    checks.real("initial_accumulator_value", initial_accumulator_value, "[0, inf)")
    return _rss("scale_by_rss", initial_accumulator_value, reweight, norm, eps, eps_in_sqrt, delayed=False)


def scale_by_delayed_rss(
    *,
    initial_accumulator_value: Scalar = 1e-4,
    reweight: Scalar = 1.0,
    norm: bool = True,
    eps: Scalar = 1e-10,
) -> optax.GradientTransformationExtraArgs:
    """Divides updates by the root of the sum of all squares before them.

    Equations, with |g|^2 over all leaves together, or with norm=False per coordinate:

        s_t = s_{t-1} + reweight |g_t|^2,    s_0 = initial_accumulator_value
        u_t = g_t / (sqrt(s_{t-1}) + eps)

    The denominator does not depend on the current gradient, so the step is unbiased given the past.

    Args:
      initial_accumulator_value: s_0 > 0, a square: the first update is g_1 / sqrt(s_0). Default 1e-4.
      reweight: eta, the weight of every square, > 0. Default 1.
      norm: whether one sum is kept of the squared norm over all leaves (the paper's form) or one per coordinate.
        Default True.
      eps: added to the root, >= 0. Default 1e-10.

    Returns:
      A transformation. State: one number, 1 word per parameter without `norm`. Collectives: one scalar with `norm`.

    Raises:
      ValueError: a hyperparameter outside its range; s_0 = 0, which would be the first denominator.

    Example:
      >>> tx = scale_by_delayed_rss(initial_accumulator_value=4.0, eps=0.0)
      >>> g = jnp.array([3.0, 0.0])
      >>> u, state = tx.update(g, tx.init(g))
      >>> u.tolist(), round(float(tx.update(g, state)[0][0]), 4)  # 3 / 2, then 3 / sqrt(4 + 9)
      ([1.5, 0.0], 0.8321)

    Reference: Chezhegov et al. Gradient Clipping Improves AdaGrad when the Noise Is Heavy-Tailed. 2024, arXiv
    2406.04443. Departure from the paper's code, which divides the gradient of the previous step; the paper does not.
    """
    checks.switch(norm=norm)
    checks.real("initial_accumulator_value", initial_accumulator_value, "(0, inf)")
    return _rss("scale_by_delayed_rss", initial_accumulator_value, reweight, norm, eps, False, delayed=True)


register(
    scale_by_rss,
    form="primitive",
    paper=Paper(
        "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", "Duchi, Hazan, Singer", 2011
    ),
    words=1,
    golden=("adaptive/adagrad", "adaptive/clip_adagrad"),
)
register(
    scale_by_delayed_rss,
    form="primitive",
    paper=Paper(
        "Gradient Clipping Improves AdaGrad when the Noise Is Heavy-Tailed", "Chezhegov et al.", 2024, "2406.04443"
    ),
    collectives="norms",
    example={"initial_accumulator_value": 1.0},
)
