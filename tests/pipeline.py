"""How XLA compiles the tests: cheaply, but for the few that are about the compiled program itself.

Tests ask what a program computes, not how fast. Without the optimiser of LLVM, without the new emitters, and in one
piece, a program compiles in a third of the time. Collectives, aliases and flops are decided before, and are the same.
A test marked `full_pipeline` has what `.lower(…).compile()` gives on XLA's defaults, and so have processes that it
starts. GRADKIT_TEST_PIPELINE=full gives it to all.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

FULL = os.environ.get("GRADKIT_TEST_PIPELINE") == "full"
CHEAP = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_cpu_use_fusion_emitters": False,
}
DEFAULT = {
    "xla_backend_optimization_level": 3,
    "xla_cpu_parallel_codegen_split_count": 32,
    "xla_cpu_use_fusion_emitters": True,
}
FLAGS = "" if FULL else " ".join(f"--{name}={str(value).lower()}" for name, value in CHEAP.items())


@contextlib.contextmanager
def full() -> Iterator[None]:
    """XLA's defaults for what is lowered and compiled here, and for processes started here."""
    import jax  # conftest.py sets it up first

    plain = jax.stages.Lowered.compile

    def compiled(lowered: Any, compiler_options: Any = None, **options: Any) -> Any:
        return plain(lowered, {**DEFAULT, **(compiler_options or {})}, **options)

    flags = os.environ["XLA_FLAGS"].replace(FLAGS, "")
    with mock.patch.object(jax.stages.Lowered, "compile", compiled), mock.patch.dict(os.environ, XLA_FLAGS=flags):
        yield
