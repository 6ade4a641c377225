"""Gradients by the likelihood ratio: noise at the output of a layer, and the losses that came of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import wide_dtype
from gradkit.types import Scalar

PAPER = Paper(
    "One Forward is Enough for Neural Network Training via Likelihood Ratio Method", "Jiang et al.", 2023, "2305.08960"
)
BASELINES = ("none", "mean", "leave_one_out")


class LikelihoodRatioTape(NamedTuple):
    """What a layer with noise has seen: inputs (batch, inputs), noise (batch, outputs) in units of sigma, sigma."""

    inputs: jax.Array
    noise: jax.Array
    sigma: jax.Array


class LikelihoodRatioGradients(NamedTuple):
    """Gradients of the smoothed loss in kernel (inputs, outputs), bias (outputs,) and sigma, in its shape."""

    kernel: jax.Array
    bias: jax.Array
    sigma: jax.Array


def lr_dense(x: Any, kernel: Any, bias: Any, noise: Any, sigma: Scalar) -> tuple[jax.Array, LikelihoodRatioTape]:
    """A dense layer with noise before its activation, and what `likelihood_ratio_gradient` must know of it.

        v = x W + b + sigma noise

    Args:
      x: inputs, (batch, inputs), floating point.
      kernel: W, (inputs, outputs).
      bias: b, (outputs,), or None.
      noise: standard normal, (batch, outputs): `jax.random.normal(key, shape)`; its negative for an antithetic pass; a
        quasi-random sequence.
      sigma: size of the noise, > 0: a number, or (outputs,). There is no default: the paper's could not be verified.

    Returns:
      (v, tape).

    Raises:
      ValueError: shapes that do not fit; a sigma that is not positive, where it can be read.

    Example:
      >>> v, tape = lr_dense(jnp.ones((2, 3)), jnp.ones((3, 1)), None, jnp.array([[1.0], [-1.0]]), 0.5)
      >>> v.tolist()
      [[3.5], [2.5]]

    Reference: Jiang et al. One Forward is Enough for Neural Network Training via Likelihood Ratio Method. 2023, arXiv
    2305.08960.
    """
    checks.arrays(x=x, kernel=kernel, bias=bias, noise=noise, sigma=sigma)
    x, kernel, noise = jnp.asarray(x), jnp.asarray(kernel), jnp.asarray(noise)
    if x.ndim != 2 or kernel.shape[:-1] != x.shape[1:] or noise.shape != (len(x), kernel.shape[-1]):
        raise ValueError(
            f"lr_dense: x (batch, inputs), kernel (inputs, outputs) and noise (batch, outputs) must fit, got "
            f"{x.shape}, {kernel.shape} and {noise.shape}"
        )
    if jnp.ndim(sigma) == 0:
        checks.real("sigma", sigma, "(0, inf)")
    elif jnp.shape(sigma) != kernel.shape[1:]:
        raise ValueError(f"sigma must be a number or one per output, {kernel.shape[1:]}, got shape {jnp.shape(sigma)}")
    elif not isinstance(sigma, jax.core.Tracer) and not bool((jnp.asarray(sigma) > 0).all()):
        raise ValueError("sigma must be positive for every output, got one that is not; write jnp.exp(log_sigma)")
    sigma = jnp.asarray(sigma, x.dtype)
    v = jnp.dot(x, kernel, precision="highest") + (sigma if sigma.ndim == 0 else sigma[None]) * noise
    v = v if bias is None else v + jnp.asarray(bias)[None]
    return v, LikelihoodRatioTape(x, noise, sigma)


def likelihood_ratio_gradient(
    losses: Any, tape: LikelihoodRatioTape, *, mirrored_losses: Any = None, baseline: str = "none"
) -> LikelihoodRatioGradients:
    """The gradient of the loss that noise has smoothed, from one forward pass and no derivative of anything.

        v = x W + b + z,    z = sigma eps,    L_i the loss of example i:
        dW = mean_i L_i x_i^T (z_i / sigma^2),    db = mean_i L_i z_i / sigma^2
        dsigma = mean_i L_i (z_i^2 / sigma^2 - 1) / sigma            summed over outputs where sigma is one number
        antithetic, with a pass at -z:    (L_i - L_i^-) / 2 in dW and db,   (L_i + L_i^-) / 2 in dsigma
        baseline:    L_i - mean L,  or  L_i - the mean of the others' L     in the place of L_i

    What is estimated is the gradient of E L over the noise, which for a quadratic loss is that of the loss itself in W
    and b. Everything behind the layer may be a black box. Noise in one layer at a time: the inputs must be those of the
    same pass.

    Args:
      losses: L, (batch,): of every example, not their mean.
      tape: of `lr_dense` in the pass that made the losses.
      mirrored_losses: L^-, of the pass with `-noise`. Default None.
      baseline: "none", "mean" (of the batch, a bias of 1 / batch) or "leave_one_out" (none). Default "none". With a
        mirrored pass it acts in dsigma alone.

    Returns:
      `LikelihoodRatioGradients`, of the mean loss.

    Raises:
      ValueError: losses that are not one per example; an unknown baseline, or one with a batch of 1.

    Example:
      >>> v, tape = lr_dense(jnp.ones((2, 1)), jnp.ones((1, 1)), None, jnp.array([[1.0], [-1.0]]), 0.5)
      >>> likelihood_ratio_gradient(3 * v[:, 0], tape).kernel.tolist()  # 3 v has the derivative 3
      [[3.0]]

    Reference: Jiang et al. One Forward is Enough for Neural Network Training via Likelihood Ratio Method. 2023, arXiv
    2305.08960. From the method's definition: the paper's text could not be read.
    """
    checks.instance("tape", tape, LikelihoodRatioTape)
    checks.arrays(losses=losses, mirrored_losses=mirrored_losses)
    checks.choice("baseline", baseline, BASELINES)
    x, eps, sigma = tape
    n = len(x)
    for name, given in (("losses", losses), ("mirrored_losses", mirrored_losses)):
        if given is not None and jnp.shape(given) != (n,):
            raise ValueError(
                f"{name} must be one number per example, ({n},), got shape {jnp.shape(given)}; leave the mean over the "
                "batch out of the loss"
            )
    if baseline != "none" and n < 2:
        raise ValueError(f"baseline must be 'none' for a batch of one example, got {baseline!r}")
    wide = wide_dtype(x.dtype)
    L = jnp.asarray(losses).astype(wide)
    x, eps, s = (a.astype(wide) for a in (x, eps, sigma))
    odd = even = L
    if mirrored_losses is not None:
        mirrored = jnp.asarray(mirrored_losses).astype(wide)
        odd, even = (L - mirrored) / 2, (L + mirrored) / 2

    def centred(L: jax.Array) -> jax.Array:
        if baseline == "none":
            return L
        apart = L - jnp.mean(L)
        return apart if baseline == "mean" else apart * (n / (n - 1))

    odd, even = (odd if mirrored_losses is not None else centred(odd)), centred(even)
    score = eps / (s if s.ndim == 0 else s[None])
    weighted = odd[:, None] * score / n
    of_sigma = even @ ((jnp.square(eps) - 1) / (s if s.ndim == 0 else s[None])) / n
    return LikelihoodRatioGradients(
        jnp.dot(x.T, weighted, precision="highest"),
        jnp.sum(weighted, axis=0),
        jnp.sum(of_sigma) if s.ndim == 0 else of_sigma,
    )


ROWS: Any = jax.ShapeDtypeStruct((8, 4), "float32")
KERNEL, BIAS = jax.ShapeDtypeStruct((4, 4), "float32"), jax.ShapeDtypeStruct((4,), "float32")
SIGMA: Any = jax.ShapeDtypeStruct((), "float32")
register(
    lr_dense,
    form="layer",
    paper=PAPER,
    example={"x": ROWS, "kernel": KERNEL, "bias": BIAS, "noise": ROWS, "sigma": 0.5},
)
register(
    likelihood_ratio_gradient,
    form="function",
    paper=PAPER,
    example={
        "losses": jax.ShapeDtypeStruct((8,), "float32"),
        "tape": LikelihoodRatioTape(ROWS, ROWS, SIGMA),
    },
    notes="the gradient of the loss smoothed by noise, for what cannot be differentiated",
)
