"""FedSpeed: local steps with two gradients, a proximal term, and a dual correction of the workers' drift."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import at_count, increment, need, scalar, transformation, widen, zeros
from gradkit.engine.matching import check_leaves
from gradkit.engine.norms import global_square
from gradkit.parallel.local_updates import anchor
from gradkit.parallel.replicas import alike, wide_mean
from gradkit.parallel.rounds import checked, either, ends_round, led, plain
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper(
    "FedSpeed: Larger Local Interval, Less Communication Round, and Higher Generalization Accuracy",
    "Sun et al.",
    2023,
    "2302.10429",
)
NAME = "fedspeed"


class FedspeedState(NamedTuple):
    """Number of steps; the start x^t of the round; the dual variable of this worker."""

    count: jax.Array
    start: Any
    dual: Any

    exact_fields = ("start",)


def _times(factor: Any, tree: Any) -> Any:
    return jax.tree.map(lambda x: scalar(factor, x) * x, tree)


def fedspeed(
    learning_rate: ScalarOrSchedule,
    *,
    sync_every: int = 8,
    prox: Scalar = 10.0,
    rho: Scalar = 0.1,
    mix: Scalar = 1.0,
    normalize: bool = True,
    weight_decay: Scalar = 0.0,
    max_norm: Scalar | None = None,
    axis_name: Any = "replica",
) -> optax.GradientTransformationExtraArgs:
    """Local SGD for workers whose data differ: a proximal term, a dual correction, and gradients after an ascent step.

    Equations of worker i of W in a round of K = sync_every steps from x = x^t, with l = prox and the worker's dual
    variable h_i, which starts at 0:

        g1 = grad F_i(x),    g2 = grad F_i(x + rho g1 / (|g1| + 1e-7)),    g = (1 - mix) g1 + mix g2
        x <- x - learning_rate (g - h_i + weight_decay x + (x - x^t) / l)
        after K steps:   h_i <- h_i - (x - x^t) / l,   x^{t+1} = (1/W) sum_i (x_i - l h_i)

    With absent workers, x_i is averaged over the others, h_i over all. |.| is the norm over all leaves. How to run it,
    and `sync`, are as in `local_updates`. `update` needs `grad_fn` (parameters -> gradient of the same minibatch),
    unless `rho` or `mix` is 0, and in a step that ends a round takes `active`: whether this worker takes part (a
    boolean; default: all do). The result of an absent worker is dropped, and it continues from x^{t+1}. Where all are
    absent, x^t does not change.

    Args:
      learning_rate: step size >= 0, or a schedule of the steps.
      sync_every: K >= 1. Default 8.
      prox: l > 0; a smaller l keeps x closer to x^t. Default 10 (paper: 1 / 0.1).
      rho: distance of the second gradient, >= 0. Default 0.1 (paper).
      mix: weight of the second gradient, in [0, 1]. Default 1 (code).
      normalize: whether rho is divided by the norm of the gradient. Default True (code); False steps by rho g1 (paper).
      weight_decay: >= 0. Default 0; the code has 1e-3.
      max_norm: largest norm of g - h_i, > 0. Default None: none; the code has 10.
      axis_name: name of the axis of the workers. Default "replica".

    Returns:
      A transformation that needs `params`. State: 2 words per parameter (x^t, h_i), once per worker. Collectives: one
      all-reduce of the parameters per round, in float32 (and of a number, with `active`).

    Raises:
      ValueError: a hyperparameter outside its range; leaves of integers; no axis of this name; `grad_fn` missing.

    Example:
      >>> tx = fedspeed(0.5, sync_every=1, prox=1.0, rho=0.0)
      >>> x, g = jnp.array([4.0, 4.0]), jnp.array([0.0, 2.0])
      >>> u, _ = jax.vmap(tx.update, axis_name="replica")(g, jax.vmap(tx.init)(x), x)
      >>> print(u)  # the steps 0 and -1, and the duals 0 and 1 that are taken off
      [-1. -1.]

    Reference: Sun et al. FedSpeed: Larger Local Interval, Less Communication Round, and Higher Generalization Accuracy.
    2023, arXiv 2302.10429. The numbers are those of the official code, which stores -l h_i.
    With a large l the steps are those of local SGD, and the duals add the movement of a round once more.
    """
    checks.axis_name("axis_name", axis_name, optional=False)
    checks.switch(normalize=normalize)
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    K = checks.integer("sync_every", sync_every, 1)
    checks.real("prox", prox, "(0, inf)")
    checks.real("rho", rho, "[0, inf)")
    checks.real("mix", mix, "[0, 1]")
    checks.real("weight_decay", weight_decay, "[0, inf)")
    checks.real("max_norm", max_norm, "(0, inf)", optional=True)
    twice = checks.readable(rho) != 0 and checks.readable(mix) != 0

    def init(params: Any) -> FedspeedState:
        check_leaves(NAME, params, complex_leaves=True)
        return FedspeedState(jnp.zeros((), jnp.int32), anchor(params), zeros(params))

    def ascended(g: Any, params: Any, grad_fn: Any) -> Any:
        """The mixture g of both gradients."""
        size = jnp.sqrt(global_square(g)) + 1e-7 if normalize else jnp.ones(())
        step = jnp.asarray(rho) / size
        at = jax.tree.map(lambda x, g: (x.astype(g.dtype) + step.astype(g.dtype) * g).astype(x.dtype), params, g)
        return jax.tree.map(lambda a, b: a + scalar(mix, a) * (b.astype(a.dtype) - a), g, grad_fn(at))

    def pulled(x: Any, start: Any) -> Any:
        """The gradient (x - x^t) / l of the proximal term."""
        return jax.tree.map(lambda x, s: (x - s) / scalar(prox, x), x, start)

    def meet(x: Any, state: FedspeedState, active: Any) -> tuple[Any, FedspeedState]:
        dual = jax.tree.map(jnp.subtract, state.dual, pulled(x, state.start))
        if active is None:
            mean = wide_mean(NAME, jax.tree.map(lambda x, h: x - scalar(prox, h) * h, x, dual), axis_name)
        else:
            there = jnp.asarray(active).astype(jnp.float32)
            share = wide_mean(NAME, there, axis_name)
            weight = there / jnp.where(share > 0, share, jnp.ones_like(share))
            dual = jax.tree.map(lambda new, old: jnp.where(there > 0, new, old), dual, state.dual)
            own = jax.tree.map(lambda x, h: weight.astype(x.dtype) * x - scalar(prox, h) * h, x, dual)
            mean = wide_mean(NAME, own, axis_name)
            mean = jax.tree.map(lambda m, s: jnp.where(share > 0, m, s), mean, state.start)
        return mean, alike(state._replace(start=mean, dual=dual), state)

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        sync: Any = None,
        grad_fn: Any = None,
        active: Any = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        del extra
        updates, params = checked(NAME, updates, params, axis_name)
        g, x = widen(updates), widen(params)
        if twice:
            g = ascended(g, params, need(NAME, {"grad_fn": grad_fn}, "grad_fn"))
        g = jax.tree.map(jnp.subtract, g, state.dual)
        if max_norm is not None:
            norm = jnp.sqrt(global_square(g))
            g = _times(jnp.minimum(jnp.asarray(max_norm, norm.dtype) / (norm + 1e-6), jnp.ones_like(norm)), g)
        rate = at_count(learning_rate, state.count, f"{NAME}: learning_rate")
        pull = pulled(x, state.start)
        step = jax.tree.map(lambda g, x, p: -scalar(rate, g) * (g + scalar(weight_decay, x) * x + p), g, x, pull)
        u = jax.tree.map(lambda s, g: s.astype(g.dtype), step, updates)
        state = state._replace(count=increment(state.count))

        def met() -> tuple[Any, Any]:
            mean, new = meet(jax.tree.map(jnp.add, x, step), state, active)
            return led(mean, params, u), new

        return either(sync, ends_round(state.count, K), met, (alike(u, params), state))

    def synchronize(params: Any, state: FedspeedState) -> tuple[Any, FedspeedState]:
        check_leaves("synchronize", params, complex_leaves=True)
        mean, state = meet(widen(params), state, None)
        return plain(mean, params), state

    update.synchronize = synchronize  # pyright: ignore[reportFunctionMemberAccess]
    return optax.GradientTransformationExtraArgs(init, update)


class ProxCorrectionState(NamedTuple):
    """Number of steps, and the parameters at the start of the round."""

    count: jax.Array
    start: Any

    exact_fields = ("start",)


def prox_correction(*, prox: Scalar = 10.0, sync_every: int = 8) -> optax.GradientTransformationExtraArgs:
    """Adds the proximal term of FedProx, which keeps a worker close to the start of its round.

    Equations, with the parameters x^t at the first step of every round of K = sync_every, and l = prox:

        g <- g + (x - x^t) / l

    Before the optimizer of a worker it turns local SGD into FedProx:

        gk.parallel.local_updates(optax.chain(gk.parallel.prox_correction(sync_every=8), gk.sgd(0.1)), sync_every=8)

    Args:
      prox: l > 0, 1 / mu of FedProx. Default 10.
      sync_every: K >= 1, the steps of a round, the same as for the strategy around it. Default 8.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter and a counter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx, x = prox_correction(prox=0.5), jnp.array(1.0)
      >>> _, state = tx.update(jnp.array(0.0), tx.init(x), x)
      >>> print(tx.update(jnp.array(0.0), state, x + 2.0)[0])
      4.0

    Reference: Li et al. Federated Optimization in Heterogeneous Networks. 2018, arXiv 1812.06127; Sun et al. FedSpeed:
    Larger Local Interval, Less Communication Round, and Higher Generalization Accuracy. 2023, arXiv 2302.10429.
    """
    checks.real("prox", prox, "(0, inf)")
    K = checks.integer("sync_every", sync_every, 1)

    def init(params: Any) -> ProxCorrectionState:
        return ProxCorrectionState(jnp.zeros((), jnp.int32), anchor(params))

    def update(updates: Any, state: ProxCorrectionState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        first = state.count % K == 0
        start = jax.tree.map(lambda x, s: jnp.where(first, x, s), params, state.start)
        new = jax.tree.map(lambda g, x, s: g + (x - s) / scalar(prox, x), updates, params, start)
        return new, ProxCorrectionState(increment(state.count), start)

    return transformation("prox_correction", init, update, needs_params=True, complex_leaves=True)


register(
    fedspeed,
    form="strategy",
    paper=PAPER,
    needs=("grad_fn",),
    words=2,
    collectives="replicas",
    golden=("parallel/fedspeed",),
    example={"sync_every": 2},
)
register(prox_correction, form="primitive", paper=PAPER, words=1, example={"sync_every": 2})
