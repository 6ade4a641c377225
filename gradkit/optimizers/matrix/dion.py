"""Dion: a low-rank orthonormal update with error feedback."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.by_role import by_role
from gradkit.engine.core import divide, increment, optimizer, scalar, transformation
from gradkit.engine.fields import init_fields
from gradkit.engine.keys import check_key, first_key, next_key
from gradkit.engine.kronecker import product
from gradkit.engine.mapping import map_stacks
from gradkit.engine.parts import beside, like
from gradkit.engine.planning import plan_stacks
from gradkit.engine.shape_factor import scale_by_shape
from gradkit.engine.shards import check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout, Method
from gradkit.linalg.one_by_one import one_by_one
from gradkit.transforms import MatrixSharding, add_decayed_weights, scale_by_adam, scale_by_learning_rate
from gradkit.types import DTypeLike, Key, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("Dion: Distributed Orthonormalized Updates", "Ahn et al.", 2025, "2504.05295")
QRS = ("qr", "cholesky_qr", "randomized_cholesky_qr")
# Which matrices are transposed, so that the side of Q comes first.
SIDES = {
    "short": lambda rows, columns: rows > columns,
    "inputs": lambda rows, columns: False,
    "outputs": lambda rows, columns: True,
}
SOLVE = jax.lax.linalg.triangular_solve


def _transposed(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, 1, 2)


def _cholesky_qr(Y: jax.Array) -> jax.Array:
    """Y L^{-T} of Y^T Y = L L^T."""
    L = one_by_one(jnp.linalg.cholesky, product(_transposed(Y), Y))
    return one_by_one(partial(SOLVE, left_side=False, lower=True, transpose_a=True), L, Y)


def orthonormal(Y: jax.Array, how: str, key: Any = None) -> jax.Array:
    """Orthonormal columns with the span of Y (B, m, r), by one of `QRS`; by "qr" where a Cholesky factor does not
    exist.

    >>> print(orthonormal(jnp.array([[[3.0], [4.0]]]), "cholesky_qr").ravel().round(3))
    [0.6 0.8]
    """
    if how == "qr":
        return one_by_one(jnp.linalg.qr, Y)[0]
    X = Y
    if how == "randomized_cholesky_qr":
        m, r = Y.shape[1:]
        k = 128 * math.ceil(1.25 * r / 128)
        S = jax.random.normal(key, (k, m), Y.dtype) / math.sqrt(k)
        sketch = jnp.matmul(jnp.broadcast_to(S[None], (Y.shape[0], k, m)), Y, precision=jax.lax.Precision.HIGHEST)
        upper = one_by_one(partial(jnp.linalg.qr, mode="r"), sketch)
        X = one_by_one(partial(SOLVE, left_side=False, lower=False), upper, Y)
    P = _cholesky_qr(X)
    return jax.lax.cond(jnp.isfinite(P).all(), lambda: P, lambda: one_by_one(jnp.linalg.qr, Y)[0])


class Own(NamedTuple):
    """The state of the matrices of a stack: M and Q."""

    M: Any
    Q: Any


class ScaleByDionState(NamedTuple):
    """Number of updates made, and the key, where steps are random; M of the shape of a parameter, Q by the sides of its
    matrices; with `shard`, by stacks of equal matrices, each sharded over its owners."""

    count: jax.Array | None
    key: Any
    M: Any
    Q: Any


UNDECIDED = (
    "for which Dion's learning rate is far too large: give adam_learning_rate, 3e-4 to 3e-3 for most models, or "
    "learning_rate again, as the official code does"
)


def scale_by_dion(
    *,
    rank: int | None = None,
    rank_fraction: float = 1.0,
    rank_multiple_of: int = 1,
    momentum: Scalar = 0.95,
    eps: Scalar = 1e-8,
    qr: str = "qr",
    side: str = "short",
    key: Key | None = None,
    replica_axis: str | tuple[str, ...] | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthonormalises the part of the momentum that one step of the power method finds.

    Equations: M, Q and the direction sqrt(outputs / inputs) Q P^T of `dion`. While M is zero the direction is zero and
    Q does not change.

    Args:
      rank: r >= 1, reduced to the shorter side where that is smaller. Default None: by `rank_fraction`.
      rank_fraction: r is this fraction of the shorter side, in (0, 1], rounded up. Default 1 (official code). Not used
        with `rank`.
      rank_multiple_of: r is rounded up to a multiple of it, >= 1, and then reduced to the shorter side where that is
        smaller. Default 1.
      momentum: the fraction of the part used for the update that error feedback leaves in M, in [0, 1). Default 0.95
        (official code).
      eps: added to the norms of columns, >= 0. Default 1e-8 (official code).
      qr: "qr" (Householder), "cholesky_qr" (fast, for well conditioned M Q), "randomized_cholesky_qr" (fast and stable;
        paper). The last two fall back to Householder where a Cholesky factor does not exist. Default "qr".
      side: the side that Q belongs to: the "short" one, which keeps the state and the second product small (official
        reference), the "inputs" or the "outputs". Default "short"; "inputs" is the official code's simple form.
      key: from which the standard normal start of Q is drawn: a typed random key, or an integer. All devices need the
        same key; all matrices of one shape start with the same Q.
      replica_axis: mapped axes (of `jax.shard_map` or `jax.vmap`) over which gradients have not been averaged. Then
        every replica has its own M, and their mean is the M of a single device. Default None.
      layout: which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work and the state are distributed. Default None: over the
        devices that leaves are sharded over where a mesh with Explicit axes says so, otherwise the compiler decides.

    Returns:
      A transformation. State: 1 word per parameter and r per row of the side of Q, 1 / N of them on each of N devices
      of `shard`. Collectives: for leaves sharded along a matrix axis two all-to-alls per shape; for replicated leaves
      with `shard` one all-gather; with `replica_axis` two all-reduces per shape.

    Raises:
      ValueError: a hyperparameter outside its range; no key; a leaf without inputs or outputs.

    Example:
      >>> tx = scale_by_dion(key=0)
      >>> g = jnp.array([[2.0, 0.0, 0.0, -2.0]])
      >>> print(tx.update(g, tx.init(g))[0].round(3) + 0.0)  # of singular value sqrt(4 / 1)
      [[ 1.414  0.     0.    -1.414]]

    Reference: Ahn et al. Dion: Distributed Orthonormalized Updates. 2025, arXiv 2504.05295.
    """
    checks.layout(layout)
    checks.axis_name("replica_axis", replica_axis)
    method = "scale_by_dion"
    rank = checks.integer("rank", rank, 1, optional=True)
    checks.real("rank_fraction", rank_fraction, "(0, 1]")
    rank_multiple_of = checks.integer("rank_multiple_of", rank_multiple_of, 1)
    checks.real("momentum", momentum, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.choice("qr", qr, QRS)
    checks.choice("side", side, SIDES)
    if key is None:
        raise ValueError("scale_by_dion draws Q: key must be a typed random key or an integer, got None; write key=0")
    check_key(key)
    check_shard(shard)
    sketched = qr == "randomized_cholesky_qr"

    def width(dims: tuple[int, ...]) -> int:
        short = min(dims)
        r = math.ceil(float(rank_fraction) * short) if rank is None else rank
        return min(short, rank_multiple_of * math.ceil(r / rank_multiple_of))

    def make(rows: int, dims: tuple[int, ...], dtype: Any, _: Any) -> Own:
        Q = jax.random.normal(first_key(key), (1, dims[0], width(dims)), dtype)
        return Own(like(jnp.zeros((rows, *dims), dtype)), beside(jnp.tile(Q, (rows, 1, 1)), ((0,), (1,))))

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, make, method=method, layout=layout, shard=shard, transpose=SIDES[side])

    def init(params: optax.Params) -> ScaleByDionState:
        count, kept = (jnp.zeros((), jnp.int32), first_key(key)) if sketched else (None, None)
        return ScaleByDionState(count, kept, **init_fields(planned(params), params))

    def mean(x: jax.Array) -> jax.Array:
        return x if replica_axis is None else jax.lax.pmean(x, replica_axis)

    def kernel(G: jax.Array, own: Own, given: dict[str, Any], _: Any) -> tuple[jax.Array, Own]:
        mu, eps = scalar(given["momentum"], G), scalar(given["eps"], G)
        M, Q = own.M + G, own.Q
        Y = mean(product(_transposed(M), Q))
        P = orthonormal(Y, qr, given["key"])
        R = mean(product(M, P))
        silent = jnp.all(R == 0, axis=(1, 2), keepdims=True)
        M = M - (1 - mu) * product(R, _transposed(P))
        normalized = divide(R, jnp.linalg.norm(R, axis=1, keepdims=True) + eps)
        d = product(normalized, _transposed(P))
        return d, Own(M, jnp.where(silent, Q, normalized))

    def update(updates: Any, state: ScaleByDionState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        count, now = state.count, None
        if count is not None:
            # The key in the state does not change; the count distinguishes the draws of different steps.
            own = extra.get("key")
            _, now = next_key(method, None, state.key if own is None else own)
            now, count = jax.random.fold_in(now, count), increment(count)
        plan = planned(updates)
        given = {"momentum": momentum, "eps": eps, "key": now}
        tree, fields = map_stacks(plan, kernel, updates, {"M": state.M, "Q": state.Q}, given)
        d = scale_by_shape(tree, plan.axes, plan.shapes, "ratio")
        return d, ScaleByDionState(count, state.key, **fields)

    return transformation(method, init, update)


def dion(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    rank: int | None = None,
    rank_fraction: float = 1.0,
    rank_multiple_of: int = 1,
    momentum: Scalar = 0.95,
    eps: Scalar = 1e-8,
    qr: str = "qr",
    side: str = "short",
    key: Key | None = None,
    replica_axis: str | tuple[str, ...] | None = None,
    weight_decay: ScalarOrSchedule = 0.01,
    weight_decay_mask: Mask | None = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.95,
    adam_eps: Scalar = 1e-8,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Dion for matrices, convolutions and experts; AdamW for embeddings, heads, vectors and scalars.

    Equations, of an inputs x outputs matrix with Q on the inputs (of the transpose where Q belongs to the outputs); M
    and Q are kept from step to step:

        M <- M + G
        P = orthonormal columns of M^T Q                          (outputs, r)
        R = M P                                                   (inputs, r)
        M <- M - (1 - momentum) R P^T                             error feedback
        Q <- R, every column divided by its norm + eps            (inputs, r)
        x <- x - learning_rate (sqrt(outputs / inputs) Q P^T + weight_decay x)

    Over replicas whose gradients have not been averaged, M^T Q and then M P are averaged instead: (inputs + outputs) r
    words in place of inputs x outputs.

    Embeddings, heads, vectors and scalars take AdamW instead. `describe` prints which rule each leaf gets. The authors
    now advise Dion2 (2025, arXiv 2512.16928), which orthonormalises some rows per step.

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.01 (official code).
      rank: r >= 1. Default None: by `rank_fraction`.
      rank_fraction: r is this fraction of the shorter side, in (0, 1]. Default 1 (official code).
      rank_multiple_of: r is rounded up to a multiple of it, >= 1. Default 1.
      momentum: the fraction that error feedback leaves in M, as in `scale_by_dion`, in [0, 1). Default 0.95 (official
        code).
      eps: added to the norms of columns, >= 0. Default 1e-8 (official code).
      qr: "qr", "cholesky_qr" or "randomized_cholesky_qr", as in `scale_by_dion`. Default "qr".
      side: "short", "inputs" or "outputs", as in `scale_by_dion`. Default "short".
      key: from which the start of Q is drawn: a typed random key, or an integer.
      replica_axis: mapped axes over which gradients have not been averaged, as in `scale_by_dion`; gradients of the
        other leaves are averaged over them. Default None.
      weight_decay: decoupled decay of the matrices >= 0, or a schedule. Default 0.01 (official code).
      weight_decay_mask: which leaves decay, of all.
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. It must be given where there are other
        leaves. The official code takes `learning_rate` for these too, which at 0.01 is far more than AdamW's usual one.
      adam_b1: decay of AdamW's first moment, in [0, 1). Default 0.9 (official code).
      adam_b2: decay of AdamW's second moment, in [0, 1). Default 0.95 (official code).
      adam_eps: AdamW's own eps, >= 0. Default 1e-8 (official code).
      adam_weight_decay: decoupled decay of the other leaves >= 0, or a schedule. Default 0.
      mu_dtype: dtype in which AdamW's first moments are kept. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are distributed, as in `scale_by_dion`. Default
        None.

    Returns:
      A transformation that needs `params` where leaves decay. State and collectives: those of `scale_by_dion`; 2 words
      per parameter of the other leaves.

    Raises:
      ValueError: a hyperparameter outside its range; no key; at `init`, other leaves without `adam_learning_rate`.

    Example:
      >>> tx = dion(0.1, key=0, weight_decay=0.0, adam_learning_rate=0.1)
      >>> x = {"bias": jnp.ones(2), "kernel": jnp.ones((1, 4))}
      >>> updates, _ = tx.update(x, tx.init(x), x)
      >>> print(updates["bias"].round(3), updates["kernel"].round(3))
      [-0.1 -0.1] [[-0.1 -0.1 -0.1 -0.1]]

    Reference: Ahn et al. Dion: Distributed Orthonormalized Updates. 2025, arXiv 2504.05295.
    """
    checks.axis_name("replica_axis", replica_axis)
    adam_rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    for name, value in (("adam_b1", adam_b1), ("adam_b2", adam_b2)):
        checks.real(name, value, "[0, 1)")
    checks.real("adam_eps", adam_eps, "[0, inf)")
    checks.real("adam_weight_decay", adam_weight_decay, "[0, inf)", schedule=True)
    checks.real("adam_learning_rate", adam_learning_rate, "[0, inf)", schedule=True, optional=True)

    def ready(name: str, rate: Any, decay: Any, *links: optax.GradientTransformation) -> Any:
        return optimizer(
            Method(name, rate, decay, weight_decay_mask),
            *links,
            add_decayed_weights(decay, weight_decay_mask=weight_decay_mask),
            scale_by_learning_rate(rate),
        )

    direction = scale_by_dion(
        rank=rank,
        rank_fraction=rank_fraction,
        rank_multiple_of=rank_multiple_of,
        momentum=momentum,
        eps=eps,
        qr=qr,
        side=side,
        key=key,
        replica_axis=replica_axis,
        layout=layout,
        shard=shard,
    )
    average = optax.stateless(lambda g, _: g if replica_axis is None else jax.lax.pmean(g, replica_axis))
    adam = scale_by_adam(b1=adam_b1, b2=adam_b2, eps=adam_eps, mu_dtype=mu_dtype)
    return by_role(
        Method("dion", learning_rate, weight_decay, weight_decay_mask),
        ready("dion", learning_rate, weight_decay, direction),
        ready("adamw", adam_rate, adam_weight_decay, average, adam),
        layout,
        "" if adam_learning_rate is not None else UNDECIDED,
    )


register(
    scale_by_dion,
    form="primitive",
    paper=PAPER,
    words=2,
    collectives="matrices",
    only="matrices",
    example={"key": 0},
    opt_outs={"map_params": "its state belongs to stacks of matrices"},
    notes="for matrices alone: give other leaves to another method with gk.leaves.groups",
)
register(
    dion,
    form="optimizer",
    paper=PAPER,
    words=2,
    collectives="matrices",
    golden=("matrix/dion",),
    example={"key": 0, "adam_learning_rate": 0.01},
    notes="1 + r / m words for n x m, n <= m, Q at the short side; the words above are those of r = n = m",
    race=Race(2e-2, {"key": 0, "adam_learning_rate": 3e-3}),
)
