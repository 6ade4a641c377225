"""A cooldown from a checkpoint of a training at a constant rate: a branch, beside which the training may go on.

TRUNK/STEP                          checkpoints of the training, which the branch only reads
TRUNK/cooldown_START_STEPS/STEP     those of the branch, from which it goes on where it was ended
"""

import dataclasses
import pathlib
import re
from typing import Any, NamedTuple

from gradkit import checks
from gradkit.training.checkpoints import Checkpoints


class Cooldown(NamedTuple):
    """Where a cooldown starts and how long it is. `start` None: at the last checkpoint there is."""

    start: int | None
    steps: int

    @property
    def end(self) -> int:
        """The step it ends at; of one whose start is known."""
        return (self.start or 0) + self.steps

    @property
    def name(self) -> str:
        """What its folder and files are called."""
        return f"cooldown_{self.start}_{self.steps}"


def read(text: str) -> Cooldown:
    """A cooldown as `--cooldown` has it: STEPS, or START:STEPS.

    Raises:
      ValueError: anything else, or no step.

    >>> read("600:150"), read("150")
    (Cooldown(start=600, steps=150), Cooldown(start=None, steps=150))
    """
    known = re.fullmatch(r"(?:(\d+):)?(\d+)", text) if isinstance(text, str) else None
    if known is None:
        raise ValueError(
            f"cooldown must be STEPS from the last checkpoint on, or START:STEPS from an earlier one, such as 600:150, "
            f"got {text!r}"
        )
    start = None if known[1] is None else checks.integer("the start of cooldown", int(known[1]), 0)
    return Cooldown(start, checks.integer("the steps of cooldown", int(known[2]), 1))


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
    return dataclasses.replace(config, cooldown=f"{start}:{wanted.steps}")


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
