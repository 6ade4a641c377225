"""A linear layer that keeps a random projection of its input for the backward pass."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.keys import as_key
from gradkit.layers.axes import floating, wide
from gradkit.layers.linear import check_linear, with_bias
from gradkit.types import Key, Scalar

PAPER = Paper("Memory-Efficient Backpropagation through Large Linear Layers", "Bershatsky et al.", 2022, "2201.13195")
KINDS = ("gaussian", "rademacher", "dct")


def _projected(kind: str, p: int, key: jax.Array, x: jax.Array) -> jax.Array:
    """S x in float32 or wider."""
    b, z = x.shape[0], wide(x)
    if kind == "dct":
        picked = jax.random.randint(key, (p,), 0, b)
        return jax.scipy.fft.dct(z, axis=0, norm="ortho")[picked] * (b / p) ** 0.5
    draw = jax.random.normal if kind == "gaussian" else jax.random.rademacher
    S = draw(key, (p, b), jnp.float32 if kind == "gaussian" else jnp.int32).astype(z.dtype) / p**0.5
    return jnp.matmul(S, z, precision="highest")


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _linear(kind: str, p: int, x: jax.Array, kernel: jax.Array, key: jax.Array) -> jax.Array:
    return x @ kernel


def _forward(kind: str, p: int, x: jax.Array, kernel: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
    return x @ kernel, (_projected(kind, p, key, x).astype(x.dtype), kernel, key)


def _backward(kind: str, p: int, kept: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    Sx, kernel, key = kept
    dW = jnp.matmul(wide(Sx).T, _projected(kind, p, key, g), precision="highest")
    return g @ kernel.T, dW.astype(kernel.dtype), None


_linear.defvjp(_forward, _backward)


def randomized_linear(
    x: Any,
    kernel: Any,
    bias: Any = None,
    *,
    key: Key,
    proj_dim: int | None = None,
    ratio: Scalar | None = None,
    kind: str = "gaussian",
) -> jax.Array:
    """x @ kernel + bias, which keeps p rows for the backward pass instead of b.

    Equations:

        y  = x W                                  exact; x (b, in)
        dx = g W^T                                exact
        dW = (S x)^T (S g),   E[S^T S] = I        S (p, b)
        S_ij = N(0, 1) / sqrt(p)                  "gaussian"
        S_ij = +-1 / sqrt(p)                      "rademacher"
        S  = sqrt(b / p) R D                      "dct": R picks p rows, with replacement, of the orthonormal cosine
                                                  transform D

    S x (p, in) and the key are kept, and S is drawn again from the key in the backward pass.

    Args:
      x: inputs, shape (..., in); all axes but the last are rows, b of them.
      kernel: shape (in, out).
      bias: shape (out,). Default None: none. Its gradient is exact.
      key: a random key (typed key or integer), another one in every layer and step.
      proj_dim: p >= 1. Give this or `ratio`.
      ratio: p / b > 0; p is rounded, and at least 1. From p = b on the gradient is the exact one.
      kind: "gaussian", "rademacher" (less variance at the same cost) or "dct" (fast for long batches). Default
        "gaussian" (official code).

    Returns:
      Outputs, shape (..., out). The kernel's gradient is unbiased, with a variance in proportion to 1 / p.

    Raises:
      ValueError: neither or both of `proj_dim` and `ratio`, or one outside its range; an unknown kind; shapes that do
        not fit.

    Example:
      >>> x, w = jnp.ones((8, 2)), jnp.ones((2, 1))
      >>> loss = lambda w: jnp.sum(randomized_linear(x, w, key=jax.random.key(0), ratio=1.0))
      >>> jax.grad(loss)(w).tolist()
      [[8.0], [8.0]]

    Reference: Bershatsky et al. Memory-Efficient Backpropagation through Large Linear Layers. 2022, arXiv 2201.13195.
    Its public code multiplies the sampled transform by p b in place of b / p, which is p^2 too much.
    """
    checks.arrays(x=x, kernel=kernel, bias=bias)
    x, kernel = check_linear(x, kernel)
    checks.choice("kind", kind, KINDS)
    checks.integer("proj_dim", proj_dim, 1, optional=True)
    checks.real("ratio", ratio, "(0, inf)", optional=True)
    if (proj_dim is None) == (ratio is None):
        raise ValueError(f"give one of proj_dim and ratio, got proj_dim={proj_dim!r}, ratio={ratio!r}")
    rows = floating("x", x).reshape(-1, x.shape[-1])
    p = proj_dim if proj_dim is not None else max(1, round(float(ratio or 0.0) * rows.shape[0]))
    y: Any = rows @ kernel if p >= rows.shape[0] else _linear(kind, p, rows, kernel, as_key(key))
    return with_bias(y.reshape(*x.shape[:-1], kernel.shape[1]), bias)


register(
    randomized_linear,
    form="layer",
    paper=PAPER,
    example={
        "x": jax.ShapeDtypeStruct((16, 8), "float32"),
        "kernel": jax.ShapeDtypeStruct((8, 4), "float32"),
        "proj_dim": 4,
    },
)
