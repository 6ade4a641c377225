"""The linear minimisation oracle of a norm: the point of the unit ball that a gradient is most along."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine import orthogonal as orthogonals
from gradkit.engine.core import divide, scalar, stateless, transformation
from gradkit.engine.matrix_sums import entries_of, matrix_sums
from gradkit.engine.orthogonal import Orthogonal, orthogonal
from gradkit.engine.shape_factor import shape_factor
from gradkit.engine.shards import MatrixSharding
from gradkit.engine.sums import whole_shape
from gradkit.leaves import Axes, Layout, axes_of, names, tensor_axes
from gradkit.types import DTypeLike, PyTree, Scalar

PAPER = Paper("Training Deep Learning Models with Norm-Constrained LMOs", "Pethick et al.", 2025, "2502.07529")
NORMS = ("spectral", "sign", "row", "col", "bias_rms")


class Norm(NamedTuple):
    """A norm of one leaf: its name, whether it is in units of the layer, and whether its factor is 1 at least."""

    norm: str
    normalized: bool
    max: bool


def parse(argument: str, given: Any) -> Norm:
    """A norm from its name, or from a mapping of the arguments of `lmo`.

    >>> parse("norm", "col"), parse("norm", {"norm": "sign", "normalized": False})
    (Norm(norm='col', normalized=False, max=False), Norm(norm='sign', normalized=False, max=False))
    """
    own = dict(given) if isinstance(given, Mapping) else {"norm": given}
    for key in own:
        checks.choice(f"a key of {argument}", key, Norm._fields)
    norm, normalized, most = own.get("norm"), own.get("normalized"), own.get("max", False)
    checks.choice(argument, norm, NORMS)
    if normalized is None:
        normalized = norm != "col"
    checks.switch(normalized=normalized, max=most)
    if most and norm != "spectral":
        raise ValueError(f"max must be False with the norm {norm!r}, got True; it is of the norm 'spectral'")
    return Norm(str(norm), bool(normalized), bool(most))


def _spectral_scale(axes: Axes, shape: Sequence[int], norm: Norm) -> Any:
    """The function (inputs, outputs) -> factor of the spectral norm; of a convolution per position of its window."""
    window = 1
    if axes.role == "conv":
        window = math.prod(shape[a] for a in axes.inputs[:-1])

    def scale(inputs: int, outputs: int) -> float:
        s = math.sqrt(outputs / (inputs // window) if norm.normalized else outputs)
        return (max(1.0, s) if norm.max else s) / window

    return scale


def _inputs(axes: Axes, shape: Sequence[int]) -> int:
    return math.prod(shape[a] for a in axes.inputs)


def _summed(norm: Norm) -> Any:
    """The axes that the squares of a leaf are summed over."""
    sides = {"row": lambda axes, shape: axes.inputs, "col": lambda axes, shape: axes.outputs}
    return sides.get(norm.norm, tensor_axes)


def check_leaf(method: str, norm: Norm, name: str, shape: tuple[int, ...], axes: Axes) -> None:
    """Raises where a norm of matrices is asked of a leaf that is none."""
    if norm.norm in ("spectral", "row", "col") and not (axes.inputs and axes.outputs):
        raise ValueError(
            f"{method}: the norm {norm.norm!r} is one of matrices, and the leaf {name!r} of shape {shape} is none "
            f"(role {axes.role!r}); take 'bias_rms' or 'sign' for it, or say with `layout` which of its axes are inputs"
            " and outputs"
        )


def oracle(
    method: str,
    tree: PyTree,
    norms: Sequence[Norm],
    how: Orthogonal,
    norm_eps: Any,
    layout: Layout | None,
    shard: MatrixSharding | None,
) -> Any:
    """The oracle of every leaf, each with its norm: one exchange for all matrices, one all-reduce for all sums."""
    leaves, structure = jax.tree.flatten(tree)
    known = names(tree)
    shapes = [whole_shape(name, x.shape) for name, x in zip(known, leaves, strict=True)]
    axes = [axes_of(layout, name, x.shape) for name, x in zip(known, leaves, strict=True)]
    out = list(leaves)
    used = [i for i, x in enumerate(leaves) if x.size]

    matrices = {known[i]: leaves[i] for i in used if norms[i].norm == "spectral"}
    done = orthogonal(method, how, matrices, layout=layout, shard=shard)
    for i in used:
        if known[i] in done:
            s = shape_factor(axes[i], shapes[i], _spectral_scale(axes[i], shapes[i], norms[i]))
            out[i] = done[known[i]] * (s if isinstance(s, float) else jnp.asarray(s, leaves[i].dtype))
        elif norms[i].norm == "sign":
            n = _inputs(axes[i], shapes[i]) if norms[i].normalized else 1
            out[i] = jnp.sign(leaves[i]) * (1 / n)

    others = [i for i in used if norms[i].norm in ("row", "col", "bias_rms")]
    kinds = {known[i]: _summed(norms[i]) for i in others}
    for i, factor in zip(others, _inverse_norms(known, leaves, others, norms, kinds, norm_eps, layout), strict=True):
        out[i] = leaves[i] * factor.astype(leaves[i].dtype)
    return structure.unflatten(out)


def _inverse_norms(
    known: Sequence[str],
    leaves: Sequence[jax.Array],
    chosen: Sequence[int],
    norms: Sequence[Norm],
    kinds: Mapping[str, Any],
    norm_eps: Any,
    layout: Layout | None,
) -> list[jax.Array]:
    """What leaves are multiplied by where their norm is a root of sums of squares."""
    own = [leaves[i] for i in chosen]
    some = [known[i] for i in chosen]
    over = [kinds[name] for name in some]
    sums = matrix_sums(some, layout, [jnp.square(x) for x in own], over=over, like=own)

    def factor(square: jax.Array, number: int, scale: float) -> jax.Array:
        n = jnp.sqrt(square * (1 / max(number, 1))) * scale
        return divide(jnp.ones_like(n), n + scalar(norm_eps, n))

    numbers, scales = [], []
    for block in sums.blocks:
        name, norm = some[block.leaf], norms[chosen[block.leaf]]
        shape = whole_shape(name, own[block.leaf].shape)
        inputs = _inputs(axes_of(layout, name, shape), shape)
        # The norm of a row is no root of a mean, and has the root of its length in the factor.
        row = norm.norm == "row"
        numbers.append(1 if row else entries_of(name, layout, shape, kinds[name])[block.part])
        scales.append(float(inputs ** (0.5 if row else 1)) if norm.normalized and norm.norm != "bias_rms" else 1.0)
    return sums.per_leaf(sums.each(factor, numbers, scales))


def lmo(
    norm: Any,
    *,
    normalized: bool | None = None,
    max: bool = False,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    norm_eps: Scalar = 1e-8,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replaces every leaf by the point of the unit ball of a norm that has the largest inner product with it.

    Equations, of a matrix g with n inputs and p outputs, its entries g_ij from input i to output j:

        "spectral"   sqrt(p / n) U V^T of g = U S V^T                      normalized=False: sqrt(p) U V^T
        "sign"       sign(g) / n                                           normalized=False: sign(g)
        "row"        g_ij / (sqrt(n) sqrt(sum_i g_ij^2) + norm_eps)        normalized=False: without sqrt(n)
        "col"        g_ij / (sqrt(sum_j g_ij^2 / p) + norm_eps)            normalized=True: n times the root
        "bias_rms"   g / (sqrt(mean(g^2)) + norm_eps)                      any leaf: a vector, a scalar, a tensor

    "row" is one vector per output, "col" one vector per input, as an embedding (vocabulary, features) has for every
    token. With max=True the factor of "spectral" is 1 at least. Of a convolution n is the number of input channels, and
    the result is divided by the number of positions in its window. A zero leaf gives zeros.

    Args:
      norm: one of the five.
      normalized: whether the norm is in units of the layer, as the table says. Default None: True, of "col" False
        (official code).
      max: whether the factor of "spectral" is 1 at least. Default False (official code).
      ns_steps: Newton-Schulz iterations of "spectral", >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon" (official code).
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`. Default "newton_schulz".
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      norm_eps: added to the other norms, in the gradient's units times the factor, >= 0. Default 1e-8 (official code).
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work of "spectral" is spread. Default None.

    Returns:
      A transformation. No state. Collectives: of "spectral" those of `gk.scale_by_muon`; of "row" and "col" one
      all-reduce of a number per vector where the summed axis is sharded; of "bias_rms" of a number per tensor; of
      "sign" none.

    Raises:
      ValueError: an unknown norm, an argument outside its range; a norm of matrices for a leaf that is none.

    Example:
      >>> tx = lmo("row")
      >>> g = jnp.array([[3.0, 0.0], [4.0, 2.0]])
      >>> print(tx.update(g, tx.init(g))[0].round(3))  # columns of norm 1 / sqrt(2)
      [[0.424 0.   ]
       [0.566 0.707]]

    Reference: Pethick et al. Training Deep Learning Models with Norm-Constrained LMOs. 2025, arXiv 2502.07529. Rows and
    columns are those of torch's (outputs, inputs), which has an option to transpose embeddings; in the layout of JAX
    they are (inputs, outputs) already.
    """
    checks.layout(layout)
    own = parse("norm", norm if isinstance(norm, Mapping) else {"norm": norm, "normalized": normalized, "max": max})
    how = orthogonals.checked(ns_steps, coefficients, method, eps, ns_dtype, shard)
    checks.real("norm_eps", norm_eps, "[0, inf)")
    start = stateless("lmo", layout)

    def init(params: optax.Params) -> optax.EmptyState:
        for name, x in zip(names(params), jax.tree.leaves(params), strict=True):
            check_leaf("lmo", own, name, x.shape, axes_of(layout, name, x.shape))
        return start(params)

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        norms = [own] * len(jax.tree.leaves(updates))
        return oracle("lmo", updates, norms, how, norm_eps, layout, shard), state

    return transformation("lmo", init, update)


register(
    lmo,
    form="primitive",
    paper=PAPER,
    collectives="matrices",
    golden=("modern/scion", "modern/scion_unconstrained"),
    example={"norm": "bias_rms"},
    opt_outs={"layout": "its norms are of matrices, whatever their stacks are called; its test has layouts"},
)
