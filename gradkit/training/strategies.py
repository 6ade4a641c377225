"""Replicas in `gradkit train`: a strategy around the method, and the step of every loop under `vmap`.

    --sync=local, diloco, ...    a strategy of gk.parallel, every replica trains by itself within a round
    --exchange alone             the gradients of all replicas are exchanged in every step
    replica i                    draws the minibatches of  fold_in(key of the run, i)

Whether a round ends is decided outside of the `vmap`, where it is one number for all replicas: the exchange is a branch
that is not taken within a round, also on a mesh.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gradkit import catalogue, checks
from gradkit.catalogue import Card
from gradkit.diagnostics import metrics
from gradkit.parallel import (
    error_feedback,
    fragment_steps,
    int8_compressor,
    low_rank_compressor,
    mean_compressor,
    replica_mean,
    resize_replicas,
    sign_compressor,
    ternary_compressor,
    top_k_compressor,
)
from gradkit.parallel.mesh import parse_axes
from gradkit.parallel.replicas import ahead
from gradkit.training import methods, run
from gradkit.transforms import eval_params
from gradkit.types import PyTree
from gradkit.workloads import Workload

AXIS = "replica"
BIASED: dict[str, Callable[[], optax.GradientTransformation]] = {
    "int8": int8_compressor,
    "int4": lambda: int8_compressor(bits=4),
    "top_k": top_k_compressor,
    "sign": sign_compressor,
    "low_rank": low_rank_compressor,
    "powersgd": low_rank_compressor,
}
# What is sent -> the exchange; what a biased one does not send is remembered by the replica. Ternary numbers have the
# right mean; a memory of their rounding grows to dozens of times the gradient.
EXCHANGES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "mean": mean_compressor,
    "ternary": ternary_compressor,
    **{name: lambda make=make: error_feedback(make()) for name, make in BIASED.items()},
}
# Numbers that flags give a strategy, under the names of its arguments.
OPTIONS = ("outer_learning_rate", "outer_momentum", "fragments", "delay", "mixing")
# What a run that goes on from a checkpoint must say again; another number of replicas begins at the mean of the old.
SAME = ("sync", "sync_every", "exchange", "fragments", "delay")


def offered() -> dict[str, Card]:
    """The strategies that are built without arguments but what they go around and the length of a round; `local` is
    `local_updates`."""

    def ready(card: Card) -> bool:
        _, *rest = inspect.signature(card.function).parameters.values()
        return all(p.default is not p.empty or p.name == "sync_every" for p in rest)

    found = {name: card for name, card in catalogue.cards("strategy").items() if ready(card)}
    return {"local": found["local_updates"], **found}


def arguments(sync: str) -> Mapping[str, inspect.Parameter]:
    """The arguments of a strategy that is offered."""
    return inspect.signature(offered()[sync].function).parameters


def takers(option: str) -> str:
    """The strategies that a flag of `OPTIONS` is for.

    >>> takers("delay")
    'streaming_diloco'
    """
    # A matrix has the name of a number elsewhere: the default tells them apart.
    numbers = {name: arguments(name)[option].default for name in offered() if option in arguments(name)}
    return ", ".join(name for name, default in numbers.items() if isinstance(default, int | float))


def is_method(sync: str | None) -> bool:
    """Whether a strategy is a method by itself, of a learning rate, and goes around none."""
    return sync is not None and "inner" not in arguments(sync)


def check(config: Any) -> None:
    """What can be said of the flags of replicas before anything is loaded.

    Raises:
      ValueError: a flag in the wrong place, or a value that is none of those it takes.
    """
    if config.replicas is None:
        for name in ("sync", "sync_every", "exchange", *OPTIONS):
            if getattr(config, name) is not None:
                raise ValueError(f"{name} is of replicas: give replicas as well, such as --replicas=4")
        return
    checks.integer("replicas", config.replicas, 1)
    checks.integer("sync_every", config.sync_every, 1, optional=True)
    known = offered()
    if config.sync is not None:
        checks.choice("sync", config.sync, list(known))
    if config.exchange is not None:
        checks.choice("exchange", config.exchange, list(EXCHANGES))
    for name in ("aggregator", "max_batch"):
        if getattr(config, name) is not None:
            raise ValueError(
                f"{name} must be left out with replicas: every replica has one gradient and one batch size"
            )
    if config.global_batch is not None and config.global_batch % config.replicas:
        raise ValueError(
            f"global_batch must be a multiple of replicas={config.replicas}, each of which gets its part, got "
            f"{config.global_batch}"
        )
    _check_devices(config)
    if config.sync is None:
        if config.sync_every is not None:
            raise ValueError(
                "sync_every is the length of a round of a strategy: give sync as well, such as --sync=diloco; without "
                "one the gradients are exchanged in every step"
            )
        _check_options(config)
        return
    takes = arguments(config.sync)
    if config.sync_every is not None and "sync_every" not in takes:
        raise ValueError(f"sync_every must be left out with sync={config.sync!r}: it exchanges in every step")
    if config.sync_every is None and "sync_every" in takes and takes["sync_every"].default is inspect.Parameter.empty:
        raise ValueError(f"sync_every must be given with sync={config.sync!r}: the steps of a round, such as 50")
    if config.exchange is not None and "exchange" not in takes:
        those = [name for name in known if "exchange" in arguments(name)]
        raise ValueError(
            f"exchange must be left out with sync={config.sync!r}, which has its own; it is for sync={', '.join(those)}"
        )
    if is_method(config.sync) and (config.method is not None or config.chain is not None):
        those = [name for name in known if not is_method(name)]
        raise ValueError(
            f"method and chain must be left out with sync={config.sync!r}, which is a method by itself; around a "
            f"method go {', '.join(those)}"
        )
    _check_options(config)


def _check_options(config: Any) -> None:
    """Refuses numbers that the strategy does not take, or not in this range."""
    for name in OPTIONS:
        if getattr(config, name) is not None and config.sync not in takers(name).split(", "):
            without = "without sync" if config.sync is None else f"with sync={config.sync!r}, which has none"
            raise ValueError(f"{name} must be left out {without}; it is for sync={takers(name)}")
    if config.sync is None or is_method(config.sync):
        return
    around(config, optax.identity())
    if "fragments" in arguments(config.sync):
        given = _given(config)
        length = {name: arguments(config.sync)[name].default for name in ("sync_every", "fragments", "delay")}
        length |= {name: given[name] for name in length if name in given}
        fragment_steps(length["sync_every"], length["fragments"], 0, delay=length["delay"])


def _given(config: Any) -> dict[str, Any]:
    """The arguments of the strategy that flags give, all but the exchange."""
    named = {name: getattr(config, name) for name in ("sync_every", *OPTIONS)}
    return {name: value for name, value in named.items() if value is not None}


def described(config: Any) -> str:
    """What trains, in the words of the flags.

    >>> from gradkit.training import TrainConfig
    >>> described(TrainConfig(method="lion", replicas=4, sync="diloco", sync_every=50, exchange="int8"))
    '4 replicas of lion, sync=diloco, sync_every=50, exchange=int8'
    """
    inner = config.sync if is_method(config.sync) else config.chain or config.method or "adamw"
    if config.replicas is None:
        return inner
    flags = ("sync_every", "exchange") if is_method(config.sync) else ("sync", "sync_every", "exchange")
    given = [f"{name}={getattr(config, name)}" for name in (*flags, *OPTIONS) if getattr(config, name) is not None]
    return ", ".join((f"{config.replicas} replicas of {inner}", *given))


def _check_devices(config: Any) -> None:
    if config.mesh is None:
        if config.devices is not None and config.devices % config.replicas:
            raise ValueError(
                f"devices must be a multiple of replicas={config.replicas}, got {config.devices}; with "
                "--mesh=data=-1 every replica is on all devices"
            )
        return
    length = parse_axes(config.mesh).get(AXIS, -1)
    if length not in (-1, config.replicas):
        raise ValueError(
            f"the axis replica of mesh must have the length replicas={config.replicas}, got mesh={config.mesh}; or "
            "leave that axis out"
        )


def check_mesh(mesh: Mesh, replicas: int) -> None:
    """Refuses a mesh whose axis of the replicas, where it has one, is of another length."""
    if mesh.shape.get(AXIS, replicas) != replicas:
        raise ValueError(
            f"the axis replica of mesh must have the length replicas={replicas}, got {mesh.shape[AXIS]}: give as many "
            "devices, or leave that axis out"
        )


def around(config: Any, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The strategy that a run is asked for, around its method; or the exchange of gradients before it."""
    exchange = None if config.exchange is None else EXCHANGES[config.exchange]()
    if config.sync is None:
        return optax.chain(mean_compressor() if exchange is None else exchange, tx)
    given = _given(config) if exchange is None else {**_given(config), "exchange": exchange}
    return offered()[config.sync].function(tx, **given)


def own_method(config: Any, steps: int, shape: Any) -> optax.GradientTransformation:
    """A strategy that is a method by itself, at the learning rate and under the schedule that a run is asked for."""
    card = offered()[config.sync]
    race = card.race or catalogue.Race()
    rate = race.rate if config.learning_rate is None else config.learning_rate
    shape = methods.SHAPES["warmup_cosine"] if shape is None else shape
    given = {} if config.sync_every is None else {"sync_every": config.sync_every}
    return card.function(shape(rate, steps), **given)


def period(config: Any) -> int | None:
    """The length of a round that the loop may decide about; None where the state of the strategy does."""
    # Of fragments each has a step of its own.
    if config.sync in (None, "streaming_diloco"):
        return None
    takes = arguments(config.sync)
    if "sync_every" not in takes:
        return None
    return takes["sync_every"].default if config.sync_every is None else config.sync_every


def shardings(one: run.Run, mesh: Mesh) -> run.Run:
    """The shardings of the state of all replicas, from those of one."""
    axis = AXIS if AXIS in mesh.axis_names else None

    def below(tree: Any) -> Any:
        return jax.tree.map(lambda s: ahead(s, axis), tree, is_leaf=lambda s: isinstance(s, NamedSharding))

    return one._replace(params=below(one.params), opt_state=below(one.opt_state), model_state=below(one.model_state))


def start(
    params: PyTree, tx: optax.GradientTransformation, seed: jax.Array, model_state: Any, replicas: int
) -> run.Run:
    """The beginning of a run: all replicas have the same parameters."""

    def begin(_: jax.Array) -> Any:
        one = run.start(params, tx, seed, model_state)
        return one.params, one.opt_state, one.model_state

    params, opt_state, model_state = jax.vmap(begin, axis_name=AXIS, out_axes=0)(jnp.arange(replicas))
    return run.Run(jnp.zeros((), jnp.int32), params, opt_state, run.first_key(seed), model_state)


def together(lies: run.Run) -> run.Run:
    """Shardings like these, with all replicas on every device."""

    def whole(s: NamedSharding) -> NamedSharding:
        return NamedSharding(s.mesh, PartitionSpec(None, *s.spec[1:]), memory_kind=s.memory_kind)

    params, opt_state, kept = jax.tree.map(whole, (lies.params, lies.opt_state, lies.model_state))
    return lies._replace(params=params, opt_state=opt_state, model_state=kept)


def resized(now: run.Run, replicas: int, shardings: run.Run) -> run.Run:
    """A run with another number of replicas, each of them at the mean of the old ones, as `resize_replicas` says."""

    def resize(*trees: Any) -> Any:
        return resize_replicas(trees, replicas)

    lies = (shardings.params, shardings.opt_state, shardings.model_state)
    params, opt_state, model_state = jax.jit(resize, out_shardings=lies)(now.params, now.opt_state, now.model_state)
    return now._replace(params=params, opt_state=opt_state, model_state=model_state)


def step_function(
    workload: Workload,
    tx: optax.GradientTransformation,
    *,
    replicas: int,
    mesh: Mesh,
    sync_every: int | None,
    microbatches: int,
    place: Callable[[Any], Any],
) -> Callable[[run.Run], tuple[run.Run, jax.Array]]:
    """One step of all replicas, Run -> (Run, the loss of each)."""

    def step(now: run.Run) -> tuple[run.Run, jax.Array]:
        told = tx
        if sync_every is not None:
            ends = (now.step + 1) % sync_every == 0
            update: Any = tx.update
            told = optax.GradientTransformationExtraArgs(tx.init, functools.partial(update, sync=ends))
        alone = run.step_function(workload, told, microbatches=microbatches, place=place)

        def one(i: jax.Array, params: Any, opt_state: Any, model_state: Any) -> Any:
            own = run.Run(now.step, params, opt_state, jax.random.fold_in(now.key, i), model_state)
            new, loss = alone(own)
            return new.params, new.opt_state, new.model_state, loss

        apart = (jnp.arange(replicas), now.params, now.opt_state, now.model_state)
        params, opt_state, model_state, losses = _each(one, mesh)(*apart)
        return run.Run(now.step + 1, params, opt_state, now.key, model_state), losses

    return step


def _each(one: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A function of one replica, for all of them. On a mesh that has their axis, by hand along it: what a compressor
    packs is then what travels."""
    if AXIS not in mesh.axis_names:
        return jax.vmap(one, axis_name=AXIS)

    def here(*trees: Any) -> Any:
        out = one(*jax.tree.map(lambda x: x[0], trees))
        return jax.tree.map(lambda x: x[None], out)

    # What is constant at first and differs later, as the carry of a loop in a method, has one type without check_vma.
    along = PartitionSpec(AXIS)
    return jax.shard_map(here, mesh=mesh, in_specs=along, out_specs=along, axis_names={AXIS}, check_vma=False)


def measured(workload: Workload, now: run.Run) -> jax.Array:
    """The metric of a run, at the mean of the parameters that the replicas evaluate."""

    def mean(*trees: Any) -> Any:
        return jax.tree.map(lambda x: x[0], jax.vmap(replica_mean, axis_name=AXIS)(*trees))

    point = mean(jax.vmap(eval_params)(now.opt_state, now.params))
    first = jax.tree.map(lambda x: x[0], (now.params, now.opt_state, now.model_state))
    alone = now._replace(params=first[0], opt_state=first[1], model_state=first[2])
    return run.measured(workload, alone, point)


def published(opt_state: Any) -> dict[str, jax.Array]:
    """What the method says of itself: of numbers the mean over the replicas, of counts and switches the largest, and
    entries that are not finite of all of them."""

    def joined(name: str, x: jax.Array) -> jax.Array:
        if name == "nonfinite_state":
            return x.sum(0)
        return x.mean(0) if jnp.issubdtype(x.dtype, jnp.inexact) else x.max(0)

    rows = jax.vmap(lambda state: metrics(state, nonfinite=True))(opt_state)
    return {name: joined(name, x) for name, x in rows.items()}
