"""TernGrad: every entry is rounded at random to 0 or to its sign, times one scale per leaf."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, scalar
from gradkit.engine.keys import check_key, first_key, needed_key
from gradkit.parallel.compressors import Compressor, compressing, exchange_of, number_of_replicas
from gradkit.parallel.replicas import alike
from gradkit.types import Key, Scalar

PAPER = Paper(
    "TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning", "Wen et al.", 2017, "1705.07878"
)
WIRES = ("packed", "int8")
# The most replicas whose sum of t fits into int8.
MOST_REPLICAS = 127
PER_BYTE = 4


class TernaryState(NamedTuple):
    """The random key of the next step; None where it comes with the step."""

    key: Any


def pack(t: jax.Array) -> jax.Array:
    """Numbers -1, 0, 1 in two bits each, the first in the lowest: bytes, padded with zeros.

    >>> pack(jnp.array([1, 0, -1, 0, 1], jnp.int8)).tolist()  # 2 + 4 * 1 + 16 * 0 + 64 * 1, and 2 + 4 + 16 + 64
    [70, 86]
    """
    codes = jnp.pad((t + np.int8(1)).astype(jnp.uint8), (0, -t.size % PER_BYTE), constant_values=np.uint8(1))
    codes = codes.reshape(-1, PER_BYTE)
    return codes[:, 0] | codes[:, 1] << np.uint8(2) | codes[:, 2] << np.uint8(4) | codes[:, 3] << np.uint8(6)


def unpack(packed: jax.Array, size: int) -> jax.Array:
    """The first `size` numbers that bytes of `pack` encode.

    >>> unpack(jnp.array([70, 86], jnp.uint8), 5).tolist()
    [1, 0, -1, 0, 1]
    """
    codes = jnp.stack([packed >> np.uint8(shift) & np.uint8(3) for shift in (0, 2, 4, 6)], axis=1)
    return codes.reshape(-1)[:size].astype(jnp.int8) - np.int8(1)


def _clipped(x: jax.Array, clip_factor: Any) -> jax.Array:
    if clip_factor is None or not x.size:
        return x
    bound = scalar(clip_factor, x) * jnp.std(x)
    return jnp.clip(x, -bound, bound)


def _scales(leaves: list[jax.Array]) -> jax.Array:
    """max|g| of every leaf, in float32."""
    return jnp.stack([jnp.max(jnp.abs(x), initial=0.0).astype(jnp.float32) for x in leaves])


def _ternary(leaves: list[jax.Array], scales: jax.Array, key: Any) -> jax.Array:
    """t of all leaves, concatenated."""

    def one(x: jax.Array, s: jax.Array, key: Any) -> jax.Array:
        chance = divide(jnp.abs(x), jnp.broadcast_to(s.astype(x.dtype), x.shape))
        b = jax.random.uniform(key, x.shape, x.dtype) < chance
        return jnp.where(b, jnp.sign(x), jnp.zeros_like(x)).astype(jnp.int8).reshape(-1)

    keys = jax.random.split(key, len(leaves))
    return jnp.concatenate([one(x, scales[i], keys[i]) for i, x in enumerate(leaves)])


def _times(t: jax.Array, scales: jax.Array, leaves: list[Any]) -> list[jax.Array]:
    """The leaves that integers and scales encode."""
    ends = np.cumsum([x.size for x in leaves])[:-1]
    pieces = jnp.split(t, ends)
    return [
        (scales[i].astype(x.dtype) * p.astype(x.dtype)).reshape(x.shape)
        for i, (p, x) in enumerate(zip(pieces, leaves, strict=True))
    ]


def ternary_compressor(
    *,
    clip_factor: Scalar | None = None,
    scale_sharing: bool = True,
    wire: str = "packed",
    key: Key | None = None,
    axis_name: Any = "replica",
) -> optax.GradientTransformationExtraArgs:
    """The compressor that sends two bits per entry, unbiased where nothing is clipped.

    Equations: those of `terngrad`, without clipping by default. It needs no error feedback; with it, the rounding error
    is sent later.

    Args:
      clip_factor: c > 0, clips every leaf at c standard deviations around 0. Default None: no clipping, and no bias.
      scale_sharing: whether all replicas use the largest of their scales. Default True (paper).
      wire: "packed": two bits per entry to every other replica, (W - 1) n / 4 bytes received, less than the mean in
        float32 for W up to about 32; "int8": the sum of integers, 2 n (W - 1) / W bytes. Default "packed".
      key: a random key (typed key or integer) from which the keys of all steps are derived, the same on all replicas:
        each derives its own from it. Default None: `update` needs `key=`, which takes precedence where both are given.
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica".

    Returns:
      A compressor, and as a transformation: the gradient of a replica in, the mean of what was sent out. State: a key.
      Collectives: an all-gather of uint8 (or an all-reduce of int8), and an all-reduce of one float32 per leaf (without
      `scale_sharing` an all-gather).

    Raises:
      ValueError: an argument outside its range; wire="int8" without `scale_sharing`; at `update`, no key, no axis of
        this name, or more than 127 replicas with wire="int8", whose sum would wrap around.

    Example:
      >>> tx = ternary_compressor(key=0)
      >>> g = jnp.array([[3.0, 0.0, -3.0]])  # of one replica; chances 1, 0, 1
      >>> print(jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="replica")(g))
      [[ 3.  0. -3.]]

    Reference: Wen et al. TernGrad. 2017, arXiv 1705.07878. The official code keeps c sigma as the scale where it clips;
    here it is the largest entry after clipping, which is the same unless no entry reaches the bound.
    """
    return _ternary_compressor("ternary_compressor", clip_factor, scale_sharing, wire, key, axis_name)


def terngrad(
    *,
    clip_factor: Scalar = 2.5,
    scale_sharing: bool = True,
    wire: str = "packed",
    key: Key | None = None,
    axis_name: Any = "replica",
) -> optax.GradientTransformationExtraArgs:
    """TernGrad: the mean of ternary gradients, clipped as in the paper.

    Equations, for replica w of W, and every leaf g with standard deviation sigma:

        g <- clip(g, -c sigma, c sigma)              c the clip factor
        s  = max|g|                                  with shared scales the largest of all replicas
        b ~ Bernoulli(|g| / s)                       independent on every replica
        t_w = sign(g) b                              -1, 0 or 1
        result = (1/W) sum_w s_w t_w                 its expectation is the mean of the clipped g

    With the wire "packed" t + 1 is sent in two bits, four entries to a byte, and every replica gets the bytes of all;
    with "int8" and shared scales the sum of t is all-reduced in int8, which is exact for up to 127 replicas.

    It is the first link of a chain, `optax.chain(gk.parallel.terngrad(key=0), ...)`, and is `ternary_compressor` with
    the paper's clipping, which is biased and lowers the variance.

    Args:
      clip_factor: c > 0, clips every leaf at c standard deviations around 0. Default 2.5 (paper). None: no clipping.
      scale_sharing: whether all replicas use the largest of their scales. Default True (paper).
      wire: "packed" or "int8", see `ternary_compressor`. Default "packed".
      key: a random key (typed key or integer) from which the keys of all steps are derived, the same on all replicas.
        Default None: `update` needs `key=`.
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica".

    Returns:
      A compressor, and as a transformation: the gradient of a replica in, the mean of what was sent out. State: a key.
      Collectives: as `ternary_compressor`.

    Raises:
      ValueError: as `ternary_compressor`.

    Example:
      >>> tx = terngrad(key=0)
      >>> g = jnp.array([[1.0, -1.0, 1.0, -1.0]])  # of one replica; every chance is 1
      >>> print(jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="replica")(g))
      [[ 1. -1.  1. -1.]]

    Reference: Wen et al. TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning. 2017, arXiv
    1705.07878. As in the paper's "layer-wise ternarizing", every leaf has one scale.
    """
    return _ternary_compressor("terngrad", clip_factor, scale_sharing, wire, key, axis_name)


def _ternary_compressor(
    name: str, clip_factor: Any, scale_sharing: bool, wire: str, key: Any, axis_name: Any
) -> optax.GradientTransformationExtraArgs:
    checks.real("clip_factor", clip_factor, "(0, inf)", optional=True)
    checks.switch(scale_sharing=scale_sharing)
    checks.choice("wire", wire, WIRES)
    check_key(key)
    if wire == "int8" and not scale_sharing:
        raise ValueError(
            f"{name}: scale_sharing must be True with wire='int8', which adds up integers of one scale, got False; "
            "write scale_sharing=True, or wire='packed'"
        )

    def init(like: Any) -> TernaryState:
        del like
        return TernaryState(first_key(key))

    def drawn(tree: Any, state: TernaryState, given: Any, worker: Any) -> tuple[list[jax.Array], Any, TernaryState]:
        kept, now = needed_key(name, state.key, given)
        leaves = [_clipped(x, clip_factor) for x in jax.tree.leaves(tree)]
        # The key of the state stays as it is where `update` got `key=`.
        return leaves, jax.random.fold_in(now, worker), TernaryState(state.key if given is not None else kept)

    def encode(tree: Any, state: TernaryState, *, worker: Any, key: Any = None) -> tuple[Any, Any]:
        leaves, own, state = drawn(tree, state, key, worker)
        scales = _scales(leaves)
        return (pack(_ternary(leaves, scales, own)), scales), state

    def decode(payload: Any, like: Any) -> Any:
        leaves, structure = jax.tree.flatten(like)
        t = unpack(payload[0], sum(x.size for x in leaves))
        return structure.unflatten(_times(t, payload[1], leaves))

    def exchange(tree: Any, state: TernaryState, axis_name: Any, *, key: Any = None) -> tuple[Any, Any, Any]:
        W = number_of_replicas(name, axis_name)
        if wire == "int8" and W > MOST_REPLICAS:
            raise ValueError(
                f"{name}: wire='int8' allows at most {MOST_REPLICAS} replicas, got {W}: the sum would wrap around; "
                "write wire='packed'"
            )
        structure = jax.tree.structure(tree)
        if not structure.num_leaves:
            return tree, tree, state
        leaves, own, state = drawn(tree, state, key, jax.lax.axis_index(axis_name))
        scales = jax.lax.pmax(_scales(leaves), axis_name)
        t = _ternary(leaves, scales, own)
        if wire == "int8":
            total = jax.lax.psum(t, axis_name).astype(jnp.int32)
        else:
            start = alike(jnp.zeros(t.shape, jnp.int32), t)
            everyone = jax.lax.all_gather(pack(t), axis_name)
            total, _ = jax.lax.scan(lambda c, row: (c + unpack(row, t.size).astype(jnp.int32), None), start, everyone)
        mean = [x / W for x in _times(total, scales, leaves)]
        return structure.unflatten(mean), structure.unflatten(_times(t, scales, leaves)), state

    apart = exchange_of(name, encode, decode)
    return compressing(name, Compressor(init, exchange if scale_sharing else apart, encode, decode), axis_name)


RANDOM = "the mean is right in expectation over keys: the test of its paper has its mean"
register(
    terngrad,
    form="exchange",
    paper=PAPER,
    collectives="replicas",
    example={"key": 0},
    opt_outs={"bfloat16": RANDOM},
    notes="two bits per entry, unbiased up to its clipping",
)
register(
    ternary_compressor,
    form="exchange",
    paper=PAPER,
    collectives="replicas",
    example={"key": 0},
    opt_outs={"bfloat16": RANDOM},
)
