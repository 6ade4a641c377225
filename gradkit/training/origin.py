"""What a checkpoint says of the run that wrote it: what must agree with the run that goes on, and what may change."""

import pathlib
from typing import Any

from gradkit.training import held, methods, strategies
from gradkit.training.settings import DEFAULT_METHOD, TrainConfig


def of(config: TrainConfig, plan: Any) -> dict[str, Any]:
    """All that is written of a run."""
    return {**same_numbers(config, plan), "settings": _settings(config, plan)}


def same_numbers(config: TrainConfig, plan: Any) -> dict[str, Any]:
    """What a checkpoint must agree on with the run that goes on from it."""
    numbers = {"workload": plan.problem.name, "seed": config.seed, "batch_size": plan.problem.batch_size}
    if config.replicas is not None:
        numbers |= {name: getattr(config, name) for name in ("replicas", *strategies.SAME)}
    return numbers if config.schedule is None else {**numbers, "schedule": config.schedule}


def _settings(config: TrainConfig, plan: Any) -> dict[str, Any]:
    """What else is written of it."""
    chain, method = config.chain, methods.find(config.method or DEFAULT_METHOD)
    rate = method.centre if config.learning_rate is None and chain is None else config.learning_rate
    return {
        "method": method.name if chain is None else None,
        "chain": None if chain is None else f"{pathlib.Path(chain).name} ({held.of_file(chain)})",
        "aggregator": config.aggregator,
        "learning_rate": rate,
        "microbatch": config.microbatch,
        "max_batch": config.max_batch,
        "steps": plan.steps,
    }


def changed(config: TrainConfig, plan: Any, report: Any) -> tuple[str, ...]:
    """What is no longer as the run that wrote a checkpoint had it, a line each.

    Raises:
      ValueError: that was another method, of which the state has the same form.
    """
    before, now = report.about.get("settings", {}), _settings(config, plan)
    old, new = before.get("method"), now["method"]
    if old and new and old != new and not config.transplant:
        raise ValueError(
            f"the checkpoint of step {report.step} is of --method={old}, and this run has --method={new}, whose state "
            f"has the same form: write --method={old}, or add --transplant to go on with another method"
        )
    branch = ("steps",) if config.cooldown is not None else ()
    return tuple(
        f"{name} was {before[name]} until step {report.step} and is {value} from here on"
        for name, value in now.items()
        if name in before and before[name] != value and name not in branch
    )
