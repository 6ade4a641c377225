"""AdamH and MuonH: Adam and Muon on the hyperball, AdamW for what is no matrix."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates

X = {"Dense_0": {"kernel": normal(0, 4, 6), "bias": normal(1, 6)}, "embed": {"embedding": normal(2, 9, 4)}}
G = {"Dense_0": {"kernel": normal(3, 4, 6), "bias": normal(4, 6)}, "embed": {"embedding": normal(5, 9, 4)}}


@pytest.mark.parametrize("method", [gk.adamh, gk.muonh, gk.normuonh])
def test_matrices_keep_their_norm_and_the_others_take_adamw(method: object, x64: None) -> None:
    x = {k: {n: jnp.asarray(np.asarray(v, np.float64)) for n, v in leaves.items()} for k, leaves in X.items()}
    g = {k: {n: jnp.asarray(np.asarray(v, np.float64)) for n, v in leaves.items()} for k, leaves in G.items()}
    u = updates(method(0.1, adam_learning_rate=0.01, adam_weight_decay=0.5), x, [g])[0]  # pyrefly: ignore
    kernel = x["Dense_0"]["kernel"]
    assert_equal(jnp.linalg.norm(kernel + u["Dense_0"]["kernel"]), jnp.linalg.norm(kernel))
    assert np.abs(u["Dense_0"]["kernel"]).max() > 1e-3
    plain = {"bias": x["Dense_0"]["bias"], "embedding": x["embed"]["embedding"]}
    grads = {"bias": g["Dense_0"]["bias"], "embedding": g["embed"]["embedding"]}
    want = updates(gk.adamw(0.01, b2=0.95, weight_decay=0.5), plain, [grads])[0]
    assert_equal([u["Dense_0"]["bias"], u["embed"]["embedding"]], [want["bias"], want["embedding"]])


def test_muons_factor_of_the_shape_cancels(x64: None) -> None:
    x = {"wide": normal(0, 4, 9), "tall": normal(1, 9, 4)}
    gradients = [{"wide": normal(10 + i, 4, 9), "tall": normal(20 + i, 9, 4)} for i in range(3)]
    want = updates(gk.hyperball(gk.scale_by_muon(), 0.1), x, gradients)
    assert_equal(updates(gk.muonh(0.1), x, gradients), want, rtol=1e-9)
    for rescale, scale in (("frobenius", "spectral"), ("rms", None)):
        want = updates(gk.hyperball(gk.scale_by_normuon(rescale=rescale, scale=scale), 0.1), x, gradients)
        assert_equal(updates(gk.normuonh(0.1), x, gradients), want, rtol=1e-9)


def test_the_angle_of_a_step_is_no_rate_of_adamw() -> None:
    with pytest.raises(ValueError, match=r"adamh: 'bias' is no matrix and takes AdamW, .* give adam_learning_rate"):
        gk.adamh(0.02).init({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"hyperball: a block of zeros .* 'kernel'"):
        gk.muonh(0.02).init({"kernel": jnp.zeros((2, 3))})
