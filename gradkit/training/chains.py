"""A chain from a small Python file: what `gradkit train --chain=FILE` trains with.

# my_chain.py
import gradkit as gk
import optax

def chain(learning_rate):
    return optax.chain(gk.clip_by_global_norm(1.0), gk.lion(learning_rate, weight_decay=0.1))
"""

import inspect
import pathlib
import runpy
from collections.abc import Callable
from typing import Any

import optax

from gradkit import checks


def from_file(where: str) -> optax.GradientTransformation | Callable[..., Any]:
    """What a file defines under the name `chain`: a transformation, or a function that makes one.

    Args:
      where: a file of Python, which is executed; `file.py:name` for another name than `chain`.

    Returns:
      A transformation, or a function learning rate (a schedule) -> transformation.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file fails, or lacks the name (the nearest are offered), or has something else under it.
    """
    path, _, name = where.rpartition(":") if ":" in where and not where.endswith(".py") else (where, "", "chain")
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"--chain={where}: there is no file {file}")
    try:
        defined = runpy.run_path(str(file), run_name="chain")
    except Exception as error:
        raise ValueError(f"--chain={where}: {type(error).__name__} while {file} was executed: {error}") from error
    if name not in defined:
        public = [key for key in defined if not key.startswith("_")]
        raise ValueError(f"--chain={where}: {file} defines no {name!r}{checks.nearest(name, public)}")
    found = defined[name]
    if isinstance(found, optax.GradientTransformation):
        return found
    if not inspect.isroutine(found):
        raise ValueError(f"--chain={where}: {name} must be a transformation or a function, got {found!r}")
    return found


def build(where: str, learning_rate: Any | None) -> optax.GradientTransformation:
    """The transformation of a file.

    Args:
      where: as in `from_file`.
      learning_rate: a schedule, for a file whose chain is a function of it; None where none was asked for.

    Raises:
      ValueError: a learning rate for a chain that takes none, or none for one that does; a function that makes
        something else.
    """
    found = from_file(where)
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
