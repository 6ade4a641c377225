"""Multigrid training of video models (Wu et al., 2020)."""

import math

import pytest

from gradkit.batches import multigrid_schedule

ORDINARY = {"frames": 16, "crop": 224, "steps": [0, 44, 88, 118], "max_epoch": 118 + 10}


def test_the_volume_of_a_batch_is_constant() -> None:
    """B t s^2 of every shape is that of the full one, to the rounding of the batch and the crop."""
    plan = multigrid_schedule(8, **ORDINARY)
    full = 8 * 16 * 224**2
    for row in plan.rows:
        for step in range(3):
            batch, frames, crop = plan.shape(row.end_epoch - 1, step)
            # s is rounded to a pixel; its square and that of the long shape enter, and both batches are rounded.
            assert batch * frames * crop**2 / full == pytest.approx(1, abs=0.06)
    assert [(row.batch_factor, row.frames, row.crop) for row in plan.rows[:4]] == [
        (8, 4, 158),
        (4, 8, 158),
        (2, 8, 224),
        (1, 16, 224),
    ]


@pytest.mark.parametrize("short_cycle", [True, False])
def test_every_shape_of_a_stage_has_as_many_steps(short_cycle: bool) -> None:
    """Epochs / average batch, with long runs so that whole epochs are exact to a few per cent."""
    plan = multigrid_schedule(1, frames=16, crop=224, steps=[0, 500], max_epoch=600, short_cycle=short_cycle)
    starts = [0, *(row.end_epoch for row in plan.rows)]
    iterations = []
    for start, row in zip(starts, plan.rows, strict=False):
        batches = [plan.shape(start, step)[0] for step in range(3)]
        iterations.append((row.end_epoch - start) / (sum(batches) / 3))
    for n in iterations[1:4]:
        assert n == pytest.approx(iterations[0], rel=0.03)
    # As much is saved in the fine-tuning as before it: steps of 100 to 500 epochs, ordinary or multigrid.
    assert iterations[4] / sum(iterations[:4]) == pytest.approx(100 / 500, rel=0.03)
    assert plan.max_epoch == 900 == plan.rows[-1].end_epoch


def test_rates_scale_with_the_batch() -> None:
    plan = multigrid_schedule(8, **ORDINARY, gamma=0.5, epoch_factor=1.0)
    assert list(plan.rates[:-2]) == [0.5**row.stage * row.batch_factor for row in plan.rows[:-1]]
    # Fine-tuning: half of it at the rate before the last.
    assert plan.rates[-2:] == (0.5**2, 0.5**3) and len(plan.boundaries) == len(plan.rates)
    assert plan.boundaries[-1] == (plan.rows[-2].end_epoch + plan.max_epoch) // 2
    assert list(plan.boundaries) == sorted(plan.boundaries) and plan.boundaries[0] == 0


def test_the_short_cycle() -> None:
    plan = multigrid_schedule(4, **ORDINARY)
    last = plan.max_epoch - 1
    assert [plan.shape(last, step) for step in range(4)] == [(16, 16, 112), (8, 16, 158), (4, 16, 224), (16, 16, 112)]
    assert plan.shape(10**6, 2) == (4, 16, 224)
    alone = multigrid_schedule(4, **ORDINARY, short_cycle=False)
    assert {alone.shape(last, step) for step in range(3)} == {(4, 16, 224)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "frames must be"),
        ({"max_epoch": 118}, "steps must be"),
        ({"steps": [0]}, "steps must be"),
        ({"steps": [1, 2]}, "steps must be"),
        ({"gamma": math.nan}, "gamma must be"),
        ({"epoch_factor": 0.0}, "epoch_factor must be"),
        ({"long_factors": ()}, "long_factors must be"),
        ({"long_factors": ((0.5, 1.5),)}, "long_factors must be"),
        ({"short_factors": (0.5,)}, "short_factors must be"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multigrid_schedule(8, **{**ORDINARY, **changes})
