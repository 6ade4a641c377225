"""Magnitude invariant parametrization of hypernetworks: inputs of constant norm, and additive predictions."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.layers.axes import floating, readable

PAPER = Paper(
    "Magnitude Invariant Parametrizations Improve Hypernetwork Learning", "Ortiz, Guttag, Dalca", 2023, "2304.07645"
)


def mip_encode(z: Any, *, kind: str = "cosine") -> jax.Array:
    """The input of a hypernetwork, encoded so that its norm is constant.

    Equations, for z in [0, 1]^d:

        encode(z) = (cos(pi z / 2), sin(pi z / 2))        "cosine": norm sqrt(d) for all z
        encode(z) = (z, 1 - z)                            "linear": L1 norm d for all z

    The paper's hypernetwork has LeakyReLU, a fan-out initialization of the last layer, and `mip_combine`.

    Args:
      z: hyperparameters in [0, 1], shape (..., d).
      kind: "cosine" or "linear". Default "cosine" (official code).

    Returns:
      Shape (..., 2 d), in the dtype of z: first all cosines (or z), then all sines (or 1 - z).

    Raises:
      ValueError: numbers that are not floating point; entries outside [0, 1], where values can be read; an unknown
        kind.

    Example:
      >>> mip_encode(jnp.array([0.0, 1.0])).round(3).tolist()
      [1.0, -0.0, 0.0, 1.0]

    Reference: Ortiz, Guttag, Dalca. Magnitude Invariant Parametrizations Improve Hypernetwork Learning. 2023, arXiv
    2304.07645. Entries outside [0, 1] raise here, where values can be read, although the norm of "cosine" is the same.
    """
    checks.arrays(z=z)
    z = floating("z", z)
    checks.choice("kind", kind, ("cosine", "linear"))
    if z.ndim < 1:
        raise ValueError("z must have shape (..., d), got a scalar")
    if readable(z) and not bool(((z >= 0) & (z <= 1)).all()):
        raise ValueError("z must be in [0, 1], got entries outside; scale hyperparameters before they are encoded")
    angle = z * (jnp.pi / 2)
    parts = (jnp.cos(angle), jnp.sin(angle)) if kind == "cosine" else (z, 1 - z)
    return jnp.concatenate(parts, axis=-1)


def mip_combine(base: Any, delta: Any) -> Any:
    """The weights of the primary network: learned ones plus the predictions of the hypernetwork.

    Equations:

        weights = base + delta

    Args:
      base: tree of weights, learned together with the hypernetwork and initialized as without one.
      delta: tree of the same structure and shapes; near 0 at the start.

    Returns:
      base + delta, in the dtypes of base.

    Raises:
      ValueError: a shape that differs.

    Example:
      >>> mip_combine({"w": jnp.ones(2)}, {"w": jnp.array([0.5, -0.5])})["w"].tolist()
      [1.5, 0.5]

    Reference: Ortiz, Guttag, Dalca. Magnitude Invariant Parametrizations Improve Hypernetwork Learning. 2023, arXiv
    2304.07645.
    """
    checks.arrays(base=base, delta=delta)

    def add(b: Any, d: Any) -> jax.Array:
        if jnp.shape(b) != jnp.shape(d):
            raise ValueError(f"delta must have the shapes of base, got {jnp.shape(d)} for {jnp.shape(b)}")
        return b + d.astype(b.dtype)

    return jax.tree.map(add, base, delta)


_Z = jax.ShapeDtypeStruct((16, 4), "float32")
register(mip_encode, form="layer", paper=PAPER, example={"z": _Z})
register(mip_combine, form="layer", paper=PAPER, example={"base": {"w": _Z}, "delta": {"w": _Z}})
