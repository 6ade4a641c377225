"""Batches of an active learner: examples drawn without replacement, by scores, instead of the best ones."""

from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import reals, refuse
from gradkit.engine.keys import as_key
from gradkit.types import Key, Scalar

PAPER = Paper(
    "Stochastic Batch Acquisition: A Simple Baseline for Deep Active Learning", "Kirsch et al.", 2021, "2106.12059"
)
KINDS = ("power", "softmax", "softrank")


def _noise(key: Any, like: jax.Array, axis_name: Any) -> jax.Array:
    key = as_key(key)
    key = key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    return jax.random.gumbel(key, like.shape, like.dtype)


def _top(perturbed: jax.Array, k: int, axis_name: Any) -> jax.Array:
    """The indices of the k largest; over an axis, those of all members one after another."""
    n = len(perturbed)
    if axis_name is None:
        return jax.lax.top_k(perturbed, k)[1].astype(jnp.int32)
    values, places = jax.lax.top_k(perturbed, min(k, n))
    places = places.astype(jnp.int32) + n * jax.lax.axis_index(axis_name)
    values, places = (x.reshape(-1) for x in jax.lax.all_gather((values, places), axis_name))
    return places[jax.lax.top_k(values, k)[1]]


def _size(n: int, axis_name: Any) -> int:
    return n if axis_name is None else n * jax.lax.axis_size(axis_name)


def gumbel_top_k(key: Key, logits: Any, k: int, *, axis_name: Any = None) -> jax.Array:
    """k draws without replacement, in order: the largest of the logits plus Gumbel noise.

        the first is i with probability softmax(logits)_i, the next with softmax over those that are left, ...

    Args:
      key: a typed key or an integer.
      logits: (n,), floating point; -inf for what is drawn last of all.
      k: from 1 to n.
      axis_name: axis of `vmap` or `shard_map` whose members hold n logits each, with the same key: the k largest of
        each are gathered, which is exact. Default None.

    Returns:
      Indices (k,) int32; with `axis_name` over all logits in the order of the members, the same on all of them.

    Raises:
      ValueError: logits that are not (n,); k outside its range.

    Example:
      >>> gumbel_top_k(0, jnp.array([0.0, 99.0, -jnp.inf]), 3).tolist()
      [1, 0, 2]

    Reference: Kirsch et al. Stochastic Batch Acquisition: A Simple Baseline for Deep Active Learning. 2021, arXiv
    2106.12059; Kool et al. 2019.
    """
    checks.arrays(logits=logits)
    checks.axis_name("axis_name", axis_name)
    checks.integer("k", k, 1)
    l = reals("gumbel_top_k", "logits", logits, 1)  # noqa: E741
    k = checks.integer("k", k, 1, maximum=_size(len(l), axis_name))
    return _top(l + _noise(key, l, axis_name), k, axis_name)


def stochastic_acquisition(
    key: Key, scores: Any, k: int, *, kind: str = "power", coldness: Scalar = 1.0, axis_name: Any = None
) -> jax.Array:
    """The k examples to be labelled next, drawn without replacement instead of the k best, which are alike.

        power       p_i ~ s_i^coldness                 top k of log s_i + G_i / coldness
        softmax     p_i ~ exp(coldness s_i)            top k of s_i + G_i / coldness
        softrank    p_i ~ r_i^-coldness                top k of -log r_i + G_i / coldness,    r_i = 1 of the largest
        G_i independent Gumbel noise

    Args:
      key: a typed key or an integer.
      scores: s, (n,), floating point, such as mutual informations; >= 0 for "power", where 0 is drawn last.
      k: from 1 to n.
      kind: "power" (the paper's choice), "softmax" or "softrank". Default "power".
      coldness: >= 0; 0 draws uniformly, infinity takes the k best. Default 1 (paper).
      axis_name: as in `gumbel_top_k`; ranks need the scores of all members. Default None.

    Returns:
      Indices (k,) int32, in the order of the draw. The scores are not changed.

    Raises:
      ValueError: an argument outside its range; a negative score for "power", where values can be read.

    Example:
      >>> stochastic_acquisition(0, jnp.array([0.1, 0.9, 0.5]), 2, coldness=jnp.inf).tolist()
      [1, 2]

    Reference: Kirsch et al. Stochastic Batch Acquisition: A Simple Baseline for Deep Active Learning. 2021, arXiv
    2106.12059. Equal scores have ranks in their order; a public library takes the mean of their ranks.
    """
    checks.axis_name("axis_name", axis_name)
    checks.integer("k", k, 1)
    checks.choice("kind", kind, KINDS)
    checks.real("coldness", coldness, "[0, inf]")
    s = reals("stochastic_acquisition", "scores", scores, 1)
    k = checks.integer("k", k, 1, maximum=_size(len(s), axis_name))
    if kind == "power":
        refuse(
            "stochastic_acquisition", "scores", s, lambda x: ~(x >= 0), ">= 0 for kind='power'; write kind='softmax'"
        )
        s = jnp.log(s)
    elif kind == "softrank":
        s = -jnp.log(_ranks(s, axis_name).astype(s.dtype))
    cold = jnp.asarray(coldness).astype(s.dtype)
    G = _noise(key, s, axis_name)
    # The same order in two scales, of which one is finite at either end.
    one = jnp.ones_like(cold)
    perturbed = jnp.where(cold > 1, s + G / jnp.where(cold > 1, cold, one), jnp.where(cold > 1, one, cold) * s + G)
    return _top(jnp.where(s == -jnp.inf, s, perturbed), k, axis_name)


def _ranks(s: jax.Array, axis_name: Any) -> jax.Array:
    every = s if axis_name is None else jax.lax.all_gather(s, axis_name).reshape(-1)
    ranks = (
        jnp.zeros(len(every), jnp.int32)
        .at[jnp.argsort(-every, stable=True)]
        .set(jnp.arange(1, len(every) + 1, dtype=jnp.int32))
    )
    start = 0 if axis_name is None else jax.lax.axis_index(axis_name) * len(s)
    return jax.lax.dynamic_slice_in_dim(ranks, start, len(s))


SCORES = jax.ShapeDtypeStruct((16,), "float32")
register(gumbel_top_k, form="function", paper=PAPER, example={"key": 0, "logits": SCORES, "k": 4})
register(stochastic_acquisition, form="function", paper=PAPER, example={"key": 0, "scores": SCORES, "k": 4})
