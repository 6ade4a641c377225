"""Tails of spectra without the bias of aspect ratios (Hu et al., 2025)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.diagnostics import farms_eigs, layer_alphas, powerlaw_alpha, tempbalance_rates
from tests.papers.replay import normal


def windows(w: np.ndarray, rows: int, q: float, ops: int) -> np.ndarray:
    """One window after another."""
    r = min(rows, *w.shape)
    c = int(r * q)
    steps = [max(1, (n - size) // (ops - 1)) for n, size in zip(w.shape, (r, c), strict=True)]
    counts = [min(ops, max(1, (n - size) // s + 1)) for n, size, s in zip(w.shape, (r, c), steps, strict=True)]
    found = []
    for i in range(counts[0]):
        for j in range(counts[1]):
            a, b = min(i * steps[0], w.shape[0] - r), min(j * steps[1], w.shape[1] - c)
            found.append(np.linalg.svd(w[a : a + r, b : b + c], compute_uv=False) ** 2)
    return np.sort(np.concatenate(found))


@pytest.mark.parametrize(
    ("shape", "rows", "q", "ops"), [((12, 17), 4, 2.0, 3), ((7, 30), 10, 1.5, 5), ((9, 9), 9, 1, 4)]
)
def test_windows(shape: tuple[int, int], rows: int, q: float, ops: int, x64: None) -> None:
    w = normal(0, *shape)
    got = jax.jit(lambda w: farms_eigs(w, num_row_samples=rows, q_ratio=q, ops_per_dim=ops))(w)
    np.testing.assert_allclose(got, windows(np.asarray(w), rows, q, ops), rtol=1e-10)


def test_windows_at_a_fixed_distance(x64: None) -> None:
    """Every fifth place: starts 0, 5 along rows and 0, 5, 10 along columns."""
    w = np.asarray(normal(0, 9, 16))
    found = [np.linalg.svd(w[a : a + 4, b : b + 4], compute_uv=False) ** 2 for a in (0, 5) for b in (0, 5, 10)]
    got = farms_eigs(w, num_row_samples=4, q_ratio=1, ops_per_dim=None, step_size=5)
    np.testing.assert_allclose(got, np.sort(np.concatenate(found)), rtol=1e-10)


def test_rows_and_columns_are_not_interchangeable(x64: None) -> None:
    """With windows of two columns per row a matrix and its transpose differ; windows wider than it are refused."""
    w = normal(0, 20, 20)
    a, b = (np.asarray(farms_eigs(x, num_row_samples=4)) for x in (w, w.T))
    assert a.shape == b.shape and np.abs(a - b).max() > 0.1
    with pytest.raises(ValueError, match="q_ratio must give windows of 1 to 8 columns"):
        farms_eigs(w[:8].T, num_row_samples=8)


def test_the_exponent_of_a_power_law(x64: None) -> None:
    """Quantiles of p(e) ~ e^-alpha: Hill's estimate of the upper half and the scan give alpha, at a small distance."""
    alpha, n = 2.7, 4000
    e = jnp.asarray((1 - (np.arange(n) + 0.5) / n) ** (-1 / (alpha - 1)))
    found = powerlaw_alpha(e)
    assert float(found.alpha) == pytest.approx(alpha, rel=5e-3) and float(found.distance) < 2e-3
    i = n // 2
    tail = np.log(np.asarray(e)[i:])
    want = 1 + (n - i) / (tail.sum() - (n - i) * tail[0])
    assert float(found.alpha) == pytest.approx(want, rel=1e-12)
    off = np.abs(1 - np.exp((1 - want) * (tail - tail[0])) - np.arange(n - i) / (n - i)).max()
    assert float(found.distance) == pytest.approx(off, rel=1e-9)


def test_the_scan_takes_the_smallest_distance(x64: None) -> None:
    """Uniform below 1 and, for a tenth, a power law of exponent 4 above: the tail begins near 1, not at the median."""
    rng = np.random.default_rng(0)
    e = np.sort(np.concatenate([rng.uniform(0, 1, 900), rng.uniform(0, 1, 100) ** (-1 / 3)]))
    scanned = jax.jit(lambda e: powerlaw_alpha(e, fitting="goodness-of-fit"))(jnp.asarray(e))
    best, distance = 0.0, np.inf
    for i in range(len(e) - 1):
        tail, n = np.log(e[i:]), len(e) - i
        alpha = 1 + n / (tail.sum() - n * tail[0])
        off = np.abs(1 - np.exp((1 - alpha) * (tail - tail[0])) - np.arange(n) / n).max()
        if alpha > 1 and off < distance:
            best, distance = alpha, off
    assert float(scanned.alpha) == pytest.approx(best, rel=1e-9)
    assert float(scanned.distance) == pytest.approx(distance, rel=1e-9)
    # Of a hundred values the exponent less 1 is known to a tenth, 0.3.
    assert abs(best - 4) < 0.5 < abs(float(powerlaw_alpha(jnp.asarray(e)).alpha) - 4)


def test_shapes_do_not_bias_the_exponent(x64: None) -> None:
    """Gaussian matrices of aspect ratios 1 to 8: windows give the same exponent, the whole matrices do not."""
    shapes = [(64, 64), (64, 128), (64, 512)]
    matrices = [normal(i, *s) for i, s in enumerate(shapes)]
    own = [float(powerlaw_alpha(farms_eigs(w, num_row_samples=32, q_ratio=1, ops_per_dim=6)).alpha) for w in matrices]
    whole = [float(powerlaw_alpha(np.sort(np.linalg.svd(w, compute_uv=False) ** 2)).alpha) for w in matrices]
    assert np.ptp(own) < 0.1 * np.mean(own)
    assert np.ptp(whole) > 0.5 * np.mean(whole)


def test_layers_of_a_model(x64: None) -> None:
    """Kernels are transposed, a stack of layers gives a number each, a convolution the mean over its blocks."""
    params = {
        "Dense_0": {"kernel": normal(0, 40, 24), "bias": normal(1, 24)},
        "ScanBlock_0": {"Dense_0": {"kernel": normal(2, 3, 24, 24)}},
        "Conv_0": {"kernel": normal(3, 3, 3, 8, 16)},
        "Embed_0": {"embedding": normal(4, 50, 24)},
    }
    found = layer_alphas(params, num_row_samples=8, q_ratio=1.0, ops_per_dim=4)
    assert set(found) == {"Dense_0/kernel", "ScanBlock_0/Dense_0/kernel", "Conv_0/kernel"}
    alpha = lambda w: float(  # noqa: E731
        powerlaw_alpha(farms_eigs(w, num_row_samples=8, q_ratio=1.0, ops_per_dim=4)).alpha
    )
    assert float(found["Dense_0/kernel"]) == pytest.approx(alpha(params["Dense_0"]["kernel"].T), rel=1e-9)
    stack = params["ScanBlock_0"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(found["ScanBlock_0/Dense_0/kernel"], [alpha(w.T) for w in stack], rtol=1e-9)
    # 16 outputs x 8 inputs per place: two blocks of 8 rows, their eigenvalues halved and pooled over nine places.
    kernel = np.asarray(params["Conv_0"]["kernel"]).reshape(9, 8, 16)
    alphas = []
    for block in range(2):
        parts = [np.linalg.svd(np.sqrt(0.5) * w.T[8 * block : 8 * block + 8], compute_uv=False) ** 2 for w in kernel]
        alphas.append(float(powerlaw_alpha(np.sort(np.concatenate(parts))).alpha))
    assert float(found["Conv_0/kernel"]) == pytest.approx(np.mean(alphas), rel=1e-9)


def test_rates_by_exponents() -> None:
    """Linear between half and one and a half; first and last layers keep the rate and do not set the range."""
    alphas = {"a": 99.0, "b": 2.0, "c": jnp.array([3.0, 6.0]), "d": -5.0}
    got = tempbalance_rates(alphas, 0.4)
    np.testing.assert_allclose(got["b"], 0.2, rtol=1e-6)
    np.testing.assert_allclose(got["c"], [0.3, 0.6], rtol=1e-6)
    assert float(got["a"]) == pytest.approx(0.4) == float(got["d"])
    both = tempbalance_rates({"a": 1.0, "b": 3.0}, low=1.0, high=2.0, ends=True)
    assert [float(x) for x in both.values()] == [1.0, 2.0]
    assert float(tempbalance_rates({"a": 1.0, "b": 3.0, "c": 2.0}, 0.3)["b"]) == pytest.approx(0.3)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="w must be a real matrix"):
        farms_eigs(jnp.ones(3))
    with pytest.raises(ValueError, match="num_row_samples must be an integer >= 1"):
        farms_eigs(jnp.ones((3, 3)), num_row_samples=0)
    with pytest.raises(ValueError, match="fitting must be one of"):
        powerlaw_alpha(jnp.ones(3), fitting="mean")
    with pytest.raises(ValueError, match="eigs must be a real vector"):
        powerlaw_alpha(jnp.ones(1))
    with pytest.raises(ValueError, match="high must be at least low"):
        tempbalance_rates({"a": 1.0}, low=2.0)
