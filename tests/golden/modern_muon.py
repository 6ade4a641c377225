"""What this library answers to the files of Muon's successors, and of those of Shampoo and SOAP."""

from collections.abc import Callable
from typing import Any

import gradkit as gk
from tests.golden.translate import direct

TRANSFORMATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "normuon": direct(gk.normuon),
}
