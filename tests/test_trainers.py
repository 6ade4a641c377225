"""`experiments/trainers/`: what plugs a method into each trainer, called as the trainer calls it."""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import meta
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from tests import stand_ins
from tests.by_numpy import by_numpy
from tests.stand_ins import OptParam, TensorSpec, load, named

L, E, F, V = 3, 8, 12, 16
# What Muon has to be told for leaves that are no matrices.
RATE = {"adam_learning_rate": 0.1}


def draw(seed: int, *shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def one_update(tx: Any, params: Any, grads: Any) -> Any:
    """The first update, without `init` and `update` compiled."""
    return by_numpy(tx.update)(grads, by_numpy(tx.init)(params), params)[0]


def assert_layers_are_matrices(tx: Any, got: Any, params: Any, grads: Any) -> None:
    """Every layer of a stack got what it gets alone: kernels are orthogonal, so their singular values are equal.

    Args:
      tx: the method itself, for the layers alone.
      got: of kernel and scale, updates with the layers on axis 0.
      params: the parameters, in the same form.
      grads: the gradients, in the same form.
    """
    for i in range(L):
        own = {"up": {"kernel": params[0][i]}, "norm": {"scale": params[1][i]}}
        g = {"up": {"kernel": grads[0][i]}, "norm": {"scale": grads[1][i]}}
        want = one_update(tx, own, g)
        # float32: five products of matrices of 12, each with its sums rounded.
        np.testing.assert_allclose(got[0][i], want["up"]["kernel"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got[1][i], want["norm"]["scale"], rtol=1e-5, atol=1e-7)


def maxtext_config(**given: Any) -> Any:
    """What the plug-in reads of MaxText's configuration, with the defaults of `base.yml` or near them."""
    adam = {"adam_b1": 0.9, "adam_b2": 0.95, "adam_eps": 1e-8, "adam_eps_root": 0.0, "adam_weight_decay": 0.1}
    muon = {"muon_beta": 0.95, "muon_weight_decay": 0.1, "muon_consistent_rms": 0.2, "decoder_block": "llama2"}
    masks = {"adamw_mask": [], "trainable_parameters_mask": []}
    spikes = {"skip_step_on_spikes": False, "skip_step_interval": 128, "skip_step_scaling_factor": 6.0}
    rest = {"learning_rate": 0.1, "opt_type": "adamw", "mu_dtype": jnp.dtype("float32")}
    return types.SimpleNamespace(**{**adam, **muon, **masks, **spikes, **rest, **given})


def test_maxtext(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers along axis 1, boxes where the state is made and none later."""
    load(monkeypatch, "maxtext", {"maxtext.optimizers.optimizers": stand_ins.MaxText.module()})
    config = maxtext_config(opt_type="muon")
    _, tx = stand_ins.MaxText.create_training_optimizer(config, None)

    kernel, scale, table = draw(0, E, L, F), draw(1, E, L), draw(2, V, E)
    bare = {"decoder": {"layers": {"mlp": {"wi": {"kernel": kernel}}, "norm": {"scale": scale}}}}
    bare["token_embedder"] = {"embedding": table}
    wi = {"kernel": nn.LogicallyPartitioned(kernel, ("embed", "layers", "mlp"))}
    norm = {"scale": nn.LogicallyPartitioned(scale, ("norm", "layers"))}
    embedder = {"embedding": nn.LogicallyPartitioned(table, ("vocab", "embed"))}
    boxed = {"decoder": {"layers": {"mlp": {"wi": wi}, "norm": norm}}, "token_embedder": embedder}
    grads = jax.tree.map(lambda x: x[::-1] + 1, bare)

    specs = nn.get_partition_spec(jax.eval_shape(tx.init, boxed))
    assert P("embed", "layers", "mlp") in jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))
    got, _ = by_numpy(tx.update)(grads, meta.unbox(by_numpy(tx.init)(boxed)), bare)

    def layers(tree: Any) -> Any:
        own = tree["decoder"]["layers"]
        return jnp.moveaxis(own["mlp"]["wi"]["kernel"], 1, 0), jnp.moveaxis(own["norm"]["scale"], 1, 0)

    assert_layers_are_matrices(tx, layers(got), layers(bare), layers(grads))
    roles = {row.name: (row.role, row.method) for row in gk.leaves.describe(tx, bare).rows}
    assert roles["token_embedder/embedding"] == ("embedding", "adamw")
    assert roles["decoder/layers/mlp/wi/kernel"] == ("matrix", "muon")

    config.opt_type = "adamw"
    tx = stand_ins.MaxText.create_training_optimizer(config, None)[1]
    still = one_update(tx, bare, jax.tree.map(jnp.zeros_like, bare))
    assert not np.any(layers(still)[1]) and np.all(layers(still)[0])  # a scale does not decay
    config.opt_type = "sgd"
    state = stand_ins.MaxText.create_training_optimizer(config, None)[1].init(bare)
    assert len(jax.tree.leaves(state)) == 1  # MaxText's own


def test_maxtext_ignores_nothing_of_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, "maxtext", {"maxtext.optimizers.optimizers": stand_ins.MaxText.module()})
    params = {"up": {"kernel": draw(0, E, F)}, "norm": {"scale": draw(1, E)}, "head": {"kernel": draw(2, E, F)}}
    zeros = jax.tree.map(jnp.zeros_like, params)

    def moved(grads: Any, **given: Any) -> dict[str, bool]:
        tx = stand_ins.MaxText.create_training_optimizer(maxtext_config(**given), None)[1]
        return jax.tree.map(lambda x: bool(np.any(x)), one_update(tx, params, grads))

    decayed = {"up": {"kernel": True}, "norm": {"scale": False}, "head": {"kernel": True}}
    assert moved(zeros) == moved(zeros, opt_type="muon", adam_weight_decay=0.1) == decayed
    listed = {"up": {"kernel": False}, "norm": {"scale": True}, "head": {"kernel": True}}
    for opt_type in ("adamw", "muon"):
        assert moved(zeros, opt_type=opt_type, adamw_mask=["^up"]) == listed
        trained = moved(params, opt_type=opt_type, trainable_parameters_mask=["norm", "head/kernel$"])
        assert trained == {"up": {"kernel": False}, "norm": {"scale": True}, "head": {"kernel": True}}
    with pytest.raises(ValueError, match="norm"):
        moved(params, trainable_parameters_mask=["nrom"])
    for key, value in {"adam_eps_root": 1e-8, "muon_consistent_rms": 0.3}.items():
        with pytest.raises(ValueError, match=f"{key}={value}"):
            moved(params, opt_type="muon", **{key: value})
    ten = gk.muon(
        0.1, scale="match_rms_adamw", ns_steps=10, coefficients=[(3.4445, -4.775, 2.0315)] * 8 + [(2.0, -1.5, 0.5)] * 2
    )
    tx = stand_ins.MaxText.create_training_optimizer(
        maxtext_config(opt_type="muon", decoder_block="deepseek4", muon_weight_decay=0.0), None
    )[1]
    kernels = {"up": params["up"]}
    want = one_update(ten, kernels, kernels)["up"]["kernel"]
    np.testing.assert_allclose(one_update(tx, kernels, kernels)["up"]["kernel"], want, rtol=1e-6)


def test_levanter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named arrays with the layers in front; the rate is in the state."""
    choices: dict[str, type] = {}
    monkeypatch.setattr(stand_ins.OptimizerConfig, "choices", choices)
    load(monkeypatch, "levanter", {"levanter.optim.config": {"OptimizerConfig": stand_ins.OptimizerConfig}})
    config = choices["gradkit"](
        learning_rate=0.1, method="muon", max_grad_norm=None, arguments={"momentum": 0.9, "ns_steps": 5, **RATE}
    )
    assert dataclasses.is_dataclass(config) and isinstance(config, stand_ins.OptimizerConfig)
    tx = config.build(10)
    params = {
        "blocks": {
            "up": {"weight": named(draw(0, L, E, F), "layers", "embed", "mlp")},
            "norm": {"weight": named(draw(1, L, E), "layers", "embed")},
        },
        "embeddings": {"token_embeddings": {"weight": named(draw(2, V, E), "vocab", "embed")}},
    }
    grads = jax.tree.map(lambda x: x[::-1] + 1, params)
    state: Any = by_numpy(tx.init)(params)
    got, after = by_numpy(tx.update)(grads, state, params)
    assert set(state.hyperparams) == {"learning_rate"}
    np.testing.assert_allclose([state.hyperparams["learning_rate"]], 0.1, rtol=1e-6)
    assert jax.tree.structure(after) == jax.tree.structure(state)

    def layers(tree: Any) -> Any:
        return tree["blocks"]["up"]["weight"].array, tree["blocks"]["norm"]["weight"].array

    alone = gk.muon(0.1, **RATE, momentum=0.9, weight_decay=0.1, weight_decay_mask=gk.leaves.no_decay())
    assert_layers_are_matrices(alone, layers(got), layers(params), layers(grads))
    lamb = choices["gradkit"](learning_rate=0.1, method="lamb").build(10)
    jax.eval_shape(lambda p: lamb.update(p, lamb.init(p), p), params)


def test_levanter_masks_and_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks of the configuration take precedence; `loss` and `obj_fn` become what methods ask for."""
    choices: dict[str, type] = {}
    monkeypatch.setattr(stand_ins.OptimizerConfig, "choices", choices)
    load(monkeypatch, "levanter", {"levanter.optim.config": {"OptimizerConfig": stand_ins.OptimizerConfig}})
    params = {"up": {"weight": named(draw(0, E, F), "embed", "mlp")}, "norm": {"weight": named(draw(1, E), "embed")}}
    zeros = jax.tree.map(jnp.zeros_like, params)

    def decayed(**given: Any) -> list[bool]:
        tx = choices["gradkit"](learning_rate=0.1, method="adamw", **given).build(10)
        return [bool(np.any(x)) for x in jax.tree.leaves(one_update(tx, params, zeros))]  # norm, up

    assert decayed() == [False, True]
    assert decayed(weight_decay_modules=".*norm") == [True, False]
    assert decayed(default_weight_decay_mask=True) == [True, True]

    def loss(params: Any) -> jax.Array:
        return sum((jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(params)), jnp.zeros(()))

    grads = jax.grad(loss)(params)
    for method in ("sania_adagrad_sqr", "gradient_regularized_newton"):
        config = choices["gradkit"](method=method, weight_decay=0.0, max_grad_norm=None)
        step = functools.partial(stand_ins.take_train_step, config.build(10), obj_fun=loss, loss=loss(params))
        new, _, _ = by_numpy(step)(params, config.build(10).init(params), grads)
        with_names = {"value": loss(params), "value_fn": loss, "grad_fn": jax.grad(loss)}
        tx = getattr(gk, method)(6e-4)
        want, _ = by_numpy(functools.partial(tx.update, **with_names))(grads, tx.init(params), params)
        for got, old, update in zip(*map(jax.tree.leaves, (new, params, want)), strict=True):
            np.testing.assert_allclose(got, old + update, rtol=1e-6)
    for method in ("mars_exact", "sania", "sophia_h"):
        config = choices["gradkit"](method=method, weight_decay=0.0, max_grad_norm=None)
        step = functools.partial(stand_ins.take_train_step, config.build(10), obj_fun=loss, loss=loss(params))
        new, _, _ = jax.eval_shape(step, params, config.build(10).init(params), grads)
        assert jax.tree.structure(new) == jax.tree.structure(params)
    with pytest.raises(ValueError, match=r"sania has no weight decay.*0.1.*write weight_decay: 0"):
        choices["gradkit"](method="sania").build(10)


def test_easydel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The factory sets fields of the configuration, and puts decay and accumulation around."""
    eformer = stand_ins.EasyDeL()
    names = {"OptimizerBuilder": eformer.OptimizerBuilder, "register_optimizer": eformer.register_optimizer}
    load(monkeypatch, "easydel", {"eformer.optimizers": names})
    given = {"momentum": 0.9, "mu_dtype": "bfloat16", "scale": "match_rms_adamw", "unknown": 3}
    tx, _ = eformer.create("gradkit_muon", 0.1, weight_decay=0.1, clip_grad=None, **given)
    params = {"layers": {"0": {"mlp": {"kernel": draw(0, E, F)}, "norm": {"kernel": draw(1, E)}}}}
    grads = jax.tree.map(lambda x: x[::-1] + 1, params)
    got = one_update(tx, params, grads)
    own = gk.muon(0.1, momentum=0.9, scale="match_rms_adamw", mu_dtype=jnp.bfloat16)
    want = jax.tree.map(lambda u, p: u - 0.01 * p, one_update(own, params, grads), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, want)
    state = jax.eval_shape(tx.init, params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(state)]
    assert any(path.endswith("layers/0/mlp/kernel") for path in paths)
    multi, _ = eformer.create("gradkit_muon", 0.1, gradient_accumulation_steps=2, **RATE)
    with jax.numpy_dtype_promotion("standard"):  # optax's MultiSteps divides by an integer
        jax.eval_shape(lambda p: multi.update(p, multi.init(p), p), params)


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up, self.norm = nnx.Linear(E, F, rngs=rngs), nnx.LayerNorm(E, rngs=rngs)


class Model(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(V, E, rngs=rngs)
        self.blocks = nnx.split_rngs(splits=L)(nnx.vmap(Block))(rngs)


def test_tunix(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python and from a configuration; every leaf of the state is a Variable with an array."""
    plug = load(monkeypatch, "tunix", {})
    for name in gk.catalogue.cards("optimizer"):
        monkeypatch.setattr(optax, f"gradkit_{name}", None, raising=False)  # taken away after the test
    plug.add_to_optax()
    model = Model()
    trainer = stand_ins.PeftTrainer(model, plug.optimizer("muon", learning_rate=0.1, ns_steps=5, **RATE), None)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    grads = jax.tree.map(lambda x: x[::-1] + 1, nnx.state(model, nnx.Param))
    trainer.optimizer.update(model, grads)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    moved = jax.tree.map(lambda a, b: a - b, after, params)

    def layers(tree: Any) -> Any:
        return tree["blocks"]["up"]["kernel"], tree["blocks"]["norm"]["scale"]

    assert_layers_are_matrices(gk.muon(0.1, **RATE), layers(moved), layers(params), layers(nnx.to_pure_dict(grads)))
    config = {"opt_type": "GRADKIT_MUON", "learning_rate": 0.1, "ns_steps": 5, "schedule_type": None, **RATE}
    tx = stand_ins.create_optimizer(config)
    state: Any = jax.eval_shape(tx.init, params)
    assert state.hyperparams["learning_rate"].dtype == jnp.float32 and "ns_steps" not in state.hyperparams
    jax.eval_shape(tx.update, params, state, params)


@pytest.mark.parametrize("method", ["muon", "soap", "lamb"])
def test_axlearn(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Specifications of parameters in, of state out, and the state is made so."""
    names = {
        "axlearn.common.optimizer_base": {"OptStateSpec": TensorSpec},
        "axlearn.common.optimizers": {"with_partition_fn": stand_ins.with_partition_fn},
        "axlearn.common.schedule": {"as_schedule_fn": stand_ins.as_schedule_fn},
    }
    plug = load(monkeypatch, "axlearn", names)
    rates: list[Any] = []

    def schedule(step: Any) -> Any:
        rates.append(step)
        return 0.1 / jnp.asarray(step, jnp.float32)

    given = {"scale": "match_rms_adamw"} if method == "muon" else {}
    tx = plug.gradkit_optimizer(schedule, method=method, arguments=given)
    values = {"decoder": {"layer": {"up": {"weight": draw(0, L, E, F), "bias": draw(1, L, F)}}}}
    params = jax.tree.map(OptParam, values)
    axes = {"weight": (None, "fsdp", "model"), "bias": (None, "model")}
    specs = {
        "decoder": {
            "layer": {
                "up": {k: TensorSpec(x.shape, None, axes[k]) for k, x in values["decoder"]["layer"]["up"].items()}
            }
        }
    }
    state = jax.eval_shape(lambda v: tx.init(jax.tree.map(OptParam, v)), values)
    found = tx.partition(specs)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True))
    assert all(tuple(spec.shape) == x.shape and spec.dtype == x.dtype for spec, x in pairs)
    assert all(len(spec.mesh_axes) <= x.ndim for spec, x in pairs)
    of_weight = [spec.mesh_axes for spec, x in pairs if x.shape == (L, E, F)]
    assert of_weight and set(of_weight) == {P(None, "fsdp", "model")}
    mesh = jax.make_mesh((2, 2), ("fsdp", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    out = jax.tree.map(lambda spec: NamedSharding(mesh, spec.mesh_axes), found)
    jax.eval_shape(jax.jit(lambda v: tx.init(jax.tree.map(OptParam, v)), out_shardings=out), values)

    updates, _ = tx.update(values, by_numpy(lambda v: tx.init(jax.tree.map(OptParam, v)))(values), params)
    want = one_update(getattr(gk, method)(0.1, **given), values, values)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), updates, want)
    assert {float(step) for step in rates if not isinstance(step, jax.core.Tracer)} == {1.0}


def test_big_vision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A direction: rate, decay, schedule and sign are the trainer's."""
    monkeypatch.setattr(optax, "gradkit", None, raising=False)
    load(monkeypatch, "big_vision", {})
    params = {
        "Transformer": {
            "encoderblock": {"Dense_0": {"kernel": draw(0, L, E, F)}, "LayerNorm_0": {"scale": draw(1, L, E)}}
        }
    }
    grads = jax.tree.map(lambda x: x[::-1] + 1, params)
    config = types.SimpleNamespace(
        optax_name="gradkit.muon", optax={"momentum": 0.9, "adam_learning_rate": 1.0}, lr=0.1, wd=0.01
    )
    config.schedule, config.wd_mults = [(".*", {"end": 0.0})], [(".*/kernel$", 1.0)]
    tx, _ = stand_ins.big_vision_make(config, params, sched_kw={"total_steps": 10})
    got = one_update(tx, params, grads)

    def layers(tree: Any) -> Any:
        own = tree["Transformer"]["encoderblock"]
        return own["Dense_0"]["kernel"], own["LayerNorm_0"]["scale"]

    mask = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)  # noqa: E731
    want = optax.chain(gk.muon(0.1, momentum=0.9, **RATE), optax.add_decayed_weights(-0.01, mask))
    assert_layers_are_matrices(want, layers(got), layers(params), layers(grads))
    config.optax_name, config.optax = "gradkit.scale_by_lion", {"b1": 0.5}
    lion = one_update(stand_ins.big_vision_make(config, params, sched_kw={"total_steps": 10})[0], params, grads)
    scale = layers(lion)[1]
    np.testing.assert_allclose(scale, -0.1 * np.sign(layers(grads)[1]), rtol=1e-6)


@pytest.mark.parametrize("path", sorted(stand_ins.FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_every_trainer_is_tested(path: Any) -> None:
    assert f"test_{path.stem}" in globals()
