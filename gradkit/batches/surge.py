"""The best learning rate as a function of the batch size: for Adam and sign methods it rises, peaks, and falls."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar

PAPER = Paper("Surge Phenomenon in Optimal Learning Rate and Batch Size Scaling", "Li et al.", 2024, "2405.14578")


def _check(batch_size: Any, max_learning_rate: Any, noise_batch: Any) -> None:
    checks.real("batch_size", batch_size, "(0, inf)")
    checks.real("max_learning_rate", max_learning_rate, "[0, inf)")
    checks.real("noise_batch", noise_batch, "(0, inf)")


def surge_learning_rate(batch_size: Scalar, max_learning_rate: Scalar, noise_batch: Scalar) -> Any:
    """The best learning rate of Adam, or of a sign method, for a batch size.

    Equations, with N = noise_batch, where the best learning rate is largest:

        rate(B) = max_learning_rate / ((sqrt(N / B) + sqrt(B / N)) / 2)

    It follows from `optimal_sign_rate` for gradients that are small compared with their noise, with N of
    `surge_noise_batch`.

    Args:
      batch_size: B > 0, in examples; may be traced.
      max_learning_rate: the largest of all best learning rates, >= 0.
      noise_batch: N > 0, in examples: the batch size at which that is. It grows during training, as the loss falls.

    Returns:
      The learning rate; proportional to sqrt(B) for B far below N, and to 1 / sqrt(B) far above.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> [round(surge_learning_rate(batch, 0.5, 400), 3) for batch in (100, 400, 1600)]
      [0.4, 0.5, 0.4]

    Reference: Li et al. Surge Phenomenon in Optimal Learning Rate and Batch Size Scaling. 2024, arXiv 2405.14578.
    """
    _check(batch_size, max_learning_rate, noise_batch)
    root = (batch_size / noise_batch) ** 0.5
    return max_learning_rate / ((1 / root + root) / 2)


def sgd_learning_rate(batch_size: Scalar, max_learning_rate: Scalar, noise_batch: Scalar) -> Any:
    """The best learning rate of SGD for a batch size, which only rises.

    Equations, with N = noise_batch:

        rate(B) = max_learning_rate / (1 + N / B)

    Args:
      batch_size: B > 0, in examples; may be traced.
      max_learning_rate: the best learning rate without noise, >= 0.
      noise_batch: N > 0, in examples: the batch size with half of that learning rate.

    Returns:
      The learning rate.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> [sgd_learning_rate(batch, 0.5, 400) for batch in (100, 400, 1600)]
      [0.1, 0.25, 0.4]

    Reference: Li et al. Surge Phenomenon in Optimal Learning Rate and Batch Size Scaling. 2024, arXiv 2405.14578;
    McCandlish et al. An Empirical Model of Large-Batch Training. 2018, arXiv 1812.06162.
    """
    _check(batch_size, max_learning_rate, noise_batch)
    return max_learning_rate / (1 + noise_batch / batch_size)


def _moments(mean: Any, std: Any, hessian: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    mu, sigma, H = (jnp.asarray(x, jnp.result_type(float)) for x in (mean, std, hessian))
    if mu.ndim != 1 or sigma.shape != mu.shape or H.shape != mu.shape * 2:
        shapes = f"{mu.shape}, {sigma.shape}, {H.shape}"
        raise ValueError(f"mean, std and hessian must be of shapes (n,), (n,) and (n, n), got {shapes}")
    return mu, sigma, H


def optimal_sign_rate(mean: Any, std: Scalar, hessian: Any, batch_size: Scalar) -> jax.Array:
    """The best learning rate of one step along the signs of a noisy gradient, on a quadratic.

    Equations, for the mean of B Gaussian gradients of means mu_i and standard deviations sigma_i, and a loss with the
    Hessian H, whose expected decrease is then largest:

        e_i  = erf(sqrt(B / 2) mu_i / sigma_i)
        rate = sum_i e_i mu_i / (sum_i H_ii + sum_{i != j} e_i e_j H_ij)

    Args:
      mean: mu, the gradient, shape (n,).
      std: sigma, the standard deviations of the gradient of one example, shape (n,), >= 0.
      hessian: H, shape (n, n), symmetric.
      batch_size: B > 0, in examples; may be traced.

    Returns:
      The learning rate; without noise sum |mu| / sum_ij sign(mu_i) sign(mu_j) H_ij.

    Raises:
      ValueError: shapes that do not fit, or a batch that is not positive.

    Example:
      >>> H = jnp.eye(2)
      >>> round(float(optimal_sign_rate(jnp.array([1.0, -3.0]), jnp.zeros(2), H, 8)), 4)  # (1 + 3) / 2
      2.0

    Reference: Li et al. Surge Phenomenon in Optimal Learning Rate and Batch Size Scaling. 2024, arXiv 2405.14578. The
    entries of the gradient are independent.
    """
    checks.arrays(mean=mean, std=std, hessian=hessian)
    checks.real("batch_size", batch_size, "(0, inf)")
    mu, sigma, H = _moments(mean, std, hessian)
    root = jnp.sqrt(jnp.asarray(batch_size, mu.dtype) / 2)
    noisy = sigma > 0
    e = jnp.where(noisy, jax.scipy.special.erf(root * mu / jnp.where(noisy, sigma, 1)), jnp.sign(mu))
    # e_i e_j off the diagonal; on the diagonal the square of a sign, which is 1.
    return (e @ mu) / (jnp.trace(H) + e @ H @ e - jnp.square(e) @ jnp.diagonal(H))


def surge_noise_batch(mean: Any, std: Scalar, hessian: Any) -> jax.Array:
    """The batch size at which the best learning rate of sign methods is largest.

    Equations, for gradients of means mu_i and standard deviations sigma_i of one example, and the Hessian H:

        N = pi sum_i H_ii / (2 sum_{i != j} H_ij mu_i mu_j / (sigma_i sigma_j))

    Args:
      mean: mu, the gradient, shape (n,).
      std: sigma, the standard deviations of the gradient of one example, shape (n,), > 0.
      hessian: H, shape (n, n), symmetric.

    Returns:
      N, in examples; infinite where the sum in its denominator is not positive: the learning rate then only rises.

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> H = jnp.array([[1.0, 0.5], [0.5, 1.0]])
      >>> round(float(surge_noise_batch(jnp.array([1.0, 1.0]), jnp.array([10.0, 10.0]), H)), 2)  # 100 pi
      314.16

    Reference: Li et al. Surge Phenomenon in Optimal Learning Rate and Batch Size Scaling. 2024, arXiv 2405.14578.
    """
    checks.arrays(mean=mean, std=std, hessian=hessian)
    mu, sigma, H = _moments(mean, std, hessian)
    x = mu / sigma
    off = x @ H @ x - jnp.square(x) @ jnp.diagonal(H)
    some = off > 0
    return jnp.where(some, math.pi * jnp.trace(H) / (2 * jnp.where(some, off, 1)), jnp.inf)


class SurgeFit(NamedTuple):
    """A fitted law: the largest of all best learning rates, and the batch size at which it is best."""

    max_learning_rate: float
    noise_batch: float


def fit_surge(batch_sizes: Any, learning_rates: Any) -> SurgeFit:
    """Fits the law of Adam to the best learning rates of several batch sizes.

    Equations: that of `surge_learning_rate`, which is linear in two unknowns, N^(1/2) / max_learning_rate and
    N^(-1/2) / max_learning_rate:

        1 / rate = (sqrt(N / B) + sqrt(B / N)) / (2 max_learning_rate)

    Solved by least squares of the relative errors, in float64.

    Args:
      batch_sizes: B > 0 of each batch, at least two different ones.
      learning_rates: the best learning rate > 0 found for each. Those that are NaN are left out.

    Returns:
      (max_learning_rate, noise_batch), for `surge_learning_rate`.

    Raises:
      ValueError: lengths that differ, a number <= 0, fewer than two batch sizes, or learning rates that no such law
        fits: that only rise, and faster than sqrt(B), or only fall.

    Example:
      >>> fit = fit_surge([100, 400, 1600], [0.4, 0.5, 0.4])
      >>> [round(x, 6) for x in fit]
      [0.5, 400.0]

    Reference: Li et al. Surge Phenomenon in Optimal Learning Rate and Batch Size Scaling. 2024, arXiv 2405.14578.
    """
    checks.arrays(batch_sizes=batch_sizes, learning_rates=learning_rates)
    B, rate = (np.asarray(x, np.float64) for x in (batch_sizes, learning_rates))
    if B.ndim != 1 or B.shape != rate.shape:
        raise ValueError(f"batches and rates must be vectors of one length, got shapes {B.shape} and {rate.shape}")
    found = np.isfinite(B) & np.isfinite(rate)
    B, rate = B[found], rate[found]
    if (B <= 0).any() or (rate <= 0).any():
        raise ValueError("batches and rates must be positive")
    unit = math.exp(np.log(B).mean()) if B.size else 1.0
    root = np.sqrt(B / unit)
    (a, c), _, rank, _ = np.linalg.lstsq(np.stack([rate / root, rate * root], 1), np.ones(B.size), rcond=None)
    if rank < 2 or a <= 0 or c <= 0:
        raise ValueError("batches and rates determine no peak: the rates of two or more batches around it are needed")
    return SurgeFit(float(1 / (2 * math.sqrt(a * c))), float(unit * a / c))


LAW = {"batch_size": 100, "max_learning_rate": 0.5, "noise_batch": 400}
QUADRATIC = {"mean": (1.0, 1.0), "std": (9.0, 9.0), "hessian": ((1.0, 0.5), (0.5, 1.0))}
SHARED: dict[str, Any] = {
    "form": "function",
    "paper": PAPER,
}
register(surge_learning_rate, **SHARED, example=LAW)
register(sgd_learning_rate, **SHARED, example=LAW)
register(optimal_sign_rate, **SHARED, example={**QUADRATIC, "batch_size": 8})
register(surge_noise_batch, **SHARED, example=QUADRATIC)
register(fit_surge, **SHARED, example={"batch_sizes": (100, 400, 1600), "learning_rates": (0.4, 0.5, 0.4)})
