"""Training through `experiments/trainers/`: real steps, state sharded as each trainer derives it, and the results of
calling gradkit directly."""

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import meta
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from tests import stand_ins
from tests.parallel.test_trainer_paths import mesh_of, share
from tests.stand_ins import NamedArray, OptParam, TensorSpec, load, named

L, E, F, V, STEPS = 2, 8, 16, 16, 3
ADAMW = {"b2": 0.99, "eps": 1e-3, "weight_decay": 0.1, "weight_decay_mask": gk.leaves.no_decay()}
RATE = 0.05
# The mesh axes of up, down, scale and table, the layers in front.
SPECS = (P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp"), P(None, "fsdp"), P("tensor", "fsdp"))


class Parts(NamedTuple):
    """The arrays of the model, however a trainer calls them; layers in front."""

    up: Any
    down: Any
    scale: Any
    table: Any


def start() -> Parts:
    rng = np.random.default_rng(0)
    shapes = ((L, E, F), (L, F, E), (L, E), (V, E))
    return Parts(*(jnp.asarray(rng.standard_normal(shape) / 4 + (len(shape) == 2), jnp.float32) for shape in shapes))


def loss_of(parts: Parts) -> jax.Array:
    """Every token is followed by the next one."""
    x = parts.table
    for i in range(L):
        x = x + jnp.tanh((x * parts.scale[i][None]) @ parts.up[i]) @ parts.down[i]
    scores = jax.nn.log_softmax(x @ parts.table.T)
    return -jnp.mean(jnp.sum(scores * jnp.roll(jnp.eye(V), 1, 1), 1))


def plain(parts: Parts) -> Any:
    layers = {"up": {"kernel": parts.up}, "down": {"kernel": parts.down}, "norm": {"scale": parts.scale}}
    return {"layers": layers, "token": {"embedding": parts.table}}


def parts_of(tree: Any) -> Parts:
    own = tree["layers"]
    return Parts(own["up"]["kernel"], own["down"]["kernel"], own["norm"]["scale"], tree["token"]["embedding"])


@functools.cache
def directly() -> Parts:
    """The parameters after some steps of `gk.adamw`, without a trainer."""
    tx, params = gk.adamw(RATE, **ADAMW), plain(start())
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(jax.grad(lambda p: loss_of(parts_of(p)))(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        params, state = step(params, state)
    return parts_of(params)


def assert_trained(losses: list[Any], parts: Parts, state: Any, params: Any) -> None:
    """It learned, to the same numbers as without the trainer, and a device has its share of the state."""
    assert losses[0] > losses[1] > losses[2]
    for got, want in zip(parts, directly(), strict=True):
        # A gradient is off by the roundings of sums of 16 numbers up to 1; a step of adamw divides it by eps at least.
        np.testing.assert_allclose(got, want, atol=STEPS * RATE * 16 * 2**-24 / ADAMW["eps"])
    assert share(state) <= 1.05 * share(params)


def loop(step: Callable[..., Any], params: Any, state: Any) -> tuple[list[Any], Any, Any]:
    step, losses = jax.jit(step), []
    for _ in range(STEPS):
        loss, params, state = step(params, state)
        losses.append(float(loss))
    return losses, params, state


@pytest.mark.parametrize("spikes", [False, True])
def test_maxtext(monkeypatch: pytest.MonkeyPatch, spikes: bool) -> None:
    """With Linen: layers along axis 1; boxes with logical names tell where the state goes; spikes may be skipped."""
    load(monkeypatch, "maxtext", {"maxtext.optimizers.optimizers": stand_ins.MaxText.module()})
    config: Any = types.SimpleNamespace(
        learning_rate=RATE, opt_type="adamw", mu_dtype=jnp.dtype("float32"), adamw_mask=[], trainable_parameters_mask=[]
    )
    config.adam_b1, config.adam_b2, config.adam_eps, config.adam_eps_root = 0.9, ADAMW["b2"], ADAMW["eps"], 0.0
    config.adam_weight_decay = ADAMW["weight_decay"]
    config.skip_step_on_spikes, config.skip_step_interval, config.skip_step_scaling_factor = spikes, 4, 6.0
    _, tx = stand_ins.MaxText.create_training_optimizer(config, None)
    mesh, rules = mesh_of(), (("embed", "fsdp"), ("mlp", "tensor"), ("vocab", "tensor"), ("norm", "fsdp"))
    names = plain(Parts(("embed", "layers", "mlp"), ("mlp", "layers", "embed"), ("norm", "layers"), ("vocab", "embed")))

    def scanned(parts: Parts) -> Any:
        return plain(Parts(*(x if i == 3 else jnp.moveaxis(x, 0, 1) for i, x in enumerate(parts))))

    def parts(params: Any) -> Parts:
        return Parts(*(x if i == 3 else jnp.moveaxis(x, 1, 0) for i, x in enumerate(parts_of(params))))

    def initial() -> Any:
        is_names = lambda node: isinstance(node, tuple)  # noqa: E731
        boxed = jax.tree.map(lambda n, x: nn.LogicallyPartitioned(x, n), names, scanned(start()), is_leaf=is_names)
        return boxed, tx.init(boxed)

    specs = nn.get_partition_spec(jax.eval_shape(initial))
    out = nn.logical_to_mesh_sharding(specs, mesh, rules)
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        params, state = jax.jit(lambda: meta.unbox(initial()), out_shardings=out)()

    def step(params: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(lambda p: loss_of(parts(p)))(params)
        extra = {"loss": loss, "grad_norm": optax.tree.norm(grads)} if spikes else {}
        updates, state = tx.update(grads, state, params, **extra)
        return loss, optax.apply_updates(params, updates), state

    losses, params, state = loop(step, params, state)
    assert_trained(losses, parts(params), state, params)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    """As Equinox has it: a module is a tree, and what it lacks is None."""

    weight: Any
    bias: Any = None


def test_levanter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named arrays in modules; shardings by the names of axes; every update is given the loss as a function."""
    choices: dict[str, type] = {}
    monkeypatch.setattr(stand_ins.OptimizerConfig, "choices", choices)
    load(monkeypatch, "levanter", {"levanter.optim.config": {"OptimizerConfig": stand_ins.OptimizerConfig}})
    given = {key: ADAMW[key] for key in ("b2", "eps")}
    tx = choices["gradkit"](learning_rate=RATE, method="adamw", arguments=given, max_grad_norm=None).build(STEPS)
    mapping, mesh = {"embed": "fsdp", "mlp": "tensor", "vocab": "tensor"}, mesh_of()
    axes = (("layers", "embed", "mlp"), ("layers", "mlp", "embed"), ("layers", "embed"), ("vocab", "embed"))

    def model() -> Any:
        up, down, scale, table = (named(x, *names) for x, names in zip(start(), axes, strict=True))
        layers = {"up": Linear(up), "down": Linear(down), "norm": Linear(scale)}
        return {"layers": layers, "embeddings": {"token_embeddings": Linear(table)}}

    def parts(model: Any) -> Parts:
        up, down, norm = (model["layers"][key].weight.array for key in ("up", "down", "norm"))
        return Parts(up, down, norm, model["embeddings"]["token_embeddings"].weight.array)

    def initial() -> Any:
        return model(), tx.init(model())

    is_spec = lambda node: isinstance(node, P)  # noqa: E731
    specs = stand_ins.pspec_for(jax.eval_shape(initial), mapping)
    out = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)
    params, state = jax.jit(initial, out_shardings=out)()

    def step(params: Any, state: Any) -> Any:
        objective = lambda p: loss_of(parts(p))  # noqa: E731
        loss, grads = jax.value_and_grad(objective)(params)
        params, state, _ = stand_ins.take_train_step(tx, params, state, grads, obj_fun=objective, loss=loss)
        return loss, params, state

    losses, params, state = loop(step, params, state)
    assert_trained(losses, parts(params), state, params)
    assert isinstance(params["layers"]["up"].weight, NamedArray)
    np.testing.assert_allclose(state.hyperparams["learning_rate"], RATE, rtol=1e-6)


def test_easydel(monkeypatch: pytest.MonkeyPatch) -> None:
    """`init_tx` and `apply_gradients`: rules on the paths of the state, arguments of `update` by name."""
    eformer = stand_ins.EasyDeL()
    names = {"OptimizerBuilder": eformer.OptimizerBuilder, "register_optimizer": eformer.register_optimizer}
    load(monkeypatch, "easydel", {"eformer.optimizers": names})
    decay = {key: ADAMW[key] for key in ("weight_decay", "weight_decay_mask")}
    tx, _ = eformer.create("gradkit_adamw", RATE, b2=ADAMW["b2"], eps=ADAMW["eps"], mu_dtype="float32", **decay)
    words = ("up/kernel", "down/kernel", "norm/scale", "embedding")
    rules, mesh = [*zip(words, SPECS, strict=True), (".*", P())], mesh_of()

    def sharded(tree: Any) -> Any:
        specs = stand_ins.match_partition_rules(rules, tree)
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))

    params = jax.device_put(plain(start()), sharded(plain(start())))
    state = jax.jit(tx.init, out_shardings=sharded(jax.eval_shape(tx.init, params)))(params)

    def step(params: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(lambda p: loss_of(parts_of(p)))(params)
        updates, state = tx.update(updates=grads, state=state, params=params)
        return loss, optax.apply_updates(params, updates), state

    losses, params, state = loop(step, params, state)
    assert_trained(losses, parts_of(params), state, params)


class Weight(nnx.Module):
    def __init__(self, name: str, x: Any, spec: P) -> None:
        setattr(self, name, nnx.Param(x, out_sharding=tuple(spec)))


class Layers(nnx.Module):
    def __init__(self, parts: Parts) -> None:
        self.up, self.down = Weight("kernel", parts.up, SPECS[0]), Weight("kernel", parts.down, SPECS[1])
        self.norm = Weight("scale", parts.scale, SPECS[2])


class Model(nnx.Module):
    def __init__(self, parts: Parts) -> None:
        self.layers, self.token = Layers(parts), Weight("embedding", parts.table, SPECS[3])


def test_tunix(monkeypatch: pytest.MonkeyPatch) -> None:
    """`nnx.Optimizer` of a model on a mesh; the state is sharded as the metadata of its Variables say."""
    plug = load(monkeypatch, "tunix", {})

    def loss_fn(model: nnx.Module) -> jax.Array:
        return loss_of(parts_of(nnx.to_pure_dict(nnx.state(model))))

    tx = plug.optimizer("adamw", learning_rate=optax.constant_schedule(RATE), **ADAMW)
    mesh = mesh_of()
    with jax.set_mesh(mesh):
        model = Model(start())
        trainer = stand_ins.PeftTrainer(model, tx, None)
        trainer.shard_optimizer(mesh)
        step = nnx.jit(functools.partial(trainer.train_step, loss_fn=loss_fn))
        losses = [float(step(model, trainer.optimizer)) for _ in range(STEPS)]
        params, state = nnx.state(model, nnx.Param), nnx.state(trainer.optimizer, nnx.optimizer.OptState)
    assert_trained(losses, parts_of(nnx.to_pure_dict(params)), state, params)
    np.testing.assert_allclose(trainer.learning_rate, RATE, rtol=1e-6)


AXLEARN = {
    "axlearn.common.optimizer_base": {"OptStateSpec": TensorSpec},
    "axlearn.common.optimizers": {"with_partition_fn": stand_ins.with_partition_fn},
    "axlearn.common.schedule": {"as_schedule_fn": stand_ins.as_schedule_fn},
}


def test_axlearn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner: specifications of the state from those of the parameters, and None where a parameter is frozen."""
    plug = load(monkeypatch, "axlearn", AXLEARN)
    tx = plug.gradkit_optimizer(RATE, method="adamw", arguments=ADAMW)
    learner, mesh = stand_ins.Learner(tx, ["frozen"]), mesh_of()
    values = {**plain(start()), "frozen": {"weight": jnp.ones((4, 4))}}
    axes = {**plain(Parts(*SPECS)), "frozen": {"weight": P()}}
    specs = jax.tree.map(lambda x, spec: TensorSpec(x.shape, x.dtype, spec), values, axes)

    def on_mesh(specs: Any) -> Any:
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec.mesh_axes), specs)

    values = jax.device_put(values, on_mesh(specs))
    out = on_mesh(learner.create_state_partition_specs(specs))
    state = jax.jit(lambda v: learner.init(jax.tree.map(OptParam, v)), out_shardings=out)(values)

    def step(values: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(lambda p: loss_of(parts_of(p)))(values)
        return loss, *learner.update(grads, state=state, opt_params=jax.tree.map(OptParam, values))

    losses, values, state = loop(step, values, state)
    np.testing.assert_array_equal(values.pop("frozen")["weight"], 1.0)
    assert_trained(losses, parts_of(values), state, values)


def test_big_vision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen parameters are masked; shardings by the names that its own traversal gives to the state."""
    monkeypatch.setattr(optax, "gradkit", None, raising=False)
    load(monkeypatch, "big_vision", {})
    values, mesh = {**plain(start()), "frozen": {"kernel": jnp.ones((4, 4))}}, mesh_of()
    config = types.SimpleNamespace(optax_name="gradkit.adamw", optax={"b2": ADAMW["b2"], "eps": ADAMW["eps"]}, lr=RATE)
    config.schedule = [("frozen/.*", None), (".*", {"end": 1.0})]
    config.wd, config.wd_mults = RATE, [(".*/(kernel|embedding)$", ADAMW["weight_decay"])]
    tx, _ = stand_ins.big_vision_make(config, values, sched_kw={"total_steps": STEPS})
    words = (".*up/kernel", ".*down/kernel", ".*norm/scale", ".*embedding", ".*")

    def sharded(tree: Any) -> Any:
        masks = stand_ins.make_mask_trees(tree, words)
        choose = lambda *flags: NamedSharding(mesh, (*SPECS, P())[flags.index(True)])  # noqa: E731
        return jax.tree.map(choose, *masks)

    values = jax.device_put(values, sharded(values))
    state = jax.jit(tx.init, out_shardings=sharded(jax.eval_shape(tx.init, values)))(values)

    def step(values: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(lambda p: loss_of(parts_of(p)))(values)
        updates, state = tx.update(grads, state, values)
        return loss, optax.apply_updates(values, updates), state

    losses, values, state = loop(step, values, state)
    assert stand_ins.get_count(state) == STEPS
    np.testing.assert_array_equal(values.pop("frozen")["kernel"], 1.0)
    assert_trained(losses, parts_of(values), state, values)
