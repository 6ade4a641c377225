"""Gradient noise that fades with the number of steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import increment, once_per_dtype, optimizer, transformation
from gradkit.engine.keys import check_key, first_key, needed_key
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate, trace
from gradkit.types import DTypeLike, Key, Scalar, ScalarOrSchedule

PAPER = Paper("An overview of gradient descent optimization algorithms", "Ruder", 2016, "1609.04747")
NOT_STACKED = {
    "stacked": "the noise of ten layers in one leaf has the distribution of that of ten leaves, not its values"
}


@jax.jit
def _noisy(g: jax.Array, key: jax.Array, i: Any, deviation: jax.Array) -> jax.Array:
    return g + deviation * jax.random.normal(jax.random.fold_in(key, i), g.shape, g.dtype)


class AddNoiseState(NamedTuple):
    """Number of updates made, and the random key of the next update; None where `update` is given one."""

    count: jax.Array
    key: Any


def add_noise(
    eta: Scalar = 0.01, *, gamma: Scalar = 0.55, key: Key | None = None
) -> optax.GradientTransformationExtraArgs:
    """Adds normal noise whose variance falls with the number of steps.

    Equations, with n_t standard normal and t = 0, 1, ... the number of earlier steps:

        g_t <- g_t + sigma_t n_t
        sigma_t^2 = eta / (1 + t)^gamma

    Under data parallelism it belongs behind the mean over devices.

    Args:
      eta: variance at the first step, >= 0. Default 0.01; the paper's are 0.01, 0.3 and 1.
      gamma: power with which the variance falls, >= 0. Default 0.55 (paper).
      key: a typed key or integer, from which the noise of all steps follows. Default None: `update` needs `key=`, which
        takes precedence where both are given.

    Returns:
      A transformation that needs the extra argument `key`, unless it is given here. State: a counter and a key.
      Elementwise: no collective; sharded noise is the noise of one device.

    Raises:
      ValueError: a hyperparameter outside its range; a missing key; complex leaves.

    Example:
      >>> tx = add_noise(0.3, key=jax.random.key(0))
      >>> g = jnp.zeros(10_000)
      >>> updates, _ = tx.update(g, tx.init(g))
      >>> round(float(jnp.var(updates)), 2)
      0.3

    Reference: Neelakantan et al. Adding Gradient Noise Improves Learning for Very Deep Networks. 2015, arXiv
    1511.06807; Ruder. An overview of gradient descent optimization algorithms. 2016, arXiv 1609.04747. The
    distribution is that of optax's link, which draws in the gradient's dtype and promotes its counter implicitly.
    """
    checks.real("eta", eta, "[0, inf)")
    checks.real("gamma", gamma, "[0, inf)")
    check_key(key)

    def init(params: optax.Params) -> AddNoiseState:
        del params
        # A copy, so that donating the state does not delete the user's key.
        return AddNoiseState(jnp.zeros((), jnp.int32), first_key(key))

    def update(updates: Any, state: AddNoiseState, params: Any = None, **extra: Any) -> tuple[Any, AddNoiseState]:
        del params
        kept, now = needed_key("add_noise", state.key, extra.get("key"))
        count = increment(state.count)
        leaves, structure = jax.tree.flatten(updates)

        def deviation(g: jax.Array) -> jax.Array:
            t, variance, power = (jnp.asarray(x).astype(g.dtype) for x in (count, eta, gamma))
            return jnp.sqrt(variance * t**-power)

        of_dtype = once_per_dtype(deviation)
        updates = structure.unflatten([_noisy(g, now, i, of_dtype(g)) for i, g in enumerate(leaves)])
        return updates, AddNoiseState(count, kept)

    return transformation("add_noise", init, update)


def noisy_sgd(
    learning_rate: ScalarOrSchedule,
    *,
    eta: Scalar = 0.01,
    gamma: Scalar = 0.55,
    momentum: Scalar | None = None,
    key: Key | None = None,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with fading gradient noise.

    Equations, with n_t standard normal and t = 0, 1, ... the number of earlier steps:

        g_t <- g_t + sigma_t n_t,    sigma_t^2 = eta / (1 + t)^gamma
        v_t = momentum v_{t-1} + g_t
        x_{t+1} = x_t - learning_rate v_t

    Args:
      learning_rate: step size >= 0, or a schedule.
      eta: variance of the noise at the first step, >= 0. Default 0.01; the paper's are 0.01, 0.3 and 1.
      gamma: power with which the variance falls, >= 0. Default 0.55 (paper).
      momentum: decay of the momentum of noisy gradients, in [0, 1]. Default None: no momentum, as with 0.
      key: a typed key or integer, from which the noise of all steps follows. Default None: `update` needs `key=`.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation that needs the extra argument `key`, unless it is given here. State: a counter and a key, 1 word
      per parameter with momentum. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; a missing key; complex leaves.

    Example:
      >>> tx = noisy_sgd(0.5, eta=0.0, key=jax.random.key(0))
      >>> x = jnp.array(1.0)
      >>> float(tx.update(x, tx.init(x), x)[0])
      -0.5

    Reference: Neelakantan et al. Adding Gradient Noise Improves Learning for Very Deep Networks. 2015, arXiv
    1511.06807; Ruder. An overview of gradient descent optimization algorithms. 2016, arXiv 1609.04747.
    """
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("momentum", momentum, "[0, 1]", optional=True)
    plain = checks.absent(momentum)
    return optimizer(
        Method("noisy_sgd", learning_rate),
        add_noise(eta, gamma=gamma, key=key),
        *([] if plain or momentum is None else [trace(momentum, mu_dtype=mu_dtype)]),
        scale_by_learning_rate(learning_rate),
    )


register(add_noise, form="primitive", paper=PAPER, needs=("key",), opt_outs=NOT_STACKED)
register(
    noisy_sgd,
    form="optimizer",
    paper=PAPER,
    needs=("key",),
    opt_outs=NOT_STACKED,
    race=Race(1e-1),
)
