"""What one device holds, computes and sends in a step of several methods on a real model, on more and more devices.

    python experiments/state_of_models.py --out=experiments/results/state_of_models.txt

The update is compiled for virtual CPU devices and never run (`gk.training.inspect`). Parameters are float32. Of N
devices one should hold 1 / N of the state. What it holds beyond that has three reasons:

- Parameters are sharded along the axis "fsdp" alone. Along "data" they are replicated, and so is the state of methods
  without `shard`: with data=8,fsdp=64 a device holds 1/64. `gk.parallel.init_sharded(tx, params, zero_axis="data")`
  shards the state along "data" as well.
- With `shard`, a matrix and its state belong to one device. 224 matrices of 32 layers give 512 devices no more than one
  each, and a device holds one of each shape: the floor is the sum, over distinct shapes, of the state of one matrix.
  The embedding and the head of a language model are the only matrices of their shapes: their state is sharded over all
  devices, which gather it for the step and all work on it. That costs bytes sent and temporary memory; with AdamW for
  those two ("soap, adamw") both are saved.
- Full statistics: distributed_shampoo keeps a statistic and a root for both sides of every block, in all 5.5 words per
  parameter (the even share on 8 devices, times 8) where AdamW keeps 2; all of it stays with the owner of the matrix,
  not of the block.

The time of compilation is that of all-to-alls over many devices, which XLA's compiler for CPU takes apart into one
piece per device: fsdp=512 takes longest.
"""

import math
import pathlib
import sys
from typing import Any

import flax.linen as nn
import jax
from absl import app, flags

import gradkit as gk
from gradkit.parallel.mesh import parse_axes
from gradkit.training.processes import virtual_devices
from gradkit.training.report.table import aligned

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "llama3-8b", "one of gk.workloads.models()")
flags.DEFINE_list("methods", ["adamw", "lamb", "muon", "soap", "distributed_shampoo"], "names of the catalogue")
flags.DEFINE_bool("split", True, "also soap with AdamW for the embedding and the head")
flags.DEFINE_list("meshes", ["fsdp=8", "fsdp=64", "data=8;fsdp=64", "fsdp=512"], "meshes; ';' between axes")
flags.DEFINE_string("out", "state_of_models.txt", "where the table goes")

HEAD = ("method", "mesh", "params GB", "state GB", "even GB", "ratio", "temp GB", "TFLOP", "sent GB", "compile s")


def size_of(axes: str) -> int:
    """How many devices a mesh has."""
    return math.prod(parse_axes(axes).values())


def with_adamw(params: Any, mesh: Any) -> Any:
    """SOAP for the layers, AdamW for the embedding and the head."""
    specs = jax.tree.map(lambda s: s.spec, gk.parallel.param_shardings(nn.unbox(params), mesh))
    shard = gk.MatrixSharding(mesh, tuple(mesh.axis_names), specs=specs)
    tables = gk.leaves.by_role("embedding", "head")
    return gk.leaves.groups([(tables, gk.adamw(5e-3))], default=gk.soap(5e-3, shard=shard))


def main(_: list[str]) -> None:
    meshes = [mesh.replace(";", ",") for mesh in FLAGS.meshes]
    count = max(size_of(mesh) for mesh in meshes)
    virtual_devices(count)
    params = gk.workloads.model_shapes(FLAGS.model)
    rows, uneven = [], []
    for name in [*FLAGS.methods, *(["soap, adamw"] if FLAGS.split else [])]:
        for axes in meshes:
            size = size_of(axes)
            mesh = gk.parallel.make_mesh(axes, devices=jax.devices()[:size])
            method = (name, with_adamw(params, mesh)) if name == "soap, adamw" else name
            found = gk.training.inspect(method, params, mesh=mesh, name=FLAGS.model)
            sent = sum(row["wire_bytes"] for row in found.collectives.values())
            sizes = (found.parameter_bytes, found.state_bytes, found.state_share_bytes)
            ratio = f"{found.state_bytes / max(found.state_share_bytes, 1):.1f}"
            rest = [f"{x:.3f}" for x in (found.temporary_bytes / 1e9, found.flops / 1e12, sent / 1e9)]
            giga = [f"{x / 1e9:.3f}" for x in sizes]
            rows.append((name, axes, *giga, ratio, *rest, f"{found.compile_seconds:.0f}"))
            print("  ".join(rows[-1]), flush=True)
            largest, shape, here, even = found.largest_state[0]
            if here > 1.5 * even:
                size_text = "x".join(map(str, shape))
                uneven.append(
                    (name, axes, f"{largest} {size_text}", f"{here / 1e9:.3f} GB, {here / even:.0f} times even")
                )
    command = f"$ python experiments/state_of_models.py {' '.join(sys.argv[1:])}".rstrip()
    head = f"{command}\n{FLAGS.model}, {found.parameters:,} parameters in {found.leaves} arrays of "
    head += f"{found.distinct_shapes} distinct shapes; per device and step; jax {jax.__version__}"
    why = (__doc__ or "").split("\n\n")
    text = [head, aligned(HEAD, rows), "The largest array of the state where it is more than an even share:",
            aligned(("method", "mesh", "array", "on one device"), uneven), "\n\n".join(why[2:]).strip()]  # fmt: skip
    pathlib.Path(FLAGS.out).write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    app.run(main)
