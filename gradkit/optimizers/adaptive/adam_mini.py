"""Adam-mini: one second moment for a block of parameters whose Hessian is dense, in place of one per parameter."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, over_root
from gradkit.engine.core import (
    bias_corrections,
    cast,
    increment,
    optimizer,
    pair,
    real_dtype,
    transformation,
    weights,
    wide_dtype,
    zeros,
)
from gradkit.engine.norms import squares
from gradkit.engine.sums import block_sums, own_parts, whole_shape, zeros_along
from gradkit.leaves import Axes, Layout, Method, axes_of, map_named, names, naming, no_decay, resolve_layout
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("Adam-mini: Use Fewer Learning Rates To Gain More", "Zhang et al.", 2024, "2406.16793")
BLOCKS = ("entry", "unit", "input", "head", "tensor")
Blocks = Callable[[str, Axes], str]
_OF_HEADS = frozenset(("q", "k", "query", "key", "queries", "keys", "wq", "wk"))


def default_blocks(path: str, axes: Axes) -> str:
    """The block of a leaf by its role.

    >>> default_blocks("attention/query/kernel", Axes("matrix", (), (0,), (1, 2)))
    'head'
    >>> [default_blocks(name, Axes("vector", (), (), (0,))) for name in ("up/bias", "norm/scale")]
    ['entry', 'tensor']
    """
    if axes.role == "embedding":
        return "input"
    if not axes.inputs or not axes.outputs:
        return "tensor" if axes.role == "scalar" or naming.of_scale(path) else "entry"
    heads = _OF_HEADS & {*naming.words(naming.label(path))}
    return "head" if heads and axes.role == "matrix" else "unit"


def _summed(block: str, axes: Axes, rank: int) -> tuple[int, ...]:
    """The axes of a leaf that a block spans, without the axis of fused outputs, whose units are averaged afterwards."""
    unstacked = tuple(a for a in range(rank) if a not in axes.stack)
    if block == "entry":
        return ()
    if block == "tensor":
        return unstacked
    if block == "input":
        return tuple(a for a in unstacked if a not in axes.inputs)
    kept = axes.outputs[:1] if block == "head" and len(axes.outputs) > 1 else axes.outputs
    return tuple(a for a in unstacked if a not in kept)


def _within(means: jax.Array, axis: int, sizes: Sequence[int]) -> jax.Array:
    """The means with every section of an axis, of these sizes, replaced by the mean over the section."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    parts = jnp.split(means, ends, axis=axis)
    return jnp.concatenate([jnp.broadcast_to(p.mean(axis, keepdims=True), p.shape) for p in parts], axis=axis)


@functools.partial(jax.jit, inline=True)
def _moment(v: jax.Array, mean: jax.Array, decay: tuple[Any, Any]) -> jax.Array:
    b, rest = weights(decay, mean)
    return cast(b * cast(v, mean.dtype) + rest * mean, v.dtype)


class ScaleByBlockRmsState(NamedTuple):
    """Number of updates made, the first moment, and the second moment: one number per block."""

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_block_rms(
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    blocks: Blocks | str | None = None,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam's direction with one second moment per block, the mean of squares over it.

    Equations:

        m_t = b1 m_{t-1} + (1 - b1) g_t,  v_B = b2 v_B + (1 - b2) mean_B(g_t^2)
        u_t = (m_t / (1 - b1^t)) / (sqrt(v_B / (1 - b2^t)) + eps)

    Args:
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-8 (official code).
      blocks: "entry" (one per parameter: Adam), "unit" (per output unit), "input" (per input, as a row of an
        embedding), "head" (per head: the first of several output axes, or every one of the `splits` of the layout),
        "tensor" (one), for all leaves; or a function (path, axes) -> one of these. Default None, by role: embeddings
        "input"; queries and keys "head"; every other matrix "unit", a head one per token; scales of normalizations
        and scalars "tensor"; biases and other vectors "entry".
      mu_dtype: dtype in which the first moment is kept. Default float32.
      layout: which axes are inputs, outputs and stacks, and the sizes of fused heads.

    Returns:
      A transformation. State: 1 word per parameter and a number per block (per output unit where fused heads share an
      axis), and a counter. Collectives: one all-reduce of a number per block where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range; an unknown block.

    Example:
      >>> tx = scale_by_block_rms(blocks="unit")
      >>> g = jnp.array([[3.0, 0.1], [4.0, 0.1]])  # columns are output units, of root mean squares 3.54 and 0.1
      >>> print(tx.update(g, tx.init(g))[0].round(3))
      [[0.849 1.   ]
       [1.131 1.   ]]

    Reference: Zhang et al. Adam-mini: Use Fewer Learning Rates To Gain More. 2024, arXiv 2406.16793; official code
    1.1.1, commit 402aadf, which finds blocks by substrings of names ("linear" in "linear_attn" too) and in one branch
    divides a sum by the number of entries twice. Here roles decide, and a block has the mean of its squares; a vector
    that is not the scale of a normalization is not one block.
    """
    checks.layout(layout)
    name = "scale_by_block_rms"
    for argument, value in (("b1", b1), ("b2", b2)):
        checks.real(argument, value, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.floating_dtype(mu_dtype=mu_dtype)
    if not callable(blocks):
        checks.choice("blocks", blocks, (None, *BLOCKS))

    def block_of(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int | None, Axes]:
        """The axes that are summed, and the axis whose fused outputs are averaged, None for no such axis."""
        axes = axes_of(layout, path, shape)
        block = default_blocks(path, axes) if blocks is None else blocks(path, axes) if callable(blocks) else blocks
        checks.choice(f"the block of {path!r}", block, BLOCKS)
        fused = axes.outputs[0] if block == "head" and len(axes.outputs) == 1 and axes.splits else None
        return _summed(block, axes, len(shape)), fused, axes

    def init(params: optax.Params) -> ScaleByBlockRmsState:
        resolve_layout(layout, params, method=name, matters=True)

        def start(path: str, x: Any) -> jax.Array:
            summed, _, _ = block_of(path, x.shape)
            if not summed:
                return zeros(x, real=True)
            return zeros_along(x, summed, real_dtype(wide_dtype(x.dtype)))

        return ScaleByBlockRmsState(jnp.zeros((), jnp.int32), zeros(params, mu_dtype), map_named(start, params))

    def update(updates: Any, state: ScaleByBlockRmsState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count = increment(state.count)
        leaves, structure = jax.tree.flatten(updates)
        param_names, mean_squares = names(updates), squares(leaves)
        plans = [block_of(path, x.shape) for path, x in zip(param_names, leaves, strict=True)]
        chosen = [i for i, (summed, _, _) in enumerate(plans) if summed]
        sums = block_sums(
            [param_names[i] for i in chosen], [mean_squares[i] for i in chosen], [plans[i][0] for i in chosen]
        )
        means = []
        for i, s in zip(chosen, sums, strict=True):
            summed, fused, axes = plans[i]
            mean = s / max(1, math.prod(whole_shape(param_names[i], leaves[i].shape)[a] for a in summed))
            means.append(mean if fused is None else _within(mean, fused, axes.splits))
        parts = own_parts([param_names[i] for i in chosen], [leaves[i] for i in chosen], means)
        for i, mean in zip(chosen, parts, strict=True):
            mean_squares[i] = mean
        mu = jax.tree.map(lambda m, g: ema(m, g, b1), state.mu, updates)
        decay = pair(b2)
        nu = [_moment(v, mean, decay) for v, mean in zip(jax.tree.leaves(state.nu), mean_squares, strict=True)]
        of_mu, of_nu = bias_corrections(b1, count), bias_corrections(b2, count)
        rows = zip(jax.tree.leaves(mu), nu, leaves, strict=True)
        new = [over_root(cast(m, g.dtype), v, eps, x_by=cast(of_mu(g), g.dtype), v_by=of_nu(g)) for m, v, g in rows]
        return structure.unflatten(new), ScaleByBlockRmsState(count, mu, structure.unflatten(nu))

    return transformation(name, init, update, complex_leaves=True)


def adam_mini(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    blocks: Blocks | str | None = None,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW in half of its memory: one second moment per head, output unit or token, not per parameter.

    Equations, with B the block of a parameter:

        m_t = b1 m_{t-1} + (1 - b1) g_t,  v_B = b2 v_B + (1 - b2) mean_B(g_t^2),  hats: divided by 1 - b^t
        x_t = x_{t-1} - learning_rate (m^_t / (sqrt(v^_B) + eps) + weight_decay x_{t-1})

    Args:
      learning_rate: step size >= 0, or a schedule, which scales the decay too. That of AdamW fits (paper).
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-8 (official code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0 (official code).
      weight_decay_mask: which leaves decay. Default all but vectors and scalars (official code: no norms and biases).
      blocks: the blocks, as in `scale_by_block_rms`. Default None: by role.
      mu_dtype: dtype in which the first moment is kept. Default float32.
      layout: which axes are inputs, outputs and stacks, and the sizes of fused heads.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter and a number per block. Collectives: one
      all-reduce of a number per block where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range; an unknown block.

    Example:
      >>> tx = adam_mini(0.1)
      >>> x = {"up": {"kernel": jnp.array([[3.0, 0.1], [4.0, 0.1]])}}
      >>> print(tx.update(x, tx.init(x), x)[0]["up"]["kernel"].round(4))
      [[-0.0849 -0.1   ]
       [-0.1131 -0.1   ]]

    Reference: Zhang et al. Adam-mini: Use Fewer Learning Rates To Gain More. 2024, arXiv 2406.16793. See
    `scale_by_block_rms` for what differs from the official code. Query and key matrices with one output axis are one
    block per output unit until the layout declares their heads by `splits`.
    """
    mask = no_decay(layout=layout) if weight_decay_mask is None else weight_decay_mask
    return optimizer(
        Method("adam_mini", learning_rate, weight_decay, mask),
        scale_by_block_rms(b1=b1, b2=b2, eps=eps, blocks=blocks, mu_dtype=mu_dtype, layout=layout),
        add_decayed_weights(weight_decay, weight_decay_mask=mask),
        scale_by_learning_rate(learning_rate),
    )


register(
    adam_mini,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="norms",
    golden=("modern/adam_mini",),
    race=Race(5e-3),
)
register(
    scale_by_block_rms,
    form="primitive",
    paper=PAPER,
    words=1,
    collectives="norms",
    golden=("modern/adam_mini",),
)
