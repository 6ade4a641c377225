"""Cautious AdamW (Liang et al., 2024)."""

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def test_without_momentum_it_is_adamw(x64: None) -> None:
    gradients = [normal(i, 8) for i in range(4)]
    given = {"b1": 0.0, "weight_decay": 0.3}
    ours = updates(gk.cautious_adamw(0.1, **given), gradients[0], gradients)
    assert_equal(ours, updates(gk.adamw(0.1, **given), gradients[0], gradients))


def test_decay_is_not_masked(x64: None) -> None:
    """A zero gradient agrees with nothing, and the parameters decay all the same."""
    x = normal(0, 8)
    assert_equal(updates(gk.cautious_adamw(0.1, weight_decay=0.5), x, [0 * x])[0], -0.05 * x)


def test_scale_of_gradients_does_not_matter(x64: None) -> None:
    gradients = [normal(i, 8) for i in range(4)]
    tx = gk.cautious_adamw(0.1, eps=0.0)
    large = updates(tx, gradients[0], [1e3 * g for g in gradients])
    assert_equal(updates(tx, gradients[0], gradients), large, rtol=1e-10)
