"""LoRA-GA (Wang et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.gradients import lora_ga_init
from tests.papers.replay import assert_equal, normal

W, G, R, ALPHA = (7, 6), (7, 6), 2, 3.0


def matrices() -> tuple[jax.Array, jax.Array]:
    return normal(0, *W), normal(1, *G)


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr"])
@pytest.mark.parametrize("scale", ["stable", "gd", "unit", "weightS"])
def test_the_layer_starts_as_it_was(direction: str, scale: str, x64: None) -> None:
    w, g = matrices()
    for rslora, s in ((True, ALPHA / np.sqrt(R)), (False, ALPHA / R)):
        a, b, frozen = lora_ga_init(w, g, R, ALPHA, direction=direction, scale=scale, use_rslora=rslora)
        assert a.shape == (7, R) and b.shape == (R, 6)
        assert_equal(frozen + s * a @ b, w, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr"])
def test_the_first_step_is_the_best_of_rank_2r(direction: str, x64: None) -> None:
    """One step of gradient descent on a and b moves the product by the best approximation of G, up to scale."""
    w, g = matrices()
    a, b, frozen = lora_ga_init(w, g, R, ALPHA, direction=direction)
    s = ALPHA / np.sqrt(R)
    product = lambda a, b: frozen + s * a @ b  # noqa: E731
    g_a, g_b = jax.vjp(product, a, b)[1](g)
    moved = np.asarray(s * (g_a @ b + a @ g_b))
    U, S, Vt = np.linalg.svd(np.asarray(g))
    best = (U[:, : 2 * R] * S[: 2 * R]) @ Vt[: 2 * R]
    assert_equal(moved / np.linalg.norm(moved), best / np.linalg.norm(best), rtol=1e-10, atol=1e-12)


def test_scales(x64: None) -> None:
    w, g = matrices()
    s = ALPHA / np.sqrt(R)
    norms = {
        scale: np.linalg.norm(np.asarray(lora_ga_init(w, g, R, ALPHA, scale=scale, gamma=9.0)[0]), axis=0)
        for scale in ("stable", "gd", "unit", "weightS")
    }
    # The fourth root is of the outputs, 6, and not of the first axis.
    top = np.linalg.svd(np.asarray(w), compute_uv=False)[:R]
    want = {"stable": 6**0.25 / 3, "gd": 1 / s, "unit": 1.0, "weightS": np.mean(np.sqrt(top / s))}
    for scale, norm in norms.items():
        np.testing.assert_allclose(norm, want[scale], rtol=1e-12)


def test_a_large_adapter_is_shrunk(x64: None) -> None:
    w, g = matrices()
    s = ALPHA / np.sqrt(R)
    a, b, frozen = lora_ga_init(1e-3 * w, g, R, ALPHA, norm_clip=True)
    np.testing.assert_allclose(np.abs(s * a @ b).max(), np.abs(1e-3 * w).max(), rtol=1e-12)
    assert_equal(frozen + s * a @ b, 1e-3 * w, atol=1e-16)
    small = [lora_ga_init(1e3 * w, g, R, ALPHA, norm_clip=clip) for clip in (False, True)]
    assert_equal(small[0], small[1])


def test_a_sketch_finds_the_same_of_a_gradient_of_low_rank(x64: None) -> None:
    w = normal(0, 20, 16)
    g = (normal(1, 20, 5) * jnp.array([[5.0, 4.0, 3.0, 2.0, 1.0]])) @ normal(2, 5, 16)
    exact = lora_ga_init(w, g, 2, ALPHA)
    sketch = jax.jit(lambda k: lora_ga_init(w, g, 2, ALPHA, svd="randomized", key=k))(jax.random.key(0))
    assert_equal(exact, sketch, rtol=1e-8, atol=1e-10)


def test_signs_are_fixed_and_low_precision_is_kept(x64: None) -> None:
    w, g = matrices()
    a, b, _ = lora_ga_init(w, g, R, ALPHA)
    largest = np.take_along_axis(np.asarray(b), np.abs(np.asarray(b)).argmax(1)[:, None], 1)
    assert (largest > 0).all()
    del a
    narrow = lora_ga_init(w.astype(jnp.bfloat16), g.astype(jnp.bfloat16), R, ALPHA)
    assert all(x.dtype == jnp.bfloat16 for x in narrow)
    a, b, frozen = (np.asarray(x.astype(jnp.float64)) for x in narrow)
    # The frozen weight is rounded once, to 2^-9 of itself.
    error = np.abs(frozen + ALPHA / np.sqrt(R) * a @ b - np.asarray(w.astype(jnp.bfloat16).astype(jnp.float64)))
    assert error.max() <= 2**-8 * np.abs(frozen).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 4}, "rank must be at most 3, half the short side"),
        ({"gradient": jnp.zeros(G)}, "gradient must not be zero"),
        ({"gradient": jnp.ones((6, 7))}, r"must be floating point \(in, out\)"),
        ({"svd": "randomized"}, "key must be a random key"),
        ({"alpha": 0.0}, "alpha must be in"),
        ({"direction": "A2rB2r"}, "direction must be one of"),
    ],
)
def test_bad_input(change: Any, message: str) -> None:
    given = {"weight": jnp.ones(W), "gradient": jnp.ones(G), "rank": R, "alpha": ALPHA}
    with pytest.raises(ValueError, match=message):
        lora_ga_init(**{**given, **change})
