"""Validation of what a user passes: one place, one style of message.

Every check names the argument and the allowed range, and raises `ValueError`. Values that cannot be
read while a program is being traced (a learning rate under `vmap`, an injected hyperparameter) and
schedules are let through: they are checked where they become concrete, or not at all.
"""

import contextlib
import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

LARGEST = 2**31 - 1
# Of what Python does one after another, and the program has as often.
MOST_UNROLLED = 1000


def _concrete(value: Any) -> float | None:
    """The value as a Python float, or None where it cannot be read now."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return None
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Tracer) or not isinstance(value, jax.Array | np.ndarray | np.generic):
        return None
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        return None  # random keys are arrays that hold no numbers
    array = np.asarray(value)
    # JAX's own question, as NumPy takes bfloat16 and float8 for opaque bytes.
    known = any(jax.dtypes.issubdtype(array.dtype, kind) for kind in (np.floating, np.integer))
    return float(array) if array.ndim == 0 and known else None


def real(
    name: str, value: Any, interval: str = "(-inf, inf)", *, optional: bool = False, schedule: bool = False
) -> None:
    """Checks that a hyperparameter is a number inside an interval.

    Args:
      name: the argument, as the user wrote it.
      value: a number, a scalar array, a traced scalar (let through), or, where the switches below
        allow it, a schedule or None.
      interval: as mathematics writes it: `"[0, 1)"`, `"(0, inf)"`.
      optional: whether None is allowed.
      schedule: whether a callable step -> value is allowed.

    Raises:
      ValueError: not a number, NaN, or outside the interval.

    >>> real("b1", 0.9, "[0, 1)")
    >>> real("b1", 1.0, "[0, 1)")
    Traceback (most recent call last):
    ValueError: b1 must be in [0, 1), got 1.0
    """
    if (optional and value is None) or (schedule and callable(value)):
        return
    if isinstance(value, Tracer):
        scalar(name, value)
        return
    number = _concrete(value)
    extra = (" or a schedule" if schedule else "") + (" or None" if optional else "")
    if number is None:
        raise ValueError(f"{name} must be a number in {interval}{extra}, got {value!r}")
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = number > low or (interval[0] == "[" and number == low)
    below = number < high or (interval[-1] == "]" and number == high)
    if math.isnan(number) or not (above and below):
        raise ValueError(f"{name} must be in {interval}{extra}, got {value!r}")


def absent(value: Any) -> bool:
    """Whether a decay says that what it decays is not kept: None, or the Python number 0.

    None is the default of such arguments, as `optax.inject_hyperparams` would keep an accumulator for a traced 0.

    >>> absent(None), absent(0.0), absent(np.float32(0.0))
    (True, True, False)
    """
    return value is None or (isinstance(value, int | float) and value == 0)


def readable(value: Any) -> float | None:
    """A number as a Python float, so that products with it are those of Python; None where it is being traced.

    >>> int(readable(0.29) * 100)
    28
    """
    return _concrete(value)


def scalar(name: str, value: Any) -> Any:
    """The value of a schedule or hyperparameter, which must be one number, where it is used.

    A value of shape (1,) would be broadcast, and give scalar leaves that shape.

    >>> scalar("learning_rate", 0.1)
    0.1
    >>> scalar("learning_rate", np.array([0.1]))
    Traceback (most recent call last):
    ValueError: learning_rate must be one number, got an array of shape (1,); write value.reshape(()) or value[0]
    """
    if np.shape(value) != ():
        raise ValueError(
            f"{name} must be one number, got an array of shape {np.shape(value)}; write value.reshape(()) or value[0]"
        )
    return value


def switch(**given: Any) -> None:
    """Checks that arguments, by their names, are True or False.

    >>> switch(nesterov="False")
    Traceback (most recent call last):
    ValueError: nesterov must be True or False, got 'False'; write nesterov=True or nesterov=False
    """
    for name, value in given.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} must be True or False, got {value!r}; write {name}=True or {name}=False")


def floating_dtype(**given: Any) -> None:
    """Checks that arguments, by their names, are dtypes of real or complex floating point numbers, or None.

    >>> floating_dtype(mu_dtype=np.int32)
    Traceback (most recent call last):
    ValueError: mu_dtype must be a floating point dtype or None, got int32; write mu_dtype=jnp.float32 or jnp.bfloat16
    """
    for name, value in given.items():
        if value is None:
            continue
        dtype = None
        # What has a dtype, as an array does, is none; and of a mapping NumPy makes one with fields.
        if isinstance(value, type | np.dtype | str):
            with contextlib.suppress(TypeError):
                dtype = np.dtype(value)
        if dtype is None or not jax.dtypes.issubdtype(dtype, np.inexact):
            got = repr(value) if dtype is None else dtype
            raise ValueError(
                f"{name} must be a floating point dtype or None, got {got}; write {name}=jnp.float32 or jnp.bfloat16"
            )


def integer(name: str, value: Any, minimum: int = 0, *, maximum: int = LARGEST, optional: bool = False) -> Any:
    """Checks that an argument is a whole number from `minimum` to `maximum`, and gives it back as a Python integer.

    Counters and lengths are int32 numbers in a program: the largest of them is the default of `maximum`. What Python
    does so many times, as a product of matrices per step, has a smaller one: `MOST_UNROLLED`.

    >>> integer("microbatches", np.int64(3), 1)
    3
    >>> integer("microbatches", 0, 1)
    Traceback (most recent call last):
    ValueError: microbatches must be an integer >= 1, got 0
    >>> integer("microbatches", 10**30, 1)
    Traceback (most recent call last):
    ValueError: microbatches must be an integer >= 1 and <= 2147483647, got 1000000000000000000000000000000
    """
    if optional and value is None:
        return None
    large = isinstance(value, numbers.Integral) and int(value) > maximum
    upper = f" and <= {maximum}" if large or maximum < LARGEST else ""
    allowed = f"{name} must be an integer >= {minimum}{upper}{' or None' if optional else ''}"
    if isinstance(value, Tracer):
        raise ValueError(
            f"{allowed} that is known when the program is built, got a traced value; write {name} as a Python "
            f"integer, or inject_hyperparams(..., static_args={name!r})"
        )
    if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0 and jax.dtypes.issubdtype(value.dtype, np.integer):
        value = int(value)
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not minimum <= int(value) <= maximum:
        raise ValueError(f"{allowed}, got {value!r}")
    return int(value)


def choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Checks that an argument is one of a few values, and offers the nearest.

    >>> choice("shape", "liner", ["linear", "cosine"])
    Traceback (most recent call last):
    ValueError: shape must be one of 'linear', 'cosine', got 'liner'; did you mean 'linear'?
    """
    allowed = list(allowed)
    if not any(value is option or (type(value) is type(option) and value == option) for option in allowed):
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}{nearest(value, allowed)}"
        )


def transformation(**given: Any) -> None:
    """Checks that arguments, by their names, are optax transformations: pairs of functions `init` and `update`.

    >>> transformation(inner=0.1)
    Traceback (most recent call last):
    ValueError: inner must be an optax transformation, such as optax.adam(1e-3) or gk.adamw(1e-3), got 0.1
    """
    for name, value in given.items():
        if not all(callable(getattr(value, part, None)) for part in ("init", "update")) or isinstance(value, type):
            hint = "; call it: it makes one" if callable(value) else ""
            allowed = f"{name} must be an optax transformation, such as optax.adam(1e-3) or gk.adamw(1e-3)"
            raise ValueError(f"{allowed}, got {value!r}{hint}")


def axis_name(name: str, value: Any, *, optional: bool = True) -> None:
    """Checks that an argument is the name of a mesh axis, or several in a tuple.

    >>> axis_name("axis_name", 3)
    Traceback (most recent call last):
    ValueError: axis_name must be the name of a mesh axis, a tuple of them or None, got 3; write axis_name='data'
    """
    known = [value] if isinstance(value, str) else list(value) if isinstance(value, tuple | list) else []
    if (optional and value is None) or (known and all(isinstance(axis, str) and axis for axis in known)):
        return
    none = " or None" if optional else ""
    raise ValueError(
        f"{name} must be the name of a mesh axis, a tuple of them{none}, got {value!r}; write {name}='data'"
    )


def function(name: str, value: Any) -> None:
    """Checks that an argument can be called."""
    if not callable(value):
        raise ValueError(f"{name} must be callable, got {value!r}")


def _holds_numbers(value: Any) -> bool:
    """Whether a leaf is an array or number, or the shape of one."""
    if isinstance(value, bool | numbers.Number):
        return True
    dtype = getattr(value, "dtype", None)
    if dtype is None or isinstance(value, type) or not hasattr(value, "shape"):
        return False
    return not isinstance(dtype, np.dtype) or dtype.kind not in "OSUMm"


def arrays(**given: Any) -> None:
    """Checks that arguments, by their names, are arrays, numbers, or trees of them.

    >>> arrays(params={"w": np.zeros(2), "b": 0.5})
    >>> arrays(params={"w": "zeros"})
    Traceback (most recent call last):
    ValueError: params must be an array, a number or a tree of them, got 'zeros' in {'w': 'zeros'}
    """
    for name, tree in given.items():
        for leaf in [tree] if isinstance(tree, Iterator) else jax.tree.leaves(tree):
            if not _holds_numbers(leaf):
                where = "" if leaf is tree else f" in {_short(tree)}"
                raise ValueError(f"{name} must be an array, a number or a tree of them, got {_short(leaf)}{where}")


def sequence(schedules: bool = False, **given: Any) -> None:
    """Checks that arguments, by their names, are sequences of numbers (or of `schedules`), or of such sequences.

    >>> sequence(b1s=(0.9, 0.99))
    >>> sequence(b1s=0.9)
    Traceback (most recent call last):
    ValueError: b1s must be a sequence of numbers, such as (0.5, 0.9), got 0.9
    """
    for name, value in given.items():
        listed = isinstance(value, list | tuple | range) or getattr(value, "shape", ()) != ()
        entries = jax.tree.leaves(list(value)) if listed else [value]
        if not listed or not all(_holds_numbers(x) or (schedules and callable(x)) for x in entries):
            raise ValueError(f"{name} must be a sequence of numbers, such as (0.5, 0.9), got {_short(value)}")


def instance(name: str, value: Any, kind: type) -> None:
    """Checks that an argument is of a class, as the function that makes it returns it.

    >>> instance("state", 0.5, tuple)
    Traceback (most recent call last):
    ValueError: state must be of the class tuple, got 0.5
    """
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be of the class {kind.__name__}, got {_short(value)}")


def mapping(optional: bool = False, **given: Any) -> None:
    """Checks that arguments, by their names, are mappings with names as keys."""
    for name, value in given.items():
        named = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        if not named and not (optional and value is None):
            raise ValueError(f"{name} must be a mapping from names, such as {{'a': 0.5}}, got {_short(value)}")


def axes(**given: Any) -> None:
    """Checks that arguments, by their names, are numbers of axes: an integer, a sequence of integers, or None.

    >>> axes(axis="data")
    Traceback (most recent call last):
    ValueError: axis must be the number of an axis, a sequence of them or None, got 'data'
    """
    for name, value in given.items():
        entries = value if isinstance(value, list | tuple | range) else () if value is None else (value,)
        if not all(isinstance(entry, numbers.Integral) and not isinstance(entry, bool) for entry in entries):
            raise ValueError(f"{name} must be the number of an axis, a sequence of them or None, got {_short(value)}")


def sequence_of_functions(**given: Any) -> None:
    """Checks that arguments, by their names, are sequences of what can be called.

    >>> sequence_of_functions(layers=abs)
    Traceback (most recent call last):
    ValueError: layers must be a sequence of functions, got <built-in function abs>
    """
    for name, value in given.items():
        if not (isinstance(value, list | tuple) and all(map(callable, value))):
            raise ValueError(f"{name} must be a sequence of functions, got {_short(value)}")


def texts(**given: Any) -> None:
    """Checks that arguments, by their names, are sequences of strings.

    >>> texts(watch="loss")
    Traceback (most recent call last):
    ValueError: watch must be a sequence of strings, got 'loss'; write watch=('loss',)
    """
    for name, value in given.items():
        if not (isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value)):
            hint = f"; write {name}=({value!r},)" if isinstance(value, str) else ""
            raise ValueError(f"{name} must be a sequence of strings, got {_short(value)}{hint}")


def layout(value: Any) -> None:
    """Checks that a layout is a function of path and shape.

    >>> layout("fsdp")
    Traceback (most recent call last):
    ValueError: layout must be a function (path, shape) -> Axes or None, got 'fsdp'; write layout=gk.leaves.layout(...)
    """
    if value is not None and not callable(value):
        raise ValueError(
            f"layout must be a function (path, shape) -> Axes or None, got {_short(value)}; "
            "write layout=gk.leaves.layout(...)"
        )


def _short(value: Any) -> str:
    """How a value is written, in one line that fits into a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def text(optional: bool = False, **given: Any) -> None:
    """Checks that arguments, by their names, are text that is not empty.

    >>> text(name="")
    Traceback (most recent call last):
    ValueError: name must be a string that is not empty, got ''
    """
    for name, value in given.items():
        if not (isinstance(value, str) and value) and not (optional and value is None):
            raise ValueError(
                f"{name} must be a string that is not empty{' or None' if optional else ''}, got {_short(value)}"
            )


def is_function(value: Any, like: Any = None) -> bool:
    """Whether an argument that may be a tree or a function is a function: what is a pytree is a tree, also where it can
    be called, as a model can. A `jax.tree_util.Partial` is a function, unless it has the structure of `like`.

    >>> is_function(abs), is_function({"w": 1.0})
    (True, False)
    """
    if isinstance(value, jax.tree_util.Partial):
        return like is None or jax.tree.structure(value) != jax.tree.structure(like)
    return callable(value) and jax.tree_util.all_leaves([value])


def nearest(name: Any, known: Iterable[Any], quote: Callable[[str], str] = repr) -> str:
    """The end of a message that offers names like the one given; empty where none is near.

    >>> nearest("adamm", ["adam", "lion"])
    "; did you mean 'adam'?"
    >>> nearest("nosuch", ["stch", "infobatch"])
    ''
    """
    # Above 0.6, or four of the six letters of a word in any place would do; two of three letters are 0.67.
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=3, cutoff=0.65)
    return f"; did you mean {' or '.join(quote(c) for c in close)}?" if close else ""
