"""CAME: Adafactor with momentum, divided by the distance of its updates from their running mean."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, none_for_0
from gradkit.engine.core import abs_sq, cast, optimizer, pair, scalar, transformation, zeros
from gradkit.engine.factored import Factored, accumulate, start, whitened
from gradkit.engine.norms import squares
from gradkit.leaves import Layout, Method, resolve_layout
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.transforms.tensor_rms import tensor_rms
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

NAME = "came"
PAPER = Paper("CAME: Confidence-guided Adaptive Memory Efficient Optimization", "Luo et al.", 2023, "2307.02047")


class ScaleByCameState(NamedTuple):
    """The running mean of updates; the second moments of gradients (`second`) and of the differences of updates from
    their mean (`instability`): means over rows, columns and all entries, or every entry of a leaf without factors.
    """

    mu: Any
    second: Factored
    instability: Factored


@jax.jit
def _distance(u: jax.Array, m: jax.Array) -> jax.Array:
    return abs_sq(u - cast(m, u.dtype))


def _scale_by_came(
    b1: Any, b2: Any, b3: Any, eps: Any, eps_instability: Any, threshold: Any, mu_dtype: Any, layout: Layout | None
) -> optax.GradientTransformationExtraArgs:
    def init(params: optax.Params) -> ScaleByCameState:
        resolve_layout(layout, params, method=NAME, matters=True)
        return ScaleByCameState(
            zeros(params, mu_dtype),
            start(params, layout, min_dim=0),
            start(params, layout, min_dim=0, others=False),
        )

    def update(updates: Any, state: ScaleByCameState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        structure = jax.tree.structure(updates)
        second = accumulate(state.second, updates, squares(jax.tree.leaves(updates)), layout, pair(b2), none_for_0(eps))
        u = whitened(second, updates)
        if threshold is not None:

            def factor(r: jax.Array) -> jax.Array:
                return jnp.maximum(r / scalar(threshold, r), jnp.ones_like(r))

            factors = tensor_rms(structure.unflatten(u), layout, factor, large=True)
            u = [x / cast(f, x.dtype) for x, f in zip(u, factors, strict=True)]
        mu = [ema(m, x, b1) for m, x in zip(jax.tree.leaves(state.mu), u, strict=True)]
        distances = [_distance(x, m) for x, m in zip(u, mu, strict=True)]
        instability = accumulate(state.instability, updates, distances, layout, pair(b3), none_for_0(eps_instability))
        wide = structure.unflatten([cast(m, x.dtype) for m, x in zip(mu, u, strict=True)])
        new = structure.unflatten(whitened(instability, wide))
        return new, ScaleByCameState(structure.unflatten(mu), second, instability)

    return transformation(NAME, init, update, complex_leaves=True)


def came(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: Scalar = 0.9999,
    eps: Scalar = 1e-30,
    eps_instability: Scalar = 1e-16,
    clipping_threshold: Scalar | None = 1.0,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adafactor with momentum whose steps are longer where updates agree with their running mean.

    Equations, with I and O the input and output axes of a matrix, RMS over one tensor (one layer of a stack):

        R <- b2 R + (1 - b2) mean_O(g^2 + eps),  C <- b2 C + (1 - b2) mean_I(g^2 + eps)
        u = g (R / mean_I(R))^(-1/2) C^(-1/2),  u <- u / max(1, RMS(u) / clipping_threshold)
        m <- b1 m + (1 - b1) u
        S = (u - m)^2 + eps_instability
        r <- b3 r + (1 - b3) mean_O(S),  c <- b3 c + (1 - b3) mean_I(S)
        d = m (r / mean_I(r))^(-1/2) c^(-1/2)            of a vector: d = m, and u = g / sqrt(b2-mean of g^2 + eps)
        x <- x - learning_rate (d + weight_decay x)

    There is no bias correction. An entry of the first step is about (1 - b1) / (b1 sqrt(1 - b3)) = 11
    learning rates, and with constant gradients u - m goes to 0 and the step grows until eps_instability
    bounds it. Give it a warm-up.

    Args:
      learning_rate: step size >= 0, or a schedule, which scales the decay too.
      b1: decay of the momentum, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      b3: decay of the instability, in [0, 1). Default 0.9999 (official code).
      eps: added to squares of gradients, >= 0. Default 1e-30 (official code).
      eps_instability: added to squares of u - m, >= 0. Default 1e-16 (official code).
      clipping_threshold: largest RMS of u, > 0; None for no clipping. Default 1 (official code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0 (official code).
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are inputs, outputs and stacks.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter, 2 (rows + columns) per matrix, 1 more word per
      parameter of other leaves. Collectives: three all-reduces where leaves are sharded, two of rows + columns
      numbers per matrix, one of a number per tensor.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = came(0.01)
      >>> x = jnp.array([[1.0, -2.0], [2.0, -4.0]])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))  # clipped to an RMS of 1; 0.1 / (0.9 sqrt(1 - b3)) rates
      [[-0.1111  0.1111]
       [-0.1111  0.1111]]

    Reference: Luo et al. CAME: Confidence-guided Adaptive Memory Efficient Optimization. 2023, arXiv 2307.02047;
    official code, commit e77c5c0, which factors the last two axes of a leaf and has one RMS for a stack of layers.
    """
    for name, value in (("b1", b1), ("b2", b2), ("b3", b3)):
        checks.real(name, value, "[0, 1)")
    for name, value in (("eps", eps), ("eps_instability", eps_instability)):
        checks.real(name, value, "[0, inf)")
    checks.real("clipping_threshold", clipping_threshold, "(0, inf]", optional=True)
    checks.floating_dtype(mu_dtype=mu_dtype)
    return optimizer(
        Method(NAME, learning_rate, weight_decay, weight_decay_mask),
        _scale_by_came(b1, b2, b3, eps, eps_instability, clipping_threshold, mu_dtype, layout),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(
    came,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="norms",
    golden=("modern/came",),
    opt_outs={"words": "2 (rows + columns) words per matrix are counted by its paper's test"},
    notes="state 1 + 2 (rows + columns) words per matrix",
    race=Race(1e-3),
)
