"""Precision: the formats of parameters and state between steps; arithmetic is float32 or wider throughout."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.codecs import FORMATS, between, decode, nearest
from gradkit.engine.coded_states import encode_state
from gradkit.engine.core import as_arrays, boxless, inside, wide_dtype, widen
from gradkit.engine.keys import check_key, first_key, needed_key
from gradkit.engine.matching import check_leaves, check_match
from gradkit.engine.memory import KINDS, check_memory, to_device, to_host
from gradkit.leaves import Method, names
from gradkit.leaves.recording import announce
from gradkit.types import Key


class PrecisionState(NamedTuple):
    """Number of steps made; the key, where one was given; the rounding error of each narrow parameter, where a master
    is kept; the inner state, encoded."""

    count: jax.Array
    key: Any
    residual: Any
    inner: Any

    def decoded(self) -> Any:
        """The inner state in the dtypes that the inner method computes in."""
        return decode(to_device(self.inner))


def is_narrow(x: Any) -> bool:
    """Whether a leaf has fewer bits than the dtype that it is computed in."""
    return wide_dtype(x.dtype) != x.dtype


def step_to(p: jax.Array, x: jax.Array, u: jax.Array, bits: jax.Array | None) -> jax.Array:
    """The update, in the dtype of p, that leads from p to x + u rounded; stochastically where random bits are given."""
    if not is_narrow(p):
        return u.astype(p.dtype)
    now = p.astype(jnp.float32)
    if bits is None:
        return nearest(nearest(x + u, p.dtype) - now, p.dtype).astype(p.dtype)
    there = between(x + u, bits & np.uint32(0xFFFF))
    return between(there - now, bits >> np.uint32(16)).astype(p.dtype)


def what_rounding_took(p: jax.Array, x: jax.Array, u: jax.Array, step: jax.Array) -> Any:
    """The rounding error: x + u minus the parameter after the step."""
    if not is_narrow(p):
        return optax.MaskedNode()
    return (x + u) - nearest(p.astype(jnp.float32) + step.astype(jnp.float32), p.dtype)


def precision(
    inner: optax.GradientTransformation,
    *,
    master: bool = False,
    rounding: str = "nearest",
    state: str | None = None,
    block_size: int = 256,
    memory_kind: str | None = None,
    key: Key | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Keeps parameters and state of any method in few bits, and computes in float32.

    Equations, with the user's parameters p_t, and r = 0 without `master`:

        x_t = p_t + r_t                    the parameters that the inner method gets
        x_{t+1} = x_t + u_t                u_t from the inner method, in float32
        p_{t+1} = round(x_{t+1})           the returned update is p_{t+1} - p_t
        r_{t+1} = x_{t+1} - p_{t+1}        the rounding error, so that p + r is a float32 copy
        s_t = decode(c_t),   s_{t+1} = inner(s_t),   c_{t+1} = encode(s_{t+1}, dither_{t+1})       the state

    The formats are in `gradkit.engine.codecs`. The class of a state names the fields that must not be rounded in
    `exact_fields`. The wrapper must go around the whole optimizer, learning rate included, because it rounds the
    parameters after the update. Whatever the switches, the method gets gradients and parameters in float32 and computes
    its moments in float32. Parameters in float32 or wider are passed on unchanged.

    Args:
      inner: any transformation whose updates are added to the parameters.
      master: whether a float32 copy of narrow (bfloat16, float16) parameters is kept. It is kept as its distance
        from them, so a change that the user makes to the parameters is not undone. Default False.
      rounding: of narrow parameters. "nearest" (default), or "stochastic": to one of the two neighbours with
        probabilities that make the mean exact; bfloat16 only.
      state: the format of floating-point arrays of the state between steps, wherever that makes them smaller: moments,
        windows, statistics, preconditioners and bases, with owners (`shard=`) or without. None (default): unchanged.
        "bfloat16": 2 bytes. "int8-block": 1 byte, and 4 bytes per block; a block without negative numbers, as in
        second moments, is coded by its square root, never down to 0; the diagonals of square matrices are kept in
        float32 (Wang et al.), 4 bytes per row, so that factors stay invertible. Kept exactly, whatever `state` is: the
        parameters that a method has in its state (averages, anchors, slow weights, latent weights) and arrays that a
        method reads only as a small difference (L-BFGS); `gk.leaves.describe` shows their bytes and the bytes saved.
        Rounded statistics act like an eps of the size of the rounding, about 2^-9 or 1/250 of the largest entry of a
        row: on minibatches Shampoo ends within a few percent of its loss, without noise it gains less by
        preconditioning. Its iterative solvers may fail, which `failed_roots` counts, and keep the last finite root.
      block_size: entries of the last axis that share a scale, >= 1; a row shorter than that is one block. Default 256
        (Dettmers et al. recommend 2048 for rows that are joined; rows are not joined here). Read by "int8-block"
        only.
      memory_kind: where arrays of the state of at least 1 KiB, coded or not, are stored between steps. None (default):
        on the device. "pinned_host": in host memory, where the backend has it; every step copies them to the device and
        back, 2 words over the bus per word of state.
      key: a typed key or integer, for stochastic rounding, kept in the state. Without it every `update` needs the
        extra argument `key`, which takes precedence.

    Returns:
      A transformation that needs `params` where it has a master or rounds stochastically. Updates have the parameters'
      dtype. Where a step changes a parameter by less than a factor of 2, params + update is exactly the rounded master;
      where one update in this dtype cannot reach it, it comes as near as it can and the next one continues. State: a
      counter, the key, 1 word per narrow parameter with `master`, and the inner state. Elementwise, and a maximum per
      block: no collective unless blocks are sharded.

    Raises:
      ValueError: an argument outside its range; a key that would not be used; at `init`, a float16 leaf that is
        to be rounded stochastically, a state in float64 or complex numbers, which has no format, or a memory that the
        devices lack; at `update`, no params or no key where they are needed.

    Example:
      >>> tx = precision(optax.sgd(1e-3), master=True)
      >>> p = jnp.ones((), jnp.bfloat16)  # the next smaller number is 0.9961
      >>> s = tx.init(p)
      >>> for _ in range(3):
      ...     u, s = tx.update(jnp.ones((), jnp.bfloat16), s, p)
      ...     p = p + u
      >>> float(p), round(float(p + s.residual.astype(p.dtype)), 4), round(float(s.residual), 4)
      (0.99609375, 0.9961, 0.0009)

    Reference: Gupta et al. Deep Learning with Limited Numerical Precision. 2015, arXiv 1502.02551 (stochastic
    rounding); Micikevicius et al. Mixed Precision Training. 2017, arXiv 1710.03740 (master copy); Dettmers et al.
    8-bit Optimizers via Block-wise Quantization. 2021, arXiv 2110.02861; Wang et al. 4-bit Shampoo for Memory-Efficient
    Network Training. 2024, arXiv 2405.18144 (exact diagonals). Departures: codes are even, or even in
    the root, instead of a table of 256 numbers, and are dithered instead of rounded to nearest; blocks run along
    the last axis instead of the flattened leaf, so that a leaf may be sharded or stacked.
    """
    checks.choice("master", master, (False, True))
    checks.choice("rounding", rounding, ("nearest", "stochastic"))
    checks.choice("state", state, (None, *FORMATS))
    checks.choice("memory_kind", memory_kind, KINDS)
    block_size = checks.integer("block_size", block_size, 1)
    stochastic = rounding == "stochastic"
    if key is not None:
        if not stochastic:
            raise ValueError(
                'precision: key is used only with rounding="stochastic", got rounding="nearest"; leave key out'
            )
        check_key(key)
    tx = inside(inner)

    def encoded(inner_state: Any, count: jax.Array) -> Any:
        return inner_state if state is None else encode_state("precision", inner_state, state, count, block_size)

    def stored(tree: Any) -> Any:
        return tree if memory_kind is None else to_host(tree)

    def fetched(tree: Any) -> Any:
        return tree if memory_kind is None else to_device(tree)

    def init(params: optax.Params) -> PrecisionState:
        check_leaves("precision", params, complex_leaves=True)
        check_memory("precision", memory_kind)
        params = as_arrays(params)
        for name, x in zip(names(params), jax.tree.leaves(params), strict=True):
            if stochastic and is_narrow(x) and x.dtype != jnp.bfloat16:
                raise ValueError(
                    f"precision: the leaf {name!r} is {x.dtype}; only bfloat16 is rounded stochastically; write "
                    'rounding="nearest"'
                )
        count = jnp.zeros((), jnp.int32)
        kept = first_key(key)

        def begin(params: Any) -> PrecisionState:
            inner_state = encoded(tx.init(params), count)
            return PrecisionState(count, kept, stored(residuals(params)), stored(inner_state))

        return announce(Method("precision"), begin, params)

    def residuals(params: Any) -> Any:
        def zero(p: Any) -> Any:
            return jnp.zeros_like(p, dtype=jnp.float32) if is_narrow(p) else optax.MaskedNode()

        return jax.tree.map(zero, params) if master else None

    def draw(state: PrecisionState, given: Any, params: Any) -> tuple[Any, Any]:
        """32 random bits per narrow parameter, and the key that stays in the state."""
        kept, now = needed_key("precision", state.key, given, "to round stochastically")
        leaves, structure = jax.tree.flatten(params)
        bits = [
            jax.random.bits(jax.random.fold_in(now, i), p.shape, jnp.uint32) if is_narrow(p) else None
            for i, p in enumerate(leaves)
        ]
        return structure.unflatten(bits), kept

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        check_leaves("precision", updates, complex_leaves=True)
        updates, params = as_arrays(updates), as_arrays(params)
        if params is not None:
            check_match("precision", updates, params)
        elif master or stochastic:
            raise ValueError("precision needs params: call update(grads, state, params)")

        x = None if params is None else widen(params)
        if master:
            residual = fetched(state.residual)
            x = jax.tree.map(lambda x, r: x if isinstance(r, optax.MaskedNode) else x + r, x, residual)
        moves, inner_state = tx.update(widen(updates), decode(fetched(state.inner)), x, **extra)
        count = jnp.asarray(optax.safe_increment(state.count))
        inner_state = stored(encoded(inner_state, count))

        if not (master or stochastic):
            like = updates if params is None else params
            rounded = jax.tree.map(lambda u, p: u.astype(p.dtype), moves, like)
            return rounded, PrecisionState(count, state.key, None, inner_state)

        bits, kept = jax.tree.map(lambda p: None, params), state.key
        if stochastic:
            bits, kept = draw(state, extra.get("key"), params)
        steps = jax.tree.map(step_to, params, x, moves, bits)
        residual = jax.tree.map(what_rounding_took, params, x, moves, steps) if master else None
        return steps, PrecisionState(count, kept, stored(residual), inner_state)

    return boxless(init, update)


register(
    precision,
    form="wrapper",
    paper=Paper("8-bit Optimizers via Block-wise Quantization", "Dettmers et al.", 2021, "2110.02861"),
    example={"master": True},
    opt_outs={"bfloat16": "an update is the step between two roundings of the master, not one update rounded"},
    notes="1 word per bfloat16 parameter with a master; moments are halved by bfloat16, quartered by int8-block",
)
