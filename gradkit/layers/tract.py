"""TrAct: the first layer is trained as if its pre-activations were trained, not its weights."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.layers.axes import floating, wide
from gradkit.layers.linear import check_linear, with_bias
from gradkit.linalg import damped_solve
from gradkit.types import Scalar

PAPER = Paper("TrAct: Making First-layer Pre-Activations Trainable", "Petersen, Borgelt, Ermon", 2024, "2410.23970")
Padding = str | int | Sequence[tuple[int, int]]


def tract(x: Any, g: Any, *, damping: Scalar = 0.1) -> jax.Array:
    """The gradient of a first layer's kernel from its inputs and the gradient of its outputs.

    Equations:

        z = x W,   x (b, in) rows,   g (b, out) the gradient with respect to z
        dW = (x^T x / b + damping I)^{-1} x^T g                the step in W nearest to the step -g in z
           = x^T (x x^T / b + damping I)^{-1} g                the same, from a b x b matrix where b < in

    For a convolution the rows of x are the patches under the kernel, b = examples * positions. The rest of the backward
    pass and the optimizer do not change.

    Args:
      x: inputs, shape (..., in); all axes but the last are rows.
      g: gradient with respect to x @ kernel, shape (..., out). Of a mean loss it has the factor 1 / b in it, as JAX
        gives it.
      damping: added to the second moment of the inputs, in the units of its square, > 0. Default 0.1 (official code,
        for inputs of variance 1). For a large one damping * dW is the ordinary gradient.

    Returns:
      The gradient (in, out), in the dtype of x, computed in float32 or wider. Collectives: for a sharded batch an
      all-reduce of in^2 numbers for x^T x; every device solves the small system.

    Raises:
      ValueError: a damping that is not positive; rows that do not match.

    Example:
      >>> x, g = jnp.array([[2.0], [0.0]]), jnp.array([[1.0], [1.0]])
      >>> round(float(tract(x, g, damping=0.5)[0, 0]), 4)  # 2 / (4 / 2 + 0.5)
      0.8

    Reference: Petersen, Borgelt, Ermon. TrAct: Making First-layer Pre-Activations Trainable. 2024, arXiv 2410.23970.
    Solved by Cholesky; the official option "cholesky_inverse" gets the matrix in place of its factor, and gives another
    result.
    """
    checks.arrays(x=x, g=g)
    x, g = floating("x", x), floating("g", g)
    if x.shape[:-1] != g.shape[:-1] or x.ndim < 1:
        raise ValueError(f"x and g must have the same rows, got shapes {x.shape} and {g.shape}")
    rows, out = wide(x.reshape(-1, x.shape[-1])), wide(g.reshape(-1, g.shape[-1]))
    b, n = rows.shape
    out = out.astype(rows.dtype)
    if not b or not n:
        return jnp.zeros((n, out.shape[-1]), x.dtype)
    inside = b < n
    dot = partial(jnp.matmul, precision="highest")
    if inside:
        return dot(rows.T, damped_solve(dot(rows, rows.T) / b, out, damping)).astype(x.dtype)
    return damped_solve(dot(rows.T, rows) / b, dot(rows.T, out), damping).astype(x.dtype)


@jax.custom_vjp
def _linear(x: jax.Array, kernel: jax.Array, damping: jax.Array) -> jax.Array:
    return x @ kernel


def _forward(x: jax.Array, kernel: jax.Array, damping: jax.Array) -> tuple[jax.Array, Any]:
    return _linear(x, kernel, damping), (x, kernel, damping)


def _backward(kept: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, kernel, damping = kept
    return g @ kernel.T, tract(x, g, damping=damping).astype(kernel.dtype), jnp.zeros_like(damping)


_linear.defvjp(_forward, _backward)


def _damped(damping: Any, like: jax.Array) -> jax.Array:
    checks.real("damping", damping, "(0, inf)")
    return jnp.asarray(damping).astype(wide(like).dtype)


def tract_linear(x: Any, kernel: Any, bias: Any = None, *, damping: Scalar = 0.1) -> jax.Array:
    """x @ kernel + bias, whose kernel's gradient is that of TrAct.

    Equations: dW of `tract`. It is for the first layer of a network; it works in other layers, but their inputs change
    during training.

    Args:
      x: inputs, shape (..., in).
      kernel: shape (in, out).
      bias: shape (out,). Default None: none. Its gradient is the ordinary one.
      damping: as in `tract`, > 0. Default 0.1 (official code).

    Returns:
      Outputs, shape (..., out).

    Raises:
      ValueError: a damping that is not positive; shapes that do not fit.

    Example:
      >>> x = jnp.array([[2.0], [0.0]])
      >>> grad = jax.grad(lambda w: jnp.sum(tract_linear(x, w, damping=0.5)))(jnp.ones((1, 1)))
      >>> round(float(grad[0, 0]), 4)
      0.8

    Reference: Petersen, Borgelt, Ermon. TrAct: Making First-layer Pre-Activations Trainable. 2024, arXiv 2410.23970.
    """
    checks.arrays(x=x, kernel=kernel, bias=bias)
    x, kernel = check_linear(x, kernel)
    y = _linear(x.reshape(-1, x.shape[-1]), kernel, _damped(damping, x)).reshape(*x.shape[:-1], kernel.shape[1])
    return with_bias(y, bias)


def tract_conv(
    x: Any,
    kernel: Any,
    bias: Any = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    damping: Scalar = 0.1,
) -> jax.Array:
    """A convolution whose kernel's gradient is that of TrAct.

    Equations: dW of `tract`, with the patches under the kernel for the rows of x.

    Args:
      x: inputs, shape (examples, *space, in), one space axis or more.
      kernel: shape (*window, in, out), as Flax has it.
      bias: shape (out,). Default None: none.
      strides: of the window, one number or one per space axis. Default 1.
      padding: "SAME", "VALID", one number for both ends of every space axis, or pairs. Default "SAME", as in Flax.
      damping: as in `tract`, > 0. Default 0.1 (official code).

    Returns:
      Outputs, shape (examples, *space, out). Memory: in training the patches, the size of the window times the input,
      are computed in the forward pass and kept.

    Raises:
      ValueError: a damping that is not positive; shapes that do not fit.

    Example:
      >>> y = tract_conv(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2)), padding="VALID")
      >>> y.shape, float(y[0, 0, 0, 0])
      ((1, 2, 2, 2), 9.0)

    Reference: Petersen, Borgelt, Ermon. TrAct: Making First-layer Pre-Activations Trainable. 2024, arXiv 2410.23970.
    """
    checks.arrays(strides=strides)
    checks.arrays(x=x, kernel=kernel, bias=bias)
    x, kernel = floating("x", x), floating("kernel", kernel)
    space = kernel.ndim - 2
    if space < 1 or x.ndim != kernel.ndim or x.shape[-1] != kernel.shape[-2]:
        raise ValueError(
            f"kernel must have shape (*window, in, out) for x of shape (examples, *space, in), "
            f"got {kernel.shape} and {x.shape}"
        )
    steps = (strides,) * space if isinstance(strides, int) else tuple(strides)
    if isinstance(padding, int):
        padding = checks.integer("padding", padding, maximum=2**20)
    pads = [(padding, padding)] * space if isinstance(padding, int) else padding
    letters = "DHW"[-space:] if space <= 3 else ""
    if not letters:
        raise ValueError(f"kernel must have at most 3 window axes, got shape {kernel.shape}")
    patches = jax.lax.conv_general_dilated_patches(
        x, kernel.shape[:-2], steps, pads, dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C")
    )
    # In patches the input channel is the slowest axis; the axes of the kernel are put in that order.
    flat = jnp.moveaxis(kernel, -2, 0).reshape(-1, kernel.shape[-1])
    return tract_linear(patches, flat, bias, damping=damping)


_X, _W = jax.ShapeDtypeStruct((16, 8), "float32"), jax.ShapeDtypeStruct((8, 4), "float32")
register(tract, form="layer", paper=PAPER, golden=("large_batch/tract",), example={"x": _X, "g": _X})
register(tract_linear, form="layer", paper=PAPER, golden=("large_batch/tract",), example={"x": _X, "kernel": _W})
register(
    tract_conv,
    form="layer",
    paper=PAPER,
    golden=("large_batch/tract",),
    example={
        "x": jax.ShapeDtypeStruct((2, 6, 6, 3), "float32"),
        "kernel": jax.ShapeDtypeStruct((3, 3, 3, 4), "float32"),
    },
)
