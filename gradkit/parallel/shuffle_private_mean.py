"""The mean of users' gradients from sums of integers, which are all that a shuffler reveals."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.engine.keys import as_key, check_key
from gradkit.types import Key, PyTree, Scalar

PAPER = Paper("Shuffle Private Stochastic Convex Optimization", "Cheu, Joseph, Mao, Peng", 2021, "2106.09805")
NAME = "shuffle_private_mean"


def shuffle_private_mean(
    gradients: PyTree,
    *,
    key: Key,
    bound: Any,
    levels: int,
    noise_trials: int,
    noise_p: Scalar = 0.25,
    axis_name: Any = None,
) -> Any:
    """The mean over users of their clipped gradients, by the protocol of private sums in the shuffle model.

    Equations, for user i of n, and a coordinate x of a gradient whose norm is clipped to L:

        w   = (x + L) / (2 L)                                          in [0, 1]
        m_i = floor(w g) + Bernoulli(w g - floor(w g)) + Binomial(b, p)
        mean = 2 L w^ / n - L,   w^ = (sum_i m_i - n b p) / g

    It is unbiased; the sum of a coordinate has the variance (2 L / g)^2 (n b p (1 - p) + the variance of the rounding,
    at most n / 4). No epsilon is claimed: the caller must prove the constants of the theory for `levels` (of the order
    of the larger of sqrt(n) and d, for d coordinates) and `noise_trials` (of the order of
    levels^2 log^2(d / delta) / (epsilon^2 n)).

    Args:
      gradients: a tree with a leading axis of users on every leaf, real.
      key: a random key (typed key or integer), another one in every step, the same on all replicas.
      bound: L > 0, to which the norm of a user's gradient over the whole tree is clipped.
      levels: g >= 1, the number of steps of the rounding.
      noise_trials: b >= 0, the trials of the binomial noise of every user and coordinate.
      noise_p: p in (0, 1), the probability of a trial. Default 0.25 (paper).
      axis_name: axis of `vmap` or `shard_map` whose members have different users. Default None.

    Returns:
      A tree like one gradient, of its dtypes. The sum is one of int32 numbers: it has the same bits in any order of
      users.
      Collectives: with `axis_name` one all-reduce of int32, one per coordinate.

    Raises:
      ValueError: an argument outside its range, a tree without a leading axis, or sums that int32 cannot hold.

    Example:
      >>> g = jnp.array([[3.0, 0.0], [0.0, -4.0]])  # clipped to norm 2
      >>> print(shuffle_private_mean(g, key=0, bound=2.0, levels=4, noise_trials=0))
      [ 1. -1.]

    Reference: Cheu, Joseph, Mao, Peng. Shuffle Private Stochastic Convex Optimization. 2021, arXiv 2106.09805. Its
    minibatch and accelerated optimizers are any that take a gradient. The noise takes `noise_trials` draws of the size
    of all gradients.
    """
    check_key(key if not isinstance(key, jax.core.Tracer) else None)
    checks.real("bound", bound, "(0, inf)")
    g, b = checks.integer("levels", levels, 1), checks.integer("noise_trials", noise_trials)
    checks.real("noise_p", noise_p, "(0, 1)")
    checks.axis_name("axis_name", axis_name)
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, gradients))
    sizes = {x.shape[:1] for x in leaves}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"{NAME}: gradients must have the same leading axis of users on every leaf, got {sorted(sizes)}"
        )
    users = sizes.pop()[0]
    n = users if axis_name is None else users * jax.lax.axis_size(axis_name)
    if n * (g + b) >= 2**31:
        raise ValueError(
            f"levels + noise_trials must be below 2**31 / users = {2**31 // n}, got {g + b}: a sum would not fit into "
            "int32; write fewer levels or trials"
        )
    wide = [x.astype(wide_dtype(x.dtype)) for x in leaves]
    squares = [jnp.sum(jnp.square(x).reshape(users, -1), axis=1).astype(float) for x in wide]
    norms = jnp.sqrt(sum(squares, jnp.zeros((users,), float)))
    L = jnp.asarray(bound, norms.dtype)
    factor = jnp.where(norms > L, L / jnp.where(norms > 0, norms, jnp.ones_like(norms)), jnp.ones_like(norms))
    now = as_key(key)
    if axis_name is not None:
        now = jax.random.fold_in(now, jax.lax.axis_index(axis_name))

    def total(x: jax.Array, key: Any) -> jax.Array:
        """The sum over the users of this replica, int32."""
        rounding, noise = jax.random.split(key)
        own = x * factor.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        scaled = jnp.clip((own + L.astype(x.dtype)) / (2 * L.astype(x.dtype)), 0, 1) * g
        low = jnp.floor(scaled)
        up = jax.random.uniform(rounding, x.shape, x.dtype) < scaled - low
        m = low.astype(jnp.int32) + up.astype(jnp.int32)

        def trial(t: Any, m: jax.Array) -> jax.Array:
            """One of the b trials of all users and coordinates; `jax.random.binomial` has no form in `shard_map`."""
            u = jax.random.uniform(jax.random.fold_in(noise, t), x.shape, jnp.float32)
            return m + (u < jnp.asarray(noise_p, jnp.float32)).astype(jnp.int32)

        m = jax.lax.fori_loop(0, b, trial, m)
        return jnp.sum(m, axis=0, dtype=jnp.int32)

    sums = [total(x, k) for x, k in zip(wide, jax.random.split(now, len(wide)), strict=True)]
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    means = []
    for s, x in zip(sums, leaves, strict=True):
        dtype = wide_dtype(x.dtype)
        w = (s.astype(dtype) - jnp.asarray(n * b, dtype) * jnp.asarray(noise_p, dtype)) / g
        means.append((2 * L.astype(dtype) * w / n - L.astype(dtype)).astype(x.dtype))
    return structure.unflatten(means)


register(
    shuffle_private_mean,
    form="program",
    paper=PAPER,
    collectives="replicas",
    notes="sums of whole numbers with binomial noise; no epsilon is claimed",
)
