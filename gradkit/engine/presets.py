"""Presets: a method under another name, with other defaults, and with the signature and the docstring of the first."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_CALLED: ContextVar[tuple[str, str] | None] = ContextVar("called", default=None)


@contextlib.contextmanager
def _named(method: str, preset: str) -> Iterator[None]:
    token = _CALLED.set((method, preset))
    try:
        yield
    finally:
        _CALLED.reset(token)


def called(method: str) -> str:
    """The name that a method is called by: its own, or that of the preset that is being built of it."""
    own = _CALLED.get()
    return own[1] if own is not None and own[0] == method else method


def preset(method: F, name: str, summary: str, **defaults: Any) -> F:
    """A method with other defaults, under a name of its own in messages and in `describe`.

    Args:
      method: a function that reads its own name with `called`.
      name: of the preset.
      summary: the first line of its docstring.
      **defaults: arguments of the method, with the defaults that they have here.

    Returns:
      A function with the signature of the method, but for these defaults.

    Raises:
      ValueError: an argument that the method lacks.

    Example:
      >>> def sgd(learning_rate, *, momentum=0.0):
      ...     return called("sgd"), learning_rate, momentum
      >>> heavy = preset(sgd, "heavy", "SGD with much momentum.", momentum=0.9)
      >>> heavy(0.1), heavy(0.1, momentum=0.5), sgd(0.1)
      (('heavy', 0.1, 0.9), ('heavy', 0.1, 0.5), ('sgd', 0.1, 0.0))
    """
    own = inspect.signature(method)
    if unknown := [argument for argument in defaults if argument not in own.parameters]:
        raise ValueError(f"preset: {method.__name__} has no argument {unknown[0]!r}, only {[*own.parameters]}")

    def build(*args: Any, **kwargs: Any) -> Any:
        with _named(method.__name__, name):
            return method(*args, **{**defaults, **kwargs})

    functools.update_wrapper(build, method)
    del build.__dict__["__wrapped__"]
    parameters = [p.replace(default=defaults.get(p.name, p.default)) for p in own.parameters.values()]
    setattr(build, "__signature__", own.replace(parameters=parameters))  # noqa: B010 - no attribute of its own
    build.__name__ = build.__qualname__ = name
    told = ", ".join(f"{argument}={value!r}" for argument, value in defaults.items())
    what = f"`{method.__name__}` with the default {told}" if defaults else f"`{method.__name__}` under another name"
    rest = inspect.getdoc(method)
    body = "" if rest is None else rest.partition("\n")[2]
    build.__doc__ = f"{summary}\n\nThis is {what}; all that follows is said of `{method.__name__}`.\n{body}"
    return build  # pyrefly: ignore
