"""Orthogonalisation, against singular value decompositions and scalar polynomials in float64 NumPy."""

import importlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.linalg import orthogonalize
from tests.by_numpy import by_numpy

# The module: its function has taken its name in the room.
module = importlib.import_module("gradkit.linalg.orthogonalize")
INTERVALS = {"muon": (0.68, 1.13), "dion": (0.978, 1.032), "polar_express": (0.876, 1.124)}


def with_values(s: Any, rows: int, cols: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix U diag(s) V^T, with U and V."""
    rng = np.random.default_rng(seed)
    U = np.linalg.qr(rng.standard_normal((rows, len(s))))[0]
    V = np.linalg.qr(rng.standard_normal((cols, len(s))))[0]
    return U * np.asarray(s) @ V.T, U, V


def polynomial(s: np.ndarray, triples: Any) -> np.ndarray:
    """What happens to singular values."""
    for a, b, c in triples:
        s = a * s + b * s**3 + c * s**5
    return s


@pytest.mark.parametrize("method", ["newton_schulz", "gram"])
@pytest.mark.parametrize("coefficients", INTERVALS)
def test_singular_vectors_stay_and_values_follow_the_polynomial(coefficients: str, method: str, x64: None) -> None:
    s = np.array([1.0, 0.5, 0.2, 0.05, 0.02])
    x, U, V = with_values(s, 5, 12)
    got = np.asarray(orthogonalize(jnp.asarray(x), coefficients=coefficients, method=method, eps=0.0))
    diagonal = U.T @ got @ V
    table = module.PRESETS[coefficients]
    triples = [table[min(i, len(table) - 1)] for i in range(5)]
    want = polynomial(s / np.linalg.norm(s), triples)
    # Rounding (2^-53) grows by at most the slope of the polynomial at 0, 8.3 * 4.1 * 3.9 * 3.3 * 2.3 = 1000.
    np.testing.assert_allclose(diagonal, np.diag(want), atol=1e-12)
    low, high = INTERVALS[coefficients]
    assert low < want.min() and want.max() < high


@pytest.mark.parametrize("coefficients", INTERVALS)
def test_the_printed_intervals(coefficients: str) -> None:
    """Over all of [0.01, 1] ([0.001, 1] for Polar Express), to the digits printed."""
    s = np.geomspace(0.001 if coefficients == "polar_express" else 0.01, 1, 100_000)
    table = module.PRESETS[coefficients]
    out = polynomial(s, [table[min(i, len(table) - 1)] for i in range(5)])
    low, high = INTERVALS[coefficients]
    assert low - 0.005 < out.min() < low + 0.006 and high - 0.006 < out.max() < high + 0.005


@pytest.mark.parametrize("method", ["newton_schulz", "gram"])
@pytest.mark.parametrize("steps", [1, 7, 9])
def test_safe_polar_express_is_the_papers(steps: int, method: str, x64: None) -> None:
    """Implementation 1 of arXiv 2505.16932: the norm times 1.01 plus 1e-7; all entries of the list but the last are
    divided by powers of 1.01. The first and the seventh entry, and the last, are written out."""
    safe = module.PRESETS["polar_express_safe"]
    assert len(safe) == 8 and safe[7] == (1.875, -1.25, 0.375)
    seventh = (1.8750014808534479, -1.2500016453999487, 0.3750001645474248)
    first = (8.28721201814563, -23.595886519098837, 17.300387312530933)
    for got, want in ((safe[0], first), (safe[6], seventh)):
        np.testing.assert_allclose(got, np.divide(want, (1.01, 1.01**3, 1.01**5)), rtol=1e-15)
    assert module.PRESETS["polar_express"][6] == seventh
    s = np.array([1.0, 0.5, 0.2, 0.05, 0.02])
    x, U, V = with_values(s, 5, 12)
    got = U.T @ orthogonalize(jnp.asarray(x), coefficients="polar_express_safe", steps=steps, method=method) @ V
    start = s / (1.01 * np.linalg.norm(s) + 1e-7)
    want = polynomial(start, [safe[min(i, 7)] for i in range(steps)])
    # As in the test of the other presets.
    np.testing.assert_allclose(got, np.diag(want), atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 6, 6), (3, 4, 9), (3, 9, 4), (2, 3, 5, 12), (1, 7)])
@pytest.mark.parametrize("method", ["newton_schulz", "gram", "svd"])
def test_the_transpose_and_the_batch(shape: tuple[int, ...], method: str, x64: None) -> None:
    x = jnp.asarray(np.random.default_rng(1).standard_normal(shape))
    got = orthogonalize(x, method=method)
    assert got.shape == x.shape and got.dtype == x.dtype
    turned = jnp.swapaxes(orthogonalize(jnp.swapaxes(x, -1, -2), method=method), -1, -2)
    np.testing.assert_allclose(got, turned, atol=1e-12)
    first = orthogonalize(x[(0,) * (x.ndim - 2)], method=method)
    np.testing.assert_allclose(got[(0,) * (x.ndim - 2)], first, atol=1e-12)


def test_gram_is_the_same_map(x64: None) -> None:
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 6, 20)))
    for steps in (1, 2, 3, 5, 9):
        for coefficients in ("muon", "dion", "polar_express"):
            plain, gram = (
                by_numpy(partial(orthogonalize, method=m, steps=steps, coefficients=coefficients))(x)
                for m in ("plain", "gram")
            )
            np.testing.assert_allclose(gram, plain, atol=1e-12)


def test_the_form_is_chosen_by_shape_and_dtype() -> None:
    """Fewer operations from m > 1.5 n on, and not in half precision, in which the Gram form is off."""

    def flops(n: int, m: int, method: str, dtype: Any) -> float:
        run = partial(orthogonalize, method=method, dtype=dtype)
        return jax.jit(run).lower(jax.ShapeDtypeStruct((n, m), jnp.float32)).cost_analysis()["flops"]

    for n, m, dtype, chosen in (
        (8, 12, None, "plain"),
        (8, 13, None, "gram"),
        (13, 8, None, "gram"),
        (8, 64, jnp.bfloat16, "plain"),
    ):
        cost = {method: flops(n, m, method, dtype) for method in ("newton_schulz", "plain", "gram")}
        assert cost["newton_schulz"] == cost[chosen]
        if m == 64:  # near 1.5 n it is the sums, which are not counted in the equations, that differ
            assert cost["gram"] < cost["plain"]


def test_the_gram_form_in_float32_is_no_farther_off() -> None:
    """Singular values down to 1e-5 of the largest, below the root of the rounding of R = X X^T. Errors of both forms
    are some roundings of 2^-24 times the slope of the map at 0, 3.4445^5 = 485."""
    s = np.geomspace(1, 1e-5, 16)
    x, U, V = with_values(s, 16, 48)
    want = U * polynomial(s / np.linalg.norm(s), module.PRESETS["muon"] * 5) @ V.T
    for method in ("plain", "gram"):
        got = np.asarray(orthogonalize(jnp.asarray(x, jnp.float32), method=method, eps=0.0))
        assert np.abs(got - want).max() < 10 * 485 * 2**-24


def test_svd_is_exact_and_drops_the_null_space(x64: None) -> None:
    x, U, V = with_values([3.0, 1.0, 1e-3], 6, 8)
    np.testing.assert_allclose(orthogonalize(jnp.asarray(x), method="svd"), U @ V.T, atol=1e-12)


@pytest.mark.parametrize("method", ["newton_schulz", "gram", "svd"])
@pytest.mark.parametrize("eps", [1e-7, 0.0])
def test_zeros_and_extreme_scales(method: str, eps: float) -> None:
    """Zeros give zeros, a constant factor changes nothing, though squares of float32 overflow or vanish."""
    x = np.random.default_rng(3).standard_normal((4, 12)).astype(np.float32)
    batch = jnp.asarray(np.stack([0 * x, x, 1e30 * x, 1e-4 * x]))
    got = np.asarray(orthogonalize(batch, method=method, eps=eps))
    assert not got[0].any()
    np.testing.assert_allclose(got[2], got[1], atol=1e-4)
    # eps = 1e-7 against the norm 7e-4: 1.4e-4 of the matrix, times the slope of the map, at most 3.4^5 at 0.
    np.testing.assert_allclose(got[3], got[1], atol=1e-4 if eps == 0 else 0.05)


@pytest.mark.parametrize("loop", [False, True])
def test_one_by_one_equals_batched(loop: bool, monkeypatch: pytest.MonkeyPatch, x64: None) -> None:
    monkeypatch.setattr(module, "LOOP_FROM", 1 if loop else 10**9)
    jax.clear_caches()
    x = jnp.asarray(np.random.default_rng(4).standard_normal((3, 5, 8)))
    want = [orthogonalize(x[i]) for i in range(3)]
    text = jax.jit(orthogonalize).lower(x).as_text()
    assert ("while" in text) == loop
    np.testing.assert_allclose(orthogonalize(x), np.stack(want), atol=1e-12)
    jax.clear_caches()


def test_zero_padding_changes_nothing(x64: None) -> None:
    x = np.random.default_rng(5).standard_normal((4, 7))
    padded = np.zeros((6, 11))
    padded[:4, 2:9] = x
    got = np.array(orthogonalize(jnp.asarray(padded)))
    np.testing.assert_allclose(got[:4, 2:9], orthogonalize(jnp.asarray(x)), atol=1e-13)
    got[:4, 2:9] = 0
    assert not got.any()


def test_lists_repeat_the_last_and_take_the_first(x64: None) -> None:
    x, U, V = with_values([0.8, 0.5, 0.3], 3, 4)
    three = [(2.0, -1.5, 0.5), (1.875, -1.25, 0.375), (1.5, -0.5, 0.0)]
    s = np.array([0.8, 0.5, 0.3]) / np.linalg.norm([0.8, 0.5, 0.3])
    for steps, used in ((5, [*three, three[2], three[2]]), (2, three[:2])):
        got = U.T @ orthogonalize(jnp.asarray(x), coefficients=three, steps=steps, eps=0.0) @ V
        np.testing.assert_allclose(got, np.diag(polynomial(s, used)), atol=1e-13)
    single = U.T @ orthogonalize(jnp.asarray(x), coefficients=three[0], steps=2, eps=0.0) @ V
    np.testing.assert_allclose(single, np.diag(polynomial(s, [three[0]] * 2)), atol=1e-13)
    converged = U.T @ orthogonalize(jnp.asarray(x), coefficients="polar_express", steps=12) @ V
    np.testing.assert_allclose(converged, np.eye(3), atol=1e-10)


def test_aol_needs_its_scaling(x64: None) -> None:
    """The scaled matrix has norm 1 at most; after four steps it is as orthogonal as five of Muon's make it."""
    x = jnp.asarray(np.random.default_rng(6).standard_normal((6, 9)))
    s = np.linalg.svd(np.asarray(orthogonalize(x, steps=4, coefficients="aol", precondition="aol")))[1]
    assert s.min() > 0.7 and s.max() < 1.2
    with pytest.raises(ValueError, match="need precondition='aol'"):
        orthogonalize(x, coefficients="aol")
    assert not np.asarray(orthogonalize(0 * x, coefficients="aol", precondition="aol")).any()


def test_quintic_behind_the_schatten_norm(x64: None) -> None:
    """The norm is (sum of s^4)^(1/4); after twelve steps of (2, -1.5, 0.5) values from 0.01 on are 1 up to rounding."""
    s = np.array([1.0, 0.5, 0.1, 0.03])
    x, U, V = with_values(s, 7, 4)
    norm = (s**4).sum() ** 0.25
    np.testing.assert_allclose(module.schatten4(jnp.asarray([x, 1e-200 * x])), [norm, 1e-200 * norm], rtol=1e-14)
    for steps in (3, 12):
        options: Any = {"coefficients": "quintic", "precondition": "schatten4", "steps": steps, "eps": 0.0}
        got = U.T @ np.asarray(orthogonalize(jnp.asarray(x), **options)) @ V
        # Rounding of 2^-53 grows by the slope at 0, 2, in every step while values are small.
        np.testing.assert_allclose(got, np.diag(polynomial(s / norm, [(2, -1.5, 0.5)] * steps)), atol=1e-12)
    assert abs(polynomial(np.geomspace(0.01, 1, 1000), [(2, -1.5, 0.5)] * 12) - 1).max() < 1e-14
    assert 4e-6 < abs(polynomial(np.array(0.001), [(2, -1.5, 0.5)] * 12) - 1) < 6e-6
    assert not np.asarray(orthogonalize(jnp.zeros((3, 4)), precondition="schatten4", eps=0.0)).any()


def test_low_precision() -> None:
    """Norms in float32, iterations in half precision: one rounding per step moves a singular value by some 2^-8."""
    x = jnp.asarray(np.random.default_rng(7).standard_normal((8, 32)), jnp.bfloat16)
    for method, dtype in (("newton_schulz", jnp.bfloat16), ("gram", jnp.float16)):
        got = orthogonalize(x, method=method, dtype=dtype, coefficients="dion")
        assert got.dtype == jnp.bfloat16
        s = np.linalg.svd(np.asarray(got, np.float64))[1]
        assert s.min() > 0.978 - 5 * 2**-8 and s.max() < 1.032 + 5 * 2**-8
    wide = orthogonalize(x)
    assert wide.dtype == jnp.bfloat16
    exact = orthogonalize(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(wide, exact)


def test_a_function_takes_its_place() -> None:
    x = jnp.asarray(np.random.default_rng(8).standard_normal((2, 9, 4)), jnp.float32)
    seen = []

    def half(batch: jax.Array) -> jax.Array:
        seen.append(batch.shape)
        return 0.5 * batch

    np.testing.assert_array_equal(orthogonalize(x, method=half), 0.5 * x)
    assert seen == [(2, 4, 9)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1"),
        ({"coefficients": "cubic"}, "coefficients must be one of"),
        ({"coefficients": (1.0, 2.0)}, "a triple"),
        ({"coefficients": [(1.0, 2.0, 3.0), (1.0, float("nan"), 3.0)]}, "finite"),
        ({"coefficients": ()}, "at least one triple"),
        ({"method": "grem"}, "did you mean 'gram'"),
        ({"eps": -1.0}, "eps must be in"),
        ({"precondition": "schatten"}, "precondition must be one of"),
        ({"dtype": jnp.int32}, "dtype must be a floating point dtype"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        orthogonalize(jnp.ones((2, 3)), **changes)
    with pytest.raises(ValueError, match="needs real matrices"):
        orthogonalize(jnp.ones(3))
    with pytest.raises(ValueError, match="needs real matrices"):
        orthogonalize(jnp.ones((3, 3), jnp.complex64))
