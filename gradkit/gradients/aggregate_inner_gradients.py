"""Stochastic gradient aggregation: the mean of the gradients along a few inner steps with small batches."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, scalar, widen, zeros
from gradkit.gradients.accumulate import split
from gradkit.types import Scalar

PAPER = Paper(
    "Enhancing Generalization of Universal Adversarial Perturbation through Gradient Aggregation",
    "Liu et al.",
    2023,
    "2308.06015",
)
GradFn = Callable[..., Any]


def aggregate_inner_gradients(
    grad_fn: GradFn,
    inner: optax.GradientTransformation,
    inner_steps: int,
    minibatches: int,
    *,
    project: Callable[[Any], Any] | None = None,
) -> Callable[..., Any]:
    """The mean of the gradients that an inner optimizer evaluates on minibatches of the batch.

    Equations, with x' = x at the start, and for j = 1 ... M:

        q_j = gradient of minibatch j at x'
        x' <- P(x' + inner update of q_j)                                   P: `project`
        g = (q_1 + ... + q_M) / M                                           after the last j; x' is not kept

    Args:
      grad_fn: (params, minibatch, *args) -> gradient tree, of a loss that is to fall.
      inner: the inner optimizer; its state begins anew with every batch. The paper's is
        `optax.chain(optax.scale_by_sign(), optax.scale_by_learning_rate(step))`.
      inner_steps: M, >= 1. The paper goes over the batch 4 times: 4 * minibatches.
      minibatches: the number of equal parts that a batch is divided into, >= 1; must divide it. The paper's have 10
        examples.
      project: params -> params, after every inner step. Default None.

    Returns:
      fn(params, batch, key=None, *args) -> gradient, a tree like the parameters. `batch` is any tree whose leaves have
      the same leading axis. With a key every pass over the batch is shuffled: minibatches of one pass have no example
      in common. Without one they are taken in order. The mean is taken in float32 or wider. No state; M gradients of a
      minibatch; no collective of its own.

    Raises:
      ValueError: an argument outside its range; when called, a batch that does not divide.

    Example:
      >>> grad_fn = lambda x, batch: jnp.mean(x - batch)
      >>> fn = aggregate_inner_gradients(grad_fn, optax.sgd(1.0), 2, 2)
      >>> float(fn(jnp.array(0.0), jnp.array([1.0, 3.0])))  # -1 at 0, and -2 at 1
      -1.5

    Reference: Liu et al. Enhancing Generalization of Universal Adversarial Perturbation through Gradient Aggregation.
    2023, arXiv 2308.06015. The official code draws every minibatch from the whole batch; here a pass uses each example
    once, so that inner steps of length 0 give the gradient of the batch itself.
    """
    checks.function("grad_fn", grad_fn)
    if not isinstance(inner, optax.GradientTransformation):
        raise ValueError(f"inner must be a gradient transformation, got {inner!r}")
    checks.integer("inner_steps", inner_steps, 1)
    checks.integer("minibatches", minibatches, 1)
    if project is not None:
        checks.function("project", project)

    def fn(params: Any, batch: Any, key: Any = None, *args: Any) -> Any:
        parts = split(batch, minibatches, "aggregate_inner_gradients")
        size, n = jax.tree.leaves(parts)[0].shape[1], minibatches
        passes = -(-inner_steps // n)
        order = jnp.arange(n * size)
        orders = jnp.tile(order, (passes, 1))
        if key is not None:
            orders = jax.vmap(lambda key: jax.random.permutation(key, order))(jax.random.split(key, passes))
        rows = orders.reshape(passes * n, size)[:inner_steps]
        flat = jax.tree.map(lambda x: x.reshape(n * size, *x.shape[2:]), parts)

        def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
            x, state, total = carry
            q = grad_fn(x, jax.tree.map(lambda leaf: leaf[rows], flat), *args)
            updates, state = inner.update(q, state, x)
            moved = optax.apply_updates(x, updates)
            total = jax.tree.map(jnp.add, total, widen(q))
            return (moved if project is None else project(moved), state, total), None

        (_, _, total), _ = jax.lax.scan(step, (params, inner.init(params), zeros(params)), rows)
        return jax.tree.map(lambda t, p: (t / inner_steps).astype(p.dtype), total, params)

    return fn


class SgaState(NamedTuple):
    """v, the momentum of normalized gradients; None without momentum."""

    v: Any


class Sga(NamedTuple):
    """An attack as a pair of functions.

    Attributes:
      init: delta -> state.
      update: (delta, state, batch, key, *args) -> (delta, state).
    """

    init: Callable[[Any], SgaState]
    update: Callable[..., tuple[Any, SgaState]]


def sga(
    grad_fn: GradFn,
    eps: Scalar,
    *,
    minibatch: int = 10,
    inner_repeats: int = 4,
    step: Scalar | None = None,
    momentum: Scalar | None = None,
) -> Sga:
    """Stochastic gradient aggregation: one perturbation of bounded size that fools a model on all examples.

    Equations, with g the mean of the gradients q_j of `aggregate_inner_gradients`, whose inner steps start at delta:

        delta' <- clip(delta' - step sign(q_j), -eps, eps)                  inner steps
        v      <- momentum v + g / |g|_1                                    without momentum v = g
        delta  <- clip(delta - step sign(v), -eps, eps)                     outer step

    The loss has the sign with which the attack descends. Signs of small batches cancel each other, and the gradient of
    a large batch vanishes where losses are flat; the sign of a mean of gradients along inner steps avoids both.

    Args:
      grad_fn: (delta, minibatch, *args) -> gradient of what is to FALL, minus the loss of the model: the paper's is
        minus the mean of min(cross entropy, 9), with the model's own predictions on clean inputs for labels.
      eps: the bound of |delta|, > 0, in units of the inputs. May be traced.
      minibatch: examples of an inner step, >= 1; must divide the batch. Default 10 (official code).
      inner_repeats: passes over the batch in the inner loop, >= 1. Default 4 (official code).
      step: length of inner and outer steps, >= 0. Default None: eps / 10 (official code). May be traced.
      momentum: m in [0, 1); the paper's variant has 0.9. Default None: none. May be traced.

    Returns:
      A pair (init, update). `update(delta, state, batch, key=None, *args)` goes once over a batch. State: none, or 1
      word per number of delta with momentum.

    Raises:
      ValueError: an argument outside its range; when called, a batch that does not divide.

    Example:
      >>> attack = sga(lambda delta, batch: delta - jnp.mean(batch), 1.0, minibatch=1)
      >>> delta, _ = attack.update(jnp.zeros(()), attack.init(jnp.zeros(())), jnp.array([3.0, 5.0]))
      >>> print(delta)
      0.1

    Reference: Liu et al. Enhancing Generalization of Universal Adversarial Perturbation through Gradient Aggregation.
    2023, arXiv 2308.06015. Minibatches as in `aggregate_inner_gradients`. The official code ascends; the sign of
    `grad_fn` is the only difference.
    """
    checks.function("grad_fn", grad_fn)
    checks.real("eps", eps, "(0, inf)")
    checks.integer("minibatch", minibatch, 1)
    checks.integer("inner_repeats", inner_repeats, 1)
    checks.real("step", step, "[0, inf)", optional=True)
    checks.real("momentum", momentum, "[0, 1)", optional=True)
    length = 0.1 * eps if step is None else step

    def boxed(delta: Any) -> Any:
        return jax.tree.map(lambda d: jnp.clip(d, -scalar(eps, d), scalar(eps, d)), delta)

    def against(delta: Any, v: Any) -> Any:
        return boxed(jax.tree.map(lambda d, v: d - scalar(length, d) * jnp.sign(v).astype(d.dtype), delta, v))

    signs = optax.stateless(lambda q, _: jax.tree.map(lambda q: -scalar(length, q) * jnp.sign(q), q))

    def init(delta: Any) -> SgaState:
        return SgaState(None if momentum is None else zeros(delta))

    def update(delta: Any, state: SgaState, batch: Any, key: Any = None, *args: Any) -> tuple[Any, SgaState]:
        examples = math.prod(jnp.shape(jax.tree.leaves(batch)[0])[:1])
        if examples % minibatch:
            raise ValueError(
                f"sga: the number of examples of a batch must be a multiple of minibatch={minibatch}, got {examples}"
            )
        n = max(examples // minibatch, 1)
        g = aggregate_inner_gradients(grad_fn, signs, inner_repeats * n, n, project=boxed)(delta, batch, key, *args)
        if momentum is None:
            return against(delta, g), state
        g = widen(g)
        size = jnp.asarray(sum(jnp.sum(jnp.abs(x)).astype(float) for x in jax.tree.leaves(g)))
        shares = jax.tree.map(lambda x: divide(x, size.astype(x.dtype)), g)
        v = jax.tree.map(lambda v, x: scalar(momentum, v) * v + x, state.v, shares)
        return against(delta, v), SgaState(v)

    return Sga(init, update)


register(aggregate_inner_gradients, form="program", paper=PAPER)
register(sga, form="program", paper=PAPER, notes="an attack; with momentum its state is 1 word per number of delta")
