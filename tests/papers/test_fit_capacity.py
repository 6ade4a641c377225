"""The largest sample that a training procedure fits (Shwartz-Ziv et al., 2024)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.diagnostics import fit_capacity


def regression(features: int) -> Any:
    """Least squares with as many features, solved; random labels."""

    def train(n: int) -> Any:
        rng = np.random.default_rng(n)
        X, y = rng.standard_normal((n, features)), rng.standard_normal(n)
        w = np.linalg.lstsq(X, y, rcond=None)[0]
        accuracy = np.mean(np.abs(X @ w - y) < 1e-6)
        return accuracy, jnp.asarray(w), lambda w: jnp.mean(jnp.square(jnp.asarray(X) @ w - y))

    return train


def test_linear_regression_fits_as_many_examples_as_it_has_features(x64: None) -> None:
    """Monotone in the width; about 2 log2 of the number of sizes runs."""
    found = [fit_capacity(regression(p), range(1, 65), grad_norm_tol=1e-6) for p in (5, 12, 40)]
    assert [each.capacity for each in found] == [5, 12, 40]
    assert max(len(each.runs) for each in found) <= 12
    assert all(run.converged and run.fits == (run.size <= 12) for run in found[1].runs)


def test_all_and_none_of_the_sizes() -> None:
    loss = lambda w: jnp.sum(w**2)  # noqa: E731
    fits_all = lambda n: (1.0, jnp.zeros(2), loss)  # noqa: E731
    assert fit_capacity(fits_all, [3, 10, 20, 50, 51]).capacity == 51
    assert fit_capacity(lambda n: (0.5, jnp.zeros(2), loss), [3, 10]).capacity == 0
    assert fit_capacity(lambda n: (0.5, jnp.zeros(2), loss), [3, 10], accuracy=0.5).capacity == 10
    # A mean of ones in float32 that is a rounding below 1.
    assert fit_capacity(lambda n: (1 - 1e-7, jnp.zeros(2), loss), [3]).capacity == 3


def test_the_end_of_a_run_must_be_a_minimum(x64: None) -> None:
    """At a saddle with the gradient 0 the smallest eigenvalue, -2, decides; away from it the gradient of norm 0.4."""
    saddle = lambda w: w[0] ** 2 - w[1] ** 2  # noqa: E731
    at = lambda w: lambda n: (1.0, jnp.asarray(w), saddle)  # noqa: E731
    (run,) = fit_capacity(at([0.0, 0.0]), [4], grad_norm_tol=1e-3, curvature_tol=0.1, key=0).runs
    assert (run.accuracy, run.converged, run.fits) == (1.0, False, False)
    assert run.smallest_eigenvalue == pytest.approx(-2, rel=1e-12) and run.grad_norm == 0
    assert fit_capacity(at([0.0, 0.0]), [4], grad_norm_tol=1e-3, curvature_tol=2.1, key=0).capacity == 4
    (run,) = fit_capacity(at([0.0, 0.2]), [4], grad_norm_tol=0.3).runs
    assert not run.fits and run.grad_norm == pytest.approx(0.4, rel=1e-12) and np.isnan(run.smallest_eigenvalue)
    assert fit_capacity(at([0.0, 0.2]), [4]).capacity == 4


def test_bad_input() -> None:
    train = regression(2)
    for given, message in (
        ({"sizes": []}, "sizes must be numbers of examples that rise"),
        ({"sizes": [3, 3]}, "sizes must be numbers of examples that rise"),
        ({"accuracy": 0.0}, r"accuracy must be in \(0, 1\]"),
        ({"grad_norm_tol": -1.0}, "grad_norm_tol must be in"),
        ({"curvature_tol": 0.1}, "key must be"),
        ({"train": lambda n: 1.0}, r"train\(1\) must return"),
    ):
        with pytest.raises(ValueError, match=message):
            call: dict[str, Any] = {"train": train, "sizes": [1, 2], **given}
            fit_capacity(**call)
