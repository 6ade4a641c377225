"""AdaGO: Muon's direction with AdaGrad's step size, one number per matrix.

m_t = momentum m_{t-1} + (1 - momentum) g_t
h_t = min(|g_t|, max_norm)
a_t = a_{t-1} + h_t^2
x_t = x_{t-1} - max(min_rate, learning_rate h_t / sqrt(a_t)) s polar(m_t)

Embeddings, heads, vectors and scalars take AdamW instead.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine import orthogonal as orthogonals
from gradkit.engine.accumulators import ema
from gradkit.engine.core import at_count, counter, divide, increment, scalar, transformation, zeros
from gradkit.engine.fields import settled
from gradkit.engine.matrix_sums import matrix_sums
from gradkit.engine.orthogonal import Orthogonal, orthogonal
from gradkit.engine.planning import check_matrix
from gradkit.engine.shape_factor import SCALES
from gradkit.engine.shards import MatrixSharding
from gradkit.leaves import Layout, Method, axes_of, check_mask_form, names, resolve_mask
from gradkit.leaves.scopes import decay_here
from gradkit.optimizers.matrix.rate_inside import with_adamw
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "AdaGrad Meets Muon: Adaptive Stepsizes for Orthogonal Updates", "Zhang, Liu, Schaeffer", 2025, "2509.02981"
)
NAME = "adago"


class AdagoState(NamedTuple):
    """Number of updates made (None where nothing is a schedule); the momentum; per matrix the sum of the squares of the
    norms of gradients; the learning rate of the last update as a metric."""

    count: Any
    mu: Any
    accumulator: Any
    metrics: dict[str, jax.Array]


class _Own(NamedTuple):
    """The hyperparameters of the matrices."""

    learning_rate: Any
    momentum: Any
    max_norm: Any
    min_rate: Any
    initial: Any
    scale: str | None
    weight_decay: Any
    weight_decay_mask: Any
    mu_dtype: Any


def _matrices(
    own: _Own, how: Orthogonal, layout: Layout | None, shard: MatrixSharding | None
) -> optax.GradientTransformationExtraArgs:
    """AdaGO of leaves that are all matrices."""

    def squares(tree: Any) -> list[jax.Array]:
        """The square of the norm of every matrix, in a shape that broadcasts against its leaf."""
        leaves = jax.tree.leaves(tree)
        sums = matrix_sums(names(tree), layout, [jnp.square(x) for x in leaves], like=leaves)
        return sums.per_leaf(sums.parts[0])

    def published(rate: Any) -> dict[str, jax.Array]:
        return {"last_learning_rate": jnp.array(rate, jnp.float32, copy=True)}

    def init(params: optax.Params) -> AdagoState:
        known = names(params)
        for name, x in zip(known, jax.tree.leaves(params), strict=True):
            check_matrix(NAME, name, x.shape, axes_of(layout, name, x.shape))
        mu = zeros(params, own.mu_dtype)
        wide = zeros(params)
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params)):
            start = [jnp.full(s.shape, own.initial, s.dtype) for s in jax.eval_shape(squares, wide)]
        else:  # sharded as an update makes them
            start = [jnp.zeros_like(s) + scalar(own.initial, s) for s in squares(wide)]
        count = counter(callable(own.learning_rate) or callable(own.weight_decay))
        rate = at_count(own.learning_rate, count, f"{NAME}: learning_rate")
        return AdagoState(count, mu, jax.tree.structure(params).unflatten(start), published(rate))

    def update(g: Any, state: AdagoState, params: Any = None, **extra: Any) -> tuple[Any, AdagoState]:
        del extra
        rate = at_count(own.learning_rate, state.count, f"{NAME}: learning_rate")
        mu = jax.tree.map(lambda m, x: ema(m, x, own.momentum), state.mu, g)
        m = jax.tree.map(lambda m, x: m.astype(x.dtype), mu, g)
        directions = orthogonal(NAME, how, m, scale=own.scale, layout=layout, shard=shard)
        leaves, structure = jax.tree.flatten(g)
        norms = [jnp.minimum(jnp.sqrt(x), scalar(own.max_norm, x)) for x in squares(g)]
        sums = [a.astype(h.dtype) + h * h for a, h in zip(jax.tree.leaves(state.accumulator), norms, strict=True)]
        w, on = jax.tree.leaves(params), jax.tree.leaves(resolve_mask(own.weight_decay_mask, g))
        undecayed = isinstance(own.weight_decay, int | float) and own.weight_decay == 0
        decay = 0.0 if undecayed else decay_here(at_count(own.weight_decay, state.count, f"{NAME}: weight_decay"))
        out = []
        for i, (d, h, a) in enumerate(zip(jax.tree.leaves(directions), norms, sums, strict=True)):
            size = jnp.maximum(scalar(own.min_rate, h), scalar(rate, h) * divide(h, jnp.sqrt(a)))
            step = -size * d
            if not undecayed and on[i]:
                step = step - scalar(rate, h) * scalar(decay, h) * w[i]
            out.append(step.astype(leaves[i].dtype))
        accumulator = settled(structure.unflatten(sums), state.accumulator)
        return structure.unflatten(out), AdagoState(increment(state.count), mu, accumulator, published(rate))

    described = Method(NAME, own.learning_rate, own.weight_decay, own.weight_decay_mask)
    needs = not (isinstance(own.weight_decay, int | float) and own.weight_decay == 0)
    return transformation(NAME, init, update, needs_params=needs, described=described)


def adago(
    learning_rate: ScalarOrSchedule = 0.05,
    *,
    momentum: Scalar = 0.95,
    max_norm: Scalar = 10.0,
    min_rate: Scalar = 5e-4,
    initial_accumulator_value: Scalar = 1e-6,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "svd",
    eps: Scalar = 1e-7,
    scale: str | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.95,
    adam_eps: Scalar = 1e-8,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The orthogonalised momentum, by a step size that falls with the norms of all gradients seen.

    Equations, of every matrix:

        m_t = momentum m_{t-1} + (1 - momentum) g_t
        h_t = min(|g_t|, max_norm)                                 Frobenius norm of the gradient
        a_t = a_{t-1} + h_t^2,   a_0 = initial_accumulator_value
        x_t = x_{t-1} - max(min_rate, learning_rate h_t / sqrt(a_t)) s U V^T - learning_rate weight_decay x_{t-1}
                                                                   m_t = U S V^T

    Embeddings, heads, vectors and scalars take AdamW.

    Args:
      learning_rate: step size >= 0, or a schedule, that of the first step. Default 0.05.
      momentum: decay of the mean, in [0, 1). Default 0.95.
      max_norm: the largest norm of a gradient that counts, > 0. Default 10.
      min_rate: the smallest step size, >= 0. Default 5e-4.
      initial_accumulator_value: a_0, the square of v_0 of the paper, >= 0. Default 1e-6. With 0 the first step has the
        learning rate itself.
      ns_steps: Newton-Schulz iterations, >= 1. Not used by "svd". Default 5.
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Not used by "svd". Default "muon".
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`. Default "svd" (paper: the
        exact factor).
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7.
      scale: s, as in `gk.scale_by_muon`. Default None: 1 (paper).
      weight_decay: decoupled decay of matrices >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay, of all. Default all.
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. Has to be given where there are some.
      adam_b1: decay of their first moment, in [0, 1). Default 0.9.
      adam_b2: decay of their second moment, in [0, 1). Default 0.95.
      adam_eps: added to the root of theirs, >= 0. Default 1e-8.
      adam_weight_decay: their decoupled decay >= 0, or a schedule. Default 0.
      mu_dtype: dtype in which first moments are kept. Default float32.
      ns_dtype: dtype of the iterations. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work is spread, as in `gk.scale_by_muon`. Default None.

    Returns:
      A transformation that needs `params` where leaves decay. State: 1 word per parameter and one number per matrix, 2
      words of other leaves. Collectives: those of `gk.scale_by_muon`, and one all-reduce of a number per matrix.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, leaves for AdamW without a learning rate for them.

    Example:
      >>> tx, x = adago(0.1, momentum=0.0, initial_accumulator_value=0.0), jnp.eye(2)
      >>> state = tx.init(x)
      >>> for _ in range(4):
      ...     u, state = tx.update(x, state, x)
      >>> print(u.round(3) + 0.0)  # 0.1 / sqrt(4)
      [[-0.05  0.  ]
       [ 0.   -0.05]]

    Reference: Zhang, Liu, Schaeffer. AdaGrad Meets Muon: Adaptive Stepsizes for Orthogonal Updates. 2025, arXiv
    2509.02981. There is no official code; defaults are those of pytorch_optimizer, which divides by a_t instead of its
    root, so that its first step is learning_rate / max_norm at a norm of max_norm.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.real("momentum", momentum, "[0, 1)")
    checks.real("max_norm", max_norm, "(0, inf)")
    checks.real("min_rate", min_rate, "[0, inf)")
    checks.real("initial_accumulator_value", initial_accumulator_value, "[0, inf)")
    checks.choice("scale", scale, SCALES)
    checks.real("weight_decay", weight_decay, "[0, inf)", schedule=True)
    check_mask_form(weight_decay_mask=weight_decay_mask)
    how = orthogonals.checked(ns_steps, coefficients, method, eps, ns_dtype, shard)
    own = _Own(
        learning_rate,
        momentum,
        max_norm,
        min_rate,
        initial_accumulator_value,
        scale,
        weight_decay,
        weight_decay_mask,
        mu_dtype,
    )
    return with_adamw(
        Method(NAME, learning_rate, weight_decay, weight_decay_mask),
        _matrices(own, how, layout, shard),
        adam_learning_rate=adam_learning_rate,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
        adam_weight_decay=adam_weight_decay,
        mu_dtype=mu_dtype,
        layout=layout,
        undecided="for which its learning rate is far too large: give adam_learning_rate, 3e-4 to 3e-3 for most models",
    )


register(
    adago,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="matrices",
    golden=("modern/adago",),
    example={"adam_learning_rate": 0.01},
    notes="matrices only; embeddings, heads, vectors and scalars take AdamW",
    race=Race(5e-2, {"adam_learning_rate": 3e-3}),
)
