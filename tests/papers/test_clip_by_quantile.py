"""Clipping of the largest coordinates (Pan, Li, 2023)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from gradkit.optimizers.filters.clip_by_quantile import kth_largest
from tests.papers.replay import assert_equal, normal, updates


@pytest.mark.parametrize("fraction", [0.03, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_a_fraction_of_the_coordinates_is_clipped_to_the_threshold(
    fraction: float, dtype: jnp.dtype, x64: None
) -> None:
    """Over all leaves together; smaller coordinates are the same to the bit, and signs do not change."""
    g = {"a": normal(0, 30, 4).astype(dtype), "b": normal(1, 80).astype(dtype), "c": normal(2).astype(dtype)}
    got = updates(gk.clip_by_quantile(fraction), g, [g])[0]
    before, after = (np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(t)]) for t in (g, got))
    k = round(fraction * before.size)
    tau = np.sort(np.abs(before))[-k]
    np.testing.assert_array_equal(after, np.clip(before, -tau, tau))
    assert np.sum(np.abs(after) == tau) >= k


def test_order_statistics_are_exact(x64: None) -> None:
    """Also of ties, zeros, infinities and subnormal numbers."""
    x = np.array([0.0, 0.0, 1.0, 1.0, 1.0, 5e-324, np.inf, 3.0, np.nextafter(1.0, 2.0)])
    for k in range(1, x.size + 1):
        assert float(kth_largest([jnp.asarray(x)], k / x.size)) == np.sort(x)[-k]
        low = np.float32(x)
        assert float(kth_largest([jnp.asarray(low[:4]), jnp.asarray(low[4:])], k / x.size)) == np.sort(low)[-k]


def test_the_number_of_coordinates_is_rounded_as_in_python() -> None:
    """0.145 * 100 is 14.499999999999998, of which float32 makes 14.5; and of 0.155 * 100 = 15.5 the even one."""
    x = np.arange(1.0, 101.0, dtype=np.float32)
    for fraction in (0.145, 0.155, 0.29):
        assert float(kth_largest([jnp.asarray(x)], fraction)) == np.sort(x)[-round(fraction * 100)]


def test_a_fraction_close_to_one_gives_the_sign(x64: None) -> None:
    g = normal(0, 50)
    assert_equal(updates(gk.clip_by_quantile(0.999), g, [g])[0], jnp.abs(g).min() * jnp.sign(g))


def test_a_threshold_for_every_tensor(x64: None) -> None:
    layers = jnp.stack([normal(i, 4, 5) * 10.0**i for i in range(3)])
    taus = np.sort(np.abs(np.asarray(layers)).reshape(3, -1), axis=1)[:, -5].reshape(3, 1, 1)
    want = jnp.clip(layers, -taus, taus)
    for name, layout in (
        ("ScanBlock_0", gk.leaves.default_layout),
        ("blocks", gk.leaves.layout((gk.leaves.by_path("blocks"), {"stack": 1}))),
    ):
        g = {name: layers, "scalar": jnp.array(7.0), "none": jnp.zeros((0, 3))}
        got = updates(gk.clip_by_quantile(0.25, per_tensor=True, layout=layout), g, [g])[0]
        assert_equal(got[name], want)
        assert float(got["scalar"]) == 7.0


def test_a_fixed_threshold(x64: None) -> None:
    g = normal(0, 20)
    assert_equal(updates(gk.clip_by_quantile(tau=0.3), g, [g])[0], jnp.clip(g, -0.3, 0.3))
    for other in ({"per_tensor": True}, {"fraction": 0.2}):
        with pytest.raises(ValueError, match="tau must be None with fraction or per_tensor"):
            gk.clip_by_quantile(tau=0.3, **other)
    with pytest.raises(ValueError, match=r"tau must be in \(0, inf\)"):
        gk.clip_by_quantile(tau=0.0)
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\)"):
        gk.clip_by_quantile(1.0)


def test_a_clipped_step_is_less_sharp_where_one_coordinate_is_steep(x64: None) -> None:
    """u'Hu / |u|^2 of the gradient is near the largest curvature; of the clipped one near the mean."""
    curvature = jnp.ones(20).at[0].set(100.0)
    g = curvature * jnp.ones(20)
    clipped = updates(gk.clip_by_quantile(0.1), g, [g])[0]
    sharpness = lambda u: float(jnp.sum(curvature * u**2) / jnp.sum(u**2))  # noqa: E731
    assert sharpness(g) > 99
    assert sharpness(clipped) == pytest.approx(119 / 20)
