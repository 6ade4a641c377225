"""A cooldown from a checkpoint of a training at a constant rate: a branch, beside which the training may go on.

TRUNK/STEP                          checkpoints of the training, which the branch only reads
TRUNK/cooldown_START_STEPS/STEP     those of the branch, from which it goes on where it was ended

The name of the folder has the shape and the floor as well, where these are not 1-sqrt and 0.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from gradkit import checks, schedules
from gradkit.schedules.phases import CURVES
from gradkit.training.checkpoints import Checkpoints

DEFAULT_SHAPE = "1-sqrt"
FORM = "START:STEPS:SHAPE:FLOOR"


class Cooldown(NamedTuple):
    """Where a cooldown starts, how long it is, and how it falls.

    Attributes:
      start: step of the checkpoint; None: the last there is.
      steps: its length.
      shape: of the fall; a shape of `gk.schedules.phases`.
      floor: the learning rate it ends at, as a fraction of the peak.
    """

    start: int | None
    steps: int
    shape: str = DEFAULT_SHAPE
    floor: float = 0.0

    @property
    def end(self) -> int:
        """The step it ends at; of one whose start is known."""
        return (self.start or 0) + self.steps

    @property
    def name(self) -> str:
        """What its folder and files are called."""
        return "_".join(["cooldown", *self._parts()])

    @property
    def text(self) -> str:
        """As `--cooldown` has it."""
        return ":".join(self._parts())

    def _parts(self) -> list[str]:
        """What is written of it: start and length, and the rest where it is not the default."""
        floor = [] if self.floor == 0 else [f"{self.floor:g}"]
        shape = [self.shape] if floor or self.shape != DEFAULT_SHAPE else []
        return [*([] if self.start is None else [str(self.start)]), str(self.steps), *shape, *floor]


def read(text: str) -> Cooldown:
    """A cooldown as `--cooldown` has it: STEPS, START:STEPS, and behind either :SHAPE or :SHAPE:FLOOR.

    Raises:
      ValueError: anything else, no step, a shape that schedules do not have, or a floor outside [0, 1).

    >>> read("600:150"), read("150").start
    (Cooldown(start=600, steps=150, shape='1-sqrt', floor=0.0), None)
    >>> read("600:150:cosine:0.1").name
    'cooldown_600_150_cosine_0.1'
    """
    known = (
        re.fullmatch(r"(?:(\d+):)?(\d+)(?::([^:]*[^:\d.][^:]*)(?::([^:]+))?)?", text) if isinstance(text, str) else None
    )
    if known is None:
        raise ValueError(
            f"cooldown must be STEPS from the last checkpoint on, or START:STEPS from an earlier one, such as 600:150, "
            f"and may end in a shape and a fraction of the peak, {FORM} such as 600:150:cosine:0.1, got {text!r}"
        )
    start = None if known[1] is None else checks.integer("the start of cooldown", int(known[1]), 0)
    steps = checks.integer("the steps of cooldown", int(known[2]), 1)
    shape = DEFAULT_SHAPE if known[3] is None else known[3]
    checks.choice("the shape of cooldown", shape, tuple(CURVES))
    try:
        floor = 0.0 if known[4] is None else float(known[4])
    except ValueError as error:
        raise ValueError(f"the floor of cooldown must be a number in [0, 1), got {known[4]!r}") from error
    checks.real("the floor of cooldown", floor, "[0, 1)")
    if shape == "exponential" and floor == 0:
        raise ValueError(
            f"the floor of an exponential cooldown must be above 0, got {text!r}: write {known[2]}:exponential:0.01"
        )
    return Cooldown(start, steps, shape, floor)


def shaped(trunk: Callable[[Any, int], Any], branch: Cooldown) -> Callable[[Any, int], Any]:
    """(peak, steps) -> the schedule of a branch, from that of the training that it leaves."""

    def cooled(peak: Any, steps: int) -> Any:
        return schedules.wsd_cooldown(
            trunk(peak, steps),
            start=branch.start or 0,
            decay_steps=branch.steps,
            shape=branch.shape,
            end_value=branch.floor * peak,
        )

    return cooled


def settled(config: Any) -> Any:
    """A `TrainConfig` whose cooldown says where it starts: the training that it branches from may go on meanwhile.

    Raises:
      FileNotFoundError: there is no checkpoint, or none of this step.
    """
    if config.cooldown is None:
        return config
    wanted, folder = read(config.cooldown), pathlib.Path(config.checkpoint_dir)
    steps = Checkpoints(folder).steps() if folder.is_dir() else ()
    if not steps:
        raise FileNotFoundError(f"there is no checkpoint in {folder} that a cooldown could start from")
    if wanted.start is not None and wanted.start not in steps and not (folder / wanted.name).is_dir():
        raise FileNotFoundError(
            f"there is no checkpoint of step {wanted.start} in {folder}; there are {', '.join(map(str, steps))}"
        )
    start = steps[-1] if wanted.start is None else wanted.start
    return dataclasses.replace(config, cooldown=wanted._replace(start=start).text)


def paths(config: Any) -> tuple[str | None, str | None, str | None]:
    """The folder of checkpoints, the file of metrics and the folder of TensorBoard that a run writes: a branch has its
    own, so that the same flags as those of the training leave its files alone.

    >>> from gradkit.training import TrainConfig
    >>> config = TrainConfig(checkpoint_dir="run", metrics_file="run.jsonl", schedule="wsd", cooldown="600:150")
    >>> paths(config)
    ('run/cooldown_600_150', 'run_cooldown_600_150.jsonl', None)
    """
    given = config.checkpoint_dir, config.metrics_file, config.tensorboard
    if config.cooldown is None:
        return given
    folder, file, board = given
    name = read(config.cooldown).name
    if file is not None:
        path = pathlib.Path(file)
        file = str(path.with_name(f"{path.stem}_{name}{path.suffix}"))
    return str(pathlib.Path(folder) / name), file, None if board is None else str(pathlib.Path(board) / name)
