"""Shampoo: one preconditioner per axis of a tensor."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.blocks import factor_sources
from gradkit.engine.core import bias_correction, increment, need, optimizer, transformation
from gradkit.engine.fields import init_fields, total
from gradkit.engine.kronecker import (
    BY_LAYOUT,
    Factors,
    accumulate,
    along_all,
    bounded,
    correction,
    init_factors,
    roots,
    statistic,
)
from gradkit.engine.mapping import map_stacks
from gradkit.engine.owned import phases
from gradkit.engine.parts import beside, counted, like
from gradkit.engine.planning import as_tensors, plan_stacks
from gradkit.engine.refreshes import due, renewed
from gradkit.engine.shards import check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout, Method
from gradkit.linalg.inverse_root import METHODS as SOLVERS
from gradkit.transforms import MatrixSharding, add_decayed_weights, scale_by_learning_rate
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("A New Perspective on Shampoo's Preconditioner", "Morwani et al.", 2024, "2406.17748")
SOURCES = ("batch", "per_example")


class Own(NamedTuple):
    """The state of the tensors of a stack: per axis a statistic and its root; the mean of the gradient where b1 > 0;
    how many roots came out not finite, and were not used."""

    L: tuple[Any, ...]
    P: tuple[Any, ...]
    mu: Any
    failed: Any


class ScaleByShampooState(NamedTuple):
    """Number of updates made; the fields of `Own`, L and P of a parameter by its axes, mu of its shape; with `shard`,
    by stacks of equal tensors, each sharded over its owners; the number of roots that failed as a metric."""

    count: jax.Array
    L: Any
    P: Any
    mu: Any
    failed: Any
    metrics: dict[str, jax.Array]


def exponents_of(exponent: Any, order: int) -> list[Any]:
    """e_i of every axis of a tensor."""
    plain = 1 / (2 * order)
    if isinstance(exponent, Mapping):
        if lacking := [axis for axis in exponent if not -order <= axis < order]:
            raise ValueError(
                f"scale_by_shampoo: exponent names the axis {lacking[0]}, but there is a tensor of order {order}; give "
                f"axes from {-order} to {order - 1}"
            )
        return [exponent.get(i, exponent.get(i - order, plain)) for i in range(order)]
    e = {"shampoo": plain, "shampoo2": 0.5}.get(exponent, exponent) if isinstance(exponent, str) else exponent
    return [e] * order if order == 2 else [plain] * order


def scale_by_shampoo(
    *,
    b1: Scalar | None = None,
    b2: Scalar = 1.0,
    eps: Scalar = 1e-12,
    exponent: Any = "shampoo",
    trace_correction: bool = False,
    update_interval: int = 1,
    stagger: bool = False,
    start_preconditioning_step: int | None = None,
    factor_source: str = "batch",
    solver: str = "eigh",
    max_dim: int = 1024,
    stats_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Preconditions every tensor along each of its axes.

    Equations: L_i, P_i, m_t and d_t of `shampoo`. A vector is a tensor of order 1, whose statistic is g g^T; a scalar
    is a vector of one entry; a convolution has order 4. Layers stacked for a scan and fused weights (`splits` of the
    layout) are tensors of their own. Tensors of one shape are processed in one batch.

    Args:
      b1: decay of the mean of the gradient, in [0, 1). The raw gradient feeds the statistics. Default None, which
        means 0: no mean (paper).
      b2: 1 for the sum of the paper, below 1 the decay of a running mean, in [0, 1]. Default 1.
      eps: added to the statistics, >= 0. Default 1e-12 (official code). At least the machine's rounding times the trace
        is added to a matrix (1.2e-7 of the trace in float32): smaller eigenvalues are noise, which an inverse root
        would amplify most. With 0 nothing is added, and an axis whose statistic is singular keeps its last root.
      exponent: "shampoo", e_i = 1 / (2 k); "shampoo2", 1/2 for matrices; a number > 0, for matrices; or a dict from the
        axis of a tensor to a number, for all tensors. Default "shampoo" (paper).
      trace_correction: whether the direction of a matrix is multiplied by Tr(L)^e, so that with "shampoo2" it is that
        of the best Kronecker approximation of H^(-1/2), Tr(L)^(1/2) L^(-1/2) G R^(-1/2). Default False: the scale is
        left to the learning rate.
      update_interval: steps between two computations of the roots, >= 1. Default 1 (official code).
      stagger: whether every tensor has a step of its own for its roots, so that the work is spread over the steps; the
        roots that are due are computed one after another. Default False (official code): all at once.
      start_preconditioning_step: the first step with roots, >= 1. Default None: `update_interval`.
      factor_source: "batch", or "per_example": the statistics are means over those of the gradients of single examples
        (the empirical Fisher), given as the extra argument `factor_grads` with a leading axis. Default "batch".
      solver: "eigh", "coupled_newton" or "higher_order", as in `gk.linalg.inverse_root`. Default "eigh".
      max_dim: along a longer axis only the diagonal of the statistic is kept, which is AdaGrad with the same power.
        Default 1024 (official code's largest block).
      stats_dtype: dtype in which statistics and roots are kept. Default float32, or float64 for float64 parameters.
      layout: which axes are stacks.
      shard: a `gk.MatrixSharding`: over which devices the work and the state are distributed, as in `gk.muon`. Its
        `specs` are needed under `jit` over Auto axes. Default None: over the devices that leaves are sharded over where
        a mesh with Explicit axes says so.

    Returns:
      A transformation. State: per tensor twice the sum of the squares of the lengths of its axes, and 1 word per
      parameter if b1 > 0, on the owner device of the tensor; the metric `failed_roots`. Collectives: those of
      `scale_by_muon`, and one number per stack.

    Raises:
      ValueError: a hyperparameter outside its range; an `exponent` of an axis that a tensor lacks; `factor_grads`
        missing or without the leading axis.

    Example:
      >>> tx = scale_by_shampoo(eps=0.0)
      >>> g = jnp.array([[0.0, 3.0], [-0.1, 0.0]])
      >>> print(tx.update(g, tx.init(g))[0].round(4) + 0.0)  # of one gradient, U V^T
      [[ 0.  1.]
       [-1.  0.]]

    Reference: Gupta, Koren, Singer. Shampoo: Preconditioned Stochastic Tensor Optimization. 2018, arXiv 1802.09568;
    Morwani et al. A New Perspective on Shampoo's Preconditioner. 2024, arXiv 2406.17748. The official code retries a
    failed root in float64 and stops after three failures; here the last finite root is kept, and failures are counted.
    The official code adds only eps; with that, in float32, the linear autoencoder of the race ended in NaN at every
    learning rate.
    """
    checks.layout(layout)
    checks.switch(trace_correction=trace_correction)
    checks.floating_dtype(stats_dtype=stats_dtype)
    checks.real("b1", b1, "[0, 1)", optional=True)
    checks.real("b2", b2, "[0, 1]")
    checks.real("eps", eps, "[0, inf)")
    if isinstance(exponent, str):
        checks.choice("exponent", exponent, ("shampoo", "shampoo2"))
    else:
        for e in exponent.values() if isinstance(exponent, Mapping) else (exponent,):
            checks.real("exponent", e, "(0, inf)")
    if trace_correction and isinstance(exponent, Mapping):
        raise ValueError(
            "scale_by_shampoo: trace_correction=True needs one exponent, because the trace has one power, got a dict; "
            "give exponent as a number or a name, or trace_correction=False"
        )
    update_interval = checks.integer("update_interval", update_interval, 1)
    checks.choice("stagger", stagger, (True, False))
    start_preconditioning_step = checks.integer(
        "start_preconditioning_step", start_preconditioning_step, 1, optional=True
    )
    checks.choice("factor_source", factor_source, SOURCES)
    checks.choice("solver", solver, SOLVERS)
    max_dim = checks.integer("max_dim", max_dim, 1)
    check_shard(shard)
    start = update_interval if start_preconditioning_step is None else start_preconditioning_step
    averaged = not checks.absent(b1)
    b1 = 0.0 if b1 is None else b1

    def make(rows: int, dims: tuple[int, ...], dtype: Any, _: Any) -> Own:
        groups = [(a,) for a in range(len(dims))]
        L, P = (
            tuple(beside(x, factor_sources(groups, a, x.ndim - 1)) for a, x in enumerate(own))
            for own in init_factors(rows, dims, stats_dtype or dtype, [d > max_dim for d in dims])
        )
        return Own(L, P, like(jnp.zeros((rows, *dims), dtype)) if averaged else None, counted(rows))

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, make, method="scale_by_shampoo", layout=layout, shard=shard, view=as_tensors)

    def init(params: optax.Params) -> ScaleByShampooState:
        plan, zero = planned(params), jnp.zeros((), jnp.int32)
        for stack in plan.stacks:
            exponents_of(exponent, len(stack.dims))
        return ScaleByShampooState(zero, **init_fields(plan, params), metrics={"failed_roots": jnp.zeros_like(zero)})

    def update(updates: Any, state: ScaleByShampooState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        t = increment(state.count)
        numbers = {"t": t, "b1": b1, "b2": b2, "eps": eps}

        def kernel(G: jax.Array, own: Own, at: Any, phase: Any, *examples: jax.Array) -> tuple[jax.Array, Own]:
            mu, G, examples = own.mu, bounded(G), tuple(map(bounded, examples))

            def moment(axis: int, L: jax.Array) -> jax.Array:
                S = [statistic(g, axis, diagonal=L.ndim == 2) for g in examples or (G,)]
                return accumulate(L.astype(G.dtype), sum(S[1:], S[0]) / len(S), at["b2"]).astype(L.dtype)

            L = tuple(moment(axis, old) for axis, old in enumerate(own.L))
            e = exponents_of(exponent, G.ndim - 1)
            power = e[0] if trace_correction and G.ndim == 3 else 0
            c = correction(at["b2"], at["t"], G)

            def rooted(L: Any, old: Any) -> Any:
                new = roots(Factors(L, *old), e, c, at["eps"], solver, power_of_trace=power)
                return new.P, new.failed

            now = due(at["t"], start, update_interval, phase)
            P, failed = renewed(now, rooted, L, (own.P, own.failed))
            mean = G
            if mu is not None:
                mu = ema(mu, G, at["b1"])
                mean = mu / bias_correction(at["b1"], at["t"], G)
            return along_all([x.astype(G.dtype) for x in P], mean), Own(L, P, mu, failed)

        plan, fields = planned(updates), {f: getattr(state, f) for f in Own._fields}
        examples = _examples(updates, extra) if factor_source == "per_example" else []
        marks = phases(plan, update_interval if stagger else None)
        d, fields = map_stacks(plan, kernel, updates, fields, numbers, more=examples, marks=marks)
        return d, ScaleByShampooState(t, **fields, metrics={"failed_roots": total(plan, fields["failed"])})

    return transformation("scale_by_shampoo", init, update)


def _examples(updates: Any, extra: Mapping[str, Any]) -> list[Any]:
    """The gradients of single examples, as one tree per example."""
    given = need("scale_by_shampoo", extra, "factor_grads")
    shapes = [jnp.shape(x) for x in jax.tree.leaves(given)]
    want = [x.shape for x in jax.tree.leaves(updates)]
    lead = {shape[:1] for shape in shapes}
    if len(shapes) != len(want) or [s[1:] for s in shapes] != want or len(lead) > 1 or lead & {(), (0,)}:
        raise ValueError(
            f"scale_by_shampoo: factor_grads must be gradients with one common leading axis; leaves of shapes {want} "
            f"got {shapes}"
        )
    given = jax.tree.map(lambda g, x: jnp.asarray(g).astype(x.dtype), given, updates)
    return [jax.tree.map(lambda g, i=i: g[i], given) for i in range(next(iter(lead))[0] if lead else 0)]


def shampoo(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar | None = None,
    b2: Scalar = 1.0,
    eps: Scalar = 1e-12,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    exponent: Any = "shampoo",
    trace_correction: bool = False,
    update_interval: int = 1,
    stagger: bool = False,
    start_preconditioning_step: int | None = None,
    factor_source: str = "batch",
    solver: str = "eigh",
    max_dim: int = 1024,
    stats_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Shampoo, for all leaves: one preconditioner per axis of a tensor.

    Equations, of a tensor G_t of order k (a matrix has k = 2), for every axis i:

        S_i   =  G_t contracted with itself over all other axes                  G G^T and G^T G of a matrix
        L_i  <-  b2 L_i + (1 - b2) S_i,  or L_i + S_i where b2 = 1
        P_i   =  (L_i / c_t + eps I)^(-e_i)   every update_interval steps        c_t = 1 - b2^t, or 1 where b2 = 1
        m_t   =  b1 m_{t-1} + (1 - b1) G_t                                       e_i = 1 / (2 k)
        d_t   =  m_t / (1 - b1^t) times P_i along every axis                     L^(-1/4) G R^(-1/4) of a matrix
        x_t   =  x_{t-1} - learning_rate (d_t + weight_decay x_{t-1})

    P_i is the identity until it is computed for the first time.

    Args:
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the mean of the gradient, in [0, 1). Default None, as 0: no mean (paper).
      b2: 1 for a sum, below 1 the decay of a running mean, in [0, 1]. Default 1 (paper).
      eps: added to the statistics, >= 0. Default 1e-12 (official code); see `scale_by_shampoo`.
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      exponent: "shampoo", "shampoo2", a number or a dict, as in `scale_by_shampoo`. Default "shampoo" (paper).
      trace_correction: whether the direction has the scale of the best Kronecker approximation. Default False.
      update_interval: steps between two computations of the roots, >= 1. Default 1 (official code).
      stagger: whether every tensor has a step of its own for its roots, as in `scale_by_shampoo`. Default False.
      start_preconditioning_step: the first step with roots, >= 1. Default None: `update_interval`.
      factor_source: "batch" or "per_example", as in `scale_by_shampoo`. Default "batch".
      solver: "eigh", "coupled_newton" or "higher_order". Default "eigh".
      max_dim: along a longer axis the statistic is diagonal. Default 1024.
      stats_dtype: dtype in which statistics and roots are kept. Default float32.
      layout: which axes are stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are distributed. Default None.

    Returns:
      A transformation that needs `params` where leaves decay. State and collectives: those of `scale_by_shampoo`.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = shampoo(0.1, eps=0.0)
      >>> x = {"bias": jnp.full(1, 3.0), "kernel": jnp.diag(jnp.array([1.0, 2.0]))}
      >>> updates, _ = tx.update(x, tx.init(x), x)
      >>> print(updates["bias"].round(3), updates["kernel"].round(3).tolist())
      [-0.1] [[-0.10000000149011612, -0.0], [-0.0, -0.10000000149011612]]

    Reference: Morwani et al. A New Perspective on Shampoo's Preconditioner. 2024, arXiv 2406.17748; Gupta, Koren,
    Singer. 2018, arXiv 1802.09568. Departures: those of `scale_by_shampoo`.
    """
    return optimizer(
        Method("shampoo", learning_rate, weight_decay, weight_decay_mask),
        scale_by_shampoo(
            b1=b1,
            b2=b2,
            eps=eps,
            exponent=exponent,
            trace_correction=trace_correction,
            update_interval=update_interval,
            stagger=stagger,
            start_preconditioning_step=start_preconditioning_step,
            factor_source=factor_source,
            solver=solver,
            max_dim=max_dim,
            stats_dtype=stats_dtype,
            layout=layout,
            shard=shard,
        ),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(
    scale_by_shampoo,
    form="primitive",
    paper=PAPER,
    words=4,
    collectives="matrices",
    example={"eps": 0.01},
    opt_outs=BY_LAYOUT,
    notes="a root that fails leaves the last good one; axes beyond max_dim are diagonal",
)
register(
    shampoo,
    form="optimizer",
    paper=PAPER,
    words=4,
    collectives="matrices",
    golden=("matrix/shampoo",),
    # Statistics of three gradients are singular: with an eps near rounding two programs differ by what it amplifies.
    example={"eps": 0.01},
    opt_outs=BY_LAYOUT,
    notes="a root that fails leaves the last good one; axes beyond max_dim are diagonal",
    race=Race(1e-1),
)
