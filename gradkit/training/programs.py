"""The program of one step of a method of any form, with arguments that have shapes and shardings and no values.

Parameters are sharded as `gk.parallel.param_shardings` says and state as `gk.parallel.state_shardings` does; gradients
are sharded as the parameters, and the minibatch, where there is one, as `gk.parallel.batch_sharding` says.
"""

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

from gradkit.catalogue import Card
from gradkit.engine.extras import EXTRAS, Minibatch, offered, samples
from gradkit.gradients import LazyGradients, gradient_moments
from gradkit.optimizers.momentum import sgd
from gradkit.parallel import batch_sharding, init_sharded, state_shardings
from gradkit.training import methods
from gradkit.training.one_step import needs_of, updated
from gradkit.transforms import MatrixSharding
from gradkit.types import PyTree
from gradkit.workloads import Workload

TASKS = 4
CLASSES = 10


class Program(NamedTuple):
    """A function, arguments that have shapes and shardings and no values, the shardings of its results (None where
    the compiler may choose), and the state among the arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    out_shardings: Any
    state: Any


class Subject(NamedTuple):
    """What is inspected.

    Attributes:
      name: of the method.
      card: its card, None for a chain or function without one.
      make: learning rate -> transformation; None where the card says how it is built.
    """

    name: str
    card: Card | None
    make: Callable[[Any], optax.GradientTransformation] | None = None


def subject(method: Any) -> Subject:
    """A method of any form by name; a factory, a chain or a file; or a card.

    Raises:
      ValueError: as `methods.find` and `methods.card_of`.
    """
    if isinstance(method, Card):
        return Subject(method.name, method)
    plain = isinstance(method, str) and not method.startswith("optax.") and not method.partition(":")[0].endswith(".py")
    if plain and method.removeprefix("gk.") not in methods.variants():
        return Subject(method, methods.card_of(method))
    found = methods.find(method)
    if found.card is not None and method is found.card.function:
        return Subject(found.name, found.card)
    return Subject(found.name, found.card, lambda rate: found.make(found.centre if rate is None else rate))


def program(given: Subject, problem: Workload | None, mesh: Mesh, params: PyTree) -> tuple[str, Program]:
    """What is compiled, in words, and the program.

    Raises:
      ValueError: the form of the method asks for a loss, and there is no problem; a strategy and no axis "replica".
    """
    card = given.card
    if card is None or given.make is not None or card.is_link:
        return _update(given, problem, mesh, params)
    loss = card.form == "diagnostic" and "loss_fn" in inspect.signature(card.function).parameters
    if problem is None and (loss or card.form in ("source", "controller")):
        raise ValueError(
            f"{card.name} is a {card.form} and asks for a loss, which a tree of shapes does not have: give the "
            "parameters of a workload instead, or --workload=NAME on the command line"
        )
    return _PROGRAMS.get(card.form, _value)(card, problem, mesh, params)


def shardings_of(tree: PyTree) -> Any:
    """The sharding of every leaf."""
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


def _update(given: Subject, problem: Workload | None, mesh: Mesh, params: Any) -> tuple[str, Program]:
    card, what = given.card, "the update of all parameters"
    if given.make is not None:
        tx = given.make(None)
    else:
        assert card is not None
        changes = {}
        if "shard" in inspect.signature(card.function).parameters:
            specs = jax.tree.map(lambda x: x.sharding.spec, params)
            changes["shard"] = MatrixSharding(mesh, tuple(mesh.axis_names), specs=specs)
            what += f", shard=gk.MatrixSharding(mesh, {tuple(mesh.axis_names)})"
        rate = methods.find(card.function).centre if card.form == "optimizer" else methods.DEFAULT_CENTRE
        tx = methods.build(card, rate, **changes)
    tx = optax.with_extra_args_support(tx)
    state = init_sharded(tx, params)
    needs = needs_of(tx, params)
    # A chain that begins with an aggregator: one gradient per task or example comes in.
    aggregates = bool({"task_gradients", "example_gradients"}.intersection(needs))
    needs = tuple(name for name in needs if name in EXTRAS)
    if aggregates:
        what += f", from {TASKS} gradients"

    def update(params: Any, state: Any, grads: Any, batch: Any, value: Any, key: Any) -> Any:
        came, grads = grads, jax.tree.map(lambda g: g[0], grads) if aggregates else grads
        extra: dict[str, Any] = {}
        if problem is not None:

            def value_fn(point: Any) -> jax.Array:
                return problem.loss(point, batch)

            # What is measured in passes of its own, over halves of a batch or by the model, is the source's to pay.
            extra = offered(Minibatch(params, batch, problem.loss, value, grads, value_fn, jax.grad(value_fn), key))
        else:
            extra = {"value": value, "grad": grads, "key": key}
            needed = [name for name, each in EXTRAS.items() if each.always and name not in extra]
            extra |= samples(grads, needed)
        extra |= samples(grads, [name for name in needs if name not in extra])
        extra |= {"losses": jnp.broadcast_to(value, TASKS)} if aggregates else {}
        return updated(tx, came, state, params, extra)

    value = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    batch = () if problem is None else _minibatch(problem, mesh)
    grads = jax.tree.map(lambda x: _several(x, mesh), params) if aggregates else params
    arguments = (params, state, grads, batch, value, _key(mesh))
    return what, Program(update, arguments, (shardings_of(params), shardings_of(state)), state)


def _source(card: Card, problem: Workload, mesh: Mesh, params: Any) -> tuple[str, Program]:
    # The source of aggregators takes one loss per task.
    alone = lambda params, batch: [problem.loss(params, batch)]  # noqa: E731
    source = card.function(alone if card.name == "task_gradients" else problem.loss, **card.example)

    def fn(params: Any, batch: Any, **drawn: Any) -> Any:
        value, grads = source(params, batch, **drawn)
        return value, grads.stacked() if isinstance(grads, LazyGradients) else grads

    arguments = (params, _minibatch(problem, mesh))
    if "key" in card.needs:
        with_key = lambda params, batch, key: fn(params, batch, key=key)  # noqa: E731
        return "value and gradient of a minibatch", Program(with_key, (*arguments, _key(mesh)), None, ())
    return "value and gradient of a minibatch", Program(fn, arguments, None, ())


def _several(x: Any, mesh: Mesh, count: int = TASKS) -> Any:
    """The shape of several gradients along a leading axis, each sharded as its parameter."""
    sharding = NamedSharding(mesh, PartitionSpec(None, *x.sharding.spec))
    return jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=sharding)


def _aggregator(card: Card, problem: Workload, mesh: Mesh, params: Any) -> tuple[str, Program]:
    tasks = card.tasks.nearest(TASKS)
    tx, count = card.function(**card.example_for(tasks)), tasks * card.tasks.batches
    state = init_sharded(tx, params)

    def update(params: Any, state: Any, grads: Any, key: Any) -> Any:
        return tx.update(grads, state, params, **samples(grads, set(card.needs) - {"key"}), key=key)

    arguments = (params, state, jax.tree.map(lambda x: _several(x, mesh, count), params), _key(mesh))
    return f"one update from the gradients of {tasks} tasks", Program(
        update, arguments, (shardings_of(params), shardings_of(state)), state
    )


def _strategy(card: Card, problem: Workload, mesh: Mesh, params: Any) -> tuple[str, Program]:
    del problem
    first = next(iter(inspect.signature(card.function).parameters))
    tx = card.function(0.1 if first == "learning_rate" else sgd(0.1, momentum=0.9), **card.example)
    return "a step of every replica that ends a round", _of_replicas(card, tx, mesh, params, sync=True)


def _exchange(card: Card, problem: Workload, mesh: Mesh, params: Any) -> tuple[str, Program]:
    del problem
    return "one exchange of all replicas", _of_replicas(card, card.function(**card.example), mesh, params)


def _of_replicas(card: Card, tx: Any, mesh: Mesh, params: Any, **extra: Any) -> Program:
    """An update of all replicas, each with parameters and a state of its own."""
    if "replica" not in mesh.axis_names:
        raise ValueError(f"{card.name} is of replicas: the mesh must have an axis replica")
    replicas = mesh.shape["replica"]

    def ahead(x: Any, sharding: NamedSharding) -> Any:
        spec = PartitionSpec("replica", *sharding.spec)
        return jax.ShapeDtypeStruct((replicas, *x.shape), x.dtype, sharding=NamedSharding(mesh, spec))

    state = jax.tree.map(ahead, jax.eval_shape(tx.init, params), state_shardings(tx, params))
    params = jax.tree.map(lambda x: ahead(x, x.sharding), params)

    def update(params: Any, state: Any, grads: Any) -> Any:
        def one(p: Any, s: Any, g: Any) -> Any:
            return tx.update(g, s, p, **samples(g, card.needs), **extra)

        return jax.vmap(one, axis_name="replica")(params, state, grads)

    return Program(update, (params, state, params), (shardings_of(params), shardings_of(state)), state)


def _layer(card: Card, problem: Workload, mesh: Mesh, params: Any) -> tuple[str, Program]:
    del problem, params
    signature = inspect.signature(card.function).parameters
    if not signature or any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(dict(card.example))):
        return "its value for the shapes of its card", _called(card, mesh)
    n = 16 * (mesh.size // batch_sharding(mesh).shard_shape((mesh.size,))[0])
    shapes = {
        "labels": ((n,), jnp.int32),
        **dict.fromkeys(("logits", "q", "k", "image", "text"), ((n, CLASSES), jnp.float32)),
    }
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


def _program(*_: Any) -> tuple[str, Program]:
    return "nothing: it is a program around functions of your own", Program(lambda: (), (), None, ())


def _value(card: Card, problem: Workload, mesh: Mesh, params: Any) -> tuple[str, Program]:
    if "loss_fn" in inspect.signature(card.function).parameters and not card.example:
        arguments = (params, params, _minibatch(problem, mesh))
        return "one measurement", Program(lambda *a: card.function(problem.loss, *a), arguments, None, ())
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(dict(card.example))):
        return "its value for the shapes of its card", _called(card, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    made = card.function(**card.example)
    if card.form == "schedule":
        return "its value at one step", Program(made, (step,), None, ())
    if card.form == "controller":
        source = gradient_moments(problem.loss, 2)
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


_PROGRAMS: dict[str, Callable[..., tuple[str, Program]]] = {
    "source": _source,
    "aggregator": _aggregator,
    "strategy": _strategy,
    "exchange": _exchange,
    "layer": _layer,
    "program": _program,
}
