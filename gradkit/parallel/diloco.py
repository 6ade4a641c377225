"""DiLoCo: replicas train separately for hundreds of steps, and an outer step with momentum moves their start point."""

from typing import Any

import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.parallel.local_updates import local_updates
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper(
    "DiLoCo: Distributed Low-Communication Training of Language Models", "Douillard et al.", 2023, "2311.08105"
)


def outer_nesterov(
    learning_rate: ScalarOrSchedule = 0.7, momentum: Scalar = 0.9
) -> optax.GradientTransformationExtraArgs:
    """The outer optimizer of DiLoCo, for the `outer` of `local_updates`: `optax.sgd` with Nesterov's momentum.

    Equations: m and theta of `diloco`.

    Args:
      learning_rate: gamma >= 0, or a schedule of the rounds. Default 0.7 (paper).
      momentum: beta in [0, 1]. Default 0.9 (paper).

    Returns:
      A transformation. State: 1 word per parameter.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, D = outer_nesterov(0.5, 0.5), jnp.array([1.0])
      >>> print(tx.update(D, tx.init(D))[0])  # - 0.5 (1 + 0.5)
      [-0.75]

    Reference: Douillard et al. 2023, arXiv 2311.08105.
    """
    return outer_momentum_sgd("learning_rate", learning_rate, "momentum", momentum, True)


def outer_momentum_sgd(
    rate_name: str, rate: Any, decay_name: str, decay: Any, nesterov: bool
) -> optax.GradientTransformationExtraArgs:
    checks.real(rate_name, rate, "[0, inf)", schedule=True)
    checks.real(decay_name, decay, "[0, 1]")
    return optax.with_extra_args_support(optax.sgd(rate, decay, nesterov=nesterov))


def diloco(
    inner: optax.GradientTransformation,
    *,
    sync_every: Any = 500,
    outer_learning_rate: ScalarOrSchedule = 0.7,
    outer_momentum: Scalar = 0.9,
    outer_nesterov: bool = True,
    axis_name: Any = "replica",
    exchange: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """DiLoCo: long rounds of any optimizer on every replica, and an outer step with momentum between them.

    Equations of a round, for replica k of W, which has x_k; theta and m are the same on all replicas:

        x_k   <- x_k + inner(g_k(x_k))             H = sync_every times
        D     =  (1/W) sum_k (theta - x_k)         the pseudo-gradient
        m     <- beta m + D
        theta <- theta - gamma (D + beta m)        without outer_nesterov: theta - gamma m
        x_k   <- theta                             the inner state does not change

    It is `local_updates(inner, outer=outer_nesterov(...))`. On a mesh of replicas that are themselves several devices:

        mesh = jax.make_mesh((4, 2), ("replica", "data"), axis_types=(AxisType.Auto,) * 2)
        tx = gk.parallel.diloco(gk.adamw(3e-4), sync_every=500)
        params = jax.device_put(params, NamedSharding(mesh, P()))      # or sharded along "data"
        params = gk.parallel.replicate(params, 4)                      # P("replica", ...)
        state = gk.parallel.init_replicas(tx, params)

        def step(params, state, batch):                                # of one replica, written without the mesh
            grads = jax.grad(loss_fn)(params, batch)
            updates, state = tx.update(grads, state, params, sync=False)
            return optax.apply_updates(params, updates), state

        def meet(params, state):
            return gk.parallel.synchronize(tx, params, state)

        shardings = jax.tree.map(lambda x: x.sharding, (params, state))
        step, meet = (
            jax.jit(jax.vmap(f, axis_name="replica"), out_shardings=shardings, donate_argnums=(0, 1))
            for f in (step, meet)
        )
        for batch, sync in zip(batches, gk.parallel.sync_steps(500, steps)):    # a batch: P("replica", "data")
            params, state = step(params, state, batch)
            if sync:
                params, state = meet(params, state)

    Only `meet` has collectives between replicas.

    Args:
      inner: the transformation of each replica; the paper has AdamW.
      sync_every: H, as in `local_updates`. Default 500 (paper).
      outer_learning_rate: gamma >= 0, or a schedule of the rounds. Default 0.7 (paper).
      outer_momentum: beta in [0, 1]. Default 0.9 (paper). With 0 and gamma = 1, local SGD.
      outer_nesterov: whether the outer momentum looks ahead. Default True (paper); False is SlowMo.
      axis_name: name of the axis of the replicas. Default "replica".
      exchange: a compressor of the pseudo-gradients, as in `local_updates`. Default None: their mean in float32.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter (theta, m) and the inner state, once per
      replica, and that of `exchange`. Collectives: one all-reduce of the parameters per round, in float32, or those of
      `exchange`.

    Raises:
      ValueError: a hyperparameter outside its range; leaves of integers; no axis of this name (at a sync step).

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> tx = diloco(optax.sgd(1.0), sync_every=1, outer_learning_rate=0.5, outer_momentum=0.5)
      >>> x, g = jnp.array([5.0, 5.0]), jnp.array([0.0, 2.0])
      >>> updates, _ = jax.vmap(tx.update, axis_name="replica")(g, jax.vmap(tx.init)(x), x)
      >>> print(updates)  # the replicas moved by 1 in the mean: 0.5 (1 + 0.5)
      [-0.75 -0.75]

    Reference: Douillard et al. DiLoCo: Distributed Low-Communication Training of Language Models. 2023, arXiv
    2311.08105. The numbers are those of torchft.
    """
    checks.axis_name("axis_name", axis_name, optional=False)
    checks.switch(outer_nesterov=outer_nesterov)
    names = ("outer_learning_rate", "outer_momentum")
    outer = outer_momentum_sgd(names[0], outer_learning_rate, names[1], outer_momentum, outer_nesterov)
    return local_updates(inner, sync_every=sync_every, axis_name=axis_name, outer=outer, exchange=exchange)


register(
    diloco,
    form="strategy",
    paper=PAPER,
    words=2,
    collectives="replicas",
    golden=("parallel/diloco",),
    example={"sync_every": 2},
)
