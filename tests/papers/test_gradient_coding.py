"""Gradient coding, and over rounds (Krishnan, Ebrahimi, Khisti, 2022)."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit import parallel


@pytest.mark.parametrize(
    ("n", "s", "kind"), [(7, 2, "cyclic"), (5, 0, "cyclic"), (4, 3, "cyclic"), (6, 2, "fractional")]
)
def test_every_pattern_of_stragglers_decodes(n: int, s: int, kind: str, x64: None) -> None:
    B = parallel.gradient_code(n, s, kind=kind, key=1)
    assert ((B != 0).sum(1) == s + 1).all()
    patterns = np.array([[i not in gone for i in range(n)] for gone in itertools.combinations(range(n), s)])
    a, possible = jax.jit(jax.vmap(lambda here: parallel.decode_gradients(B, here)))(jnp.asarray(patterns))
    assert possible.all()
    np.testing.assert_allclose(np.asarray(a) @ B, 1, atol=1e-9)
    assert not np.asarray(a)[~patterns].any()


def test_one_too_many_missing_is_said_and_not_approximated(x64: None) -> None:
    B = parallel.gradient_code(5, 1)
    with pytest.raises(ValueError, match="arrived must have enough workers to decode from, got 3 of 5"):
        parallel.decode_gradients(B, [True, True, True, False, False])
    a, possible = jax.jit(lambda here: parallel.decode_gradients(B, here))(jnp.array([True, True, True, False, False]))
    assert not possible and np.isnan(a).all()
    # Of a fractional code some patterns of more are enough.
    F = parallel.gradient_code(4, 1, kind="fractional")
    a, _ = parallel.decode_gradients(F, [True, False, True, False])
    np.testing.assert_allclose(a, [1, 0, 1, 0], atol=1e-12)


def test_the_mean_of_all_chunks_whoever_arrives(x64: None) -> None:
    """Of a tree, with one program for all patterns, and with rubbish where nothing came."""
    g = {"a": jnp.asarray(np.random.default_rng(0).standard_normal((5, 3))), "b": jnp.arange(5.0)}
    B = parallel.gradient_code(5, 2)
    sent = parallel.encode_gradients(B, g)
    mean = jax.jit(jax.vmap(lambda m, here: parallel.coded_mean(m, B, here), axis_name="replica", in_axes=(0, None)))
    for gone in ((0, 3), (1,), ()):
        here = np.array([i not in gone for i in range(5)])
        broken = jax.tree.map(lambda x, h=here: x.at[~h].set(np.nan), sent)
        out = mean(broken, jnp.asarray(here))
        np.testing.assert_allclose(out["a"], np.tile(np.mean(g["a"], axis=0), (5, 1)), atol=1e-9)
        np.testing.assert_allclose(out["b"], 2.0, atol=1e-9)
    assert np.isnan(mean(sent, jnp.array([True, True, False, False, False]))["a"]).all()


def test_without_redundancy_it_is_the_mean() -> None:
    x = jnp.arange(4.0)
    out = jax.vmap(lambda x: parallel.coded_mean(x, np.eye(4), np.ones(4, bool)), axis_name="replica")(x)
    np.testing.assert_allclose(out, 1.5, rtol=1e-6)


def bursts(n: int, B: int, W: int, lam: int, rounds: int, seed: int) -> np.ndarray:
    """Arrivals of a (B, W, lam)-bursty model: a round that would break it waits for all."""
    rng, arrived = np.random.default_rng(seed), np.ones((rounds, n), bool)
    for t in range(rounds):
        arrived[t] = rng.random(n) > 0.4
        window = ~arrived[max(0, t - W + 1) : t + 1]
        many = window.any(0).sum() > lam
        # A worker that straggles now was not one from W - 1 to B rounds ago.
        early = ~arrived[max(0, t - W + 1) : max(0, t - B + 1)]
        if many or (early.any(0) & ~arrived[t]).any():
            arrived[t] = True
    return arrived


@pytest.mark.parametrize("scheme", ["sr_sgc", "m_sgc"])
@pytest.mark.parametrize(("n", "B", "W", "lam"), [(4, 1, 2, 1), (6, 1, 3, 2), (5, 2, 3, 3), (4, 1, 2, 4)])
def test_every_job_is_decoded_in_time(scheme: str, n: int, B: int, W: int, lam: int) -> None:
    code = getattr(parallel, scheme)(n, B, W, lam)
    missed = 0
    for seed in range(20):
        arrived = bursts(n, B, W, lam, 12, seed)
        missed += int((~arrived).sum())
        for t in range(12 - code.delay):
            assert code.decodable(arrived[: t + code.delay + 1])[t], (seed, t)
    assert missed > 20


def test_loads_and_delays_are_those_of_the_formulas() -> None:
    code: Any = parallel.sr_sgc(8, 2, 5, 3)
    assert (code.stragglers, code.delay, code.load) == (1, 2, 2 / 8)  # ceil(2 * 3 / 6)
    code = parallel.m_sgc(8, 2, 5, 3)
    assert (code.delay, code.load) == (5, 4 * 6 / (8 * (2 + 4 * 4)))
    assert parallel.m_sgc(8, 2, 5, 8).load == 6 / (8 * 4)
    # The coding of many jobs together costs less than that of each by itself.
    assert code.load < (3 + 1) / 8


def test_without_stragglers_nothing_is_repeated() -> None:
    code = parallel.sr_sgc(4, 1, 2, 2)
    assert code.assign(np.ones((3, 4), bool)).tolist() == [3] * 4
    code = parallel.m_sgc(4, 1, 3, 2)
    np.testing.assert_array_equal(code.assign(np.ones((4, 4), bool)), [[0, 1, -1]] * 4)
    np.testing.assert_array_equal(code.assign(np.zeros((0, 4), bool)), [[0, -2, -2]] * 4)


def test_where_all_may_straggle_nothing_is_coded() -> None:
    """A chunk that failed is computed again, and a job is there when all chunks are."""
    code = parallel.m_sgc(3, 1, 2, 3)
    arrived = np.array([[True, False, False], [True, True, True]])
    np.testing.assert_array_equal(code.assign(arrived[:1]), [[0, -1], [0, 0], [0, 0]])
    assert code.decodable(arrived)[0] and not code.decodable(arrived[:1])[0]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="stragglers must be an integer from 0 to workers - 1"):
        parallel.gradient_code(3, 3)
    with pytest.raises(ValueError, match=r"workers must be a multiple of stragglers \+ 1"):
        parallel.gradient_code(5, 1, kind="fractional")
    with pytest.raises(ValueError, match="B must divide W - 1"):
        parallel.sr_sgc(4, 2, 4, 1)
    with pytest.raises(ValueError, match="lam must leave a worker"):
        parallel.sr_sgc(4, 1, 1, 4)
    with pytest.raises(ValueError, match="B must be below W"):
        parallel.m_sgc(4, 2, 2, 1)
    with pytest.raises(ValueError, match="got 3 rows and 2 replicas"):
        jax.vmap(lambda x: parallel.coded_mean(x, np.eye(3), np.ones(3, bool)), axis_name="replica")(jnp.ones(2))


@pytest.mark.parametrize(("n", "s"), [(16, 1), (8, 2), (3, 1), (5, 4)])
def test_any_set_of_enough_workers_decodes_in_float32(n: int, s: int) -> None:
    """Of plain normal numbers in the code, one set of thirty for 8 workers and two missing did not meet the sum."""
    missing = np.array(list(itertools.combinations(range(n), s)))[:500]
    arrived = np.ones((len(missing), n), bool)
    np.put_along_axis(arrived, missing, False, axis=1)
    decode = jax.jit(jax.vmap(parallel.decode_gradients, in_axes=(None, 0)))
    for key in range(3):
        B = parallel.gradient_code(n, s, key=key)
        a, possible = decode(B.astype(np.float32), arrived)
        assert np.asarray(possible).all(), (key, missing[~np.asarray(possible)])
        np.testing.assert_allclose(np.asarray(a, np.float64) @ B, 1.0, rtol=0, atol=1e-3)
