"""Steps on a surrogate in the space of predictions: the loss is differentiated once, the model many times."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.transforms.minimise_inner import minimise_inner
from gradkit.types import ScalarOrSchedule

PAPER = Paper("Target-based Surrogates for Stochastic Optimization", "Lavington et al.", 2023, "2302.02607")


def target_surrogate(
    apply_fn: Callable[[Any, Any], jax.Array],
    target_loss: Callable[[jax.Array, Any], jax.Array],
    inner: optax.GradientTransformation,
    inner_steps: int,
    *,
    learning_rate: ScalarOrSchedule,
) -> Callable[..., tuple[Any, Any, jax.Array]]:
    """Target-based surrogate optimization (SSO): many cheap steps per expensive gradient of the loss.

    Equations, with eta = learning_rate:

        z_t = apply(theta_t),   G_i = gradient of the loss of example i by its prediction z_{t,i}
        s(theta) = mean_i <G_i, z_i - z_{t,i}> + |z_i - z_{t,i}|^2 / (2 eta),    z = apply(theta)
        theta_{t+1} = the result of inner_steps steps of `inner` on s from theta_t

    It pays off where the loss itself is expensive: a simulator, a human, a server.

    Args:
      apply_fn: (params, batch) -> predictions z, with one row per example.
      target_loss: (z, batch) -> losses, one per example, each a function of its own row. Differentiated once per step.
      inner: the optimizer of the surrogate, learning rate included.
      inner_steps: steps on the surrogate, >= 1.
      learning_rate: eta > 0, or a schedule step -> value: about 1 / L with L the smoothness of a loss in its
        predictions; with minibatches the paper divides it by the root of the step.

    Returns:
      step(params, inner_state, batch, count=0) -> (params, inner_state, value): `inner_state=None` initialises the
      inner optimizer; value is the mean loss before the step; `count`, the number of earlier steps, is for a schedule.
      It costs one gradient of the loss, and `inner_steps` of the model.

    Raises:
      ValueError: an argument outside its range; losses that are not one per example.

    Example:
      >>> line = lambda w, batch: w * batch[0]
      >>> square = lambda z, batch: (z - batch[1]) ** 2 / 2
      >>> step = target_surrogate(line, square, optax.sgd(0.1), 50, learning_rate=1.0)
      >>> batch = (jnp.array([1.0, 3.0]), jnp.array([2.0, 6.0]))
      >>> w, _, value = step(jnp.array(0.0), None, batch)  # least squares, in one step
      >>> print(w.round(4), value)
      2.0 10.0

    Reference: Lavington et al. Target-based Surrogates for Stochastic Optimization. 2023, arXiv 2302.02607. The
    released code has |z - z_t|^2 without the half, so that eta is half of the given step size, and a line search.
    """
    for name, function in {"apply_fn": apply_fn, "target_loss": target_loss}.items():
        checks.function(name, function)
    checks.transformation(inner=inner)
    inner_steps = checks.integer("inner_steps", inner_steps, 1)
    checks.real("learning_rate", learning_rate, "(0, inf)", schedule=True)

    def surrogate(params: Any, batch: Any, z_t: jax.Array, G: jax.Array, eta: Any) -> jax.Array:
        apart = apply_fn(params, batch) - z_t
        return jnp.sum(G * apart + jnp.square(apart) / (2 * eta)) / z_t.shape[0]

    solve = minimise_inner(surrogate, inner, inner_steps)

    def step(params: Any, inner_state: Any, batch: Any, count: Any = 0) -> tuple[Any, Any, jax.Array]:
        z_t = apply_fn(params, batch)
        losses, back = jax.vjp(lambda z: target_loss(z, batch), z_t)
        if losses.shape != z_t.shape[:1]:
            raise ValueError(
                f"target_surrogate: target_loss must return one loss per example, an array of shape {z_t.shape[:1]}, "
                f"got shape {losses.shape}; leave the mean over the batch out"
            )
        eta = learning_rate(count) if callable(learning_rate) else learning_rate
        eta = jnp.asarray(checks.scalar("target_surrogate: learning_rate", eta), z_t.dtype)
        params, state = solve(params, inner_state, batch, z_t, back(jnp.ones_like(losses))[0], eta)
        return params, state, jnp.mean(losses)

    return step


register(target_surrogate, form="program", paper=PAPER)
