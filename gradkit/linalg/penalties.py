"""Penalties that make coefficients exactly zero, their smooth concave parts and their proximal operators, per entry."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.types import Scalar


def _like(value: Any, z: jax.Array) -> Any:
    return value if type(value) in (int, float) else jnp.asarray(value).astype(z.dtype)


def _soft(z: jax.Array, threshold: Any) -> jax.Array:
    """The soft threshold sign(z) max(|z| - threshold, 0)."""
    return jnp.sign(z) * jnp.maximum(jnp.abs(z) - threshold, 0)


def _scad(z: jax.Array, l1: Any, a: Any) -> tuple[Any, Any]:
    """lam and a, checked, in the dtype of z."""
    checks.real("l1", l1, "[0, inf)")
    checks.real("a", a, "(2, inf)")
    return _like(l1, z), _like(a, z)


def _mcp(z: jax.Array, l1: Any, gamma: Any) -> tuple[Any, Any]:
    """lam and gamma, checked, in the dtype of z."""
    checks.real("l1", l1, "[0, inf)")
    checks.real("gamma", gamma, "(1, inf)")
    return _like(l1, z), _like(gamma, z)


def _below(name: str, value: Any, bound: Any, what: str) -> None:
    if type(value) in (int, float) and type(bound) in (int, float) and not value < bound:
        raise ValueError(f"{name} must be in (0, {what}), here below {bound!r}, got {value!r}; give a smaller {name}")


def prox_l1(z: jax.Array, threshold: Any) -> jax.Array:
    """The soft threshold: the proximal operator of threshold * |z|.

    Equations:

        prox(z) = sign(z) max(|z| - threshold, 0)

    Args:
      z: array.
      threshold: step times the weight of the penalty, >= 0; a number or an array that broadcasts.

    Returns:
      An array like `z`.

    Raises:
      ValueError: a negative threshold.

    Example:
      >>> print(prox_l1(jnp.array([-2.0, 0.5, 3.0]), 1.0))
      [-1.  0.  2.]

    Reference: Donoho, Johnstone. Ideal spatial adaptation by wavelet shrinkage. 1994.
    """
    checks.arrays(z=z, threshold=threshold)
    if jnp.ndim(threshold) == 0:
        checks.real("threshold", threshold, "[0, inf)")
    return _soft(z, _like(threshold, z))


def scad_penalty(z: jax.Array, l1: Scalar, a: Any = 3.7) -> jax.Array:
    """The SCAD penalty of every entry.

    Equations, with lam = l1:

        penalty(z) = lam |z|                                               |z| <= lam
                   = (2 a lam |z| - z^2 - lam^2) / (2 (a - 1))             lam < |z| <= a lam
                   = lam^2 (a + 1) / 2                                     |z| > a lam

    Args:
      z: array.
      l1: weight lam at zero, >= 0.
      a: where the penalty becomes constant, in units of lam, > 2. Default 3.7 (Fan, Li 2001).

    Returns:
      An array like `z`.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(scad_penalty(jnp.array([0.5, 100.0]), 1.0))
      [0.5  2.35]

    Reference: Fan, Li. Variable Selection via Nonconcave Penalized Likelihood and its Oracle Properties. 2001.
    """
    checks.arrays(z=z)
    (lam, a), size = _scad(z, l1, a), jnp.abs(z)
    bend = (2 * a * lam * size - jnp.square(z) - lam * lam) / (2 * (a - 1))
    flat = jnp.full_like(z, lam * lam * (a + 1) / 2)
    return jnp.where(size <= lam, lam * size, jnp.where(size <= a * lam, bend, flat))


def scad_concave_grad(z: jax.Array, l1: Scalar, a: Any = 3.7) -> jax.Array:
    """The derivative of the smooth concave part h of SCAD, whose penalty is lam |z| + h(z).

    Equations, with lam = l1 and the sign S(z) of z:

        h'(z) = 0                                   |z| <= lam
              = (lam S(z) - z) / (a - 1)            lam < |z| <= a lam
              = -lam S(z)                           |z| > a lam

    Args:
      z: array.
      l1: weight lam at zero, >= 0.
      a: where it flattens, in units of lam, > 2. Default 3.7 (Fan, Li 2001).

    Returns:
      An array like `z`.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(scad_concave_grad(jnp.array([0.5, -100.0]), 1.0))
      [0. 1.]

    Reference: Fan, Li. 2001; Yang, Asgharian, Bhatnagar. 2020, arXiv 2009.10629.
    """
    checks.arrays(z=z)
    (lam, a), size, sign = _scad(z, l1, a), jnp.abs(z), jnp.sign(z)
    bend = (lam * sign - z) / (a - 1)
    return jnp.where(size <= lam, jnp.zeros_like(z), jnp.where(size < a * lam, bend, -lam * sign))


def prox_scad(z: jax.Array, l1: Scalar, step: Scalar = 1.0, a: Any = 3.7) -> jax.Array:
    """The proximal operator of the SCAD penalty.

    Equations, with lam = l1, the sign S(z) of z and soft(z, t) = S(z) max(|z| - t, 0):

        prox(z) = argmin_x (x - z)^2 / (2 step) + penalty(x)
                = soft(z, step lam)                                        |z| <= (1 + step) lam
                = ((a - 1) z - S(z) a step lam) / (a - 1 - step)           (1 + step) lam < |z| <= a lam
                = z                                                        |z| > a lam

    Args:
      z: array.
      l1: weight lam at zero, >= 0.
      step: in (0, a - 1), where the problem is convex. Default 1.
      a: where the penalty flattens, in units of lam, > 2. Default 3.7 (Fan, Li 2001).

    Returns:
      An array like `z`.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(prox_scad(jnp.array([0.5, 1.5, 10.0]), 1.0))
      [ 0.   0.5 10. ]

    Reference: Fan, Li. 2001.
    """
    checks.arrays(z=z)
    checks.real("step", step, "(0, inf)")
    (lam, knee), eta, size = _scad(z, l1, a), _like(step, z), jnp.abs(z)
    _below("step", step, a - 1, "a - 1")
    bend = ((knee - 1) * z - jnp.sign(z) * (knee * eta * lam)) / (knee - 1 - eta)
    return jnp.where(size <= (1 + eta) * lam, _soft(z, eta * lam), jnp.where(size <= knee * lam, bend, z))


def mcp_penalty(z: jax.Array, l1: Scalar, gamma: Scalar = 2.0) -> jax.Array:
    """The minimax concave penalty of every entry.

    Equations, with lam = l1:

        penalty(z) = lam |z| - z^2 / (2 gamma)             |z| <= gamma lam
                   = gamma lam^2 / 2                       |z| > gamma lam

    Args:
      z: array.
      l1: weight lam at zero, >= 0.
      gamma: where it flattens, in units of lam, > 1. Default 2.

    Returns:
      An array like `z`.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(mcp_penalty(jnp.array([1.0, 100.0]), 1.0))
      [0.75 1.  ]

    Reference: Zhang. Nearly unbiased variable selection under minimax concave penalty. 2010, arXiv 1002.4734.
    """
    checks.arrays(z=z)
    (lam, gamma), size = _mcp(z, l1, gamma), jnp.abs(z)
    flat = jnp.full_like(z, gamma * lam * lam / 2)
    return jnp.where(size <= gamma * lam, lam * size - jnp.square(z) / (2 * gamma), flat)


def mcp_concave_grad(z: jax.Array, l1: Scalar, gamma: Scalar = 2.0) -> jax.Array:
    """The derivative of the smooth concave part h of MCP, whose penalty is lam |z| + h(z).

    Equations, with lam = l1 and the sign S(z) of z:

        h'(z) = -z / gamma                                 |z| <= gamma lam
              = -lam S(z)                                  |z| > gamma lam

    Args:
      z: array.
      l1: weight lam at zero, >= 0.
      gamma: where it flattens, in units of lam, > 1. Default 2.

    Returns:
      An array like `z`.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(mcp_concave_grad(jnp.array([1.0, -100.0]), 1.0))
      [-0.5  1. ]

    Reference: Zhang. 2010, arXiv 1002.4734; Yang, Asgharian, Bhatnagar. 2020, arXiv 2009.10629.
    """
    checks.arrays(z=z)
    lam, gamma = _mcp(z, l1, gamma)
    return jnp.where(jnp.abs(z) < gamma * lam, -z / gamma, -lam * jnp.sign(z))


def prox_mcp(z: jax.Array, l1: Scalar, step: Scalar = 1.0, gamma: Scalar = 2.0) -> jax.Array:
    """The proximal operator of the minimax concave penalty.

    Equations, with lam = l1, the sign S(z) of z and soft(z, t) = S(z) max(|z| - t, 0):

        prox(z) = argmin_x (x - z)^2 / (2 step) + penalty(x)
                = soft(z, step lam) / (1 - step / gamma)           |z| <= gamma lam
                = z                                                |z| > gamma lam

    Args:
      z: array.
      l1: weight lam at zero, >= 0.
      step: in (0, gamma), where the problem is convex. Default 1.
      gamma: where the penalty flattens, in units of lam, > 1. Default 2.

    Returns:
      An array like `z`.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> print(prox_mcp(jnp.array([0.5, 1.5, 10.0]), 1.0))
      [ 0.  1. 10.]

    Reference: Zhang. 2010, arXiv 1002.4734.
    """
    checks.arrays(z=z)
    checks.real("step", step, "(0, inf)")
    (lam, knee), eta = _mcp(z, l1, gamma), _like(step, z)
    _below("step", step, gamma, "gamma")
    return jnp.where(jnp.abs(z) <= knee * lam, _soft(z, eta * lam) / (1 - eta / knee), z)
