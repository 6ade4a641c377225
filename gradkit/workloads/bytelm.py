"""A byte-level language model on text that ships with CPython: the reference prose of `pydoc_data.topics`.

A transformer of two pre-norm layers, width 64, four heads, context 32. The layers are scanned, so their
parameters are under `ScanBlock_0` with a leading layer axis: a method that takes norms per tensor has to
know which axes are stacks. The text differs a little between versions of Python; the vocabulary is
derived from it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from gradkit.workloads.networks import apply, indices, initializer
from gradkit.workloads.workload import Workload

WIDTH, LAYERS, HEADS, CONTEXT = 64, 2, 4, 32
HELD_OUT_WINDOWS = 256


class Text(NamedTuple):
    """Bytes as indices into the vocabulary; the last twentieth is held out."""

    train: jax.Array
    held_out: jax.Array
    vocabulary: int


@functools.cache
def load_text() -> Text:
    """All topics in alphabetical order, joined by newlines."""
    from pydoc_data import topics

    return text_of("\n".join(topics.topics[name] for name in sorted(topics.topics)).encode(), jnp.int32)


def text_of(raw: bytes, dtype: Any = jnp.uint8) -> Text:
    """A text as indices into its own vocabulary."""
    present = np.bincount(np.frombuffer(raw, np.uint8), minlength=256) > 0
    indices = (np.cumsum(present) - 1).astype(np.uint8)[np.frombuffer(raw, np.uint8)]
    train, held_out = np.split(indices, [len(indices) * 95 // 100])
    return Text(jnp.asarray(train, dtype), jnp.asarray(held_out, dtype), int(present.sum()))


class Block(nn.Module):
    """One layer: causal self-attention, then a gelu MLP of four times the width, each on a normalised input.

    Attributes:
      width: features of every position.
      heads: of the attention; divides the width.
    """

    width: int = WIDTH
    heads: int = HEADS

    @nn.compact
    def __call__(self, h: jax.Array, _: None) -> tuple[jax.Array, None]:
        x = nn.RMSNorm()(h)
        # (batch, time, width) -> (batch, time, heads, width / heads)
        query, key, value = (
            nn.Dense(self.width, use_bias=False, name=name)(x).reshape(*h.shape[:-1], self.heads, -1)
            for name in ("query", "key", "value")
        )
        attended = jax.nn.dot_product_attention(query, key, value, is_causal=True).reshape(h.shape)
        h = h + nn.Dense(self.width, use_bias=False, name="out")(attended)
        x = nn.Dense(4 * self.width, use_bias=False, name="up")(nn.RMSNorm()(h))
        return h + nn.Dense(self.width, use_bias=False, name="down")(nn.gelu(x)), None


class ByteLM(nn.Module):
    """Tokens (batch, context) -> logits of the next byte.

    Attributes:
      vocabulary: how many bytes there are.
      width: features of every position.
      heads: of the attention; divides the width.
      readout: what the input of the head is multiplied by.
    """

    vocabulary: int
    width: int = WIDTH
    heads: int = HEADS
    readout: float = 1.0

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        position = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        h = nn.Embed(self.vocabulary, self.width, name="tokens")(tokens)
        h = h + nn.Embed(CONTEXT, self.width, name="positions")(position)[None]
        layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
        h, _ = layers(self.width, self.heads)(h, None)
        h = nn.RMSNorm()(h)
        return nn.Dense(self.vocabulary, use_bias=False, name="head")(h if self.readout == 1 else self.readout * h)


def bytelm(*, batch_size: int = 16, width: int = WIDTH, readout: float = 1.0) -> Workload:
    """The language model; batches are windows at random places of the training text.

    Args:
      batch_size: windows in a minibatch.
      width: features of every position, a multiple of the size of a head, which stays the same.
      readout: what the input of the head is multiplied by, as `gk.mup_multipliers` has it.
    """
    description = f"byte-level transformer, {LAYERS} scanned layers of width {width}, batch {batch_size} x {CONTEXT}"
    return language_model(load_text(), "bytelm", description, 1.8, batch_size=batch_size, width=width, readout=readout)


def language_model(
    text: Text,
    name: str,
    description: str,
    target: float,
    *,
    batch_size: int,
    width: int = WIDTH,
    readout: float = 1.0,
) -> Workload:
    """The language model on a text; see `bytelm`."""
    network = ByteLM(text.vocabulary, width, width * HEADS // WIDTH, readout)

    def windows(data: jax.Array, starts: jax.Array) -> jax.Array:
        cut = jax.vmap(lambda start: jax.lax.dynamic_slice(data, (start,), (CONTEXT + 1,)))(starts)
        return cut.astype(jnp.int32)

    stride = (len(text.held_out) - CONTEXT - 1) // HELD_OUT_WINDOWS
    held_out = windows(text.held_out, stride * jnp.arange(HELD_OUT_WINDOWS, dtype=jnp.int32))

    def batch(key: jax.Array) -> jax.Array:
        return windows(text.train, indices(key, batch_size, len(text.train) - CONTEXT))

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        logits = apply(network, params, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def predictions(tokens: jax.Array) -> tuple[Callable[[Any], jax.Array], jax.Array]:
        # Every position is an example.
        inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
        return lambda params: apply(network, params, inputs).reshape(targets.size, -1), targets

    return Workload(
        name=name,
        description=description,
        init=initializer(network, held_out[:1, :-1], gain=1.0),
        batch=batch,
        loss=loss,
        metric=lambda params: loss(params, held_out),
        metric_name="held-out loss (nats per byte)",
        target=target,
        budget_steps=1000,
        eval_every=25,
        separable=2.0,
        batch_size=batch_size,
        predictions=predictions,
    )
