"""What one step of a method costs on a mesh: compiled for the parameters of a real problem, and never run.

Parameters lie as `gk.parallel.param_shardings` says and state as `gk.parallel.state_shardings` does; the gradients
come as the parameters lie, and the minibatch, where a method asks for the loss itself, as `gk.parallel.batch_sharding`
says. All numbers are of one device and one step, and read from the compiled program.
"""

import collections
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import gradkit as gk
from gradkit.catalogue import Card
from gradkit.engine.extras import Minibatch, offered, samples
from gradkit.parallel import batch_sharding, collective_bytes, init_sharded, param_shardings, state_shardings
from gradkit.training import methods
from gradkit.training.one_step import needs_of, updated
from gradkit.workloads import Workload
from gradkit.workloads.workload import with_fixed_state

TASKS = 4
CLASSES = 10
CHAINED = ("optimizer", "primitive", "wrapper")


class Program(NamedTuple):
    """A function, arguments that have shapes and shardings and no values, the shardings of its results (None where
    the compiler may choose), and the state among the arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    out_shardings: Any
    state: Any


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


def examine(card: Card, problem: Workload, mesh: Mesh) -> Inspection:
    """Compiles one step of a method for a mesh, and reads off what it costs.

    Args:
      card: the method, of any form: of an optimizer, primitive or wrapper the update is compiled; of a source, value
        and gradient; of an aggregator, the update from the gradients of four tasks; of a strategy, the step that ends
        a round; of a layer, its value; of a schedule, rule, diagnostic or function, its value at one step; of an
        engine, nothing.
      problem: whose parameters and loss.
      mesh: on which devices; a strategy asks for an axis "replica".

    Returns:
      An `Inspection`. Nothing is allocated or run.

    Raises:
      ValueError: a strategy and no axis "replica".

    Example:
      >>> from gradkit.catalogue import find
      >>> mesh = gk.parallel.make_mesh("fsdp=1", devices=jax.devices()[:1])
      >>> found = examine(find("adamw"), gk.workloads.load("heavytail"), mesh)
      >>> found.parameter_bytes, found.state_bytes  # 50 numbers; two moments, three counters and a published rate
      (200, 416)
    """
    problem = with_fixed_state(problem)
    key = jax.ShapeDtypeStruct((), jax.eval_shape(lambda: jax.random.key(0)).dtype)
    params = jax.eval_shape(problem.init, key)
    total = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    params = _placed(params, param_shardings(params, mesh))
    what, program = _PROGRAMS.get(card.form, _value)(card, problem, mesh, params)
    jitted = jax.jit(program.function, out_shardings=program.out_shardings)
    with jax.set_mesh(mesh):
        compiled = jitted.lower(*program.arguments).compile()
    found: dict[str, dict[str, float]] = collections.defaultdict(
        lambda: {"count": 0, "result_bytes": 0, "wire_bytes": 0}
    )
    for row in collective_bytes(compiled):
        sums = found[row.opcode]
        sums["count"] += 1
        sums["result_bytes"] += row.result_bytes
        sums["wire_bytes"] += row.wire_bytes
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return Inspection(
        method=card.name,
        program=what,
        workload=problem.name,
        mesh=dict(mesh.shape),
        parameters=total,
        parameter_bytes=_bytes(params),
        state_bytes=_bytes(program.state),
        temporary_bytes=int(getattr(memory, "temp_size_in_bytes", 0)),
        flops=float(cost.get("flops", 0.0)),
        collectives=dict(sorted(found.items())),
    )


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _bytes(tree: Any) -> int:
    """Of what one device holds."""

    def of(x: Any) -> int:
        sharding = getattr(x, "sharding", None)
        shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
        item = 4 * math.prod(jax.eval_shape(jax.random.key_data, x).shape[x.ndim :]) if _is_key(x) else x.dtype.itemsize
        return math.prod(shape) * item

    return sum(map(of, jax.tree.leaves(tree)))


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _lie(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, tree)


def _minibatch(problem: Workload, mesh: Mesh) -> Any:
    """The minibatch, cut along its examples where the mesh divides them."""
    batch = jax.eval_shape(problem.batch, jax.eval_shape(lambda: jax.random.key(0)))
    lies = batch_sharding(mesh)
    ways = math.prod(
        mesh.shape[name] for entry in lies.spec for name in (entry if isinstance(entry, tuple) else (entry,))
    )
    cut = problem.batch_size is not None and problem.batch_size % ways == 0
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies if cut else whole), batch)


def _key(mesh: Mesh) -> Any:
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), jax.eval_shape(lambda: jax.random.key(0))
    )


def _update(card: Card, problem: Workload, mesh: Mesh, params: Any) -> tuple[str, Program]:
    changes = {}
    if "shard" in inspect.signature(card.function).parameters:
        specs = jax.tree.map(lambda x: x.sharding.spec, params)
        changes["shard"] = gk.MatrixSharding(mesh, tuple(mesh.axis_names), specs=specs)
    rate = methods.find(card.function).centre if card.form == "optimizer" else methods.DEFAULT_CENTRE
    tx = optax.with_extra_args_support(methods.build(card, rate, **changes))
    state = init_sharded(tx, params)
    grads = params

    def update(params: Any, state: Any, grads: Any, batch: Any, value: Any, key: Any) -> Any:
        def value_fn(point: Any) -> jax.Array:
            return problem.loss(point, batch)

        # What is measured in passes of its own, over halves of a batch or by the model, is the source's to pay.
        step = Minibatch(params, batch, problem.loss, value, grads, value_fn, jax.grad(value_fn), key)
        extra = offered(step)
        extra |= samples(grads, [name for name in needs_of(tx, params) if name not in extra])
        return updated(tx, grads, state, params, extra)

    value = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    arguments = (params, state, grads, _minibatch(problem, mesh), value, _key(mesh))
    return "the update of all parameters", Program(update, arguments, (_lie(params), _lie(state)), state)


def _source(card: Card, problem: Workload, mesh: Mesh, params: Any) -> tuple[str, Program]:
    fn = card.function(problem.loss, **card.example)
    return "value and gradient of a minibatch", Program(fn, (params, _minibatch(problem, mesh)), None, ())


def _aggregator(card: Card, problem: Workload, mesh: Mesh, params: Any) -> tuple[str, Program]:
    tx = card.function(**card.example)

    def stacked(x: Any) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec(None, *x.sharding.spec))
        return jax.ShapeDtypeStruct((TASKS, *x.shape), x.dtype, sharding=sharding)

    state = init_sharded(tx, params)

    def update(params: Any, state: Any, grads: Any, key: Any) -> Any:
        return tx.update(grads, state, params, **({"key": key} if "key" in card.needs else {}))

    arguments = (params, state, jax.tree.map(stacked, params), _key(mesh))
    return f"one update from the gradients of {TASKS} tasks", Program(
        update, arguments, (_lie(params), _lie(state)), state
    )


def _strategy(card: Card, problem: Workload, mesh: Mesh, params: Any) -> tuple[str, Program]:
    del problem
    if "replica" not in mesh.axis_names:
        raise ValueError(f"{card.name} is of replicas that train apart: the mesh must have an axis replica")
    first = next(iter(inspect.signature(card.function).parameters))
    tx = card.function(0.1 if first == "learning_rate" else gk.sgd(0.1, momentum=0.9), **card.example)
    replicas = mesh.shape["replica"]

    def ahead(x: Any, sharding: NamedSharding) -> Any:
        spec = PartitionSpec("replica", *sharding.spec)
        return jax.ShapeDtypeStruct((replicas, *x.shape), x.dtype, sharding=NamedSharding(mesh, spec))

    state = jax.tree.map(ahead, jax.eval_shape(tx.init, params), state_shardings(tx, params))
    params = jax.tree.map(lambda x: ahead(x, x.sharding), params)

    def update(params: Any, state: Any, grads: Any) -> Any:
        return jax.vmap(lambda p, s, g: tx.update(g, s, p, sync=True), axis_name="replica")(params, state, grads)

    arguments = (params, state, params)
    return "a step of every replica that ends a round", Program(update, arguments, (_lie(params), _lie(state)), state)


def _layer(card: Card, problem: Workload, mesh: Mesh, params: Any) -> tuple[str, Program]:
    del problem, params
    signature = inspect.signature(card.function).parameters
    if not signature or any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(dict(card.example))):
        return "its value for the shapes of its card", _called(card, mesh)
    n = 16 * (mesh.size // batch_sharding(mesh).shard_shape((mesh.size,))[0])
    shapes = {"labels": ((n,), jnp.int32), **dict.fromkeys(("logits", "q", "k"), ((n, CLASSES), jnp.float32))}
    shapes |= dict.fromkeys(("log_prob", "behavior_log_prob", "proximal_log_prob", "advantages"), ((n,), jnp.float32))
    shapes |= dict.fromkeys(("x", "hidden_cotangents"), ((n, 8, 8), jnp.float32))
    function, names = functools.partial(card.function, **card.example), [name for name in signature if name in shapes]
    if not names:  # it makes a layer
        function, names = card.function(**card.example), ["x"]
    if "axis_name" in signature and signature["axis_name"].default is inspect.Parameter.empty:
        cut = batch_sharding(mesh).spec
        inside = functools.partial(function, axis_name=cut[0])
        function = jax.shard_map(inside, mesh=mesh, in_specs=cut, out_specs=PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(*shapes[name], sharding=batch_sharding(mesh)) for name in names]
    return f"{CLASSES} classes or features, 16 examples per device", Program(function, tuple(arguments), None, ())


def _called(card: Card, mesh: Mesh) -> Program:
    """A layer on the arguments of its card: shapes there are arguments of the program, all else is as it stands."""
    example = dict(card.example)
    if "key" in inspect.signature(card.function).parameters:
        example["key"] = _key(mesh)
    leaves, structure = jax.tree.flatten(example)
    given = [i for i, x in enumerate(leaves) if isinstance(x, jax.ShapeDtypeStruct)]

    def call(*arrays: Any) -> Any:
        filled = list(leaves)
        for i, x in zip(given, arrays, strict=True):
            filled[i] = x
        out = card.function(**structure.unflatten(filled))
        return [jnp.asarray(x) for x in jax.tree.leaves(out) if isinstance(x, int | float | jax.Array)]

    whole = NamedSharding(mesh, PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(leaves[i].shape, leaves[i].dtype, sharding=whole) for i in given]
    return Program(call, tuple(arguments), None, ())


def _engine(*_: Any) -> tuple[str, Program]:
    return "nothing: it is a program around functions of your own", Program(lambda: (), (), None, ())


def _value(card: Card, problem: Workload, mesh: Mesh, params: Any) -> tuple[str, Program]:
    if "loss_fn" in inspect.signature(card.function).parameters and not card.example:
        arguments = (params, params, _minibatch(problem, mesh))
        return "one measurement", Program(lambda *a: card.function(problem.loss, *a), arguments, None, ())
    whole = NamedSharding(mesh, PartitionSpec())
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    made = card.function(**card.example)
    if card.form == "schedule":
        return "its value at one step", Program(made, (step,), None, ())
    if card.form == "controller":
        source = gk.gradients.gradient_moments(problem.loss, 2)
        known = jax.eval_shape(made.init), jax.eval_shape(source, params, _minibatch(problem, mesh))[1]
        arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), known)
        return "one decision", Program(made.update, arguments, None, arguments[0])
    if card.form == "diagnostic" and hasattr(made, "init"):
        state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), jax.eval_shape(made.init)
        )
        names = [p.name for p in inspect.signature(made.update).parameters.values() if p.kind is p.KEYWORD_ONLY]
        one = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)

        def update(state: Any, values: Any) -> Any:
            return made.update(state, **values)

        return "one measurement", Program(update, (state, dict.fromkeys(names, one)), None, state)
    made = made(0) if callable(made) else made  # a rule that gives a number per step
    numbers = [np.asarray(x) for x in jax.tree.leaves(made) if not callable(x) and not isinstance(x, str)]
    return "its value", Program(lambda: numbers, (), None, ())


_PROGRAMS = {
    **dict.fromkeys(CHAINED, _update),
    "source": _source,
    "aggregator": _aggregator,
    "strategy": _strategy,
    "layer": _layer,
    "engine": _engine,
}


def table(found: Inspection) -> str:
    """The numbers of an inspection as lines of text.

    >>> print(table(Inspection("lion", "the update", "digits", {"fsdp": 8}, 100, 400, 50, 0, 1e3, {})))
    method       lion: the update
    parameters   100 of digits, 400 bytes
    mesh         fsdp=8; below, one device and one step
    state        50 bytes, 0.12 of its parameters
    temporary    0 bytes
    flops        1,000
    collectives  none
    """
    share = found.state_bytes / found.parameter_bytes if found.parameter_bytes else 0.0
    rows = [
        ("method", f"{found.method}: {found.program}"),
        ("parameters", f"{found.parameters:,} of {found.workload}, {found.parameter_bytes:,} bytes"),
        ("mesh", f"{', '.join(f'{name}={n}' for name, n in found.mesh.items())}; below, one device and one step"),
        ("state", f"{found.state_bytes:,} bytes, {share:.2f} of its parameters"),
        ("temporary", f"{found.temporary_bytes:,} bytes"),
        ("flops", f"{found.flops:,.0f}"),
    ]
    kinds = [
        f"{row['count']:.0f} {kind}: {row['result_bytes']:,.0f} bytes of results, {row['wire_bytes']:,.0f} bytes sent"
        for kind, row in found.collectives.items()
    ]
    first, *rest = kinds or ["none"]
    rows += [("collectives", first), *(("", line) for line in rest)]
    return "\n".join(f"{name:<12} {text}" for name, text in rows)
