"""The sigmoid loss of pairs of images and texts: every pair of the batch is a binary question."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype

PAPER = Paper("Sigmoid Loss for Language Image Pre-Training", "Zhai et al.", 2023, "2303.15343")


def check_pairs(
    image: Any, text: Any, log_temperature: Any, bias: Any
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The arguments as arrays that fit, the two scalars in float32 or wider."""
    image, text = jnp.asarray(image), jnp.asarray(text)
    fits = image.ndim == 2 and image.shape == text.shape and image.size > 0
    if not fits or any(not jnp.issubdtype(x.dtype, jnp.floating) for x in (image, text)):
        found = f"{image.dtype} of shape {image.shape} and {text.dtype} of shape {text.shape}"
        raise ValueError(
            f"image and text must be floating point of one shape (pairs, features), not empty, got {found}; write one "
            "text for every image"
        )
    dtype = max((wide_dtype(x.dtype) for x in (image, text)), key=lambda d: d.itemsize)
    given = []
    for name, value in (("log_temperature", log_temperature), ("bias", bias)):
        checks.real(name, value, "(-inf, inf)")
        given.append(jnp.asarray(value).astype(dtype))
    return image, text, given[0], given[1]


def pair_losses(
    image: jax.Array, text: jax.Array, log_temperature: jax.Array, bias: jax.Array, own: bool, chunk: int | None
) -> jax.Array:
    """The sum of softplus(logits) over a block, less the logits of the true pairs where it is the `own` block."""

    def rows(image: jax.Array) -> jax.Array:
        products = jnp.einsum("id,jd->ij", image, text, preferred_element_type=bias.dtype)
        return jnp.sum(jax.nn.softplus(jnp.exp(log_temperature) * products + bias))

    if chunk is None or chunk >= len(image):
        total = rows(image)
    else:
        body = jax.checkpoint(rows)  # of a chunk nothing is kept but its rows
        full = len(image) // chunk * chunk
        total = jnp.sum(jax.lax.map(body, image[:full].reshape(-1, chunk, image.shape[1])))
        total = total + body(image[full:]) if full < len(image) else total
    if own:
        true = jnp.einsum("id,id->i", image, text, preferred_element_type=bias.dtype)
        total = total - jnp.sum(jnp.exp(log_temperature) * true + bias)
    return total


def sigmoid_contrastive_loss(
    image: Any, text: Any, log_temperature: Any, bias: Any, *, chunk: int | None = None
) -> jax.Array:
    """The sigmoid loss of SigLIP: whether an image and a text belong together, asked of all pairs of a batch.

        z_ij = exp(log_temperature) <image_i, text_j> + bias
        L = -(1/n) sum_ij log sigmoid(y_ij z_ij),    y_ij = 1 for i = j, -1 else
          = (1/n) (sum_ij softplus(z_ij) - sum_i z_ii)

    The sum over n^2 pairs is divided by n. Under `jit`, with arrays sharded over a mesh, the compiler gathers texts;
    `gk.parallel.ring_sigmoid_contrastive_loss` never has all of them on one device.

    Args:
      image: (n, d), floating point; of unit length where similarities are to be cosines, which is the caller's part.
      text: the same shape: text_i belongs to image_i.
      log_temperature: scalar, trained: the paper starts at log(10).
      bias: scalar, trained: the paper starts at -10, for the n - 1 wrong texts of every image. log(1 / (n - 1)) makes
        the prior of a true pair right at the start.
      chunk: rows of z that exist at one time, >= 1. Default None: all.

    Returns:
      A scalar in float32 or wider. Differentiable in the first four.

    Raises:
      ValueError: shapes that differ or are not (n, d); a bias or temperature that is no number; chunk below 1.

    Example:
      >>> e = jnp.eye(4)  # logits of 0 off the diagonal, 2 on it
      >>> print(sigmoid_contrastive_loss(e, e, jnp.log(2.0), 0.0).round(4))  # 3 log 2 + log(1 + e^-2)
      2.2064

    Reference: Zhai et al. Sigmoid Loss for Language Image Pre-Training. 2023, arXiv 2303.15343. The same as n times the
    mean of `optax.losses.sigmoid_binary_cross_entropy` over the matrix.
    """
    checks.arrays(image=image, text=text)
    checks.integer("chunk", chunk, 1, optional=True)
    image, text, t, b = check_pairs(image, text, log_temperature, bias)
    return pair_losses(image, text, t, b, True, chunk) / len(image)


PAIRS = jax.ShapeDtypeStruct((16, 8), "float32")
register(
    sigmoid_contrastive_loss,
    form="layer",
    paper=PAPER,
    golden=("second_shelf/sigmoid_contrastive_loss",),
    example={"image": PAIRS, "text": PAIRS, "log_temperature": 2.302585, "bias": -10.0},
)
