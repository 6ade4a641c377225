"""A folder that a run holds, processes that were started alike, and what a checkpoint says of the run that wrote it."""

import dataclasses
import json
import pathlib
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from gradkit.cli import main
from gradkit.training import TrainConfig, held, processes
from gradkit.training.settings import RaceConfig

ROOT = pathlib.Path(__file__).parents[2]
HOLDER = """
import sys
from gradkit.training.held import held
with held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
RUN = ["gradkit", "train", "--workload=heavytail", "--steps=40"]


@pytest.fixture
def holder(tmp_path: pathlib.Path) -> Any:
    """Another process that holds the folder of a run until its standard input is closed."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "saved")]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_in_use_is_refused_in_one_line_until_its_process_has_ended(
    holder: subprocess.Popen[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also for a race; a process that is killed leaves no lock behind, and nothing is written beside the run."""
    run = [*RUN, f"--checkpoint_dir={tmp_path / 'saved'}", f"--metrics_file={tmp_path / 'run.jsonl'}"]
    assert main(run) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert f"the folder {tmp_path / 'saved'} is in use by another run" in said.err
    assert not (tmp_path / "run.jsonl").exists()
    race = ["gradkit", "race", "--workloads=heavytail", "--methods=sgd", f"--out={tmp_path / 'saved'}"]
    assert main(race) == 2
    assert "is in use by another run" in capsys.readouterr().err
    holder.kill()
    holder.wait()
    assert main(run) == 0
    assert sorted(entry.name for entry in (tmp_path / "saved").iterdir()) == ["20", "40"]


def test_one_process_holds_a_folder_several_times(tmp_path: pathlib.Path) -> None:
    with held.held(tmp_path / "new"):
        with held.held(tmp_path / "new"):
            pass
        with held.held(None):
            pass
    assert list((tmp_path / "new").iterdir()) == [] and held._held == {}


def test_the_same_process_of_a_run_is_started_once_on_a_machine() -> None:
    """The second would join the run of the first, and end it."""
    with processes._once("127.0.0.1:7", 1), processes._once("127.0.0.1:7", 0), processes._once("auto", None):
        pass


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two processes, of which the other says what is changed in what this one says."""

    def make(having: tuple[int, ...] = (0, 0, 1, 1), **changed: Any) -> None:
        monkeypatch.setattr("jax.process_count", lambda: 2)
        monkeypatch.setattr("jax.devices", lambda: [SimpleNamespace(process_index=i) for i in having])
        other = {f"--{name}" if name.islower() and " " not in name else name: x for name, x in changed.items()}
        monkeypatch.setattr(held, "_from_all", lambda text: [text, json.dumps({**json.loads(text), **other})])

    return make


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(TrainConfig) if f.name != "process_id"])
def test_processes_that_disagree_in_a_flag_are_refused_by_its_name(name: str, two: Any) -> None:
    settings = held.settings(TrainConfig())
    assert name in settings
    two(**{name: "another"})
    with pytest.raises(
        ValueError, match=rf"^--{name} must be the same in all processes: it is .* 'another' in process 1"
    ):
        held.agree(settings)


def test_processes_may_differ_in_their_numbers_alone(two: Any) -> None:
    run: dict[str, Any] = {"coordinator": "here:1", "num_processes": 2}
    settings = [held.settings(TrainConfig(**run, process_id=i)) for i in range(2)]
    assert settings[0] == settings[1]
    two()
    held.agree(settings[0])
    two(having=(0, 0, 1))
    with pytest.raises(ValueError, match=r"^--devices must be the same in all processes: process 0 has 2 devices"):
        held.agree(settings[0])
    two(**{"the version of jax": "0.0.1"})
    with pytest.raises(ValueError, match=r"^the version of jax must be the same in all processes: it is '0\.1"):
        held.agree(settings[0])


def test_the_code_and_the_file_of_a_chain_are_part_of_what_processes_have_in_common(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "chain.py"
    found = []
    for text in ("import optax\nchain = optax.sgd(0.1)\n", "import optax\nchain = optax.sgd(0.2)\n"):
        file.write_text(text)
        found.append(held.settings(TrainConfig(chain=str(file))))
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {"chain (what is in the file)"}
    (tmp_path / "gradkit").mkdir()
    (tmp_path / "gradkit" / "a.py").write_text("x = 1\n")
    before = held.code()
    monkeypatch.setattr(held, "PACKAGE", tmp_path / "gradkit")
    assert len({before, held.code.__wrapped__()}) == 2


def train(folder: pathlib.Path, *more: str) -> int:
    return main([*RUN[:-1], f"--checkpoint_dir={folder}", *more])


def test_another_method_with_the_same_state_is_refused_and_another_rate_is_said(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The states of Adam and of NAdam have the same form."""
    assert train(tmp_path, "--method=adam", "--steps=20") == 0
    capsys.readouterr()
    assert train(tmp_path, "--method=nadam", "--steps=40") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "is of --method=adam, and this run has --method=nadam" in said
    assert train(tmp_path, "--method=adam", "--steps=40", "--learning_rate=0.5", "--microbatch=16") == 0
    said = capsys.readouterr().out
    assert "learning_rate was 0.005 until step 20 and is 0.5 from here on" in said
    assert "microbatch was None until step 20 and is 16" in said and "steps was 20 until step 20 and is 40" in said
    assert train(tmp_path, "--method=nadam", "--steps=60", "--learning_rate=0.5", "--transplant") == 0
    assert "method was adam until step 40 and is nadam from here on" in capsys.readouterr().out
    assert train(tmp_path, "--method=nadam", "--steps=60", "--learning_rate=0.5") == 0
    assert " was " not in capsys.readouterr().out.replace("which was", "")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--checkpoint_dir="], "checkpoint_dir must not be empty"),
        (["--metrics_file="], "metrics_file must not be empty"),
        (["--seed=4294967296"], "seed must be an integer >= 0"),
        (["--coordinator=x", "--num_processes=2", "--process_id=0"], "coordinator must be host:port of process 0"),
        (["--mesh=foo=1"], "an axis of mesh must be one of"),
    ],
)
def test_flags_that_nobody_meant_are_one_line(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*RUN, *flags]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_a_race_is_the_same_race_by_its_settings() -> None:
    """Not by its methods: one that is added finds the others finished."""
    from gradkit.training.finished import key_of

    one = RaceConfig(methods=("sgd",), seeds=2)
    assert key_of(one) == key_of(RaceConfig(methods=("sgd", "lion"), seeds=2))
    changed: list[dict[str, Any]] = [{"rates": 7}, {"decades": 0.5}, {"seeds": 3}, {"steps": 40}, {"eval_every": 10}]
    for more in [*changed, {"extensions": 0}]:
        assert key_of(RaceConfig(methods=("sgd",), **{"seeds": 2, **more})) != key_of(one)
