"""What this library answers to the files of modern adaptive methods."""

from collections.abc import Callable
from typing import Any

import gradkit as gk
from tests.golden.translate import ARRAYS, direct, known


def _adopt(hyper: dict[str, Any]) -> Any:
    """The bound of a file is a power of the number of earlier steps, or null."""
    own = known(hyper)
    if "clip" in own:
        clip = own.pop("clip")
        assert clip is None or clip.startswith("t**")
        own["clip_exponent"] = None if clip is None else float(clip.removeprefix("t**"))
    return gk.adopt(**own)


TRANSFORMATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "adan": direct(gk.adan),
    "adopt": _adopt,
    "laprop": direct(gk.laprop),
    # The arrays of the file are one tensor each.
    "stable_adamw": lambda hyper: gk.stable_adamw(**known(hyper), layout=ARRAYS),
}
