"""How far runs on other numbers of devices drift apart, beside runs whose gradients are off by one rounding.

    python experiments/bench/mesh_sensitivity.py --out=experiments/results/mesh_sensitivity.txt

A small model is trained from the same parameters on the same minibatches, in float32 on virtual CPU devices. The rows
of a method:

    2 devices     the minibatch is sharded over 2 devices, so that gradients are summed in another order
    4 devices     likewise
    one rounding  on one device; every entry of the gradient is multiplied by 1 or 1 + 2^-23, at random, at every step

A number is the largest difference of a parameter from the run on one device, over the largest distance that a parameter
of that run has moved: 1e-7 is a rounding, 1 is another run. `same update` is the part of it that the mesh adds: the
largest difference, over the largest entry, of one update on 4 devices, from the gradient and the state of one device.
Where the rows of a method agree, the difference is what the method makes of roundings, on one device as on several.
A method that has not moved yet, because its first step only fills its statistics, has 0.
"""

import functools
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import optax
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import gradkit as gk
from gradkit.training.processes import virtual_devices
from gradkit.training.report.table import aligned

METHODS: dict[str, Any] = {
    "sgd": lambda: gk.sgd(0.3, momentum=0.9),
    "adamw": lambda: gk.adamw(3e-3),
    "lamb": lambda: gk.lamb(1e-2),
    "muon": lambda: gk.muon(2e-2, adam_learning_rate=3e-3),
    "soap": lambda: gk.soap(3e-3),
    "in_basis": lambda: optax.chain(gk.in_basis(gk.scale_by_adam()), gk.scale_by_learning_rate(3e-3)),
    "shampoo": lambda: gk.shampoo(3e-2, b1=0.9, eps=1e-6),
    "distributed_shampoo": lambda: gk.distributed_shampoo(3e-3, grafting="adam", b2=0.999),
    "kron": lambda: gk.kron(1e-3, key=0),
}
FLAGS = flags.FLAGS
flags.DEFINE_list("methods", list(METHODS), "which of these")
flags.DEFINE_list("steps", ["1", "4", "16", "64"], "after how many steps the runs are compared")
flags.DEFINE_string("workload", "digits_mlp", "what is trained")
flags.DEFINE_integer("batch_size", 256, "examples of a minibatch")
flags.DEFINE_string("out", "", "where the table goes")


def rounded(tree: Any, key: jax.Array) -> Any:
    """Half of the entries larger by one rounding."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        [x * (1 + 2.0**-23 * jax.random.bernoulli(k, shape=x.shape)) for x, k in zip(leaves, keys, strict=True)]
    )


def run(tx: Any, problem: Any, mesh: Mesh, steps: list[int], *, perturbed: bool) -> tuple[list[Any], Any]:
    """The parameters after so many steps; and a gradient, the state and the parameters after the last."""
    replicated, sharded = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, key: jax.Array) -> Any:
        batch = jax.lax.with_sharding_constraint(problem.batch(key), sharded)
        grads = jax.grad(problem.loss)(params, batch)
        if perturbed:
            grads = rounded(grads, jax.random.fold_in(key, 7))
        updates, new = tx.update(grads, state, params, key=key)
        return optax.apply_updates(params, updates), new

    found = []
    with jax.set_mesh(mesh):
        params = jax.device_put(problem.init(jax.random.key(0)), replicated)
        state = jax.jit(tx.init, out_shardings=replicated)(params)
        for t in range(max(steps)):
            key = jax.device_put(jax.random.fold_in(jax.random.key(1), t), replicated)
            # More steps in flight than there are threads for the devices would wait for each other.
            params, state = jax.block_until_ready(step(params, state, key))
            if t + 1 in steps:
                found.append(jax.tree.map(np.asarray, params))
        grads = jax.jit(jax.grad(problem.loss))(params, problem.batch(jax.random.key(2)))
    return found, (grads, state, params)


def update_on(tx: Any, mesh: Mesh, given: Any) -> Any:
    """An update on a mesh, of a gradient, a state and parameters that were made elsewhere."""
    replicated = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        grads, state, params = jax.tree.map(lambda x: jax.device_put(x, replicated), given)
        updates, _ = jax.jit(tx.update)(grads, state, params)
    return jax.tree.map(np.asarray, updates)


def largest(tree: Any) -> float:
    """The largest magnitude of an entry."""
    return max(float(np.max(np.abs(x))) for x in jax.tree.leaves(tree))


def main(_: list[str]) -> None:
    if unknown := sorted({*FLAGS.methods} - {*METHODS}):
        sys.exit(f"--methods: unknown {', '.join(unknown)}; there are {', '.join(METHODS)}")
    virtual_devices(4)
    problem = gk.workloads.load(FLAGS.workload, batch_size=FLAGS.batch_size)
    steps = sorted(map(int, FLAGS.steps))
    meshes = {n: gk.parallel.make_mesh(f"data={n}", devices=jax.devices()[:n]) for n in (1, 2, 4)}
    start = jax.tree.map(np.asarray, problem.init(jax.random.key(0)))
    head = ("method", "", *(f"{t} step{'s' * (t > 1)}" for t in steps), "same update")
    rows: list[tuple[str, ...]] = []
    for name in FLAGS.methods:
        tx = METHODS[name]()
        want, last = run(tx, problem, meshes[1], steps, perturbed=False)
        moved = [largest(jax.tree.map(np.subtract, x, start)) for x in want]
        one, four = (update_on(tx, meshes[n], last) for n in (1, 4))
        same = largest(jax.tree.map(np.subtract, four, one)) / largest(one)
        for n, perturbed, row in ((2, False, "2 devices"), (4, False, "4 devices"), (1, True, "one rounding")):
            got, _ = run(tx, problem, meshes[n], steps, perturbed=perturbed)
            both = zip(got, want, moved, strict=True)
            apart = [largest(jax.tree.map(np.subtract, x, y)) / (m or 1.0) for x, y, m in both]
            rows.append((name, row, *(f"{x:.0e}" for x in apart), f"{same:.0e}" if n == 4 else ""))
            print("  ".join(rows[-1]), flush=True)
    command = f"$ python experiments/bench/mesh_sensitivity.py {' '.join(sys.argv[1:])}".rstrip()
    text = [command, f"{FLAGS.workload}, {FLAGS.batch_size} examples; jax {jax.__version__}", aligned(head, rows)]
    text.append(str(__doc__).split("\n\n", 2)[2].strip())
    if FLAGS.out:
        pathlib.Path(FLAGS.out).write_text("\n\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
