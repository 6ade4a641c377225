"""JEST: batches of a contrastive learner, chosen jointly out of larger ones by what is left to be learned."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.batches.stochastic_acquisition import gumbel_top_k
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import reals, refuse
from gradkit.engine.keys import as_key
from gradkit.types import Key, Scalar

PAPER = Paper(
    "Data curation via joint example selection further accelerates multimodal learning",
    "Evans et al.",
    2024,
    "2406.17711",
)
SCORES = ("learnability", "easy_reference", "hard_learner")


def _losses(method: str, learner: Any, reference: Any) -> tuple[jax.Array, jax.Array]:
    learner, reference = reals(method, "learner", learner, 2), reals(method, "reference", reference, 2)
    if learner.shape != reference.shape or learner.shape[0] != learner.shape[1]:
        raise ValueError(
            f"{method}: learner and reference must be losses of all pairs (B, B), got {learner.shape} and "
            f"{reference.shape}; write softplus(-y z) of the sigmoid loss"
        )
    for name, x in (("learner", learner), ("reference", reference)):
        refuse(method, name, x, lambda x: x != x, "numbers, not NaN")
    return learner, reference


def learnability(learner: Any, reference: Any, *, score: str = "learnability") -> jax.Array:
    """What every pair of a super-batch is worth: a loss that the learner still has, and a trained model has not.

        learnability      S_ij = L_ij of the learner - L_ij of the reference
        hard_learner      S_ij = L_ij of the learner
        easy_reference    S_ij = -L_ij of the reference

    With the sigmoid loss, L_ij = softplus(-y_ij z_ij), the score of a batch is the sum over its pairs.

    Args:
      learner: (B, B), floating point: the losses of all pairs of images and texts.
      reference: (B, B), of a model that is trained on curated data.
      score: as above. Default "learnability" (paper).

    Returns:
      S, (B, B), float32 or wider.

    Raises:
      ValueError: matrices that are not square or differ in shape; a NaN, where values can be read.

    Example:
      >>> learnability(jnp.array([[2.0]]), jnp.array([[0.5]])).tolist()
      [[1.5]]

    Reference: Evans et al. Data curation via joint example selection further accelerates multimodal learning. 2024,
    arXiv 2406.17711.
    """
    checks.arrays(learner=learner)
    checks.choice("score", score, SCORES)
    learner, reference = _losses("learnability", learner, reference)
    if score == "learnability":
        return learner - reference
    return learner if score == "hard_learner" else -reference


def jest_select(
    key: Key,
    learner: Any,
    reference: Any,
    *,
    num_chunks: int = 16,
    filter_ratio: Scalar = 0.8,
    score: str = "learnability",
    first: str = "diagonal",
    temperature: Scalar = 1.0,
) -> jax.Array:
    """A batch out of a super-batch, chunk by chunk, whose pairs are worth most together.

        m = floor(B (1 - filter_ratio) / num_chunks)
        the first chunk: m draws without replacement with logits S_ii
        every other: with k the indicator of what is chosen, logits_i = S_ii + sum_j k_j (S_ij + S_ji), and m draws

    logits_i is exactly what the score of the batch, the sum of S over its pairs, gains by i. S is `learnability`.

    Args:
      key: a typed key or an integer, another one in every step.
      learner: (B, B) losses of all pairs of the super-batch: of the sigmoid loss, whose score is a sum over pairs.
      reference: (B, B) losses of the reference model.
      num_chunks: >= 1. Default 16 (paper).
      filter_ratio: share of the super-batch that is left out, in [0, 1). Default 0.8 (paper).
      score: see `learnability`. Default "learnability".
      first: logits of the first chunk: "diagonal" (the paper's listing), or "uniform". Default "diagonal".
      temperature: of the logits, >= 0; 0 is greedy. Logits grow with what is chosen, so that late chunks are nearly
        greedy at any. Default 1.

    Returns:
      Indices (m num_chunks,) int32, in the order of choice; no one twice. m rows and columns of S are read per chunk.

    Raises:
      ValueError: an argument outside its range; chunks of no example; losses that are not (B, B).

    Example:
      >>> losses = jnp.diag(jnp.arange(10.0))
      >>> jest_select(0, losses, 0 * losses, num_chunks=2, temperature=0.0).tolist()
      [9, 8]

    Reference: Evans et al. Data curation via joint example selection further accelerates multimodal learning. 2024,
    arXiv 2406.17711. A public port overwrites the losses of the reference by the learner's, so that all scores are 0;
    and it divides logits by twice the number chosen, for which there is `temperature`.
    """
    checks.arrays(learner=learner)
    chunks = checks.integer("num_chunks", num_chunks, 1)
    checks.choice("score", score, SCORES)
    checks.choice("first", first, ("diagonal", "uniform"))
    checks.real("filter_ratio", filter_ratio, "[0, 1)")
    checks.real("temperature", temperature, "[0, inf)")
    ratio = checks.readable(filter_ratio)
    if ratio is None:
        raise ValueError("filter_ratio must be known when the program is built, got a traced value; write a number")
    learner, reference = _losses("jest_select", learner, reference)
    S = learnability(learner, reference, score=score)
    B = len(S)
    # 100 (1 - 0.8) / 4 is 4.999... in floating point.
    m = math.floor(round(B * (1 - ratio) / chunks, 9))
    if m < 1:
        raise ValueError(
            f"jest_select: num_chunks must leave examples for every chunk, got {chunks} chunks of {B} (1 - {ratio}) "
            "examples; write fewer chunks or a smaller filter_ratio"
        )
    own = jnp.diagonal(S)
    heat = jnp.asarray(temperature).astype(S.dtype)

    def draw(key: Any, logits: jax.Array, heat: jax.Array) -> jax.Array:
        """The order of logits / temperature plus noise, at temperature 0 too."""
        noise = jax.random.gumbel(key, logits.shape, logits.dtype)
        return jax.lax.top_k(logits + heat * noise, m)[1].astype(jnp.int32)

    keys = jax.random.split(as_key(key), chunks)
    begin = gumbel_top_k(keys[0], jnp.zeros_like(own), m) if first == "uniform" else draw(keys[0], own, heat)

    def add(logits: jax.Array, i: jax.Array) -> jax.Array:
        return (logits + jnp.sum(S[i], axis=0) + jnp.sum(S[:, i], axis=1)).at[i].set(-jnp.inf)

    def chunk(logits: jax.Array, key: Any) -> tuple[jax.Array, jax.Array]:
        i = draw(key, logits, heat)
        return add(logits, i), i

    _, rest = jax.lax.scan(chunk, add(own, begin), keys[1:])
    return jnp.concatenate([begin, rest.reshape(-1)])


LOSSES = jax.ShapeDtypeStruct((20, 20), "float32")
register(
    jest_select,
    form="function",
    paper=PAPER,
    example={"key": 0, "learner": LOSSES, "reference": LOSSES, "num_chunks": 2},
)
register(learnability, form="function", paper=PAPER, example={"learner": LOSSES, "reference": LOSSES})
