"""What a misspelled name of a room is answered with: `gk.muonn` and `gk.aggregation.cagrd` name what is near.

The import of this file gives `gradkit` and its rooms a `__getattr__`, which Python asks for names that a module lacks.
It is put there from outside, so that type checkers still know every name that there is.
"""

import functools
import sys
from types import ModuleType
from typing import Any

from gradkit import catalogue, checks

ROOMS = (
    "aggregation",
    "batches",
    "diagnostics",
    "gradients",
    "layers",
    "leaves",
    "linalg",
    "losses",
    "parallel",
    "schedules",
    "testing",
    "training",
    "workloads",
)


def unknown(module: ModuleType, name: str) -> Any:
    """Raises the error of a name that a module lacks.

    Raises:
      AttributeError: always. Names near to it are offered, or a method of another room.
    """
    text = f"module {module.__name__!r} has no attribute {name!r}"
    if not name.startswith("_"):
        here = module.__name__.replace("gradkit", "gk", 1)
        methods = {each: card.public_name for each, card in catalogue.cards().items()}
        if name in methods:
            text += f"; it is {methods[name]}"
        else:
            text += checks.nearest(name, getattr(module, "__all__", ()), lambda near: f"{here}.{near}") or (
                checks.nearest(name, methods, methods.__getitem__)
            )
    # With a name and no object, Python adds no offer of its own where it prints the error.
    raise AttributeError(text, name=name, obj=None)


for _name in ("gradkit", *(f"gradkit.{room}" for room in ROOMS)):
    _module = sys.modules[_name]
    vars(_module)["__getattr__"] = functools.partial(unknown, _module)
