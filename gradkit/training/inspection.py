"""What one step of a method costs on a mesh: compiled for the parameters of a real problem or model, and never run.

Parameters are sharded as `gk.parallel.param_shardings` says and state as `gk.parallel.state_shardings` does. All
numbers are of one device and one step.

    exact          parameters and state (from shapes and shardings), collectives (from the compiled program)
    the CPU's      temporary memory and flops: of the program that was compiled, which is XLA's for CPU; a GPU or TPU
                   fuses and pads otherwise
    not counted    flops inside external routines (QR, eigenvectors), which are listed; of a loop, what runs after the
                   first round: the number of loops is listed

The time of compilation grows with the number of distinct shapes rather than of leaves, since XLA compiles every fusion
for its shape. Stacked layers are one leaf. CPU seconds for 2,000 leaves of one shape and of 2,000 shapes: adamw 14 and
153, lamb 65 and 213.
"""

import collections
import dataclasses
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gradkit import tables
from gradkit.engine.owned import Owned
from gradkit.leaves import infer_layout, names
from gradkit.leaves.boxes import is_box
from gradkit.leaves.derived import unboxed
from gradkit.leaves.scopes import deciding
from gradkit.parallel import collective_bytes, make_mesh, param_shardings
from gradkit.parallel.mesh import parse_axes
from gradkit.training import programs
from gradkit.types import PyTree
from gradkit.workloads import Workload
from gradkit.workloads.workload import with_fixed_state

LARGEST = 3
# Machine code of a program that never runs need not be fast: without the optimiser of LLVM, soap for 512 devices
# compiles in 8 s instead of 46 s. Shardings, collectives, memory and flops are decided before, and are the same.
CODEGEN: dict[str, bool | str] = {
    "xla_backend_optimization_level": "0",
    "xla_cpu_parallel_codegen_split_count": "1",
    "xla_cpu_use_fusion_emitters": False,
}
_ROUTINE = re.compile(r'custom_call_target="([^"]+)"')
# What marks a sharding or hands over a buffer computes nothing.
_NO_ROUTINE = re.compile(r"Sharding|SPMD|Marker|AllocateBuffer|annotate|__onednn|TopK", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What one step costs, on each device.

    Attributes:
      method: the name on its card.
      program: what was compiled, in words.
      workload: whose parameters.
      mesh: lengths of its axes by name.
      parameters: how many numbers are trained, over all devices.
      parameter_bytes: of the parameters.
      state_bytes: of the state of the method.
      temporary_bytes: that the program needs besides its arguments and results.
      flops: by the compiler's count; the body of a loop counts once, and an external routine not at all.
      collectives: by kind: how many, bytes of their results, bytes sent in a ring. In a loop, once.
      leaves: how many arrays the parameters are.
      distinct_shapes: how many different shapes and dtypes they have, which the time of compilation grows with.
      state_share_bytes: the state of all devices, each number once and without padding, divided by their number.
      largest_state: the largest arrays of the state: name, shape over all devices, bytes on one device, and what an
        even share of it would be: its bytes without padding, divided by the number of devices.
      loops: how many loops the program has.
      routines: external routines that the program calls, and how often it names each.
      compile_seconds: how long the compilation took here.
    """

    method: str
    program: str
    workload: str
    mesh: dict[str, int]
    parameters: int
    parameter_bytes: int
    state_bytes: int
    temporary_bytes: int
    flops: float
    collectives: dict[str, dict[str, float]]
    leaves: int = 0
    distinct_shapes: int = 0
    state_share_bytes: int = 0
    largest_state: tuple[tuple[str, tuple[int, ...], int, int], ...] = ()
    loops: int = 0
    routines: dict[str, int] = dataclasses.field(default_factory=dict)
    compile_seconds: float = 0.0

    def _repr_html_(self) -> str:
        return tables.as_html((), lines(self))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What IPython shows in a terminal."""
        del cycle
        printer.text(table(self))


def inspect(method: Any, params: PyTree, *, mesh: Mesh | str, name: str = "these parameters") -> Inspection:
    """Compiles one step of a method for a mesh, and reads off what it costs.

    Args:
      method: a name of any form, as `gradkit list` has it; an optimizer of optax, `"optax.adamw"`; a function of a
        learning rate, a transformation, or a file that defines `chain`. What is compiled: of an optimizer, primitive
        or wrapper the update; of a source, value and gradient; of an aggregator, the update from the gradients of four
        tasks; of a strategy, the step that ends a round; of an exchange, one of it; of a layer, its
        value; of a schedule, rule, diagnostic or function, its value at one step; of a program, nothing. A method with
        an argument `shard`, given by name, gets a `gk.MatrixSharding` over all axes of the mesh.
      params: arrays or `jax.ShapeDtypeStruct`s, bare or in boxes with the names of their axes, as
        `gk.workloads.model_shapes` makes them; or a `Workload`, whose loss serves methods that ask for one. Without a
        loss, extra arguments are samples, and what it costs to make them is not counted.
      mesh: on which devices, or its axes as text, "data=2,fsdp=4", for the first devices that there are; a strategy
        asks for an axis "replica". Virtual CPU devices are made by
        `jax.config.update("jax_num_cpu_devices", 512)`, before anything else.
      name: what the parameters are called in the result.

    Returns:
      An `Inspection`, in a notebook a table. Nothing is allocated or run.

    Raises:
      ValueError: an unknown method; a form that asks for a loss, and no workload; a strategy and no axis "replica";
        fewer devices than the mesh has; no parameters.

    Example:
      >>> import gradkit as gk
      >>> found = inspect("adamw", {"w": jax.ShapeDtypeStruct((5, 10), "float32")}, mesh="fsdp=1")
      >>> found.parameter_bytes, found.state_bytes  # 50 numbers; two moments, a counter and a published rate
      (200, 408)
    """
    given = programs.subject(method)
    mesh = _mesh(mesh) if isinstance(mesh, str) else mesh
    problem = with_fixed_state(params) if isinstance(params, Workload) else None
    if problem is not None:
        key = jax.ShapeDtypeStruct((), jax.eval_shape(lambda: jax.random.key(0)).dtype)
        params, name = jax.eval_shape(problem.init, key), problem.name
    if not jax.tree.leaves(params):
        raise ValueError("params must be a tree with one array or jax.ShapeDtypeStruct at least, got none")
    decision = infer_layout(params)
    boxed = any(map(is_box, jax.tree.leaves(params, is_leaf=is_box)))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), unboxed(params))
    shardings = param_shardings(params, mesh, layout=decision)
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings)
    # The names of axes are in the boxes alone, which an update does not see.
    with jax.set_mesh(mesh), deciding(params, decision if boxed else None):
        what, program = programs.program(given, problem, mesh, params)
        lowered = jax.jit(program.function, out_shardings=program.out_shardings).lower(*program.arguments)
    began = time.perf_counter()
    compiled = lowered.compile(compiler_options=CODEGEN if jax.default_backend() == "cpu" else None)
    seconds = time.perf_counter() - began
    text = compiled.as_text() or ""
    arrays = _arrays(program.state, mesh.size)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return Inspection(
        method=given.name,
        program=what,
        workload=name,
        mesh=dict(mesh.shape),
        parameters=sum(math.prod(x.shape) for x in jax.tree.leaves(params)),
        parameter_bytes=sum(map(_here, jax.tree.leaves(params))),
        state_bytes=sum(row[2] for row in arrays),
        temporary_bytes=int(getattr(memory, "temp_size_in_bytes", 0)),
        flops=float(cost.get("flops", 0.0)),
        collectives=_collectives(compiled),
        leaves=len(jax.tree.leaves(params)),
        distinct_shapes=len({(x.shape, x.dtype) for x in jax.tree.leaves(params)}),
        state_share_bytes=sum(row[3] for row in arrays),
        largest_state=tuple(arrays[:LARGEST]),
        loops=len(re.findall(r" while\(", text)),
        routines=dict(collections.Counter(r for r in _ROUTINE.findall(text) if not _NO_ROUTINE.search(r))),
        compile_seconds=round(seconds, 1),
    )


def _mesh(axes: str) -> Mesh:
    """A mesh of the first devices that there are."""
    count = math.prod(parse_axes(axes).values())
    if not 1 <= count <= jax.device_count():
        raise ValueError(
            f"mesh must give every length, for at most the {jax.device_count()} devices that JAX has, got {axes!r}; "
            f'write jax.config.update("jax_num_cpu_devices", {max(count, 1)}) before JAX looks at its devices'
        )
    return make_mesh(axes, devices=jax.devices()[:count])


def _collectives(compiled: Any) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = collections.defaultdict(
        lambda: {"count": 0, "result_bytes": 0, "wire_bytes": 0}
    )
    for row in collective_bytes(compiled):
        sums = found[row.opcode]
        sums["count"] += 1
        sums["result_bytes"] += row.result_bytes
        sums["wire_bytes"] += row.wire_bytes
    return dict(sorted(found.items()))


def _itemsize(x: Any) -> int:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return 4 * math.prod(jax.eval_shape(jax.random.key_data, x).shape[x.ndim :])
    return x.dtype.itemsize


def _here(x: Any) -> int:
    """The bytes of an array that one device holds."""
    sharding = getattr(x, "sharding", None)
    shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
    return math.prod(shape) * _itemsize(x)


def _arrays(state: Any, devices: int) -> list[tuple[str, tuple[int, ...], int, int]]:
    """The arrays of the state, those that take most of one device first: name, shape, bytes, even share."""
    # Of a stack of matrices, padding is nobody's share.
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Owned))
    filled = [
        sum(map(bool, node.rows)) / max(len(node.rows), 1) if isinstance(node, Owned) else 1.0
        for node in nodes
        for _ in jax.tree.leaves(node)
    ]
    rows = zip(names(state), jax.tree.leaves(state), filled, strict=True)
    sized = [
        (name, tuple(x.shape), _here(x), math.ceil(full * math.prod(x.shape) * _itemsize(x) / devices))
        for name, x, full in rows
    ]
    return sorted(sized, key=lambda row: -row[2])


def table(found: Inspection) -> str:
    """The numbers of an inspection as lines of text.

    >>> print(table(Inspection("lion", "the update", "digits", {"fsdp": 8}, 100, 400, 50, 0, 1e3, {}, 4, 2)))
    method       lion: the update
    parameters   100 of digits in 4 arrays of 2 distinct shapes
    mesh         fsdp=8, 8 devices; below, one device and one step
    parameters   400 bytes
    state        50 bytes, 0.12 of its parameters
    temporary    0 bytes (of the program for CPU)
    flops        1,000 (by the compiler's count for CPU)
    collectives  none
    """
    return "\n".join(f"{name:<12} {text}".rstrip() for name, text in lines(found))


def lines(found: Inspection) -> list[tuple[str, str]]:
    """The numbers of an inspection by their names; a line that goes on with the one above has none."""
    share = found.state_bytes / found.parameter_bytes if found.parameter_bytes else 0.0
    devices = math.prod(found.mesh.values())
    mesh = ", ".join(f"{name}={n}" for name, n in found.mesh.items())
    rows = [
        ("method", f"{found.method}: {found.program}"),
        (
            "parameters",
            f"{found.parameters:,} of {found.workload} in {found.leaves:,} arrays of {found.distinct_shapes:,} "
            "distinct shapes",
        ),
        ("mesh", f"{mesh}, {devices:,} devices; below, one device and one step"),
        ("parameters", _bytes(found.parameter_bytes)),
        ("state", f"{_bytes(found.state_bytes)}, {share:.2f} of its parameters{_share(found)}"),
    ]
    for name, shape, here, even in found.largest_state:
        if here >= 1e6:
            size = "x".join(map(str, shape)) or "a number"
            times = f", {here / even:.3g} times an even share" if here > 1.01 * even > 0 else ""
            rows.append(("", f"  {name} {size}: {_bytes(here)}{times}"))
    rows.append(("temporary", f"{_bytes(found.temporary_bytes)} (of the program for CPU)"))
    left_out = [f"{count} calls of {name}" for name, count in found.routines.items()]
    if found.loops:
        left_out.append(f"all but the first round of {found.loops} loops")
    rows.append(("flops", f"{found.flops:,.0f} (by the compiler's count for CPU)"))
    rows += [("", f"  not counted: {', '.join(left_out)}")] if left_out else []
    kinds = [
        f"{row['count']:.0f} {kind}: {row['result_bytes']:,.0f} bytes of results, {row['wire_bytes']:,.0f} bytes sent"
        for kind, row in found.collectives.items()
    ]
    first, *rest = kinds or ["none"]
    rows += [("collectives", first), *(("", line) for line in rest)]
    if found.compile_seconds:
        rows.append(("compiled", f"in {found.compile_seconds:.1f} s, nothing allocated or run"))
    return rows


def _share(found: Inspection) -> str:
    if not 0 < 1.01 * found.state_share_bytes < found.state_bytes:
        return ""
    return f"; an even share would be {_bytes(found.state_share_bytes)}"


def _bytes(size: int) -> str:
    """Bytes, also in GB where they are many.

    >>> _bytes(1234567890)
    '1,234,567,890 bytes (1.23 GB)'
    """
    return f"{size:,} bytes" + (f" ({size / 1e9:.3g} GB)" if size >= 1e8 else "")
