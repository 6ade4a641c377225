"""The training step, sweeps, races and their reports."""

from gradkit.training import methods as methods
from gradkit.training import report as report
from gradkit.training.checkpoints import Checkpoints
from gradkit.training.inspection import Inspection, inspect
from gradkit.training.race import Race, Result, race
from gradkit.training.report import save_plot
from gradkit.training.scoring import robustness
from gradkit.training.settings import RaceConfig, TrainConfig
from gradkit.training.statistics import statistics_at
from gradkit.training.step import TrainState, TrainStep, make_train_step
from gradkit.training.sweep import Sweep, sweep
from gradkit.training.train import train

__all__ = [
    "Checkpoints",
    "Inspection",
    "Race",
    "RaceConfig",
    "Result",
    "Sweep",
    "TrainConfig",
    "TrainState",
    "TrainStep",
    "inspect",
    "make_train_step",
    "race",
    "robustness",
    "save_plot",
    "statistics_at",
    "sweep",
    "train",
]
