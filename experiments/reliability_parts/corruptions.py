"""Corruptions of the newest of three checkpoints: is it refused by one line, is nothing deleted, does the run go on?

Corruption i is of kind i modulo the number of kinds, of a file and at a place that i draws. A trial restores, compares
what it gets, and goes on from the step that the message names: that step has the bits that were saved, and the step
that was broken is written anew.

    cd experiments; python -m reliability_parts.corruptions 0 1 2     prints what comes of some
"""

import contextlib
import io
import json
import pathlib
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.cli import main as gradkit
from gradkit.training import Checkpoints
from reliability_parts import children

STEPS = (20, 40, 60)
COMMAND = ["gradkit", "train", "--workload=heavytail", "--method=adamw", "--steps=80"]


def state_of(step: int) -> dict[str, Any]:
    """Random bits, which no compression makes smaller; small arrays, which are stored inside of tables."""
    w = np.random.default_rng(step).integers(0, 2**32, (80, 128), np.uint32).view(np.float32)
    return {"params": {"w": jnp.asarray(w), "b": jnp.full(4, float(step))}, "step": jnp.int32(step)}


def _file(newest: pathlib.Path, draw: random.Random) -> pathlib.Path:
    return draw.choice(sorted(file for file in newest.rglob("*") if file.is_file() and file.stat().st_size))


def flip(newest: pathlib.Path, draw: random.Random) -> str:
    file = _file(newest, draw)
    content = bytearray(file.read_bytes())
    at, bit = draw.randrange(len(content)), draw.randrange(8)
    content[at] ^= 1 << bit
    file.write_bytes(bytes(content))
    return f"bit {bit} of byte {at} of {file.relative_to(newest)}"


def zeros(newest: pathlib.Path, draw: random.Random) -> str:
    file = _file(newest, draw)
    content = bytearray(file.read_bytes())
    length = min(len(content), draw.choice([1, 16, 512, 4096]))
    at = draw.randrange(len(content) - length + 1)
    content[at : at + length] = bytes(length)
    file.write_bytes(bytes(content))
    return f"{length} zeros from byte {at} of {file.relative_to(newest)} on"


def truncation(newest: pathlib.Path, draw: random.Random) -> str:
    file = _file(newest, draw)
    length = draw.randrange(file.stat().st_size)
    file.write_bytes(file.read_bytes()[:length])
    return f"{file.relative_to(newest)} truncated to {length} bytes"


def deletion(newest: pathlib.Path, draw: random.Random) -> str:
    file = _file(newest, draw)
    file.unlink()
    return f"{file.relative_to(newest)} deleted"


def more(newest: pathlib.Path, draw: random.Random) -> str:
    file = _file(newest, draw)
    file.write_bytes(file.read_bytes() + draw.randbytes(7))
    return f"7 bytes behind {file.relative_to(newest)}"


def folder(newest: pathlib.Path, draw: random.Random) -> str:
    which = draw.choice(["state", "about", ""])
    shutil.rmtree(newest / which)
    if not which:
        newest.mkdir()
    return f"folder {which or 'of the step'} emptied or deleted"


def swapped(newest: pathlib.Path, draw: random.Random) -> str:
    which = draw.choice(["state", "about", ""])
    other = newest.parent / str(draw.choice(STEPS[:-1]))
    shutil.rmtree(newest / which)
    shutil.copytree(other / which, newest / which)
    return f"{which or 'all'} of step {other.name} in the place of that of step {newest.name}"


def exchanged(newest: pathlib.Path, draw: random.Random) -> str:
    files = sorted(file for file in newest.rglob("*") if file.is_file() and file.stat().st_size)
    one, other = draw.sample(files, 2)
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)
    return f"{one.relative_to(newest)} and {other.relative_to(newest)} exchanged"


def edited(newest: pathlib.Path, draw: random.Random) -> str:
    file = newest / "about" / "about.json"
    note = json.loads(file.read_text())
    key, value = draw.choice(sorted(note)), draw.choice([None, 7, [], {}, "text", True, 1e300])
    if draw.random() < 0.25:
        del note[key]
    elif draw.random() < 0.2:
        note = value
    else:
        note[key] = value
    file.write_text(json.dumps(note))
    return f"about.json: {key} = {value!r}"


KINDS: tuple[Callable[[pathlib.Path, random.Random], str], ...] = (
    *(flip, flip, zeros, truncation, deletion),
    *(more, folder, swapped, exchanged, edited),
)


def _tree(root: pathlib.Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def _equal(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def library(kind: Callable[..., str], draw: random.Random, root: pathlib.Path) -> tuple[str, str]:
    """A corruption of checkpoints that the library is asked to restore."""
    with Checkpoints(root) as checkpoints:
        for step in STEPS:
            checkpoints.save(step, state_of(step), about={"seed": 0})
    what = kind(root / str(STEPS[-1]), draw)
    before = _tree(root)
    checkpoints = Checkpoints(root)
    try:
        state, report = checkpoints.restore(state_of(0), about={"seed": 0})
    except (OSError, ValueError) as error:
        said = str(error)
        outcome = _judged(said, root)
        if outcome == "refused" and _tree(root) != before:
            outcome = "deletes something"
        if outcome == "refused":
            outcome = _goes_on(checkpoints, root)
        return outcome, f"{what}: {said}".replace(str(root), "FOLDER")
    right = report.step == STEPS[-1] and _equal(state, state_of(STEPS[-1]))
    return ("restored right" if right else "RESTORED WRONG"), what


def _judged(said: str, root: pathlib.Path) -> str:
    if "\n" in said:
        return "more than one line"
    if f"the checkpoint of step {STEPS[-1]} in {root}" not in said or "--restore_step=40" not in said:
        return "names no step"
    # What is wrong: an array, a file, or the step.
    if not re.search(r"array '|about\.json|no file|damaged|of step|is no folder", said):
        return "names nothing"
    return "refused"


def _goes_on(checkpoints: Checkpoints, root: pathlib.Path) -> str:
    state, _ = checkpoints.restore(state_of(0), step=40, about={"seed": 0})
    if not _equal(state, state_of(40)):
        return "RESTORED WRONG"
    kept = _tree(root / "60")
    checkpoints.set_aside(after=40)
    with checkpoints:
        checkpoints.save(60, state_of(60), about={"seed": 0})
    again, _ = Checkpoints(root).restore(state_of(0))
    return "refused" if _equal(again, state_of(60)) and _tree(root / "60.set-aside") == kept else "blocks the run"


def command(kind: Callable[..., str], draw: random.Random, root: pathlib.Path) -> tuple[str, str]:
    """A corruption of checkpoints that `gradkit train` goes on from: the line, and the way that the line names."""
    run = [*COMMAND, f"--checkpoint_dir={root}", f"--metrics_file={root.parent / 'metrics.jsonl'}"]
    with contextlib.redirect_stdout(io.StringIO()):
        gradkit([*run[:-3], "--steps=60", *run[-2:]])
    what = kind(root / "60", draw)
    before = _tree(root)
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        status = gradkit(run)
    said = err.getvalue().rstrip("\n")
    if status == 0:
        return "restored right", what  # the library's trials compare the bits
    outcome = _judged(said, root) if status == 2 else f"exit status {status}"
    if outcome == "refused" and _tree(root) != before:
        outcome = "deletes something"
    if outcome == "refused":
        with contextlib.redirect_stdout(io.StringIO()):
            status = gradkit([*run, "--restore_step=40"])
        steps = [json.loads(line)["step"] for line in (root.parent / "metrics.jsonl").read_text().splitlines()]
        outcome = "refused" if status == 0 and steps == [20, 40, 60, 80] else "blocks the run"
    return outcome, f"{what}: {said}".replace(str(root), "FOLDER")


def items(count: int) -> list[list[Any]]:
    """(number, who is asked): every tenth through the command."""
    return [[i, "command" if i % 20 // 10 and i % 10 == i // 20 % 10 else "library"] for i in range(count)]


def trial(item: list[Any]) -> tuple[str, str]:
    """What comes of one corruption."""
    number, who = item
    draw = random.Random(number)
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary) / "run"
        ask = command if who == "command" else library
        outcome, said = ask(KINDS[number % len(KINDS)], draw, root)
    return outcome, f"{KINDS[number % len(KINDS)].__name__}: {' '.join(said.split())[:500]}"


def main() -> None:
    if len(sys.argv) == 1:
        children.serve(trial)
        return
    for number in sys.argv[1:]:
        print(number, *trial([int(number), "library"]), sep=" | ", flush=True)


if __name__ == "__main__":
    main()
