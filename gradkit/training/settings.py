"""What a race and a training run are told: frozen dataclasses, used by notebooks and turned into flags."""

import dataclasses
from typing import Any

from gradkit import checks
from gradkit.training import methods
from gradkit.workloads import registry


def setting(default: Any, help: str) -> Any:
    """A field with a default and the line that `--help` shows."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class RaceConfig:
    """A race: which methods on which problems, and how much tuning each gets.

    Raises:
      ValueError: an unknown workload or method (the nearest names are offered), or a number out of range.

    Example:
      >>> RaceConfig(methods=("adamw", "lion"), rates=8).seeds
      5
    """

    workloads: tuple[str, ...] = setting(("digits_mlp",), "problems to race on")
    methods: tuple[str, ...] = setting(("nesterov", "adamw", "lion", "lars", "lamb", "novograd"), "methods that race")
    rates: int = setting(6, "learning rates per method, log-spaced around its centre")
    decades: float = setting(1.0, "decades the rates reach to each side of the centre")
    seeds: int = setting(5, "seeds per learning rate")
    steps: int | None = setting(None, "steps per run; default: the workload's budget")
    eval_every: int | None = setting(None, "steps between evaluations; default: the workload's")
    extensions: int = setting(2, "how often two rates may be added where the best is at the edge")
    timing_rounds: int = setting(5, "interleaved rounds in which seconds per step are measured")
    out: str | None = setting(None, "folder for the report; default: a fresh numbered one under race/")
    overwrite: bool = setting(False, "replace the report of an earlier race in --out")

    def __post_init__(self) -> None:
        for field, values in (("workloads", self.workloads), ("methods", self.methods)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{field} must be one name or more, each once, got {','.join(values)!r}")
        for name in self.workloads:
            registry.check_name(name)
        for name in self.methods:
            methods.find(name)
        checks.integer("rates", self.rates, 2)
        checks.real("decades", self.decades, "(0, 6]")
        checks.integer("seeds", self.seeds, 1)
        checks.integer("steps", self.steps, 1, optional=True)
        checks.integer("eval_every", self.eval_every, 1, optional=True)
        checks.integer("extensions", self.extensions, 0)
        checks.integer("timing_rounds", self.timing_rounds, 1)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run: one workload, one method, one seed.

    Raises:
      ValueError: an unknown workload or method, or a number out of range.

    Example:
      >>> TrainConfig(method="lion").workload
      'digits_mlp'
    """

    workload: str = setting("digits_mlp", "the problem")
    method: str = setting("adamw", "the method")
    learning_rate: float | None = setting(None, "peak learning rate; default: the centre of the method's grid")
    steps: int | None = setting(None, "steps; default: the workload's budget")
    eval_every: int | None = setting(None, "steps between evaluations; default: the workload's")
    seed: int = setting(0, "seed of the first parameters and of the minibatches")
    metrics_file: str | None = setting(None, "a new file for metrics, one JSON object per evaluation")

    def __post_init__(self) -> None:
        registry.check_name(self.workload)
        methods.find(self.method)
        checks.real("learning_rate", self.learning_rate, "(0, inf)", optional=True)
        checks.integer("steps", self.steps, 1, optional=True)
        checks.integer("eval_every", self.eval_every, 1, optional=True)
        checks.integer("seed", self.seed, 0)
