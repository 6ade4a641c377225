"""Methods read one decision for the whole tree, whatever part of it they see and in whatever boxes it comes."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx, serialization

import gradkit as gk
from gradkit.diagnostics import metrics
from gradkit.engine.core import transformation
from gradkit.leaves import resolve_layout
from gradkit.leaves.keeping import Kept, LayoutState, has_kept, without_kept
from tests.papers.replay import normal

LAYERS, D, H, K, F = 3, 8, 2, 4, 12
BLOCK = {
    "norm/scale": (D,),
    "attn/query/kernel": (D, H, K),
    "attn/query/bias": (H, K),
    "attn/out/kernel": (H, K, D),
    "up/kernel": (D, F),
    "up/bias": (F,),
    "down/kernel": (F, D),
}
NAMES = {
    "norm/scale": ("embed",),
    "attn/query/kernel": ("embed", "heads", "kv"),
    "attn/query/bias": ("heads", "kv"),
    "attn/out/kernel": ("heads", "kv", "embed"),
    "up/kernel": ("embed", "mlp"),
    "up/bias": ("mlp",),
    "down/kernel": ("mlp", "embed"),
}
METHODS = {
    "lamb": lambda: gk.lamb(0.1),
    "lars": lambda: gk.lars(0.1),
    "muon": lambda: gk.muon(0.1, adam_learning_rate=0.1),
    "shampoo": lambda: gk.shampoo(0.1),
    "soap": lambda: gk.soap(0.1, update_interval=1),
    "clip": lambda: gk.clip_by_block_norm(0.1),
}


def values(seed: int) -> dict[str, Any]:
    """Per leaf of the block its layers on axis 0, and the leaves outside."""
    out = {path: normal(100 * seed + i, LAYERS, *shape) for i, (path, shape) in enumerate(BLOCK.items())}
    outside = {"embed/embedding": (16, D), "final_norm/scale": (D,), "head/kernel": (D, 16)}
    return out | {path: normal(100 * seed + 50 + i, *shape) for i, (path, shape) in enumerate(outside.items())}


def nest(flat: dict[str, Any]) -> Any:
    tree: dict[str, Any] = {}
    for path, x in flat.items():
        *above, last = path.split("/")
        node = tree
        for piece in above:
            node = node.setdefault(piece, {})
        node[last] = x
    return tree


def stacked(flat: dict[str, Any], axis: int) -> dict[str, Any]:
    return {f"blocks/{k}" if k in BLOCK else k: jnp.moveaxis(x, 0, axis) if k in BLOCK else x for k, x in flat.items()}


def boxed(flat: dict[str, Any], axis: int) -> Any:
    def box(k: str, x: jax.Array) -> Any:
        own = list(NAMES.get(k.removeprefix("blocks/"), (None,) * x.ndim))
        if k.startswith("blocks/"):
            own.insert(axis, "layers")
        return nn.LogicallyPartitioned(x, tuple(own))

    return nest({k: box(k, x) for k, x in stacked(flat, axis).items()})


FORMS: dict[str, Any] = {
    "axis 0": lambda flat: nest(stacked(flat, 0)),
    "axis 1": lambda flat: nest(stacked(flat, 1)),
    "boxes": lambda flat: boxed(flat, 0),
    "boxes, axis 1": lambda flat: boxed(flat, 1),
    "Variables": lambda flat: nest({k: nnx.Param(x) for k, x in stacked(flat, 0).items()}),
    "scanned": lambda flat: nest(
        {f"ScanBlock_0/{k}" if k in BLOCK else k: x for k, x in flat.items()},
    ),
}


def steps(tx: Any, x: Any, gradients: list[Any]) -> list[np.ndarray]:
    """What a method does to each leaf, with the layers on axis 0, after some steps, in the order of `values`."""
    state, u = tx.init(x), None
    for g in gradients:
        u, state = jax.jit(tx.update)(g, state, x)
    known = dict(zip(gk.leaves.names(u), jax.tree.leaves(u), strict=True))
    out = []
    for path in values(0):
        found = [v for k, v in known.items() if k == path or k.endswith(f"/{path}")]
        if len(found) == LAYERS:
            found = [np.stack(found)]
        got = np.asarray(found[0])
        if path in BLOCK and got.shape != (LAYERS, *BLOCK[path]):
            got = np.moveaxis(got, 1, 0)
        out.append(got)
    return out


def apart(flat: dict[str, Any]) -> Any:
    layers = {f"blocks_{i}/{k}": flat[k][i] for k in BLOCK for i in range(LAYERS)}
    return nest(layers | {k: x for k, x in flat.items() if k not in BLOCK})


SLOW = ("shampoo", "soap")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in METHODS])
def test_stacked_layers_get_the_updates_of_separate_ones(name: str, x64: None) -> None:
    flat, rows = values(0), [values(1), values(2)]
    want = steps(METHODS[name](), apart(flat), [apart(row) for row in rows])
    for form in FORMS.values():
        got = steps(METHODS[name](), form(flat), [form(row) for row in rows])
        for a, b, path in zip(got, want, flat, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9, err_msg=path)


def test_a_box_at_init_and_none_at_update_is_the_same(x64: None) -> None:
    """As trainers do that take the boxes off in between."""
    flat, g = values(0), values(1)
    for name in ("lamb", "muon", "shampoo"):
        tx = METHODS[name]()
        bare = nest(stacked(flat, 1))
        state = nn.meta.unbox(tx.init(boxed(flat, 1)))
        updates, _ = tx.update(nest(stacked(g, 1)), state, bare)
        want, _ = tx.update(nest(stacked(g, 1)), tx.init(bare), bare)
        jax.tree.map(np.testing.assert_array_equal, updates, want)


def test_names_seen_at_init_alone_are_kept_where_they_say_something_else(x64: None) -> None:
    x, g = normal(0, 4, 3, 5), normal(1, 4, 3, 5)
    named = {"mix": nn.LogicallyPartitioned(x, ("embed", "layers", "mlp"))}
    tx = gk.scale_by_trust_ratio()
    state: Any = tx.init(named)
    assert isinstance(state.metrics["trust_ratio"], Kept)
    got: Any = tx.update({"mix": g}, nn.meta.unbox(state), {"mix": x})
    updates, after = got
    assert jax.tree.structure(after) == jax.tree.structure(state)
    want = g * np.linalg.norm(x, axis=(0, 2), keepdims=True) / np.linalg.norm(g, axis=(0, 2), keepdims=True)
    np.testing.assert_allclose(updates["mix"], want, rtol=1e-12)
    assert not has_kept(gk.adam(0.1).init(named))
    assert not has_kept(tx.init({"blocks": {"kernel": nn.Partitioned(x, ("layers", "embed", "mlp"))}}))
    empty: Any = gk.centralize_gradients().init(named)
    assert isinstance(empty, LayoutState) and isinstance(empty.unused, Kept)  # it has no number but for this


@pytest.mark.parametrize("name", ["centralize_gradients", "limit_norm_growth", "scale_by_auon"])
def test_a_link_without_a_number_is_mapped_like_any_other(name: str) -> None:
    """With and without a decision in it, alone and in a chain; and it goes through an update as it is."""
    shape = jax.ShapeDtypeStruct((4, 3, 6), np.float32)
    trees = (
        {"mix": {"kernel": nn.LogicallyPartitioned(shape, ("embed", "layers", "mlp"))}},
        {"mix": {"kernel": shape}},
    )
    for tx in (getattr(gk, name)(), optax.chain(getattr(gk, name)(), optax.trace(0.9))):
        for params in trees:
            state = nn.meta.unbox(jax.eval_shape(tx.init, params))
            mapped = optax.tree.map_params(tx, lambda _: 1, state, transform_non_params=lambda _: 0)
            assert set(jax.tree.leaves(mapped)) <= {0, 1}
            _, after = jax.eval_shape(tx.update, trees[1], state, trees[1])
            assert jax.tree.structure(after) == jax.tree.structure(state)


def test_a_decision_that_is_kept_is_in_no_ones_way(x64: None) -> None:
    """Whoever reads, maps, writes or flattens the state has what is there without it."""
    x = normal(0, 4, 3, 5)
    named = {"mix": nn.LogicallyPartitioned(x, ("embed", "layers", "mlp"))}
    plain = {"mix": jnp.asarray(x)}
    for tx in (gk.lamb(0.1), gk.muon(0.1), optax.chain(gk.clip_by_global_norm(1.0), optax.masked(gk.lars(0.1), True))):
        state: Any = nn.meta.unbox(tx.init(named))
        want = tx.init({"scan": x})
        assert has_kept(state) and not has_kept(want)
        specs, bare = (
            optax.tree.map_params(
                tx,
                lambda x, spec: x if isinstance(x, optax.MaskedNode) else spec,
                own,
                {key: "spec"},
                transform_non_params=lambda _: "none",
                is_leaf=lambda x: isinstance(x, optax.MaskedNode),
            )
            for key, own in (("mix", state), ("scan", want))
        )
        assert jax.tree.leaves(specs) == jax.tree.leaves(bare)
        moved = jax.tree.map(lambda x: x + 1, state)
        read = serialization.from_bytes(state, serialization.to_bytes(moved))
        jax.tree.map(np.testing.assert_array_equal, read, moved)
        same = serialization.to_state_dict(without_kept(state))
        jax.tree.map(np.testing.assert_array_equal, serialization.to_state_dict(state), same)
        assert metrics(state) == metrics(without_kept(state))
        jax.tree.map(np.testing.assert_array_equal, tx.update(plain, read, plain), tx.update(plain, moved, plain))
    average = optax.chain(gk.lamb(0.1), gk.params_ema(0.9))
    state = average.init(named)
    _, state = average.update(plain, nn.meta.unbox(state), plain)
    assert has_kept(state)
    jax.tree.map(
        np.testing.assert_array_equal, gk.eval_params(state, plain), gk.eval_params(without_kept(state), plain)
    )


def test_of_two_decisions_each_link_reads_its_own(x64: None) -> None:
    """A link inside that sees leaves of other names than the link around it."""
    x, g = normal(0, 4, 3, 5), normal(1, 4, 3, 5)
    boxed = {"mix": nn.LogicallyPartitioned(x, ("embed", "layers", "mlp"))}
    inner = gk.scale_by_trust_ratio()

    def renamed(tree: Any) -> Any:
        return None if tree is None else {"inside": tree["mix"]}

    def update(u: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        u, state = inner.update(renamed(u), state, renamed(params), **extra)
        return {"mix": u["inside"]}, state

    def init(params: Any) -> Any:
        resolve_layout(None, params, method="outer")
        return inner.init(renamed(params))

    outer = transformation("outer", init, update)
    state: Any = outer.init(boxed)
    ratio = state.metrics["trust_ratio"]
    assert isinstance(ratio, Kept) and isinstance(ratio.state, Kept)
    updates, after = outer.update({"mix": g}, nn.meta.unbox(state), {"mix": x})
    assert jax.tree.structure(after) == jax.tree.structure(state)
    want, _ = inner.update({"mix": g}, nn.meta.unbox(inner.init(boxed)), {"mix": x})
    np.testing.assert_array_equal(updates["mix"], want["mix"])


def test_a_link_that_sees_a_part_reads_the_decision_for_all(x64: None) -> None:
    """The scale shows that the leading axis is a stack; the matrix method does not get it."""
    x = {"mix": {"scale": normal(0, 3, 8), "proj": {"kernel": normal(1, 3, 8, 8)}}}
    tx = gk.muon(0.1, adam_learning_rate=0.1)
    (row,) = [row for row in gk.leaves.describe(tx, x).rows if row.name == "mix/proj/kernel"]
    assert (row.role, row.stack) == ("matrix", (0,))
    u: Any = tx.update(x, tx.init(x), x)[0]
    for i in range(3):
        alone = {"mix": {"scale": x["mix"]["scale"][i], "proj": {"kernel": x["mix"]["proj"]["kernel"][i]}}}
        own: Any = tx.update(alone, tx.init(alone), alone)[0]
        np.testing.assert_allclose(u["mix"]["proj"]["kernel"][i], own["mix"]["proj"]["kernel"], rtol=1e-6)


def test_every_layout_is_none_by_default_and_can_be_injected() -> None:
    x = {"kernel": jnp.ones((4, 4))}
    for factory in (gk.lamb, gk.lars, gk.novograd, gk.adamp):
        tx = optax.inject_hyperparams(factory)(learning_rate=0.1)
        tx.update(x, tx.init(x), x)


def test_an_uncertain_leaf_is_warned_about_once() -> None:
    x = {"mix": jnp.ones((3, 4, 4)), "dense": {"kernel": jnp.ones((4, 4))}}
    for tx in (gk.muon(0.1, adam_learning_rate=0.1), gk.lamb(0.1), gk.shampoo(0.1)):
        with pytest.warns(gk.leaves.LayoutWarning, match=r"'mix'.*by_path|mix as matrix.*by_path\('mix'\)") as found:
            state = tx.init(x)
        assert len(found) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tx.update(x, state, x)
    declared = gk.leaves.layout((gk.leaves.by_path("mix"), {"stack": 1}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gk.muon(0.1, adam_learning_rate=0.1, layout=declared).init(x)
        gk.adam(0.1).init(x)
        gk.muon(0.1, adam_learning_rate=0.1).init(FORMS["axis 1"](values(0)))


def test_a_layout_that_is_no_function_is_refused() -> None:
    with pytest.raises(ValueError, match=r"f: layout must be a function .* got 3; write layout=gk.leaves.layout"):
        gk.leaves.resolve_layout(3, {}, method="f")  # pyright: ignore[reportArgumentType]
