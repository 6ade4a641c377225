"""Names, selectors, masks, groups and the table."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import gradkit as gk
from gradkit.leaves import by_dtype, by_path, by_rank, by_role, by_shape, everything, names, resolve_mask
from tests.contract.methods import other_trees

PARAMS = {
    "embed": {"embedding": jnp.zeros((50, 8))},
    "ScanBlock_0": {"attention": {"query": {"kernel": jnp.zeros((3, 8, 2, 4))}}, "norm": {"scale": jnp.zeros((3, 8))}},
    "Conv_0": {"kernel": jnp.zeros((3, 3, 4, 8), jnp.bfloat16)},
    "lm_head": {"kernel": jnp.zeros((8, 50))},
    "temperature": jnp.zeros(()),
}


def chosen(selector: gk.leaves.Selector) -> list[str]:
    return [name for name, on in zip(names(PARAMS), jax.tree.leaves(selector(PARAMS)), strict=True) if on]


def test_selectors() -> None:
    assert chosen(by_path(r".*kernel")) == ["Conv_0/kernel", "ScanBlock_0/attention/query/kernel", "lm_head/kernel"]
    assert chosen(by_path(r"kernel")) == []  # the whole name
    assert chosen(by_role("embedding", "head")) == ["embed/embedding", "lm_head/kernel"]
    assert chosen(by_rank(at_most=1)) == ["ScanBlock_0/norm/scale", "temperature"]  # a stack of vectors is vectors
    assert chosen(by_rank(3, 3)) == ["ScanBlock_0/attention/query/kernel"]
    assert chosen(by_shape((8, 50))) == ["lm_head/kernel"]
    assert chosen(by_shape(lambda shape: 50 in shape)) == ["embed/embedding", "lm_head/kernel"]
    assert chosen(by_dtype(jnp.bfloat16)) == ["Conv_0/kernel"]
    assert len(chosen(by_dtype(jnp.floating))) == len(chosen(everything())) == 6
    both = by_path(r".*kernel") & ~by_role("head") | by_rank(0, 0)
    assert chosen(both) == ["Conv_0/kernel", "ScanBlock_0/attention/query/kernel", "temperature"]
    assert both.text == "((by_path('.*kernel') & ~by_role('head',)) | by_rank(0, 0))"


def test_selectors_go_wherever_optax_takes_a_mask() -> None:
    tx = optax.masked(optax.set_to_zero(), by_path("a"))
    x = {"a": jnp.ones(2), "b": jnp.ones(2)}
    updates, _ = tx.update(x, tx.init(x), x)
    assert not updates["a"].any() and updates["b"].all()


def test_names_are_the_same_for_every_container_and_at_init_and_update() -> None:
    trees = other_trees()
    assert (
        names(trees["nnx.State of Variables"]) == names(trees["nnx.State of arrays"]) == ["layer/bias", "layer/kernel"]
    )
    assert names(trees["NamedTuple"]) == names(trees["dataclass"]) == ["w", "b"]
    assert names(trees["list in dict"]) == ["x/0", "x/1/y"]
    assert names(trees["None leaves"]) == ["b", "c/w"]

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return linen.Dense(2)(x)

    assert names(Net().init(jax.random.key(0), jnp.ones((1, 3)))["params"]) == ["Dense_0/bias", "Dense_0/kernel"]


def test_group_labels_agree_at_init_and_update_under_nnx() -> None:
    """nnx.Optimizer hands Variables to init and arrays to update: a rule anchored at the end matches both times."""
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    tx = gk.leaves.groups([(by_path("bias"), optax.set_to_zero())], default=gk.sgd(1.0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    after = nnx.to_pure_dict(nnx.state(model))
    np.testing.assert_array_equal(after["bias"], before["bias"])
    np.testing.assert_allclose(after["kernel"], before["kernel"] - 1, rtol=1e-6)


def test_groups_first_match_wins() -> None:
    tx = gk.leaves.groups([(by_path("a|b"), gk.sgd(1.0)), (by_path("b|c"), gk.sgd(2.0))], default=gk.sgd(3.0))
    x = {name: jnp.ones(1) for name in "abcd"}
    updates, _ = tx.update(x, tx.init(x), x)
    assert {name: float(u[0]) for name, u in updates.items()} == {"a": -1, "b": -1, "c": -2, "d": -3}


def test_groups_fail_on_a_rule_that_matches_nothing() -> None:
    tx = gk.leaves.groups([(by_path("lm_hed/kernel"), gk.sgd(1.0))], default=gk.sgd(1.0))
    with pytest.raises(ValueError, match=r"by_path\('lm_hed/kernel'\) decides no leaf; did you mean 'lm_head/kernel'"):
        tx.init(PARAMS)
    shadowed = gk.leaves.groups([(everything(), gk.sgd(1.0)), (by_role("head"), gk.sgd(1.0))])
    with pytest.raises(ValueError, match="decides no leaf"):
        shadowed.init(PARAMS)


def test_groups_fail_on_a_leaf_that_nothing_matches() -> None:
    tx = gk.leaves.groups([(by_role("matrix"), gk.sgd(1.0))])
    with pytest.raises(ValueError, match="no rule matches the leaf 'Conv_0/kernel' and there is no default"):
        tx.init(PARAMS)


def test_masks() -> None:
    x = {"a": jnp.ones(2), "b": {"c": jnp.ones(1), "d": jnp.ones(3)}}
    everywhere = {"a": True, "b": {"c": True, "d": True}}
    assert resolve_mask(None, x) == resolve_mask(True, x) == resolve_mask(everything(), x) == everywhere
    assert resolve_mask({"a": True, "b": False}, x) == {"a": True, "b": {"c": False, "d": False}}  # a prefix
    assert resolve_mask(lambda tree: jax.tree.map(lambda v: v.size > 1, tree), x)["b"] == {"c": False, "d": True}
    with pytest.raises(ValueError, match="structure"):
        resolve_mask({"a": True}, x)
    with pytest.raises(ValueError, match="True or False, got 1"):
        resolve_mask({"a": 1, "b": 0}, x)


def test_description() -> None:
    no_decay = gk.leaves.by_rank(2)
    tx = gk.leaves.groups(
        [(by_role("embedding"), gk.sgd(0.1)), (by_role("head"), optax.adam(1e-3))],
        default=gk.lion(optax.constant_schedule(1e-4), weight_decay=0.1, weight_decay_mask=no_decay),
    )
    table = gk.leaves.describe(tx, PARAMS)
    rows = {row.name: row for row in table.rows}
    assert rows["embed/embedding"][4:8] == ("sgd", "0.1", "0", 0)
    assert rows["lm_head/kernel"].state_bytes == 2 * 4 * 400
    assert rows["ScanBlock_0/norm/scale"][2:7] == ("vector", (0,), "lion", "schedule", "-")
    assert rows["Conv_0/kernel"][4:8] == ("lion", "schedule", "0.1", 4 * 288)  # float32 momentum for bfloat16
    state = jax.eval_shape(tx.init, PARAMS)
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert sum(row.state_bytes for row in table.rows) + table.shared_bytes == total
    assert str(table).splitlines()[-1].split() == ["total", f"{total:,}"]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    assert gk.leaves.describe(tx, shapes) == table


def test_bad_selectors() -> None:
    with pytest.raises(ValueError, match="not a regular expression"):
        by_path("(")
    with pytest.raises(ValueError, match="did you mean 'matrix'"):
        by_role("matrx")
    with pytest.raises(ValueError, match="rules must be pairs"):
        gk.leaves.groups([by_path("a")])  # pyright: ignore[reportArgumentType]
