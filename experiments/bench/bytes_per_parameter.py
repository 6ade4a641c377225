"""Bytes that a step moves per parameter, read from its compiled program, beside what no program can do without.

    python experiments/bench/bytes_per_parameter.py [--only=adamw,soap] [--layers=2] [--width=512]

The tree: a plain transformer of float32 leaves, two layers of width 512. One step is update and apply_updates, jitted,
parameters and state donated; it is compiled for one device and not run. "moved" is what XLA's cost analysis calls
"bytes accessed": operands and results of every instruction that is left after fusion, as if no cache held them from
one to the next. "least" is the lower bound: gradients, parameters and state are read once, parameters and state are
written once, but for what a step leaves as it is (SOAP's bases between refreshes). A method whose updates depend on a
norm of themselves (LAMB), or on products of matrices (Muon, SOAP), has to read more than that unless a tensor stays in
the cache. SOAP has two programs: a step between refreshes, and one with a refresh, whose QR decompositions run in
LAPACK, where the analysis sees nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from absl import app, flags

import gradkit as gk

FLAGS = flags.FLAGS
flags.DEFINE_list("only", [], "names of methods; default: all")
flags.DEFINE_integer("layers", 2, "layers of the tree", lower_bound=1)
flags.DEFINE_integer("width", 512, "width of the tree", lower_bound=8)

# name -> (method, the number of updates that a step comes after where it matters)
METHODS: dict[str, tuple[Callable[[], optax.GradientTransformation], int | None]] = {
    "adamw": (lambda: gk.adamw(1e-3), None),
    "lion": (lambda: gk.lion(1e-4), None),
    "lamb": (lambda: gk.lamb(1e-3), None),
    "muon": (lambda: gk.muon(1e-3, scale="match_rms_adamw"), None),
    "soap": (lambda: gk.soap(3e-3), 5),
    "soap, refresh": (lambda: gk.soap(3e-3), 10),
    "optax adamw": (lambda: optax.adamw(1e-3), None),
    "optax lion": (lambda: optax.lion(1e-4), None),
    "optax lamb": (lambda: optax.lamb(1e-3), None),
    "optax muon": (lambda: optax.contrib.muon(1e-3), None),
}


def shapes(layers: int, width: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Name -> leaf."""
    found: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        found |= {f"{i}/{name}/kernel": (width, width) for name in ("query", "key", "value", "out")}
        found |= {f"{i}/up/kernel": (width, 4 * width), f"{i}/up/bias": (4 * width,)}
        found |= {f"{i}/down/kernel": (4 * width, width), f"{i}/down/bias": (width,)}
        found |= {f"{i}/{norm}/scale": (width,) for norm in ("norm1", "norm2")}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in found.items()}


def size(tree: Any) -> int:
    """Bytes of a tree of shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def measured(tx: optax.GradientTransformation, params: Any, updates_before: int | None) -> tuple[int, int, int]:
    """Bytes moved, the least, and bytes of the state."""
    state = jax.eval_shape(tx.init, params)

    def at(state: Any) -> Any:
        # A known count decides the condition of a refresh before the program is compiled.
        if updates_before is None:
            return state

        def fixed(path: Any, x: jax.Array) -> jax.Array:
            return jnp.asarray(updates_before, x.dtype) if jax.tree_util.keystr(path).endswith(".count") else x

        return jax.tree_util.tree_map_with_path(fixed, state)

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, at(state), params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    left = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if ".Q" in jax.tree_util.keystr(path) and updates_before is not None and updates_before % 10
    ]
    cost: Any = compiled.cost_analysis() or {}
    least = 3 * size(params) + 2 * size(state) - size(left)
    return int(cost["bytes accessed"]), least, size(state)


def main(argv: list[str]) -> None:
    """Prints one line per method."""
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    params = shapes(FLAGS.layers, FLAGS.width)
    count = sum(x.size for x in params.values())
    print("$ python experiments/bench/bytes_per_parameter.py")
    print(
        f"{count / 1e6:.1f} M float32 parameters in {len(params)} leaves; bytes per parameter and step; "
        f"jax {jax.__version__}, optax {optax.__version__}, {jax.devices()[0].device_kind}\n"
    )
    print(f"{'method':<16}{'state':>8}{'least':>8}{'moved':>8}{'moved / least':>15}")
    for name, (make, updates_before) in METHODS.items():
        if FLAGS.only and name not in FLAGS.only:
            continue
        moved, least, state = measured(make(), params, updates_before)
        columns = f"{state / count:>8.1f}{least / count:>8.1f}{moved / count:>8.1f}"
        print(f"{name:<16}{columns}{moved / least:>15.2f}", flush=True)


if __name__ == "__main__":
    app.run(main)
