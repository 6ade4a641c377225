"""Normalisation layers that Flax has, and that there is nothing to add to.

layer norm   y = scale (x - mean(x)) / sqrt(var(x) + eps) + bias       per example, over its features
batch norm   the same per feature, over the examples; running moments at inference
"""

from flax import nnx

from gradkit.catalogue import Paper, register


def layer_norm() -> type[nnx.LayerNorm]:
    """Layer normalization: served by Flax.

    Returns:
      `flax.nnx.LayerNorm`; `flax.linen.LayerNorm` is the same for linen. Its `epsilon` is 1e-6 by default, where torch
      has 1e-5: the first thing to look at when weights are moved.

    Example:
      >>> layer_norm()(4, rngs=nnx.Rngs(0)).epsilon
      1e-06

    Reference: Ba, Kiros, Hinton. Layer Normalization. 2016, arXiv 1607.06450.
    """
    return nnx.LayerNorm


def batch_norm() -> type[nnx.BatchNorm]:
    """Batch normalization: served by Flax.

    Returns:
      `flax.nnx.BatchNorm`; `flax.linen.BatchNorm` is the same for linen, and across replicas with `axis_name`. Its
      `momentum` (0.99) is the share that STAYS, where torch's (0.1) is the share that is new; its running variance is
      that of the population, where torch's divides by n - 1. After weights have been averaged, its running moments are
      made anew by `gk.layers.recompute_batch_stats`; parts of a batch are `gk.layers.ghost_batch_norm`.

    Example:
      >>> batch_norm()(4, rngs=nnx.Rngs(0)).momentum
      0.99

    Reference: Ioffe, Szegedy. Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
    Shift. 2015, arXiv 1502.03167.
    """
    return nnx.BatchNorm


register(
    layer_norm,
    form="layer",
    paper=Paper("Layer Normalization", "Ba, Kiros, Hinton", 2016, "1607.06450"),
    notes="a pointer: flax.nnx.LayerNorm and flax.linen.LayerNorm serve it",
)
register(
    batch_norm,
    form="layer",
    paper=Paper(
        "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
        "Ioffe, Szegedy",
        2015,
        "1502.03167",
    ),
    notes="a pointer: flax.nnx.BatchNorm and flax.linen.BatchNorm serve it",
)
