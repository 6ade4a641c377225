"""One run over several processes: the numbers of one process, and what is said where a process is lost."""

import collections
import dataclasses
import pathlib
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest

from gradkit.training import Checkpoints, TrainConfig
from gradkit.training.train import go_on, start

pytestmark = pytest.mark.slow


def commands(*arguments: str) -> list[list[str]]:
    """The same run in two processes of four devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    whom = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--heartbeat=10", "--devices=4"]
    return [[sys.executable, "-m", "gradkit", "train", *arguments, *whom, f"--process_id={i}"] for i in range(2)]


def begin(command: list[str], output: pathlib.Path) -> subprocess.Popen[bytes]:
    # Gloo writes about its connections on the standard output, in the middle of lines: it is never read for numbers.
    with output.open("wb") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)


def test_two_processes_are_one_run(tmp_path: pathlib.Path) -> None:
    """2 x 4 devices, parameters cut within a process and batches across: as 1 x 8, which runs here. Process 0 starts
    after process 1."""
    same: dict[str, Any] = {"workload": "digits_mlp", "method": "momentum", "steps": 6, "eval_every": 3}
    same |= {"global_batch": 32, "mesh": "data=2,fsdp=4"}
    alone = start(TrainConfig(**same, checkpoint_dir=str(tmp_path / "one")))
    records = list(go_on(TrainConfig(**same), alone))
    flags = [f"--{name}={value}" for name, value in same.items()]
    files = [f"--checkpoint_dir={tmp_path / 'two'}", f"--metrics_file={tmp_path / 'two.jsonl'}"]
    outputs = [tmp_path / "0.txt", tmp_path / "1.txt"]
    first, second = commands(*flags, *files)
    # The process that all others ask for comes last, and late.
    both = [begin(second, outputs[1])]
    time.sleep(2.0)
    both.append(begin(first, outputs[0]))
    try:
        codes = [process.wait(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    assert codes == [0, 0], [out.read_text(errors="replace")[-2000:] for out in outputs]
    assert (tmp_path / "two.jsonl").read_text().count("\n") == len(records) == 2

    a, b = (start(TrainConfig(**same, checkpoint_dir=str(tmp_path / name))).state for name in ("one", "two"))
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        # A gradient is a sum of 32 x 256 products at most, in another order; momentum adds six of them up.
        np.testing.assert_allclose(x, y, rtol=0, atol=6 * 8192**0.5 * 2**-24 * np.abs(x).max())


def test_a_lost_process_ends_the_others_with_a_word(tmp_path: pathlib.Path) -> None:
    run = ["--workload=heavytail", "--method=lion", "--steps=3000000", "--eval_every=1000", "--mesh=data=8"]
    outputs, log = [tmp_path / "0.txt", tmp_path / "1.txt"], tmp_path / "run.jsonl"
    both = [begin(c, out) for c, out in zip(commands(*run, f"--metrics_file={log}"), outputs, strict=True)]
    try:
        deadline = time.monotonic() + 90
        while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.1)
        both[1].send_signal(signal.SIGKILL)
        lost = time.monotonic()
        # The heartbeat, and as much again for a machine that has other things to do.
        code = both[0].wait(timeout=30)
        waited = time.monotonic() - lost
    finally:
        for process in both:
            process.kill()
    assert code != 0 and waited < 20
    time.sleep(0.5)  # the last line is written once the process is gone
    said = outputs[0].read_text(errors="replace")
    assert "because another process of this run was lost" in said, said[-2000:]


def test_one_of_two_processes_is_terminated_and_both_end_with_a_word(tmp_path: pathlib.Path) -> None:
    run = ["--workload=heavytail", "--method=lion", "--steps=3000000", "--eval_every=1000", "--mesh=data=8"]
    run.append(f"--checkpoint_dir={tmp_path / 'saved'}")
    errors, saved = [tmp_path / "0.txt", tmp_path / "1.txt"], Checkpoints(tmp_path / "saved")
    both = []
    for command, error in zip(commands(*run), errors, strict=True):
        with error.open("wb") as stream:
            both.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream))
    try:
        deadline = time.monotonic() + 90
        while saved.latest() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        both[1].send_signal(signal.SIGTERM)
        stopped = time.monotonic()
        # The heartbeat, and as much again for a machine that has other things to do.
        codes = [process.wait(timeout=30) for process in both]
        waited = time.monotonic() - stopped
    finally:
        for process in both:
            process.kill()
    time.sleep(0.5)  # the last line is written once the process is gone
    said = [error.read_text(errors="replace") for error in errors]
    assert codes[0] != 0 and codes[1] == 128 + signal.SIGTERM and waited < 20
    assert said[1].startswith("gradkit: terminated") and said[1].count("\n") == 1
    assert said[0].count("gradkit: process 0 ends, because another process of this run was lost") == 1, said[0][-2000:]


def test_processes_that_disagree_are_refused_before_anything_is_compiled(tmp_path: pathlib.Path) -> None:
    run = ["--workload=heavytail", "--method=lion", f"--checkpoint_dir={tmp_path / 'saved'}"]
    first, second = commands(*run)
    both = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True) for c in (first, [*second, "--learning_rate=0.02"])]
    try:
        said = [process.communicate(timeout=90)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [2, 2]
    line = "gradkit: --learning_rate must be the same in all processes: it is None in process 0 and 0.02 in process 1"
    assert all(text.startswith(line) and text.count("\n") == 1 for text in said), said
    assert list((tmp_path / "saved").iterdir()) == []


def test_replicas_over_processes_lose_one_and_end_with_the_bits_of_one_process(tmp_path: pathlib.Path) -> None:
    """2 x 4 devices, two replicas in each process, DiLoCo with integers between all four. One process is killed; the
    other ends; both are started again, and what they end with is, to the bit, what one process of 8 devices ends with
    that nobody has disturbed: integers are exchanged, and every sum of floats has two terms, or the same order."""
    same: dict[str, Any] = {"workload": "heavytail", "method": "adamw", "steps": 160, "eval_every": 8}
    same |= {"replicas": 4, "sync": "diloco", "sync_every": 5, "exchange": "int8", "global_batch": 32}
    alone = TrainConfig(**same, mesh="replica=4,data=2", checkpoint_dir=str(tmp_path / "one"))
    collections.deque(go_on(alone, start(alone)), maxlen=0)
    flags = [f"--{name}={value}" for name, value in same.items()]
    flags += [f"--checkpoint_dir={tmp_path / 'two'}", f"--metrics_file={tmp_path / 'two.jsonl'}"]

    outputs, saved = [tmp_path / "0.txt", tmp_path / "1.txt"], Checkpoints(tmp_path / "two")
    both = [begin(c, out) for c, out in zip(commands(*flags), outputs, strict=True)]
    try:
        deadline = time.monotonic() + 90
        while saved.latest() is None and both[0].poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        both[1].kill()
        lost = time.monotonic()
        # The heartbeat, and as much again for a machine that has other things to do.
        code = both[0].wait(timeout=30)
        waited = time.monotonic() - lost
    finally:
        for process in both:
            process.kill()
    assert code != 0 and waited < 20 and saved.latest() in range(8, 160, 8)
    time.sleep(0.5)  # the last line is written once the process is gone
    said = outputs[0].read_text(errors="replace")
    assert said.count("because another process of this run was lost") == 1, said[-2000:]

    both = [begin(c, out) for c, out in zip(commands(*flags), outputs, strict=True)]
    try:
        codes = [process.wait(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    said = outputs[0].read_text(errors="replace")
    assert codes == [0, 0] and "going on from the checkpoint of step" in said, said[-2000:]
    assert (tmp_path / "two.jsonl").read_text().count("\n") == 20

    a, b = (start(dataclasses.replace(alone, checkpoint_dir=str(tmp_path / name))).state for name in ("one", "two"))
    assert int(a.step) == int(b.step) == 160
    for x, y in zip(*(jax.tree.leaves((each.params, each.opt_state)) for each in (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)
    memory = np.asarray(jax.tree.leaves(b.opt_state.exchange.error)[0])
    assert memory.shape[0] == 4 and np.ptp(memory, axis=0).max() > 0
