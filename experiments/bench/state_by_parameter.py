"""What it costs to keep the state of matrix methods under the names of parameters, beside stacks that stay stacks.

    python experiments/bench/state_by_parameter.py [--only=soap,shampoo] [--leaves=300] [--size=64] [--rounds=8]

The tree: `--leaves` float32 matrices of `--size` x `--size`. "parameters" is the default on one device: state under the
names of parameters, which every update joins into stacks and separates again. "stacks" is the same method with
`shard=` over a mesh of one device, whose state stays stacked. For Muon, whose state is a moment of the parameter's
shape in either, optax.contrib.muon is the peer; optax has no SOAP and no Shampoo. One step is update and apply_updates,
jitted and donated; bases and roots are refreshed every tenth step. Rounds of ten steps alternate between the two.
CPU is that of the process, so other work on the machine counts little in it; "plain" is the median of the steps, "mean"
that of all ten with the refresh, each the median over rounds. The ratio is parameters / peer, of the CPU of a plain
step, within a round.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from absl import app, flags
from jax.sharding import AxisType, PartitionSpec

import gradkit as gk

# name -> (shard -> method)
METHODS: dict[str, Callable[[Any], Any]] = {
    "soap": lambda shard: gk.soap(3e-3, shard=shard),
    "shampoo": lambda shard: gk.shampoo(0.1, update_interval=10, shard=shard),
    "distributed_shampoo": lambda shard: gk.distributed_shampoo(0.1, update_interval=10, shard=shard),
    "kron": lambda shard: gk.kron(1e-3, update_probability=0.1, key=jax.random.key(0), shard=shard),
    "muon": lambda shard: gk.muon(0.02, shard=shard),
}
ONLY = flags.DEFINE_list("only", list(METHODS), "Which methods.")
LEAVES = flags.DEFINE_integer("leaves", 300, "Matrices in the tree.", lower_bound=1)
SIZE = flags.DEFINE_integer("size", 64, "Rows and columns of each.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 8, "Alternating rounds of ten steps.", lower_bound=1)
STEPS = 10


class Program:
    """A donated step, what its making took, and what its steps took."""

    def __init__(self, tx: optax.GradientTransformation, params: Any, grads: Any) -> None:
        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        state, marks = jax.jit(tx.init)(params), [time.process_time()]
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, grads)
        marks.append(time.process_time())
        self.run = lowered.compile()
        marks.append(time.process_time())
        self.trace, self.compile = np.diff(marks).tolist()
        self.temporary = self.run.memory_analysis().temp_size_in_bytes / 1e6
        self.held, self.grads = [params, state], grads
        self.cpu: list[list[float]] = []
        self.wall: list[list[float]] = []
        for _ in range(STEPS + 1):  # the first make bases and roots
            self.step()

    def step(self) -> tuple[float, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        self.held[:] = self.run(*self.held, self.grads)
        jax.block_until_ready(self.held)
        return 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)

    def round(self) -> None:
        cpu, wall = zip(*(self.step() for _ in range(STEPS)), strict=True)
        self.cpu.append(list(cpu))
        self.wall.append(list(wall))


def tree(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    shape = (LEAVES.value, SIZE.value, SIZE.value)
    return {f"{i:03}/kernel": jnp.asarray(x, jnp.float32) for i, x in enumerate(0.02 * random.standard_normal(shape))}


def main(argv: list[str]) -> None:
    """Prints one line per method and form."""
    del argv
    jax.config.update("jax_enable_compilation_cache", False)
    load = os.getloadavg()[0]
    versions = f"jax {jax.__version__}, optax {optax.__version__}"
    print(f"{os.cpu_count()} processors, load {load:.1f} at the start, {versions}")
    print(f"{LEAVES.value} leaves of {SIZE.value} x {SIZE.value}; CPU seconds to make a program, milliseconds a step")
    print(
        f"{'method':<20}{'state':<12}{'trace':>6}{'compile':>9}{'temp MB':>9}"
        f"{'CPU plain':>11}{'mean':>7}{'wall plain':>12}{'mean':>7}{'ratio':>7}"
    )
    for name in ONLY.value:
        mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
        forms = {"parameters": METHODS[name](None)}
        if name == "muon":
            forms["optax"] = optax.contrib.muon(0.02)
        else:
            forms["stacks"] = METHODS[name](gk.MatrixSharding(mesh, "x", specs=PartitionSpec()))
        programs = {form: Program(tx, tree(0), tree(1)) for form, tx in forms.items()}
        for i in range(ROUNDS.value):
            for form in list(programs)[:: 1 if i % 2 else -1]:
                programs[form].round()
        ours, peer = programs.values()
        for form, p in programs.items():
            plain, mean = (
                [statistics.median(how(row) for row in rows) for rows in (p.cpu, p.wall)]
                for how in (statistics.median, statistics.mean)
            )
            pairs = zip(ours.cpu, peer.cpu, strict=True)
            ratio = statistics.median(statistics.median(a) / statistics.median(b) for a, b in pairs)
            print(
                f"{name:<20}{form:<12}{p.trace:>6.2f}{p.compile:>9.2f}{p.temporary:>9.1f}"
                f"{plain[0]:>11.1f}{mean[0]:>7.1f}{plain[1]:>12.1f}{mean[1]:>7.1f}"
                + (f"{ratio:>7.2f}" if p is ours else ""),
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
