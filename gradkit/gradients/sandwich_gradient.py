"""The sandwich rule: a network, its smallest part and some random parts, trained together on the same weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.keys import NoKey, as_key
from gradkit.gradients.replicas import mean_over, own_copy

PAPER = Paper(
    "BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models", "Yu et al.", 2020, "2003.11142"
)


def sandwich_gradient(
    loss_fn: Callable[..., Any],
    sample: Callable[[Any], Any],
    num_random: int = 2,
    *,
    largest: Any,
    smallest: Any,
    axis_name: Any = None,
) -> Callable[..., tuple[Any, Any]]:
    """The sum of the gradients of the largest, the smallest and some sampled networks that share their weights.

        (L, y) = loss_fn(params, *args, config=largest)                          on labels
        L_j    = loss_fn(params, *args, config=c_j, targets=sg(y))[0]            distilled in place from the largest,
                                                                                 c_1 = smallest, c_2 ... sampled
        g      = grad L + weight sum_j grad L_j

    A sum, not a mean: the learning rates of the papers are for it. One network after another, with the activations of
    one.

    Args:
      loss_fn: (params, *args, config, targets=None) -> (scalar, predictions). Without targets, the loss on the labels
        of the batch, with dropout and penalties, if any; with targets, the distillation from these predictions of the
        largest network, without them (paper).
      sample: key -> configuration of a network: sizes, or masks.
      num_random: sampled networks per step, >= 0. Default 2 (paper).
      largest: the configuration of the largest network.
      smallest: that of the smallest one.
      axis_name: axis of `vmap` or `shard_map` over whose members value and gradient are averaged. Default None.

    Returns:
      fn(params, *args, key, weight=1.0) -> (L, g). `key` is a typed key or an integer, another one every step; `weight`
      counts the losses of the smaller networks, as `gk.schedules.shrink_rate_schedule` has it. No state; two gradients
      in memory. Collectives: one all-reduce of the gradient with `axis_name`.

    Raises:
      ValueError: an argument outside its range; when called, no key.

    Example:
      >>> def loss_fn(w, x, config, targets=None):
      ...     y = jnp.sum(jnp.where(jnp.arange(2) < config, w, 0.0) * x)
      ...     return (y - (1.0 if targets is None else targets)) ** 2, y
      >>> fn = sandwich_gradient(loss_fn, lambda key: 1, 0, largest=2, smallest=1)
      >>> print(fn(jnp.array([1.0, 1.0]), jnp.ones(2), key=0)[1])  # (2, 2) of the largest, (-2, 0) of the smallest
      [0. 2.]

    Reference: Yu et al. BigNAS: Scaling Up Neural Architecture Search with Big Single-Stage Models. 2020, arXiv
    2003.11142; from memory. Decoupled weight decay acts once, on the shared weights.
    """
    checks.arrays(largest=largest, smallest=smallest)
    checks.function("loss_fn", loss_fn)
    checks.function("sample", sample)
    num_random = checks.integer("num_random", num_random, 0)
    checks.axis_name("axis_name", axis_name)

    def fn(params: Any, *args: Any, key: Any = None, weight: Any = 1.0, **kwargs: Any) -> tuple[Any, Any]:
        if key is None:
            raise NoKey("sandwich_gradient", call="fn(params, batch, key=...)")
        params, random = own_copy(jax.tree.map(jnp.asarray, params), axis_name), as_key(key)

        def whole(p: Any) -> tuple[Any, Any]:
            return loss_fn(p, *args, config=largest, **kwargs)

        (value, predictions), g = jax.value_and_grad(whole, has_aux=True)(params)
        targets = jax.lax.stop_gradient(predictions)

        for j in range(num_random + 1):
            config = sample(jax.random.fold_in(random, j)) if j else smallest
            own = jax.grad(lambda p, c=config: loss_fn(p, *args, config=c, targets=targets, **kwargs)[0])(params)
            g = jax.tree.map(lambda total, x: total + jnp.asarray(weight).astype(x.dtype) * x, g, own)
        return mean_over((value, g), axis_name)

    return fn


register(sandwich_gradient, form="program", paper=PAPER, example={"sample": int, "largest": 2, "smallest": 1})
