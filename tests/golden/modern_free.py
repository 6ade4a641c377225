"""What this library answers to the files of modern methods without a learning rate, of averages and of sharpness."""

from collections.abc import Callable
from typing import Any

import gradkit as gk
from tests.golden.translate import direct

TRANSFORMATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "cocob": direct(gk.cocob),
    "dadapt_adam": direct(gk.dadapt_adam),
    "dadapt_lion": direct(gk.dadapt_lion),
    "dadapt_sgd": direct(gk.dadapt_sgd),
    "dowg": direct(gk.dowg),
    "prodigy": direct(gk.prodigy),
}
