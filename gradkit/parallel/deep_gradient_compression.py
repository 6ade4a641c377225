"""Deep gradient compression: the largest entries of every leaf are sent, with a momentum that is corrected for it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, scalar, transformation, zeros
from gradkit.parallel.compressors import (
    Compressor,
    compressing,
    exchange_of,
    join,
    no_state,
    number_of_replicas,
    separate,
)
from gradkit.parallel.replicas import alike, check_own, wide_mean
from gradkit.types import Scalar

PAPER = Paper(
    "Deep Gradient Compression: Reducing the Communication Bandwidth for Distributed Training",
    "Lin et al.",
    2017,
    "1712.01887",
)
NAME = "deep_gradient_compression"


class DeepGradientCompressionState(NamedTuple):
    """The state of one replica: the momentum u, the accumulated unsent part v (an empty node for leaves that are
    averaged without compression), and the momentum of weight decay d (None without)."""

    u: Any
    v: Any
    d: Any

    exact_fields = ("v",)  # a rounding error here would never be sent


def entries_sent(ratio: Any, leaves: list[Any]) -> list[int]:
    """The number k of entries sent of every leaf."""
    return [min(x.size, math.ceil(x.size * ratio)) for x in leaves]


def _chosen(ratio: Any, leaves: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
    """The values of the entries of largest magnitude of every leaf, and their indices."""
    places = [
        jax.lax.top_k(jnp.abs(x.reshape(-1)), k)[1] for x, k in zip(leaves, entries_sent(ratio, leaves), strict=True)
    ]
    return [x.reshape(-1)[i] for x, i in zip(leaves, places, strict=True)], places


def _spread(payload: tuple[jax.Array, ...], ratio: Any, leaves: list[Any]) -> list[jax.Array]:
    """The leaves with the values of a payload at its indices, and 0 elsewhere."""
    counts = entries_sent(ratio, leaves)
    values = separate(payload[:-1], [jax.ShapeDtypeStruct((k,), x.dtype) for x, k in zip(leaves, counts, strict=True)])
    places = separate(payload[-1:], [jax.ShapeDtypeStruct((k,), jnp.int32) for k in counts])
    zero = [alike(jnp.zeros((x.size,), x.dtype), v) for x, v in zip(leaves, values, strict=True)]
    pieces = zip(zero, places, values, leaves, strict=True)
    return [z.at[i].set(v, unique_indices=True).reshape(x.shape) for z, i, v, x in pieces]


def check_ratio(ratio: Any) -> None:
    """Raises `ValueError` where the fraction of entries, which fixes lengths of arrays, is out of range or traced."""
    checks.real("ratio", ratio, "(0, 1]")
    if checks.readable(ratio) is None:
        raise ValueError(
            "ratio must be a number in (0, 1] that is known when the program is built, got a traced value; write ratio "
            "as a Python number, or inject_hyperparams(..., static_args='ratio')"
        )


def top_k_compressor(ratio: Scalar = 0.01, *, axis_name: Any = "replica") -> optax.GradientTransformationExtraArgs:
    """The compressor that sends the entries of largest magnitude of every leaf.

    Equations:

        k = ceil(ratio entries),    sent = p on the k largest |p|, and 0 elsewhere

    Biased: use it inside `error_feedback`.

    Args:
      ratio: fraction of the entries, in (0, 1]. Default 0.01. A Python number: it fixes the lengths of arrays.
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica".

    Returns:
      A compressor, and as a transformation: it replaces the gradient of a replica by the mean of what all sent. No
      state. Collectives: an all-gather of k values and one of k int32 indices, of all leaves together. A replica
      receives 8 k W bytes: less than the mean in float32 while ratio W < 1.

    Raises:
      ValueError: `ratio` outside its range; at `update`, no axis of this name.

    Example:
      >>> tx = top_k_compressor(0.3)
      >>> g = jnp.array([[1.0, -4.0, 2.0], [0.0, 2.0, 3.0]])  # two replicas
      >>> print(jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="replica")(g)[0])
      [ 0.  -2.   1.5]

    Reference: Lin et al. Deep Gradient Compression. 2017, arXiv 1712.01887. The exact k largest, without the sampled
    threshold of the official code. Inside `shard_map` the k largest are those of each shard.
    """
    check_ratio(ratio)

    def encode(tree: Any, state: Any, *, worker: Any, key: Any = None) -> tuple[Any, Any]:
        del worker, key
        values, places = _chosen(ratio, jax.tree.leaves(tree))
        return (*join(values), *join(places)), state

    def decode(payload: Any, like: Any) -> Any:
        leaves, structure = jax.tree.flatten(like)
        return structure.unflatten(_spread(payload, ratio, leaves))

    exchange = exchange_of("top_k_compressor", encode, decode)
    return compressing("top_k_compressor", Compressor(no_state, exchange, encode, decode), axis_name)


def deep_gradient_compression(
    *,
    ratio: Scalar = 0.001,
    momentum: Scalar = 0.9,
    nesterov: bool = False,
    momentum_masking: bool = True,
    max_norm: Scalar | None = None,
    min_ndim: int = 2,
    weight_decay: Scalar | None = None,
    axis_name: Any = "replica",
) -> optax.GradientTransformationExtraArgs:
    """Sends the largest thousandth of the accumulated steps, after the momentum and not before it.

    Equations for replica w of W, for a leaf with `min_ndim` axes or more, with k = ceil(ratio entries):

        u <- m u + g_w,   v <- v + u                            with nesterov:  u <- m (u + g_w),  v <- v + u + g_w
        S = the k largest |v|
        send v on S,   v <- 0 on S,   u <- 0 on S               u only with momentum_masking
        result = (1/W) sum_w sent_w

    For other leaves, with the mean gradient g:

        u <- m u + g,   result = u                              with nesterov:  u <- m (u + g),  result = u + g

    With max_norm, g_w is first scaled down to the norm max_norm / sqrt(W) over all leaves. Momentum is included, so
    only a learning rate should follow:

        tx = optax.chain(gk.parallel.deep_gradient_compression(), optax.scale_by_learning_rate(0.1))

    A second momentum after it cannot be detected, and counts every gradient twice.

    Args:
      ratio: fraction of the entries of a leaf that are sent, in (0, 1]. Default 0.001 (paper). A Python number: it
        fixes the lengths of arrays; a warm-up (`dgc_warmup`) is one program per ratio, with the same state.
      momentum: m in [0, 1). Default 0.9 (official code).
      nesterov: whether the momentum looks ahead. Default False.
      momentum_masking: whether the momentum of sent entries is reset, so that old directions are not repeated.
        Default True (paper).
      max_norm: norm > 0 of the sum of all replicas' gradients; each is scaled down to max_norm / sqrt(W). Default None:
        none (official code).
      min_ndim: leaves with fewer axes are averaged without compression, >= 0. Default 2 (official code).
      weight_decay: decay >= 0, with a momentum d of its own that is not compressed: d <- m d + weight_decay x, and d
        (with nesterov weight_decay x + m d) is added to the result. Default None: none. Needs `params`.
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica".

    Returns:
      A transformation from the gradient of a replica to the momentum SGD direction of all, the same on all replicas.
      State, per replica: 2 words per parameter (3 with weight decay). Collectives: an all-gather of k values and one of
      k int32 indices, of all leaves together; one all-reduce of the leaves that are averaged without compression.

    Raises:
      ValueError: an argument outside its range; at `update`, no axis of this name, or no `params` with weight decay.

    Example:
      >>> tx = deep_gradient_compression(ratio=0.5, min_ndim=1)
      >>> g = jnp.array([[2.0, 1.0]])  # of one replica
      >>> step = jax.vmap(tx.update, axis_name="replica")
      >>> out, state = step(g, jax.vmap(tx.init)(g))
      >>> print(out, step(g, state)[0])  # of 1, then 0.9 + 1 more
      [[2. 0.]] [[0.  2.9]]

    Reference: Lin et al. Deep Gradient Compression: Reducing the Communication Bandwidth for Distributed Training.
    2017, arXiv 1712.01887; ICLR 2018. As the official code with its sampling of thresholds off: the exact k largest.
    Where the code clips, it clips leaf by leaf; here the norm is over all leaves, as in the paper.
    """
    check_ratio(ratio)
    checks.real("momentum", momentum, "[0, 1)")
    checks.switch(nesterov=nesterov, momentum_masking=momentum_masking)
    checks.real("max_norm", max_norm, "(0, inf)", optional=True)
    min_ndim = checks.integer("min_ndim", min_ndim)
    checks.real("weight_decay", weight_decay, "[0, inf)", optional=True)
    checks.axis_name("axis_name", axis_name, optional=False)
    decays = not checks.absent(weight_decay)

    def init(params: Any) -> DeepGradientCompressionState:
        v = jax.tree.map(lambda x, z: z if x.ndim >= min_ndim else optax.MaskedNode(), params, zeros(params))
        return DeepGradientCompressionState(zeros(params), v, zeros(params) if decays else None)

    def remembered(u: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The momentum after g, and the resulting step."""
        m = scalar(momentum, u)
        if nesterov:
            u = m * (u + g)
            return u, u + g
        u = m * u + g
        return u, u

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        W = number_of_replicas(NAME, axis_name)
        check_own(NAME, updates, axis_name)
        g, structure = jax.tree.flatten(updates)
        u, v = structure.flatten_up_to(state.u), structure.flatten_up_to(state.v)
        if max_norm is not None and g:
            g = _limited(g, max_norm, W)
        sparse = [i for i, x in enumerate(g) if x.ndim >= min_ndim]
        dense = [i for i, x in enumerate(g) if x.ndim < min_ndim]
        out = list(g)
        for i, mean in zip(dense, wide_mean(NAME, [g[i] for i in dense], axis_name) if dense else [], strict=True):
            u[i], out[i] = remembered(u[i], mean)
        if sparse:
            for i in sparse:
                u[i], step = remembered(u[i], g[i])
                v[i] = v[i] + step
            for i, sent, mean in zip(sparse, *_exchanged([v[i] for i in sparse], axis_name, W), strict=True):
                keep = ~sent
                out[i], v[i] = mean, jnp.where(keep, v[i], jnp.zeros_like(v[i]))
                u[i] = jnp.where(keep, u[i], jnp.zeros_like(u[i])) if momentum_masking else u[i]
        d = state.d
        if decays:
            pairs = zip(structure.flatten_up_to(d), structure.flatten_up_to(params), strict=True)
            shares = [remembered(d, scalar(weight_decay, d) * x) for d, x in pairs]
            d = structure.unflatten([share[0] for share in shares])
            out = [x + share[1] for x, share in zip(out, shares, strict=True)]
        new = DeepGradientCompressionState(structure.unflatten(u), structure.unflatten(v), d)
        return structure.unflatten(out), alike(new, state)

    def _exchanged(v: list[jax.Array], axis_name: Any, W: int) -> tuple[list[jax.Array], list[jax.Array]]:
        """A mask of the entries of every leaf that are sent, and the mean of what all replicas send."""
        values, places = _chosen(ratio, v)
        own = [
            alike(jnp.zeros((x.size,), bool), x).at[i].set(True).reshape(x.shape)
            for x, i in zip(v, places, strict=True)
        ]
        everyone = jax.lax.all_gather((*join(values), *join(places)), axis_name)
        start = [alike(jnp.zeros_like(x), x) for x in v]

        def add(total: Any, row: Any) -> tuple[Any, None]:
            return alike([t + x for t, x in zip(total, _spread(row, ratio, v), strict=True)], total), None

        total, _ = jax.lax.scan(add, start, everyone)
        return own, [t / W for t in total]

    return transformation(NAME, init, update, needs_params=decays)


def _limited(g: list[jax.Array], max_norm: Any, W: int) -> list[jax.Array]:
    """The gradient of one replica, scaled down to the norm max_norm / sqrt(W)."""
    wide = max((x.dtype for x in g), key=lambda dtype: dtype.itemsize)
    norm = jnp.sqrt(sum((jnp.sum(jnp.square(x)).astype(wide) for x in g), jnp.zeros((), wide)))
    factor = jnp.minimum(divide(scalar(max_norm, norm) * jnp.ones_like(norm) / math.sqrt(W), norm), jnp.ones_like(norm))
    factor = jnp.where(norm == 0, jnp.ones_like(norm), factor)
    return [x * factor.astype(x.dtype) for x in g]


def dgc_warmup(ratio: Scalar = 0.001, *, epochs: int = 4) -> Callable[[int], float]:
    """The fraction of the entries that is sent in each epoch of a warm-up: it falls by equal factors to its last value.

    Equations:

        ratio_e = ratio^((e + 1) / (epochs + 1))    in epoch e = 0 ... epochs - 1, and `ratio` from then on

    Args:
      ratio: of all epochs after the warm-up, in (0, 1]. Default 0.001 (paper).
      epochs: of the warm-up, >= 0. Default 4 (paper).

    Returns:
      A function of the epoch, a Python integer, that returns a Python number: one compiled program per ratio.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> of = dgc_warmup()
      >>> [round(of(epoch), 4) for epoch in range(6)]
      [0.2512, 0.0631, 0.0158, 0.004, 0.001, 0.001]

    Reference: Lin et al. Deep Gradient Compression. 2017, arXiv 1712.01887: 25 %, 6.25 %, 1.5625 %, 0.4 %, 0.1 %. The
    formula is that of the official code, which comes to 25.1 %, 6.3 %, 1.6 %, 0.4 %, 0.1 %.
    """
    check_ratio(ratio)
    epochs = checks.integer("epochs", epochs)

    def at(epoch: int) -> float:
        epoch = checks.integer("epoch", epoch)
        return float(ratio) if epoch >= epochs else max(float(ratio) ** ((epoch + 1) / (epochs + 1)), float(ratio))

    return at


register(
    deep_gradient_compression,
    form="exchange",
    paper=PAPER,
    words=2,
    collectives="replicas",
    golden=("parallel/deep_gradient_compression", "parallel/deep_gradient_compression_two_workers"),
    example={"ratio": 0.25},
    notes="its momentum is inside: follow it with a learning rate alone",
)
register(top_k_compressor, form="exchange", paper=PAPER, collectives="replicas", example={"ratio": 0.25})
register(dgc_warmup, form="function", paper=PAPER, example={"ratio": 0.001, "epochs": 4})
