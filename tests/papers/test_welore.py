"""WeLore (Jaiswal et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.diagnostics import welore_factorize, welore_labels, welore_ranks, welore_threshold
from tests.papers.replay import assert_equal, normal


def spectra() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"a": np.exp(rng.standard_normal(12)), "b": np.exp(3 * rng.standard_normal((3, 7)))}


def test_ranks_fall_with_the_threshold_and_know_no_units() -> None:
    s, before = spectra(), None
    for threshold in (0.0, 0.0225, 0.084, 0.2, 0.5, 0.99):
        ranks = welore_ranks(s, threshold)
        assert ranks["b"].shape == (3,)
        moved = welore_ranks({"a": 7 * s["a"] + 3, "b": s["b"][:, ::-1] / 9}, threshold)
        assert ranks["a"] == moved["a"] and (ranks["b"] == moved["b"]).all()
        flat = np.array([ranks["a"], *ranks["b"]])
        assert (flat >= 1).all() and (before is None or (flat <= before).all())
        before = flat
    assert welore_ranks(s, 0.0)["a"] == 12  # nothing is below the smallest
    assert welore_ranks(np.full(5, 2.0), 0.9) == 5  # flat


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7])
def test_one_threshold_hits_the_share(share: float) -> None:
    s = spectra()
    threshold = welore_threshold(s, share)
    kept = welore_ranks(s, threshold)
    pruned = 33 - kept["a"] - kept["b"].sum()
    assert pruned == int(np.ceil(33 * share - 1e-9))
    assert (
        threshold == 0
        or 33 - sum(np.sum(r) for r in welore_ranks(s, float(np.nextafter(threshold, 0))).values()) < pruned
    )


def test_a_share_out_of_reach() -> None:
    with pytest.raises(ValueError, match=r"target_reduction must be at most 0.375"):
        welore_threshold({"a": np.array([3.0, 2.0, 1.0, 0.0]), "flat": np.ones(4)}, 0.5)
    for bad in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="target_reduction must be in"):
            welore_threshold(np.ones(3), bad)
        with pytest.raises(ValueError, match="threshold must be in"):
            welore_ranks(np.ones(3), bad)


def test_factors(x64: None) -> None:
    """Exact at full rank; of lower rank the best, and both sides carry the same."""
    w = normal(0, 2, 4, 6)
    a, b = welore_factorize(w, 4)
    assert_equal(a @ b, w, 1e-12, 1e-12)
    a, b = welore_factorize(w, 2)
    U, s, Vt = np.linalg.svd(np.asarray(w), full_matrices=False)
    assert_equal(a @ b, U[..., :2] * s[:, None, :2] @ Vt[:, :2], 1e-10, 1e-12)
    assert_equal(jnp.linalg.norm(a, axis=1), np.sqrt(s[:, :2]))
    assert_equal(jnp.linalg.norm(b, axis=2), np.sqrt(s[:, :2]))
    with pytest.raises(ValueError, match=r"rank must be an integer in \[1, 4\]"):
        welore_factorize(w, 5)


def test_who_is_trained() -> None:
    """The break-even of two factors k (n + m) < n m, and a share of the user's own."""
    params = {"square": jnp.ones((8, 8)), "oblong": jnp.ones((4, 12)), "bias": jnp.ones(8)}
    for rank in range(1, 5):
        labels = welore_labels(params, {"square": rank, "oblong": rank})
        assert labels["square"] == ("lrc" if rank * 16 < 64 else "nlrc")
        assert labels["oblong"] == ("lrc" if rank * 16 < 48 else "nlrc")
        assert labels["bias"] == "nlrc"
    assert welore_labels(params, {"square": 4}, 0.4)["square"] == "lrc"
    assert welore_labels(params, {"square": 4}, 0.5)["square"] == "nlrc"
    with pytest.raises(ValueError, match="which it does not have"):
        welore_labels(params, {"sqare": 1})
    with pytest.raises(ValueError, match="'bias' must be that of a matrix"):
        welore_labels(params, {"bias": 1})


def test_with_galore_and_partition(x64: None) -> None:
    """Ranks from the weights go into GaLore as they are; what is not of low rank stays as it is."""
    rng = np.random.default_rng(0)
    low = rng.standard_normal((8, 1)) @ rng.standard_normal((1, 8)) + 1e-3 * rng.standard_normal((8, 8))
    params: Any = {"low": jnp.asarray(low), "flat": jnp.linalg.qr(normal(1, 8, 8))[0], "bias": normal(2, 8)}
    s = {k: np.linalg.svd(np.asarray(params[k]), compute_uv=False) for k in ("low", "flat")}
    s["flat"] = np.ones(8)  # up to rounding
    ranks = welore_ranks(s, 0.1)
    assert ranks == {"low": 1, "flat": 8}
    labels = welore_labels(params, ranks)
    assert labels == {"low": "lrc", "flat": "nlrc", "bias": "nlrc"}
    tx = gk.galore(0.1, rank=ranks)
    d, _ = tx.update(params, tx.init(params), params)
    assert np.linalg.matrix_rank(np.asarray(d["low"])) == 1 and np.linalg.matrix_rank(np.asarray(d["flat"])) == 8
    frozen = optax.partition({"lrc": gk.galore(0.1, rank=1), "nlrc": optax.set_to_zero()}, labels)
    d, _ = jax.jit(frozen.update)(params, frozen.init(params), params)
    assert d["low"].any() and not d["flat"].any() and not d["bias"].any()
