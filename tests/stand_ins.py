"""What trainers call an optimizer through, with the signatures they have, and nothing else of them."""

import abc
import dataclasses
import importlib.util
import inspect
import operator
import pathlib
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx, serialization
from jax.sharding import Mesh, NamedSharding, PartitionSpec

FOLDER = pathlib.Path(__file__).parents[1] / "experiments/trainers"


def load(patch: pytest.MonkeyPatch, name: str, modules: dict[str, Any]) -> Any:
    """Runs the file of a trainer where the modules it imports are the ones given."""
    for path, content in modules.items():
        for end in range(1, path.count(".") + 1):
            package = ".".join(path.split(".")[:end])
            patch.setitem(sys.modules, package, sys.modules.get(package, types.ModuleType(package)))
        module = types.ModuleType(path)
        vars(module).update(content)
        patch.setitem(sys.modules, path, module)
        if "." in path:
            above, last = path.rsplit(".", 1)
            patch.setattr(sys.modules[above], last, module, raising=False)
    spec = importlib.util.spec_from_file_location(f"plugged_into_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class MaxText:
    """`src/maxtext/optimizers/optimizers.py`, and `create_training_optimizer`, which looks `get_optimizer` up there."""

    @staticmethod
    def get_optimizer(config: Any, learning_rate_schedule: Any, model: Any = None) -> Any:
        del config, model
        return optax.sgd(learning_rate_schedule)

    @staticmethod
    def skip_step_on_spikes(inner_opt: Any, interval: int, scaling_factor: float) -> Any:
        """A step whose loss is far above the losses before leaves everything as it is."""

        def init(params: Any) -> dict[str, Any]:
            return {"inner_state": inner_opt.init(params), "losses": jnp.zeros(interval), "count": jnp.zeros((), int)}

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, dict[str, Any]]:
            loss = extra.pop("loss")
            extra.pop("grad_norm")
            losses, count = state["losses"], state["count"]
            bound = jnp.mean(losses) + jnp.float32(scaling_factor) * jnp.std(losses)

            def moved() -> Any:
                return inner_opt.update(updates, state["inner_state"], params, **extra)

            def still() -> Any:
                return jax.tree.map(jnp.zeros_like, updates), state["inner_state"]

            new, inner = jax.lax.cond((count < 2) | (loss <= bound), moved, still)
            losses = losses.at[count % interval].set(loss)
            return new, {"inner_state": inner, "losses": losses, "count": count + 1}

        return optax.GradientTransformationExtraArgs(init, update)

    @staticmethod
    def create_training_optimizer(config: Any, model: Any) -> Any:
        optimizers = sys.modules["maxtext.optimizers.optimizers"]
        schedule = optax.constant_schedule(config.learning_rate)
        return schedule, optimizers.get_optimizer(config, schedule, model)

    @classmethod
    def module(cls) -> dict[str, Any]:
        return {"get_optimizer": cls.get_optimizer, "skip_step_on_spikes": cls.skip_step_on_spikes}


class Axis(NamedTuple):
    """haliax's."""

    name: str
    size: int


@jax.tree_util.register_pytree_node_class
class NamedArray:
    """haliax's: one array, registered without keys, and axes with names."""

    def __init__(self, array: Any, axes: tuple[Axis, ...]) -> None:
        self.array, self.axes = array, axes

    def tree_flatten(self) -> Any:
        return (self.array,), self.axes

    @classmethod
    def tree_unflatten(cls, axes: Any, children: Any) -> "NamedArray":
        return cls(children[0], axes)


def named(x: Any, *names: str) -> NamedArray:
    return NamedArray(x, tuple(Axis(*pair) for pair in zip(names, x.shape, strict=True)))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Levanter's: a registry of choices, with what every optimizer has."""

    choices: ClassVar[dict[str, type]] = {}
    learning_rate: float = 6e-4
    weight_decay: float = 0.1
    weight_decay_modules: str | None = None
    default_weight_decay_mask: bool | None = None

    @classmethod
    def register_subclass(cls, name: str) -> Callable[[type], type]:
        def add(subclass: type) -> type:
            cls.choices[name] = subclass
            return subclass

        return add

    def build(self, num_train_steps: int) -> Any:
        raise NotImplementedError

    def build_weight_decay_mask(self) -> Callable[[Any], Any]:
        """By the names of leaves; a named array is one leaf."""

        def decays(path: Any, _: Any) -> bool:
            return re.match(self.weight_decay_modules or ".*", jax.tree_util.keystr(path, simple=True)) is not None

        is_leaf = lambda x: isinstance(x, NamedArray)  # noqa: E731
        return lambda model: jax.tree_util.tree_map_with_path(decays, model, is_leaf=is_leaf)

    def lr_scheduler(self, num_train_steps: int, override_lr: float | None = None) -> Any:
        return optax.constant_schedule(override_lr or self.learning_rate)


def take_train_step(
    optimizer: Any, model: Any, opt_state: Any, grads: Any, *, obj_fun: Any = None, loss: Any = None
) -> Any:
    """Levanter's, without quantization and frozen parameters."""
    updates, opt_state = optimizer.update(grads, opt_state, params=model, obj_fn=obj_fun, loss=loss)
    return jax.tree.map(lambda p, u: p + u, model, updates), opt_state, updates


def pspec_for(tree: Any, resource_mapping: dict[str, str]) -> Any:
    """haliax's: by the names of axes of named arrays; other arrays are replicated."""

    def spec(node: Any) -> Any:
        if isinstance(node, NamedArray):
            return PartitionSpec(*(resource_mapping.get(axis.name) for axis in node.axes))
        return PartitionSpec()

    return jax.tree.map(spec, tree, is_leaf=lambda x: isinstance(x, NamedArray))


class EasyDeL:
    """eformer's registry, builder and factory."""

    def __init__(self) -> None:
        self.builders: dict[str, Any] = {}

    def register_optimizer(self, name: str) -> Callable[[type], type]:
        def add(builder: type) -> type:
            self.builders[name] = builder
            return builder

        return add

    @dataclasses.dataclass
    class OptimizerBuilder(abc.ABC):
        config: Any

        @abc.abstractmethod
        def build(self, scheduler: optax.Schedule) -> optax.GradientTransformation: ...

        def validate(self) -> None:
            return None

    def create(
        self,
        optimizer_type: str,
        scheduler_config: Any = None,
        optimizer_config: Any = None,
        *,
        weight_decay: float = 0.0,
        weight_decay_mask: Any = None,
        gradient_accumulation_steps: int = 1,
        clip_grad: float | None = None,
        custom_scheduler: Callable[[int], optax.Schedule] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, optax.Schedule]:
        """`OptimizerFactory.create`; the rate is all of `scheduler_config` here."""
        del custom_scheduler
        field = next(f for f in dataclasses.fields(self.builders[optimizer_type]) if f.name == "config")
        assert isinstance(field.type, type) and optimizer_config is None
        config: Any = field.type()
        for key in kwargs.keys() & inspect.signature(field.type).parameters.keys():
            setattr(config, key, kwargs[key])
        for own in dataclasses.fields(config):
            if "dtype" in own.name and isinstance(getattr(config, own.name), str):
                setattr(config, own.name, getattr(jnp, getattr(config, own.name)))
        scheduler = optax.constant_schedule(scheduler_config)
        builder = self.builders[optimizer_type](config=config)
        builder.validate()
        links = [optax.clip_by_global_norm(clip_grad)] if clip_grad else []
        links.append(builder.build(scheduler))
        if weight_decay:
            links.append(optax.add_decayed_weights(-scheduler(0) * weight_decay, weight_decay_mask))
        tx = optax.chain(*links)
        if gradient_accumulation_steps > 1:
            return optax.MultiSteps(tx, gradient_accumulation_steps), scheduler
        return tx, scheduler


def match_partition_rules(rules: Sequence[tuple[str, PartitionSpec]], tree: Any) -> Any:
    """eformer's: the first rule that is found in the path of a leaf."""

    def spec(path: Any, _: Any) -> PartitionSpec:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return next(spec for rule, spec in rules if re.search(rule, name))

    return jax.tree_util.tree_map_with_path(spec, tree)


class PeftTrainer:
    """`tunix/sft/peft_trainer.py`: the state of the optimizer is sharded as its Variables say, and its dtypes
    are kept over a step."""

    def __init__(self, model: nnx.Module, optimizer: optax.GradientTransformation, training_config: Any) -> None:
        del training_config
        self.model = model
        lora = any(isinstance(x, nnx.LoRAParam) for _, x in nnx.iter_graph(model))
        self.wrt = nnx.LoRAParam if lora else nnx.Param
        self.optimizer = nnx.Optimizer(model, optimizer, wrt=self.wrt)

    @staticmethod
    def dtypes(optimizer: nnx.Optimizer) -> Any:
        state = nnx.state(optimizer, nnx.optimizer.OptState)
        is_leaf = lambda value: isinstance(value, nnx.Variable)  # noqa: E731
        return jax.tree.map(lambda value: value.get_value().dtype, state, is_leaf=is_leaf)

    def shard_optimizer(self, mesh: Mesh) -> None:
        state = nnx.state(self.optimizer, nnx.optimizer.OptState)

        def shard(x: Any, spec: PartitionSpec | None) -> Any:
            return jax.device_put(x, NamedSharding(mesh, spec or PartitionSpec())) if isinstance(x, jax.Array) else x

        nnx.update(self.optimizer, jax.tree.map(shard, state, nnx.get_partition_spec(state)))

    def train_step(self, model: nnx.Module, optimizer: nnx.Optimizer, loss_fn: Callable[[Any], jax.Array]) -> jax.Array:
        argnums: Any = nnx.DiffState(0, self.wrt) if self.wrt is nnx.LoRAParam else 0
        loss, grads = nnx.value_and_grad(loss_fn, argnums=argnums)(model)
        before = self.dtypes(optimizer)
        optimizer.update(model, grads)
        assert self.dtypes(optimizer) == before
        return loss

    @property
    def learning_rate(self) -> Any:
        state: Any = self.optimizer.opt_state
        return state.hyperparams["learning_rate"].get_value()


def create_optimizer(config: dict[str, Any]) -> optax.GradientTransformation:
    """tunix's: from the keys of a configuration."""
    function = getattr(optax, config["opt_type"].lower())
    known = inspect.signature(function).parameters
    arguments = {key: value for key, value in config.items() if key in known}
    assert all(key in arguments for key, p in known.items() if p.default is p.empty)
    return optax.inject_hyperparams(function, hyperparam_dtype=jnp.float32)(**arguments)


@dataclasses.dataclass
class OptParam:
    """axlearn's: a parameter and what is known of it; a leaf of a tree."""

    value: Any
    factorization_spec: Any = None
    weight_decay_scale: float | None = None


@dataclasses.dataclass
class TensorSpec:
    """axlearn's: of parameters (`ParameterSpec`) and of state (`OptStateSpec`); a leaf of a tree."""

    shape: Sequence[int]
    dtype: Any = None
    mesh_axes: PartitionSpec | None = None
    memory_kind: str | None = None


class PartitionedGradientTransformation(NamedTuple):
    """axlearn's."""

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]
    partition: Callable[[Any], Any]


def with_partition_fn(base: Any, partition_fn: Callable[[Any], Any]) -> PartitionedGradientTransformation:
    def values(params: Any) -> Any:
        return jax.tree.map(lambda x: x.value, params)

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        return base.update(updates, state, values(params))

    return PartitionedGradientTransformation(lambda params: base.init(values(params)), update, partition_fn)


class Learner:
    """axlearn's: parameters that are not updated are None for the optimizer."""

    def __init__(self, optimizer: PartitionedGradientTransformation, frozen: Sequence[str]) -> None:
        self.optimizer, self.frozen = optimizer, frozen

    def masked(self, tree: Any) -> Any:
        return {key: None if key in self.frozen else value for key, value in tree.items()}

    def create_state_partition_specs(self, model_param_specs: Any) -> Any:
        return self.optimizer.partition(self.masked(model_param_specs))

    def init(self, model_params: Any) -> Any:
        return self.optimizer.init(self.masked(model_params))

    def update(self, gradients: Any, *, state: Any, opt_params: Any) -> Any:
        delta, state = self.optimizer.update(self.masked(gradients), state=state, params=self.masked(opt_params))
        values = jax.tree.map(lambda p: p.value, opt_params)
        still = {key: jax.tree.map(jnp.zeros_like, values[key]) for key in self.frozen}
        return optax.apply_updates(values, {**delta, **still}), state


def as_schedule_fn(schedule: Any) -> Callable[[Any], Any]:
    return schedule if callable(schedule) else lambda step: float(schedule)


def traversed(tree: Any) -> list[tuple[str, Any]]:
    """`_traverse_with_names` of `big_vision/utils.py`: it knows dictionaries, lists, tuples and dataclasses."""
    if dataclasses.is_dataclass(tree):
        tree = serialization.to_state_dict(tree)
    if tree is None:
        return []
    if isinstance(tree, Mapping):
        rows = [(key, tree[key]) for key in sorted(tree)]
    elif isinstance(tree, list | tuple):
        rows = [(str(i), child) for i, child in enumerate(tree)]
    else:
        return [("", tree)]
    return [(f"{key}/{path}".rstrip("/"), leaf) for key, child in rows for path, leaf in traversed(child)]


def make_mask_trees(tree: Any, patterns: Sequence[str]) -> list[Any]:
    """big_vision's: by pattern, which leaves it is the first to match."""
    leaves, structure = jax.tree.flatten(tree)
    found = {token: name for name, token in traversed(structure.unflatten(range(len(leaves))))}
    assert len(found) == len(leaves)
    first = [next(i for i, p in enumerate(patterns) if re.fullmatch(p, found[token])) for token in range(len(leaves))]
    return [structure.unflatten([i == own for own in first]) for i in range(len(patterns))]


def big_vision_make(config: Any, params: Any, *, sched_kw: dict[str, Any]) -> tuple[Any, list[Any]]:
    """`make` of `big_vision/optax.py`: a direction, the rate, decay, schedules (None: frozen), the sign."""
    patterns, schedules = zip(*config.schedule, strict=True)
    masks = make_mask_trees(params, patterns)
    frozen = jax.tree.map(lambda *flags: any(f and s is None for f, s in zip(flags, schedules, strict=True)), *masks)
    moved = jax.tree.map(operator.not_, frozen)
    made = [s if s is None else optax.linear_schedule(1.0, s["end"], sched_kw["total_steps"]) for s in schedules]
    rows = [(s, mask) for s, mask in zip(made, masks, strict=True) if s is not None]
    function = operator.attrgetter(config.optax_name)(optax)
    (decayed, _) = make_mask_trees(params, (config.wd_mults[0][0], ".*"))
    return optax.chain(
        optax.identity(),
        optax.masked(function(**config.optax), moved),
        optax.scale(config.lr),
        optax.add_decayed_weights(config.wd * config.wd_mults[0][1], decayed),
        *(optax.masked(optax.scale_by_schedule(s), mask) for s, mask in rows),
        optax.masked(optax.set_to_zero(), frozen),
        optax.scale(-1.0),
    ), [s for s, _ in rows]


def get_count(opt_state: Any) -> int:
    """big_vision's: the step; its own schedules are to be the only ones."""
    is_leaf = lambda node: isinstance(node, optax.ScaleByScheduleState)  # noqa: E731
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_leaf) if is_leaf(node)]
    (count,) = {int(state.count) for state in found}
    return count
