"""The trust ratio (You et al., 2017 and 2019)."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def scaled(w: object, u: object, **kwargs: object) -> object:
    return updates(gk.scale_by_trust_ratio(**kwargs), w, [u])[0]


def test_joint_form_has_the_norm_of_the_weights(x64: None) -> None:
    w, u = normal(0, 4, 3), normal(1, 4, 3)
    assert_equal(jnp.linalg.norm(scaled(w, u, trust_coefficient=0.1)), 0.1 * jnp.linalg.norm(w))
    assert_equal(scaled(w, 1e5 * u), scaled(w, u))
    assert_equal(scaled(7 * w, u), 7 * scaled(w, u))


def test_separate_form(x64: None) -> None:
    w, g = normal(0, 4, 3), normal(1, 4, 3)
    n_w, n_g = jnp.linalg.norm(w), jnp.linalg.norm(g)
    got = scaled(w, g, trust_coefficient=0.01, weight_decay=0.3, eps=0.2, denominator="separate")
    assert_equal(got, 0.01 * n_w / (n_g + 0.3 * n_w + 0.2) * (g + 0.3 * w))


def test_zero_gradient_in_the_separate_form_is_the_limit(x64: None) -> None:
    w = normal(0, 4, 3)
    got = scaled(w, 0 * w, trust_coefficient=0.01, weight_decay=0.3, denominator="separate")
    assert_equal(got, 0.01 / 0.3 * 0.3 * w)
    near = scaled(w, 1e-9 * w, trust_coefficient=0.01, weight_decay=0.3, denominator="separate")
    assert_equal(got, near, rtol=1e-7)


@pytest.mark.parametrize("which", ["weights", "update"])
def test_undefined_ratio_is_one(which: str, x64: None) -> None:
    w, u = normal(0, 4, 3), normal(1, 4, 3)
    w, u = (0 * w, u) if which == "weights" else (w, 0 * u)
    assert_equal(scaled(w, u), u)


def test_clamps(x64: None) -> None:
    w, u = jnp.full((1, 4), 10.0), jnp.full((1, 4), 0.5)  # norms 20 and 1
    assert_equal(scaled(w, u), 20 * u)
    assert_equal(scaled(w, u, param_norm_max=10.0), 10 * u)
    assert_equal(scaled(w, u, ratio_max=3.0), 3 * u)
    assert_equal(scaled(0.001 * w, u, param_norm_min=2.0), 2 * u)
    assert_equal(scaled(w, 100 * u, update_norm_max=50.0), 20 / 50 * 100 * u)
    assert_equal(scaled(w, u, relative_to=0.5, ratio_max=100.0), 40 * u)


def test_one_ratio_per_unit(x64: None) -> None:
    w, u = normal(0, 4, 3), normal(1, 4, 3)
    got = scaled(w, u, block="unit")
    assert_equal(jnp.linalg.norm(got, axis=0), jnp.linalg.norm(w, axis=0))


def test_masks_and_metric(x64: None) -> None:
    w = {"bias": normal(0, 3), "kernel": normal(1, 2, 3)}
    u = {"bias": normal(2, 3), "kernel": normal(3, 2, 3)}
    matrices = gk.leaves.by_rank(2)
    tx = gk.scale_by_trust_ratio(
        weight_decay=0.5,
        denominator="separate",
        trust_ratio_mask=matrices,
        weight_decay_mask={"bias": True, "kernel": False},
    )
    got, state = tx.update(u, tx.init(w), w)
    ratio = jnp.linalg.norm(w["kernel"]) / jnp.linalg.norm(u["kernel"])
    assert_equal(got, {"bias": u["bias"] + 0.5 * w["bias"], "kernel": ratio * u["kernel"]})
    np.testing.assert_allclose(gk.diagnostics.metrics(state)["trust_ratio"], ratio, rtol=1e-6)


def test_refuses_contradictions() -> None:
    with pytest.raises(ValueError, match="weight_decay must be 0 with denominator='joint'"):
        gk.scale_by_trust_ratio(weight_decay=0.1)
    with pytest.raises(ValueError, match=r"param_norm_min must be in \[0, param_norm_max\]"):
        gk.scale_by_trust_ratio(param_norm_min=2.0, param_norm_max=1.0)
