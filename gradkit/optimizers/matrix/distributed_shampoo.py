"""Distributed Shampoo: Shampoo on blocks of bounded size, with the length of another method's step."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.blocks import blocks_of, cut_blocks, join_blocks, kept_of_blocks, sorted_axes
from gradkit.engine.core import bias_correction as corrected
from gradkit.engine.core import increment, optimizer, scalar, transformation
from gradkit.engine.fields import init_fields, total
from gradkit.engine.kronecker import (
    BY_LAYOUT,
    Factors,
    accumulate,
    along_all,
    bounded,
    correction,
    init_factors,
    merge_backwards,
    roots,
    statistic,
)
from gradkit.engine.mapping import map_stacks
from gradkit.engine.owned import phases
from gradkit.engine.parts import counted, like
from gradkit.engine.planning import as_tensors, plan_stacks
from gradkit.engine.refreshes import due, renewed
from gradkit.engine.shards import check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout, Method
from gradkit.linalg.inverse_root import METHODS as SOLVERS
from gradkit.transforms import MatrixSharding, add_decayed_weights, scale_by_learning_rate
from gradkit.types import Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "A Distributed Data-Parallel PyTorch Implementation of the Distributed Shampoo Optimizer for Training Neural "
    "Networks At-Scale",
    "Shi et al.",
    2023,
    "2309.06497",
)
# The largest number of words per parameter for the full statistics and roots of an axis that is divided into blocks.
MOST_WORDS = 64
GRAFTINGS = (None, "sgd", "adagrad", "rmsprop", "adam")


class Own(NamedTuple):
    """The state of the tensors of a stack: by the shapes of their blocks and by axes a statistic and its root; the mean
    of the gradient; second moments of the grafted method; how many roots came out not finite and were not used."""

    L: Any
    P: Any
    mu: Any
    nu: Any
    failed: Any


class Block(NamedTuple):
    """The state of the blocks of one shape, along one axis of blocks."""

    L: tuple[jax.Array, ...]
    P: tuple[jax.Array, ...]
    mu: jax.Array | None
    nu: jax.Array | None
    failed: jax.Array
    phase: jax.Array | None


class DistributedShampooState(NamedTuple):
    """Number of updates made; the fields of `Own`, L and P of a parameter by the shapes of its blocks and their axes,
    mu and nu of its shape; with `shard`, by stacks of equal tensors, each sharded over its owners; the number of roots
    that failed as a metric."""

    count: jax.Array
    L: Any
    P: Any
    mu: Any
    nu: Any
    failed: Any
    metrics: dict[str, jax.Array]


def _filtered(G: jax.Array, mu: jax.Array, at: Any, unbiased: bool) -> tuple[jax.Array, jax.Array]:
    """Gbar_t and m_t of the equations of `distributed_shampoo`."""
    b3, mean = scalar(at["b3"], G), ema(mu, G, at["b3"])
    if unbiased:
        # 1 - b3 b1^(t-1) without cancellation; 0^0 is 1.
        rest = corrected(at["b1"], at["t"] - 1, G)
        mean = mean / ((1 - b3) + b3 * jnp.where(at["t"] == 1, jnp.zeros((), rest.dtype), rest))
    return mean, ema(mu, G, at["b1"])


def _grafted(mean: jax.Array, nu: jax.Array | None, at: Any, grafting: str | None) -> jax.Array:
    """The grafted method's direction a_t."""
    if nu is None:
        return mean
    hat = nu / corrected(at["graft_b2"], at["t"], nu) if grafting == "adam" else nu
    below = jnp.sqrt(hat) + scalar(at["graft_eps"], nu)
    return jnp.where(below == 0, jnp.zeros((), mean.dtype), mean / jnp.where(below == 0, jnp.ones_like(below), below))


def _lengths(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)), keepdims=True))


def _precondition(
    *,
    b1: Any,
    b2: Any,
    b3: Any,
    eps: Any,
    limit: int,
    merge_dims: bool,
    frequency: int,
    stagger: bool,
    start: int,
    grafting: str | None,
    graft_b2: Any,
    graft_eps: Any,
    unbiased: bool,
    solver: str,
    layout: Layout | None,
    shard: MatrixSharding | None,
) -> optax.GradientTransformationExtraArgs:
    """The primitive: replaces the gradient G_t by the direction d_t of `distributed_shampoo`."""
    averaged = not all(isinstance(b, int | float) and b == 0 for b in (b1, b3))

    def merged(dims: tuple[int, ...]) -> tuple[int, ...]:
        return merge_backwards(dims, limit) if merge_dims else dims

    def diagonal(dims: tuple[int, ...]) -> list[bool]:
        """Which axes keep only the diagonal of their statistic: they are longer than a block, and all other axes
        together are so short that the blocks would hold more than MOST_WORDS words per parameter."""
        return [d > limit and 2 * limit > MOST_WORDS * (math.prod(dims) // d) for d in dims]

    def make(rows: int, dims: tuple[int, ...], dtype: Any, _: Any) -> Own:
        whole = merged(dims)

        def of(which: int) -> Any:
            def start(count: int, shape: tuple[int, ...], axes: Any) -> Any:
                del axes
                return init_factors(count, shape, dtype, diagonal(whole))[which]

            return kept_of_blocks(start, rows, dims, whole, limit)

        mu, nu = (like(jnp.zeros((rows, *whole), dtype)) for _ in range(2))
        second = nu if grafting not in (None, "sgd") else None
        return Own(of(0), of(1), mu if averaged else None, second, counted(rows))

    def one(G: jax.Array, own: Block, at: Any) -> tuple[jax.Array, Block]:
        """The direction of all blocks of one shape."""
        G = bounded(G)
        mean, mu, nu = G, own.mu, own.nu
        L = tuple(accumulate(L, statistic(G, axis, diagonal=L.ndim == 2), at["b2"]) for axis, L in enumerate(own.L))
        if nu is not None:
            nu = accumulate(nu, jnp.square(G), 1 if grafting == "adagrad" else at["graft_b2"])
        c = correction(at["b2"], at["t"], G) if unbiased else jnp.ones((), G.dtype)
        order = G.ndim - 1

        def rooted(L: Any, old: Any) -> Any:
            new = roots(Factors(L, *old), [1 / (2 * order)] * order, c, at["eps"], solver)
            return new.P, new.failed

        P, failed = renewed(due(at["t"], start, frequency, own.phase), rooted, L, (own.P, own.failed))
        if mu is not None:
            mean, mu = _filtered(G, mu, at, unbiased)
        p = along_all(P, mean)
        if grafting is not None:
            a = _grafted(mean, nu, at, grafting)
            p = jnp.where(at["t"] < start, a, p * (_lengths(a) / (_lengths(p) + 1e-16)))
        return p, Block(L, P, mu, nu, failed, own.phase)

    def kernel(x: jax.Array, own: Own, at: Any, phase: Any) -> tuple[jax.Array, Own]:
        dims, rows = merged(x.shape[1:]), x.shape[0]
        known, short = blocks_of(dims, limit), diagonal(dims)

        def cut(y: Any) -> list[Any]:
            return [None] * len(known) if y is None else cut_blocks(y, dims, limit)

        done, before = [], 0
        pieces = zip(known.values(), own.L, own.P, cut(x), cut(own.mu), cut(own.nu), strict=True)
        for blocks, L, P, G, mu, nu in pieces:
            apart = None
            if phase is not None:
                number = before + jnp.arange(len(blocks), dtype=jnp.int32)[None]
                apart = jnp.where(phase[:, None] < 0, -1, (phase[:, None] + number) % frequency).ravel()
            before += len(blocks)
            flat = [
                tuple(y.reshape(-1, *y.shape[(-1 if short[a] else -2) :]) for a, y in sorted_axes(f)) for f in (L, P)
            ]
            failed = jnp.zeros((rows * len(blocks),), own.failed.dtype)
            done.append(one(G, Block(flat[0], flat[1], mu, nu, failed, apart), at))

        def kept(old: Any, field: str) -> Any:
            shapes = [[(str(a), y.shape) for a, y in sorted_axes(f)] for f in old]
            new = [getattr(block, field) for _, block in done]
            return tuple(
                {key: y.reshape(shape) for (key, shape), y in zip(like, own, strict=True)}
                for like, own in zip(shapes, new, strict=True)
            )

        def joined(old: Any, field: str) -> Any:
            return None if old is None else join_blocks([getattr(b, field) for _, b in done], dims, limit, old)

        counts = [jnp.sum(block.failed.reshape(rows, -1), axis=1, dtype=jnp.int32) for _, block in done]
        failed = sum(counts, own.failed)
        d = join_blocks([d for d, _ in done], dims, limit, x)
        return d, Own(kept(own.L, "L"), kept(own.P, "P"), joined(own.mu, "mu"), joined(own.nu, "nu"), failed)

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, make, method="distributed_shampoo", layout=layout, shard=shard, view=as_tensors)

    def init(params: optax.Params) -> DistributedShampooState:
        zero, fields = jnp.zeros((), jnp.int32), init_fields(planned(params), params)
        return DistributedShampooState(zero, **fields, metrics={"failed_roots": jnp.zeros_like(zero)})

    def update(updates: Any, state: DistributedShampooState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        t = increment(state.count)
        at = {"t": t, "b1": b1, "b2": b2, "b3": b3, "eps": eps}
        at |= {"graft_b2": graft_b2, "graft_eps": graft_eps}
        plan, fields = planned(updates), {f: getattr(state, f) for f in Own._fields}
        marks = phases(plan, frequency if stagger else None)
        d, fields = map_stacks(plan, kernel, updates, fields, at, marks=marks)
        return d, DistributedShampooState(t, **fields, metrics={"failed_roots": total(plan, fields["failed"])})

    return transformation("distributed_shampoo", init, update)


def distributed_shampoo(
    learning_rate: ScalarOrSchedule = 1e-2,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 1.0,
    b3: Scalar | None = None,
    eps: Scalar = 1e-12,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    weight_decay_type: str = "decoupled",
    max_dim: int = 1024,
    merge_dims: bool = True,
    update_interval: int = 1,
    stagger: bool = False,
    start_preconditioning_step: int | None = None,
    grafting: str | None = None,
    graft_b2: Any = 0.999,
    graft_eps: Scalar = 1e-8,
    bias_correction: bool = True,
    solver: str = "eigh",
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Shampoo on blocks, each with the length of the step of SGD, AdaGrad, RMSProp or Adam.

    A tensor is divided into blocks: axes of length 1 are dropped; from the last axis to the first, axes are joined
    while their product is at most max_dim; then every axis is divided into parts of at most that length. Equations, of
    every block G of order k:

        L_i     = b2 L_i + (1 - b2) S_i,  or L_i + S_i where b2 = 1;    S_i = G contracted with itself over other axes
        P_i     = (L_i / c_t + eps I)^(-1 / (2 k))                      c_t = 1 - b2^t, or 1 where b2 = 1
        v_t     = graft_b2 v_{t-1} + (1 - graft_b2) G^2;                for "adagrad" the sum of G^2
        Gbar_t  = (b3 m_{t-1} + (1 - b3) G) / (1 - b3 b1^(t-1)),  then  m_t = b1 m_{t-1} + (1 - b1) G
        a_t     = Gbar_t / (sqrt(v_t) + graft_eps);                     for "adam" with v_t / (1 - graft_b2^t)
        p_t     = Gbar_t times P_i along every axis
        d_t     = a_t before start_preconditioning_step, then p_t |a_t| / (|p_t| + 1e-16)
        x_t     = x_{t-1} - learning_rate (d_t + weight_decay x_{t-1})

    With "sgd", a_t = Gbar_t; without grafting, d_t = p_t. With weight_decay_type="l2", weight_decay x_{t-1} is added to
    the gradient instead. A vector that is longer than max_dim, and such an axis of a thin matrix, keeps only the
    diagonal of L_i where full statistics would take more than 64 words per parameter.

    To come from AdamW, keep its learning rate and weight decay and take grafting="adam", b2 = graft_b2 = its b2,
    graft_eps = its eps, eps=1e-12, max_dim=8192, update_interval=100.

    Args:
      learning_rate: step size >= 0, or a schedule; with grafting the grafted method's. Default 0.01 (official code).
      b1: decay of the mean of the gradient, in [0, 1). Default 0.9 (official code).
      b2: 1 for a sum, below 1 the decay of a running mean, in [0, 1]. Default 1 (official code).
      b3: weight of the mean before this step in what is preconditioned, in [0, 1). Default None: b1, which is the mean
        itself; a smaller one looks ahead, as Nesterov does.
      eps: added to the statistics, >= 0. Default 1e-12 (official code); at least the machine's rounding times the
        trace, as in `scale_by_shampoo`.
      weight_decay: decay >= 0, or a schedule. Default 0 (official code).
      weight_decay_mask: which leaves decay. Default all.
      weight_decay_type: "decoupled" or "l2" (added to the gradient). Default "decoupled" (official code).
      max_dim: largest length of a block along an axis, >= 1. Default 1024 (official code). A longer axis keeps only the
        diagonal of its statistic, as in AdaGrad, where the statistics of its blocks would take more than 64 words per
        parameter: for a vector if max_dim > 32, for an m x n matrix if max_dim > 32 n.
      merge_dims: whether short axes are joined first. Default True (official code).
      update_interval: steps between two computations of the roots, >= 1. Default 1 (official code).
      stagger: whether every block has a step of its own for its roots, so that the work is spread over the steps; the
        roots that are due are computed one after another. Default False (official code): all at once.
      start_preconditioning_step: the first step with roots, >= update_interval; before it the grafted method
        runs alone. Default None: update_interval.
      grafting: None, "sgd", "adagrad", "rmsprop" or "adam". Default None (official code).
      graft_b2: decay of the second moment of "rmsprop" and "adam", in [0, 1). Default 0.999 (Adam's).
      graft_eps: added to its root, >= 0. Default 1e-8 (Adam's).
      bias_correction: whether statistics and the mean of the gradient are divided by their weights. Default True
        (official code).
      solver: "eigh", "coupled_newton" or "higher_order", as in `gk.linalg.inverse_root`. Default "eigh".
      layout: which axes are stacks: layers stacked for a scan are tensors of their own, and so are fused weights.
      shard: a `gk.MatrixSharding`: over which devices work and state are distributed. Default None, as in `gk.muon`.

    Returns:
      A transformation that needs `params` where leaves decay. State: per block twice the sum of the squares of the
      lengths of its axes (twice the length of an axis that keeps only a diagonal), 1 word per parameter if b1 or b3 is
      not 0, and 1 if the grafted method has a second moment; all of it is stored on the owner device of the tensor. The
      metric `failed_roots` counts roots that came out not finite; the last finite root is then used again. Collectives:
      those of `scale_by_muon`, and one number per stack.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = distributed_shampoo(1.0, grafting="adam")
      >>> x = jnp.array([[3.0, 0.0], [0.0, 4.0]])
      >>> u, _ = tx.update(x, tx.init(x), x)  # Adam's first step is the sign: two entries of 1
      >>> round(float(jnp.linalg.norm(u)), 3)
      1.414

    Reference: Shi et al. A Distributed Data-Parallel PyTorch Implementation of the Distributed Shampoo Optimizer for
    Training Neural Networks At-Scale. 2023, arXiv 2309.06497. Departures: the official code assigns blocks to devices
    one by one, largest first; one program for all devices has stacks of equal tensors instead, and all blocks of a
    tensor have one owner device. The official code keeps full statistics of blocks of long vectors too, 2 max_dim words
    per parameter: 8 GB for 1e6 entries. It tries a failed root again in float64 and stops after three failures. Its
    momentum on the direction is `gk.trace` in a chain.
    """
    checks.switch(merge_dims=merge_dims, bias_correction=bias_correction)
    checks.real("b1", b1, "[0, 1)")
    checks.real("b2", b2, "[0, 1]")
    checks.real("b3", b3, "[0, 1)", optional=True)
    checks.real("eps", eps, "[0, inf)")
    checks.choice("weight_decay_type", weight_decay_type, ("decoupled", "l2"))
    max_dim = checks.integer("max_dim", max_dim, 1)
    update_interval = checks.integer("update_interval", update_interval, 1)
    checks.choice("stagger", stagger, (True, False))
    start_preconditioning_step = checks.integer(
        "start_preconditioning_step", start_preconditioning_step, update_interval, optional=True
    )
    checks.choice("grafting", grafting, GRAFTINGS)
    checks.real("graft_b2", graft_b2, "[0, 1)")
    checks.real("graft_eps", graft_eps, "[0, inf)")
    checks.choice("solver", solver, SOLVERS)
    check_shard(shard)
    decay = add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask)
    first = weight_decay_type == "l2"
    direction = _precondition(
        b1=b1,
        b2=b2,
        b3=b1 if b3 is None else b3,
        eps=eps,
        limit=max_dim,
        merge_dims=merge_dims,
        frequency=update_interval,
        stagger=stagger,
        start=update_interval if start_preconditioning_step is None else start_preconditioning_step,
        grafting=grafting,
        graft_b2=graft_b2,
        graft_eps=graft_eps,
        unbiased=bias_correction,
        solver=solver,
        layout=layout,
        shard=shard,
    )
    return optimizer(
        Method("distributed_shampoo", learning_rate, weight_decay, weight_decay_mask),
        *((decay, direction) if first else (direction, decay)),
        scale_by_learning_rate(learning_rate),
    )


register(
    distributed_shampoo,
    form="optimizer",
    paper=PAPER,
    words=6,
    collectives="matrices",
    golden=("matrix/distributed_shampoo",),
    # Statistics of three gradients are singular: with an eps near rounding two programs differ by what it amplifies.
    example={"eps": 0.01, "grafting": "adam"},
    opt_outs=BY_LAYOUT,
    notes="blocks of at most max_dim; with grafting the learning rate is the grafted method's",
    # As those who come from AdamW use it.
    race=Race(5e-3, {"b2": 0.999, "grafting": "adam"}),
)
