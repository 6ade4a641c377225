"""The direction of PSGD Kron: a preconditioner for every axis of a tensor, learned so that the result is white."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import ema
from gradkit.engine.blocks import factor_sources
from gradkit.engine.core import at_count, bias_correction, increment, transformation
from gradkit.engine.fields import init_fields
from gradkit.engine.keys import NoKey, check_key, first_key, next_key
from gradkit.engine.kronecker import BY_LAYOUT
from gradkit.engine.mapping import map_stacks
from gradkit.engine.owned import numbers
from gradkit.engine.parts import beside, counted, like
from gradkit.engine.planning import as_tensors, plan_stacks
from gradkit.engine.refreshes import failures, refreshed
from gradkit.engine.shards import MatrixSharding, check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout
from gradkit.linalg.psgd import Factors, balanced, whiten, whiten_back
from gradkit.linalg.psgd import refreshed as learned
from gradkit.types import DTypeLike, Key, Scalar, ScalarOrSchedule

PAPER = Paper(
    "Curvature-Informed SGD via General Purpose Lie-Group Preconditioners", "Pooladzandi, Li", 2024, "2402.04553"
)
METHOD = "scale_by_kron"
RMS_LIMIT = 1.1
MOST_AXES = 13
MODES = (None, "one_diag", "all_diag")


def fading(count: Any) -> jax.Array:
    """The default p(t): 1 for 500 steps, then falling to 0.03 within 3500 more."""
    t = jnp.asarray(count).astype(jnp.result_type(float)) + 1
    return jnp.clip(jnp.exp(-0.001 * (t - 500)), 0.03, 1.0)


class Own(NamedTuple):
    """The state of the tensors of a stack: the momentum; per axis a factor (d, d), or (d, 1) where it is diagonal; how
    often factors came out not finite, and were not used."""

    mu: Any
    Q: tuple[Any, ...]
    failed: Any


class ScaleByKronState(NamedTuple):
    """Number of updates made, and number since the last refresh; the random key; the fields of `Own`, mu of the shape
    of a parameter, Q by its axes; with `shard`, by stacks of equal tensors, each sharded over its owners."""

    count: jax.Array
    since: jax.Array
    key: Any
    mu: Any
    Q: Any
    failed: Any

    @property
    def metrics(self) -> dict[str, jax.Array]:
        """What `gk.diagnostics.metrics` reads."""
        return failures(self.failed)


def scale_by_kron(
    *,
    b1: Scalar = 0.9,
    precond_lr: Scalar = 0.1,
    precond_init_scale: Scalar = 1.0,
    update_probability: ScalarOrSchedule | None = None,
    max_dim: int = 8192,
    min_ndim_triangular: int = 2,
    memory_save_mode: str | None = None,
    momentum_into_precond_update: bool = True,
    balance_probability: Scalar = 0.01,
    key: Key | None = None,
    probe: Any = None,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Whitens the momentum by a Kronecker product that is learned.

    Equations, with the corrected momentum m^_t, and u_t from the factors after the refresh:

        m_t = b1 m_{t-1} + (1 - b1) g_t,    m^_t = m_t / (1 - b1^t)
        u_t = (Q_1^T Q_1 x ... x Q_k^T Q_k) m^_t
        d_t = u_t / max(1, rms(u_t) / 1.1)

    The factors are refreshed with probability p(t), that is as soon as 1 / p(t) steps have passed since the last
    refresh, with V standard normal and G = m^_t (or g_t without `momentum_into_precond_update`):

        p(t) = min(max(exp(-0.001 (t - 500)), 0.03), 1)
        G    = G + sqrt(eps) mean|G| V                                          eps of float32
        A    = (Q_1 x ... x Q_k) G,    C = (Q_1^-T x ... x Q_k^-T) V
        T1_i, T2_i = A A, C C contracted over all axes but i
        Q_i  = Q_i - precond_lr / |T1_i + T2_i| triu(T1_i - T2_i) Q_i           |.| a lower bound of the norm
        q_i  = q_i - precond_lr / max|T1_i + T2_i| (T1_i - T2_i) q_i            where Q_i = diag(q_i)

    Every layer of a stack is a tensor of its own. Vectors have diagonal factors. Tensors of one shape are processed in
    one batch.

    Args:
      b1: decay of the momentum, in [0, 1). Default 0.9 (official code).
      precond_lr: step size of the factors, > 0. Default 0.1 (official code).
      precond_init_scale: scale of the product of the first factors, > 0. Default 1 (official code).
      update_probability: fraction of steps that refresh, in (0, 1], or a schedule. Default None: p(t).
      max_dim: axes longer than this have a diagonal factor, >= 0. Default 8192 (official code).
      min_ndim_triangular: tensors of fewer axes have diagonal factors, >= 0. Default 2 (official code).
      memory_save_mode: None; "one_diag": the longest axis is diagonal; "all_diag". Default None.
      momentum_into_precond_update: whether the factors are learned from the momentum or from the gradient. Default
        True (official code).
      balance_probability: fraction of refreshes at which the factors of a tensor are rescaled to equal size, in [0, 1];
        their product does not change. Default 0.01 (official code). Only where there is a key.
      key: a typed key or integer, from which the keys of all steps are derived. Default None: `update` needs `key=`,
        which takes precedence where both are given.
      probe: V of every step instead of draws, a tree like the parameters, or step -> tree. Default None. An extra
        argument `probe` of `update` takes precedence.
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are stacks: every layer of a scan has its own factors.
      shard: a `gk.MatrixSharding`: over which devices work and state are distributed, as in `gk.muon`. Default None.

    Returns:
      A transformation. State: 1 word per parameter, and per axis of a tensor d^2 words, or d; all of it on the owner
      device of the tensor, which draws its V too. The metric `failed_refreshes`. Collectives: those of `scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf of more than 13 axes besides stacks; no key.

    Example:
      >>> tx = scale_by_kron(b1=0.0, update_probability=1.0, precond_lr=0.01, key=jax.random.key(0))
      >>> g = jnp.full(4, 100.0)
      >>> state, update = tx.init(g), jax.jit(tx.update)
      >>> for _ in range(800):
      ...     u, state = update(g, state)
      >>> bool(jnp.all(jnp.abs(u - 1) < 0.3))  # white: of size 1, whatever the size of the gradient
      True

    Reference: Pooladzandi, Li. Curvature-Informed SGD via General Purpose Lie-Group Preconditioners. 2024, arXiv
    2402.04553; Li. Preconditioned Stochastic Gradient Descent. 2015, arXiv 1512.04202. Departure: a refresh that is not
    finite is skipped, tensor by tensor, and counted.
    """
    checks.layout(layout)
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("b1", b1, "[0, 1)")
    checks.real("precond_lr", precond_lr, "(0, inf)")
    checks.real("precond_init_scale", precond_init_scale, "(0, inf)")
    checks.real("update_probability", update_probability, "(0, 1]", optional=True, schedule=True)
    max_dim = checks.integer("max_dim", max_dim)
    min_ndim_triangular = checks.integer("min_ndim_triangular", min_ndim_triangular)
    checks.choice("memory_save_mode", memory_save_mode, MODES)
    checks.choice("momentum_into_precond_update", momentum_into_precond_update, (True, False))
    checks.real("balance_probability", balance_probability, "[0, 1]")
    check_key(key)
    check_shard(shard)
    if isinstance(probe, str | int | float) or type(probe) is object:
        raise ValueError(f"probe must be a tree like the parameters, a function step -> tree, or None, got {probe!r}")
    schedule: Any = fading if update_probability is None else update_probability

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, make, method=METHOD, layout=layout, shard=shard, view=as_tensors)

    def make(rows: int, dims: tuple[int, ...], dtype: Any, _: Any) -> Own:
        if len(dims) > MOST_AXES:
            raise ValueError(
                f"{METHOD}: a tensor of shape {dims} has {len(dims)} axes; at most {MOST_AXES} have factors"
            )
        size = jnp.asarray(precond_init_scale).astype(dtype) ** (1 / len(dims))
        groups, Q = [(a,) for a in range(len(dims))], []
        for axis, (d, diagonal) in enumerate(zip(dims, diagonals(dims), strict=True)):
            one = jnp.ones((d, 1), dtype) if diagonal else jnp.eye(d, dtype=dtype)
            Q.append(beside(jnp.tile(size * one[None], (rows, 1, 1)), factor_sources(groups, axis)))
        return Own(like(jnp.zeros((rows, *dims), mu_dtype or dtype)), tuple(Q), counted(rows))

    def diagonals(dims: tuple[int, ...]) -> list[bool]:
        """Whether the factor of each axis is diagonal."""
        few, longest = len(dims) < min_ndim_triangular or memory_save_mode == "all_diag", int(np.argsort(dims)[-1])
        one = longest if memory_save_mode == "one_diag" else None
        return [few or d == 1 or d > max_dim or axis == one for axis, d in enumerate(dims)]

    def kernel(g: jax.Array, own: Own, at: Any, number: jax.Array, *probes: jax.Array) -> tuple[jax.Array, Own]:
        mu = ema(own.mu, g, at["b1"])
        m = mu.astype(g.dtype) / bias_correction(at["b1"], at["t"], g)

        def fresh(given: Any, Q: Factors) -> Factors:
            x, places, *V = given
            V = V[0] if V else drawn(at["key"], places, x)
            if at["balance"] is not None and len(Q) > 1:
                Q = [jnp.where(at["balance"], b, q) for b, q in zip(jax.vmap(balanced)(Q), Q, strict=True)]
            return tuple(jax.vmap(learned, (0, 0, 0, None))(tuple(Q), x, V, jnp.asarray(at["rate"]).astype(x.dtype)))

        x = m if momentum_into_precond_update else g
        Q, failed = refreshed(at["due"], fresh, (x, number, *probes), own.Q, own.failed)
        return jax.vmap(_direction)(Q, m), Own(mu, Q, failed)

    def init(params: optax.Params) -> ScaleByKronState:
        zero = jnp.zeros((), jnp.int32)
        return ScaleByKronState(zero, jnp.zeros_like(zero), first_key(key), **init_fields(planned(params), params))

    def update(updates: Any, state: ScaleByKronState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        t, (kept, now) = increment(state.count), next_key(METHOD, state.key, extra.get("key"))
        since = increment(state.since)
        probability = at_count(schedule, state.count, f"{METHOD}: update_probability")
        due = since.astype(jnp.float32) >= 1 / jnp.asarray(probability).astype(jnp.float32)
        given = extra.get("probe")
        given = (probe(state.count) if callable(probe) else probe) if given is None else given
        if given is None and now is None:
            raise NoKey(METHOD)
        balance = None
        if now is not None:
            now, other = jax.random.split(now)
            chance = jax.random.uniform(other)
            balance = chance < jnp.asarray(balance_probability).astype(chance.dtype)
        at = {"b1": b1, "t": t, "rate": precond_lr, "due": due, "key": now, "balance": balance}
        more = [] if given is None else [jax.tree.map(lambda v, g: jnp.asarray(v).astype(g.dtype), given, updates)]
        plan, fields = planned(updates), {f: getattr(state, f) for f in Own._fields}
        d, fields = map_stacks(plan, kernel, updates, fields, at, more=more, marks=numbers(plan))
        return d, ScaleByKronState(t, jnp.where(due, jnp.zeros_like(since), since), kept, **fields)

    return transformation(METHOD, init, update)


def drawn(key: jax.Array, number: jax.Array, like: jax.Array) -> jax.Array:
    """V of every tensor, from its number in the tree; 0 for padding, whose factors then do not change."""

    def one(i: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, jnp.maximum(i, 0)), like.shape[1:], like.dtype)

    V = jax.vmap(one)(number)
    return jnp.where((number < 0).reshape(-1, *[1] * (V.ndim - 1)), jnp.zeros_like(V), V)


def _direction(factors: Factors, m: jax.Array) -> jax.Array:
    u = whiten_back(factors, whiten(factors, m))
    return u / jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(u))) / RMS_LIMIT, 1)


NOT_STACKED = "the probes of ten layers in one leaf have the distribution of those of ten leaves, but are not equal"
SHARED: dict[str, Any] = {
    "paper": PAPER,
    "needs": ("key",),
    "words": 3,
    "collectives": "matrices",
    "golden": ("matrix/psgd_kron",),
    "opt_outs": BY_LAYOUT | {"stacked": NOT_STACKED},
    "notes": "words of a square matrix",
}
register(scale_by_kron, form="primitive", **SHARED, same_as="kron")
