"""Hyperparameters in the state: every number becomes traced, so it can be changed without recompiling."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.arguments import is_static


def inject_hyperparams(
    factory: Callable[..., optax.GradientTransformation], *, static_args: str | Iterable[str] = ()
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """`optax.inject_hyperparams` whose hyperparameters never take the parameters' dtype.

    optax keeps them in the dtype of the parameters unless told otherwise, and with bfloat16 parameters a decay
    of 0.999 is then 1. Here they are float32, or float64 where that is enabled.

    Args:
      factory: makes a transformation from hyperparameters, such as `gk.adamw`.
      static_args: names of arguments that stay Python values; masks, layouts, dtypes, keys, and what is annotated as
        something else than `Any` (lengths, which decide shapes; functions) always do.

    Returns:
      A function with the factory's arguments. The state has `hyperparams`, a dictionary that may be changed
      between steps; schedules are evaluated at every step.

    Example:
      >>> import gradkit as gk
      >>> tx = inject_hyperparams(gk.sgd)(0.5)
      >>> x = jnp.ones(2, jnp.bfloat16)
      >>> state = tx.init(x)
      >>> state.hyperparams["learning_rate"] = jnp.float32(0.25)
      >>> tx.update(x, state, x)[0].tolist()
      [-0.25, -0.25]

    Reference: DeepMind's optax, `inject_hyperparams`.
    """
    checks.function("factory", factory)
    known = inspect.signature(factory).parameters
    own = {static_args} if isinstance(static_args, str) else set(static_args)
    own |= {name for name, argument in known.items() if is_static(argument)}

    def make(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        dtype = jnp.result_type(float)
        return optax.inject_hyperparams(factory, static_args=own, hyperparam_dtype=dtype)(*args, **kwargs)

    return make
