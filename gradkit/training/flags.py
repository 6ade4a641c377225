"""absl flags generated from a frozen dataclass, so that a command and a notebook take the same settings."""

import dataclasses
import textwrap
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from absl import flags

_DEFINE: dict[type, Callable[..., Any]] = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    bool: flags.DEFINE_bool,
    tuple: flags.DEFINE_list,
}


def _kind(annotation: Any) -> type:
    """The plain type of a field: `int | None` is an int that may be left out, `tuple[str, ...]` a list."""
    if isinstance(annotation, types.UnionType):
        annotation = next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return typing.get_origin(annotation) or annotation


def _fields(config: type) -> list[Any]:
    return [field for field in dataclasses.fields(config) if field.init]


def define(config: type, values: flags.FlagValues) -> None:
    """Adds one flag per field of a dataclass to a set of flags.

    Args:
      config: a dataclass whose fields are int, float, str, bool or tuple[str, ...] (or one of them or
        None), each with its help text in `metadata["help"]`.
      values: where flags are added; a fresh `flags.FlagValues()` per command line.
    """
    kinds = typing.get_type_hints(config)
    for field in _fields(config):
        kind = _kind(kinds[field.name])
        default: Any = field.default
        default = list(default) if kind is tuple else default
        _DEFINE[kind](field.name, default, field.metadata["help"], flag_values=values)


def parse(config: type, arguments: list[str]) -> Any:
    """An instance of the dataclass from arguments like `--seeds=5 --methods=adam,lion`.

    Raises:
      flags.Error: an unknown flag (the nearest are offered), or a value of the wrong type.
      ValueError: an argument that is no flag, or a value the dataclass refuses.

    Example:
      >>> from gradkit.training.settings import RaceConfig
      >>> parse(RaceConfig, ["--methods=adam,lion", "--seeds", "3"]).methods
      ('adam', 'lion')
    """
    values = flags.FlagValues()
    define(config, values)
    rest = values(["gradkit", *arguments])[1:]
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; settings are given as --name=value")
    fields = {field.name: getattr(values, field.name) for field in _fields(config)}
    return config(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})


def refuse_flags(arguments: list[str], other: type, own: type, reason: str) -> None:
    """Refuses flags that another dataclass has and one's own lacks, and says why.

    Raises:
      ValueError: there is one among the arguments.

    Example:
      >>> from gradkit.training.settings import CurvatureConfig, ListConfig
      >>> refuse_flags(["--probes=2"], CurvatureConfig, ListConfig, "is of a Hessian")
      Traceback (most recent call last):
      ValueError: --probes is of a Hessian
    """
    given = {argument.lstrip("-").partition("=")[0] for argument in arguments if argument.startswith("-")}
    known = {field.name for field in _fields(own)}
    for field in _fields(other):
        if field.name in given - known:
            raise ValueError(f"--{field.name} {reason}")


def usage(config: type) -> list[tuple[str, str]]:
    """Every flag, with its meaning and default."""
    rows = []
    for field in _fields(config):
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = "" if default is None or default is False or default == "" else f" [{default}]"
        rows.append((f"--{field.name}", f"{field.metadata['help']}{shown}"))
    return rows


def definitions(rows: Iterable[tuple[str, str]], width: int) -> str:
    """Terms and their meanings in two columns; a meaning that is too long for the width goes on in its column.

    >>> print(definitions([("--keep", "how many checkpoints are kept [3]"), ("--seed", "of the minibatches")], 30))
      --keep  how many checkpoints
              are kept [3]
      --seed  of the minibatches
    """
    rows = list(rows)
    room = max((len(term) for term, _ in rows), default=0)
    lines = []
    for term, meaning in rows:
        start = f"  {term:<{room}}  "
        lines += textwrap.wrap(
            meaning,
            width,
            initial_indent=start,
            subsequent_indent=" " * len(start),
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)
