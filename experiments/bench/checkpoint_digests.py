"""What the digests of a checkpoint cost, as a part of the time that saving takes.

    python experiments/bench/checkpoint_digests.py --megabytes=256 --rounds=5

Saves a state of random numbers (which no compression makes smaller) with and without digests, in turn, and prints the
medians of both, of the difference of each pair, and of the digests alone: on the clock, and of the time of all cores.
The digests are taken while Orbax writes, so that on the clock they add less than they take alone.
"""

import os
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
from absl import app, flags

from gradkit.training import Checkpoints, digests

MEGABYTES = flags.DEFINE_integer("megabytes", 256, "size of the state", 1)
LEAVES = flags.DEFINE_integer("leaves", 16, "arrays in it", 1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the arrays")
ROUNDS = flags.DEFINE_integer("rounds", 5, "saves of each kind", 1)


def main(argv: list[str]) -> None:
    del argv
    rng = np.random.default_rng(0)
    columns = 1024
    rows = MEGABYTES.value * 2**20 // LEAVES.value // np.dtype(jax.numpy.dtype(DTYPE.value)).itemsize // columns
    state = {
        "params": [
            jax.numpy.asarray(rng.standard_normal((rows, columns), np.float32), DTYPE.value)
            for _ in range(LEAVES.value)
        ]
    }
    named = {str(i): x for i, x in enumerate(state["params"])}
    begin = digests.begin
    seconds: dict[str, list[tuple[float, float]]] = {"with": [], "without": [], "alone": []}

    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def since(began: tuple[float, float]) -> tuple[float, float]:
        return now()[0] - began[0], now()[1] - began[1]

    for number in range(ROUNDS.value):
        for kind in ("with", "without")[:: 1 if number % 2 else -1]:
            digests.begin = begin if kind == "with" else lambda arrays: lambda: dict.fromkeys(arrays, "")
            os.sync()  # what the disk still has to do for the save before is not counted here
            with tempfile.TemporaryDirectory() as folder, Checkpoints(pathlib.Path(folder)) as checkpoints:
                began = now()
                checkpoints.save(1, state)
                checkpoints.wait()
                seconds[kind].append(since(began))
        began = now()
        begin(named)()
        seconds["alone"].append(since(began))
    size = MEGABYTES.value / 1024
    print(f"{jax.default_backend()}, {MEGABYTES.value} MiB of {DTYPE.value} in {LEAVES.value} arrays")
    for which, name in enumerate(("seconds", "seconds of all cores")):
        middle = {kind: statistics.median(row[which] for row in rows) for kind, rows in seconds.items()}
        pairs = zip(seconds["with"], seconds["without"], strict=True)
        added = statistics.median(one[which] - other[which] for one, other in pairs)
        said = ", ".join(f"{kind} {value:.3f} ({size / value:.2f} GiB/s)" for kind, value in middle.items())
        print(f"{name}: {said}; the digests add {added:.3f}, {100 * added / middle['without']:.1f} % of saving")


if __name__ == "__main__":
    app.run(main)
