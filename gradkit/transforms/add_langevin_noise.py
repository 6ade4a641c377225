"""The noise of Langevin dynamics: behind the learning rate, whose square root it has."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import at_count, counter, increment, once_per_dtype, transformation
from gradkit.engine.keys import check_key, first_key, needed_key
from gradkit.leaves import Method
from gradkit.types import Key, Scalar, ScalarOrSchedule

PAPER = Paper("Bayesian Learning via Stochastic Gradient Langevin Dynamics", "Welling, Teh", 2011)
NOT_STACKED = {"stacked": "the noise of ten layers in one leaf is not that of ten leaves, only its law is"}


@jax.jit
def _noisy(u: jax.Array, key: jax.Array, i: Any, deviation: jax.Array) -> jax.Array:
    return u + deviation * jax.random.normal(jax.random.fold_in(key, i), u.shape, u.dtype)


class AddLangevinNoiseState(NamedTuple):
    """Number of updates made (None where the rate is no schedule), and the random key of the next, None where it comes
    with the step."""

    count: Any
    key: Any


def add_langevin_noise(
    learning_rate: ScalarOrSchedule, *, temperature: Scalar = 1.0, num_data: Scalar = 1.0, key: Key | None = None
) -> optax.GradientTransformationExtraArgs:
    """The last link of a sampler: adds the noise that belongs to steps of this learning rate.

        u <- u + sqrt(2 learning_rate_t temperature / num_data) xi,    xi ~ N(0, I),  t = 0, 1, ...

    It goes BEHIND `scale_by_learning_rate`, and has the same rate: `sgld` is the chain.

    Args:
      learning_rate: the rate of the link in front, > 0, or the same schedule, evaluated at a counter of its own.
      temperature: of the distribution that is sampled, >= 0. Default 1: the posterior; 0: no noise.
      num_data: number of examples that the loss is a mean over, >= 1. Default 1: the loss is the energy itself.
      key: a typed key or integer, from which the noise of all steps follows. Default None: `update` needs `key=`, which
        takes precedence over this one.

    Returns:
      A transformation that needs the extra argument `key`, unless it is given here. State: a key, and a counter where
      the rate is a schedule. Elementwise: no collective; sharded noise is the noise of one device. Replicas of the data
      must have the same key: the noise is added once, not once per replica.

    Raises:
      ValueError: a hyperparameter outside its range; no key; complex leaves.

    Example:
      >>> tx = add_langevin_noise(0.08, num_data=4, key=0)
      >>> u = jnp.zeros(10_000)
      >>> updates, _ = tx.update(u, tx.init(u))
      >>> round(float(jnp.std(updates)), 1)  # sqrt(2 * 0.08 / 4)
      0.2

    Reference: Welling, Teh. Bayesian Learning via Stochastic Gradient Langevin Dynamics. 2011. `gk.add_noise` and
    optax's link of that law stand in front of the rate and are not this: their noise is multiplied by the rate itself.
    """
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.real("temperature", temperature, "[0, inf)")
    checks.real("num_data", num_data, "[1, inf)")
    check_key(key)

    def init(params: Any) -> AddLangevinNoiseState:
        del params
        return AddLangevinNoiseState(counter(callable(learning_rate)), first_key(key))

    def update(updates: Any, state: AddLangevinNoiseState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        kept, now = needed_key("add_langevin_noise", state.key, extra.get("key"))
        rate = at_count(learning_rate, state.count, "add_langevin_noise: learning_rate")

        def deviation(u: jax.Array) -> jax.Array:
            lr, T, n = (jnp.asarray(x).astype(u.dtype) for x in (rate, temperature, num_data))
            return jnp.sqrt(2 * lr * T / n)

        of_dtype = once_per_dtype(deviation)
        leaves, structure = jax.tree.flatten(updates)
        noisy = [_noisy(u, now, i, of_dtype(u)) for i, u in enumerate(leaves)]
        return structure.unflatten(noisy), AddLangevinNoiseState(increment(state.count), kept)

    return transformation("add_langevin_noise", init, update, described=Method("add_langevin_noise", learning_rate))


register(
    add_langevin_noise,
    form="primitive",
    paper=PAPER,
    needs=("key",),
    example={"learning_rate": 0.1, "num_data": 1_000_000},
    opt_outs=NOT_STACKED,
    same_as="sgld",
    notes="behind the learning rate, and with the same one",
)
