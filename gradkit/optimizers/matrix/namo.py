"""NAMO and NAMO-D: Muon's direction with Adam's step size, one number per matrix or one per input.

m_t  = momentum m_{t-1} + (1 - momentum) g_t,   u_t = (1 - momentum) g_t + momentum m_t
a_t  = b2 a_{t-1} + (1 - b2) |g_t|^2
r_t  = learning_rate sqrt(1 - b2^t) / (1 - momentum^t) |u_t| / (sqrt(a_t) + norm_eps)
x_t  = x_{t-1} (1 - weight_decay min(r_t, 1)) - min(r_t s, 1) polar(u_t),   s = scale sqrt(max(inputs, outputs))

Embeddings, heads, vectors and scalars take AdamW instead.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine import orthogonal as orthogonals
from gradkit.engine.accumulators import ema
from gradkit.engine.core import at_count, bias_correction, divide, increment, scalar, transformation, zeros
from gradkit.engine.fields import settled
from gradkit.engine.matrix_sums import Over, matrix_axes, matrix_sums
from gradkit.engine.orthogonal import Orthogonal, orthogonal
from gradkit.engine.planning import check_matrix
from gradkit.engine.shape_factor import shape_factor
from gradkit.engine.shards import MatrixSharding
from gradkit.engine.sums import whole_shape
from gradkit.leaves import Axes, Layout, Method, axes_of, check_mask_form, names, resolve_mask
from gradkit.leaves.scopes import decay_here
from gradkit.optimizers.matrix.rate_inside import with_adamw
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "Adam Improves Muon: Adaptive Moment Estimation with Orthogonalized Momentum",
    "Zhang, Liu, Schaeffer",
    2026,
    "2602.17080",
)
UNDECIDED = "for which NAMO's learning rate is too large: give adam_learning_rate, 3e-4 to 3e-3 for most models"
# The code adds it to the correction of the first moment.
TINY = 1e-12


def _of_inputs(axes: Axes, shape: Sequence[int]) -> tuple[int, ...]:
    return axes.outputs


def _of_outputs(axes: Axes, shape: Sequence[int]) -> tuple[int, ...]:
    return axes.inputs


VECTORS: dict[str, Over] = {"inputs": _of_inputs, "outputs": _of_outputs}


class NamoState(NamedTuple):
    """Number of updates made; the momentum; per matrix, or per vector of it, the mean of squared norms of gradients;
    the learning rate of the last update as a metric."""

    count: jax.Array
    mu: Any
    nu: Any
    metrics: dict[str, jax.Array]


class _Own(NamedTuple):
    """The hyperparameters of the matrices; `clamp` None for one number per matrix."""

    name: str
    learning_rate: Any
    momentum: Any
    b2: Any
    norm_eps: Any
    nesterov: bool
    scale: Any
    clamp: Any
    over: Over
    weight_decay: Any
    weight_decay_mask: Any
    mu_dtype: Any


def _matrices(
    own: _Own, how: Orthogonal, layout: Layout | None, shard: MatrixSharding | None
) -> optax.GradientTransformationExtraArgs:
    """NAMO of leaves that are all matrices."""

    def published(rate: Any) -> dict[str, jax.Array]:
        return {"last_learning_rate": jnp.array(rate, jnp.float32, copy=True)}

    def sums(tree: Any, *others: Any) -> list[list[jax.Array]]:
        """The square of the norm of every block of the trees, in shapes that broadcast against the leaves."""
        rows = [[jnp.square(x) for x in jax.tree.leaves(one)] for one in (tree, *others)]
        made = matrix_sums(names(tree), layout, *rows, over=own.over, like=jax.tree.leaves(tree))
        return [made.per_leaf(part) for part in made.parts]

    def clamped(ratio: jax.Array, name: str, x: jax.Array) -> jax.Array:
        """Numbers of vectors, not far from the mean over those of their matrix."""
        axes = axes_of(layout, name, x.shape)
        other = axes.inputs if own.over is _of_inputs else axes.outputs
        mean = jnp.mean(ratio, axis=other, keepdims=True)
        c = scalar(own.clamp, ratio)
        return jnp.clip(ratio, c * mean, mean / c)

    def init(params: optax.Params) -> NamoState:
        for name, x in zip(names(params), jax.tree.leaves(params), strict=True):
            check_matrix(own.name, name, x.shape, axes_of(layout, name, x.shape))
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params)):
            nu = [jnp.zeros(s.shape, s.dtype) for s in jax.eval_shape(lambda x: sums(x)[0], zeros(params))]
        else:  # sharded as an update makes them
            nu = [jnp.zeros_like(s) for s in sums(zeros(params))[0]]
        count = jnp.zeros((), jnp.int32)
        rate = at_count(own.learning_rate, count, f"{own.name}: learning_rate")
        structure = jax.tree.structure(params)
        return NamoState(count, zeros(params, own.mu_dtype), structure.unflatten(nu), published(rate))

    def update(g: Any, state: NamoState, params: Any = None, **extra: Any) -> tuple[Any, NamoState]:
        del extra
        rate = at_count(own.learning_rate, state.count, f"{own.name}: learning_rate")
        decay = decay_here(at_count(own.weight_decay, state.count, f"{own.name}: weight_decay"))
        count = increment(state.count)
        mu = jax.tree.map(lambda m, x: ema(m, x, own.momentum), state.mu, g)
        u = jax.tree.map(lambda m, x: m.astype(x.dtype), mu, g)
        if own.nesterov:
            u = jax.tree.map(lambda m, x: ema(m, x, own.momentum), u, g)
        directions = orthogonal(own.name, how, u, layout=layout, shard=shard)
        leaves, structure = jax.tree.flatten(g)
        known, w = names(g), jax.tree.leaves(params)
        on = jax.tree.leaves(resolve_mask(own.weight_decay_mask, g))
        of_g, of_u = sums(g, u)
        nu = [ema(a.astype(s.dtype), s, own.b2) for a, s in zip(jax.tree.leaves(state.nu), of_g, strict=True)]
        out = []
        for i, (d, a, square) in enumerate(zip(jax.tree.leaves(directions), nu, of_u, strict=True)):
            root = jnp.sqrt(a)
            ratio = divide(jnp.sqrt(square), root + scalar(own.norm_eps, root))
            if own.clamp is not None:
                ratio = clamped(ratio, known[i], leaves[i])
            second = jnp.sqrt(bias_correction(own.b2, count, ratio).astype(ratio.dtype))
            first = bias_correction(own.momentum, count, ratio).astype(ratio.dtype) + TINY
            r = scalar(rate, ratio) * second / first * ratio
            axes, shape = axes_of(layout, known[i], leaves[i].shape), whole_shape(known[i], leaves[i].shape)
            s = shape_factor(axes, shape, lambda inputs, outputs: math.sqrt(max(inputs, outputs)))
            s = scalar(own.scale, r) * (s if isinstance(s, float) else jnp.asarray(s, r.dtype))
            step = -jnp.minimum(r * s, 1) * d
            if on[i]:
                step = step - scalar(decay, r) * jnp.minimum(r, 1) * w[i]
            out.append(step.astype(leaves[i].dtype))
        nu = settled(structure.unflatten(nu), state.nu)
        return structure.unflatten(out), NamoState(count, mu, nu, published(rate))

    described = Method(own.name, own.learning_rate, own.weight_decay, own.weight_decay_mask)
    return transformation(own.name, init, update, needs_params=True, described=described)


def _built(own: _Own, how: Orthogonal, layout: Layout | None, shard: MatrixSharding | None, **adam: Any) -> Any:
    """Checks what the two methods share, and gives other leaves to AdamW."""
    checks.switch(nesterov=own.nesterov)
    checks.floating_dtype(mu_dtype=own.mu_dtype)
    checks.real("learning_rate", own.learning_rate, "[0, inf)", schedule=True)
    checks.real("momentum", own.momentum, "[0, 1)")
    checks.real("b2", own.b2, "[0, 1)")
    checks.real("norm_eps", own.norm_eps, "[0, inf)")
    checks.real("scale", own.scale, "(0, inf)")
    checks.real("weight_decay", own.weight_decay, "[0, inf)", schedule=True)
    check_mask_form(weight_decay_mask=own.weight_decay_mask)
    return with_adamw(
        Method(own.name, own.learning_rate, own.weight_decay, own.weight_decay_mask),
        _matrices(own, how, layout, shard),
        mu_dtype=own.mu_dtype,
        layout=layout,
        undecided=UNDECIDED,
        **adam,
    )


def namo(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    momentum: Scalar = 0.95,
    b2: Scalar = 0.99,
    norm_eps: Scalar = 1e-8,
    nesterov: bool = True,
    scale: Scalar = 0.2,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    weight_decay: ScalarOrSchedule = 0.1,
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
    """The orthogonalised momentum, by a step size like Adam's, from the norms of momentum and gradients.

    Equations, of every matrix with n inputs and p outputs:

        m_t = momentum m_{t-1} + (1 - momentum) g_t
        u_t = (1 - momentum) g_t + momentum m_t                    (m_t without Nesterov's look-ahead)
        a_t = b2 a_{t-1} + (1 - b2) |g_t|^2                        Frobenius norm
        r_t = learning_rate sqrt(1 - b2^t) / (1 - momentum^t) |u_t| / (sqrt(a_t) + norm_eps)
        x_t = x_{t-1} (1 - weight_decay min(r_t, 1)) - min(r_t scale sqrt(max(n, p)), 1) U V^T,   u_t = U S V^T

    Where gradients are all alike r_t is the learning rate; where they are noise it is smaller. Embeddings, heads,
    vectors and scalars take AdamW.

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.01 (official code).
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      b2: decay of the mean of squared norms, in [0, 1). Default 0.99 (official code).
      norm_eps: added to its root, >= 0. Default 1e-8 (official code; its docstring has it under the root).
      nesterov: whether to look ahead. Default True (official code).
      scale: factor of a step beside sqrt(max(n, p)), > 0. Default 0.2 (official code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon" (official code).
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`. Default "newton_schulz".
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      weight_decay: decay of matrices, by r_t and not by the learning rate, >= 0, or a schedule. Default 0.1 (official
        code).
      weight_decay_mask: which leaves decay, of all. Default all.
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. Has to be given where there are some.
      adam_b1: decay of their first moment, in [0, 1). Default 0.9.
      adam_b2: decay of their second moment, in [0, 1). Default 0.95.
      adam_eps: added to the root of theirs, >= 0. Default 1e-8.
      adam_weight_decay: their decoupled decay >= 0, or a schedule. Default 0.
      mu_dtype: dtype in which first moments are kept. Default float32.
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work is spread, as in `gk.scale_by_muon`. Default None.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter and one number per matrix, 2 words of other
      leaves. Collectives: those of `gk.scale_by_muon`, and one all-reduce of two numbers per matrix.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, leaves for AdamW without a learning rate for them.

    Example:
      >>> tx, x = namo(0.1, weight_decay=0.0, scale=1.0, method="svd"), jnp.eye(2)
      >>> print(tx.update(x, tx.init(x), x)[0].round(3) + 0.0)  # of the first step |u| / |g| is 1 - 0.95^2
      [[-0.276  0.   ]
       [ 0.    -0.276]]

    Reference: Zhang, Liu, Schaeffer. Adam Improves Muon: Adaptive Moment Estimation with Orthogonalized Momentum. 2026,
    arXiv 2602.17080. levanter's has norm_eps under the root and cuts r_t before the factor of the shape; NVIDIA's has
    neither correction nor cut.
    """
    how = orthogonals.checked(ns_steps, coefficients, method, eps, ns_dtype, shard)
    own = _Own(
        "namo", learning_rate, momentum, b2, norm_eps, nesterov, scale, None, matrix_axes, weight_decay,
        weight_decay_mask, mu_dtype,
    )  # fmt: skip
    return _built(
        own,
        how,
        layout,
        shard,
        adam_learning_rate=adam_learning_rate,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
        adam_weight_decay=adam_weight_decay,
    )


def namo_d(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    momentum: Scalar = 0.95,
    b2: Scalar = 0.99,
    norm_eps: Scalar = 1e-8,
    nesterov: bool = True,
    scale: Scalar = 0.2,
    clamp: Scalar = 0.75,
    axis: str = "inputs",
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    weight_decay: ScalarOrSchedule = 0.1,
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
    """NAMO with a step size for every input of a matrix.

    Equations, those of `namo` but for the norms, which are of the vector of weights from one input j:

        a_j <- b2 a_j + (1 - b2) |g_j|^2
        q_j  = |u_j| / (sqrt(a_j) + norm_eps),   clipped to [clamp, 1 / clamp] times the mean of all q
        r_j  = learning_rate sqrt(1 - b2^t) / (1 - momentum^t) q_j
        x_j <- x_j (1 - weight_decay min(r_j, 1)) - min(r_j scale sqrt(max(n, p)), 1) (U V^T)_j,   u = U S V^T

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.01 (official code).
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      b2: decay of the mean of squared norms, in [0, 1). Default 0.99 (official code).
      norm_eps: added to its root, >= 0. Default 1e-8 (official code).
      nesterov: whether to look ahead. Default True (official code).
      scale: factor of a step beside sqrt(max(n, p)), > 0. Default 0.2 (official code).
      clamp: how far a step size may be from the mean, in (0, 1]. Default 0.75 (official code).
      axis: whose vectors have step sizes of their own: "inputs", as the columns of torch's (outputs, inputs), or
        "outputs", the neurons that the paper speaks of. Default "inputs" (official code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon" (official code).
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`. Default "newton_schulz".
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      weight_decay: decay of matrices, by r_j, >= 0, or a schedule. Default 0.1 (official code).
      weight_decay_mask: which leaves decay, of all. Default all.
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. Has to be given where there are some.
      adam_b1: decay of their first moment, in [0, 1). Default 0.9.
      adam_b2: decay of their second moment, in [0, 1). Default 0.95.
      adam_eps: added to the root of theirs, >= 0. Default 1e-8.
      adam_weight_decay: their decoupled decay >= 0, or a schedule. Default 0.
      mu_dtype: dtype in which first moments are kept. Default float32.
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work is spread, as in `gk.scale_by_muon`. Default None.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter and one number per input, 2 words of other
      leaves. Collectives: those of `gk.scale_by_muon`, and one all-reduce of two numbers per input.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, leaves for AdamW without a learning rate for them.

    Example:
      >>> tx, x = namo_d(0.1, weight_decay=0.0, scale=1.0, method="svd"), jnp.diag(jnp.array([1.0, 9.0]))
      >>> print(tx.update(x, tx.init(x), x)[0].round(3) + 0.0)
      [[-0.276  0.   ]
       [ 0.    -0.276]]

    Reference: Zhang, Liu, Schaeffer. Adam Improves Muon: Adaptive Moment Estimation with Orthogonalized Momentum. 2026,
    arXiv 2602.17080, whose diagonal is called neuron-wise; in the official code it belongs to inputs.
    """
    checks.real("clamp", clamp, "(0, 1]")
    checks.choice("axis", axis, VECTORS)
    how = orthogonals.checked(ns_steps, coefficients, method, eps, ns_dtype, shard)
    own = _Own(
        "namo_d", learning_rate, momentum, b2, norm_eps, nesterov, scale, clamp, VECTORS[axis], weight_decay,
        weight_decay_mask, mu_dtype,
    )  # fmt: skip
    return _built(
        own,
        how,
        layout,
        shard,
        adam_learning_rate=adam_learning_rate,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
        adam_weight_decay=adam_weight_decay,
    )


SHARED: dict[str, Any] = {
    "form": "optimizer",
    "paper": PAPER,
    "words": 1,
    "collectives": "matrices",
    "example": {"adam_learning_rate": 0.01},
    "notes": "matrices only; embeddings, heads, vectors and scalars take AdamW",
    "race": Race(1e-2, {"adam_learning_rate": 3e-3}),
}
register(namo, **SHARED, golden=("modern/namo",))
register(namo_d, **SHARED, golden=("modern/namo_d",))
