"""Kills and interrupts of `gradkit train` at random moments, on one process and on two: the same bits in the end?

A run is stopped at a random moment after each of its starts, imports and compilation included, and started again,
until it is over; then another one begins. After each stop: did every process end in time, with one line or, where it
was killed, none; has every checkpoint the digests that it has in a run which nobody has disturbed; and at the end of a
run, has the file of metrics every record once, with the same numbers?
"""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from reliability_parts import children

HEARTBEAT = 10
# What a machine that has other things to do may add.
MARGIN = 10.0
SIGNALS = {"kill": (signal.SIGKILL,), "interrupt": (signal.SIGINT, signal.SIGTERM)}
RUN = ["train", "--workload=heavytail", "--method=adamw", "--eval_every=100", "--keep=1000"]
ONE = ["--steps=10000", "--devices=1"]
TWO = ["--steps=2000", "--devices=4", "--mesh=data=2,fsdp=4", "--num_processes=2", f"--heartbeat={HEARTBEAT}"]
# Python itself, before this library has its first line to say: nothing of it can be said in one line.
PYTHON = 0.15


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def commands(processes: int, folder: pathlib.Path, *more: str) -> list[list[str]]:
    """The commands of a run, one per process."""
    files = [f"--checkpoint_dir={folder / 'saved'}", f"--metrics_file={folder / 'metrics.jsonl'}", *more]
    command = [sys.executable, "-m", "gradkit", *RUN, *files]
    if processes == 1:
        return [[*command, *ONE]]
    own = [*command, *TWO, f"--coordinator=127.0.0.1:{port()}"]
    return [[*own, f"--process_id={i}"] for i in range(processes)]


def begin(command: list[str], output: pathlib.Path, cache: pathlib.Path | None) -> subprocess.Popen[bytes]:
    environment = {**children.environment(), "PYTHONUNBUFFERED": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if cache is not None:
        environment |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    # Gloo writes about its connections on standard output, in the middle of lines: what is said is on the other.
    with output.open("wb") as stream:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream, env=environment)


def digests(saved: pathlib.Path) -> dict[str, Any]:
    """Step -> digests of the arrays, of all checkpoints in a folder."""
    found = {}
    for file in saved.glob("*/about/about.json"):
        if file.parts[-3].isdigit():
            found[file.parts[-3]] = json.loads(file.read_text())["digests"]
    return found


def metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def reference(processes: int, scratch: pathlib.Path) -> pathlib.Path:
    """The folder of a run that nobody disturbs; its file `seconds` says how long it took to its first checkpoint."""
    folder = scratch / f"whole-{processes}"
    if (folder / "seconds").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    cache = scratch / "cache"
    running = [begin(c, folder / f"{i}.txt", cache) for i, c in enumerate(commands(processes, folder))]
    while not digests(folder / "saved") and all(process.poll() is None for process in running):
        time.sleep(0.05)
    first = time.monotonic() - began
    if any(process.wait() for process in running):
        raise RuntimeError("; ".join((folder / f"{i}.txt").read_text() for i in range(processes)))
    (folder / "seconds").write_text(f"{first:.3f} {time.monotonic() - began:.3f}\n")
    return folder


def _judged(text: str, status: int, sent: signal.Signals | None) -> str:
    """What is wrong with what a process said and ended with; empty where nothing is."""
    lines = text.splitlines()
    if re.search(r"Traceback|Segmentation|Fatal Python|core dumped|\*\*\* ", text):
        return f"status {status}: {text[-300:]!r}"
    if status == 0 or (sent == signal.SIGKILL and status == -signal.SIGKILL):
        return "" if not lines else f"status {status}, and says {text[-300:]!r}"
    wanted = 128 + int(sent) if sent else None
    if wanted is not None and status != wanted and "another process of this run was lost" not in text:
        return f"status {status} instead of {wanted}: {text[-300:]!r}"
    return "" if len(lines) == 1 and lines[0].startswith("gradkit: ") else f"status {status}, says {text[-600:]!r}"


def stop(
    processes: int, kind: str, folder: pathlib.Path, scratch: pathlib.Path, draw: random.Random, longest: float
) -> tuple[dict[str, Any], bool]:
    """Starts a run, or goes on with it, and stops it; a record, and whether the run is over."""
    cache = None if draw.random() < 0.2 else scratch / "cache"
    outputs = [folder / f"{i}.txt" for i in range(processes)]
    number = draw.choice(SIGNALS[kind])
    victims = draw.choice([[i] for i in range(processes)] + ([[*range(processes)]] if processes > 1 else []))
    moment = draw.uniform(PYTHON, longest)
    running = [begin(c, o, cache) for c, o in zip(commands(processes, folder), outputs, strict=True)]
    wrong: list[str] = []
    try:
        until = time.monotonic() + moment
        while time.monotonic() < until and any(process.poll() is None for process in running):
            time.sleep(0.01)
        sent = {i: number if running[i].poll() is None else None for i in victims}
        for i, process in enumerate(running):
            if sent.get(i) is not None:
                process.send_signal(number)
        left = time.monotonic()
        late: dict[int, float] = {}
        for i, process in enumerate(running):
            allowed = 2.0 if i in sent and sent[i] is not None else HEARTBEAT
            try:
                process.wait(timeout=max(0.1, allowed + MARGIN - (time.monotonic() - left)))
            except subprocess.TimeoutExpired:
                wrong.append(f"process {i} does not end")
                continue
            late[i] = round(time.monotonic() - left, 2)
    finally:
        for process in running:
            process.kill()
            process.wait()
    time.sleep(0.3 if processes > 1 else 0.0)  # the last line is written once the process is gone
    for i, process in enumerate(running):
        said = _judged(outputs[i].read_text(errors="replace"), process.returncode, sent.get(i))
        if said:
            wrong.append(f"process {i}, {number.name} to {victims} after {moment:.2f} s: {said}")
    over = all(process.returncode == 0 for process in running)
    whole = reference(processes, scratch)
    good, own = digests(whole / "saved"), digests(folder / "saved")
    wrong += [f"step {step} has other bits" for step in own if own[step] != good.get(step)]
    if over:
        if own != good:
            wrong.append("checkpoints are missing")
        if metrics(folder) != metrics(whole):
            wrong.append("metrics differ")
    record = {"signal": number.name, "to": victims, "moment": round(moment, 3), "seconds": late, "over": over}
    record |= {"at": max(map(int, own), default=0), "warm": cache is not None}
    record |= {"outcome": "; ".join(wrong) or "same bits"}
    return record, over


def run(processes: int, kind: str, count: int, file: pathlib.Path, scratch: pathlib.Path, until: float) -> bool:
    """Stops runs until so many records are in a file; whether they are."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell, also by children
    first, _ = map(float, (reference(processes, scratch) / "seconds").read_text().split())
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        while (done := len(children.records(file))) < count and time.monotonic() < until:
            folder = scratch / f"{kind}-{processes}-{os.getpid()}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            over = False
            while not over and done < count and time.monotonic() < until:
                draw = random.Random(f"{processes} {kind} {done}")
                record, over = stop(processes, kind, folder, scratch, draw, 1.5 * first)
                print(json.dumps({"item": [processes, kind, done], **record}), file=stream, flush=True)
                done += 1
            if not over:
                # The last run is brought to its end.
                for process in [
                    begin(c, folder / f"{i}.txt", scratch / "cache") for i, c in enumerate(commands(processes, folder))
                ]:
                    process.wait()
                good = digests(reference(processes, scratch) / "saved")
                same = digests(folder / "saved") == good and metrics(folder) == metrics(reference(processes, scratch))
                if not same:
                    record = {"item": [processes, kind, done - 1, "end"], "outcome": "differs at its end"}
                    print(json.dumps(record), file=stream, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    return len(children.records(file)) >= count
