"""Vector quantization whose codebook keeps up with what it quantizes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar
from gradkit.engine.keys import as_key
from gradkit.layers.axes import floating, wide
from gradkit.types import Key, Scalar

PAPER = Paper(
    "Straightening Out the Straight-Through Estimator: Overcoming Optimization Challenges in Vector Quantized Networks",
    "Huh et al.",
    2023,
    "2305.08842",
)


class CodebookAffine(NamedTuple):
    """A learnt scale and shift of every group of codes, both (groups, dim); zeros to begin with."""

    scale: jax.Array
    shift: jax.Array


def init_affine(groups: int, dim: int) -> CodebookAffine:
    """The parameters of `affine_codebook` at their start: the codebook as it is.

    Args:
      groups: of codes, >= 1.
      dim: of a code, >= 1.

    Returns:
      `CodebookAffine` of zeros.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> init_affine(2, 3).scale.shape
      (2, 3)

    Reference: Huh et al. Straightening Out the Straight-Through Estimator. 2023, arXiv 2305.08842.
    """
    shape = (checks.integer("groups", groups, 1), checks.integer("dim", dim, 1))
    return CodebookAffine(jnp.zeros(shape), jnp.zeros(shape))


def _codes(codebook: Any) -> jax.Array:
    codebook = floating("codebook", codebook, 2)
    if not codebook.size:
        raise ValueError(f"codebook must have at least one code, got shape {codebook.shape}")
    return codebook


def affine_codebook(codebook: Any, affine: CodebookAffine, *, affine_rate: Scalar = 10.0) -> jax.Array:
    """The codebook that is looked up: all codes of a group move together, also those that were not used.

        C' = (1 + affine_rate s) C + affine_rate b        s, b of the group of a code; groups are runs of rows

    Args:
      codebook: C, (codes, dim).
      affine: s and b, parameters that are trained like the codebook.
      affine_rate: how much faster s and b act than other parameters, > 0. Default 10 (official README).

    Returns:
      C', (codes, dim).

    Raises:
      ValueError: an argument outside its range; groups that do not divide the codes.

    Example:
      >>> c = jnp.ones((4, 2))
      >>> affine = CodebookAffine(jnp.zeros((2, 2)), jnp.array([[0.0, 0.0], [0.1, 0.1]]))
      >>> affine_codebook(c, affine)[:, 0].tolist()
      [1.0, 1.0, 2.0, 2.0]

    Reference: Huh et al. Straightening Out the Straight-Through Estimator: Overcoming Optimization Challenges in Vector
    Quantized Networks. 2023, arXiv 2305.08842.
    """
    checks.instance("affine", affine, CodebookAffine)
    checks.arrays(codebook=codebook)
    checks.real("affine_rate", affine_rate, "(0, inf)")
    codebook = _codes(codebook)
    groups, shape = jnp.shape(affine.scale)[0], jnp.shape(affine.scale)
    if shape != jnp.shape(affine.shift) or shape[1:] != codebook.shape[1:] or len(codebook) % groups:
        raise ValueError(
            f"affine must be two arrays of shape (groups, {codebook.shape[1]}) with groups a divisor of "
            f"{len(codebook)}, got {shape} and {jnp.shape(affine.shift)}; write init_affine(groups, dim)"
        )
    x = wide(codebook)
    rate = scalar(affine_rate, x)
    grouped = x.reshape(groups, -1, codebook.shape[1])
    s, b = (jnp.asarray(a).astype(x.dtype)[:, None] for a in affine)
    return ((1 + rate * s) * grouped + rate * b).reshape(codebook.shape).astype(codebook.dtype)


def nearest_codes(z: jax.Array, codebook: jax.Array) -> jax.Array:
    """The number of the code nearest to every vector."""
    flat = z.reshape(-1, z.shape[-1])
    products = jnp.dot(flat, codebook.T, precision="highest")
    distance = jnp.sum(jnp.square(codebook), axis=1)[None] - 2 * products
    return jnp.argmin(distance, axis=1).reshape(z.shape[:-1]).astype(jnp.int32)


def vector_quantize(
    z: Any,
    codebook: Any,
    affine: CodebookAffine | None = None,
    *,
    beta: Scalar = 0.95,
    sync_nu: Scalar = 0.0,
    affine_rate: Any = 10.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Every vector replaced by the nearest code, with the gradient of the identity.

        i = argmin_j |z - C'_j|^2,    q = C'_i             C' the codebook, or `affine_codebook` of it
        z_q = q forward;    dz := dz_q,    dq := sync_nu dz_q backward
        loss = (1 - beta) mean (z - sg(q))^2 + beta mean (sg(z) - q)^2        sg: no gradient

    beta weighs the CODEBOOK's term, where VQ-VAE's beta weighs the other one. sync_nu > 0 sends the codebook a share of
    the gradient of the task.

    Args:
      z: vectors, (..., dim), floating point.
      codebook: C, (codes, dim).
      affine: scale and shift of groups of codes. Default None: plain vector quantization, as with zeros.
      beta: in [0, 1]. Default 0.95 (official code); its README has 0.98.
      sync_nu: nu, >= 0. Default 0; the official README has 0.2.
      affine_rate: see `affine_codebook`. Default 10.

    Returns:
      (z_q, numbers of the codes, loss): an array like z, int32 of shape (...), a scalar.

    Raises:
      ValueError: an argument outside its range; shapes that do not fit.

    Example:
      >>> c = jnp.array([[0.0, 0.0], [1.0, 1.0]])
      >>> q, i, loss = vector_quantize(jnp.array([[0.9, 0.8]]), c)
      >>> q.tolist(), i.tolist(), round(float(loss), 3)
      ([[1.0, 1.0]], [1], 0.025)

    Reference: Huh et al. Straightening Out the Straight-Through Estimator: Overcoming Optimization Challenges in Vector
    Quantized Networks. 2023, arXiv 2305.08842.
    """
    if affine is not None:
        checks.instance("affine", affine, CodebookAffine)
    checks.arrays(z=z, codebook=codebook, affine_rate=affine_rate)
    checks.real("beta", beta, "[0, 1]")
    checks.real("sync_nu", sync_nu, "[0, inf)")
    z, codebook = floating("z", z), _codes(codebook)
    if not z.ndim or z.shape[-1] != codebook.shape[1]:
        raise ValueError(f"z must end in an axis of {codebook.shape[1]}, as codes have, got shape {z.shape}")
    C = wide(codebook if affine is None else affine_codebook(codebook, affine, affine_rate=affine_rate))
    x = wide(z).astype(jnp.result_type(C))
    stop = jax.lax.stop_gradient
    i = nearest_codes(stop(x), stop(C))
    q = C[i]
    weight, nu = scalar(beta, x), scalar(sync_nu, x)
    loss = (1 - weight) * jnp.mean(jnp.square(x - stop(q))) + weight * jnp.mean(jnp.square(stop(x) - q))
    # Differences of equal numbers: forward exactly q.
    z_q = stop(q) + (x - stop(x)) + nu * (q - stop(q))
    return z_q.astype(z.dtype), i, loss


def alternate_codebook_update(
    tx: optax.GradientTransformation,
    z: Any,
    codebook: Any,
    opt_state: Any,
    affine: CodebookAffine | None = None,
    *,
    sync_nu: Any = 0.0,
    affine_rate: Any = 10.0,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Any, Any]:
    """Moves the codebook first, and quantizes with the new one: both sides in turn instead of at once.

        i = argmin_j |z - C'_j|^2
        (C, s, b) <- a step of tx on mean (C'_i - sg(z))^2, with z and i fixed
        then `vector_quantize` of z in the NEW codebook, with beta = 1: its loss is the codebook's alone

    Args:
      tx: any optimizer, of the codebook, or of the pair (codebook, affine). Official code: SGD at 50, momentum 0.9.
      z: vectors, (..., dim); no gradient flows into them through the step.
      codebook: C, (codes, dim).
      opt_state: state of `tx`, from `tx.init(codebook)`, or `tx.init((codebook, affine))`.
      affine: see `vector_quantize`. Default None.
      sync_nu: see `vector_quantize`. Default 0.
      affine_rate: see `affine_codebook`. Default 10.

    Returns:
      ((z_q, numbers of the codes, loss), the new codebook or pair, the new state).

    Raises:
      ValueError: as `vector_quantize`; a `tx` that is no transformation.

    Example:
      >>> tx, c = optax.sgd(0.5), jnp.array([[0.0], [4.0]])
      >>> (q, i, loss), c, state = alternate_codebook_update(tx, jnp.array([[1.0]]), c, tx.init(c))
      >>> q.tolist(), c.tolist()
      ([[1.0]], [[1.0], [4.0]])

    Reference: Huh et al. Straightening Out the Straight-Through Estimator: Overcoming Optimization Challenges in Vector
    Quantized Networks. 2023, arXiv 2305.08842. The official code raises for another beta than 1 here; there is no such
    argument. With affine parameters it looks up the codebook from before the step; here it is the new one.
    """
    if affine is not None:
        checks.instance("affine", affine, CodebookAffine)
    checks.arrays(z=z, codebook=codebook, opt_state=opt_state, affine_rate=affine_rate)
    checks.transformation(tx=tx)
    z = jnp.asarray(z)
    trained = codebook if affine is None else (codebook, affine)

    def of(trained: Any) -> tuple[Any, CodebookAffine | None]:
        return (trained, None) if affine is None else trained

    fixed = jax.lax.stop_gradient(z)
    _, i, _ = vector_quantize(fixed, *of(trained), affine_rate=affine_rate)

    def distance(trained: Any) -> jax.Array:
        C, a = of(trained)
        effective = wide(jnp.asarray(C) if a is None else affine_codebook(C, a, affine_rate=affine_rate))
        return jnp.mean(jnp.square(effective[i] - fixed.astype(effective.dtype)))

    updates, opt_state = tx.update(jax.grad(distance)(trained), opt_state, trained)
    # The step is a constant: a gradient by the codebook goes to where it is now, not through how it came there.
    trained = optax.apply_updates(trained, jax.lax.stop_gradient(updates))
    return vector_quantize(z, *of(trained), beta=1.0, sync_nu=sync_nu, affine_rate=affine_rate), trained, opt_state


def replace_dead_codes(
    codebook: Any, waited: Any, indices: Any, z: Any, key: Key, *, timeout: int = 20, rho: Scalar = 0.01
) -> tuple[jax.Array, jax.Array]:
    """Puts codes that have not been used for some batches where there are vectors.

        n_j <- timeout where code j was used in this batch, else n_j - 1
        n_j = 0:    C_j <- z_r + rho |z_r| xi,    n_j <- timeout        r a random vector of the batch, xi ~ N(0, I)

    Args:
      codebook: C, (codes, dim).
      waited: n, int32 (codes,); `jnp.full(codes, timeout)` to begin with.
      indices: the numbers of the codes that were used.
      z: the vectors of the batch, (..., dim).
      key: a typed key or an integer, another one every step.
      timeout: batches without use, >= 1. Default 20 (official README).
      rho: size of the noise, >= 0. Default 0.01 (official code).

    Returns:
      (codebook, n).

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> c, n = jnp.zeros((2, 1)), jnp.array([1, 1])
      >>> c, n = replace_dead_codes(c, n, jnp.array([0]), jnp.array([[5.0]]), 0, rho=0.0)
      >>> c.tolist(), n.tolist()
      ([[0.0], [5.0]], [20, 20])

    Reference: Huh et al. Straightening Out the Straight-Through Estimator: Overcoming Optimization Challenges in Vector
    Quantized Networks. 2023, arXiv 2305.08842, released code.
    """
    checks.arrays(codebook=codebook, waited=waited, indices=indices, z=z)
    timeout = checks.integer("timeout", timeout, 1)
    checks.real("rho", rho, "[0, inf)")
    codebook, z = _codes(codebook), floating("z", z)
    n, vectors = len(codebook), z.reshape(-1, z.shape[-1]).astype(codebook.dtype)
    used = jnp.zeros((n,), bool).at[jnp.asarray(indices).reshape(-1)].set(True)
    left = jnp.where(used, jnp.full_like(waited, timeout), jnp.asarray(waited) - 1)
    dead = left <= 0
    which, noise = jax.random.split(as_key(key))
    chosen = vectors[jax.random.randint(which, (n,), 0, len(vectors))]
    length = jnp.linalg.norm(chosen, axis=1, keepdims=True)
    fresh = chosen + scalar(rho, chosen) * length * jax.random.normal(noise, chosen.shape, chosen.dtype)
    return jnp.where(dead[:, None], fresh, codebook), jnp.where(dead, jnp.full_like(left, timeout), left)


EXAMPLE = {"z": jax.ShapeDtypeStruct((8, 4), "float32"), "codebook": jax.ShapeDtypeStruct((16, 4), "float32")}
register(vector_quantize, form="layer", paper=PAPER, example=EXAMPLE)
GROUPS: Any = jax.ShapeDtypeStruct((2, 4), "float32")
register(
    affine_codebook,
    form="layer",
    paper=PAPER,
    example={"codebook": EXAMPLE["codebook"], "affine": CodebookAffine(GROUPS, GROUPS)},
)
register(alternate_codebook_update, form="program", paper=PAPER)
register(
    replace_dead_codes,
    form="function",
    paper=PAPER,
    example={
        **EXAMPLE,
        "waited": jax.ShapeDtypeStruct((16,), "int32"),
        "indices": jax.ShapeDtypeStruct((8,), "int32"),
        "key": 0,
    },
)
