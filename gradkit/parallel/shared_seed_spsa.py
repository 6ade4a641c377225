"""Gradients of which one number per worker travels: random directions follow from a key that all workers have."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import cast, wide_dtype
from gradkit.engine.directions import direction, directional_difference
from gradkit.engine.keys import NoKey, as_key
from gradkit.engine.matching import check_leaves
from gradkit.parallel.replicas import alike
from gradkit.types import DTypeLike, Key, Scalar

PAPER = Paper(
    "Just One Byte (per gradient): A Note on Low-Bandwidth Decentralized Language Model Finetuning Using Shared "
    "Randomness",
    "Zelikman et al.",
    2023,
    "2306.10015",
)
REDUCTIONS = ("mean", "sqrt")
FORMATS = (None, "log_byte")
NOT_FINITE = -128


def log_byte_encode(c: Any) -> jax.Array:
    """A real number as one byte: its sign, and its size on a logarithmic scale.

        m = clip(round(8 ln|c|) + 64, 1, 127),    byte = sign(c) m,    0 for 0, -128 for NaN and infinities

    Args:
      c: real floating point numbers.

    Returns:
      int8 numbers of the same shape. `log_byte_decode` reads them: within 6.5% (e^(1/16) - 1) for |c| from 3.6e-4 to
      2.7e3; smaller and larger sizes are those of the ends.

    Raises:
      ValueError: numbers that are not floating point.

    Example:
      >>> log_byte_encode(jnp.array([1.0, -1.0, 0.0, jnp.nan, 1e9])).tolist()
      [64, -64, 0, -128, 127]

    Reference: Zelikman et al. Just One Byte (per gradient). 2023, arXiv 2306.10015. Its 255 sizes, 16 to a factor of e,
    and a sign make nine bits; half as many sizes make one byte with the sign. Its code computes the byte and sends the
    float.
    """
    c = jnp.asarray(c)
    if not jnp.issubdtype(c.dtype, jnp.floating):
        raise ValueError(f"c must be real floating point numbers, got {c.dtype}; write c.astype(jnp.float32)")
    known = jnp.isfinite(c) & (c != 0)
    size = jnp.round(8 * jnp.log(jnp.where(known, jnp.abs(c), jnp.ones_like(c)))) + 64
    byte = jnp.sign(jnp.where(known, c, jnp.zeros_like(c))) * jnp.clip(size, 1, 127)
    return jnp.where(jnp.isfinite(c), byte, jnp.full_like(c, NOT_FINITE)).astype(jnp.int8)


def log_byte_decode(byte: Any, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """The numbers that bytes of `log_byte_encode` stand for.

        c = sign(byte) exp((|byte| - 64) / 8),    0 for 0, NaN for -128

    Args:
      byte: int8 numbers.
      dtype: of the result. Default float32.

    Returns:
      Real numbers of the same shape.

    Raises:
      ValueError: numbers that are not int8; a dtype that is not floating point.

    Example:
      >>> log_byte_decode(jnp.array([64, -72, 0], jnp.int8)).round(3).tolist()
      [1.0, -2.7179999351501465, 0.0]

    Reference: Zelikman et al. Just One Byte (per gradient). 2023, arXiv 2306.10015.
    """
    checks.floating_dtype(dtype=dtype)
    byte = jnp.asarray(byte)
    if byte.dtype != jnp.int8:
        raise ValueError(f"byte must be int8 numbers of log_byte_encode, got {byte.dtype}")
    wide = byte.astype(dtype)
    c = jnp.sign(wide) * jnp.exp((jnp.abs(wide) - 64) / 8)
    return jnp.where(byte == NOT_FINITE, jnp.full_like(c, jnp.nan), c)


def shared_seed_gradient(key: Key, scalars: Any, like: Any, *, reduction: str = "mean") -> Any:
    """The gradient of a step of `shared_seed_spsa`, from the key of the step and the scalars of all workers alone.

        g = sum over workers w and samples s of c_ws z_ws,    divided by their number N ("mean") or sqrt(N) ("sqrt")
        z_ws = direction(fold_in(fold_in(key, w), s))

    Args:
      key: of the step, a typed key or an integer.
      scalars: c, (workers, samples); int8 numbers are bytes of `log_byte_encode`.
      like: the parameters, or `jax.ShapeDtypeStruct`s of them.
      reduction: "mean" or "sqrt". Default "mean".

    Returns:
      A tree like the parameters, in their dtypes: bit for bit what every worker computed. One direction in memory.

    Raises:
      ValueError: scalars without two axes, a reduction that there is none of.

    Example:
      >>> z = shared_seed_gradient(3, jnp.array([[1.0]]), jnp.zeros(2))
      >>> g = shared_seed_gradient(3, jnp.array([[0.5]]), jnp.zeros(2))
      >>> bool(jnp.all(g == 0.5 * z))
      True

    Reference: Zelikman et al. Just One Byte (per gradient). 2023, arXiv 2306.10015. The code divides by sqrt(N), which
    is not unbiased: "sqrt".
    """
    checks.choice("reduction", reduction, REDUCTIONS)
    scalars = jnp.asarray(scalars)
    if scalars.ndim != 2:
        raise ValueError(
            f"scalars must have shape (workers, samples), got {scalars.shape}; write scalars.reshape(-1, 1)"
        )
    random, samples = as_key(key), scalars.shape[1]
    c = log_byte_decode(scalars) if scalars.dtype == jnp.int8 else scalars
    start = jax.tree.map(lambda x: alike(jnp.zeros(x.shape, wide_dtype(x.dtype)), c), like)

    def add(i: Any, total: Any) -> Any:
        own = jax.random.fold_in(jax.random.fold_in(random, i // samples), i % samples)
        z = direction(own, total)
        weight = c.reshape(-1)[i]
        return jax.tree.map(lambda t, z: t + cast(weight, z.dtype) * z, total, z)

    count = c.size if reduction == "mean" else c.size**0.5
    total = jax.lax.fori_loop(0, c.size, add, start)
    # Nothing is fused with what comes next, so that the bits are those of any other program with this function.
    return jax.lax.optimization_barrier(jax.tree.map(lambda t, x: (t / count).astype(x.dtype), total, like))


def gathered(x: jax.Array, axis_name: Any) -> jax.Array:
    """The rows of all workers, (workers, ...); a sum with zeros, of which it is known that all have the same."""
    if axis_name is None:
        return x[None]
    rows = jnp.zeros((jax.lax.axis_size(axis_name), *x.shape), x.dtype)
    return jax.lax.psum(rows.at[jax.lax.axis_index(axis_name)].set(x), axis_name)


def shared_seed_spsa(
    loss_fn: Callable[..., Any],
    *,
    epsilon: Scalar = 1e-3,
    num_samples: int = 1,
    quantize: str | None = None,
    reduction: str = "mean",
    with_scalars: bool = False,
    axis_name: Any = None,
) -> Callable[..., tuple[Any, Any]]:
    """Simultaneous perturbation with shared seeds: every worker measures, one number of each is exchanged.

        z_ws ~ N(0, I) from fold_in(fold_in(key, w), s)            worker w = 0 .. W - 1, sample s = 0 .. n - 1
        c_ws = (L_w(x + epsilon z_ws) - L_w(x - epsilon z_ws)) / (2 epsilon)
        g    = (1 / (W n)) sum_ws c_ws z_ws                        on every worker, from the numbers alone

    L_w is the loss on the batch of worker w. All workers have the same parameters and the same key; all have the same
    g, bit for bit, and a run can be replayed from its keys and scalars (`shared_seed_gradient`).

    Args:
      loss_fn: (params, *args) -> scalar; need not be differentiable.
      epsilon: distance of both points, > 0. Default 1e-3 (official code).
      num_samples: n, directions per worker, >= 1. Default 1.
      quantize: None, or "log_byte": one byte per number, see `log_byte_encode`. Default None.
      reduction: "mean", or "sqrt", division by sqrt(W n) (official code). Default "mean", which is unbiased up to
        epsilon^2.
      with_scalars: whether the value is (value, scalars), the numbers that travelled, (W, n). Default False.
      axis_name: axis of `vmap` or `shard_map` over workers. Default None: one worker.

    Returns:
      fn(params, *args, key, **kwargs) -> (value, gradient). `key` is a typed key or an integer, the same on all workers
      and another one every step. The value is the mean of the losses of both points over workers and samples: a third
      pass at the parameters themselves is not made. No state; memory of one direction. Collectives: W n numbers or
      bytes, and W for the value.

    Raises:
      ValueError: an argument outside its range; when called, no key, leaves that are not real floating point numbers,
        a loss that is no scalar.

    Example:
      >>> fn = shared_seed_spsa(lambda x: jnp.sum(x**2) / 2, with_scalars=True)
      >>> x = jnp.array([1.0, -2.0])
      >>> (value, scalars), g = fn(x, key=0)
      >>> bool(jnp.all(g == shared_seed_gradient(0, scalars, x)))
      True

    Reference: Zelikman et al. Just One Byte (per gradient): A Note on Low-Bandwidth Decentralized Language Model
    Finetuning Using Shared Randomness. 2023, arXiv 2306.10015. Its code perturbs epsilon by chance and undoes another
    perturbation than it made; here epsilon is a constant and the parameters are not changed in place.
    """
    checks.function("loss_fn", loss_fn)
    checks.real("epsilon", epsilon, "(0, inf)")
    num_samples = checks.integer("num_samples", num_samples, 1)
    checks.choice("quantize", quantize, FORMATS)
    checks.choice("reduction", reduction, REDUCTIONS)
    checks.switch(with_scalars=with_scalars)
    checks.axis_name("axis_name", axis_name)

    def fn(params: Any, *args: Any, key: Any = None, **kwargs: Any) -> tuple[Any, Any]:
        if key is None:
            raise NoKey("shared_seed_spsa", call="fn(params, batch, key=...)")
        check_leaves("shared_seed_spsa", params, complex_leaves=False)
        params = jax.tree.map(jnp.asarray, params)
        worker = 0 if axis_name is None else jax.lax.axis_index(axis_name)
        own = jax.random.fold_in(as_key(key), worker)

        def loss(x: Any) -> jax.Array:
            value = jnp.asarray(loss_fn(x, *args, **kwargs))
            if value.shape:
                raise ValueError(f"shared_seed_spsa: loss_fn must return a scalar, got an array of shape {value.shape}")
            return value

        def measured(s: jax.Array) -> tuple[Any, Any]:
            return directional_difference(loss, params, direction(jax.random.fold_in(own, s), params), epsilon)

        c, values = jax.lax.map(measured, jnp.arange(num_samples))
        scalars = gathered(log_byte_encode(c) if quantize == "log_byte" else c, axis_name)
        g = shared_seed_gradient(key, scalars, params, reduction=reduction)
        value = jnp.mean(values)
        value = value if axis_name is None else jax.lax.pmean(value, axis_name)
        return ((value, scalars) if with_scalars else value), g

    return fn


RANDOM = "the gradient is right in expectation over keys: the test of its paper has its mean"
register(
    shared_seed_spsa,
    form="source",
    paper=PAPER,
    needs=("key",),
    collectives="replicas",
    example={"epsilon": 0.1, "num_samples": 8},
    opt_outs={
        "linear": RANDOM,
        "bfloat16": RANDOM,
        "value_and_grad": "the value is the mean of the losses of both points: the third pass is not made",
    },
    notes="one number, or one byte, per worker and step; a run is replayed from its keys and numbers",
)
register(log_byte_encode, form="function", paper=PAPER, example={"c": jax.ShapeDtypeStruct((3,), "float32")})
register(log_byte_decode, form="function", paper=PAPER, example={"byte": jax.ShapeDtypeStruct((3,), "int8")})
register(
    shared_seed_gradient,
    form="function",
    paper=PAPER,
    example={
        "key": 0,
        "scalars": jax.ShapeDtypeStruct((2, 1), "float32"),
        "like": jax.ShapeDtypeStruct((3,), "float32"),
    },
)
