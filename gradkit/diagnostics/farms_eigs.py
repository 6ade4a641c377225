"""The heavy tails of weight matrices without the bias of their aspect ratio, and learning rates by them.

farms_eigs        windows of r x c, c = int(r q), at up to `ops_per_dim` places along each axis:
                  start_i = min(i step, rows - r), step = max(1, (rows - r) // (ops - 1));
                  the squared singular values of all windows, pooled, ascending
powerlaw_alpha    of eigenvalues e_1 <= ... <= e_N, from the i-th on, n = N - i:
                  alpha = 1 + n / (sum_{j >= i} log e_j - n log e_i)
                  distance = max_j |1 - (e_j / e_i)^(1 - alpha) - (j - i) / n|
tempbalance       rate_l / rate = low + (high - low) (alpha_l - min alpha) / (max alpha - min alpha)

The exponent of a whole matrix depends on its shape (Marchenko-Pastur); that of windows of one shape does not.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.leaves import Layout, names, resolve_layout
from gradkit.types import PyTree, Scalar

PAPER = Paper("Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias", "Hu et al.", 2025, "2506.06280")
FITTINGS = ("median", "goodness-of-fit")


def _starts(length: int, window: int, ops: int | None, step: int) -> np.ndarray:
    """Where the windows along one axis start."""
    room = length - window
    if ops is None:
        return np.arange(0, room + 1, step)
    stride = max(1, room // max(ops - 1, 1))
    count = min(ops, max(1, room // stride + 1))
    return np.minimum(np.arange(count) * stride, room)


def farms_eigs(
    w: Any,
    *,
    num_row_samples: int = 100,
    q_ratio: Scalar = 2.0,
    ops_per_dim: int | None = 10,
    step_size: int = 10,
) -> jax.Array:
    """The squared singular values of windows of one aspect ratio, taken all over a matrix.

        r = min(num_row_samples, rows, columns),   c = int(r q_ratio),   windows w[s : s + r, t : t + c]

    Args:
      w: a matrix (outputs, inputs), real. A kernel of Flax is (inputs, outputs): give `kernel.T`.
      num_row_samples: rows of a window, >= 1; fewer where the matrix has fewer. Default 100 (paper's code).
      q_ratio: columns over rows of a window, > 0. Default 2 (paper's code).
      ops_per_dim: windows along each axis at most, >= 1. Default 10 (paper's code); None: one every `step_size`.
      step_size: distance of the windows where `ops_per_dim` is None, >= 1. Default 10 (paper's code).

    Returns:
      A vector, ascending, float32 or wider: as many as there are windows times the shorter side of a window. Where a
      window is more tall than wide the shorter side is c.

    Raises:
      ValueError: what is no matrix, an argument outside its range, windows wider than the matrix.

    Example:
      >>> farms_eigs(jnp.diag(jnp.array([3.0, 2.0])), num_row_samples=2, q_ratio=1).tolist()
      [4.0, 9.0]

    Reference: Hu et al. Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias. 2025, arXiv 2506.06280. In
    the official code windows wider than the matrix start at negative places, and what is sliced is not a window; here
    they raise.
    """
    checks.arrays(w=w)
    num_row_samples = checks.integer("num_row_samples", num_row_samples, 1)
    checks.real("q_ratio", q_ratio, "(0, inf)")
    ops_per_dim = checks.integer("ops_per_dim", ops_per_dim, 1, optional=True)
    step_size = checks.integer("step_size", step_size, 1)
    w = jnp.asarray(w)
    if w.ndim != 2 or not w.size or not jnp.issubdtype(w.dtype, jnp.floating):
        raise ValueError(
            f"farms_eigs: w must be a real matrix (outputs, inputs), got {w.dtype} of shape {w.shape}; write "
            "layer_alphas(params) for a tree"
        )
    rows, columns = w.shape
    r = min(num_row_samples, rows, columns)
    c = int(r * q_ratio)
    if not 1 <= c <= columns:
        raise ValueError(
            f"farms_eigs: q_ratio must give windows of 1 to {columns} columns, those of w {w.shape}, got "
            f"q_ratio={q_ratio} and windows of {r} x {c}; write q_ratio={columns / r:g}, or "
            f"num_row_samples={max(1, int(columns / q_ratio))}"
        )
    starts = [_starts(n, size, ops_per_dim, step_size) for n, size in ((rows, r), (columns, c))]
    places = jnp.asarray(np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 2), jnp.int32)
    wide = w.astype(wide_dtype(w.dtype))
    windows = jax.vmap(lambda at: jax.lax.dynamic_slice(wide, (at[0], at[1]), (r, c)))(places)
    return jnp.sort(jnp.square(jnp.linalg.svd(windows, compute_uv=False)).reshape(-1))


class PowerLaw(NamedTuple):
    """An exponent of a tail, and the largest distance of its distribution from that of the eigenvalues."""

    alpha: jax.Array
    distance: jax.Array


def powerlaw_alpha(eigs: Any, *, xmin_pos: Scalar = 2.0, fitting: str = "median") -> PowerLaw:
    """The exponent of the power law that the tail of a spectrum follows (Hill's estimate).

        alpha = 1 + n / (sum_{j >= i} log e_j - n log e_i)
        distance = max_j |1 - (e_j / e_i)^(1 - alpha) - (j - i) / n|

    Args:
      eigs: eigenvalues > 0 in ascending order, shape (N,), N >= 2, as `farms_eigs` returns them.
      xmin_pos: the tail begins at i = int(N / xmin_pos), > 1. Default 2: the median.
      fitting: "median" (default), as above; or "goodness-of-fit": of all i, that of the smallest distance, among those
        with alpha > 1.

    Returns:
      (alpha, distance), in float32 or wider.

    Raises:
      ValueError: another shape, an argument outside its range.

    Example:
      >>> e = 10.0 ** jnp.linspace(0.0, 1.0, 1000)
      >>> round(float(powerlaw_alpha(e).alpha), 2)  # 1 + 2 / log(sqrt(10)), as logs are uniform
      2.74

    Reference: Hu et al. Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias. 2025, arXiv 2506.06280.
    Where all values of the tail are equal, alpha is infinite.
    """
    checks.arrays(eigs=eigs)
    checks.choice("fitting", fitting, FITTINGS)
    checks.real("xmin_pos", xmin_pos, "(1, inf)")
    e = jnp.asarray(eigs, jnp.result_type(float)) if not hasattr(eigs, "dtype") else jnp.asarray(eigs)
    if e.ndim != 1 or e.size < 2 or not jnp.issubdtype(e.dtype, jnp.floating):
        raise ValueError(
            f"powerlaw_alpha: eigs must be a real vector of two eigenvalues or more, got {e.dtype} of shape {e.shape}; "
            "write farms_eigs(kernel.T)"
        )
    e = e.astype(wide_dtype(e.dtype))
    N, logs = e.size, jnp.log(e)
    after = jnp.cumsum(logs[::-1])[::-1]

    def at(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        n = (N - i).astype(e.dtype)
        alpha = 1 + n / (after[i] - n * logs[i])
        j = jnp.arange(N)
        off = jnp.abs(1 - jnp.exp((1 - alpha) * (logs - logs[i])) - (j - i).astype(e.dtype) / n)
        return alpha, jnp.max(jnp.where(j >= i, off, 0))

    if fitting == "median":
        i = int(N / xmin_pos)
        n = N - i
        tail = logs[i:]
        alpha = 1 + n / (jnp.sum(tail) - n * tail[0])
        off = jnp.abs(1 - jnp.exp((1 - alpha) * (tail - tail[0])) - jnp.arange(n, dtype=e.dtype) / n)
        return PowerLaw(alpha, jnp.max(off))
    alphas, distances = jax.lax.map(at, jnp.arange(N - 1))
    best = jnp.argmin(jnp.where((alphas > 1) & jnp.isfinite(distances), distances, jnp.inf))
    return PowerLaw(alphas[best], distances[best])


def layer_alphas(
    params: PyTree,
    *,
    num_row_samples: int = 100,
    q_ratio: Scalar = 2.0,
    ops_per_dim: int | None = 10,
    xmin_pos: Any = 2.0,
    layout: Layout | None = None,
) -> dict[str, jax.Array]:
    """The exponent of every matrix and convolution of a model.

    Of a matrix: `powerlaw_alpha(farms_eigs(outputs x inputs))`, with windows no wider than the matrix. Of a
    convolution, whose kernel has a matrix per place of its window, each made tall (rows >= columns): rows // columns
    blocks of int(columns / q_ratio) x columns, whose eigenvalues, halved, are pooled over the places; the mean over
    the blocks.

    Args:
      params: a tree of parameters; stacks of layers give one exponent per layer.
      num_row_samples: see `farms_eigs`. Default 100.
      q_ratio: see `farms_eigs`, >= 1. Default 2.
      ops_per_dim: see `farms_eigs`. Default 10.
      xmin_pos: see `powerlaw_alpha`. Default 2.
      layout: which axes are inputs, outputs, and stacks.

    Returns:
      The exponents by the names of the leaves, in their order: a number each, or an array with the stack axes. Vectors,
      embeddings and matrices that are too small for five eigenvalues are left out.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> params = {"dense": {"kernel": jax.random.normal(jax.random.key(0), (64, 128)), "bias": jnp.zeros(128)}}
      >>> [(name, alpha.shape) for name, alpha in layer_alphas(params, num_row_samples=16).items()]
      [('dense/kernel', ())]

    Reference: Hu et al. Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias. 2025, arXiv 2506.06280,
    and its code for convolutions.
    """
    checks.arrays(params=params)
    num_row_samples = checks.integer("num_row_samples", num_row_samples, 1)
    ops_per_dim = checks.integer("ops_per_dim", ops_per_dim, 1, optional=True)
    checks.real("q_ratio", q_ratio, "[1, inf)")
    checks.real("xmin_pos", xmin_pos, "(1, inf)")
    declared = resolve_layout(layout, params, method="layer_alphas")
    found = {}
    for name, x in zip(names(params), jax.tree.leaves(params), strict=True):
        axes = declared(name, x.shape)
        if axes.role in ("vector", "scalar", "embedding") or not axes.inputs or not axes.outputs or not x.size:
            continue
        stack = [a for a in range(x.ndim) if a not in (*axes.inputs, *axes.outputs)]
        places = list(axes.inputs[:-1]) if axes.role == "conv" else []
        inputs = [a for a in axes.inputs if a not in places]
        shapes = [int(np.prod([x.shape[a] for a in group])) for group in (places, axes.outputs, inputs)]
        w = jnp.transpose(x, (*stack, *places, *axes.outputs, *inputs)).reshape(-1, *shapes)
        if axes.role == "conv":
            one = _conv_alpha(shapes, q_ratio, xmin_pos)
        else:
            one = _matrix_alpha(shapes, num_row_samples, q_ratio, ops_per_dim, xmin_pos)
        if one is not None:
            found[name] = jax.lax.map(one, w).reshape([x.shape[a] for a in stack])
    return found


LEAST = 5  # eigenvalues, fewer of which are no distribution


def _matrix_alpha(shape: Any, num_row_samples: int, q_ratio: Any, ops_per_dim: Any, xmin_pos: Any) -> Any:
    _, rows, columns = shape
    # The windows of a narrow matrix have fewer rows.
    r = min(num_row_samples, rows, max(1, int(columns / q_ratio)))
    if min(r, int(r * q_ratio)) * len(_starts(rows, r, ops_per_dim, 10)) < LEAST:
        return None
    keywords = {"num_row_samples": r, "q_ratio": q_ratio, "ops_per_dim": ops_per_dim}
    return lambda w: powerlaw_alpha(farms_eigs(w[0], **keywords), xmin_pos=xmin_pos).alpha


def _conv_alpha(shape: Any, q_ratio: Any, xmin_pos: Any) -> Any:
    places, rows, columns = shape
    rows, columns = max(rows, columns), min(rows, columns)
    r = max(1, int(columns // q_ratio))
    if places * r < LEAST:
        return None

    def one(w: jax.Array) -> jax.Array:
        tall = w if w.shape[1] >= w.shape[2] else jnp.swapaxes(w, 1, 2)
        blocks = [tall[:, i * r : (i + 1) * r] for i in range(rows // columns)]
        wide = jnp.stack(blocks).astype(wide_dtype(w.dtype))
        eigs = jnp.square(jnp.linalg.svd(wide, compute_uv=False)) / 2
        pooled = jnp.sort(eigs.reshape(len(blocks), -1), axis=1)
        return jnp.mean(jax.vmap(lambda e: powerlaw_alpha(e, xmin_pos=xmin_pos).alpha)(pooled))

    return one


def tempbalance_rates(
    alphas: Mapping[str, Any], learning_rate: Scalar = 1.0, *, low: Scalar = 0.5, high: Scalar = 1.5, ends: bool = False
) -> dict[str, jax.Array]:
    """A learning rate for every layer, larger where its exponent is larger: where it is trained less (TempBalance).

        rate_l = learning_rate interp(alpha_l, [min alpha, max alpha], [low, high])

    Args:
      alphas: the exponents by the names of the layers, from the first layer to the last, as `layer_alphas` returns
        them: numbers, or arrays of them for stacks of layers.
      learning_rate: of all layers, >= 0. Default 1: factors are returned.
      low: factor of the smallest exponent, >= 0. Default 0.5 (paper's code).
      high: factor of the largest, >= `low`. Default 1.5 (paper's code).
      ends: whether the first and the last layer take part too. Default False (paper's code): they keep the rate.

    Returns:
      The rates by the same names, arrays like the exponents. Where all exponents are equal, all layers keep the rate.

    Raises:
      ValueError: an argument outside its range, `high` below `low`.

    Example:
      >>> alphas = {"first": 9.0, "a": 2.0, "b": 4.0, "c": 3.0, "last": 1.0}
      >>> {name: rate.item() for name, rate in tempbalance_rates(alphas, 1.0).items()}
      {'first': 1.0, 'a': 0.5, 'b': 1.5, 'c': 1.0, 'last': 1.0}

    Reference: Hu et al. Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias. 2025, arXiv 2506.06280;
    Zhou et al., Temperature Balancing, 2023.
    """
    checks.arrays(alphas=alphas)
    checks.real("learning_rate", learning_rate, "[0, inf)")
    checks.real("low", low, "[0, inf)")
    checks.real("high", high, "[0, inf)")
    checks.switch(ends=ends)
    if isinstance(low, int | float) and isinstance(high, int | float) and high < low:
        raise ValueError(f"tempbalance_rates: high must be at least low={low}, got {high}; write high={2 - low}")
    known = {name: jnp.asarray(x, jnp.result_type(float)) for name, x in alphas.items()}
    order = [*known] if ends else [*known][1:-1]
    rate = jnp.asarray(learning_rate, jnp.result_type(float))
    kept = {name: jnp.broadcast_to(rate, x.shape) for name, x in known.items()}
    if not order:
        return kept
    joined = jnp.concatenate([known[name].reshape(-1) for name in order])
    least, most = jnp.min(joined), jnp.max(joined)
    spread = most - least

    def of(x: jax.Array) -> jax.Array:
        place = (x - least) / jnp.where(spread > 0, spread, 1)
        return rate * jnp.where(spread > 0, low + (high - low) * place, 1)

    return kept | {name: of(known[name]) for name in order}


SHARED: dict[str, Any] = {"form": "function", "paper": PAPER}
register(farms_eigs, **SHARED, golden=("estimators/farms",), example={"w": np.eye(8, dtype=np.float32)[:4]})
register(powerlaw_alpha, **SHARED, golden=("estimators/farms",), example={"eigs": np.arange(1, 9, dtype=np.float32)})
register(layer_alphas, **SHARED, example={"params": {"kernel": np.eye(16, dtype=np.float32)}})
register(tempbalance_rates, **SHARED, example={"alphas": {"a": 2.0, "b": 3.0, "c": 4.0, "d": 1.0}})
