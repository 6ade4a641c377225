"""The largest logits of an attention, head by head: what `gk.qk_clip` is handed, and the hook that records it."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.leaves import names
from gradkit.types import Scalar

NAME = "max_attention_logits"
PAPER = Paper("Kimi K2: Open Agentic Intelligence", "Kimi Team", 2025, "2507.20534")


def max_attention_logits(
    queries: jax.Array,
    keys: jax.Array,
    *,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    is_causal: bool = False,
    scale: Scalar | None = None,
) -> jax.Array:
    """The largest logit of every head, over batch and positions, before the softmax.

    Equations, of queries q and keys k with d features:

        S_h = max over examples b and positions i, j of  scale <q_bih, k_bjh> + bias_bhij         scale = 1 / sqrt(d)

    Masked pairs of positions do not count. Of grouped queries every query head has the key head of its group.

    Args:
      queries: (..., positions, heads, features).
      keys: (..., positions, heads or a divisor of them, features).
      bias: what is added to the logits, broadcast against (..., heads, positions, positions). Default None.
      mask: True where a query may look, broadcast likewise. Default None: everywhere.
      is_causal: whether a query looks at its own position and those before it alone. Default False.
      scale: what the products are multiplied by, > 0. Default None: 1 / sqrt(features).

    Returns:
      (heads,), in float32 or wider, without a derivative; minus infinity where all is masked. The product of queries
      and keys is computed once more: an attention that never holds it, as in `jax.nn.dot_product_attention`, shows no
      logits.

    Raises:
      ValueError: queries and keys that do not fit.

    Example:
      >>> q, k = jnp.ones((1, 3, 2, 4)), 2 * jnp.ones((1, 3, 2, 4))
      >>> max_attention_logits(q, k).tolist()  # 8 / sqrt(4)
      [4.0, 4.0]

    Reference: Kimi Team. Kimi K2: Open Agentic Intelligence. 2025, arXiv 2507.20534.
    """
    checks.arrays(queries=queries, keys=keys, bias=bias, mask=mask)
    checks.switch(is_causal=is_causal)
    checks.real("scale", scale, "(0, inf)", optional=True)
    heads, groups = queries.shape[-2], keys.shape[-2]
    if queries.shape[-1] != keys.shape[-1] or heads % groups:
        raise ValueError(
            "queries and keys must have as many features, and heads of the keys must divide those of the queries, got "
            f"shapes {queries.shape} and {keys.shape}"
        )
    dtype = wide_dtype(queries.dtype)
    q, k = (jax.lax.stop_gradient(x).astype(dtype) for x in (queries, keys))
    q = q * jnp.asarray(queries.shape[-1] ** -0.5 if scale is None else scale, dtype)
    k = jnp.repeat(k, heads // groups, axis=-2)
    logits = jnp.einsum("...qhd,...khd->...hqk", q, k)
    if bias is not None:
        logits = logits + jnp.broadcast_to(jax.lax.stop_gradient(bias).astype(dtype), logits.shape)
    seen = jnp.ones(logits.shape[-2:], bool)
    seen = jnp.broadcast_to(jnp.tril(seen) if is_causal else seen, logits.shape)
    if mask is not None:
        seen = seen & jnp.broadcast_to(mask.astype(bool), logits.shape)
    others = tuple(a for a in range(logits.ndim) if a != logits.ndim - 3)
    return jnp.max(jnp.where(seen, logits, -jnp.inf), axis=others)


class _Recorder(nn.Module):
    """Sows what it is called with below the module that is being called."""

    @nn.compact
    def __call__(self, S: jax.Array) -> None:
        self.sow("intermediates", NAME, S, reduce_fn=jnp.maximum, init_fn=lambda: jnp.full_like(S, -jnp.inf))


def recorded_attention(attention_fn: Callable[..., jax.Array] | None = None) -> Callable[..., jax.Array]:
    """An attention function for Flax that records the largest logits of every head, and computes what it always does.

    Give it to `flax.linen.MultiHeadDotProductAttention(attention_fn=...)` or `flax.nnx.MultiHeadAttention`; then
    `collect_attention_logits` has what the forward pass recorded. With linen that is the collection "intermediates",
    which `apply(..., mutable=["intermediates"])` returns; with NNX the layer must be called with `sow_weights=True`, of
    which the logits are recorded and not the weights.

    Args:
      attention_fn: (query, key, value, **options) -> output, such as `flax.linen.dot_product_attention`. Default None:
        `flax.nnx.dot_product_attention`, which linen's modules may call too.

    Returns:
      A function like it. In training code it costs one more product of queries and keys.

    Raises:
      ValueError: an `attention_fn` that cannot be called.

    Example:
      >>> layer = nn.MultiHeadDotProductAttention(num_heads=2, attention_fn=recorded_attention())
      >>> x = jnp.ones((1, 3, 4))
      >>> params = layer.init(jax.random.key(0), x)["params"]
      >>> _, recorded = layer.apply({"params": params}, x, mutable=["intermediates"])
      >>> collect_attention_logits(recorded)[""].shape
      (2,)

    Reference: Kimi Team. Kimi K2: Open Agentic Intelligence. 2025, arXiv 2507.20534.
    """
    inner: Callable[..., jax.Array] = nnx.dot_product_attention if attention_fn is None else attention_fn
    checks.function("attention_fn", inner)

    def attention(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        bias: jax.Array | None = None,
        mask: jax.Array | None = None,
        broadcast_dropout: bool = True,
        dropout_rng: Any = None,
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        dtype: Any = None,
        precision: Any = None,
        module: Any = None,
        is_causal: bool = False,
    ) -> jax.Array:
        S = max_attention_logits(query, key, bias=bias, mask=mask, is_causal=is_causal)
        if isinstance(module, nnx.Module):
            module.sow(nnx.Intermediate, NAME, S, reduce_fn=jnp.maximum, init_fn=lambda: jnp.full_like(S, -jnp.inf))
        elif (recorder := _Recorder(name=NAME)).scope is not None:  # in a module of linen that is being called
            recorder(S)
        options = {"is_causal": True} if is_causal else {}
        return inner(
            query,
            key,
            value,
            bias=bias,
            mask=mask,
            broadcast_dropout=broadcast_dropout,
            dropout_rng=dropout_rng,
            dropout_rate=dropout_rate,
            deterministic=deterministic,
            dtype=dtype,
            precision=precision,
            **options,
        )

    return attention


def collect_attention_logits(recorded: Any) -> dict[str, jax.Array]:
    r"""What `recorded_attention` has recorded, as `gk.qk_clip` is handed it.

    Args:
      recorded: the collections that linen's `apply` returned, or one of them; with NNX the second
        result of `nnx.capture(model, nnx.Intermediate)(...)`.

    Returns:
      Path of an attention module, `a/b/c` -> (heads,); of layers that a scan stacks (layers, heads). A rule of
      `gk.qk_clip` finds it by the path of its kernel: `{r"(.*)/query/kernel": gk.QKRole("query", r"\1", ...)}`.

    Example:
      >>> recorded = {"intermediates": {"block": {"max_attention_logits": jnp.ones(2)}}}
      >>> collect_attention_logits(recorded)["block"].tolist()
      [1.0, 1.0]
    """
    if isinstance(recorded, Mapping) and "intermediates" in recorded:
        recorded = recorded["intermediates"]
    found: dict[str, jax.Array] = {}
    for name, x in zip(names(recorded), jax.tree.leaves(recorded), strict=True):
        pieces = name.split("/")
        if NAME in pieces:
            found["/".join(pieces[: pieces.index(NAME)])] = x
    return found


_Q: Any = jax.ShapeDtypeStruct((2, 8, 4, 16), "float32")
register(max_attention_logits, form="layer", paper=PAPER, example={"queries": _Q, "keys": _Q})
