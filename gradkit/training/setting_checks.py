"""Checks that the settings of several commands share."""

import os
from typing import Any

from gradkit import checks
from gradkit.workloads import Workload, model_shapes, registry


def check_workload(name: str, value: Any) -> None:
    """Refuses what is neither the name of a problem nor a problem."""
    if not isinstance(value, str | Workload):
        raise ValueError(
            f"{name} must be the name of a problem, or what gk.workloads.problem(...) returns, got {value!r}"
        )


def check_texts(config: Any, names: tuple[str, ...], *, paths: bool = False) -> None:
    """Refuses what is no text, and text that is empty, as of a variable of the shell that is not set."""
    for name in names:
        value = getattr(config, name)
        if value is None or (paths and isinstance(value, os.PathLike)):
            continue
        if not isinstance(value, str):
            raise ValueError(f"{name} must be a string, got {value!r}")
        if not value:
            raise ValueError(f"{name} must not be empty: name a value, or leave it out")


def check_parameters(config: Any) -> None:
    """Refuses several sources of parameters, and names that nothing has."""
    given = [name for name in ("workload", "data", "model", "params") if getattr(config, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: give one of them")
    if config.workload is not None:
        registry.check_name(config.workload)
    if config.model is not None:
        model_shapes(config.model)


def check_data(config: Any) -> None:
    """Refuses a target for problems that have their own."""
    checks.real("target", config.target, "(0, inf)", optional=True)
    if config.target is not None and config.data is None:
        raise ValueError("target must be left out without data: workloads and problems have their targets")
