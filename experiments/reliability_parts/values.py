"""Wrong values for every argument of every public callable, made from signatures, and what is said to each.

The other arguments of a call are those of the example in the docstring, which is run once while its calls are
recorded. A value is wrong for an argument when none of the kinds that the value is of is a kind that the annotation
admits. Calls run in child processes: one that hangs or aborts is written down, and the next child goes on behind it.

    cd experiments; python -m reliability_parts.values CALLABLE [CALLABLE ...]    prints what is said, a line per value
"""

import collections.abc
import contextlib
import doctest
import functools
import inspect
import io
import json
import re
import resource
import signal
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from gradkit.catalogue import cards
from reliability_parts import children

SECONDS = 10.0  # that a call may take
MEMORY = 24 * 2**30  # bytes of addresses that a child may have

# A value, as Python writes it -> the kinds of arguments that it is a right value of.
POOL: dict[str, frozenset[str]] = {
    text: frozenset(kinds.split())
    for text, kinds in {
        "object()": "",
        "'no such name'": "text",
        "b'bytes'": "",
        "...": "",
        "json": "",
        "Exception('text')": "",
        "{'a': 'text'}": "mapping text_tree",
        "['text', 'text']": "sequence text_tree",
        "{1, 2}": "collection",
        "(x for x in ())": "iterable",
        "lambda *given, **named: None": "function",
        "float": "function dtype",
        "jnp.int32": "function any_dtype",
        "optax.adam": "function",
        "optax.adam(0.1)": "transformation sequence",
        "np.array(['text'])": "",
        "np.zeros(2)": "array sequence",
        "jnp.ones((2, 2))": "array",
        "[0.5, 0.5]": "sequence tree",
        "{'a': 0.5}": "mapping tree",
        "2.5": "number tree array",
        "float('nan')": "tree array",
        "np.float32('nan')": "tree array",
        "1j": "tree array",
        "True": "switch tree array",
        "'True'": "text",
        "3": "count number key tree array",
        "2**40": "number array tree",
        "10**30": "number array tree",
        "-(10**30)": "number array tree",
        "None": "none tree",
        "jax.random.key(0)": "key tree",
    }.items()
}
NAMESPACE = {"np": np, "jnp": jnp, "jax": jax, "optax": optax, "json": json}
ROOMS = ("aggregation", "batches", "diagnostics", "gradients", "layers", "leaves", "linalg", "losses", "parallel")
ROOMS = (*ROOMS, "schedules", "training", "transforms", "workloads")


def public() -> dict[str, Callable[..., Any]]:
    """Every public callable by its name; classes that only hold fields are none."""
    found: dict[str, Callable[..., Any]] = {}
    for prefix, room in [("gk", gk), *((f"gk.{name}", getattr(gk, name)) for name in ROOMS)]:
        for name in dir(room):
            one = getattr(room, name)
            own = callable(one) and str(getattr(one, "__module__", "")).startswith("gradkit") and name[0] != "_"
            fields = inspect.isclass(one) and (issubclass(one, tuple | Exception) or one in RECORDS)
            if own and not fields and all(one is not other for other in found.values()):
                found[f"{prefix}.{name}"] = one
    return found


# Classes that the library itself makes: what they hold has been checked before.
RECORDS = (
    gk.gradients.LazyGradients,
    gk.leaves.Decision,
    gk.leaves.LayoutWarning,
    gk.leaves.Selector,
    gk.schedules.Phase,
    gk.schedules.Schedule,
    gk.training.Inspection,
    gk.training.TrainState,
    gk.training.TrainStep,
    gk.workloads.Workload,
)


def recorded(function: Callable[..., Any]) -> dict[str, Any] | None:
    """The arguments of the first call of a function in the example of its docstring; None where there is none."""
    calls: list[inspect.BoundArguments] = []
    signature = inspect.signature(function)

    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((args, kwargs)))
        with contextlib.suppress(TypeError):
            if not traced:
                calls.append(inspect.Signature(list(signature.parameters.values())).bind(*args, **kwargs))
        return function(*args, **kwargs)

    module = sys.modules[function.__module__]
    name = function.__name__
    space = {**vars(module), name: watched}
    parser = doctest.DocTestParser()
    for example in parser.get_examples(inspect.getdoc(function) or ""):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            exec(compile(example.source, name, "single"), space)
        if calls:
            return dict(calls[0].arguments)
    return None


def right(function: Callable[..., Any]) -> dict[str, Any] | None:
    """Arguments with which a function can be called: of its example, or of the example of its card."""
    card = cards().get(function.__name__)
    given = recorded(function)
    if given is None and card is not None and card.function is function:
        given = jax.tree.map(
            lambda x: np.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x, dict(card.example)
        )
        parameters = inspect.signature(function).parameters.values()
        for parameter in parameters:
            if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
                given.setdefault(parameter.name, _right_of(parameter))
    return given


def _right_of(parameter: inspect.Parameter) -> Any:
    kinds = _of_type(parameter.annotation)
    if "function" in kinds and "number" not in kinds:
        return lambda params, *rest: jnp.float32(0)
    return 0.1 if "number" in kinds else optax.sgd(0.1)


def _of_type(annotation: Any) -> set[str]:
    """The kinds of values that a type admits."""
    if annotation is None or annotation is type(None):
        return {"none"}
    origin = typing.get_origin(annotation) or annotation
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(_of_type, typing.get_args(annotation)))
    if annotation is Any or annotation is inspect.Parameter.empty:
        return {"tree", "array", "none"}
    if origin is optax.GradientTransformation:
        return {"transformation"}
    plain = {
        bool: {"switch"},
        int: {"count"},
        float: {"number", "count"},
        complex: {"number", "count"},
        str: {"text"},
        np.integer: {"key"},
        jax.Array: {"array"},
        np.ndarray: {"array"},
        np.dtype: {"dtype", "any_dtype", "text"},
        type: {"dtype"},
        object: set(POOL_KINDS),
    }
    if origin in plain:
        return plain[origin]
    if origin is collections.abc.Callable:
        return {"function"}
    if not inspect.isclass(origin):
        return {"none", "text"} if origin is typing.ForwardRef or isinstance(origin, str) else set()
    if issubclass(origin, collections.abc.Mapping):
        return {"mapping", "text_tree", "tree"}
    if issubclass(origin, collections.abc.Sequence):
        return {"sequence", "text_tree"}
    if issubclass(origin, collections.abc.Iterable):
        return {"sequence", "iterable", "collection", "mapping", "text_tree", "text", "array"}
    return set()


POOL_KINDS = sorted(set().union(*POOL.values()))


def admitted(parameter: inspect.Parameter, text: str) -> set[str]:
    """The kinds of values that an argument takes: by its annotation, its default, and what its description says."""
    annotation, default = parameter.annotation, parameter.default
    kinds = _of_type(annotation)
    whole = str(annotation)
    if annotation == gk.types.Scalar or annotation == (gk.types.Scalar | None):
        kinds -= {"array"}
    if annotation in (gk.types.ScalarOrSchedule, gk.types.ScalarOrSchedule | None):
        kinds -= {"array"}
    if "number" in kinds and "schedule" in text:
        kinds |= {"function"}
    if annotation == gk.types.Key or annotation == (gk.types.Key | None):
        kinds = {"key", "none"} if "None" in whole else {"key"}
    if "dtype" in parameter.name:
        kinds = {"dtype", "none"} if default is None or "None" in whole else {"dtype"}
    elif annotation is Any or annotation is parameter.empty or annotation == Any | None:
        if default is not parameter.empty and default is not None:
            kinds = _of_default(default)
        # What may be of several types says so in its description.
        if re.search(r"\bfunction\b|callable|->|\bcalled\b|\bschedule\b|selector|model", text):
            kinds |= {"function", "text_tree"}
        if re.search(r"\bmask\b|selector|\bpaths?\b|\bnames?\b|leaves|\"", text) or "mask" in parameter.name:
            kinds |= {"text", "function", "tree", "array", "text_tree", "none"}
        if parameter.name.startswith("axis_name"):
            kinds = {"text", "text_tree", "none"}
    if default is None:
        kinds.add("none")
    return kinds


def _of_default(default: Any) -> set[str]:
    if isinstance(default, bool):
        return {"switch"}
    if isinstance(default, int | float):
        return {"number", "count", "array"}
    if isinstance(default, str):
        return {"text", "tree", "array", "sequence", "function", "text_tree"}
    return {"tree", "array", "sequence", "mapping"}


def descriptions(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says of every argument."""
    doc = inspect.getdoc(function) or ""
    block = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.DOTALL | re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=  \S)", block[1]) if block else ():
        names, _, said = entry.strip().partition(":")
        for name in names.split(","):
            found[name.strip().lstrip("*")] = said
    return found


def wrong(function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """(argument, value) of a function, each wrong by the signature."""
    said = descriptions(function)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        kinds = admitted(parameter, said.get(parameter.name, ""))
        for value, of in POOL.items():
            if not of & kinds:
                yield parameter.name, value


class Late(Exception):
    """A call took too long."""


def _alarm(*_: Any) -> None:
    raise Late


def call(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """A call with arguments by name; those in front of a starred one by position."""
    bound = inspect.BoundArguments(inspect.Signature(list(inspect.signature(function).parameters.values())), given)  # pyright: ignore[reportArgumentType]
    return function(*bound.args, **bound.kwargs)


def outcome(function: Callable[..., Any], given: dict[str, Any], argument: str, value: str) -> tuple[str, str]:
    """What happens to a call with a wrong value: (named, unnamed, bare, late, accepted, hangs), and what was said."""
    given = {**given, argument: eval(value, dict(NAMESPACE))}
    signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    built: Any = None
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            built = call(function, given)
            got = repr(type(built).__name__)
            if isinstance(built, optax.GradientTransformation):
                params = {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)}
                jax.eval_shape(lambda: built.update(params, built.init(params), params))
    except Late:
        return "hangs", ""
    except ValueError as error:
        named = re.search(rf"\b{re.escape(argument)}\b", str(error))
        kind = "late" if built is not None else "named" if named else "unnamed"
        return kind, str(error)
    except Exception as error:
        return ("late" if built is not None else "bare"), f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "accepted", got


def items(names: Iterable[str] | None = None) -> list[list[str]]:
    """(callable, argument, value) of all callables, or of some."""
    functions = public()
    chosen = functions if names is None else {name: functions[name] for name in names}
    return [[name, *pair] for name, function in chosen.items() for pair in wrong(function)]


@functools.cache
def _known(name: str) -> tuple[Callable[..., Any], dict[str, Any] | None]:
    function = public()[name]
    return function, right(function)


def trial(item: list[str]) -> tuple[str, str]:
    """What comes of one wrong value."""
    name, argument, value = item
    function, given = _known(name)
    if given is None:
        return "no example", ""
    kind, said = outcome(function, given, argument, value)
    return kind, " ".join(said.split())[:300]


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    if len(sys.argv) == 1:
        children.serve(trial)
        return
    for item in items(sys.argv[1:]):
        print(*item, *trial(item), sep=" | ", flush=True)


if __name__ == "__main__":
    main()
