"""Gradient information optimization: examples that bring a selection nearer to a target distribution."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import refuse
from gradkit.engine.core import wide_dtype
from gradkit.engine.keys import as_key, check_key
from gradkit.types import Key, Scalar

PAPER = Paper(
    "GIO: Gradient Information Optimization for Training Dataset Selection", "Everaert, Potts", 2023, "2306.11670"
)
NEAREST, FARTHEST = 1e-10, 1e20  # squared distances are clipped, as in the official code


class GioSelection(NamedTuple):
    """What `gio_select` has chosen: rows of the pool in their order, -1 after it has stopped; the divergence after each
    choice."""

    indices: jax.Array
    kls: jax.Array


def _distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """Of every row of x to every row of y."""
    square = jnp.sum(jnp.square(x[:, None] - y[None]), axis=-1)
    return jnp.sqrt(jnp.clip(square, NEAREST, FARTHEST))


def _spread(target: jax.Array, k: int, eps: Any) -> jax.Array:
    """mean_i log(rho_i + eps): how far the target's points are from each other."""
    apart = jnp.where(jnp.eye(len(target), dtype=bool), jnp.inf, _distances(target, target))
    return jnp.mean(jnp.log(jnp.sort(apart, axis=1)[:, k - 1] + eps))


def _logs(target: jax.Array, points: jax.Array, eps: Any) -> jax.Array:
    """mean_i log(nu_ij + eps) of every point j."""
    return jnp.mean(jnp.log(_distances(target, points) + eps), axis=0)


def _divergence(spread: jax.Array, logs: jax.Array, m: jax.Array, dim: int, n: int, k: int) -> jax.Array:
    """From the sum of the logs of m points."""
    count = m.astype(logs.dtype)
    # mean_j log(k m / (j (n - 1))), with log m! as a gamma function.
    order = jnp.log(k * count / (n - 1)) - jax.lax.lgamma(count + 1) / count
    return dim * (logs / count - spread) + order


def _features(**given: Any) -> list[jax.Array]:
    arrays = {name: jnp.asarray(value) for name, value in given.items()}
    dims = {a.shape[1:] for a in arrays.values()}
    for name, a in arrays.items():
        if a.ndim != 2 or not a.size or not jnp.issubdtype(a.dtype, jnp.floating) or len(dims) > 1:
            shapes = ", ".join(f"{n} {v.shape}" for n, v in arrays.items())
            raise ValueError(f"{name} must be features (examples, dimensions), of the same dimensions, got {shapes}")
    return [a.astype(wide_dtype(a.dtype)) for a in arrays.values()]


def _check_k(k: int, target: jax.Array) -> int:
    k = checks.integer("k", k, 1)
    if k >= len(target):
        raise ValueError(f"k must be less than the number of target examples, {len(target)}, got {k}; write k=1")
    return k


def gio_kl(target: Any, selected: Any, *, k: int = 5, eps: Scalar = 1e-8) -> jax.Array:
    """An estimate of the KL divergence of a target distribution from a selection, by distances to neighbours.

        D = d mean_ij [log(nu_ij + eps) - log(rho_i + eps)] + mean_j log(k m / (j (n - 1))),    i = 1 .. n, j = 1 .. m
        nu_ij the distance of target i to selected j, rho_i that of target i to its k-th nearest other target
        distances are the roots of squares that are clipped to [1e-10, 1e20]; d dimensions

    Args:
      target: X, (n, d), floating point.
      selected: W, (m, d).
      k: which neighbour, from 1 to n - 1. Default 5 (official code).
      eps: added to distances, > 0. Default 1e-8 (official code).

    Returns:
      A scalar, differentiable in both.

    Raises:
      ValueError: an argument outside its range; shapes that do not fit.

    Example:
      >>> x = jnp.arange(8.0)[:, None]
      >>> bool(gio_kl(x, x + 0.1, k=2) < gio_kl(x, x + 10.0, k=2))
      True

    Reference: Everaert, Potts. GIO: Gradient Information Optimization for Training Dataset Selection. 2023, arXiv
    2306.11670.
    """
    checks.arrays(target=target, selected=selected)
    checks.real("eps", eps, "(0, inf)")
    target, selected = _features(target=target, selected=selected)
    k = _check_k(k, target)
    m = jnp.asarray(len(selected), jnp.int32)
    logs = jnp.sum(_logs(target, selected, eps))
    return _divergence(_spread(target, k, eps), logs, m, target.shape[1], len(target), k)


def gio_select(
    train: Any,
    target: Any,
    initial: Any = None,
    *,
    num_select: int,
    k: int = 5,
    steps: int = 50,
    learning_rate: Scalar = 0.01,
    eps: Scalar = 1e-8,
    scale: Scalar | None = None,
    v_init: str = "mean",
    stop: str = "increase",
    key: Key | None = None,
) -> GioSelection:
    """Chooses examples of a pool: a free point goes down the divergence, and the example nearest to it is taken.

        v = mean of X,    scale = |v| / |grad_v D(X || W + [v])|        once, with the first W
        `steps` times (3 steps in the first round):    v <- v - learning_rate scale grad_v D(X || W + [v])
        the example of the pool nearest to v goes from the pool to W;  again, from v = mean of X

    Args:
      train: the pool, (examples, d), floating point: embeddings; of a large pool the centroids of its clusters.
      target: X, (n, d).
      initial: W, (m, d), examples that are there already. Default None: 20 uniform points in [-1, 1]^d of norm 1, which
        stay in W and need `key`.
      num_select: how many examples, from 1 to the size of the pool.
      k: neighbour of the divergence, from 1 to n - 1. Default 5 (official code).
      steps: gradient steps per example, >= 1. Default 50 (official code).
      learning_rate: of these, > 0. Default 0.01 (official code).
      eps: see `gio_kl`. Default 1e-8.
      scale: of the gradient, > 0. Default None: as above, so that a step is a share of |v| ("auto").
      v_init: where v begins in later rounds: "mean" of the target, "prev_opt", where the round before ended, or
        "jump", at a random example of the target, which needs `key`. Default "mean" (official code).
      stop: "increase": at the first example that raises the divergence, which is not taken; "never". Default
        "increase".
      key: for `initial=None` and `v_init="jump"`; a typed key or an integer.

    Returns:
      `GioSelection`: int32 rows of the pool, -1 after the stop, and the divergence after each. Can be jitted: a row of
      a traced pool that has a NaN is never chosen, and none is where the target or W has one.

    Raises:
      ValueError: an argument outside its range, NaN included; shapes that do not fit; no key where one is needed.

    Example:
      >>> pool = jnp.array([[9.0], [2.1], [6.0], [1.8]])
      >>> x = jnp.array([[1.0], [1.2], [1.7], [2.0], [2.2], [3.1]])
      >>> sorted(gio_select(pool, x, x[:1] + 4, num_select=2, k=2, steps=2).indices.tolist())
      [1, 3]

    Reference: Everaert, Potts. GIO: Gradient Information Optimization for Training Dataset Selection. 2023, arXiv
    2306.11670. The official code can also start anew from the whole pool, and stop by other rules.
    """
    checks.arrays(train=train, target=target, initial=initial)
    for name, value in (("learning_rate", learning_rate), ("eps", eps)):
        checks.real(name, value, "(0, inf)")
    checks.choice("stop", stop, ("increase", "never"))
    checks.choice("v_init", v_init, ("mean", "prev_opt", "jump"))
    checks.real("scale", scale, "(0, inf)", optional=True)
    steps = checks.integer("steps", steps, 1)
    check_key(key)
    if key is None and v_init == "jump":
        raise ValueError("gio_select: key must be given where v_init is 'jump', for random examples; write key=0")
    if initial is None:
        if key is None:
            raise ValueError("gio_select: key must be given where initial is None, for 20 random points; write key=0")
        points = jax.random.uniform(as_key(key), (20, jnp.shape(target)[-1]), minval=-1.0, maxval=1.0)
        initial = (points / jnp.linalg.norm(points, axis=1, keepdims=True)).astype(jnp.asarray(target).dtype)
    train, target, initial = _features(train=train, target=target, initial=initial)
    for name, x in (("train", train), ("target", target), ("initial", initial)):
        refuse("gio_select", name, x, np.isnan, "numbers; leave rows with NaN out")
    k = _check_k(k, target)
    num_select = checks.integer("num_select", num_select, 1, maximum=len(train))
    jump = jax.random.fold_in(as_key(0 if key is None else key), 1)
    n, dim = target.shape
    spread, center = _spread(target, k, eps), jnp.mean(target, axis=0)

    def slope(v: jax.Array, m: jax.Array) -> jax.Array:
        """grad_v D(X || W + [v]): of all distances only those to v depend on it."""
        return jax.grad(lambda v: jnp.sum(_logs(target, v[None], eps)))(v) * dim / (m + 1).astype(v.dtype)

    first = jnp.asarray(len(initial), jnp.int32)
    if scale is None:
        scale = jnp.linalg.norm(center) / jnp.linalg.norm(slope(center, first))
    rate = jnp.asarray(learning_rate).astype(center.dtype) * jnp.asarray(scale).astype(center.dtype)
    start = jnp.sum(_logs(target, initial, eps))
    before = _divergence(spread, start, first, dim, n, k)

    def choose(carry: Any, t: jax.Array) -> Any:
        v, taken, logs, m, last, stopped = carry
        turns = jnp.where(t == 0, 3 * steps, steps)
        v = jax.lax.fori_loop(0, turns, lambda _, v: v - rate * slope(v, m), v)
        far = jnp.where(taken, jnp.inf, jnp.sum(jnp.square(train - v[None]), axis=1))
        i, some = jnp.argmin(far), ~jnp.all(taken)
        logs, m = logs + _logs(target, train[i][None], eps)[0], m + 1
        now = _divergence(spread, logs, m, dim, n, k)
        stopped = stopped | (now > last) if stop == "increase" else stopped
        chosen = jnp.where(stopped | ~some, -1, i).astype(jnp.int32)
        if v_init == "jump":
            v = target[jax.random.randint(jax.random.fold_in(jump, t), (), 0, n)]
        elif v_init == "mean":
            v = center
        return (v, taken.at[i].set(True), logs, m, now, stopped), (chosen, now)

    # Rows with NaN are as good as taken; without a divergence to begin with nothing is chosen.
    carry = (center, jnp.any(jnp.isnan(train), axis=1), start, first, before, jnp.isnan(before))
    _, (indices, kls) = jax.lax.scan(choose, carry, jnp.arange(num_select))
    return GioSelection(indices, kls)


SHAPES = {name: jax.ShapeDtypeStruct((20, 3), "float32") for name in ("train", "target", "initial")}
register(gio_select, form="function", paper=PAPER, golden=("estimators/gio",), example={**SHAPES, "num_select": 4})
register(
    gio_kl,
    form="function",
    paper=PAPER,
    golden=("estimators/gio",),
    example={"target": SHAPES["target"], "selected": SHAPES["initial"]},
)
