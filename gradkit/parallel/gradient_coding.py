"""Gradient coding: redundant work, so that the workers that arrive in time are enough for the sum of all gradients."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import cast, wide_dtype
from gradkit.engine.keys import as_key, check_key
from gradkit.parallel.compressors import number_of_replicas
from gradkit.types import Key

PAPER = Paper("Sequential Gradient Coding For Straggler Mitigation", "Krishnan, Ebrahimi, Khisti", 2022, "2211.13802")
KINDS = ("cyclic", "fractional")
# The largest error of a system that counts as solved, half of float32's digits: beyond, too few workers have arrived.
MET = 1e-4
# The number of random codes that are drawn, and of patterns of missing workers in which they are compared.
DRAWS, PATTERNS = 16, 256


def gradient_code(workers: int, stragglers: int, *, kind: str = "cyclic", key: Key = 0) -> np.ndarray:
    """The matrix B of a gradient code: which chunks a worker computes, and with which coefficients it adds them.

    Equations, for n workers and as many chunks of data with the gradients g_j, of which worker i computes s + 1 and
    sends l_i; for any set F of n - s workers there are coefficients a with a B_F = (1, ..., 1):

        l_i = sum_j B_ij g_j
        sum over i in F of a_i l_i = g_1 + ... + g_n

    "cyclic": worker i has the chunks i, ..., i + s. H is a random s x n matrix whose rows add up to 0, the best
    conditioned of a few draws, and row i of B is the vector on these chunks with B_ii = 1 and H B_i = 0. "fractional",
    where s + 1 divides n: groups of s + 1 workers have the same s + 1 chunks with coefficients 1, and any worker of a
    group is enough.

    Args:
      workers: n >= 1, of as many chunks.
      stragglers: s, the number of workers that may be missing, from 0 to n - 1.
      kind: "cyclic", for any s; its coefficients grow with n and s, to hundreds for 32 workers and s = 2, which costs
        as many digits of precision. Or "fractional", where s + 1 divides n, with coefficients 1. Default "cyclic".
      key: of the random matrix behind the cyclic code (typed key or integer). Default 0.

    Returns:
      A float64 NumPy array (n, n), s + 1 entries per row that are not 0.

    Raises:
      ValueError: an argument outside its range; s >= n; a fractional code where s + 1 does not divide n.

    Example:
      >>> B = gradient_code(4, 1)
      >>> print((B != 0).astype(int))
      [[1 1 0 0]
       [0 1 1 0]
       [0 0 1 1]
       [1 0 0 1]]

    Reference: The codes of Tandon et al. Gradient Coding. 2016, arXiv 1612.03301; used over rounds by Krishnan,
    Ebrahimi, Khisti. Sequential Gradient Coding For Straggler Mitigation. 2022, arXiv 2211.13802.
    """
    n, s = checks.integer("workers", workers, 1), checks.integer("stragglers", stragglers)
    checks.choice("kind", kind, KINDS)
    check_key(key)
    if s >= n:
        raise ValueError(f"stragglers must be an integer from 0 to workers - 1 = {n - 1}, got {s}; write a smaller one")
    if kind == "fractional":
        if n % (s + 1):
            raise ValueError(
                f"workers must be a multiple of stragglers + 1 = {s + 1} for kind='fractional', got {n}; write "
                "kind='cyclic'"
            )
        return np.kron(np.eye(n // (s + 1)), np.ones((s + 1, s + 1)))
    if s == 0:
        return np.eye(n)
    random = np.random.default_rng(np.asarray(jax.random.key_data(as_key(key))))
    missing = np.stack([random.permutation(n)[:s] for _ in range(PATTERNS)])
    # Some random codes have decoding coefficients in the thousands, which costs as many digits of precision.
    return min((_cyclic(n, s, random) for _ in range(DRAWS)), key=lambda B: _largest_coefficient(B, missing))


def _cyclic(n: int, s: int, random: np.random.Generator) -> np.ndarray:
    """B of one H, whose columns have about the same length."""
    H, B = random.standard_normal((s, n)), np.eye(n)
    for _ in range(20):
        H -= H.mean(1, keepdims=True)
        H /= np.linalg.norm(H, axis=0)
    H -= H.mean(1, keepdims=True)
    for i in range(n):
        others = [(i + d) % n for d in range(1, s + 1)]
        B[i, others] = -np.linalg.solve(H[:, others], H[:, i])
    return B


def _largest_coefficient(B: np.ndarray, missing: np.ndarray) -> float:
    """The largest decoding coefficient over patterns of missing workers."""
    own = np.repeat(B[None], len(missing), axis=0)
    own[np.arange(len(missing))[:, None], missing] = 0.0
    return float(np.abs(np.linalg.pinv(np.swapaxes(own, 1, 2)) @ np.ones(len(B))).max())


def encode_gradients(B: Any, chunk_grads: Any) -> Any:
    """The messages of all workers, l_i = sum_j B_ij g_j.

    Args:
      B: a matrix of `gradient_code`, (n, n); or some of its rows.
      chunk_grads: a tree of the gradients of all chunks, (n, ...).

    Returns:
      A tree with a leading axis of workers.

    Example:
      >>> print(encode_gradients(gradient_code(2, 1, kind="fractional"), jnp.array([1.0, 2.0])))
      [3. 3.]
    """
    B = jnp.asarray(B)

    def leaf(g: jax.Array) -> jax.Array:
        wide = g.astype(wide_dtype(g.dtype))
        return jnp.tensordot(B.astype(wide.dtype), wide, axes=1, precision="highest").astype(g.dtype)

    return jax.tree.map(leaf, chunk_grads)


def decode_gradients(B: Any, arrived: Any) -> tuple[jax.Array, jax.Array]:
    """The coefficients with which the messages that arrived add up to the sum of all gradients.

    Args:
      B: a matrix of `gradient_code`, (n, n).
      arrived: (n,) booleans, which may be traced.

    Returns:
      (a, possible): (n,) coefficients, 0 for missing workers; and whether they give the sum. Where too many workers are
      missing, `a` is NaN, not the nearest solution.

    Raises:
      ValueError: `arrived` is concrete, and too many are missing.

    Example:
      >>> B = gradient_code(3, 1)
      >>> a, possible = decode_gradients(B, [True, False, True])
      >>> print((a @ B).round(4), bool(possible), float(a[1]))
      [1. 1. 1.] True 0.0
    """
    B = cast(jnp.asarray(B), wide_dtype(jnp.asarray(B).dtype))
    here = jnp.asarray(arrived)
    if here.shape != B.shape[:1] or here.dtype != bool:
        raise ValueError(
            f"arrived must be {B.shape[0]} booleans, one per worker, got {here.dtype} of shape {here.shape}"
        )
    own = B * here[:, None].astype(B.dtype)
    ones = jnp.ones((B.shape[1],), B.dtype)
    a = jnp.linalg.lstsq(own.T, ones)[0] * here.astype(B.dtype)
    possible = jnp.max(jnp.abs(jnp.matmul(a, own, precision="highest") - ones)) < MET
    if not isinstance(possible, jax.core.Tracer) and not bool(possible):
        raise ValueError(
            f"arrived must have enough workers to decode from, got {int(here.sum())} of {len(here)}; wait for more, or "
            "write a code with more stragglers"
        )
    return jnp.where(possible, a, jnp.full_like(a, jnp.nan)), possible


def coded_mean(message: Any, B: Any, arrived: Any, axis_name: Any = "replica") -> Any:
    """The mean of the gradients of all chunks, from the messages of the workers that arrived.

    Equations:

        mean = (1/n) sum over the arrived workers of a_i l_i,    a = decode_gradients(B, arrived)

    XLA's collectives wait for all devices: this is for simulation, and for processes that pass on what has arrived.

    Args:
      message: l_i of this replica, a tree; that of a missing worker is not read.
      B: a matrix of `gradient_code`, one row per replica.
      arrived: (n,) booleans, the same on all replicas; may be traced: another pattern needs no new program.
      axis_name: name of the axis of the replicas. Default "replica".

    Returns:
      A tree like the message, the same on all replicas; NaN where too many are missing. Collectives: one all-reduce of
      the tree.

    Raises:
      ValueError: another number of replicas than rows; no axis of this name; `arrived` concrete and too many missing.

    Example:
      >>> B = gradient_code(3, 1, key=1)
      >>> sent = encode_gradients(B, jnp.array([3.0, 6.0, 9.0]))
      >>> arrived = jnp.array([True, True, False])
      >>> print(jax.vmap(lambda x: coded_mean(x, B, arrived), axis_name="replica")(sent).round(4))
      [6. 6. 6.]

    Reference: Krishnan, Ebrahimi, Khisti. Sequential Gradient Coding For Straggler Mitigation. 2022, arXiv 2211.13802.
    """
    replicas, n = number_of_replicas("coded_mean", axis_name), np.shape(B)[0]
    if replicas != n:
        raise ValueError(
            f"coded_mean: B must have one row per replica, got {n} rows and {replicas} replicas along {axis_name!r}; "
            f"write gradient_code({replicas}, ...)"
        )
    a, _ = decode_gradients(B, arrived)
    own, i = a[jax.lax.axis_index(axis_name)], jax.lax.axis_index(axis_name)
    counts = jnp.asarray(arrived)[i]

    def weighed(x: jax.Array) -> jax.Array:
        wide = jnp.asarray(x).astype(wide_dtype(x.dtype))
        # The message of a missing worker is not read, except that NaN coefficients must reach the result.
        return jnp.where(counts | jnp.isnan(own), own.astype(wide.dtype) * wide / n, jnp.zeros_like(wide))

    total = jax.lax.psum(jax.tree.map(weighed, message), axis_name)
    return jax.tree.map(lambda t, x: t.astype(x.dtype), total, message)


class SequentialCode(NamedTuple):
    """A coding scheme over rounds, in NumPy.

    Attributes:
      delay: number of rounds after its own in which a job is decoded.
      load: fraction of a job's data that a worker computes per round.
      stragglers: s of the code of a job (SR-SGC), or lam of the codes of its groups (M-SGC).
      assign: arrived, (rounds, workers) booleans of the rounds so far -> the tasks of every worker in the next round:
        in SR-SGC an array (workers,) of jobs; in M-SGC (workers, W - 1 + B) mini-tasks: the number of the worker's own
        chunk, -1 for a coded part, -2 for none, where there is no such job yet.
      decodable: arrived of all rounds so far -> (jobs,) booleans: which jobs, from 0 on, can be decoded.
    """

    delay: int
    load: float
    stragglers: int
    assign: Callable[[np.ndarray], np.ndarray]
    decodable: Callable[[np.ndarray], np.ndarray]


def _check_burst(n: int, B: int, W: int, lam: int, fewest: int) -> tuple[int, int, int, int]:
    n, B = checks.integer("n", n, 1), checks.integer("B", B, 1)
    W, lam = checks.integer("W", W, fewest), checks.integer("lam", lam)
    if lam > n:
        raise ValueError(f"lam must be an integer from 0 to n = {n}, got {lam}; write the number of workers or less")
    return n, B, W, lam


def _rounds(arrived: Any, n: int) -> np.ndarray:
    arrived = np.asarray(arrived, bool)
    if arrived.ndim != 2 or arrived.shape[1] != n:
        raise ValueError(f"arrived must be booleans (rounds, {n}), got shape {arrived.shape}; write one row per round")
    return arrived


def sr_sgc(n: int, B: int, W: int, lam: int) -> SequentialCode:
    """SR-SGC, selective repetition: workers that straggled repeat the job of B rounds ago, as many of them as it needs.

    Job t, of round t, is coded by a `gradient_code` with

        s = ceil(B lam / (W - 1 + B))

    In round t + B as many of the workers that failed job t as are needed repeat it, and it is decoded. The delay is B,
    the load (s + 1) / n. Stragglers may be (B, W, lam)-bursty: in any W rounds at most lam workers straggle, each
    within B rounds in a row.

    Args:
      n: number of workers.
      B: rounds in a row that a straggler may miss, >= 1; divides W - 1.
      W: length of a window of rounds, >= 1.
      lam: number of workers that may straggle in a window, from 0 to n.

    Returns:
      A `SequentialCode`, whose `stragglers` is s = ceil(B lam / (W - 1 + B)).

    Raises:
      ValueError: an argument outside its range; B that does not divide W - 1; s >= n.

    Example:
      >>> code = sr_sgc(4, 1, 2, 2)
      >>> code.stragglers, code.delay, code.load
      (1, 1, 0.5)
      >>> rounds = np.array([[True, True, False, False]])  # two of four missed job 0, one of them must repeat it
      >>> code.assign(rounds).tolist()
      [1, 1, 0, 1]

    Reference: Krishnan, Ebrahimi, Khisti. Sequential Gradient Coding For Straggler Mitigation. 2022, arXiv 2211.13802.
    """
    n, B, W, lam = _check_burst(n, B, W, lam, 1)
    if (W - 1) % B:
        raise ValueError(f"B must divide W - 1, got B={B} and W={W}; write W={(W - 1) // B * B + 1}")
    s = math.ceil(B * lam / (W - 1 + B))
    if s >= n:
        raise ValueError(f"lam must leave a worker, got lam={lam} of n={n}, which asks for s={s}; write a smaller one")

    def tasks(arrived: np.ndarray) -> np.ndarray:
        """(rounds + 1, n): the job of every worker in every round so far and in the next one."""
        jobs = np.zeros((len(arrived) + 1, n), int)
        for t in range(len(arrived) + 1):
            jobs[t] = t
            if t >= B:
                done = (jobs[t - B] == t - B) & arrived[t - B]
                jobs[t, np.flatnonzero(~done)[: max(0, n - s - int(done.sum()))]] = t - B
        return jobs

    def assign(arrived: Any) -> np.ndarray:
        return tasks(_rounds(arrived, n))[-1]

    def decodable(arrived: Any) -> np.ndarray:
        arrived = _rounds(arrived, n)
        jobs, rounds = tasks(arrived), len(arrived)
        got = np.zeros((rounds, n), bool)
        for t in range(rounds):
            for u in range(t, min(t + B + 1, rounds)):
                got[t] |= (jobs[u] == t) & arrived[u]
        return got.sum(1) >= n - s

    return SequentialCode(B, (s + 1) / n, s, assign, decodable)


def m_sgc(n: int, B: int, W: int, lam: int) -> SequentialCode:
    """M-SGC, multiplexed coding: most of a job is uncoded, and repeated where it failed; the rest is coded.

    A job is W - 1 + B mini-tasks per worker, one per round: the first W - 1 are the worker's own chunks, uncoded; each
    of the last B is a coded part, or a repetition of an own chunk that failed. Mini-task m of round r belongs to job
    r - m, and job t is decoded in round t + W - 2 + B. Stragglers may be (B, W, lam)-bursty, as in `sr_sgc`.

    Args:
      n: number of workers.
      B: rounds in a row that a straggler may miss, >= 1, below W.
      W: length of a window of rounds, >= 2.
      lam: number of workers that may straggle in a window, from 0 to n.

    Returns:
      A `SequentialCode`. With lam = n there is no coded part.

    Raises:
      ValueError: an argument outside its range; B >= W.

    Example:
      >>> code = m_sgc(4, 1, 2, 4)  # nothing is coded: chunks are repeated
      >>> code.delay, code.load
      (1, 0.5)

    Reference: Krishnan, Ebrahimi, Khisti. Sequential Gradient Coding For Straggler Mitigation. 2022, arXiv 2211.13802.
    """
    n, B, W, lam = _check_burst(n, B, W, lam, 2)
    if B >= W:
        raise ValueError(f"B must be below W, got B={B} and W={W}; write a longer window")
    own, mini = W - 1, W - 1 + B
    load = mini / (n * own) if lam == n else (lam + 1) * mini / (n * (B + own * (lam + 1)))

    def history(arrived: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The tasks of every worker in every round and the next one (rounds + 1, n, mini), the own chunks of every job
        that arrived (jobs, n, own), and its coded parts (jobs, n, B)."""
        rounds = len(arrived)
        does = np.full((rounds + 1, n, mini), -2)
        chunks, pieces = np.zeros((rounds + 1, n, own), bool), np.zeros((rounds + 1, n, B), bool)
        for r in range(rounds + 1):
            for m in range(min(mini, r + 1)):
                job = r - m
                for i in range(n):
                    missing = np.flatnonzero(~chunks[job, i])
                    does[r, i, m] = m if m < own else (missing[0] if len(missing) else -1)
                    if r < rounds and arrived[r, i]:
                        if does[r, i, m] >= 0:
                            chunks[job, i, does[r, i, m]] = True
                        else:
                            pieces[job, i, m - own] = True
        return does, chunks[:rounds], pieces[:rounds]

    def assign(arrived: Any) -> np.ndarray:
        return history(_rounds(arrived, n))[0][-1]

    def decodable(arrived: Any) -> np.ndarray:
        _, chunks, pieces = history(_rounds(arrived, n))
        return chunks.all((1, 2)) & (pieces.sum(1) >= n - lam).all(1)

    return SequentialCode(mini - 1, load, lam, assign, decodable)


register(gradient_code, form="function", paper=PAPER, example={"workers": 4, "stragglers": 1})
register(sr_sgc, form="program", paper=PAPER, notes="assignment and decodability tables over rounds, of NumPy")
register(m_sgc, form="program", paper=PAPER, notes="assignment and decodability tables over rounds, of NumPy")
register(
    coded_mean,
    form="program",
    paper=PAPER,
    delay="the slowest are not waited for: as many as the code was made for",
    collectives="replicas",
    notes="inside `vmap` or `shard_map`; from the workers that are in time",
)
