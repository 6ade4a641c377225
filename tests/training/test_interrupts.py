"""Ctrl-C in the command: one line within two seconds, while it imports, compiles, trains or races."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from gradkit import interrupts

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = ["train", "--workload=heavytail", "--method=lion", "--steps=3000000", "--eval_every=1000"]
RACE = ["race", "--workloads=heavytail", "--methods=sgd,lion", "--rates=2", "--seeds=1", "--extensions=0"]
# A chain whose tracing or compilation takes longer than any test waits for.
TRACED = "import time\ndef chain(rate):\n    print('here', flush=True)\n    time.sleep(60)\n"
COMPILED = """
import jax, optax
def slow(u, state, params=None):
    print("here", flush=True)
    x = sum(jax.tree.leaves(jax.tree.map(lambda g: g.sum(), u)))
    for i in range(4000):
        x = jax.numpy.where(x > i, x * 1.5, jax.numpy.sin(x))
    return jax.tree.map(lambda g: g * x, u), state
chain = optax.GradientTransformation(lambda params: optax.EmptyState(), slow)
"""
# Tests that run in the background of a shell ignore the signal, and so would what they start.
HEARD = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def interrupted(arguments: list[str], ready: Callable[[subprocess.Popen], object], folder: pathlib.Path) -> str:
    """Standard error of a command that is interrupted once it is `ready`; it ends within two seconds, with 130."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [sys.executable, "-c", HEARD, sys.executable, "-m", "gradkit", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
    )
    try:
        ready(process)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGINT)
        # Two seconds of which last words have 1.5, and as much again for a machine that has other things to do.
        _, said = process.communicate(timeout=4)
    finally:
        process.kill()
    assert process.returncode == 130
    return said


def until(text: str) -> Callable[[subprocess.Popen], object]:
    """Waits for a line of standard output."""
    return lambda process: next(line for line in process.stdout or () if text in line)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 0.8])
def test_while_it_imports(seconds: float, tmp_path: pathlib.Path) -> None:
    """Modules of this library and of others are imported for longer than this."""

    def wait(process: subprocess.Popen) -> None:
        # From the first import of this library on; Python itself takes a moment that is not ours.
        while not (pathlib.Path("/proc") / str(process.pid) / "maps").read_text().count("numpy"):
            time.sleep(0.01)
        time.sleep(seconds)

    assert interrupted(TRAIN, wait, tmp_path) == "gradkit: interrupted\n"


@pytest.mark.slow
@pytest.mark.parametrize("text", [TRACED, COMPILED], ids=["in a file of the user", "traced and compiled"])
def test_while_it_builds_its_program(text: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "chain.py").write_text(text)
    arguments = [*TRAIN[:2], "--steps=20", "--chain=chain.py"]
    arguments += ["--learning_rate=1"] if text is TRACED else []
    assert interrupted(arguments, until("here"), tmp_path) == "gradkit: interrupted\n"


@pytest.mark.slow
def test_while_it_trains(tmp_path: pathlib.Path) -> None:
    """What was written goes on: the line says from where."""

    def written(process: subprocess.Popen) -> None:
        while not any(entry.name.isdigit() for entry in tmp_path.glob("saved/*")):
            assert process.poll() is None
            time.sleep(0.05)

    said = interrupted([*TRAIN, "--checkpoint_dir=saved"], written, tmp_path)
    left = max(int(entry.name) for entry in tmp_path.glob("saved/*") if entry.name.isdigit())
    assert said == f"gradkit: interrupted; the same command goes on from step {left}\n"


@pytest.mark.slow
def test_what_a_race_has_finished_is_kept(tmp_path: pathlib.Path) -> None:
    steps = ["--steps=20", "--timing_rounds=10000000"]
    said = interrupted([*RACE, *steps, "--out=report"], until("lion: "), tmp_path)
    assert said == "gradkit: interrupted; finished: sgd on heavytail, lion on heavytail, in report/results.json\n"
    kept = json.loads((tmp_path / "report" / "results.json").read_text())
    assert kept["interrupted"] and [row["method"] for row in kept["results"]] == ["sgd", "lion"]
    assert kept["results"][0]["seconds_per_step"] is None and len(kept["results"][0]["rates"]) == 2


def test_a_program_that_imports_the_library_keeps_the_way_of_python() -> None:
    """In a notebook, or a test, Ctrl-C is a KeyboardInterrupt."""
    assert not interrupts.is_command()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN)


def test_last_words_are_said_once_and_the_interrupt_goes_on() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts.last_words(lambda: "all is kept"), interrupts.last_words(str):
        raise KeyboardInterrupt
    assert interrupts.line() == "gradkit: interrupted; all is kept"
    assert interrupts.line() == "gradkit: interrupted"
