"""Asynchronous local SGD: momentum that is updated by a full buffer, and fewer local steps on slow workers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Race, register
from gradkit.engine.core import increment, optimizer, scalar, transformation, zeros
from gradkit.leaves import Method
from gradkit.parallel.arrivals import EQUAL, PAPER, positive
from gradkit.transforms import scale_by_learning_rate
from gradkit.types import Scalar, ScalarOrSchedule

NAME = "delayed_nesterov"


class DelayedNesterovState(NamedTuple):
    """Number of arrivals, the momentum, and the sum of the pseudo-gradients in the buffer."""

    count: jax.Array
    velocity: Any
    buffer: Any


def delayed_nesterov(
    learning_rate: ScalarOrSchedule, *, momentum: Scalar = 0.9, buffer_size: int = 4, activation: Any = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Nesterov's momentum of a server whose workers arrive one by one: every arrival moves the parameters, every N-th
    the momentum.

    Equations of arrival t = 0, 1, ... of a pseudo-gradient g, with N = buffer_size and c = activation:

        D     <- D + g
        theta <- theta - learning_rate (c beta m + g / N)                       (t + 1) mod N > 0

    and where (t + 1) mod N = 0:

        m     <- beta m + D / N,   D <- 0
        theta <- theta - learning_rate ((1 - c N + c) beta m + g / N)

    With N = 1 it is SGD with Nesterov's momentum, for any `activation`.

    Args:
      learning_rate: step size >= 0, or a schedule of the arrivals. The paper's is near 0.1 where the synchronous one is
        0.7.
      momentum: beta, in [0, 1]. Default 0.9 (paper).
      buffer_size: N >= 1, usually the number of workers. Default 4 (paper).
      activation: c, the fraction of the momentum that each arrival applies, in [0, 1/N]. Default 0 (paper): the N-th
        arrival applies all of it; 1/N distributes it evenly.

    Returns:
      A transformation of pseudo-gradients that are not divided by the number of workers. State: 2 words per parameter.
      Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = delayed_nesterov(1.0, momentum=0.5, buffer_size=2)
      >>> g = jnp.array([4.0])
      >>> state = tx.init(g)
      >>> for _ in range(2):  # -g/N, then -(g/N + beta m) with m = g
      ...     u, state = tx.update(g, state)
      ...     print(u)
      [-2.]
      [-4.]

    Reference: Liu et al. Asynchronous Local-SGD Training for Language Modeling. 2024, arXiv 2401.09135, Algorithm 3.
    The numbers are those of the public code of HALoS; the authors' notebook has only the baselines.
    """
    checks.real("momentum", momentum, "[0, 1]")
    N = checks.integer("buffer_size", buffer_size, 1)
    checks.real("activation", activation, "[0, 1]")
    if (c := checks.readable(activation)) is not None and c * N > 1 + EQUAL:
        raise ValueError(f"activation must be in [0, 1/buffer_size], got {activation!r} for {N}; write {1 / N:.4g}")

    def init(params: Any) -> DelayedNesterovState:
        return DelayedNesterovState(jnp.zeros((), jnp.int32), zeros(params), zeros(params))

    def update(updates: Any, state: DelayedNesterovState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count = increment(state.count)
        full = count % N == 0
        buffer = jax.tree.map(jnp.add, state.buffer, updates)

        def beta_m(m: jax.Array) -> jax.Array:
            return scalar(momentum, m) * m

        new = jax.tree.map(lambda m, D: jnp.where(full, beta_m(m) + D / N, m), state.velocity, buffer)

        def moved(g: jax.Array, m: jax.Array) -> jax.Array:
            c = scalar(activation, m)
            share = jnp.where(full, 1 - c * N + c, c).astype(m.dtype)
            return share * beta_m(m) + g / N

        u = jax.tree.map(moved, updates, new)
        left = jax.tree.map(lambda D: jnp.where(full, jnp.zeros_like(D), D), buffer)
        return u, DelayedNesterovState(count, new, left)

    return optimizer(
        Method(NAME, learning_rate),
        transformation(NAME, init, update, complex_leaves=True),
        scale_by_learning_rate(learning_rate),
    )


def dynamic_local_steps(seconds_per_step: Any, sync_every: int) -> np.ndarray:
    """Local steps in proportion to a worker's speed, so that all arrive at about the same time.

    Equations, for workers that take seconds_w per step, the fastest of which makes H steps:

        steps_w = max(1, floor(H min_j seconds_j / seconds_w))

    Args:
      seconds_per_step: > 0, one number per worker; a worker with infinity makes one step.
      sync_every: H >= 1, the steps of the fastest worker.

    Returns:
      Integers >= 1, one per worker, for `arrival_schedule`.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> dynamic_local_steps([0.5, 1.0, 1.6, 80.0], 50).tolist()
      [50, 25, 15, 1]

    Reference: Liu et al. Asynchronous Local-SGD Training for Language Modeling. 2024, arXiv 2401.09135 (dynamic local
    updates). The authors' notebook makes at least 5 steps; here 1.
    """
    seconds = positive("seconds_per_step", seconds_per_step)
    H = checks.integer("sync_every", sync_every, 1)
    if not np.isfinite(seconds.min()):
        raise ValueError(f"seconds_per_step must be finite for one worker at least, got {seconds_per_step!r}")
    # 0.1 / 0.3 * 30 is below 10 in binary.
    return np.maximum(1, np.floor(H * (seconds.min() / seconds) * (1 + EQUAL))).astype(np.int64)


def async_local_sgd(
    value_and_grad: Callable[..., tuple[Any, Any]], inner: optax.GradientTransformation, *, keep_state: bool = True
) -> Callable[[Any, Any, Any, Any], tuple[Any, Any]]:
    """The local phase of `simulate_events`: any optimizer on a worker, for a number of steps that is data.

    Equations, with the parameters x_0 that the worker read:

        x_{k+1} = x_k + inner(gradient of minibatch k at x_k)
        delta   = x_0 - x_steps

    The optimizer of the paper's language models is `gk.adamw`, the server's `delayed_nesterov`, and the whole run:

        steps = gk.parallel.dynamic_local_steps(seconds, 50)
        table = gk.parallel.arrival_schedule(seconds, steps, 1000)
        phase = gk.parallel.async_local_sgd(jax.value_and_grad(loss_fn), inner)
        server = gk.parallel.delayed_nesterov(0.1, buffer_size=len(seconds))
        run = gk.parallel.start_simulation(params, server, len(seconds), worker_state=inner.init(params))
        run, losses = gk.parallel.simulate_events(table, phase, server, run, data=batches, record=test_loss)

    Args:
      value_and_grad: (parameters, minibatch) -> (loss, gradient), as `jax.value_and_grad(loss_fn)` gives it.
      inner: the transformation of a worker.
      keep_state: whether a worker continues with its own state of `inner` in its next round (then it is the
        `worker_state` of `start_simulation`). Default True, as in DiLoCo; False starts every round from a fresh state.

    Returns:
      (parameters read, state, minibatches, steps) -> (pseudo-gradient, state). Leaves of the minibatches have a leading
      axis of H minibatches, of which the first `steps` are used, all for None. Every round costs the computation of H
      steps.

    Raises:
      ValueError: an argument that is not a function, or not a transformation.

    Example:
      >>> phase = async_local_sgd(jax.value_and_grad(lambda x, b: b * x), optax.sgd(1.0), keep_state=False)
      >>> print(phase(jnp.array(0.0), None, jnp.array([1.0, 2.0, 4.0]), jnp.array(2))[0])
      3.0

    Reference: Liu et al. Asynchronous Local-SGD Training for Language Modeling. 2024, arXiv 2401.09135.
    """
    checks.function("value_and_grad", value_and_grad)
    checks.transformation(inner=inner)
    checks.switch(keep_state=keep_state)
    tx = optax.with_extra_args_support(inner)

    def phase(start: Any, state: Any, batches: Any, steps: Any) -> tuple[Any, Any]:
        def local(carry: Any, row: Any) -> tuple[Any, None]:
            k, batch = row
            x, own = carry
            value, g = value_and_grad(x, batch)
            u, new = tx.update(g, own, x, value=value)
            made = (optax.apply_updates(x, u), new)
            if steps is None:
                return made, None
            return jax.tree.map(lambda n, o: jnp.where(k < steps, n, o), made, carry), None

        H = len(jax.tree.leaves(batches)[0])
        own = state if keep_state else tx.init(start)
        (end, new), _ = jax.lax.scan(local, (start, own), (jnp.arange(H), batches))
        return jax.tree.map(jnp.subtract, start, end), new if keep_state else state

    return phase


register(
    delayed_nesterov,
    form="optimizer",
    paper=PAPER,
    delay="any; momentum from every few arrivals",
    words=2,
    golden=("parallel/delayed_nesterov",),
    race=Race(0.1),
    notes="of a server that workers reach one by one",
)
register(dynamic_local_steps, form="function", paper=PAPER, example={"seconds_per_step": (1.0, 2.0), "sync_every": 8})
register(async_local_sgd, form="program", paper=PAPER, delay="any; every worker has steps of its own speed")
