"""Proximal steps on a cheap proxy of the loss, corrected by the gradient of the loss itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import at_count, increment, inside, optimizer, scalar, transformation, widen
from gradkit.leaves import Method
from gradkit.transforms.minimise_inner import descended
from gradkit.types import ScalarOrSchedule

PAPER = Paper(
    "Two Losses Are Better Than One: Faster Optimization Using a Cheaper Proxy",
    "Woodworth, Mishchenko, Bach",
    2023,
    "2302.03542",
)


class ProxyProxState(NamedTuple):
    """Number of updates made, and the learning rate of the last one as a metric."""

    count: jax.Array
    metrics: dict[str, jax.Array]


def proxy_prox(
    learning_rate: ScalarOrSchedule,
    proxy_loss: Callable[[Any], jax.Array],
    *,
    inner: optax.GradientTransformation,
    inner_steps: int,
) -> optax.GradientTransformationExtraArgs:
    """One gradient of the loss, then many of a cheaper loss that resembles it.

    Equations, with the gradient g_t of the loss F at x_t, the proxy P, and eta = learning_rate:

        x_{t+1} = argmin_y  P(y) + <g_t - grad P(x_t), y> + |y - x_t|^2 / (2 eta)

    Take eta about 1 / delta with delta the smoothness of F - P: the closer the two losses, the longer the step,
    whatever their conditioning. An inner loop approximates the minimum. The incoming gradient may be of a minibatch.

    Args:
      learning_rate: eta > 0, or a schedule: about 1 / delta.
      proxy_loss: P, parameters -> scalar; it gets the parameters in float32 or wider.
      inner: the optimizer of the inner loop, learning rate included; its state is initialised in every step.
      inner_steps: steps of the inner loop, >= 1, each with one gradient of the proxy.

    Returns:
      A transformation that needs `params`. The updates are complete: no learning rate follows. State: a counter and the
      metric `last_learning_rate`. Collectives: those of the proxy.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> proxy = lambda x: 9 * x**2 / 2  # the loss is 10 x^2 / 2: delta is 1
      >>> tx, x = proxy_prox(1.0, proxy, inner=optax.sgd(0.1), inner_steps=50), jnp.array(2.0)
      >>> print((x + tx.update(10 * x, tx.init(x), x)[0]).round(4))  # descent could take steps of 1 / 10
      0.0

    Reference: Woodworth, Mishchenko, Bach. Two Losses Are Better Than One: Faster Optimization Using a Cheaper Proxy.
    2023, arXiv 2302.03542. The result is the last point of the inner loop, not an average.
    """
    inner = inside(inner)
    checks.function("proxy_loss", proxy_loss)
    checks.real("learning_rate", learning_rate, "(0, inf)", schedule=True)
    inner_steps = checks.integer("inner_steps", inner_steps, 1)

    def published(rate: Any) -> dict[str, jax.Array]:
        # A copy, because donating the state would delete the caller's array.
        return {"last_learning_rate": jnp.array(rate, jnp.float32, copy=True)}

    def init(params: optax.Params) -> ProxyProxState:
        del params
        count = jnp.zeros((), jnp.int32)
        return ProxyProxState(count, published(at_count(learning_rate, count, "proxy_prox: learning_rate")))

    def update(g: Any, state: ProxyProxState, params: Any = None, **extra: Any) -> tuple[Any, ProxyProxState]:
        del extra
        eta = at_count(learning_rate, state.count, "proxy_prox: learning_rate")
        slope = jax.grad(proxy_loss)
        tilt = jax.tree.map(jnp.subtract, g, widen(slope(params)))

        def surrogate_grad(y: Any) -> tuple[None, Any]:
            pulled = lambda p, c, y, x: p + c + (y - x) / scalar(eta, y)  # noqa: E731
            return None, jax.tree.map(pulled, widen(slope(y)), tilt, y, params)

        y, _ = descended(surrogate_grad, inner, inner_steps, params, inner.init(params))
        return jax.tree.map(jnp.subtract, y, params), ProxyProxState(increment(state.count), published(eta))

    link = transformation("proxy_prox", init, update, needs_params=True)
    return optimizer(Method("proxy_prox", learning_rate), link)


def _bowl(params: Any) -> jax.Array:
    """|x|^2 / 2, as the example of the card."""
    return sum((jnp.sum(jnp.square(x)).astype(float) / 2 for x in jax.tree.leaves(params)), jnp.zeros((), float))


EXAMPLE = {"proxy_loss": _bowl, "inner": optax.sgd(0.1), "inner_steps": 3}
register(proxy_prox, form="optimizer", paper=PAPER, example=EXAMPLE, race=Race(1.0, EXAMPLE, schedule=None))
