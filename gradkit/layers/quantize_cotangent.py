"""1-bit fully quantized training: gradients of activations with few bits, and of few samples."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.keys import as_key
from gradkit.layers.axes import floating, wide
from gradkit.types import Key, Scalar

PAPER = Paper("1-Bit FQT: Pushing the Limit of Fully Quantized Training to 1-bit", "Gao et al.", 2024, "2408.14267")
PRUNING = ("bernoulli", "topk")


def _others(name: str, g: jax.Array, axis: int) -> tuple[int, ...]:
    checks.integer("axis", axis, -g.ndim)
    if axis >= g.ndim:
        raise ValueError(f"axis must be one of the {g.ndim} axes of {name}, got {axis}; write axis=0 for samples")
    return tuple(i for i in range(g.ndim) if i != axis % g.ndim)


def quantize_groups(g: jax.Array, key: Key, bits: int, axis: int) -> jax.Array:
    """Every group along an axis on 2^bits levels between its smallest and largest entry, rounded at random."""
    others = _others("g", g, axis)
    low, high = (f(g, axis=others, keepdims=True) for f in (jnp.min, jnp.max))
    levels = 2**bits - 1
    step = (high - low) / levels
    some = step > 0
    scaled = (g - low) / jnp.where(some, step, jnp.ones_like(step))
    drawn = jnp.floor(scaled + jax.random.uniform(key, g.shape, g.dtype))
    return jnp.where(some, jnp.clip(drawn, 0, levels) * step + low, g)


def activation_gradient_pruning(
    g: Any, key: Key, *, keep: Scalar = 0.25, axis: int = 0, pruning: str = "bernoulli"
) -> jax.Array:
    """Drops the gradients of samples in which there is little, without a bias.

        r_i = max(max g_i, 0) - min(min g_i, 0),    p_i = min(1, keep N r_i / sum_j r_j)        i = 0 .. N - 1
        bernoulli    g_i / p_i with probability p_i, else 0:    unbiased, keep N samples or fewer on average
        topk         g_i of the round(keep N) samples with the largest max |g_i|, else 0:        biased

    Args:
      g: a gradient, floating point.
      key: a typed key or an integer, another one every step.
      keep: share of samples, in (0, 1]. Default 0.25: with 4 bits that is one bit per entry (official code).
      axis: of samples, or of channels. Default 0.
      pruning: "bernoulli" (paper) or "topk" (official code). Default "bernoulli".

    Returns:
      An array like `g`.

    Raises:
      ValueError: an argument outside its range; g without the axis.

    Example:
      >>> g = jnp.array([[4.0, 0.0], [0.0, -1.0], [0.5, 0.5], [0.0, 0.0]])
      >>> activation_gradient_pruning(g, 0, pruning="topk").tolist()
      [[4.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]

    Reference: Gao et al. 1-Bit FQT: Pushing the Limit of Fully Quantized Training to 1-bit. 2024, arXiv 2408.14267. The
    official code is "topk", without a factor. The range counts 0 as an entry: a sample of equal entries has a gradient,
    and would have the probability 0.
    """
    checks.arrays(g=g)
    checks.real("keep", keep, "(0, 1]")
    checks.choice("pruning", pruning, PRUNING)
    g = floating("g", g)
    others, x = _others("g", g, axis), wide(g)
    if not g.size:
        return g
    n = g.shape[axis]
    if pruning == "topk":
        size = jnp.max(jnp.abs(x), axis=others)
        share = checks.readable(keep)
        if share is None:
            raise ValueError("keep must be a number that is known when the program is built, for pruning='topk'")
        chosen = jax.lax.top_k(size, max(1, round(share * n)))[1]
        factor = jnp.zeros((n,), x.dtype).at[chosen].set(1)
    else:
        zero = jnp.zeros((), x.dtype)
        r = jnp.maximum(jnp.max(x, axis=others), zero) - jnp.minimum(jnp.min(x, axis=others), zero)
        total = jnp.sum(r)
        ratio = jnp.asarray(keep).astype(x.dtype) * n * r / jnp.where(total > 0, total, jnp.ones_like(total))
        p = jnp.minimum(ratio, 1)
        kept = jax.random.uniform(as_key(key), (n,), x.dtype) < p
        factor = jnp.where(kept, 1 / jnp.where(p > 0, p, jnp.ones_like(p)), zero)
    shape = [n if i == axis % g.ndim else 1 for i in range(g.ndim)]
    factor = factor.reshape(shape)
    return jnp.where(factor > 0, x * factor, jnp.zeros_like(x)).astype(g.dtype)


def quantize_cotangent(
    x: Any, key: Key, *, bits: int = 4, axis: int = 0, keep: Scalar | None = None, pruning: str = "bernoulli"
) -> jax.Array:
    """Passes activations through, and the gradient that comes back with few bits, of few samples.

        forward    y = x
        backward   g pruned (`activation_gradient_pruning`), then of every sample, with B = 2^bits - 1:
                   low + (high - low) / B times floor((g - low) B / (high - low) + u),    u ~ U(0, 1) per entry

    low and high are the smallest and the largest entry of the sample. Rounding at random has the mean g, and so has the
    whole, with pruning "bernoulli". At the output of a layer it serves both of its gradients. With groups of their own:

        for_w = quantize_cotangent(layer(stop_gradient(x), w), key_w, axis=-1)
        for_x = quantize_cotangent(layer(x, stop_gradient(w)), key_x)
        y = for_w + for_x - stop_gradient(for_x)

    Args:
      x: activations, floating point.
      key: a typed key or an integer, another one every step.
      bits: of an entry, from 1 (two levels) to 16. Default 4 (official code).
      axis: of samples; of channels for the weight gradient of a convolution. Default 0.
      keep: share of samples that are not pruned, in (0, 1]. Default None: 1 / bits, so that an entry takes one bit on
        average (paper). 1 prunes nothing.
      pruning: "bernoulli" or "topk", which is biased. Default "bernoulli".

    Returns:
      `x` itself. Reverse mode only.

    Raises:
      ValueError: an argument outside its range; x without the axis.

    Example:
      >>> import jax
      >>> f = lambda x: jnp.sum(quantize_cotangent(x, 0, bits=1, keep=1.0) * jnp.array([[1.0, 3.0, 2.0]]))
      >>> sorted(set(jax.grad(f)(jnp.zeros((1, 3))).reshape(-1).tolist()))
      [1.0, 3.0]

    Reference: Gao et al. 1-Bit FQT: Pushing the Limit of Fully Quantized Training to 1-bit. 2024, arXiv 2408.14267. The
    official code widens the range by 1e-8 on both sides; here the ends are levels, and a sample of equal entries is
    itself.
    """
    checks.arrays(x=x)
    bits = checks.integer("bits", bits, 1, maximum=16)
    checks.real("keep", keep, "(0, 1]", optional=True)
    checks.choice("pruning", pruning, PRUNING)
    x = floating("x", x)
    _others("x", x, axis)
    keep = 1 / bits if keep is None else keep
    everything = checks.readable(keep) == 1

    @jax.custom_vjp
    def hook(x: jax.Array, data: jax.Array, keep: Any) -> jax.Array:
        del data, keep
        return x

    def backward(kept: Any, g: jax.Array) -> tuple[Any, None, None]:
        data, share = kept
        if not g.size:
            return g, None, None
        for_samples, for_entries = jax.random.split(data)
        some = wide(g)
        if not everything:
            share = keep if checks.readable(keep) is not None else share
            some = activation_gradient_pruning(some, for_samples, keep=share, axis=axis, pruning=pruning)
        return quantize_groups(some, for_entries, bits, axis).astype(g.dtype), None, None

    hook.defvjp(lambda x, data, keep: (x, (data, keep)), backward)
    return hook(x, as_key(key), jnp.asarray(keep))


EXAMPLE = jax.ShapeDtypeStruct((8, 4), "float32")
register(quantize_cotangent, form="layer", paper=PAPER, example={"x": EXAMPLE, "key": 0})
register(activation_gradient_pruning, form="function", paper=PAPER, example={"g": EXAMPLE, "key": 0})
