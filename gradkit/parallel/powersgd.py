"""PowerSGD: every matrix is approximated by one step of subspace iteration, which all replicas make together."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment
from gradkit.engine.core import wide_dtype as wide
from gradkit.engine.keys import as_key, check_key
from gradkit.leaves import Axes, Layout, from_matrices, names, resolve_layout, to_matrices
from gradkit.parallel.compressors import Compressor, compressing, compressor_of, number_of_replicas
from gradkit.parallel.error_feedback import error_feedback as remembering
from gradkit.parallel.power_step import orthonormal, product
from gradkit.parallel.quantized_replica_mean import two_phase_mean
from gradkit.parallel.replicas import alike, wide_mean
from gradkit.types import Key, Scalar

PAPER = Paper(
    "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization",
    "Vogels, Karimireddy, Jaggi",
    2019,
    "1905.13727",
)
NAME = "low_rank_compressor"


class LowRankState(NamedTuple):
    """The number of exchanges; for every matrix P, (..., rows, r), where the factors alternate, and Q,
    (..., columns, r); empty nodes for other leaves. Replicated: all of it is the same on all replicas."""

    count: jax.Array
    P: Any
    Q: Any


def _approximation(P: jax.Array, Q: jax.Array) -> jax.Array:
    return product(P, jnp.swapaxes(Q, -1, -2))


class _Matrix(NamedTuple):
    """How a leaf is a batch of matrices, and the rank of its factors."""

    axes: Axes
    batch: int
    rows: int
    columns: int
    rank: int


def _matrices(tree: Any, layout: Layout | None, rank: int, rate: Any) -> list[_Matrix | None]:
    """How each leaf is compressed; None where it is averaged without compression."""
    decided, out = resolve_layout(layout, tree, method=NAME, matters=True), []
    for name, x in zip(names(tree), jax.tree.leaves(tree), strict=True):
        axes = decided(name, x.shape)._replace(splits=())
        rows, columns = (math.prod(x.shape[a] for a in group) for group in (axes.inputs, axes.outputs))
        r = min(rank, rows, columns)
        matrix = bool(axes.inputs) and bool(axes.outputs) and x.size > 0
        small = not matrix or (rate > 0 and r * (rows + columns) * rate >= rows * columns)
        out.append(None if small else _Matrix(axes, x.size // (rows * columns), rows, columns, r))
    return out


def low_rank_compressor(
    rank: int = 2,
    *,
    warm_start: bool = True,
    alternating: bool = False,
    iterations: int = 1,
    min_compression_rate: Scalar = 2.0,
    eps: Scalar = 0.0,
    key: Key = 0,
    layout: Layout | None = None,
    bits: int | None = None,
    axis_name: Any = "replica",
) -> optax.GradientTransformationExtraArgs:
    """The compressor that sends two thin factors of every matrix.

    Equations: those of `powersgd`, which is this compressor inside `error_feedback`. It is biased, so use it there. It
    is linear in the gradient once the columns to start from are given: W replicas give what one gives of their mean.

    Args:
      rank: r, the rank of the factors, >= 1; never more than a matrix has. Default 2.
      warm_start: whether a step starts from the factors of the last one. Default True (paper). False: from new random
        columns in every step; for two-sided steps only.
      alternating: whether one factor is exchanged per step, P and Q in turn. Default False (paper).
      iterations: half steps of the alternating form in every step, >= 1, each on the residual of those before it.
        Default 1 (the authors' package).
      min_compression_rate: a matrix is compressed where that makes it this many times smaller, >= 0; 0: every matrix.
        Default 2 (PyTorch's hook).
      eps: added to the norms that the orthonormalisation divides by, >= 0; 1e-8 is the paper's code. Default 0: the
        result scales with the gradient, and a gradient of zeros gives 0.
      key: a random key (typed key or integer) for the columns to start from, the same on all replicas. Default 0.
      layout: which axes are inputs, outputs, and stacks. Stacked layers are matrices of their own; fused weights are
        one matrix.
      bits: per entry that is sent, of the factors and of the leaves that are averaged without compression: 8 or 4, as
        in `quantized_replica_mean`; for two-sided steps only. Default None: float32.
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica".

    Returns:
      A compressor, and as a transformation: the gradient of a replica in, the approximate mean out. State: the factors,
      r (rows + columns) words per matrix or less, replicated. Collectives: two all-reduces, of r rows and of r columns
      words of every matrix (alternating: one of them per step), the first together with the leaves that are averaged
      without compression.

    Raises:
      ValueError: an argument outside its range; alternating=True without `warm_start`; at `update`, no axis of this
        name.

    Example:
      >>> tx = low_rank_compressor(1, min_compression_rate=0.0)
      >>> g = jnp.outer(jnp.array([1.0, 2.0]), jnp.array([3.0, 1.0, 0.0]))[None]  # of one replica, of rank 1
      >>> print(jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="replica")(g)[0].round(4))
      [[3. 1. 0.]
       [6. 2. 0.]]

    Reference: Vogels, Karimireddy, Jaggi. PowerSGD. 2019, arXiv 1905.13727; the alternating form is that of the
    authors' later package `powersgd`. A tensor with more axes is inputs times outputs of its layout, where the code has
    its first axis times the others.
    """
    rank = checks.integer("rank", rank, 1)
    checks.switch(warm_start=warm_start, alternating=alternating)
    iterations = checks.integer("iterations", iterations, 1, maximum=checks.MOST_UNROLLED)
    if iterations > 1 and not alternating:
        raise ValueError(f"iterations must be 1 unless factors alternate, got {iterations}; write alternating=True")
    checks.real("min_compression_rate", min_compression_rate, "[0, inf)")
    checks.real("eps", eps, "[0, inf)")
    bits = checks.integer("bits", bits, optional=True)
    checks.choice("bits", bits, (None, 8, 4))
    if alternating and bits is not None:
        raise ValueError(f"bits must be None where factors alternate, got {bits}; write alternating=False")
    check_key(key)
    rate = checks.readable(min_compression_rate)
    if rate is None or key is None:
        raise ValueError(
            "min_compression_rate must be known when the program is built, and key must be given, got "
            f"{min_compression_rate!r} and {key!r}; write key=0, or inject_hyperparams(..., static_args=...)"
        )
    if alternating and not warm_start:
        raise ValueError(
            "warm_start must be True where factors alternate, got False: a step needs the factor of the last one; "
            "write warm_start=True or alternating=False"
        )

    def start(tree: Any, plans: list[_Matrix | None], step: Any, side: str) -> Any:
        """Random columns of every matrix."""
        leaves, structure = jax.tree.flatten(tree)
        now, out = jax.random.fold_in(as_key(key), step), []
        for i, (x, plan) in enumerate(zip(leaves, plans, strict=True)):
            if plan is None:
                out.append(optax.MaskedNode())
                continue
            shape = (plan.batch, plan.rows if side == "P" else plan.columns, plan.rank)
            # The random columns of P and Q are independent of each other.
            own = jax.random.fold_in(jax.random.fold_in(now, i), 1 if side == "P" else 0)
            out.append(jax.random.normal(own, shape, wide(x.dtype)))
        return structure.unflatten(out)

    def init(like: Any) -> LowRankState:
        plans = _matrices(like, layout, rank, rate)
        P = start(like, plans, 0, "P") if alternating else None
        return LowRankState(jnp.zeros((), jnp.int32), P, start(like, plans, 0, "Q") if warm_start else None)

    def exchange(tree: Any, state: LowRankState, axis_name: Any, *, key: Any = None) -> tuple[Any, Any, Any]:
        del key
        number_of_replicas(NAME, axis_name)
        plans = _matrices(tree, layout, rank, rate)
        leaves, structure = jax.tree.flatten(tree)
        if not leaves:
            return tree, tree, state
        chosen = [i for i, plan in enumerate(plans) if plan is not None]
        dense = [i for i, plan in enumerate(plans) if plan is None]
        M = [to_matrices(leaves[i], plans[i].axes)[0] for i in chosen]  # pyright: ignore[reportOptionalMemberAccess]
        Q = state.Q if warm_start else start(tree, plans, state.count, "Q")
        Q = [structure.flatten_up_to(Q)[i] for i in chosen]
        said, P = [leaves[i] for i in dense], None
        if alternating:
            P = [structure.flatten_up_to(state.P)[i] for i in chosen]
            half = state.count * iterations
            means, sent, wholes, P, Q = _half_step(M, P, Q, said, half, axis_name, eps)
            for n in range(1, iterations):
                left = [m - s for m, s in zip(M, sent, strict=True)]
                more, also, _, P, Q = _half_step(left, P, Q, [], half + n, axis_name, eps)
                means, sent = jax.tree.map(jnp.add, (means, sent), (more, also))
        else:
            means, sent, wholes, said, Q = _step(M, Q, said, axis_name, eps, bits)

        def back(matrices: list[jax.Array], others: list[jax.Array]) -> Any:
            out = list(leaves)
            for i, x in zip(chosen, matrices, strict=True):
                out[i] = from_matrices((x,), leaves[i].shape, plans[i].axes)  # pyright: ignore
            for i, x in zip(dense, others, strict=True):
                out[i] = x
            return structure.unflatten(out)

        def kept(factors: list[jax.Array]) -> Any:
            nodes: list[Any] = [optax.MaskedNode()] * len(leaves)
            for i, x in zip(chosen, factors, strict=True):
                nodes[i] = x
            return structure.unflatten(nodes)

        new = LowRankState(increment(state.count), kept(P) if P is not None else None, kept(Q) if warm_start else None)
        return back(means, wholes), back(sent, said), alike(new, state)

    return compressing(NAME, Compressor(init, exchange), axis_name)


def _step(M: list, Q: list, others: list, axis_name: Any, eps: Any, bits: int | None) -> tuple[list, ...]:
    """The means, what was sent, the means of the other leaves and what was sent of them, and Q: two exchanges."""

    def exchanged(tree: Any) -> tuple[Any, Any]:
        return (wide_mean(NAME, tree, axis_name), tree) if bits is None else two_phase_mean(tree, axis_name, bits, 256)

    (P, wholes), (_, said) = exchanged(([product(m, q) for m, q in zip(M, Q, strict=True)], others))
    P = [orthonormal(p, eps) for p in P]
    new, own = exchanged([product(jnp.swapaxes(m, -1, -2), p) for m, p in zip(M, P, strict=True)])
    return _both(P, new), _both(P, own), wholes, said, _alive(new, Q)


def _half_step(
    M: list, P: list, Q: list, others: list, count: jax.Array, axis_name: Any, eps: Any
) -> tuple[list, list, list, list, list]:
    """The means, what was sent, the means of the other leaves, P and Q: one exchange."""
    like = (M, M, others, P, Q)

    def even() -> Any:
        left = [orthonormal(p, eps) for p in P]
        own = [product(jnp.swapaxes(m, -1, -2), p) for m, p in zip(M, left, strict=True)]
        right, wholes = wide_mean(NAME, (own, others), axis_name)
        return alike((_both(left, right), _both(left, own), wholes, _alive(left, P), _alive(right, Q)), like)

    def odd() -> Any:
        right = [orthonormal(q, eps) for q in Q]
        own = [product(m, q) for m, q in zip(M, right, strict=True)]
        left, wholes = wide_mean(NAME, (own, others), axis_name)
        return alike((_both(left, right), _both(own, right), wholes, _alive(left, P), _alive(right, Q)), like)

    return jax.lax.cond(count % 2 == 0, even, odd)


def _alive(new: list, old: list) -> list:
    """The factors of the next step: a column that became zero, as from a matrix of lower rank, keeps its old value,
    because it would stay zero."""
    return [jnp.where((n != 0).any(-2, keepdims=True), n, o) for n, o in zip(new, old, strict=True)]


def _both(P: list, Q: list) -> list:
    return [_approximation(p, q) for p, q in zip(P, Q, strict=True)]


def powersgd(
    rank: int = 2,
    *,
    warm_start: bool = True,
    error_feedback: bool = True,
    alternating: bool = False,
    iterations: int = 1,
    min_compression_rate: Any = 2.0,
    start_step: int = 0,
    eps: Scalar = 0.0,
    key: Key = 0,
    layout: Layout | None = None,
    axis_name: Any = "replica",
) -> optax.GradientTransformationExtraArgs:
    """PowerSGD: a low-rank mean of the gradients of all replicas; its error is kept for the next step.

    Equations, with M_w the matrix of a leaf (inputs times outputs) on replica w, and r = min(rank, rows, columns)
    columns in P and Q:

        P = mean_w (M_w Q),   P^ = orth(P)                                           two-sided
        Q_w = M_w^T P^,   Q = mean_w Q_w,   mean = P^ Q^T,   sent_w = P^ Q_w^T

        P^ = orth(P),   Q_w = M_w^T P^,   Q = mean_w Q_w                             alternating, at steps 0, 2, ...
        mean = P^ Q^T,   sent_w = P^ Q_w^T
        Q^ = orth(Q),   P_w = M_w Q^,   P = mean_w P_w                               alternating, at steps 1, 3, ...
        mean = P Q^^T,   sent_w = P_w Q^^T

    An alternating step sends half the bytes. Q (alternating: also P) starts as normal numbers, the same on all
    replicas, and the next step starts from it; a column that has become 0, as all do at a gradient of zeros, keeps its
    old value. Leaves that are no matrices, or too small to gain by compression (where r (rows + columns) times
    min_compression_rate >= rows * columns), are averaged without it.

    `error_feedback` adds to the next gradient what `sent_w` lacks. `sent_w` has the replica's own factor: with the mean
    factor in its place, as in the paper's code, the mean is the same and the memory of every replica grows without
    bound. It is the first link of a chain, on the gradient of one replica:

        tx = optax.chain(gk.parallel.powersgd(rank=2), gk.sgd(0.1, momentum=0.9))

    Args:
      rank: r, the rank of the factors, >= 1. Default 2 (paper; it has 1, 2 and 4).
      warm_start: as in `low_rank_compressor`. Default True (paper).
      error_feedback: whether the compression error is kept and added to the next gradient. Default True (paper).
      alternating: as in `low_rank_compressor`: half the bytes. Default False (paper).
      iterations: as in `low_rank_compressor`. Default 1.
      min_compression_rate: as in `low_rank_compressor`. Default 2 (PyTorch's hook).
      start_step: steps at the beginning whose gradients are averaged without compression, >= 0. Default 0.
      eps: as in `low_rank_compressor`. Default 0.
      key: a random key (typed key or integer) for the columns to start from, the same on all replicas. Default 0.
      layout: which axes are inputs, outputs, and stacks.
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica".

    Returns:
      A compressor, and as a transformation: the gradient of a replica in, the approximate mean out. State, per replica:
      1 word per parameter, and the factors of `low_rank_compressor`. Collectives: those of `low_rank_compressor`; with
      `start_step`, in the other branch of a conditional, the mean.

    Raises:
      ValueError: as `low_rank_compressor`.

    Example:
      >>> tx = powersgd(1, min_compression_rate=0.0)
      >>> g = jnp.diag(jnp.array([4.0, 1.0]))[None]  # of one replica
      >>> step = jax.vmap(tx.update, axis_name="replica")
      >>> first, state = step(g, jax.vmap(tx.init)(g))
      >>> second, state = step(g, state)
      >>> print((first + second + state.error - 2 * g).round(4)[0] + 0.0)  # nothing is lost
      [[0. 0.]
       [0. 0.]]

    Reference: Vogels, Karimireddy, Jaggi. PowerSGD: Practical Low-Rank Gradient Compression for Distributed
    Optimization. 2019, arXiv 1905.13727. The paper's code and PyTorch's hook remember the gradient minus the mean
    approximation: the results are the same, and what differs between replicas stays in memory for ever.
    The optimizer of the paper, x - gamma (g + m) with m <- lambda m + g, is not optax's Nesterov; any optimizer may
    follow here.
    """
    checks.switch(error_feedback=error_feedback)
    start_step = checks.integer("start_step", start_step)
    low_rank = low_rank_compressor(
        rank,
        warm_start=warm_start,
        alternating=alternating,
        iterations=iterations,
        min_compression_rate=min_compression_rate,
        eps=eps,
        key=key,
        layout=layout,
        axis_name=axis_name,
    )
    inner = compressor_of(low_rank)
    late = _late(inner, start_step) if start_step else inner
    compressor = compressing("powersgd", late, axis_name)
    return remembering(compressor, axis_name=axis_name) if error_feedback else compressor


def _late(inner: Compressor, start_step: int) -> Compressor:
    """The plain mean for the first `start_step` exchanges, then `inner`."""

    def exchange(tree: Any, state: LowRankState, axis_name: Any, *, key: Any = None) -> tuple[Any, Any, Any]:
        del key
        like = (tree, tree, state)

        def whole() -> Any:
            mean = wide_mean("powersgd", tree, axis_name)
            return alike((mean, tree, state._replace(count=increment(state.count))), like)

        return jax.lax.cond(
            state.count < start_step, whole, lambda: alike(inner.exchange(tree, state, axis_name), like)
        )

    return Compressor(inner.init, exchange)


NAMED = "what is a matrix depends on names: a matrix called b is a stack of biases in the default layout"
register(
    powersgd,
    form="exchange",
    paper=PAPER,
    words=1,
    collectives="replicas",
    golden=("parallel/powersgd", "parallel/powersgd_alternating"),
    example={"min_compression_rate": 0.0},
    opt_outs={"trees": NAMED},
    notes="two thin factors of every matrix travel",
)
register(
    low_rank_compressor,
    form="exchange",
    paper=PAPER,
    collectives="replicas",
    example={"min_compression_rate": 0.0},
    opt_outs={"trees": NAMED},
)
