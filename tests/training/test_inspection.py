"""`gradkit inspect`: every method of the catalogue, with the bytes and collectives that its card promises."""

import json

import jax
import jax.numpy as jnp
import optax
import pytest

import gradkit as gk
from gradkit import catalogue
from gradkit.catalogue import Card
from gradkit.cli import main
from gradkit.parallel import make_mesh
from gradkit.training import inspect
from gradkit.workloads import load
from gradkit.workloads.workload import Workload
from tests.contract.methods import make

pytestmark = pytest.mark.slow

# 8 x 16 + 16 numbers, of which every device of eight holds an eighth.
TINY = Workload(
    name="tiny",
    description="a linear map",
    init=lambda key: {"kernel": jnp.ones((8, 16), jnp.float32), "bias": jnp.zeros((16,), jnp.float32)},
    batch=lambda key: jax.random.normal(key, (16, 8), jnp.float32),
    loss=lambda params, x: jnp.mean((x @ params["kernel"] + params["bias"][None]) ** 2),
    metric=lambda params: jnp.sum(params["bias"]),
    metric_name="nothing",
    target=0.0,
    budget_steps=1,
    eval_every=1,
    separable=1.0,
    batch_size=16,
)
# What a method evaluates anew has collectives of its own: those of the loss.
LOSSES = {"value_fn", "grad_fn", "value_and_grad_fn", "residual_fn"}
KINDS = {"none": set(), "norms": {"all-reduce"}, "gramian": {"all-reduce"}}


@pytest.mark.parametrize("card", catalogue.cards().values(), ids=catalogue.cards())
def test_every_method_can_be_inspected(card: Card) -> None:
    mesh = make_mesh("replica=2,fsdp=4" if card.form in ("strategy", "exchange") else "fsdp=8")
    found = inspect(card, TINY, mesh=mesh)
    assert found.parameters == 144
    if card.form not in ("schedule", "rule", "diagnostic"):
        assert found.parameter_bytes == 4 * 144 / mesh.shape["fsdp"]
    if card.is_link:
        state = jax.tree.leaves(jax.eval_shape(make(card).init, {"kernel": jnp.ones((8, 16)), "bias": jnp.zeros(16)}))
        # Matrices of one axis, or of a low rank, are counted by their sides and not by the words of a parameter.
        by_sides = any(x.size > 24 and x.shape[-2:] != (8, 16) and x.shape[-1:] != (16,) for x in state) or any(
            x.shape == (16, 16) for x in state
        )
        if by_sides or {"inspect", "map_params"} & set(card.opt_outs):
            # A device has that of one device, or a share of it.
            whole = sum(x.size * x.dtype.itemsize for x in state)
            # On a mesh every stack counts its own failures: at most two counters here instead of one.
            assert whole / 8 <= found.state_bytes <= whole + 4
        else:
            # Words of state per parameter, and what is not counted in them: counters, scalars, one number per block.
            beyond = found.state_bytes - card.words * found.parameter_bytes
            assert 0 <= beyond <= 4 * (16 + 8 + 24)
        if not LOSSES & set(card.needs):
            assert set(found.collectives) <= KINDS.get(card.collectives, set(found.collectives))


def test_table_and_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["gradkit", "inspect", "gk.adamw", "--mesh=data=2,fsdp=4", "--workload=digits_mlp"]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mesh"] == {"data": 2, "fsdp": 4}
    params = jax.eval_shape(load("digits_mlp").init, jax.random.key(0))
    # All but the ten biases of the head, which four devices do not divide.
    assert found["parameters"] == sum(x.size for x in jax.tree.leaves(params))
    assert found["parameter_bytes"] == found["parameters"] - 10 + 4 * 10
    assert f"{found['state_bytes']:,} bytes" in table and f"{found['flops']:,.0f}" in table
    assert found["collectives"] == {} and "collectives  none" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "inspect takes the name of a method first"),
        (["adamv"], "did you mean adam or nadam or adamw"),
        (["adamw", "--mesh=fsdp=-1"], "mesh must give every length"),
        (["adamw", "--mesh=fsdp=64"], "devices=64 must be set before"),
        (["adamw", "--mesh=foo=2"], "an axis of mesh must be one of 'replica', 'data', 'fsdp', 'tensor', got 'foo'"),
        (["nowhere.py", "--mesh=fspd=2"], "there is no file nowhere.py"),
        (["adamw", "--probes=2"], "--probes is of the Hessian of a loss: add --curvature"),
        (["diloco"], "the mesh must have an axis replica"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gradkit", "inspect", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_chain_that_begins_with_an_aggregator_is_inspected_with_several_gradients() -> None:
    """With Adam behind it: the inner products of four gradients are summed over devices, and nothing is gathered."""
    tx = optax.chain(gk.aggregation.upgrad(), gk.adam(0.1))
    found = inspect(tx, TINY, mesh=make_mesh("fsdp=8"))
    assert found.program == "the update of all parameters, from 4 gradients"
    assert set(found.collectives) == {"all-reduce"}
    # 16 numbers, and whatever is packed with them; not a gradient, of which a device holds 72 bytes or more.
    assert found.collectives["all-reduce"]["result_bytes"] <= 4 * 16 * 2
