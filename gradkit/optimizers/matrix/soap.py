"""SOAP: Adam in the eigenbasis of Shampoo's statistics."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.blocks import factor_sources, merged_axes
from gradkit.engine.core import bias_correction as correction
from gradkit.engine.core import divide, increment, optimizer, scalar, transformation
from gradkit.engine.fields import init_fields
from gradkit.engine.kronecker import (
    BY_LAYOUT,
    along_all,
    first_bases,
    merge_forwards,
    next_bases,
    reorder,
    statistic,
    transposes,
)
from gradkit.engine.mapping import map_stacks
from gradkit.engine.owned import phases
from gradkit.engine.parts import beside, counted, like
from gradkit.engine.planning import as_tensors, plan_stacks
from gradkit.engine.refreshes import due, failures, refreshed
from gradkit.engine.shards import check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout, Method
from gradkit.transforms import MatrixSharding, add_decayed_weights, scale_by_learning_rate
from gradkit.types import Mask, Scalar, ScalarOrSchedule

PAPER = Paper("SOAP: Improving and Stabilizing Shampoo using Adam", "Vyas et al.", 2024, "2409.11321")


class Own(NamedTuple):
    """The state of the tensors of a stack: per axis a statistic and a basis, None where it is not rotated; in the bases
    the mean of the gradient and the second moment; how often bases came out not finite, and were not used."""

    S: tuple[Any, ...]
    Q: tuple[Any, ...]
    mu: Any
    nu: Any
    failed: Any


class ScaleBySoapState(NamedTuple):
    """Number of updates made, of which the first is zero; and the fields of `Own`: S and Q of a parameter by its axes,
    mu and nu of its shape. With `shard`, by stacks of equal tensors, each sharded over its owners."""

    count: jax.Array
    S: Any
    Q: Any
    mu: Any
    nu: Any
    failed: Any

    @property
    def metrics(self) -> dict[str, jax.Array]:
        """What `gk.diagnostics.metrics` reads."""
        return failures(self.failed)


def _moments(S: Sequence[jax.Array | None], G: jax.Array, beta: Any) -> tuple[jax.Array | None, ...]:
    """The statistics after this gradient."""
    return tuple(None if s is None else ema(s, statistic(G, axis), beta) for axis, s in enumerate(S))


def scale_by_soap(
    *,
    b1: Scalar = 0.95,
    b2: Scalar = 0.95,
    shampoo_beta: Scalar | None = None,
    eps: Scalar = 1e-8,
    update_interval: int = 10,
    stagger: bool = False,
    max_dim: int = 10000,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    normalize_grads: bool = False,
    bias_correction: bool = True,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam's direction in a slowly rotating eigenbasis, in which the coordinates of gradients are least correlated.

    Equations: G', m, v, u, d, S_i and Q_i of `soap`. The first update is 0: it only computes the bases. A tensor
    without rotated axes has Adam's direction from the second step on. Layers stacked for a scan and fused weights
    (`splits` of the layout) are tensors of their own.

    Args:
      b1: decay of the first moment, in [0, 1). Default 0.95 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.95 (official code).
      shampoo_beta: decay of the statistics, in [0, 1). Default None: b2 (official code).
      eps: added to the root before bias correction, >= 0. Default 1e-8 (official code). With 0, coordinates whose
        second moment is 0 get 0.
      update_interval: steps between two refreshes of the bases, >= 1. Default 10 (official code).
      stagger: whether every tensor has a step of its own to refresh its bases, so that the work is spread over the
        steps; the bases that are due are computed one after another. Default False (official code): all at once.
      max_dim: longer axes are not rotated. Default 10000 (official code).
      merge_dims: whether axes are joined, from the first to the last, while their product is at most `max_dim`.
        Default False (official code).
      precondition_1d: whether vectors are rotated too. Default False (official code).
      normalize_grads: whether the direction of a tensor is divided by its root mean square, before bias correction.
        Default False (official code).
      bias_correction: whether the direction is multiplied by sqrt(1 - b2^c) / (1 - b1^c). Default True (official code).
        With `normalize_grads` the root mean square of the direction is this factor: 4.47 at c = 1 with the default
        decays, and 1 in the limit.
      layout: which axes are stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are distributed, as in `gk.muon`. Default None.

    Returns:
      A transformation. State: 2 words per parameter, and per tensor twice the sum of the squares of the lengths of its
      rotated axes; all of it on the owner device of the tensor. The metric `failed_refreshes` counts bases that came
      out not finite: the last finite ones are kept. Collectives: those of `scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> tx = scale_by_soap(eps=0.0)
      >>> g = jnp.array([[0.0, 3.0], [-0.1, 0.0]])
      >>> zero, state = tx.update(g, tx.init(g))
      >>> print(zero.tolist(), tx.update(g, state)[0].round(3).tolist())
      [[0.0, 0.0], [0.0, 0.0]] [[0.0, 1.0], [-1.0, 0.0]]

    Reference: Vyas et al. SOAP: Improving and Stabilizing Shampoo using Adam. 2024, arXiv 2409.11321. Departure: signs
    of eigenvectors are fixed, which does not change the numbers.
    """
    checks.layout(layout)
    checks.switch(
        merge_dims=merge_dims,
        precondition_1d=precondition_1d,
        normalize_grads=normalize_grads,
        bias_correction=bias_correction,
    )
    checks.real("b1", b1, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    checks.real("shampoo_beta", shampoo_beta, "[0, 1)", optional=True)
    checks.real("eps", eps, "[0, inf)")
    update_interval = checks.integer("update_interval", update_interval, 1)
    checks.choice("stagger", stagger, (True, False))
    max_dim = checks.integer("max_dim", max_dim, 1)
    check_shard(shard)
    beta = b2 if shampoo_beta is None else shampoo_beta
    interval = update_interval if stagger else None

    def merged(dims: tuple[int, ...]) -> tuple[int, ...]:
        return merge_forwards(dims, max_dim) if merge_dims and len(dims) > 1 else dims

    def rotated(dims: tuple[int, ...]) -> list[bool]:
        """Whether each axis of a merged tensor is rotated."""
        plain = len(dims) == 1 and not precondition_1d
        return [d <= max_dim and not plain for d in merged(dims)]

    def make(rows: int, dims: tuple[int, ...], dtype: Any, _: Any) -> Own:
        whole, groups = merged(dims), merged_axes(dims, merged(dims))
        S: list[Any] = [None] * len(whole)
        Q = list(S)
        for i, on in enumerate(rotated(dims)):
            if on:
                sources, d = factor_sources(groups, i), whole[i]
                S[i] = beside(jnp.zeros((rows, d, d), dtype), sources)
                Q[i] = beside(jnp.tile(jnp.eye(d, dtype=dtype)[None], (rows, 1, 1)), sources)
        mu, nu = (like(jnp.zeros((rows, *whole), dtype)) for _ in range(2))
        return Own(tuple(S), tuple(Q), mu, nu, counted(rows))

    def kernel(x: jax.Array, own: Own, at: Any, phase: Any) -> tuple[jax.Array, Own]:
        G, first = x.reshape(-1, *merged(x.shape[1:])), at["c"] == 0
        # The first call discards its direction, which must still be finite: c is at least 1.
        c = jnp.maximum(at["c"], 1)
        rotated_G = along_all(transposes(own.Q), G)
        mu, nu = ema(own.mu, rotated_G, at["b1"]), ema(own.nu, jnp.square(rotated_G), at["b2"])
        u = divide(mu, jnp.sqrt(nu) + scalar(at["eps"], G))
        u = along_all(own.Q, u)
        if normalize_grads:
            u = u / (1e-30 + jnp.sqrt(jnp.mean(jnp.square(u), axis=tuple(range(1, u.ndim)), keepdims=True)))
        if bias_correction:  # After the division by the root mean square, which would cancel it.
            u = u * (jnp.sqrt(correction(at["b2"], c, G)) / correction(at["b1"], c, G))
        u, mu, nu = (jnp.where(first, jnp.zeros_like(y), y) for y in (u, mu, nu))
        S = _moments(own.S, G, at["beta"])

        def into_next_bases(S: Any, old: Any) -> Any:
            before, mu, nu = old
            Q, orders = next_bases(S, before)
            return Q, along_all(transposes(Q), along_all(before, mu)), reorder(nu, orders)

        Q, failed = refreshed(first, lambda S, _: first_bases(S), S, own.Q, own.failed)
        now = ~first & due(at["c"], 0, update_interval, phase)
        (Q, mu, nu), failed = refreshed(now, into_next_bases, S, (Q, mu, nu), failed)
        return u.reshape(x.shape), Own(S, Q, mu, nu, failed)

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, make, method="scale_by_soap", layout=layout, shard=shard, view=as_tensors)

    def init(params: optax.Params) -> ScaleBySoapState:
        return ScaleBySoapState(jnp.zeros((), jnp.int32), **init_fields(planned(params), params))

    def update(updates: Any, state: ScaleBySoapState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        c, fields = state.count, state._asdict()
        del fields["count"]
        at = {"c": c, "b1": b1, "b2": b2, "beta": beta, "eps": eps}
        plan = planned(updates)
        d, fields = map_stacks(plan, kernel, updates, fields, at, marks=phases(plan, interval))
        return d, ScaleBySoapState(increment(c), **fields)

    return transformation("scale_by_soap", init, update)


def soap(
    learning_rate: ScalarOrSchedule = 3e-3,
    *,
    b1: Scalar = 0.95,
    b2: Scalar = 0.95,
    shampoo_beta: Scalar | None = None,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.01,
    weight_decay_mask: Mask | None = None,
    update_interval: int = 10,
    stagger: bool = False,
    max_dim: int = 10000,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    normalize_grads: bool = False,
    bias_correction: bool = True,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SOAP, for all leaves: Adam in the eigenbasis of Shampoo's statistics.

    The first call only computes the bases: S_i = (1 - beta) S_i(G) with the eigenvectors Q_i, and the update is 0. From
    then on, with c the number of earlier calls, for a tensor G of which some axes i are rotated:

        G'  = G rotated into the eigenbases: Q_i^T along every such axis
        m   = b1 m + (1 - b1) G'                                      both moments in the eigenbases
        v   = b2 v + (1 - b2) G'^2
        u   = m / (sqrt(v) + eps) rotated back: Q_i along every such axis
        d   = sqrt(1 - b2^c) / (1 - b1^c) u
        x   = x - learning_rate (d + weight_decay x)
        S_i = beta S_i + (1 - beta) S_i(G)                            S_i(G) = G contracted with itself over other axes
        Q_i = qr(S_i Q_i[:, order]).Q  where update_interval divides c;    order = diag(Q_i^T S_i Q_i) descending

    With `normalize_grads` u is divided by its root mean square before bias correction; without `bias_correction`,
    d = u. When Q_i is refreshed, v is put into the same order along axis i, and m is rotated from the old bases into
    the new. With `stagger` a tensor is refreshed where update_interval divides c + a phase of its own.

    The first direction is 0; weight decay acts from the first step on.

    Args:
      learning_rate: step size >= 0, or a schedule. Default 3e-3 (official code).
      b1: decay of the first moment, in [0, 1). Default 0.95 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.95 (official code).
      shampoo_beta: decay of the statistics, in [0, 1). Default None: b2 (official code).
      eps: added to the root before bias correction, >= 0. Default 1e-8 (official code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.01 (official code).
      weight_decay_mask: which leaves decay. Default all.
      update_interval: steps between two refreshes of the bases, >= 1. Default 10 (official code).
      stagger: whether every tensor has a step of its own to refresh its bases, as in `scale_by_soap`. Default False
        (official code): all at once.
      max_dim: longer axes are not rotated. Default 10000 (official code).
      merge_dims: whether axes are joined first. Default False (official code).
      precondition_1d: whether vectors are rotated too. Default False (official code).
      normalize_grads: whether the direction of a tensor is divided by its root mean square, before bias correction.
        Default False (official code).
      bias_correction: whether the direction is multiplied by sqrt(1 - b2^c) / (1 - b1^c). Default True (official code).
      layout: which axes are stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are distributed. Default None.

    Returns:
      A transformation that needs `params` where leaves decay. State and collectives: those of `scale_by_soap`.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> tx = soap(0.1, weight_decay=0.0)
      >>> x = {"bias": jnp.ones(2), "kernel": jnp.eye(2)}
      >>> _, state = tx.update(x, tx.init(x), x)
      >>> print(tx.update(x, state, x)[0]["bias"].round(3))  # the first update is 0
      [-0.1 -0.1]

    Reference: Vyas et al. SOAP: Improving and Stabilizing Shampoo using Adam. 2024, arXiv 2409.11321. Departure: the
    official code decays after the step, x (1 - learning_rate weight_decay), and not in the first step, which it skips;
    here decay is a link of the chain as in all methods, a difference of learning_rate^2 weight_decay times the
    direction.
    """
    return optimizer(
        Method("soap", learning_rate, weight_decay, weight_decay_mask),
        scale_by_soap(
            b1=b1,
            b2=b2,
            shampoo_beta=shampoo_beta,
            eps=eps,
            update_interval=update_interval,
            stagger=stagger,
            max_dim=max_dim,
            merge_dims=merge_dims,
            precondition_1d=precondition_1d,
            normalize_grads=normalize_grads,
            bias_correction=bias_correction,
            layout=layout,
            shard=shard,
        ),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(
    scale_by_soap,
    form="primitive",
    paper=PAPER,
    words=6,
    collectives="matrices",
    opt_outs=BY_LAYOUT,
    notes="the first update is zero: it only makes the bases",
)
register(
    soap,
    form="optimizer",
    paper=PAPER,
    words=6,
    collectives="matrices",
    golden=("matrix/soap",),
    opt_outs=BY_LAYOUT,
    notes="the first update is zero: it only makes the bases",
    race=Race(5e-3),
)
