"""Arguments that are no numbers, told from those that may be traced: by their annotations.

`optax.inject_hyperparams` keeps every number of a call in the state, where it is traced: also a number of iterations
or the largest size of a preconditioner, which decide the program. It reads the signature of the factory that it wraps,
and leaves alone what is no `int`, `float` or array. The signature that `declare` gives a factory therefore shows the
wrapper such arguments as numbers of other types, which the factories take for the same numbers. A function that is no
schedule cannot be shown so: it is named in optax's `static_args`, or wrapped by `gk.inject_hyperparams`, which knows.
An argument that may be a number, or a function of something else than the step, is shown as a `Rule`.
"""

import inspect
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from gradkit.types import Scalar, ScalarOrSchedule

# How arguments are annotated that may be traced.
NUMERIC = (Any, "Any", Scalar, Scalar | None, ScalarOrSchedule, ScalarOrSchedule | None)
# Arguments of several types, annotated `Any`, of which none is a hyperparameter that changes from step to step.
NAMES = frozenset({"axis_name", "key", "labels", "mask", "method"})
ENDINGS = ("_dtype", "_mask")
# Arguments that may be an integer, which may change from step to step, or else a rule, which is no schedule.
RULES = frozenset({"sync_every"})


class Rule:
    """A function or a table in an argument of `RULES`, which `optax.inject_hyperparams` would take for a schedule or
    for a number.

    Attributes:
      value: the function or the table.
    """

    def __init__(self, value: Any) -> None:
        self.value = value


def is_static(argument: inspect.Parameter) -> bool:
    """Whether an argument is known when the program is built. What may be traced or scheduled is annotated `Scalar`,
    `ScalarOrSchedule` or `Any`.

    >>> def f(learning_rate: ScalarOrSchedule, steps: int, mu_dtype: Any): ...
    >>> [is_static(argument) for argument in inspect.signature(f).parameters.values()]
    [False, True, True]
    """
    empty = argument.annotation is inspect.Parameter.empty
    numeric = argument.annotation in NUMERIC or empty
    return not numeric or argument.name in NAMES or argument.name.endswith(ENDINGS)


def _unlike_a_number(value: Any) -> Any:
    """The same value, of a type that `optax.inject_hyperparams` leaves alone; functions stay what they are."""
    if isinstance(value, bool | Fraction):
        return value
    if isinstance(value, int):
        return np.int64(value)
    if isinstance(value, float):
        return Fraction(value) if np.isfinite(value) else value
    return value


class _Bound(inspect.BoundArguments):
    def apply_defaults(self) -> None:
        super().apply_defaults()
        for name, value in self.arguments.items():
            if is_static(self.signature.parameters[name]):
                dtype = name.endswith("_dtype") and isinstance(value, type)
                self.arguments[name] = np.dtype(value) if dtype else _unlike_a_number(value)
            elif name in RULES and (callable(value) or np.ndim(value)):
                self.arguments[name] = Rule(value)


class Declared(inspect.Signature):
    """A signature whose arguments, with their defaults, are numbers only where a number may be traced."""

    def bind(self, /, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        bound = super().bind(*args, **kwargs)
        return _Bound(self, bound.arguments)


def declare(function: Callable[..., Any]) -> None:
    """Gives a factory of transformations the signature `Declared`.

    >>> import optax
    >>> def f(learning_rate: Any, steps: int = 3):
    ...     assert isinstance(steps, np.int64)
    ...     return optax.sgd(learning_rate)
    >>> declare(f)
    >>> state = optax.inject_hyperparams(f)(0.1).init({"w": np.zeros(2, np.float32)})
    >>> sorted(state.hyperparams)
    ['learning_rate']
    """
    own = inspect.signature(function)
    signature = Declared(list(own.parameters.values()), return_annotation=own.return_annotation)
    setattr(function, "__signature__", signature)  # noqa: B010 - no attribute of its own, for the type checker
