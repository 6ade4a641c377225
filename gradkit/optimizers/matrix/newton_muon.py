"""Newton-Muon: Muon on the gradient whitened by the second moment of the layer's inputs.

every update_interval steps:   K <- moment_decay K + (1 - moment_decay) A_t       A_t = mean of x x^T of the inputs x
                               P = (K + (ridge trace(K) / inputs + ridge_eps) I)^{-1}
g'_t = P g_t
m_t  = momentum m_{t-1} + g'_t,   u_t = g'_t + momentum m_t
x_t  = x_{t-1} - learning_rate (sqrt(max(inputs, outputs)) polar(u_t) + weight_decay x_{t-1})

Embeddings, heads, vectors and scalars take AdamW instead.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine import orthogonal as orthogonals
from gradkit.engine.core import increment, scalar, transformation, wide_dtype
from gradkit.engine.explicit import by_compiler
from gradkit.engine.extras import missing
from gradkit.engine.placement import everywhere
from gradkit.engine.planning import check_matrix
from gradkit.engine.shards import MatrixSharding
from gradkit.leaves import Axes, Layout, axes_of, by_path, from_matrices, names, to_matrices
from gradkit.linalg.one_by_one import one_by_one
from gradkit.optimizers.matrix.beside_adamw import beside_adamw
from gradkit.transforms import trace
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("The Newton-Muon Optimizer", "Du, Su", 2026, "2604.01472")
NAME, MOMENT = "scale_by_newton_muon", "input_moment"
Blocks = int | Mapping[str, int] | None


class NewtonMuonState(NamedTuple):
    """Number of updates made; per leaf the mean of the second moments of its inputs, and the inverse of it, (stack,
    blocks, inputs of a block, inputs of a block); how many inverses did not exist; the momentum."""

    count: jax.Array
    moment: Any
    inverse: Any
    metrics: dict[str, jax.Array]
    mu: Any


def _inverse(K: jax.Array, ridge: Any, ridge_eps: Any) -> tuple[jax.Array, jax.Array]:
    """(K + (ridge mean eigenvalue + ridge_eps) I)^{-1} by Cholesky, the identity where there is no factor; how many."""
    n = K.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(n, dtype=K.dtype), K.shape)
    mean = jnp.trace(K, axis1=-2, axis2=-1)[..., None, None] / n
    lower = one_by_one(jnp.linalg.cholesky, K + (scalar(ridge, K) * mean + scalar(ridge_eps, K)) * eye)
    good = jnp.all(jnp.isfinite(lower), axis=(-2, -1), keepdims=True)
    lower = jnp.where(good, lower, eye)
    solve = partial(jax.lax.linalg.triangular_solve, left_side=True, lower=True)
    half = one_by_one(solve, lower, eye)
    return jnp.matmul(jnp.swapaxes(half, -1, -2), half, precision="highest"), jnp.sum(~good, dtype=jnp.float32)


def scale_by_newton_muon(
    *,
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    update_interval: int = 32,
    moment_decay: Scalar = 0.95,
    initial_moment: Scalar = 1e-3,
    ridge: Scalar = 0.2,
    ridge_eps: Scalar = 1e-8,
    blocks: Blocks = None,
    max_dim: int = 10_000,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon's direction of gradients that are whitened by the second moment of their layer's inputs.

    Equations, of a kernel with n inputs and p outputs, t from 1, K_0 = initial_moment I and P_0 = I:

        if t % update_interval == 0:   K <- moment_decay K + (1 - moment_decay) A_t
                                       P = (K + (ridge trace(K) / n + ridge_eps) I)^{-1}
        g'  = P g
        m_t = momentum m_{t-1} + g'_t
        u_t = g'_t + momentum m_t                                  (m_t without Nesterov's look-ahead)
        d_t = sqrt(max(n, p)) U V^T of u_t = U S V^T

    A_t is the mean of x x^T over all tokens of the minibatch, x the n inputs of the layer. With A_t a multiple of the
    identity it is Muon. Query, key and value kernels that are fused share one.

    Args:
      momentum: decay of the sum, in [0, 1). Default 0.95 (official code).
      nesterov: whether to look ahead. Default True (official code).
      update_interval: steps between inverses, >= 1. Default 32 (official code).
      moment_decay: of the mean of A, in [0, 1). Default 0.95 (official code).
      initial_moment: the diagonal of K_0, in the units of A, >= 0. Default 1e-3 (official code).
      ridge: added to K, in units of its mean eigenvalue, >= 0. Default 0.2 (official code).
      ridge_eps: added to K besides, in the units of A, >= 0. Default 1e-8 (official code).
      blocks: K is block diagonal with so many blocks, >= 1, which divide the inputs: a number for all leaves, or a path
        of leaves (a regular expression) -> number. Default None: 1. The official code has 4 for the second matrix of an
        MLP.
      max_dim: largest block of inputs, >= 1, that has a moment; kernels with more inputs have Muon's direction. Default
        10,000, as the preconditioners of Shampoo and SOAP.
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon" (official code).
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`. Default "newton_schulz".
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      mu_dtype: dtype in which the momentum is kept between steps. Default float32.
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: which axes are inputs, outputs and stacks: inputs are flattened in their order.
      shard: a `gk.MatrixSharding`: over which devices the work of Newton-Schulz is spread. Default None.

    Returns:
      A transformation that needs the extra argument `input_moment`: a tree of which every leaf stands where the kernel
      it belongs to stands among the parameters, and is A_t, (n, n), averaged over devices; of stacked layers one for
      all, or with the stack in front. It is read where an inverse is due. None, for a step or for a leaf, changes no
      inverse: a loop that collects moments every 32 steps alone has two programs. State: 1 word per parameter and
      2 n^2 / blocks per kernel. Collectives: those of `gk.scale_by_muon`, and the products with P, for which kernels
      whose inputs are sharded are gathered.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf that is no matrix; blocks that do not divide its inputs;
        `input_moment` missing, or of another size than the inputs.

    Example:
      >>> tx = scale_by_newton_muon(update_interval=1, momentum=0.0, method="svd")
      >>> g = jnp.array([[0.0, 3.0], [-0.1, 0.0]])
      >>> print(tx.update(g, tx.init(g), input_moment=jnp.eye(2))[0].round(3))  # Muon, times sqrt(2)
      [[ 0.     1.414]
       [-1.414  0.   ]]

    Reference: Du, Su. The Newton-Muon Optimizer. 2026, arXiv 2604.01472.
    """
    checks.layout(layout)
    checks.real("momentum", momentum, "[0, 1)")
    update_interval = checks.integer("update_interval", update_interval, 1)
    max_dim = checks.integer("max_dim", max_dim, 1)
    checks.real("moment_decay", moment_decay, "[0, 1)")
    checks.real("initial_moment", initial_moment, "[0, inf)")
    checks.real("ridge", ridge, "[0, inf)")
    checks.real("ridge_eps", ridge_eps, "[0, inf)")
    given_blocks = dict(blocks) if isinstance(blocks, Mapping) else {".*": 1 if blocks is None else blocks}
    rules = [(by_path(path), checks.integer("blocks", number, 1)) for path, number in given_blocks.items()]
    how = orthogonals.checked(ns_steps, coefficients, method, eps, ns_dtype, shard)
    behind = optax.chain(
        trace(momentum, nesterov=nesterov, mu_dtype=mu_dtype),
        orthogonals.orthogonal_link(
            NAME, how, scale=lambda inputs, outputs: math.sqrt(max(inputs, outputs)), layout=layout, shard=shard
        ),
    )

    def blocks_of(name: str, inputs: int) -> int:
        number = next((v for selector, v in rules if selector.test(name, (), None)), 1)
        if inputs % number:
            raise ValueError(f"{NAME}: blocks of {name!r} must divide its {inputs} inputs, got {number}")
        return number

    def shape_of(name: str, x: Any, axes: Axes) -> tuple[int, ...]:
        """(stack, blocks, inputs of a block twice); none of them where they are too many."""
        inputs = math.prod(x.shape[a] for a in axes.inputs)
        batch = math.prod(k for a, k in enumerate(x.shape) if a not in axes.inputs and a not in axes.outputs)
        number = blocks_of(name, inputs)
        n = inputs // number if inputs // number <= max_dim else 0
        return batch, number, n, n

    def init(params: optax.Params) -> NewtonMuonState:
        leaves, structure = jax.tree.flatten(params)
        eyes = []
        for name, x in zip(names(params), leaves, strict=True):
            axes = axes_of(layout, name, x.shape)
            check_matrix(NAME, name, x.shape, axes)
            shape = shape_of(name, x, axes)
            eyes.append(jnp.broadcast_to(jnp.eye(shape[-1], dtype=wide_dtype(x.dtype)), shape))
        moment = structure.unflatten([eye * scalar(initial_moment, eye) for eye in eyes])
        inverse = structure.unflatten([jnp.array(eye, copy=True) for eye in eyes])
        metrics = {"failed_inverses": jnp.zeros((), jnp.float32)}
        return NewtonMuonState(jnp.zeros((), jnp.int32), moment, inverse, metrics, behind.init(params))

    def given(name: str, A: jax.Array, like: jax.Array) -> jax.Array:
        """The blocks of a moment."""
        batch, number, n, _ = like.shape
        if A.ndim < 2 or A.shape[-2:] != (number * n,) * 2 or math.prod(A.shape[:-2]) not in (1, batch):
            raise ValueError(
                f"{NAME}: {MOMENT} of {name!r} must be (n, n) of its {number * n} inputs, got shape {A.shape}"
            )
        A = A.reshape(-1, number, n, number, n).astype(like.dtype)
        return jnp.broadcast_to(jnp.stack([A[:, i, :, i] for i in range(number)], axis=1), like.shape)

    def whitened(name: str, g: jax.Array, P: jax.Array) -> jax.Array:
        axes = axes_of(layout, name, g.shape)

        def one(view: jax.Array) -> jax.Array:
            x = view.reshape(*P.shape[:3], view.shape[-1])
            return jnp.matmul(P.astype(x.dtype), x, precision="highest").reshape(view.shape)

        return from_matrices([one(view) for view in to_matrices(g, axes)], g.shape, axes)

    def update(g: Any, state: NewtonMuonState, params: Any = None, **extra: Any) -> tuple[Any, NewtonMuonState]:
        if MOMENT not in extra:
            raise ValueError(missing(NAME, MOMENT))
        leaves, structure = jax.tree.flatten(g)
        known, count = names(g), increment(state.count)
        moments = extra[MOMENT]
        own = dict(zip(names(moments), map(jnp.asarray, jax.tree.leaves(moments)), strict=True))
        if unknown := sorted(own.keys() - set(known)):
            raise ValueError(f"{NAME}: {MOMENT} is of leaves that are not there: {unknown}")
        K, P = jax.tree.leaves(state.moment), jax.tree.leaves(state.inverse)
        for name, x, k in zip(known, leaves, K, strict=True):
            if k.shape != shape_of(name, x, axes_of(layout, name, x.shape)):
                raise ValueError(f"{NAME}: the gradient of {name!r} has shape {x.shape}, and its moment {k.shape}")
        asked = [i for i, x in enumerate(leaves) if known[i] in own and x.size and K[i].size]
        A = [given(known[i], own[known[i]], K[i]) for i in asked]

        def refreshed() -> Any:
            b = [scalar(moment_decay, x) for x in A]
            mean = [c * K[i].astype(x.dtype) + (1 - c) * x for c, i, x in zip(b, asked, A, strict=True)]
            made = [_inverse(x, ridge, ridge_eps) for x in mean]
            return mean, [x for x, _ in made], sum((n for _, n in made), jnp.zeros((), jnp.float32))

        def kept() -> Any:
            return [K[i].astype(x.dtype) for i, x in zip(asked, A, strict=True)], [P[i] for i in asked], jnp.float32(0)

        failed = state.metrics["failed_inverses"]
        if asked:
            due = count % update_interval == 0
            mean, inverse, bad = jax.lax.cond(due, refreshed, kept)
            failed = failed + bad
            for i, k, p in zip(asked, mean, inverse, strict=True):
                K[i], P[i] = k.astype(K[i].dtype), p.astype(P[i].dtype)

        def products(leaves: list[jax.Array], P: list[jax.Array]) -> list[jax.Array]:
            return [whitened(n, x, p) if x.size and p.size else x for n, x, p in zip(known, leaves, P, strict=True)]

        white = structure.unflatten(by_compiler(products, leaves, P, like=leaves))
        d, mu = behind.update(white, state.mu, params)
        # Replicated, as at the start: left to itself the compiler would shard them like the kernels they belong to.
        trees = structure.unflatten(everywhere(K)), structure.unflatten(everywhere(P))
        return d, NewtonMuonState(count, *trees, metrics={"failed_inverses": failed}, mu=mu)

    return transformation(NAME, init, update)


def newton_muon(
    learning_rate: ScalarOrSchedule = 3e-4,
    *,
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    update_interval: int = 32,
    moment_decay: Scalar = 0.95,
    initial_moment: Scalar = 1e-3,
    ridge: Scalar = 0.2,
    ridge_eps: Scalar = 1e-8,
    blocks: Blocks = None,
    max_dim: int = 10_000,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.95,
    adam_eps: Scalar = 1e-10,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Newton-Muon for matrices, convolutions and experts; AdamW for embeddings, heads, vectors and scalars.

    Equations:

        x_t = x_{t-1} - learning_rate (d_t + weight_decay x_{t-1}),   d_t the direction of `scale_by_newton_muon`

    Args:
      learning_rate: step size >= 0, or a schedule. Default 3e-4 (official code).
      momentum: decay of the sum, in [0, 1). Default 0.95 (official code).
      nesterov: whether to look ahead. Default True (official code).
      update_interval: steps between inverses, >= 1. Default 32 (official code).
      moment_decay: of the mean of second moments, in [0, 1). Default 0.95 (official code).
      initial_moment: the diagonal of the mean at the start, >= 0. Default 1e-3 (official code).
      ridge: added to it, in units of its mean eigenvalue, >= 0. Default 0.2 (official code).
      ridge_eps: added to it besides, >= 0. Default 1e-8 (official code).
      blocks: of a block diagonal mean, as in `scale_by_newton_muon`. Default None: 1.
      max_dim: largest block of inputs that has a moment, >= 1, as in `scale_by_newton_muon`. Default 10,000.
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon" (official code).
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`. Default "newton_schulz".
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      weight_decay: decoupled decay of the matrices >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay, of all. Default all.
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. Default None: `learning_rate`, which is of
        AdamW's size.
      adam_b1: decay of their first moment, in [0, 1). Default 0.9.
      adam_b2: decay of their second moment, in [0, 1). Default 0.95.
      adam_eps: added to the root of theirs, >= 0. Default 1e-10.
      adam_weight_decay: their decoupled decay >= 0, or a schedule. Default 0.
      mu_dtype: dtype in which first moments are kept. Default float32.
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work is spread, as in `gk.scale_by_muon`. Default None.

    Returns:
      A transformation that needs `params` where leaves decay, and the extra argument `input_moment`, which may hold
      moments of other leaves as well. State and collectives: those of `scale_by_newton_muon`, 2 words of other leaves.

    Raises:
      ValueError: a hyperparameter outside its range; what `scale_by_newton_muon` raises.

    Example:
      >>> tx, x = newton_muon(0.1, update_interval=1, momentum=0.0, method="svd"), jnp.eye(2)
      >>> print(tx.update(x, tx.init(x), x, input_moment=jnp.eye(2))[0].round(3) + 0.0)
      [[-0.141  0.   ]
       [ 0.    -0.141]]

    Reference: Du, Su. The Newton-Muon Optimizer. 2026, arXiv 2604.01472.
    """
    link = scale_by_newton_muon(
        momentum=momentum,
        nesterov=nesterov,
        update_interval=update_interval,
        moment_decay=moment_decay,
        initial_moment=initial_moment,
        ridge=ridge,
        ridge_eps=ridge_eps,
        blocks=blocks,
        max_dim=max_dim,
        ns_steps=ns_steps,
        coefficients=coefficients,
        method=method,
        eps=eps,
        mu_dtype=mu_dtype,
        ns_dtype=ns_dtype,
        layout=layout,
        shard=shard,
    )
    return beside_adamw(
        "newton_muon",
        learning_rate,
        weight_decay,
        weight_decay_mask,
        _own_moments(link),
        adam_learning_rate=adam_learning_rate,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
        adam_weight_decay=adam_weight_decay,
        mu_dtype=mu_dtype,
        layout=layout,
        sized_as_adamw=True,
    )


def _own_moments(inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Hands on the moments of the leaves that are given to `inner`."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if MOMENT in extra:
            moments = extra[MOMENT]
            known = set(names(updates))
            rows = zip(names(moments), jax.tree.leaves(moments), strict=True)
            extra = {**extra, MOMENT: {name: x for name, x in rows if name in known}}
        return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


SHARED: dict[str, Any] = {
    "paper": PAPER,
    "words": 3,
    "collectives": "matrices",
    "needs": (MOMENT,),
    "golden": ("modern/newton_muon",),
    "opt_outs": {
        "layout": "the moments it is given must fit the layout; its paper's test has layouts",
        "map_params": "its state belongs to the inputs of kernels",
    },
}
register(scale_by_newton_muon, form="primitive", **SHARED, only="matrices", notes="for matrices alone")
register(
    newton_muon,
    form="optimizer",
    **SHARED,
    notes="matrices only; embeddings, heads, vectors and scalars take AdamW; the words are those of a square kernel",
    race=Race(3e-3),
)
