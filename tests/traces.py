"""How often a function was traced: once, where all its calls are one program."""

import functools
from collections.abc import Callable
from typing import Any

import jax


def counted(function: Callable[..., Any], **options: Any) -> tuple[Any, list[int]]:
    """The function under `jax.jit`, and a list that grows by one whenever it is traced."""
    traces: list[int] = []

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        traces.append(1)
        return function(*args, **kwargs)

    return jax.jit(traced, **options), traces
