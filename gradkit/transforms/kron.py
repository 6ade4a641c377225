"""The direction of PSGD Kron: a preconditioner for every axis of a tensor, learned so that what it makes is white.

m_t = b1 m_{t-1} + (1 - b1) g_t,    corrected for its start
with probability p(t), that is as soon as 1 / p(t) steps have passed, with V standard normal, G = m_t or g_t:
    G = G + sqrt(eps) mean|G| V                                                          eps of float32
    A = (Q_1 x ... x Q_k) G,    C = (Q_1^-T x ... x Q_k^-T) V
    T1_i, T2_i = A A, C C contracted over all axes but i
    Q_i = Q_i - precond_lr / |T1_i + T2_i| triu(T1_i - T2_i) Q_i                         |.| a lower bound of the norm
    Q_i = q_i - precond_lr / max|T1_i + T2_i| (T1_i - T2_i) q_i                          where Q_i is diagonal
p(t) = min(max(exp(-0.001 (t - 500)), 0.03), 1)
u_t = (Q_1^T Q_1 x ... x Q_k^T Q_k) m_t,    divided by max(1, rms(u_t) / 1.1)

Every layer of a stack is a tensor of its own. Vectors have diagonal factors.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.leaves import Layout, default_layout, map_named, names, tensor_axes
from gradkit.linalg.psgd import Factors, balanced, refreshed, whiten, whiten_back
from gradkit.transforms.core import (
    at_count,
    bias_correction,
    increment,
    scalar,
    settle,
    transformation,
    wide_dtype,
    widen,
    zeros,
)
from gradkit.transforms.keys import check_key, first_key, next_key
from gradkit.transforms.sums import own_parts, stay_whole, whole, whole_shape

PAPER = Paper(
    "Curvature-Informed SGD via General Purpose Lie-Group Preconditioners", "Pooladzandi, Li", 2024, "2402.04553"
)
RMS_LIMIT = 1.1
MODES = (None, "one_diag", "all_diag")


def fading(count: Any) -> jax.Array:
    """The default p(t): 1 for 500 steps, then falling to 0.03 within 3500 more."""
    t = jnp.asarray(count).astype(jnp.result_type(float)) + 1
    return jnp.clip(jnp.exp(-0.001 * (t - 500)), 0.03, 1.0)


class View(NamedTuple):
    """A leaf as a batch of tensors: the order of its axes, the stack first; its shape; how many tensors it is, and the
    shape of one; per axis the shape of its factor, (d, d) or (d, 1)."""

    order: tuple[int, ...]
    shape: tuple[int, ...]
    batch: int
    tensor: tuple[int, ...]
    factors: tuple[tuple[int, int], ...]

    def split(self, x: jax.Array) -> jax.Array:
        """(batch, *tensor)."""
        return x.transpose(self.order).reshape(-1, *self.tensor)

    def join(self, x: jax.Array) -> jax.Array:
        """The leaf again."""
        back = sorted(range(len(self.order)), key=lambda a: self.order[a])
        return x.reshape([self.shape[a] for a in self.order]).transpose(back)

    def unpack(self, packed: jax.Array) -> list[jax.Array]:
        """The factors of any batch of such tensors, which the state holds as one column per tensor."""
        ends = np.cumsum([d * width for d, width in self.factors])[:-1]
        parts = jnp.split(packed, ends, axis=1)
        return [q.reshape(-1, *shape) for q, shape in zip(parts, self.factors, strict=True)]


def pack(factors: list[jax.Array]) -> jax.Array:
    """The factors of a batch of tensors as one column per tensor."""
    return jnp.concatenate([q.reshape(len(q), -1, 1) for q in factors], axis=1)


def view(
    name: str, shape: tuple[int, ...], layout: Layout, largest: int = 8192, least_axes: int = 2, mode: str | None = None
) -> View:
    """How a whole leaf is seen; a scalar is a tensor of one axis."""
    own = tensor_axes(layout(name, shape), shape)
    if len(own) > 13:
        raise ValueError(
            f"scale_by_kron: the leaf {name!r} of shape {shape} has {len(own)} axes; at most 13 have factors"
        )
    stack = tuple(a for a in range(len(shape)) if a not in own)
    tensor = tuple(shape[a] for a in own) or (1,)
    longest = int(np.argsort(tensor)[-1])
    factors = []
    for axis, d in enumerate(tensor):
        diagonal = d == 1 or d > largest or len(tensor) < least_axes
        diagonal = diagonal or mode == "all_diag" or (mode == "one_diag" and axis == longest)
        factors.append((d, 1) if diagonal else (d, d))
    return View((*stack, *own), shape, math.prod(shape[a] for a in stack), tensor, tuple(factors))


class ScaleByKronState(NamedTuple):
    """Number of updates made, and since the last refresh; the random key; the momentum; per leaf all factors of a
    tensor in one column, (batch, entries, 1), see `View.unpack`; as a metric how many refreshes came out not finite and
    were left out."""

    count: jax.Array
    since: jax.Array
    key: Any
    mu: Any
    factors: Any
    metrics: dict[str, jax.Array]


def _grouped(views: list[View], dtypes: list[Any]) -> list[list[int]]:
    """Leaves whose tensors have one shape are worked on in one batch; those without entries not at all."""
    found: dict[Any, list[int]] = {}
    for i, (seen, dtype) in enumerate(zip(views, dtypes, strict=True)):
        if math.prod(seen.shape):
            found.setdefault((seen.tensor, dtype), []).append(i)
    return list(found.values())


def scale_by_kron(
    *,
    b1: Any = 0.9,
    precond_lr: Any = 0.1,
    precond_init_scale: Any = 1.0,
    update_probability: Any = None,
    max_size_triangular: int = 8192,
    min_ndim_triangular: int = 2,
    memory_save_mode: str | None = None,
    momentum_into_precond_update: bool = True,
    balance_probability: Any = 0.01,
    key: Any = None,
    probe: Any = None,
    mu_dtype: Any = None,
    layout: Layout = default_layout,
) -> optax.GradientTransformationExtraArgs:
    """Whitens the momentum by a Kronecker product that is learned.

    Equations: at the head of this file. Tensors of one shape are worked on in one batch.

    Args:
      b1: decay of the momentum, in [0, 1). Default 0.9 (official code).
      precond_lr: step size of the factors, > 0. Default 0.1 (official code).
      precond_init_scale: of the product of the first factors, > 0. Default 1 (official code).
      update_probability: share of steps that refresh, in (0, 1], or a schedule. Default None: p(t).
      max_size_triangular: axes longer than this have a diagonal factor, >= 0. Default 8192 (official code).
      min_ndim_triangular: tensors of fewer axes have diagonal factors, >= 0. Default 2 (official code).
      memory_save_mode: None; "one_diag": the longest axis is diagonal; "all_diag". Default None.
      momentum_into_precond_update: whether the factors are learned from the momentum or from the gradient. Default
        True (official code).
      balance_probability: share of refreshes at which the factors of a tensor are made equally large, in [0, 1]; their
        product stays. Default 0.01 (official code). Only where there is a key.
      key: a typed random key, from which those of all steps follow. Default None: `update` needs `key=`, which goes
        before this one where both are given.
      probe: V of every step instead of draws, a tree like the parameters, or step -> tree. Default None. An extra
        argument `probe` of `update` goes before it.
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are stacks: every layer of a scan has its own factors.

    Returns:
      A transformation. State: 1 word per parameter, and per axis of a tensor d^2 words, or d. Where leaves are sharded
      all of them are gathered, in one exchange, and every device does the whole work.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf of more than 13 axes besides stacks; no key.

    Example:
      >>> tx = scale_by_kron(b1=0.0, update_probability=1.0, key=jax.random.key(0))
      >>> g = jnp.full(4, 100.0)
      >>> state, update = tx.init(g), jax.jit(tx.update)
      >>> for _ in range(200):
      ...     u, state = update(g, state)
      >>> bool(jnp.all(jnp.abs(u - 1) < 0.3))  # white: of size 1, whatever the gradient's
      True

    Reference: Pooladzandi, Li. Curvature-Informed SGD via General Purpose Lie-Group Preconditioners. 2024, arXiv
    2402.04553; Li. Preconditioned Stochastic Gradient Descent. 2015, arXiv 1512.04202. A refresh that is not finite
    is left out here, tensor by tensor.
    """
    checks.real("b1", b1, "[0, 1)")
    checks.real("precond_lr", precond_lr, "(0, inf)")
    checks.real("precond_init_scale", precond_init_scale, "(0, inf)")
    checks.real("update_probability", update_probability, "(0, 1]", optional=True, schedule=True)
    checks.integer("max_size_triangular", max_size_triangular)
    checks.integer("min_ndim_triangular", min_ndim_triangular)
    checks.choice("memory_save_mode", memory_save_mode, MODES)
    checks.choice("momentum_into_precond_update", momentum_into_precond_update, (True, False))
    checks.real("balance_probability", balance_probability, "[0, 1]")
    check_key(key)
    schedule: Any = fading if update_probability is None else update_probability

    def seen(name: str, shape: tuple[int, ...]) -> View:
        return view(name, shape, layout, max_size_triangular, min_ndim_triangular, memory_save_mode)

    def first_factors(name: str, x: Any) -> jax.Array:
        own, dtype = seen(name, tuple(x.shape)), wide_dtype(x.dtype)
        size = jnp.asarray(precond_init_scale).astype(dtype) ** (1 / len(own.tensor))
        one = [jnp.ones(shape, dtype) if shape[1] == 1 else jnp.eye(shape[0], dtype=dtype) for shape in own.factors]
        return jnp.tile(size * pack([q[None] for q in one]), (own.batch, 1, 1))

    def init(params: optax.Params) -> ScaleByKronState:
        count, since, skipped = (jnp.zeros((), jnp.int32) for _ in range(3))
        factors = map_named(first_factors, params)
        return ScaleByKronState(count, since, first_key(key), zeros(params, mu_dtype), factors, {"skipped": skipped})

    def probes(given: Any, now: Any, known: list[str], leaves: list[jax.Array], views: list[View]) -> list[jax.Array]:
        if given is not None:
            return whole(known, jax.tree.leaves(widen(given)))
        if now is None:
            raise ValueError("scale_by_kron needs a random key: scale_by_kron(key=...) or update(..., key=...)")
        keys = [jax.random.fold_in(now, i) for i in range(len(leaves))]
        return [jax.random.normal(k, v.shape, x.dtype) for k, v, x in zip(keys, views, leaves, strict=True)]

    def update(updates: Any, state: ScaleByKronState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        count, (kept, now) = increment(state.count), next_key("scale_by_kron", state.key, extra.get("key"))
        since = increment(state.since)
        rate = jnp.asarray(at_count(schedule, state.count)).astype(jnp.float32)
        due = since.astype(jnp.float32) >= 1 / rate

        def mean(m: jax.Array, g: jax.Array) -> jax.Array:
            b = scalar(b1, g)
            return (b * m.astype(g.dtype) + (1 - b) * g).astype(m.dtype)

        mu = settle(jax.tree.map(mean, state.mu, updates))
        known, (leaves, structure) = names(updates), jax.tree.flatten(updates)
        views = [seen(name, whole_shape(name, g.shape)) for name, g in zip(known, leaves, strict=True)]
        momenta = [
            m.astype(g.dtype) / bias_correction(b1, count, g) for m, g in zip(jax.tree.leaves(mu), leaves, strict=True)
        ]
        n = len(leaves)
        several = momenta if momentum_into_precond_update else [*momenta, *leaves]
        gathered = whole(known * (len(several) // max(n, 1)), several)
        momenta, learned = gathered[:n], gathered[-n:] if n else []
        given = extra.get("probe")
        given = at_count(probe, state.count) if given is None else given
        noise = probes(given, now, known, leaves, views)
        factors = jax.tree.leaves(state.factors)
        balance = None
        if now is not None:
            drawn = jax.random.uniform(jax.random.fold_in(now, n))
            balance = drawn < jnp.asarray(balance_probability).astype(drawn.dtype)

        groups = _grouped(views, [g.dtype for g in leaves])

        def stacked(xs: list[jax.Array]) -> list[jax.Array]:
            return [jnp.concatenate([views[i].split(xs[i]) for i in group]) for group in groups]

        old = [views[group[0]].unpack(jnp.concatenate([factors[i] for i in group])) for group in groups]
        refresh = _refresh(precond_lr, balance)
        new, skipped = jax.lax.cond(due, refresh, _keep, old, stacked(learned), stacked(noise))
        directions, factors = list(momenta), list(factors)
        for group, qs, m in zip(groups, new, stacked(momenta), strict=True):
            ends = np.cumsum([views[i].batch for i in group])[:-1]
            parts = zip(jnp.split(jax.vmap(_direction)(qs, m), ends), jnp.split(pack(qs), ends), strict=True)
            for i, (u, packed) in zip(group, parts, strict=True):
                directions[i], factors[i] = views[i].join(u), packed
        directions = own_parts(known, leaves, directions)
        factors = stay_whole(factors)
        state = ScaleByKronState(
            count,
            jnp.where(due, jnp.zeros_like(since), since),
            kept,
            mu,
            structure.unflatten(factors),
            {"skipped": state.metrics["skipped"] + skipped},
        )
        return structure.unflatten(directions), state

    return transformation("scale_by_kron", init, update)


def _refresh(precond_lr: Any, balance: Any) -> Callable[..., tuple[list[list[jax.Array]], jax.Array]]:
    """(factors, tensors, V) -> factors, and how many tensors keep theirs because the new ones are not finite."""

    def one(qs: list[jax.Array], g: jax.Array, v: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        start = qs
        if balance is not None and len(qs) > 1:
            start = [jnp.where(balance, b, q) for b, q in zip(balanced(qs), qs, strict=True)]
        new = refreshed(start, g, v, jnp.asarray(precond_lr).astype(g.dtype))
        fine = jnp.all(jnp.stack([jnp.all(jnp.isfinite(q)) for q in new]))
        return [jnp.where(fine, a, b) for a, b in zip(new, qs, strict=True)], ~fine

    def refresh(old: Any, g: list[jax.Array], v: list[jax.Array]) -> tuple[list[list[jax.Array]], jax.Array]:
        found = [jax.vmap(one)(*group) for group in zip(old, g, v, strict=True)]
        failed = [jnp.sum(bad, dtype=jnp.int32) for _, bad in found]
        return [new for new, _ in found], sum(failed, jnp.zeros((), jnp.int32))

    return refresh


def _keep(old: Any, g: list[jax.Array], v: list[jax.Array]) -> tuple[list[list[jax.Array]], jax.Array]:
    del g, v
    return old, jnp.zeros((), jnp.int32)


def _direction(factors: Factors, m: jax.Array) -> jax.Array:
    u = whiten_back(factors, whiten(factors, m))
    return u / jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(u))) / RMS_LIMIT, 1)


NOT_STACKED = "the probes of ten layers in one leaf are not those of ten leaves, only their law is"
SHARED: dict[str, Any] = {
    "paper": PAPER,
    "needs": ("key",),
    "words": 3,
    "collectives": "matrices",
    "golden": ("matrix/psgd_kron",),
    "opt_outs": {
        "stacked": NOT_STACKED,
        "layout": NOT_STACKED,
        "inspect": "every device has all factors, which are no multiple of its parameters",
    },
    "notes": "words of a square matrix; all devices do the same work on gathered leaves",
}
register(scale_by_kron, form="primitive", **SHARED, same_as="kron")
