"""The range test: a learning rate that grows step by step, to find the largest one at which the loss falls."""

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.schedules.phases import Schedule, ramp
from gradkit.types import Scalar

PAPER = Paper("A disciplined approach to neural network hyper-parameters: Part 1", "Smith", 2018, "1803.09820")


def lr_range_test(min_value: Scalar, max_value: Scalar, *, steps: int, kind: str = "linear") -> Schedule:
    """A learning rate that grows from a small to a large value, for a short run whose losses show which rates train.

    Equations, with the step i = 0, ..., N - 1:

        rate_i = min + (max - min) i / (N - 1)                "linear"
        rate_i = min (max / min)^(i / (N - 1))                "exponential"

    `gk.diagnostics.suggest_learning_rate` reads the losses.

    Args:
      min_value: rate of the first step, > 0; may be traced.
      max_value: rate of the last step, > 0, not below `min_value`; may be traced.
      steps: N >= 2; afterwards the rate stays at `max_value`.
      kind: "linear" (default, the paper) or "exponential", for several orders of magnitude.

    Returns:
      A schedule step -> rate. No state, no collective.

    Raises:
      ValueError: an argument outside its range; a largest rate below the smallest.

    Example:
      >>> [round(float(lr_range_test(0.01, 1.0, steps=3, kind="exponential")(i)), 3) for i in range(3)]
      [0.01, 0.1, 1.0]

    Reference: Smith. A disciplined approach to neural network hyper-parameters: Part 1. 2018, arXiv 1803.09820.
    """
    checks.real("min_value", min_value, "(0, inf)")
    checks.real("max_value", max_value, "(0, inf)")
    checks.choice("kind", kind, ["linear", "exponential"])
    steps = checks.integer("steps", steps, 2)
    low, high = checks.readable(min_value), checks.readable(max_value)
    if low is not None and high is not None and high < low:
        raise ValueError(f"lr_range_test: max_value must be at least min_value={min_value}, got {max_value}")
    return ramp(steps - 1, kind, min_value, max_value)


register(
    lr_range_test,
    form="schedule",
    paper=PAPER,
    example={"min_value": 0.01, "max_value": 1.0, "steps": 12},
)
