"""`gradkit train`: on a mesh as on one device, killed and gone on, from a file of its own, and what it refuses."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gradkit.cli import main
from gradkit.training import TrainConfig, train
from gradkit.training.train import start

pytestmark = pytest.mark.slow

CHAIN = """
import gradkit as gk
import optax

fixed = gk.sgd(0.1, momentum=0.9)
number = 3


def chain(learning_rate):
    return optax.chain(gk.clip_by_global_norm(1.0), gk.lion(learning_rate))
"""


def final(config: TrainConfig) -> Any:
    """The last records and the state of a run that is over."""
    records = list(train(config))
    return records, start(config).state


def run(*arguments: Any) -> int:
    return main(["gradkit", "train", *map(str, arguments)])


def test_on_a_mesh_as_on_one_device(tmp_path: pathlib.Path) -> None:
    """Parameters and state lie as they should, batches are computed in parts, and the numbers are the same."""
    same: dict[str, Any] = {
        "workload": "digits_mlp",
        "method": "momentum",
        "steps": 6,
        "eval_every": 3,
        "global_batch": 32,
    }
    alone, a = final(TrainConfig(**same, checkpoint_dir=str(tmp_path / "a")))
    mesh = TrainConfig(**same, mesh="data=2,fsdp=2,tensor=2", microbatch=8, checkpoint_dir=str(tmp_path / "b"))
    spread, b = final(mesh)
    kernel = b.params["Dense_1"]["kernel"]
    assert kernel.sharding.spec == P("fsdp", "tensor")
    momenta = [x for x in jax.tree.leaves(b.opt_state) if x.shape == kernel.shape]
    assert momenta and all(x.sharding == kernel.sharding for x in momenta)
    assert [record["step"] for record in spread] == [3, 6]
    # A gradient is a sum of 32 x 256 products at most, in another order; six steps of momentum add six of them up.
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        np.testing.assert_allclose(x, y, rtol=0, atol=6 * 8192**0.5 * 2**-24 * np.abs(x).max())
    np.testing.assert_allclose(alone[-1]["loss"], spread[-1]["loss"], rtol=1e-5)


def test_a_checkpoint_goes_on_on_another_mesh(tmp_path: pathlib.Path) -> None:
    same: dict[str, Any] = {"workload": "heavytail", "method": "momentum", "eval_every": 20}
    whole = list(train(TrainConfig(**same, steps=60)))
    # The schedule is one of all steps, so both halves know how many there are.
    config = TrainConfig(**same, steps=60, mesh="data=4,fsdp=2", checkpoint_dir=str(tmp_path))
    first = train(config)
    next(first)
    first.close()
    other = TrainConfig(**same, steps=60, mesh="fsdp=2,data=4", checkpoint_dir=str(tmp_path))
    rest = list(train(other))
    assert [record["step"] for record in rest] == [40, 60]
    # 60 steps on a convex problem: sums of 32 terms in another order, each off by at most 32 roundings.
    np.testing.assert_allclose(rest[-1]["metric"], whole[-1]["metric"], rtol=60 * 32 * 2**-24)
    assert list(train(other)) == []  # all steps are made


KILLED = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
from gradkit.cli import main
sys.exit(main(["gradkit", "train", *sys.argv[2:]]))
"""


@pytest.mark.full_pipeline
@pytest.mark.parametrize("devices", [1, 4])
def test_killed_at_any_step_it_ends_with_the_same_bits(tmp_path: pathlib.Path, devices: int) -> None:
    """Three SIGKILLs at random moments here; `experiments/kill_and_resume.py` has the twenty."""
    method = ["--workload=heavytail", "--method=adamw", "--steps=400", "--eval_every=10"]
    mesh = [f"--devices={devices}", f"--mesh=fsdp={devices}"]
    command = [sys.executable, "-c", KILLED, str(tmp_path / "cache"), *method, *mesh]
    folders = [tmp_path / "whole", tmp_path / "killed"]
    files = [tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"]
    commands = [[*command, f"--checkpoint_dir={d}", f"--metrics_file={f}"] for d, f in zip(folders, files, strict=True)]
    subprocess.run(commands[0], check=True, timeout=120, stdout=subprocess.DEVNULL)
    draw = random.Random(devices)
    kills = 0
    while kills < 3:
        with subprocess.Popen(commands[1], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()  # from here on steps are made
            time.sleep(draw.uniform(0.0, 0.6))
            child.send_signal(signal.SIGKILL)
        kills += 1
    subprocess.run(commands[1], check=True, timeout=120, stdout=subprocess.DEVNULL)

    def state(folder: pathlib.Path) -> Any:
        same: dict[str, Any] = {"method": "adamw", "workload": "heavytail", "steps": 400, "eval_every": 10}
        return start(TrainConfig(**same, checkpoint_dir=str(folder))).state

    for x, y in zip(*(jax.tree.leaves(state(folder)) for folder in folders), strict=True):
        x, y = (jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v for v in (x, y))
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    whole, killed = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    for records in (whole, killed):
        for record in records:
            del record["seconds"]
    assert killed == whole


def test_a_chain_from_a_file(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = tmp_path / "chain.py", tmp_path / "runs"
    file.write_text(CHAIN)
    short = ("--workload=heavytail", "--eval_every=20", f"--checkpoint_dir={folder}")
    assert run(f"--chain={file}", "--learning_rate=0.01", "--steps=40", *short) == 0
    assert "chain.py on linear regression" in capsys.readouterr().out
    # Another chain is refused, link by link, and transplanted if asked.
    assert run("--method=lion", "--steps=60", *short) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "ClipByGlobalNormState is in the checkpoint only" in said and "transplant" in said
    assert run("--method=lion", "--steps=60", *short, "--transplant") == 0
    said = capsys.readouterr().out
    assert "going on from the checkpoint of step 40" in said
    assert "ScaleByLionState/mu/kernel, which was opt_state/1/0/ScaleByLionState/mu/kernel" in said
    assert "dropped 2: opt_state/0/ClipByGlobalNormState" in said
    assert run("--method=lion", "--steps=60", *short) == 0
    assert "nothing to do: all 60 steps are made" in capsys.readouterr().out
    # Of another problem, seed or batch it is not a checkpoint at all.
    for changed in ("--seed=1", "--global_batch=16"):
        assert run("--method=lion", "--steps=80", *short, changed) == 2
        assert "is of another run" in capsys.readouterr().err
    assert run("--method=lion", "--steps=40", *short) == 2
    assert "do not fit the checkpoint of step 60" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chain=FILE:fixed", "--learning_rate=1"], "learning_rate must be left out"),
        (["--chain=FILE"], "learning_rate must be given"),
        (["--chain=FILE:fixt"], "defines no 'fixt'; did you mean 'fixed'?"),
        (["--chain=FILE:number"], "number must be a transformation or a function, got 3"),
        (["--chain=nowhere.py"], "there is no file nowhere.py"),
        (["--chain=FILE", "--method=lion"], "method and chain exclude each other"),
        (["--mesh=data=3"], "mesh=data=3 is of 3 devices, and there are 8"),
        (["--mesh=data"], "axes must be written like"),
        (["--mesh=fspd=8"], "got 'fspd'; did you mean 'fsdp'?"),
        (["--mesh=fspd=8", "--chain=FILE:fixed"], "got 'fspd'; did you mean 'fsdp'?"),
        (["--mesh=data=2,model=4"], "an axis of mesh must be one of 'replica', 'data', 'fsdp', 'tensor', got 'model'"),
        (["--mesh=workers=3", "--chain=FILE:fixed"], "mesh=workers=3 is of 3 devices, and there are 8"),
        (["--mesh=data=8", "--global_batch=12"], "global_batch must make every batch a multiple of the 8 parts"),
        (["--mesh=data=8", "--microbatch=4"], "every microbatch a multiple of the 8 parts"),
        (["--microbatch=7"], "microbatch must divide the batch size, 32, got 7"),
        (["--checkpoint_every=40"], "give checkpoint_dir as well"),
        (["--checkpoint_every=30", "--checkpoint_dir=FOLDER"], "checkpoint_every must be a multiple of eval_every=20"),
        (["--checkpoint_dir=FILE"], "no checkpoints can be written"),
        (["--process_id=1"], "give coordinator as well"),
        (["--coordinator=here:1"], "num_processes must be given with coordinator"),
        (["--coordinator=here:1", "--num_processes=2", "--process_id=2"], "process_id must be below num_processes=2"),
        (["--workload=sensing", "--global_batch=8"], "batch_size must be None for the workload sensing"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "chain.py").write_text(CHAIN)
    names = {"FILE": str(tmp_path / "chain.py"), "FOLDER": str(tmp_path / "runs")}
    for short, name in names.items():
        arguments = [argument.replace(short, name) for argument in arguments]
    start_with = [] if any(a.startswith("--workload") for a in arguments) else ["--workload=heavytail"]
    assert run(*start_with, *arguments) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.out == ""


def test_a_disk_that_fills_up_is_one_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gradkit.training import checkpoints

    real, calls = checkpoints.Checkpoints.save, []

    def save(self: Any, step: int, *rest: Any, **more: Any) -> None:
        calls.append(step)
        if len(calls) > 1:
            self.wait()
            raise OSError(28, os.strerror(28))
        real(self, step, *rest, **more)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save)
    common = ("--workload=heavytail", "--method=lion", "--steps=60", f"--checkpoint_dir={tmp_path}")
    assert run(*common) == 1
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(*common) == 0
    assert "going on from the checkpoint of step 20" in capsys.readouterr().out


def test_metrics_of_a_run_that_went_on(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Records after the last checkpoint are written again, events too; a file that is no metrics is left alone."""
    file, board = tmp_path / "run.jsonl", tmp_path / "board"
    common = ("--workload=heavytail", "--method=lion", f"--metrics_file={file}", f"--checkpoint_dir={tmp_path / 'c'}")
    file.write_text('{"step": 20, "loss": 1}\n')  # of a run that was killed before its first checkpoint, or of another
    assert run(*common, "--steps=40", "--checkpoint_every=40", f"--tensorboard={board}") == 0
    assert (tmp_path / "run.jsonl.1").read_text() == '{"step": 20, "loss": 1}\n'
    with file.open("a") as stream:
        stream.write('{"step": 60, "loss": 1}\n{"step": 80, "lo')
    assert run(*common, "--steps=80") == 0
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [20, 40, 60, 80]
    assert len(list(board.iterdir())) == 1
    file.write_text("not a record\nat all\n")
    capsys.readouterr()
    assert run(*common, "--steps=100") == 2
    assert "is no file of metrics" in capsys.readouterr().err
    assert file.read_text() == "not a record\nat all\n"


def test_a_guard_without_budget_ends_the_run(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every direction is infinite: after three skips the run says so, in one line behind its record."""
    file = tmp_path / "chain.py"
    file.write_text(
        textwrap.dedent("""
        import gradkit as gk
        import optax

        def chain(rate):
            return optax.chain(gk.guard(optax.chain(optax.scale(float("inf")), gk.sgd(rate)), max_skips=3))
    """)
    )
    assert run("--workload=heavytail", f"--chain={file}", "--learning_rate=0.1", "--steps=8", "--eval_every=4") == 1
    out, err = capsys.readouterr()
    assert "step 4" in out and err.count("\n") == 1
    assert err.startswith("gradkit: step 4: gk.guard has skipped as many steps in a row as its max_skips allows")


def test_what_a_file_of_a_chain_does_wrong_is_said(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "chain.py"
    file.write_text(
        textwrap.dedent("""
        def chain(rate):
            return rate
        import nothing_of_this_name
    """)
    )
    assert run("--workload=heavytail", f"--chain={file}", "--learning_rate=1") == 2
    assert "chain.py, line 4: ModuleNotFoundError" in capsys.readouterr().err
    file.write_text("def chain(rate):\n    return 3\n")
    assert run("--workload=heavytail", f"--chain={file}", "--learning_rate=1") == 2
    assert "must return a transformation, got 3" in capsys.readouterr().err
