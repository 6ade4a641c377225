"""Min-SNR weights of diffusion (Hang et al., 2023)."""

import numpy as np
import pytest

from gradkit.batches import min_snr_weights

SNR = np.array([0.0, 1e-6, 0.3, 1.0, 4.9, 5.0, 7.0, 300.0])


def test_the_three_predictions_weigh_the_same_error(x64: None) -> None:
    """Squared errors: epsilon's is snr times that of x0, v's snr + 1 times."""
    e, v, x0 = (np.asarray(min_snr_weights(SNR, prediction=p)) for p in ("epsilon", "v", "x0"))
    np.testing.assert_allclose(x0, np.minimum(SNR, 5), rtol=0)
    np.testing.assert_allclose(e * SNR, x0, rtol=1e-15)
    np.testing.assert_allclose(v * (SNR + 1), x0, rtol=1e-15)
    assert (e[SNR <= 5] == 1).all() and (np.diff(e) <= 0).all()


def test_ends_of_the_schedule() -> None:
    """Pure noise has the limit; the official code's 1 is a choice. Without noise, and without clipping, no NaN."""
    ends = np.array([0.0, np.inf], np.float32)
    for prediction, limit, far in (("epsilon", 1, 0), ("v", 0, 0), ("x0", 0, 5)):
        assert min_snr_weights(ends, prediction=prediction).tolist() == [limit, far]
        assert min_snr_weights(ends, prediction=prediction, zero_terminal="one").tolist() == [1, far]
    assert min_snr_weights(ends, np.inf).tolist() == [1, 1]
    assert min_snr_weights(ends, np.inf, prediction="v").tolist() == [0, 1]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="snr must be >= 0"):
        min_snr_weights(np.array([1.0, -1.0], np.float32))
    for name, bad in (("gamma", 0.0), ("prediction", "velocity"), ("zero_terminal", None)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            min_snr_weights(SNR.astype(np.float32), **{name: bad})
