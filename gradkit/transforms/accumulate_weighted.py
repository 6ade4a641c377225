"""Delayed updates: one step per k microbatches, from the sum of their gradients divided by the sum of their weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, inside, need, transformation, zeros
from gradkit.transforms.measured import loss_of


class AccumulateWeightedState(NamedTuple):
    """Number of microbatches since the last step; the sums of their weights, losses and gradients; the inner state."""

    count: jax.Array
    weight: jax.Array
    value: jax.Array
    total: Any
    inner: Any


def accumulate_weighted(
    inner: optax.GradientTransformation, every_k: int, *, axis_name: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Gradient accumulation for microbatches of different sizes: the step is that of all their tokens as one batch.

    Equations, with g_i the gradient of the SUM of the losses of the weight_i tokens or examples of microbatch i:

        A <- A + g_i,    N <- N + weight_i
        L <- L + value_i                                                 where `update` is given the SUM of the losses
        after every k-th:    u = inner(A / N) with value = L / N,        A, N, L <- 0
        otherwise:           u = 0

    `optax.MultiSteps` takes the mean of k means, in which a token of a short microbatch counts more than a token of a
    long one.

    Args:
      inner: makes the step from the mean gradient. It gets the mean loss as `value`, and the other extra arguments of
        the k-th call only.
      every_k: microbatches per step, >= 1.
      axis_name: axis of `vmap` or `shard_map` whose members are replicas with microbatches of their own; gradients and
        weights are summed over it before the division. Under plain jit gradients are sums over all devices already.
        Default None.

    Returns:
      A transformation that needs `weight`, a number >= 0: the number of tokens or examples over which the loss of the
      microbatch is summed. Between steps it returns zeros and does not change the inner state. If all weights are 0 the
      gradient is 0. State: 1 word per parameter, in float32 or wider, three numbers, and the inner state. Collectives:
      none without `axis_name`; with it one all-reduce of the gradient per step.

    Raises:
      ValueError: an argument outside its range; `weight` missing or, where it is not traced, negative.

    Example:
      >>> tx, x = accumulate_weighted(optax.sgd(1.0), 2), jnp.array(0.0)
      >>> u, state = tx.update(jnp.array(3.0), tx.init(x), x, weight=3)  # three tokens of gradient 1
      >>> float(u)
      0.0
      >>> u, state = tx.update(jnp.array(5.0), state, x, weight=1)  # one of gradient 5
      >>> float(u)
      -2.0

    Reference: Ott et al. Scaling Neural Machine Translation. 2018, arXiv 1806.00187. The rest of its recipe: Adam with
    b2 = 0.98, a warm-up over 4000 steps and then the inverse root of the step, twice the learning rate for large
    batches.
    """
    checks.axis_name("axis_name", axis_name)
    every_k = checks.integer("every_k", every_k, 1)
    below = inside(inner)

    def init(params: optax.Params) -> AccumulateWeightedState:
        return AccumulateWeightedState(
            jnp.zeros((), jnp.int32), jnp.zeros((), float), jnp.zeros((), float), zeros(params), below.init(params)
        )

    def update(updates: Any, state: AccumulateWeightedState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        weight = need("accumulate_weighted", extra, "weight")
        checks.real("weight", weight, "[0, inf)")
        rest = {name: value for name, value in extra.items() if name != "weight"}
        A = jax.tree.map(lambda a, g: a + g.astype(a.dtype), state.total, updates)
        N = state.weight + jnp.asarray(weight).astype(state.weight.dtype)
        L = state.value
        if rest.get("value") is not None:
            L = L + loss_of("accumulate_weighted", extra).astype(L.dtype)

        def step(A: Any, N: jax.Array, L: jax.Array) -> tuple[Any, Any, jax.Array, jax.Array, Any]:
            total, tokens, loss = (A, N, L) if axis_name is None else jax.lax.psum((A, N, L), axis_name)
            told = {**rest, "value": divide(loss, tokens)} if rest.get("value") is not None else rest
            mean = jax.tree.map(lambda a, g: divide(a, tokens.astype(a.dtype)).astype(g.dtype), total, updates)
            u, own = below.update(mean, state.inner, params, **told)
            u = jax.tree.map(lambda u, g: u.astype(g.dtype), u, updates)
            return u, jax.tree.map(jnp.zeros_like, A), jnp.zeros_like(N), jnp.zeros_like(L), own

        def wait(A: Any, N: jax.Array, L: jax.Array) -> tuple[Any, Any, jax.Array, jax.Array, Any]:
            return jax.tree.map(jnp.zeros_like, updates), A, N, L, state.inner

        count = (state.count + 1) % every_k
        u, A, N, L, own = jax.lax.cond(count == 0, step, wait, A, N, L)
        return u, AccumulateWeightedState(count, N, L, A, own)

    return transformation("accumulate_weighted", init, update, complex_leaves=True)


register(
    accumulate_weighted,
    form="wrapper",
    paper=Paper("Scaling Neural Machine Translation", "Ott et al.", 2018, "1806.00187"),
    needs=("weight",),
    words=1,
    example={"every_k": 2},
    opt_outs={"extra": "hands on the mean loss in place of the last one"},
)
