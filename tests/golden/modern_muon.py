"""What this library answers to the files of Muon's successors, and of those of Shampoo and SOAP."""

from collections.abc import Callable
from typing import Any

import gradkit as gk
from tests.golden.translate import direct

TRANSFORMATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dion2": direct(gk.dion2),
    "nordion2": direct(gk.nordion2),
    "normuon": direct(gk.normuon),
}
