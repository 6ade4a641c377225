"""AutoSparse: thresholds that are learnt, and gradients that still reach what is below them."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar
from gradkit.layers.axes import floating, wide
from gradkit.types import Scalar

PAPER = Paper(
    "AUTOSPARSE: Towards Automated Sparse Training of Deep Neural Networks", "Kundu et al.", 2023, "2304.06941"
)


@jax.custom_vjp
def _sparse(w: jax.Array, s: jax.Array, alpha: jax.Array, least: jax.Array) -> jax.Array:
    del alpha, least
    return jnp.sign(w) * jax.nn.relu(jnp.abs(w) - jax.nn.sigmoid(s))


def _backward(kept: Any, c: jax.Array) -> tuple[Any, Any, None, None]:
    w, s, alpha, least = kept
    T = jax.nn.sigmoid(s)
    above = jnp.abs(w) - T
    factor = jnp.where(above > 0, jnp.ones_like(above), jnp.where(above >= least, alpha, jnp.zeros_like(above)))
    through = c * factor
    of_s = -jnp.sign(w) * through * (T * (1 - T))
    summed = tuple(i for i in range(w.ndim) if not s.ndim or s.shape[i] == 1)
    return through, jnp.sum(of_s, axis=summed, keepdims=bool(s.ndim)), None, None


_sparse.defvjp(lambda *args: (_sparse(*args), args), _backward)


def sparse_weight(w: Any, threshold_param: Any, alpha: Scalar, *, backward_density: float | None = None) -> jax.Array:
    """Weights with a learnt threshold: what is below it is 0, and gets a share of its gradient.

        T = sigmoid(s),    y = sign(w) relu(|w| - T)
        backward, with r = 1 where |w| > T, alpha elsewhere:    dw = r dy,    ds = -sum sign(w) r dy T (1 - T)

    alpha = 0 is plain soft thresholding, alpha = 1 gives dense gradients. Over a run alpha falls
    (`gk.schedules.sigmoid_cosine_decay`); weight decay on s lowers it, and so makes T smaller.

    Args:
      w: weights, floating point.
      threshold_param: s, a scalar for the tensor, or with as many axes as w and 1 where it is shared; a parameter.
      alpha: in [0, 1]; a number, or traced.
      backward_density: share of all entries, in (0, 1], that get a gradient: those with the largest |w| - T. Default
        None: all.

    Returns:
      An array like `w`, the same for every alpha. Reverse mode only.

    Raises:
      ValueError: an argument outside its range; shapes that do not fit.

    Example:
      >>> sparse_weight(jnp.array([2.0, -0.75, 0.25]), jnp.array(0.0), 0.5).tolist()
      [1.5, -0.25, 0.0]

    Reference: Kundu et al. AUTOSPARSE: Towards Automated Sparse Training of Deep Neural Networks. 2023, arXiv
    2304.06941. From re-implementations of a pruning library: the paper's own code was not found.
    """
    checks.arrays(w=w, threshold_param=threshold_param)
    checks.real("alpha", alpha, "[0, 1]")
    checks.real("backward_density", backward_density, "(0, 1]", optional=True)
    w, s = floating("w", w), floating("threshold_param", threshold_param)
    if s.ndim and (s.ndim != w.ndim or any(a not in (1, b) for a, b in zip(s.shape, w.shape, strict=True))):
        raise ValueError(
            f"threshold_param must be a scalar, or have the axes of w {w.shape} with 1 where it is shared, got "
            f"{s.shape}; write a scalar for the layer, or shape {(1,) * max(w.ndim - 1, 0) + w.shape[-1:]} for units"
        )
    x = wide(w)
    t = s.astype(x.dtype)
    least = jnp.asarray(-jnp.inf, x.dtype)
    if backward_density is not None and w.size:
        above = (jnp.abs(x) - jax.nn.sigmoid(t)).reshape(-1)
        least = jax.lax.top_k(above, max(1, round(backward_density * w.size)))[0][-1]
    return _sparse(x, t, jnp.asarray(scalar(alpha, x), x.dtype), jax.lax.stop_gradient(least)).astype(w.dtype)


register(
    sparse_weight,
    form="layer",
    paper=PAPER,
    example={
        "w": jax.ShapeDtypeStruct((8, 4), "float32"),
        "threshold_param": jax.ShapeDtypeStruct((), "float32"),
        "alpha": 0.5,
    },
)
