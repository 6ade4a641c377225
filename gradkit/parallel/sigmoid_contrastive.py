"""The sigmoid loss of pairs round a ring of devices."""

from typing import Any

import jax

from gradkit import checks
from gradkit.catalogue import register
from gradkit.losses.sigmoid_contrastive import PAPER, check_pairs, pair_losses
from gradkit.parallel.ring import ring_reduce


def ring_sigmoid_contrastive_loss(
    image: Any, text: Any, log_temperature: Any, bias: Any, *, axis_name: Any, chunk: int | None = None
) -> jax.Array:
    """The sigmoid loss of a batch whose pairs are sharded over a ring of devices: texts travel, images stay.

        z_ij = exp(log_temperature) <image_i, text_j> + bias,    L = (1/n) (sum_ij softplus(z_ij) - sum_i z_ii)

    over all n = D m pairs of D devices with m each. The own block of a device has the true pairs; then D - 1 times the
    text block goes to the neighbour and adds a block without any. In the backward pass the blocks are computed again.

    Args:
      image: the m images of this device, (m, d).
      text: the texts that belong to them, (m, d).
      log_temperature: scalar, the same on all devices.
      bias: scalar, the same on all devices.
      axis_name: axis of `shard_map` (or `vmap`) along which pairs are sharded, or a tuple of axes.
      chunk: rows of a block of z that exist at one time, >= 1. Default None: m.

    Returns:
      The loss of all pairs, the same on every device. Collectives per device: forward D - 1 text blocks of m d words,
      backward 2 (D - 1): text and its gradient; all-reduces of scalars. Memory does not depend on D. Differentiate
      around `shard_map`, or inside with its `check_vma` (the default).

    Raises:
      ValueError: as `sigmoid_contrastive_loss`; no axis of this name.

    Example:
      >>> import jax.numpy as jnp
      >>> e = jnp.eye(4).reshape(2, 2, 4)  # two pairs on each of two devices that `vmap` stands in for
      >>> ring = lambda x: ring_sigmoid_contrastive_loss(x, x, jnp.log(2.0), 0.0, axis_name="i")
      >>> print(jax.vmap(ring, axis_name="i")(e).round(4))
      [2.2064 2.2064]

    Reference: Zhai et al. Sigmoid Loss for Language Image Pre-Training. 2023, arXiv 2303.15343. Public versions
    differentiate through the ring, and keep every visited text block: their memory grows with the number of devices.
    """
    checks.integer("chunk", chunk, 1, optional=True)
    checks.axis_name("axis_name", axis_name, optional=False)
    image, text, t, b = check_pairs(image, text, log_temperature, bias)

    def block(stationary: Any, text: Any, own: bool) -> jax.Array:
        image, t, b = stationary
        return pair_losses(image, text, t, b, own, chunk)

    part = ring_reduce(block, (image, t, b), text, axis_name=axis_name)
    return jax.lax.psum(part / (jax.lax.axis_size(axis_name) * len(image)), axis_name)


register(
    ring_sigmoid_contrastive_loss,
    form="layer",
    paper=PAPER,
    golden=("second_shelf/sigmoid_contrastive_loss",),
    example={"log_temperature": 2.302585, "bias": -10.0},
    notes="the batch of a contrastive loss, sharded over devices",
)
