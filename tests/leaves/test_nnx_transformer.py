"""A new user: a language model as Flax's documentation builds it in NNX, `nnx.Optimizer` with Muon, and no layout."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gradkit as gk
from gradkit.leaves import Axes

L, E, H, F, V, T = 2, 16, 2, 32, 12, 8
FORMS = ("list", "stacked", "stacked along axis 1")


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.mha = nnx.MultiHeadAttention(num_heads=H, in_features=E, decode=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.layer_norm1, self.layer_norm2 = nnx.LayerNorm(E, rngs=rngs), nnx.LayerNorm(E, rngs=rngs)
        self.linear1, self.linear2 = nnx.Linear(E, F, rngs=rngs), nnx.Linear(F, E, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.layer_norm1(x + self.mha(x, mask=nnx.make_causal_mask(jnp.zeros((1, T)))))
        return self.layer_norm2(x + self.dropout(self.linear2(nnx.relu(self.linear1(x)))))


class Embedding(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.token_emb, self.pos_emb = nnx.Embed(V, E, rngs=rngs), nnx.Embed(T, E, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.token_emb(tokens) + self.pos_emb(jnp.arange(T))[None]


class MiniGPT(nnx.Module):
    def __init__(self, form: str, rngs: nnx.Rngs) -> None:
        self.embedding_layer = Embedding(rngs)
        self.axes = nnx.StateAxes({nnx.Param: FORMS.index(form) - 1, ...: 0})
        if form == "list":
            self.transformer_blocks = nnx.List([Block(rngs) for _ in range(L)])
        else:
            self.transformer_blocks = nnx.split_rngs(splits=L)(nnx.vmap(Block, out_axes=self.axes))(rngs)
        self.output_layer = nnx.Linear(E, V, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embedding_layer(tokens)
        if isinstance(self.transformer_blocks, nnx.List):
            for block in self.transformer_blocks:
                x = block(x)
        else:
            call = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, self.axes), out_axes=nnx.Carry)
            x = call(x, self.transformer_blocks)
        return self.output_layer(x)


def own_name(name: str) -> str:
    """The name in one layer, without the number of the layer."""
    return "/".join(piece for piece in name.split("/") if not piece.isdigit())


def wanted(name: str, shift: int | None) -> Axes:
    """What a leaf means; `shift` is the axis of its stack, None without."""
    if name.startswith("embedding_layer"):
        return Axes("embedding", (), (0,), (1,))
    if name.startswith("output_layer"):
        return Axes("head", (), (0,), (1,))
    last = name.removeprefix("transformer_blocks/")
    heads = last.split("/")[-2] in ("query", "key", "value")
    if last.endswith("kernel"):
        inputs, outputs = ((0, 1), (2,)) if last == "mha/out/kernel" else ((0,), (1, 2) if heads else (1,))
    else:
        inputs, outputs = (), ((0, 1) if heads else (0,))
    own = lambda axes: tuple(a if shift is None or a < shift else a + 1 for a in axes)  # noqa: E731
    role = "matrix" if inputs else "vector"
    return Axes(role, () if shift is None else (shift,), own(inputs), own(outputs))


@pytest.mark.parametrize("form", FORMS)
def test_every_leaf_is_what_it_is(form: str) -> None:
    """Role, stack, inputs and outputs; and `describe` shows it, of the model as of its parameters."""
    model = nnx.eval_shape(lambda: MiniGPT(form, nnx.Rngs(0)))
    params, tx = nnx.state(model, nnx.Param), gk.muon(0.02, adam_learning_rate=3e-4)
    layout = gk.leaves.infer_layout(params)
    rows = gk.leaves.describe(tx, model).rows
    assert rows == gk.leaves.describe(tx, params).rows
    assert [row.name for row in rows] == gk.leaves.names(params)
    for row in rows:
        stacked = form != "list" and row.name.startswith("transformer_blocks")
        want = wanted(own_name(row.name), FORMS.index(form) - 1 if stacked else None)
        assert layout(row.name, row.shape) == want, row
        method = "muon" if want.role == "matrix" else "adamw"
        assert (row.role, row.stack, row.method) == (want.role, want.stack, method)


def numbers(model: MiniGPT) -> dict[str, np.ndarray]:
    """The parameters by the names that they have in a list of layers."""
    params, out = nnx.state(model, nnx.Param), {}
    for name, x in zip(gk.leaves.names(params), map(np.asarray, jax.tree.leaves(params)), strict=True):
        first, _, rest = name.partition("/")
        if first == "transformer_blocks" and not rest[0].isdigit():
            axis = int(model.axes[nnx.Param])
            out |= {f"{first}/{i}/{rest}": np.take(x, i, axis) for i in range(L)}
        else:
            out[name] = x
    return out


@functools.cache
def trained(form: str) -> tuple[list[float], dict[str, np.ndarray]]:
    """The losses of three steps, and the parameters after them; every form begins with the same numbers."""
    model = MiniGPT(form, nnx.Rngs(0))
    model.eval()
    start = numbers(MiniGPT("list", nnx.Rngs(0)))
    params: Any = nnx.state(model, nnx.Param)
    leaves = []
    for name, x in zip(gk.leaves.names(params), jax.tree.leaves(params), strict=True):
        first, _, rest = name.partition("/")
        rows = [start[f"{first}/{i}/{rest}"] for i in range(L)] if name not in start else []
        leaves.append(jnp.asarray(np.stack(rows, int(model.axes[nnx.Param])) if rows else start[name], x.dtype))
    nnx.update(model, jax.tree.structure(params).unflatten(leaves))
    # Keys have no gradient of their bias but roundings, which a small eps would blow up.
    optimizer = nnx.Optimizer(model, gk.muon(0.02, adam_learning_rate=0.02, adam_eps=1e-2), wrt=nnx.Param)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, V, (4, T + 1)))

    def loss_fn(model: MiniGPT) -> jax.Array:
        scores = jax.nn.log_softmax(model(tokens[:, :-1]))
        return -jnp.mean(jnp.sum(scores * jax.nn.one_hot(tokens[:, 1:], V), -1))

    @nnx.jit
    def step(model: MiniGPT, optimizer: nnx.Optimizer) -> jax.Array:
        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(3)]
    return losses, numbers(model)


@pytest.mark.parametrize("form", FORMS)
def test_it_trains_and_a_stack_trains_as_its_layers(form: str) -> None:
    losses, got = trained(form)
    assert losses[0] > losses[1] > losses[2]
    for name, want in trained("list")[1].items():
        # Newton-Schulz magnifies a rounding by up to 3.4445^5, three updates are of 0.02 times a norm of 1.
        np.testing.assert_allclose(got[name], want, atol=3 * 0.02 * 3.4445**5 * 2**-24 * 4, err_msg=name)
