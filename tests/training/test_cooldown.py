"""Cooldowns from the checkpoints of a training at a constant rate: branches that leave it as it is."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradkit.cli import main
from gradkit.training import Checkpoints, TrainConfig, methods, train
from gradkit.training.cooldown import Cooldown, read, settled, shaped

pytestmark = pytest.mark.slow

OWN: dict[str, Any] = {"workload": "heavytail", "method": "sgd", "schedule": "wsd", "learning_rate": 0.1, "steps": 80}


def run(folder: Path, **changes: Any) -> dict[int, dict[str, Any]]:
    """The records of a run, by step."""
    config = TrainConfig(**{**OWN, "checkpoint_dir": str(folder / "trunk"), "keep": 20, **changes})
    return {record["step"]: record for record in train(config)}


def steps_in(folder: Path) -> tuple[int, ...]:
    return Checkpoints(folder).steps()


PLANNED = """
import gradkit as gk
chain = gk.sgd(gk.schedules.wsd(0.1, warmup_steps=4, stable_steps=36, decay_steps=40, init_value=0.1 / 4))
"""


def test_a_branch_is_the_planned_cooldown_and_the_trunk_is_left_alone(tmp_path: Path) -> None:
    """From step 40 of 80, the numbers of a run whose schedule had the cooldown from the beginning, bit for bit; and the
    trunk goes on afterwards as if there had been none."""
    trunk = run(tmp_path)
    branch = run(tmp_path, cooldown="40:40")
    file = tmp_path / "planned.py"
    file.write_text(PLANNED)
    other: dict[str, Any] = {"checkpoint_dir": None, "method": None, "chain": str(file), "learning_rate": None}
    planned = run(tmp_path, **other, schedule=None)
    assert sorted(branch) == [60, 80]
    for step in branch:
        assert branch[step]["metric"] == planned[step]["metric"] != trunk[step]["metric"]
    # 1 - sqrt of 39 of 40 steps is what the last update has.
    assert branch[80]["learning_rate"] == pytest.approx(0.1 * (1 - np.sqrt(39 / 40)), rel=1e-5)
    assert trunk[80]["learning_rate"] == pytest.approx(0.1, rel=1e-6)
    names = sorted(path.name for path in (tmp_path / "trunk").iterdir())
    assert names == ["20", "40", "60", "80", "cooldown_40_40"]
    assert steps_in(tmp_path / "trunk" / "cooldown_40_40") == (60, 80)
    longer = run(tmp_path, steps=120)
    assert sorted(longer) == [100, 120]


def test_without_a_start_it_is_the_last_checkpoint_and_stays_there(tmp_path: Path) -> None:
    run(tmp_path, steps=40)
    config = TrainConfig(**{**OWN, "steps": 40}, checkpoint_dir=str(tmp_path / "trunk"), cooldown="20")
    assert settled(config).cooldown == "40:20" and settled(settled(config)) == settled(config)
    assert list(run(tmp_path, steps=40, cooldown="20")) == [60]
    assert run(tmp_path, steps=40, cooldown="20") == {}, "it is over"


def test_a_branch_that_was_ended_goes_on_from_its_own_checkpoint(tmp_path: Path) -> None:
    """Also where the trunk has meanwhile thrown away the one it started from."""
    run(tmp_path, steps=40)
    config = TrainConfig(**OWN, checkpoint_dir=str(tmp_path / "trunk"), cooldown="40:60")
    with contextlib.closing(train(config)) as records:  # pyright: ignore[reportArgumentType]
        assert next(records)["step"] == 60
        next(records)
    saved = steps_in(tmp_path / "trunk" / "cooldown_40_60")
    assert saved and saved[-1] < 100
    run(tmp_path, steps=80, keep=1)
    assert steps_in(tmp_path / "trunk") == (80,)
    rest = run(tmp_path, cooldown="40:60")
    assert list(rest)[-1] == 100 and next(iter(rest)) == saved[-1] + 20
    fresh = tmp_path / "again"
    run(fresh, steps=40)
    assert run(fresh, cooldown="40:60")[100]["metric"] == rest[100]["metric"]


def test_a_branch_has_any_shape_and_a_floor_and_a_folder_of_its_own(tmp_path: Path) -> None:
    """Two branches of the same steps beside each other: 39 of 40 steps of each shape is what the last update has."""
    run(tmp_path, steps=40)
    p = 39 / 40
    shares = {
        "40:40": 1 - np.sqrt(p),
        "40:40:linear:0.25": 0.25 + 0.75 * (1 - p),
        "40:cosine": 0.5 + np.cos(np.pi * p) / 2,
    }
    for text, share in shares.items():
        branch = run(tmp_path, steps=40, cooldown=text)
        # float32: roundings of the curve, relative to the peak.
        assert branch[80]["learning_rate"] == pytest.approx(0.1 * share, rel=1e-5, abs=1e-8)
    names = sorted(path.name for path in (tmp_path / "trunk").iterdir() if path.is_dir())
    assert names == ["20", "40", "cooldown_40_40", "cooldown_40_40_cosine", "cooldown_40_40_linear_0.25"]
    assert run(tmp_path, steps=40, cooldown="40:40:linear:0.25") == {}, "it is over"


@pytest.mark.parametrize(
    ("shape", "floor", "half"),
    [
        ("linear", 0.0, 0.5),
        ("1-sqrt", 0.2, 0.2 + 0.8 * (1 - np.sqrt(0.5))),
        ("1-square", 0.0, 0.75),
        ("cosine", 0.5, 0.75),
        ("exponential", 0.01, 0.1),
    ],
)
def test_the_middle_and_the_end_of_every_shape(shape: str, floor: float, half: float) -> None:
    """As the head of `gradkit.schedules.phases` has them, times the peak, and the floor for ever after."""
    text = f"60:20:{shape}" + (f":{floor}" if floor else "")
    assert read(text) == Cooldown(60, 20, shape, floor) and read(read(text).text) == read(text)
    schedule = shaped(methods.SHAPES["wsd"], read(text))(0.3, 100)
    values = np.asarray(schedule(np.array([59, 60, 70, 80, 500])))
    # float32: exponentials and cosines to a few roundings.
    np.testing.assert_allclose(values, 0.3 * np.array([1, 1, half, floor, floor]), rtol=1e-5, atol=1e-7)


def test_the_command_writes_files_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command with one flag more: the metrics of the training stay as they are."""
    command = ["gradkit", "train", "--workload=heavytail", "--method=sgd", "--schedule=wsd", "--steps=60"]
    command += [f"--checkpoint_dir={tmp_path / 'trunk'}", f"--metrics_file={tmp_path / 'm.jsonl'}"]
    assert main(command) == 0
    before = (tmp_path / "m.jsonl").read_text()
    capsys.readouterr()
    assert main([*command, "--cooldown=40:20"]) == 0
    said = capsys.readouterr().out
    assert "going on from the checkpoint of step 40" in said and "cooling down to step 60" in said
    assert (tmp_path / "m.jsonl").read_text() == before
    rows = (tmp_path / "m_cooldown_40_20.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [60]
    assert main([*command, "--cooldown=30:20"]) == 2
    assert "there is no checkpoint of step 30" in capsys.readouterr().err
    assert main([*command, "--cooldown=40:30"]) == 2
    assert "multiple of eval_every" in capsys.readouterr().err


def test_a_trunk_of_another_schedule_is_refused(tmp_path: Path) -> None:
    """Half a cosine is no constant rate: the checkpoint says under which schedule it was written."""
    run(tmp_path, steps=40, schedule="warmup_cosine")
    with pytest.raises(ValueError, match='schedule is "warmup_cosine" there and "wsd" here'):
        run(tmp_path, steps=40, cooldown="20")


@pytest.mark.parametrize("name", methods.SHAPES)
def test_schedules_by_name(name: str) -> None:
    """All begin above 0, reach the peak of the twentieth of the steps, and none has a jump but at the end."""
    schedule = methods.SHAPES[name](0.3, 100)
    values = [float(schedule(step)) if callable(schedule) else schedule for step in range(101)]
    assert values[0] == pytest.approx(0.3 if name == "constant" else 0.3 / 5, rel=1e-6)
    assert max(values) == pytest.approx(0.3, rel=1e-6) and values[5] == pytest.approx(0.3, rel=0.02)
    assert values[99] < 0.01 if "warmup" in name else values[99] == pytest.approx(0.3, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cooldown": "a:b"}, "cooldown must be STEPS from the last checkpoint on, or START:STEPS"),
        ({"cooldown": "40:0"}, "the steps of cooldown must be an integer >= 1"),
        ({"cooldown": "40:20:0.1"}, "may end in a shape and a fraction of the peak"),
        ({"cooldown": "40:20:cosin"}, "the shape of cooldown must be one of .*did you mean 'cosine'"),
        ({"cooldown": "20:linear:1"}, r"the floor of cooldown must be in \[0, 1\)"),
        ({"cooldown": "20:linear:low"}, r"the floor of cooldown must be a number in \[0, 1\), got 'low'"),
        ({"cooldown": "20:exponential"}, "floor of an exponential cooldown must be above 0.*write 20:exponential:0.01"),
        ({"cooldown": "40:20", "schedule": None}, "cooldown needs the flags of the training"),
        ({"cooldown": "40:20", "restore_step": 40}, "no restore_step"),
        ({"cooldown": "40:20", "checkpoint_dir": None}, "give checkpoint_dir as well"),
        ({"cooldown": "20", "coordinator": "auto"}, "cooldown must be START:STEPS with coordinator"),
        ({"schedule": "wds"}, r"schedule must be one of .*did you mean 'wsd'"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{**OWN, "checkpoint_dir": "trunk", **changes})


def test_what_cannot_start_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint in .* that a cooldown could start from"):
        run(tmp_path, cooldown="20")
    assert not (tmp_path / "trunk").exists()
    file = tmp_path / "own.py"
    file.write_text("import gradkit as gk\nchain = gk.sgd(0.1)\n")
    with pytest.raises(ValueError, match="schedule must be given with learning_rate"):
        run(tmp_path, checkpoint_dir=None, method=None, chain=str(file), learning_rate=None)
    with pytest.raises(ValueError, match=r"schedule must be left out: the learning rate of chain is its own"):
        import optax

        methods.find(optax.sgd(0.1)).scheduled(0.1, 10, methods.SHAPES["wsd"])
