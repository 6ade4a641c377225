"""Trials in child processes, one after another: what a child says is written down, and so is what ends it.

A child gets items as lines of JSON on its standard input. For each it prints a line {"item": …, "outcome": "begun"} and
one with what came of it. Where it dies or falls silent, that is what came of the item it had begun, and another
child goes on behind it. Whatever is in the file of records already is not tried again.
"""

import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """That of a child: this checkout, on the CPU."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "experiments"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "JAX_PLATFORMS": "cpu"}


def records(file: pathlib.Path) -> list[dict[str, Any]]:
    """What is written down; a last line that a killed run has left half written is none."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    found = []
    for i, line in enumerate(lines):
        try:
            found.append(json.loads(line))
        except ValueError:
            if i + 1 < len(lines):
                raise
    return found


def drive(
    module: str, items: Iterable[Any], file: pathlib.Path, *, silence: float = 120.0, until: float = float("inf")
) -> bool:
    """Tries all items that are not in a file of records yet.

    Args:
      module: what a child runs, as `python -m` has it.
      items: as JSON knows them.
      file: of records, to which lines {"item": …, "outcome": …, "said": …} are appended.
      silence: seconds after which a child that says nothing has hung.
      until: the time, as of `time.monotonic`, after which no item is begun.

    Returns:
      Whether all items are tried.
    """
    done = {json.dumps(record["item"]) for record in records(file)}
    left = [item for item in items if json.dumps(item) not in done]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        while left and time.monotonic() < until:
            seen = _child(module, left, stream, silence, until)
            left = left[seen:]
    return not left


def _child(module: str, items: list[Any], stream: Any, silence: float, until: float) -> int:
    """Tries items in one child; how many it has come to an end with."""
    child = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    assert child.stdin is not None and child.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in child.stdout or ():
            lines.put(line)
        lines.put(None)

    def write() -> None:
        try:
            for item in items:
                print(json.dumps(item), file=child.stdin, flush=True)
            child.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
        except OSError:
            pass

    threads = [threading.Thread(target=task, daemon=True) for task in (read, write)]
    for thread in threads:
        thread.start()
    count, begun, silent = 0, None, False
    try:
        while True:
            line = lines.get(timeout=silence)
            if line is None:
                break
            record = json.loads(line)
            if record["outcome"] == "begun":
                begun = record["item"]
                if time.monotonic() > until:
                    return count
                continue
            print(json.dumps(record), file=stream, flush=True)
            count, begun = count + 1, None
    except queue.Empty:
        silent = True
    finally:
        child.kill()
        code = child.wait()
        for thread in threads:
            thread.join(10)
        child.stdout.close()
    if begun is not None:
        said = f"silent for {silence:g} s" if silent else f"exit status {code}"
        record = {"item": begun, "outcome": "hangs" if silent else "aborts", "said": said}
        print(json.dumps(record), file=stream, flush=True)
        count += 1
    elif count == 0:
        raise RuntimeError(f"{module} ends with status {code} before its first item")
    return count


def serve(trial: Any) -> None:
    """A child: tries the items of its standard input.

    Args:
      trial: item -> (outcome, what was said).
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed
    for line in sys.stdin:
        item = json.loads(line)
        print(json.dumps({"item": item, "outcome": "begun"}), file=out, flush=True)
        outcome, said = trial(item)
        print(json.dumps({"item": item, "outcome": outcome, "said": said}), file=out, flush=True)
