"""DualProj: one projection onto the dual cone, against its conditions of optimality."""

import numpy as np
import pytest

from gradkit.aggregation import dualproj, upgrad
from tests.papers.stacks import aggregate, conflicting, draw

REG = 1e-12


def project(J: np.ndarray, **kwargs: object) -> np.ndarray:
    return aggregate(dualproj(**{"norm_eps": 0.0, "reg_eps": REG, **kwargs}), J)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_projection_of_the_mean_onto_the_cone(seed: int, x64: None) -> None:
    """x is the projection of y exactly where x is in the cone, x - y in the dual of it, and they are orthogonal."""
    J = conflicting(seed)
    y, x = J.mean(0), project(J)
    scale = np.sum(J**2)
    assert (J @ x >= -1e-9 * scale).all()
    weights = np.linalg.lstsq(J.T, x - y, rcond=None)[0]
    assert (weights >= -1e-9).all() and (weights > 1e-3).any()
    assert abs((x - y) @ x) < 1e-9 * scale


def test_one_task_and_tasks_that_agree(x64: None) -> None:
    g, J, p = draw(0, 1), np.abs(draw(1)), [0.1, 0.2, 0.3, 0.4]
    np.testing.assert_allclose(project(g), aggregate(upgrad(reg_eps=REG), g), rtol=1e-12)
    np.testing.assert_allclose(project(g), g[0], rtol=1e-12)
    np.testing.assert_allclose(project(J), J.mean(0), rtol=1e-10)
    np.testing.assert_allclose(project(J, pref_vector=p), np.array(p) @ J, rtol=1e-10)


def test_a_small_jacobian_is_averaged_with_the_threshold_of_torchjd(x64: None) -> None:
    """Conflicts and all below it; without it the result scales with the gradients."""
    J = conflicting(0)
    np.testing.assert_allclose(project(1e-4 * J, norm_eps=1e-4), 1e-4 * J.mean(0), rtol=1e-10, atol=1e-18)
    np.testing.assert_allclose(project(1e-4 * J), 1e-4 * project(J), rtol=1e-9, atol=1e-15)
    assert np.abs(project(J) - J.mean(0)).max() > 0.01


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="pref_vector must be a vector"):
        dualproj(pref_vector=2.0)
    with pytest.raises(ValueError, match=r"dualproj: pref_vector has shape \(3,\), and 4 gradients came"):
        aggregate(dualproj(pref_vector=[1.0, 2.0, 3.0]), draw(0).astype(np.float32))
