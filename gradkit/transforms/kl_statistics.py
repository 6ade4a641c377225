"""The second moments of KL-Shampoo: those of every axis of a tensor, whitened by the other axes.

The equations are in the docstring of `gk.kl_shampoo`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine import kl
from gradkit.engine.core import increment, transformation
from gradkit.engine.fields import init_fields
from gradkit.engine.kronecker import BY_LAYOUT
from gradkit.engine.mapping import map_stacks
from gradkit.engine.owned import phases
from gradkit.engine.parts import counted
from gradkit.engine.planning import as_tensors, plan_stacks
from gradkit.engine.refreshes import due, failures, refreshed
from gradkit.engine.shards import MatrixSharding, check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout
from gradkit.types import Scalar

PAPER = Paper(
    "Understanding and Improving Shampoo and SOAP via Kullback-Leibler Minimization", "Lin et al.", 2025, "2509.03378"
)


class Own(NamedTuple):
    """What belongs to the tensors of a stack: the fields of `kl.Factors`; how often bases came out not finite, and were
    not taken."""

    S: Any
    Q: Any
    r: Any
    failed: Any


class KLStatisticsState(NamedTuple):
    """Number of updates made; of every parameter by its axes the second moments, bases and inverse roots of
    eigenvalues. With `shard`, by stacks of equal tensors, each with its owners."""

    count: jax.Array
    S: Any
    Q: Any
    r: Any
    failed: Any

    @property
    def metrics(self) -> dict[str, jax.Array]:
        """What `gk.diagnostics.metrics` reads."""
        return failures(self.failed)


def check_kl(
    *,
    shampoo_beta: Any,
    eps: Any,
    update_interval: Any,
    stagger: Any,
    init_factor: Any,
    eigenvalues: Any,
    max_inverse_root: Any,
    damping: Any,
    max_dim: Any,
    shard: Any,
) -> tuple[int, int | None, int]:
    """The whole numbers among the arguments that these methods share: update_interval, max_inverse_root, max_dim.

    Raises:
      ValueError: one of the arguments is outside its range.
    """
    checks.real("shampoo_beta", shampoo_beta, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    update_interval = checks.integer("update_interval", update_interval, 1)
    checks.switch(stagger=stagger)
    checks.real("init_factor", init_factor, "(0, inf)")
    checks.choice("eigenvalues", eigenvalues, kl.EIGENVALUES)
    max_inverse_root = checks.integer("max_inverse_root", max_inverse_root, 1, optional=True)
    checks.real("damping", damping, "[0, inf)")
    max_dim = checks.integer("max_dim", max_dim, 1)
    check_shard(shard)
    return update_interval, max_inverse_root, max_dim


def kl_statistics(
    *,
    shampoo_beta: Scalar = 0.98,
    eps: Scalar = 1e-8,
    update_interval: int = 10,
    stagger: bool = False,
    init_factor: Scalar = 0.1,
    eigenvalues: str = "ema",
    max_inverse_root: int | None = 4000,
    damping: Scalar = 0.0,
    max_dim: int = 10000,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Keeps the second moments of every axis of a tensor, each whitened by the other axes; updates pass unchanged.

    The first call only makes S_i = (1 - beta) G G^T / p and its eigenvectors Q_i, and its update is 0;
    r_i = init_factor^(-1/2) then. Afterwards, for an n x p matrix G, beta = shampoo_beta, all from before the call:

        G' = Q_1^T G Q_2
        S_1 = beta S_1 + (1 - beta) Y Y^T / p,   Y = G Q_2 diag(r_2);   S_2 with the sides exchanged
        r_1^(-2) = beta r_1^(-2) + (1 - beta) mean over columns of (G' diag(r_2))^2;   r_2 likewise
        every `update_interval` calls Q_i = qr(S_i Q_i).Q

    S_1 and S_2 tend to the Kronecker product that is nearest to the covariance of G in the Kullback-Leibler
    divergence: for G = A Z C^T with Z of independent standard normal entries, to A A^T and C C^T, up to a factor that
    moves between them. A tensor of more axes has every other axis whitened. Layers stacked for a scan and fused weights
    (`splits` of the layout) are tensors of their own.

    Args:
      shampoo_beta: decay of the second moments and of their eigenvalues, in [0, 1). Default 0.98 (official code).
      eps: the least eigenvalue of "rayleigh", >= 0. Default 1e-8.
      update_interval: steps between two refreshes of the bases, >= 1. Default 10 (official code).
        Others call it precondition_frequency.
      stagger: whether every tensor has a step of its own to refresh its bases, so that the work is spread over the
        steps. Default False (official code): all at once.
      init_factor: the eigenvalues at the start, > 0. Default 0.1 (official code).
      eigenvalues: "ema": running means of their own (official code); "rayleigh": the diagonal of Q^T S Q (heavyball,
        NVIDIA). Default "ema".
      max_inverse_root: the largest inverse root of an eigenvalue is max(10, min(d, max_inverse_root)) for an axis of
        length d. Default 4000 (official code); None: there is no limit.
      damping: added to the second moment of an axis, times the mean squares of the inverse roots of the others, >= 0.
        Default 0 (official code).
      max_dim: longer axes have no basis, and eigenvalues of their own entries. Default 10000. Others call it
        max_precond_dim.
      layout: which axes are stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are spread, as in `gk.muon`. Default None.

    Returns:
      A transformation. State: per tensor twice the sum of the squares of the lengths of its axes, and their sum.
      Collectives: those of `scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> tx = kl_statistics(shampoo_beta=0.5)
      >>> g = jnp.array([[0.0, 2.0], [1.0, 0.0]])
      >>> _, state = tx.update(g, tx.init(g))
      >>> {axis: S.tolist() for axis, S in state.S.items()}
      {'0': [[1.0, 0.0], [0.0, 0.25]], '1': [[0.25, 0.0], [0.0, 1.0]]}

    Reference: Lin et al. Understanding and Improving Shampoo and SOAP via Kullback-Leibler Minimization. 2025,
    arXiv 2509.03378.
    """
    checks.layout(layout)
    update_interval, max_inverse_root, max_dim = check_kl(
        shampoo_beta=shampoo_beta,
        eps=eps,
        update_interval=update_interval,
        stagger=stagger,
        init_factor=init_factor,
        eigenvalues=eigenvalues,
        max_inverse_root=max_inverse_root,
        damping=damping,
        max_dim=max_dim,
        shard=shard,
    )
    interval = update_interval if stagger else None

    def make(rows: int, dims: tuple[int, ...], dtype: Any, _: Any) -> Own:
        return Own(*kl.made(rows, dims, dtype, max_dim, init_factor), counted(rows))

    def kernel(G: jax.Array, own: Own, at: Any, phase: Any) -> tuple[jax.Array, Own]:
        start = at["c"] == 0
        old = kl.Factors(own.S, own.Q, own.r)
        more = {"eigenvalues": eigenvalues, "eps": at["eps"], "damping": at["damping"], "most": max_inverse_root}
        new = kl.later(old, G, kl.into(own.Q, G), at["beta"], **more)
        at_start = kl.moments(old, G, at["beta"])
        S, r = jax.tree.map(lambda x, y: jnp.where(start, x, y), (at_start, own.r), (new.S, new.r))
        Q, failed = refreshed(start, lambda S, _: kl.first_bases(S), S, own.Q, own.failed)
        now = ~start & due(at["c"], 0, update_interval, phase)
        Q, failed = refreshed(now, kl.next_bases, S, Q, failed)
        return G, Own(S, Q, r, failed)

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, make, method="kl_statistics", layout=layout, shard=shard, view=as_tensors)

    def init(params: optax.Params) -> KLStatisticsState:
        return KLStatisticsState(jnp.zeros((), jnp.int32), **init_fields(planned(params), params))

    def update(updates: Any, state: KLStatisticsState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        fields = state._asdict()
        at = {"c": fields.pop("count"), "beta": shampoo_beta, "eps": eps, "damping": damping}
        plan = planned(updates)
        _, fields = map_stacks(plan, kernel, updates, fields, at, marks=phases(plan, interval))
        return updates, KLStatisticsState(increment(state.count), **fields)

    return transformation("kl_statistics", init, update)


register(
    kl_statistics,
    form="primitive",
    paper=PAPER,
    words=4,
    collectives="matrices",
    opt_outs=BY_LAYOUT,
)
