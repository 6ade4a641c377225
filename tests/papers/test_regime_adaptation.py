"""Regime adaptation (Hoffer, Hubara, Soudry, 2017)."""

import pytest

from gradkit.batches import regime_adaptation


@pytest.mark.parametrize("kappa", [4, 32, 2.5])
def test_at_least_as_many_updates_as_the_small_batch(kappa: float) -> None:
    """50000 examples, 200 epochs of batches of 128, the rate dropped at two of them: updates before each drop."""
    small = {"learning_rate": 0.1, "epochs": 200, "boundaries": [80, 120], "max_grad_norm": 5.0}
    large = regime_adaptation(small, kappa)
    assert large["learning_rate"] == pytest.approx(0.1 * kappa**0.5)
    assert large["max_grad_norm"] == 5.0 and list(large) == list(small)
    updates = lambda epoch, batch: epoch * 50000 / batch  # noqa: E731
    pairs = zip([200, 80, 120], [large["epochs"], *large["boundaries"]], strict=True)
    for before, after in pairs:
        assert updates(before, 128) <= updates(after, kappa * 128) < updates(before, 128) * (1 + 1 / kappa)


def test_a_smaller_batch_has_no_fewer_epochs() -> None:
    assert regime_adaptation({"learning_rate": 0.1, "epochs": 7}, 0.25) == {"learning_rate": 0.05, "epochs": 7}
    assert regime_adaptation({"boundaries": (3,)}, 2) == {"boundaries": (6,)}


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="boundaries must be a tuple or list"):
        regime_adaptation({"boundaries": 80}, 2)
    with pytest.raises(ValueError, match="boundaries must be in"):
        regime_adaptation({"boundaries": (-1,)}, 2)
    with pytest.raises(ValueError, match="regime_adaptation is about"):
        regime_adaptation({"momentum": 0.9}, 2)
