"""A codebook that is moved to where the vectors are, by running means and variances of both."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import register
from gradkit.engine.core import scalar
from gradkit.layers.axes import floating, wide
from gradkit.layers.vector_quantize import EXAMPLE, PAPER, CodebookAffine, affine_codebook  # noqa: F401
from gradkit.types import Scalar

EPS = 1e-8  # beside the codes' variance (official code)


class AffineStatistics(NamedTuple):
    """Running means and variances (dim,) of vectors and of codes, and of how many batches they are."""

    count: jax.Array
    z_mean: jax.Array
    z_variance: jax.Array
    code_mean: jax.Array
    code_variance: jax.Array


def init_affine_statistics(dim: int) -> AffineStatistics:
    """What `matched_affine` keeps, before the first batch.

    Args:
      dim: of a code, >= 1.

    Returns:
      `AffineStatistics` of no batch.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> init_affine_statistics(3).z_mean.shape
      (3,)

    Reference: Huh et al. Straightening Out the Straight-Through Estimator: Overcoming Optimization Challenges in Vector
    Quantized Networks. 2023, arXiv 2305.08842, released code.
    """
    shape = (checks.integer("dim", dim, 1),)
    return AffineStatistics(jnp.zeros((), jnp.int32), *(jnp.zeros(shape) for _ in range(4)))


def matched_affine(
    statistics: AffineStatistics, z: Any, codebook: Any, *, momentum: Scalar = 0.1
) -> tuple[CodebookAffine, AffineStatistics]:
    """The scale and shift that give the codes the mean and the variance of the vectors, without being trained.

        a <- (1 - momentum) a + momentum a_batch        of mean and variance, of z and of C; the first batch as it is
        s = sqrt(var_z / (var_C + 1e-8)),    C' = s C + mean_z - s mean_C

    Args:
      statistics: of the batches before; `init_affine_statistics(dim)` to begin with.
      z: the vectors of the batch, (..., dim), floating point; no gradient flows into them.
      codebook: C, (codes, dim); nor into it.
      momentum: weight of the new batch, in [0, 1]. Default 0.1 (official code).

    Returns:
      (affine, statistics): the affine has one group, and is meant for `vector_quantize(z, codebook, affine,
      affine_rate=1.0)`. Variances are those of the population.

    Raises:
      ValueError: an argument outside its range; shapes that do not fit.

    Example:
      >>> z, c = jnp.array([[4.0], [8.0]]), jnp.array([[-1.0], [1.0]])
      >>> affine, statistics = matched_affine(init_affine_statistics(1), z, c)
      >>> print(affine_codebook(c, affine, affine_rate=1.0).ravel().round(4))
      [4. 8.]

    Reference: Huh et al. Straightening Out the Straight-Through Estimator: Overcoming Optimization Challenges in Vector
    Quantized Networks. 2023, arXiv 2305.08842, released code, which adds a trained scale and shift to these.
    """
    checks.instance("statistics", statistics, AffineStatistics)
    checks.arrays(z=z, codebook=codebook)
    checks.real("momentum", momentum, "[0, 1]")
    z, codebook = floating("z", z), floating("codebook", codebook, 2)
    dims = {z.shape[-1:], codebook.shape[1:], jnp.shape(statistics.z_mean)}
    if len(dims) > 1 or not z.size or not codebook.size:
        raise ValueError(
            f"z must be vectors (..., dim) and codebook (codes, dim), with statistics of dim, got {z.shape}, "
            f"{codebook.shape} and {jnp.shape(statistics.z_mean)}; write init_affine_statistics(dim)"
        )
    vectors, codes = (jax.lax.stop_gradient(wide(x)).reshape(-1, x.shape[-1]) for x in (z, codebook))
    batch = (jnp.mean(vectors, 0), jnp.var(vectors, 0), jnp.mean(codes, 0), jnp.var(codes, 0))
    old = statistics[1:]
    share = jnp.where(statistics.count == 0, 1.0, scalar(momentum, old[0]))
    new = AffineStatistics(
        statistics.count + 1, *((1 - share) * a + share * b.astype(a.dtype) for a, b in zip(old, batch, strict=True))
    )
    s = jnp.sqrt(new.z_variance / (new.code_variance + EPS))
    return CodebookAffine((s - 1)[None], (new.z_mean - s * new.code_mean)[None]), new


COUNT: Any = jax.ShapeDtypeStruct((), "int32")
ROWS: Any = [jax.ShapeDtypeStruct((4,), "float32")] * 4
register(
    matched_affine,
    form="function",
    paper=PAPER,
    example={"statistics": AffineStatistics(COUNT, *ROWS), **EXAMPLE},
)
