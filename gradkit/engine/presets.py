"""Presets: a method under another name, with other defaults, and with the signature and the docstring of the first."""

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
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


def preset(method: F, name: str, summary: str, *, fixed: Mapping[str, Any] | None = None, **defaults: Any) -> F:
    """A method with other defaults, under a name of its own in messages and in `describe`.

    Args:
      method: a function that reads its own name with `called`.
      name: of the preset.
      summary: the first line of its docstring.
      fixed: arguments of the method that the preset does not have, and what they are. Default None: there are none.
      **defaults: arguments of the method, with the defaults that they have here.

    Returns:
      A function with the signature of the method, but for these arguments and defaults.

    Raises:
      ValueError: an argument that the method lacks.

    Example:
      >>> def sgd(learning_rate, *, momentum=0.0):
      ...     return called("sgd"), learning_rate, momentum
      >>> heavy = preset(sgd, "heavy", "SGD with much momentum.", momentum=0.9)
      >>> heavy(0.1), heavy(0.1, momentum=0.5), sgd(0.1)
      (('heavy', 0.1, 0.9), ('heavy', 0.1, 0.5), ('sgd', 0.1, 0.0))
      >>> inspect.signature(preset(sgd, "plain", "SGD without momentum.", fixed={"momentum": 0.0}))
      <Signature (learning_rate)>
    """
    own, fixed = inspect.signature(method), dict(fixed or {})
    if unknown := [argument for argument in {**fixed, **defaults} if argument not in own.parameters]:
        raise ValueError(f"preset: {method.__name__} has no argument {unknown[0]!r}, only {[*own.parameters]}")

    def build(*args: Any, **kwargs: Any) -> Any:
        if taken := [argument for argument in kwargs if argument in fixed]:
            raise TypeError(f"{name}() got an unexpected keyword argument {taken[0]!r}; {method.__name__}() has it")
        with _named(method.__name__, name):
            return method(*args, **{**fixed, **defaults, **kwargs})

    functools.update_wrapper(build, method)
    del build.__dict__["__wrapped__"]
    kept = [p for p in own.parameters.values() if p.name not in fixed]
    parameters = [p.replace(default=defaults.get(p.name, p.default)) for p in kept]
    setattr(build, "__signature__", own.replace(parameters=parameters))  # noqa: B010 - no attribute of its own
    build.__name__ = build.__qualname__ = name
    told = [", ".join(f"{argument}={value!r}" for argument, value in some.items()) for some in (fixed, defaults)]
    words = [word for word in (f"with {told[0]}" * bool(fixed), f"with the default {told[1]}" * bool(defaults)) if word]
    what = f"`{method.__name__}` {' and '.join(words) or 'under another name'}"
    rest = inspect.getdoc(method)
    body = "" if rest is None else _without(rest.partition("\n")[2], fixed)
    build.__doc__ = f"{summary}\n\nThis is {what}; all that follows is said of `{method.__name__}`.\n{body}"
    return build  # pyrefly: ignore


def _without(doc: str, arguments: Mapping[str, Any]) -> str:
    r"""A docstring without the description of some arguments, each of which ends where the next line is no deeper.

    >>> _without("Args:\n  a: one,\n    or more.\n  b: two.\n", {"a": 1})
    'Args:\n  b: two.\n'
    """
    for argument in arguments:
        doc = re.sub(rf"^( +){argument}: .*\n(?:\1 +.*\n)*", "", doc, count=1, flags=re.MULTILINE)
    return doc
