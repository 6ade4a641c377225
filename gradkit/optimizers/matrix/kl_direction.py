"""What KL-Shampoo and KL-SOAP share: their factors, refreshed; the direction is that of one or of the other."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.engine import kl
from gradkit.engine.accumulators import ema
from gradkit.engine.core import divide, increment, scalar, transformation
from gradkit.engine.fields import init_fields
from gradkit.engine.kronecker import along, along_all
from gradkit.engine.mapping import map_stacks
from gradkit.engine.owned import phases
from gradkit.engine.parts import counted, like
from gradkit.engine.planning import as_tensors, plan_stacks
from gradkit.engine.refreshes import due, failures, refreshed
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout
from gradkit.transforms import MatrixSharding
from gradkit.transforms.kl_statistics import PAPER as PAPER
from gradkit.transforms.kl_statistics import check_kl
from gradkit.types import Scalar


class Own(NamedTuple):
    """What belongs to the tensors of a stack: the fields of `kl.Factors`; the first moment, of KL-SOAP in the bases,
    and its second moment; how often bases came out not finite, and were not taken."""

    S: Any
    Q: Any
    r: Any
    mu: Any
    nu: Any
    failed: Any


class ScaleByKLState(NamedTuple):
    """Number of updates made, of which the first is none; and the fields of `Own`: S, Q and r of a parameter by its
    axes, mu and nu like it. With `shard`, by stacks of equal tensors, each with its owners."""

    count: jax.Array
    S: Any
    Q: Any
    r: Any
    mu: Any
    nu: Any
    failed: Any

    @property
    def metrics(self) -> dict[str, jax.Array]:
        """What `gk.diagnostics.metrics` reads."""
        return failures(self.failed)


def scale_by_kl(
    method: str,
    b2: Scalar | None,
    in_bases: bool | None,
    *,
    b1: Scalar,
    shampoo_beta: Any,
    eps: Scalar,
    update_interval: int,
    stagger: bool,
    init_factor: Any,
    eigenvalues: str,
    max_inverse_root: int | None,
    damping: Any,
    max_dim: int,
    normalize_grads: bool,
    layout: Layout | None,
    shard: MatrixSharding | None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of KL-SOAP where `in_bases`, else of KL-Shampoo, under the name of a method."""
    checks.real("b1", b1, "[0, 1)")
    checks.switch(normalize_grads=normalize_grads)
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
    if in_bases:
        checks.real("b2", b2, "[0, 1)")
    interval = update_interval if stagger else None

    def make(rows: int, dims: tuple[int, ...], dtype: Any, _: Any) -> Own:
        mu, nu = like(jnp.zeros((rows, *dims), dtype)), like(jnp.zeros((rows, *dims), dtype))
        return Own(*kl.made(rows, dims, dtype, max_dim, init_factor), mu, nu if in_bases else None, counted(rows))

    def shampoo(G: jax.Array, rotated: jax.Array, own: Own, at: Any) -> tuple[jax.Array, Any, Any]:
        del rotated
        mu = ema(own.mu, G, at["b1"])
        D = jnp.ones_like(G)
        for axis, r in enumerate(own.r):
            D = along(r[..., 0], D, axis)
        D = D / (1 + scalar(at["eps"], D) * D)
        return along_all(own.Q, kl.into(own.Q, mu) * D), mu, None

    def soap(G: jax.Array, rotated: jax.Array, own: Own, at: Any) -> tuple[jax.Array, Any, Any]:
        mu, nu = ema(own.mu, rotated, at["b1"]), ema(own.nu, jnp.square(rotated), at["b2"])
        return along_all(own.Q, divide(mu, jnp.sqrt(nu) + scalar(at["eps"], G))), mu, nu

    def kernel(G: jax.Array, own: Own, at: Any, phase: Any) -> tuple[jax.Array, Own]:
        start = at["c"] == 0
        old, rotated = kl.Factors(own.S, own.Q, own.r), kl.into(own.Q, G)
        u, mu, nu = (soap if in_bases else shampoo)(G, rotated, own, at)
        if normalize_grads:
            u = u / (1e-30 + jnp.sqrt(jnp.mean(jnp.square(u), axis=tuple(range(1, u.ndim)), keepdims=True)))
        more = {"eigenvalues": eigenvalues, "eps": at["eps"], "damping": at["damping"], "most": max_inverse_root}
        new = kl.later(old, G, rotated, at["beta"], **more)
        u, mu, nu = jax.tree.map(lambda y: jnp.where(start, jnp.zeros_like(y), y), (u, mu, nu))
        given = kl.moments(old, G, at["beta"])
        S, r = jax.tree.map(lambda x, y: jnp.where(start, x, y), (given, own.r), (new.S, new.r))

        def carried(S: Any, old: Any) -> Any:
            before, mu = old
            Q = kl.next_bases(S, before)
            return Q, kl.into(Q, along_all(before, mu)) if in_bases else mu

        Q, failed = refreshed(start, lambda S, _: kl.first_bases(S), S, own.Q, own.failed)
        now = ~start & due(at["c"], 0, update_interval, phase)
        (Q, mu), failed = refreshed(now, carried, S, (Q, mu), failed)
        return u, Own(S, Q, r, mu, nu, failed)

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, make, method=method, layout=layout, shard=shard, view=as_tensors)

    def init(params: optax.Params) -> ScaleByKLState:
        return ScaleByKLState(jnp.zeros((), jnp.int32), **init_fields(planned(params), params))

    def update(updates: Any, state: ScaleByKLState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        fields = state._asdict()
        at = {"c": fields.pop("count"), "b1": b1, "b2": b2, "beta": shampoo_beta, "eps": eps, "damping": damping}
        plan = planned(updates)
        d, fields = map_stacks(plan, kernel, updates, fields, at, marks=phases(plan, interval))
        return d, ScaleByKLState(increment(state.count), **fields)

    return transformation(method, init, update)
