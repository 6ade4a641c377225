"""PSGD Kron with the Procrustes step: momentum, whitened by factors that stay nearly symmetric; matrix products alone.

m = b1 m + (1 - b1) g;   h = m + (damping + 1e-7 |m|) N(0, 1);   P = Q_1^T Q_1 h Q_2^T Q_2
for every axis i of length d_i, with z = entries / d_i and C = P P^T (i = 1), P^T P (i = 2):
    l = |C|_2 + z;   L_i = max(beta_lip L_i + (1 - beta_lip) l, l)
    Q_i = Q_i - (rate / L_i) (C Q_i - z Q_i),   rate = max(precond_lr / sqrt(1 + t / precond_warmup), min_precond_lr)
    R = (Q_i^T - Q_i) / max(|Q_i^T - Q_i|_2, 1e-8);   A = R Q_i;   B = R A
    a = clip(-tr A / tr B, 0, 1/8) where tr B < 0, else 1/8;   Q_i = Q_i + a (A + a B / 2)       towards a symmetric Q_i
then the largest entries of all Q_i are made equal;   u = Q_1^T Q_1 m Q_2^T Q_2
x = x - learning_rate (u + weight_decay x)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.blocks import factor_sources
from gradkit.engine.core import increment, optimizer, scalar, transformation
from gradkit.engine.fields import init_fields
from gradkit.engine.keys import NoKey, check_key, first_key, next_key
from gradkit.engine.kronecker import BY_LAYOUT
from gradkit.engine.mapping import map_stacks
from gradkit.engine.owned import numbers
from gradkit.engine.parts import beside, counted, like
from gradkit.engine.planning import as_tensors, plan_stacks
from gradkit.engine.refreshes import failures, refreshed
from gradkit.engine.shards import check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout, Method
from gradkit.linalg.procrustes import NORMS, learned
from gradkit.linalg.psgd import balanced, whiten, whiten_back
from gradkit.transforms import MatrixSharding, add_decayed_weights, scale_by_learning_rate
from gradkit.types import Key, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("Stochastic Hessian Fittings with Lie Groups", "Li", 2024, "2402.11858")
METHOD = "scale_by_psgd_pro"


class Own(NamedTuple):
    """What belongs to the tensors of a stack: the momentum; per axis a factor, (d, d), or (d, 1) where it is diagonal,
    and a running maximum of norms; how often factors came out not finite, and were not taken."""

    mu: Any
    Q: tuple[Any, ...]
    L: tuple[Any, ...]
    failed: Any


class ScaleByPsgdProState(NamedTuple):
    """Number of updates made; the random key, where there is one; the fields of `Own`, mu like a parameter, Q and L by
    its axes; with `shard`, by stacks of equal tensors, each with its owners."""

    count: jax.Array
    key: Any
    mu: Any
    Q: Any
    L: Any
    failed: Any

    @property
    def metrics(self) -> dict[str, jax.Array]:
        """What `gk.diagnostics.metrics` reads."""
        return failures(self.failed)


def _directions(Q: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """Q^T Q on every axis, of every tensor."""
    return jax.vmap(lambda Q, x: whiten_back(Q, whiten(Q, x)))(tuple(Q), x)


def scale_by_psgd_pro(
    *,
    b1: Scalar = 0.9,
    precond_lr: Scalar = 0.1,
    min_precond_lr: Scalar = 0.01,
    precond_warmup: int = 10000,
    beta_lip: Scalar = 0.9,
    init_scale: Scalar = 1.0,
    damping: Scalar = 0.1,
    norm: str = "bound",
    max_dim: int = 8192,
    update_clip: Scalar | None = None,
    key: Key | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Whitens the momentum by a Kronecker product that is learned, with factors that are rotated to be symmetric.

    For an n x p matrix, t the number of earlier steps; m, Q_i and L_i (1 at first) are kept:

        m = b1 m + (1 - b1) g;   h = m + (damping + 1e-7 |m|) N(0, 1);   P = Q_1^T Q_1 h Q_2^T Q_2
        for every axis i of length d_i, with z = entries / d_i and C = P P^T (i = 1), P^T P (i = 2):
            l = |C|_2 + z;   L_i = max(beta_lip L_i + (1 - beta_lip) l, l)
            Q_i = Q_i - (rate / L_i) (C Q_i - z Q_i),   rate = max(precond_lr / sqrt(1 + t / precond_warmup),
            min_precond_lr) R = (Q_i^T - Q_i) / max(|Q_i^T - Q_i|_2, 1e-8);   A = R Q_i;   B = R A
            a = clip(-tr A / tr B, 0, 1/8) where tr B < 0, else 1/8;   Q_i = Q_i + a (A + a B / 2)       towards a
            symmetric Q_i
        then the largest entries of all Q_i are made equal;   u = Q_1^T Q_1 m Q_2^T Q_2

    A tensor of more axes has a factor for each. Layers stacked for a scan and fused weights are tensors of their own.
    The step needs matrix products alone (with norm="bound"), and no inverse.

    Args:
      b1: decay of the momentum, in [0, 1). Default 0.9 (official code).
      precond_lr: step size of the factors at the start, > 0. Default 0.1 (official code).
      min_precond_lr: the least step size of the factors, >= 0. Default 0.01 (official code).
      precond_warmup: steps after which the step size of the factors has fallen by sqrt(2), >= 1. Default 10000
        (official code).
      beta_lip: decay of the running maximum of norms, in [0, 1). Default 0.9 (official code).
      init_scale: the factors at the start are this times the identity, > 0. Default 1 (official code).
      damping: size of the noise that is added to the momentum where factors are learned, >= 0. Default 0.1 (official
        code).
      norm: "bound": a lower bound of spectral norms, from 32 random vectors and two double iterations (official code);
        "exact": by a singular value decomposition. Default "bound".
      max_dim: longer axes have a diagonal factor, >= 1; so have vectors. Default 8192 (as `gk.kron`).
      update_clip: the largest root mean square of a direction, > 0. Default None: there is none (official code).
      key: a typed key or integer, from which those of all steps follow. Default None: `update` needs `key=`, unless
        damping=0 and norm="exact".
      layout: which axes are stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are spread, as in `gk.muon`. Default None.

    Returns:
      A transformation. State: 1 word per parameter, and per axis of a tensor d^2 words, or d, and one number; with the
      owner of the tensor. The metric `failed_refreshes`. Collectives: those of `scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range; no key; complex leaves.

    Example:
      >>> tx = scale_by_psgd_pro(b1=0.0, damping=0.0, norm="exact", min_precond_lr=0.1)
      >>> g, update = jnp.diag(jnp.array([10.0, 0.1])), jax.jit(tx.update)
      >>> state = tx.init(g)
      >>> for _ in range(200):
      ...     u, state = update(g, state)
      >>> print(u.round(2))  # white: u u^T = 2 I for 2 x 2
      [[1.41 0.  ]
       [0.   1.41]]

    Reference: Pooladzandi, Li. Curvature-Informed SGD via General Purpose Lie-Group Preconditioners. 2024, arXiv
    2402.04553; Li. Stochastic Hessian Fittings with Lie Groups. 2024, arXiv 2402.11858; PSGDPro of NVIDIA's
    Emerging-Optimizers. Departures: vectors and axes above `max_dim` have diagonal factors; a factor that is not finite
    is not taken.
    """
    checks.layout(layout)
    for name, value in (("b1", b1), ("beta_lip", beta_lip)):
        checks.real(name, value, "[0, 1)")
    for name, value in (("precond_lr", precond_lr), ("init_scale", init_scale)):
        checks.real(name, value, "(0, inf)")
    checks.real("min_precond_lr", min_precond_lr, "[0, inf)")
    precond_warmup = checks.integer("precond_warmup", precond_warmup, 1)
    checks.real("damping", damping, "[0, inf)")
    checks.choice("norm", norm, NORMS)
    max_dim = checks.integer("max_dim", max_dim, 1)
    checks.real("update_clip", update_clip, "(0, inf)", optional=True)
    check_key(key)
    check_shard(shard)
    random = norm == "bound" or not (type(damping) in (int, float) and damping == 0)

    def make(rows: int, dims: tuple[int, ...], dtype: Any, _: Any) -> Own:
        size, groups = jnp.asarray(init_scale).astype(dtype), [(a,) for a in range(len(dims))]
        Q = []
        for axis, d in enumerate(dims):
            one = jnp.ones((d, 1), dtype) if len(dims) < 2 or d > max_dim or d == 1 else jnp.eye(d, dtype=dtype)
            Q.append(beside(jnp.tile(size * one[None], (rows, 1, 1)), factor_sources(groups, axis)))
        L = tuple(beside(jnp.ones((rows,), dtype), ()) for _ in dims)
        return Own(like(jnp.zeros((rows, *dims), dtype)), tuple(Q), L, counted(rows))

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, make, method=METHOD, layout=layout, shard=shard, view=as_tensors)

    def kernel(g: jax.Array, own: Own, at: Any, number: jax.Array) -> tuple[jax.Array, Own]:
        m = ema(own.mu, g, at["b1"])
        fallen = scalar(at["rate"], m) / jnp.sqrt(1 + at["t"].astype(m.dtype) / precond_warmup)
        rate = jnp.maximum(fallen, scalar(at["least"], m))

        def fresh(given: Any, old: Any) -> Any:
            m, number = given

            def one(m: jax.Array, number: jax.Array, Q: Any, L: Any) -> Any:
                key, h = None, m
                if random:
                    key, other = jax.random.split(jax.random.fold_in(at["key"], jnp.maximum(number, 0)))
                    h = m + (scalar(at["damping"], m) + 1e-7 * jnp.abs(m)) * jax.random.normal(other, m.shape, m.dtype)
                P = whiten_back(Q, whiten(Q, h))
                Q, L = learned(Q, L, P, rate, scalar(at["beta_lip"], m), norm, key)
                return tuple(balanced(Q)) if len(Q) > 1 else Q, L

            return jax.vmap(one)(m, number, *old)

        (Q, L), failed = refreshed(jnp.ones((), bool), fresh, (m, number), (own.Q, own.L), own.failed)
        u = _directions(Q, m)
        if update_clip is not None:
            rms = jnp.sqrt(jnp.mean(jnp.square(u), axis=tuple(range(1, u.ndim)), keepdims=True))
            u = u / jnp.maximum(rms / scalar(at["clip"], rms), 1)
        return u, Own(m, Q, L, failed)

    def init(params: optax.Params) -> ScaleByPsgdProState:
        kept = first_key(key) if random else None
        return ScaleByPsgdProState(jnp.zeros((), jnp.int32), kept, **init_fields(planned(params), params))

    def update(updates: Any, state: ScaleByPsgdProState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        kept, now = state.key, None
        if random:
            kept, now = next_key(METHOD, state.key, extra.get("key"))
            if now is None:
                raise NoKey(METHOD)
        at = {"b1": b1, "t": state.count, "rate": precond_lr, "least": min_precond_lr, "beta_lip": beta_lip}
        at |= {"damping": damping, "clip": update_clip, "key": now}
        plan, fields = planned(updates), {f: getattr(state, f) for f in Own._fields}
        d, fields = map_stacks(plan, kernel, updates, fields, at, marks=numbers(plan))
        return d, ScaleByPsgdProState(increment(state.count), kept, **fields)

    return transformation(METHOD, init, update)


def psgd_pro(
    learning_rate: ScalarOrSchedule = 3e-3,
    *,
    b1: Scalar = 0.9,
    precond_lr: Scalar = 0.1,
    min_precond_lr: Scalar = 0.01,
    precond_warmup: int = 10000,
    beta_lip: Scalar = 0.9,
    init_scale: Scalar = 1.0,
    damping: Scalar = 0.1,
    norm: str = "bound",
    max_dim: int = 8192,
    update_clip: Scalar | None = None,
    key: Key | None = None,
    weight_decay: ScalarOrSchedule = 0.01,
    weight_decay_mask: Mask | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """PSGD Kron with the Procrustes step, for all leaves.

    For an n x p matrix, t the number of earlier steps; m, Q_i and L_i (1 at first) are kept:

        m = b1 m + (1 - b1) g;   h = m + (damping + 1e-7 |m|) N(0, 1);   P = Q_1^T Q_1 h Q_2^T Q_2
        for every axis i of length d_i, with z = entries / d_i and C = P P^T (i = 1), P^T P (i = 2):
            l = |C|_2 + z;   L_i = max(beta_lip L_i + (1 - beta_lip) l, l)
            Q_i = Q_i - (rate / L_i) (C Q_i - z Q_i),   rate = max(precond_lr / sqrt(1 + t / precond_warmup),
            min_precond_lr) R = (Q_i^T - Q_i) / max(|Q_i^T - Q_i|_2, 1e-8);   A = R Q_i;   B = R A
            a = clip(-tr A / tr B, 0, 1/8) where tr B < 0, else 1/8;   Q_i = Q_i + a (A + a B / 2)       towards a
            symmetric Q_i
        then the largest entries of all Q_i are made equal;   u = Q_1^T Q_1 m Q_2^T Q_2
        x = x - learning_rate (u + weight_decay x)

    Args:
      learning_rate: step size >= 0, or a schedule. Default 3e-3 (official code).
      b1: decay of the momentum, in [0, 1). Default 0.9 (official code).
      precond_lr: step size of the factors at the start, > 0. Default 0.1 (official code).
      min_precond_lr: the least step size of the factors, >= 0. Default 0.01 (official code).
      precond_warmup: steps after which the step size of the factors has fallen by sqrt(2), >= 1. Default 10000
        (official code).
      beta_lip: decay of the running maximum of norms, in [0, 1). Default 0.9 (official code).
      init_scale: the factors at the start are this times the identity, > 0. Default 1 (official code).
      damping: size of the noise that is added to the momentum where factors are learned, >= 0. Default 0.1 (official
        code).
      norm: "bound": a lower bound of spectral norms, from 32 random vectors and two double iterations (official code);
        "exact": by a singular value decomposition. Default "bound".
      max_dim: longer axes have a diagonal factor, >= 1; so have vectors. Default 8192 (as `gk.kron`).
      update_clip: the largest root mean square of a direction, > 0. Default None: there is none (official code).
      key: a typed key or integer, from which those of all steps follow. Default None: `update` needs `key=`, unless
        damping=0 and norm="exact".
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.01 (official code).
      weight_decay_mask: which leaves decay. Default all.
      layout: which axes are stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are spread, as in `gk.muon`. Default None.

    Returns:
      A transformation that needs `params` where leaves decay. State and collectives: those of `scale_by_psgd_pro`.

    Raises:
      ValueError: a hyperparameter outside its range; no key; complex leaves.

    Example:
      >>> tx = psgd_pro(0.5, key=jax.random.key(0))
      >>> x = jnp.ones((2, 2))
      >>> tx.update(x, tx.init(x), x)[0].shape
      (2, 2)

    Reference: Pooladzandi, Li. Curvature-Informed SGD via General Purpose Lie-Group Preconditioners. 2024, arXiv
    2402.04553; Li. Stochastic Hessian Fittings with Lie Groups. 2024, arXiv 2402.11858; PSGDPro of NVIDIA's
    Emerging-Optimizers. Departures: vectors and axes above `max_dim` have diagonal factors; a factor that is not finite
    is not taken.
    """
    return optimizer(
        Method("psgd_pro", learning_rate, weight_decay, weight_decay_mask),
        scale_by_psgd_pro(
            b1=b1,
            precond_lr=precond_lr,
            min_precond_lr=min_precond_lr,
            precond_warmup=precond_warmup,
            beta_lip=beta_lip,
            init_scale=init_scale,
            damping=damping,
            norm=norm,
            max_dim=max_dim,
            update_clip=update_clip,
            key=key,
            layout=layout,
            shard=shard,
        ),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


SHARED: dict[str, Any] = {
    "paper": PAPER,
    "needs": ("key",),
    "words": 3,
    "collectives": "matrices",
    "golden": ("modern/psgd_pro",),
    "opt_outs": BY_LAYOUT | {"stacked": "the noise of ten layers in one leaf is not that of ten leaves"},
}
register(scale_by_psgd_pro, form="primitive", **SHARED)
register(psgd_pro, form="optimizer", **SHARED, race=Race(3e-3))
