"""The minority of tokens with high entropy (Wang et al., 2025)."""

import jax
import numpy as np
import pytest

from gradkit.batches import high_entropy_mask, high_entropy_mean, token_entropy
from tests.papers.replay import normal


def tokens() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((4, 25)), rng.random((4, 25)) < 0.7


@pytest.mark.parametrize("fraction", [0.07, 0.2, 0.5])
def test_the_quantile_of_the_valid_tokens(fraction: float, x64: None) -> None:
    """Whatever the padding holds."""
    h, valid = tokens()
    want = (h >= np.quantile(h[valid], 1 - fraction)) & valid
    np.testing.assert_array_equal(high_entropy_mask(h, valid, fraction=fraction), want)
    padded = np.where(valid, h, np.where(h > 0.5, 99.0, np.nan))
    np.testing.assert_array_equal(high_entropy_mask(padded, valid, fraction=fraction), want)


def test_all_some_and_no_tokens(x64: None) -> None:
    h, valid = tokens()
    np.testing.assert_array_equal(high_entropy_mask(h, valid, fraction=1.0), valid)
    np.testing.assert_array_equal(high_entropy_mask(np.full((4, 25), 0.3), valid, fraction=0.1), valid)
    none = np.zeros_like(valid)
    for bins in (None, 8):
        assert not high_entropy_mask(h, none, bins=bins).any()
    assert high_entropy_mean(h, none, none) == 0 and high_entropy_mean(h, none, none, denominator="kept") == 0


def test_the_batch_is_that_of_all_replicas(x64: None) -> None:
    """Rows on four replicas, of which one has the largest entropies: the quantile of each would keep some of all."""
    h, valid = tokens()
    h = h + np.arange(4)[:, None]
    for bins in (None, 64):
        got = jax.vmap(lambda h, v, b=bins: high_entropy_mask(h, v, axis_name="i", bins=b), axis_name="i")(h, valid)
        np.testing.assert_array_equal(got, high_entropy_mask(h, valid, bins=bins))
        assert not np.asarray(got)[0].any() and np.asarray(got)[3].any()


def test_the_histogram_keeps_the_fraction_and_at_most_a_bin_more(x64: None) -> None:
    h, valid = tokens()
    kept = np.asarray(high_entropy_mask(h, valid, bins=32))
    needed, width = 0.2 * valid.sum(), np.ptp(h[valid]) / 32
    assert needed <= kept.sum()
    # Less the entries of its lowest bin, it is less than the fraction.
    assert (kept & (h >= h[kept].min() + width)).sum() < needed
    np.testing.assert_array_equal(high_entropy_mask(h, valid, fraction=1.0, bins=32), valid)


def test_entropies_and_denominators(x64: None) -> None:
    """No gradient flows into the entropies; the denominators differ by the share of what is kept."""
    logits = np.asarray(normal(0, 3, 5))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(token_entropy(logits), -(p * np.log(p)).sum(-1), rtol=1e-13)
    masked = np.where(np.arange(5) < 4, logits, -np.inf)
    np.testing.assert_allclose(token_entropy(masked), token_entropy(logits[:, :4]), rtol=1e-13)
    assert not np.asarray(jax.grad(lambda x: token_entropy(x).sum())(logits)).any()
    h, valid = tokens()
    mask = np.asarray(high_entropy_mask(h, valid))
    of_valid, of_kept = (high_entropy_mean(h, mask, valid, denominator=d) for d in ("valid", "kept"))
    np.testing.assert_allclose(of_valid, h[mask].sum() / valid.sum(), rtol=1e-13)
    np.testing.assert_allclose(of_kept, h[mask].mean(), rtol=1e-13)


def test_bad_input() -> None:
    h = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="valid must be like entropy"):
        high_entropy_mask(h, h[0] > 0)
    for name, bad in (("fraction", 0.0), ("fraction", 1.5), ("bins", 0), ("axis_name", 3)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            high_entropy_mask(h, h > 0, **{name: bad})
