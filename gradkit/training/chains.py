"""A chain or a problem from a small Python file: what `gradkit train --chain=FILE` trains with.

# my_chain.py
import gradkit as gk
import optax

def chain(learning_rate):
    return optax.chain(gk.clip_by_global_norm(1.0), gk.lion(learning_rate, weight_decay=0.1))

race = gk.catalogue.Race(2e-3)  # optional: where a race centres its rates, how far they reach, under which schedule
"""

import inspect
import pathlib
import runpy
from collections.abc import Callable
from typing import Any

import optax

from gradkit import checks
from gradkit.catalogue import Race
from gradkit.workloads import Workload


def executed(where: str, default: str, flag: str) -> tuple[Any, dict[str, Any]]:
    """What a file defines under a name, and all that it defines.

    Args:
      where: a file of Python, which is executed; `file.py:name` for another name than the default.
      default: the name that is looked for.
      flag: what the file was given to, for messages.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file fails, or lacks the name (the nearest are offered).
    """
    path, _, name = where.rpartition(":") if ":" in where and not where.endswith(".py") else (where, "", default)
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"--{flag}={where}: there is no file {file}")
    try:
        defined = runpy.run_path(str(file), run_name=default)
    except Exception as error:
        raise ValueError(f"--{flag}={where}: {type(error).__name__} while {file} was executed: {error}") from error
    if name not in defined:
        public = [key for key in defined if not key.startswith("_")]
        raise ValueError(f"--{flag}={where}: {file} defines no {name!r}{checks.nearest(name, public)}")
    return defined[name], defined


def from_file(where: str) -> tuple[optax.GradientTransformation | Callable[..., Any], Race]:
    """What a file defines under the name `chain`: a transformation, or a function that makes one; and how it races.

    Raises:
      FileNotFoundError: no such file.
      ValueError: as `executed`; or the file has something else under the name.
    """
    found, defined = executed(where, "chain", "chain")
    race = defined.get("race", Race())
    if not isinstance(race, Race):
        raise ValueError(f"--chain={where}: race must be a gk.catalogue.Race, got {race!r}")
    if not isinstance(found, optax.GradientTransformation) and not inspect.isroutine(found):
        name = where.rpartition(":")[2] if not where.endswith(".py") else "chain"
        raise ValueError(f"--chain={where}: {name} must be a transformation or a function, got {found!r}")
    return found, race


def problem_from_file(where: str) -> Workload:
    """The problem that a file defines under the name `problem`: a `Workload`, as `gk.workloads.problem` makes it.

    Raises:
      FileNotFoundError: no such file.
      ValueError: as `executed`; or the file has something else under the name.
    """
    found, _ = executed(where, "problem", "problem")
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
