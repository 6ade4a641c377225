"""A chain or a problem from a small Python file: what `gradkit train --chain=FILE` trains with.

# my_chain.py
import gradkit as gk
import optax

def chain(learning_rate):
    return optax.chain(gk.clip_by_global_norm(1.0), gk.lion(learning_rate, weight_decay=0.1))

race = gk.catalogue.Race(2e-3)  # optional: where a race centres its rates, how far they reach, under which schedule
"""

import contextlib
import functools
import inspect
import pathlib
import runpy
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import optax

from gradkit import checks
from gradkit.catalogue import Race
from gradkit.workloads import Workload


class FileError(ValueError):
    """The code of a file that was given on the command line failed; the message names the file and the line."""


def _file_and_name(where: str, default: str) -> tuple[str, str]:
    path, _, name = where.rpartition(":") if ":" in where and not where.endswith(".py") else (where, "", default)
    return str(pathlib.Path(path)), name


def blame(error: BaseException, where: str) -> str | None:
    """What is wrong with a file that was executed, in one line with its line number; None where the error did not come
    through the file.

    Args:
      error: what was raised.
      where: the file; with or without the name of what it defines.
    """
    file, _ = _file_and_name(where, "")
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"{file}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    if not lines:
        return None
    text = " ".join(str(error).split())
    return f"{file}, line {lines[-1]}: {type(error).__name__}{': ' if text else ''}{text}"


@contextlib.contextmanager
def blamed(where: str) -> Iterator[None]:
    """Within, whatever the code of a file raises becomes a `FileError` of one line, which names the file and the line.

    Args:
      where: the file.
    """
    try:
        yield
    except Exception as error:
        said = blame(error, where)
        if said is None:
            raise
        raise FileError(said) from error


def executed(where: str, default: str) -> tuple[Any, dict[str, Any]]:
    """What a file defines under a name, and all that it defines.

    Args:
      where: a file of Python, which is executed; `file.py:name` for another name than the default.
      default: the name that is looked for.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file fails, or lacks the name (the nearest are offered).
    """
    file, name = _file_and_name(where, default)
    if not pathlib.Path(file).is_file():
        raise FileNotFoundError(f"there is no file {file}")
    with blamed(where):
        defined = runpy.run_path(file, run_name=default)
    if name not in defined:
        public = [key for key in defined if not key.startswith("_")]
        raise ValueError(f"{file} defines no {name!r}{checks.nearest(name, public)}")
    return defined[name], defined


def from_file(where: str) -> tuple[optax.GradientTransformation | Callable[..., Any], Race]:
    """What a file defines under the name `chain`: a transformation, or a function that makes one; and how it races.

    Raises:
      FileNotFoundError: no such file.
      ValueError: as `executed`; or the file has something else under the name.
    """
    found, defined = executed(where, "chain")
    race = defined.get("race", Race())
    if not isinstance(race, Race):
        raise ValueError(f"--chain={where}: race must be a gk.catalogue.Race, got {race!r}")
    if not isinstance(found, optax.GradientTransformation) and not inspect.isroutine(found):
        name = where.rpartition(":")[2] if not where.endswith(".py") else "chain"
        raise ValueError(f"--chain={where}: {name} must be a transformation or a function, got {found!r}")
    if isinstance(found, optax.GradientTransformation):
        return found, race

    @functools.wraps(found)
    def chain(*args: Any) -> Any:
        with blamed(where):
            return found(*args)

    return chain, race


def problem_from_file(where: str) -> Workload:
    """The problem that a file defines under the name `problem`: a `Workload`, as `gk.workloads.problem` makes it.

    Raises:
      FileNotFoundError: no such file.
      ValueError: as `executed`; or the file has something else under the name.
    """
    found, _ = executed(where, "problem")
    if not isinstance(found, Workload):
        raise ValueError(f"--problem={where}: problem must be what gk.workloads.problem(...) returns, got {found!r}")
    return found


def build(where: str, learning_rate: Any | None) -> optax.GradientTransformation:
    """The transformation of a file.

    Args:
      where: as in `executed`.
      learning_rate: a schedule, for a file whose chain is a function of it; None where none was asked for.

    Raises:
      ValueError: a learning rate for a chain that takes none, or none for one that does; a function that makes
        something else.
    """
    found, _ = from_file(where)
    if isinstance(found, optax.GradientTransformation):
        if learning_rate is not None:
            raise ValueError(f"learning_rate must be left out: the chain of {where} is no function of it")
        return found
    if inspect.signature(found).parameters and learning_rate is None:
        raise ValueError(f"learning_rate must be given: the chain of {where} is a function of it")
    if not inspect.signature(found).parameters and learning_rate is not None:
        raise ValueError(f"learning_rate must be left out: the chain of {where} is no function of it")
    tx = found() if learning_rate is None else found(learning_rate)
    if not isinstance(tx, optax.GradientTransformation):
        raise ValueError(f"--chain={where}: the function must return a transformation, got {tx!r}")
    return tx
