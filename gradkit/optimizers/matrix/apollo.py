"""APOLLO: the gradient of every matrix, each of its channels as long as Adam would make it in a random subspace.

x = G, transposed so that the shorter side comes first: (n, m)
R = P^T x,    P (n, r) with entries N(0, 1 / r), drawn again every update_interval steps
a = m / (sqrt(v) + eps)                              Adam's moments of R, (r, m), without correction
f = |a| / (|R| + 1e-8)                               per column ("channel"), or one ("tensor")
d = f x,  its growth limited,  times sqrt(scale)
x_t = (x_{t-1} - learning_rate c_t d) (1 - learning_rate weight_decay),   c_t = sqrt(1 - b2^t) / (1 - b1^t)

Embeddings, heads, vectors and scalars take the same Adam whole.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema, ema_of_square, over, root
from gradkit.engine.by_role import ROLES
from gradkit.engine.core import bias_correction, increment, optimizer, transformation
from gradkit.engine.fields import init_fields
from gradkit.engine.keys import as_key, check_key
from gradkit.engine.kronecker import product
from gradkit.engine.late_decay import decay_after_step
from gradkit.engine.mapping import map_stacks
from gradkit.engine.parts import beside, counted
from gradkit.engine.planning import plan_stacks
from gradkit.engine.presets import called, preset
from gradkit.engine.refreshes import due, failures, refreshed, renewable
from gradkit.engine.shards import MatrixSharding, check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout, Method, axes_of
from gradkit.leaves.derived import flatten, node_names
from gradkit.linalg import singular_basis
from gradkit.transforms import scale_by_adam, scale_by_learning_rate
from gradkit.transforms.limit_norm_growth import growth
from gradkit.types import DTypeLike, Key, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("APOLLO: SGD-like Memory, AdamW-level Performance", "Zhu et al.", 2024, "2412.05270")
METHOD = "apollo"
Projection = Callable[[jax.Array, tuple[int, int], int], jax.Array]


class Own(NamedTuple):
    """What belongs to the matrices of a stack: the moments of what is projected, the norm of the last direction and,
    with "svd", the projection and how often it failed."""

    mu: Any
    nu: Any
    norm: Any
    basis: Any
    failed: Any


class ScaleByApolloState(NamedTuple):
    """Number of updates made; the fields of `Own`, of every matrix; with `shard`, by stacks of equal matrices, each
    with its owners; the state of Adam on the other leaves."""

    count: jax.Array
    mu: Any
    nu: Any
    norm: Any
    basis: Any
    failed: Any
    rest: Any

    @property
    def metrics(self) -> dict[str, jax.Array]:
        """What `gk.diagnostics.metrics` reads."""
        return failures(self.failed)


def _random(key: Any) -> Projection:
    """Projections from a key: all matrices of one shape have the same."""

    def draw(number: jax.Array, dims: tuple[int, int], rank: int) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(as_key(key), number), dims[1])
        return jax.random.normal(own, (dims[0], rank), jnp.result_type(float)) / math.sqrt(rank)

    return draw


def _scale_by_apollo(
    numbers: dict[str, Any],
    *,
    rank: int,
    scale_type: str,
    update_interval: int,
    projection: str | Projection,
    scale_front: bool,
    key: Any,
    mu_dtype: Any,
    layout: Layout | None,
    shard: MatrixSharding | None,
) -> optax.GradientTransformationExtraArgs:
    by_svd = projection == "svd"
    drawn = projection if callable(projection) else _random(key)
    adam = scale_by_adam(b1=numbers["b1"], b2=numbers["b2"], eps=numbers["eps"], eps_in_hat=False, mu_dtype=mu_dtype)

    def make(rows: int, dims: tuple[int, ...], dtype: Any, _: Any) -> Own:
        (n, m), r = dims, min(rank, *dims)
        norm = beside(jnp.zeros((rows, 1, 1), dtype), ((), ()))
        basis = beside(jnp.zeros((rows, n, r), dtype), ((0,), (1,))) if by_svd else None
        narrow = dtype if mu_dtype is None else mu_dtype
        mu, nu = (beside(jnp.zeros((rows, r, m), kept), ((0,), (1,))) for kept in (narrow, dtype))
        return Own(mu, nu, norm, basis, counted(rows) if by_svd else None)

    def planned(tree: Any) -> tuple[Any, Any, Plan]:
        """The matrices; the other leaves; how the former are stacked."""
        nodes, structure = flatten(tree)
        chosen = []
        for name, node in zip(node_names(tree), nodes, strict=True):
            (x,) = jax.tree.leaves(node)
            axes = axes_of(layout, name, x.shape)
            chosen.append(axes.role in ROLES and bool(axes.inputs and axes.outputs) and 0 not in x.shape)
        mask = optax.MaskedNode()
        matrices = structure.unflatten([x if c else mask for x, c in zip(nodes, chosen, strict=True)])
        rest = structure.unflatten([mask if c else x for x, c in zip(nodes, chosen, strict=True)])
        return (
            matrices,
            rest,
            plan_stacks(
                matrices,
                make,
                method=METHOD,
                layout=layout,
                shard=shard,
                transpose=lambda rows, columns: rows >= columns,
            ),
        )

    def init(params: optax.Params) -> ScaleByApolloState:
        matrices, rest, plan = planned(params)
        return ScaleByApolloState(jnp.zeros((), jnp.int32), **init_fields(plan, matrices), rest=adam.init(rest))

    def kernel(x: jax.Array, kept: Own, shared: dict[str, Any], _: Any) -> tuple[jax.Array, Own]:
        r = kept.mu.shape[1]
        basis, failed = kept.basis, kept.failed
        if by_svd:
            now = due(shared["count"], 0, update_interval)
            rows = renewable(now, x, basis)
            basis, failed = refreshed(now, lambda x, _: singular_basis(x, r), x, basis, failed, rows=rows)
            P = basis
        else:
            P = jnp.broadcast_to(shared[f"P{x.shape[1]}x{x.shape[2]}"].astype(x.dtype)[None], (len(x), x.shape[1], r))
        R = product(jnp.swapaxes(P, 1, 2), x)
        mu, nu = ema(kept.mu, R, shared["b1"]), ema_of_square(kept.nu, R, shared["b2"])
        a = over(mu.astype(R.dtype), root(nu, shared["eps"]))
        over_axes = (1,) if scale_type == "channel" else (1, 2)
        size = [jnp.sqrt(jnp.sum(jnp.square(y), axis=over_axes, keepdims=True)) for y in (a, R)]
        d = size[0] / (size[1] + 1e-8) * x
        by = jnp.sqrt(jnp.asarray(shared["scale"], x.dtype))
        d = by * d if scale_front else d
        n = jnp.sqrt(jnp.sum(jnp.square(d), axis=(1, 2), keepdims=True))
        f = growth(n, kept.norm, shared["growth_limit"])
        d = d / f
        d = d if scale_front else by * d
        c = jnp.sqrt(bias_correction(shared["b2"], shared["t"], x)) / bias_correction(shared["b1"], shared["t"], x)
        return c * d, Own(mu, nu, n / f, basis, failed)

    def update(updates: Any, state: ScaleByApolloState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        matrices, rest, plan = planned(updates)
        count = increment(state.count)
        shared = {"count": state.count, "t": count, **numbers}
        if not by_svd:
            for stack in plan.stacks:
                n, m = stack.dims
                made = drawn(state.count // update_interval, (n, m), min(rank, n))
                if made.shape != (n, min(rank, n)):
                    raise ValueError(
                        f"projection must give an array of shape {(n, min(rank, n))} for matrices {n} x {m}, got "
                        f"{made.shape} in {METHOD}: write a function (number, dims, rank) -> (dims[0], rank)"
                    )
                shared[f"P{n}x{m}"] = made
        fields = {f: getattr(state, f) for f in Own._fields}
        d, fields = map_stacks(plan, kernel, matrices, fields, shared)
        seen = None if params is None else planned(params)[1]
        u, others = adam.update(rest, state.rest, seen)
        both = jax.tree.map(
            lambda a, b: b if isinstance(a, optax.MaskedNode) else a,
            d,
            u,
            is_leaf=lambda x: isinstance(x, optax.MaskedNode),
        )
        return both, ScaleByApolloState(count, **fields, rest=others)

    return transformation(METHOD, init, update)


def apollo(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    rank: int = 256,
    scale: Scalar = 1.0,
    scale_type: str = "channel",
    update_interval: int = 200,
    projection: str | Projection = "random",
    growth_limit: Scalar = 1.01,
    scale_front: bool = False,
    key: Key | None = None,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent whose channels are as long as Adam's, with moments of a random projection of every matrix.

    Equations, for a matrix transposed so that its shorter side comes first, G (n, m):

        R = P^T G,    P (n, r) with entries N(0, 1 / r), drawn again every update_interval steps; moments stay
        m_t = b1 m_{t-1} + (1 - b1) R_t,  v_t = b2 v_{t-1} + (1 - b2) R_t^2,  a = m_t / (sqrt(v_t) + eps)
        f = |a| / (|R| + 1e-8)                       per column; with "tensor" one number
        d = f G,  d <- d / max(1, |d| / (growth_limit |d_{t-1}|)),  d <- sqrt(scale) d
        x_t = (x_{t-1} - learning_rate c_t d) (1 - learning_rate weight_decay),  c_t = sqrt(1 - b2^t) / (1 - b1^t)

    The direction of a channel is that of its gradient of this step: the momentum is in its length alone.

    Args:
      learning_rate: step size >= 0, or a schedule. Published: 0.01 for models of 60M to 1B.
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root before the bias is corrected, >= 0. Default 1e-6 (official code).
      weight_decay: decay after the step, >= 0, or a schedule. Default 0 (official code).
      weight_decay_mask: which leaves decay. Default all.
      rank: r >= 1, cut down to the shorter side. Default 256 (paper: a quarter of the width).
      scale: its root multiplies the direction, >= 0. Default 1 (official code).
      scale_type: "channel", one length per index of the longer side, or "tensor", one per matrix. Default "channel".
      update_interval: steps from one projection to the next, >= 1. Default 200 (official code: update_proj_gap).
      projection: "random"; "svd", the first left singular vectors of the gradient, which are kept; or a function
        (number of the projection, (n, m), r) -> (n, r). Default "random" (official code).
      growth_limit: largest factor by which the norm of a matrix's direction grows per step, >= 1; infinity limits
        nothing. Default 1.01 (official code).
      scale_front: whether the root of the scale multiplies before the growth is limited. Default False.
      key: of the random projections: a typed random key or a whole number; all matrices of one shape have the same
        projection, and all devices need the same key. Default None: only with another projection.
      mu_dtype: dtype in which first moments are kept. Default float32.
      layout: which leaves are matrices (roles "matrix", "conv", "expert"), and which axes are inputs, outputs, stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are spread, as in `gk.project_low_rank`.

    Returns:
      A transformation that needs `params`. State: 2 r m words and one number per n x m matrix, n <= m; n r more with
      "svd"; 2 words per parameter of other leaves. Collectives: those of `gk.project_low_rank`.

    Raises:
      ValueError: a hyperparameter outside its range; no key for random projections.

    Example:
      >>> tx = apollo(0.1, rank=1, key=0)
      >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> print(tx.update(x, tx.init(x), x)[0].round(3) + 0.0)  # columns along their gradients
      [[-0.134  0.   ]
       [ 0.    -0.157]]

    Reference: Zhu et al. APOLLO: SGD-like Memory, AdamW-level Performance. 2024, arXiv 2412.05270; official code,
    commit 76b3472. Departures: projections are drawn anew from the key where the code keeps a seed per matrix; after a
    direction of zero the next one passes whole.
    """
    for name, value in (("b1", b1), ("b2", b2)):
        checks.real(name, value, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.real("weight_decay", weight_decay, "[0, inf)", schedule=True)
    rank = checks.integer("rank", rank, 1)
    checks.real("scale", scale, "[0, inf)")
    checks.choice("scale_type", scale_type, ("channel", "tensor"))
    update_interval = checks.integer("update_interval", update_interval, 1)
    checks.real("growth_limit", growth_limit, "[1, inf]")
    checks.switch(scale_front=scale_front)
    checks.floating_dtype(mu_dtype=mu_dtype)
    check_shard(shard)
    check_key(key)
    if not callable(projection):
        checks.choice("projection", projection, ("random", "svd"))
    if projection == "random" and key is None:
        raise ValueError(
            f"{METHOD} draws projections: key must be a typed random key or an integer, got None; write key=0, or "
            'projection="svd"'
        )
    numbers = {"b1": b1, "b2": b2, "eps": eps, "scale": scale, "growth_limit": growth_limit}
    return optimizer(
        Method(called(METHOD), learning_rate, weight_decay, weight_decay_mask),
        _scale_by_apollo(
            numbers,
            rank=rank,
            scale_type=scale_type,
            update_interval=update_interval,
            projection=projection,
            scale_front=scale_front,
            key=key,
            mu_dtype=mu_dtype,
            layout=layout,
            shard=shard,
        ),
        scale_by_learning_rate(learning_rate),
        decay_after_step(METHOD, learning_rate, weight_decay, weight_decay_mask),
    )


def apollo_mini(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    scale: Scalar = 128.0,
    update_interval: int = 200,
    projection: str | Projection = "random",
    growth_limit: Scalar = 1.01,
    key: Key | None = None,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """APOLLO with one direction and one length per matrix: the memory of SGD.

    Equations: those of `gk.apollo` with r = 1: R is one row, and d = sqrt(128) f G with one f per matrix.

    Args:
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root before the bias is corrected, >= 0. Default 1e-6 (official code).
      weight_decay: decay after the step, >= 0, or a schedule. Default 0 (official code).
      weight_decay_mask: which leaves decay. Default all.
      scale: its root multiplies the direction, >= 0. Default 128 (paper).
      update_interval: steps from one projection to the next, >= 1. Default 200 (official code).
      projection: as in `gk.apollo`. Default "random" (official code).
      growth_limit: largest factor by which the norm of a direction grows per step, >= 1. Default 1.01 (official code).
      key: of the random projections, as in `gk.apollo`.
      mu_dtype: dtype in which first moments are kept. Default float32.
      layout: which leaves are matrices, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`, as in `gk.apollo`.

    Returns:
      A transformation that needs `params`. State: 2 m words and one number per n x m matrix, n <= m; 2 words per
      parameter of other leaves. Collectives: those of `gk.project_low_rank`.

    Raises:
      ValueError: a hyperparameter outside its range; no key for random projections.

    Example:
      >>> tx = apollo_mini(0.1, key=0)
      >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> u = tx.update(x, tx.init(x), x)[0]
      >>> round(float(u[0, 0] / u[1, 1]), 4), tx.init(x)[0].mu["outputs"].shape  # along the gradient
      (3.0, (1, 2))

    Reference: Zhu et al. APOLLO: SGD-like Memory, AdamW-level Performance. 2024, arXiv 2412.05270.
    """
    return _MINI(
        learning_rate,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        scale=scale,
        update_interval=update_interval,
        projection=projection,
        growth_limit=growth_limit,
        key=key,
        mu_dtype=mu_dtype,
        layout=layout,
        shard=shard,
    )


_MINI = preset(apollo, "apollo_mini", "APOLLO of rank 1.", fixed={"rank": 1, "scale_type": "tensor"})

SHARED: dict[str, Any] = {"form": "optimizer", "paper": PAPER, "collectives": "matrices", "example": {"key": 0}}

register(
    apollo,
    **SHARED,
    words=2,
    golden=("modern/apollo",),
    notes="2 r m words and one number per n x m matrix; the words above are at r = n",
    race=Race(1e-2, {"key": 0, "rank": 16}),
)
register(
    apollo_mini,
    **SHARED,
    golden=("modern/apollo_mini",),
    notes="2 m words and one number per n x m matrix, n <= m",
    race=Race(1e-3, {"key": 0}),
)
