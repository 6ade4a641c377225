"""What trainers call an optimizer through, with the signatures they have, and nothing else of them."""

import dataclasses
import importlib.util
import inspect
import operator
import pathlib
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

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
    """`create_training_optimizer` looks `get_optimizer` up in its module."""

    @staticmethod
    def get_optimizer(config: Any, learning_rate_schedule: Any, model: Any = None) -> Any:
        del config, model
        return optax.sgd(learning_rate_schedule)

    @staticmethod
    def create_training_optimizer(config: Any, model: Any) -> Any:
        optimizers = sys.modules["maxtext.optimizers.optimizers"]
        schedule = optax.constant_schedule(config.learning_rate)
        return schedule, optimizers.get_optimizer(config, schedule, model)


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

    @classmethod
    def register_subclass(cls, name: str) -> Callable[[type], type]:
        def add(subclass: type) -> type:
            cls.choices[name] = subclass
            return subclass

        return add

    def build(self, num_train_steps: int) -> Any:
        raise NotImplementedError

    def lr_scheduler(self, num_train_steps: int, override_lr: float | None = None) -> Any:
        return optax.linear_schedule(override_lr or self.learning_rate, 0.0, num_train_steps)


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
    class OptimizerBuilder:
        config: Any

        def validate(self) -> None:
            return None

    def create(
        self,
        optimizer_type: str,
        scheduler: Any,
        *,
        weight_decay: float = 0.0,
        weight_decay_mask: Any = None,
        gradient_accumulation_steps: int = 1,
        clip_grad: float | None = None,
        **kwargs: Any,
    ) -> Any:
        field = next(f for f in dataclasses.fields(self.builders[optimizer_type]) if f.name == "config")
        assert isinstance(field.type, type)
        config = field.type()
        for key in kwargs.keys() & inspect.signature(field.type).parameters.keys():
            setattr(config, key, kwargs[key])
        builder = self.builders[optimizer_type](config=config)
        builder.validate()
        links = [optax.clip_by_global_norm(clip_grad)] if clip_grad else []
        links.append(builder.build(scheduler))
        if weight_decay:
            links.append(optax.add_decayed_weights(-scheduler(0) * weight_decay, weight_decay_mask))
        tx = optax.chain(*links)
        return optax.MultiSteps(tx, gradient_accumulation_steps) if gradient_accumulation_steps > 1 else tx


class PeftTrainer:
    """tunix's: the optimizer of a model, and dtypes of its state that are kept over a step."""

    def __init__(self, model: nnx.Module, optimizer: optax.GradientTransformation, training_config: Any) -> None:
        del training_config
        self.model = model
        self.optimizer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    def dtypes(self) -> Any:
        state = nnx.state(self.optimizer, nnx.optimizer.OptState)
        is_leaf = lambda value: isinstance(value, nnx.Variable)  # noqa: E731
        return jax.tree.map(lambda value: value.get_value().dtype, state, is_leaf=is_leaf)

    def step(self, grads: Any) -> None:
        before = self.dtypes()
        self.optimizer.update(self.model, grads)
        assert self.dtypes() == before


def create_optimizer(config: dict[str, Any]) -> optax.GradientTransformation:
    """tunix's: from the keys of a configuration."""
    function = getattr(optax, config["opt_type"].lower())
    known = inspect.signature(function).parameters
    arguments = {key: value for key, value in config.items() if key in known}
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
    update: Callable[[Any, Any, Any], tuple[Any, Any]]
    partition: Callable[[Any], Any]


def with_partition_fn(base: Any, partition_fn: Callable[[Any], Any]) -> PartitionedGradientTransformation:
    def values(params: Any) -> Any:
        return jax.tree.map(lambda x: x.value, params)

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        return base.update(updates, state, values(params))

    return PartitionedGradientTransformation(lambda params: base.init(values(params)), update, partition_fn)


def as_schedule_fn(schedule: Any) -> Callable[[Any], Any]:
    return schedule if callable(schedule) else lambda step: float(schedule)


def big_vision_make(config: Any, params: Any, *, sched_kw: dict[str, Any]) -> tuple[Any, list[Any]]:
    """big_vision's, without frozen parameters: a direction, the rate, decay, the schedule, the sign."""
    schedule = optax.linear_schedule(1.0, 0.0, sched_kw["total_steps"])
    every = jax.tree.map(lambda _: True, params)
    kernels = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path).endswith("'kernel']"), params)
    function = operator.attrgetter(config.optax_name)(optax)
    return optax.chain(
        optax.masked(function(**config.optax), every),
        optax.scale(config.lr),
        optax.add_decayed_weights(config.wd, kernels),
        optax.masked(optax.scale_by_schedule(schedule), every),
        optax.scale(-1.0),
    ), [schedule]
