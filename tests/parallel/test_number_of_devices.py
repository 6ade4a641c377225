"""One, two, four, eight devices: the numbers of one, the exchanges of the table, an even share of the work."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.linalg import one_by_one
from gradkit.parallel import collective_bytes

pytestmark = pytest.mark.usefixtures("x64")

METHODS = {
    "muon": lambda shard: gk.scale_by_muon(shard=shard),
    "shampoo": lambda shard: gk.scale_by_shampoo(b1=0.9, b2=0.9, eps=0.01, shard=shard),
    # Of the long side one gradient says too little: there eigenvectors would be anything.
    "soap": lambda shard: gk.scale_by_soap(update_interval=2, max_dim=ROWS, shard=shard),
    "conda": lambda shard: gk.scale_by_conda(update_interval=2, shard=shard),
    "galore": lambda shard: gk.project_low_rank(rank=8, update_interval=2, shard=shard),
    "dion": lambda shard: gk.scale_by_dion(rank=8, key=0, shard=shard),
    "kron": lambda shard: gk.scale_by_kron(update_probability=1.0, key=jax.random.key(0), shard=shard),
}
# Five matrices each way, which no number of devices but one divides; and eight layers on their own devices.
ROWS, COLUMNS, EACH = 24, 40, 5
PLACES = {"replicated": P(), "rows": P("x"), "columns": P(None, "x")}
SPECS = {f"{place}{i}": spec for place, spec in PLACES.items() for i in range(EACH)} | {"ScanBlock_0": P("x")}
SHAPES = {name: (8, ROWS, COLUMNS) if name == "ScanBlock_0" else (ROWS, COLUMNS) for name in SPECS}
DECOMPOSITION = re.compile(r"= \(?f64\[(\d+),\d+,\d+\].* custom-call\(.*lapack_")


def draw(step: int) -> Any:
    rng = np.random.default_rng(step)
    return {name: {"kernel": jnp.asarray(rng.standard_normal(shape))} for name, shape in SHAPES.items()}


def run(name: str, devices: int | None) -> tuple[Any, Any]:
    """The directions of three steps, and the compiled program. None: without a mesh."""
    shard, put = None, lambda tree: tree
    if devices is not None:
        mesh = jax.make_mesh((devices,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        specs = {k: {"kernel": s} for k, s in SPECS.items()}
        shard = gk.MatrixSharding(mesh, "x", min_dim=0, specs=specs)
        put = lambda tree: jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), tree, specs)  # noqa: E731
    tx = METHODS[name](shard)
    params = put(draw(0))
    state, out = tx.init(params), []
    program = jax.jit(tx.update).lower(params, state).compile()
    for t in range(3):
        d, state = program(put(draw(t)), state)
        out.append(d)
    return out, program


def batches(program: Any) -> list[int]:
    """How many matrices every decomposition is given."""
    return [int(count) for count in DECOMPOSITION.findall(program.as_text())]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_any_number_of_devices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_by_one, "waits", lambda: False)  # batches can be counted
    want, alone = run(name, None)
    total = alone.cost_analysis()["flops"]
    matrices = 3 * EACH + 8
    for devices in (1, 2, 4, 8):
        got, program = run(name, devices)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert np.linalg.norm(np.asarray(x) - np.asarray(y)) <= 1e-9 * np.linalg.norm(y)

        rows = collective_bytes(program)
        if devices == 1:
            assert not any(row.wire_bytes for row in rows)
            continue
        # Beside the exchanges Shampoo tells how many roots have failed: one whole number for each of four stacks.
        counts = [row for row in rows if row.opcode == "all-reduce"]
        assert [row.result_bytes for row in counts] == ([4 * 4] if name == "shampoo" else [])
        opcodes = sorted(row.opcode for row in rows if row not in counts)
        assert opcodes == ["all-gather"] + ["all-to-all"] * 4
        words = ROWS * COLUMNS * math.ceil(EACH / devices)
        moved = {"all-gather": devices * words * 8, "all-to-all": 4 * words * 8}
        for opcode, size in moved.items():
            assert sum(row.result_bytes for row in rows if row.opcode == opcode) == size

        share = 3 * math.ceil(EACH / devices) + 8 // devices
        assert program.cost_analysis()["flops"] <= 1.05 * share / matrices * total
        # What the compiler does not count: on each device decompositions of its own matrices alone.
        assert sum(batches(program)) * matrices <= sum(batches(alone)) * share
