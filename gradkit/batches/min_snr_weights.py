"""Min-SNR: the noise levels of a diffusion model, weighed like tasks that conflict."""

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import reals, refuse
from gradkit.types import Scalar

PAPER = Paper("Efficient Diffusion Training via Min-SNR Weighting Strategy", "Hang et al.", 2023, "2303.09556")


def min_snr_weights(
    snr: Scalar, gamma: Scalar = 5.0, *, prediction: str = "epsilon", zero_terminal: str = "limit"
) -> jax.Array:
    """Weights of the mean squared error of every example, by the signal-to-noise ratio at its time step.

        epsilon    min(snr, gamma) / snr             the noise is predicted
        v          min(snr, gamma) / (snr + 1)       the velocity is
        x0         min(snr, gamma)                   the data are
        snr = alpha^2 / sigma^2 = abar / (1 - abar)

    All three are the same weight of the error in x0, as the squared error of epsilon is snr times that of x0, and the
    one of v snr + 1 times. An example with snr <= gamma counts as it does for the prediction of noise.

    Args:
      snr: >= 0, floating point of any shape; infinity, the step without noise, is allowed.
      gamma: > 0; infinity for no clipping. Default 5 (paper).
      prediction: what the squared error is of: "epsilon", "v" or "x0". Default "epsilon".
      zero_terminal: the weight where snr = 0, the last step of a schedule that ends in pure noise: "limit" (1, 0 and 0
        of the three), or "one" (official code: 1 for all three, so that of v and x0 this one step jumps). Default
        "limit".

    Returns:
      Weights like `snr`, float32 or wider. Elementwise.

    Raises:
      ValueError: an argument outside its range; a negative snr, where values can be read.

    Example:
      >>> min_snr_weights(jnp.array([0.0, 1.0, 10.0])).tolist()
      [1.0, 1.0, 0.5]

    Reference: Hang et al. Efficient Diffusion Training via Min-SNR Weighting Strategy. 2023, arXiv 2303.09556. Other
    public versions put snr + 1 in the place of snr for v, also inside the minimum: a weight that tends to 1 and not to
    0 where there is much noise.
    """
    checks.arrays(snr=snr)
    checks.real("gamma", gamma, "(0, inf]")
    checks.choice("prediction", prediction, ("epsilon", "v", "x0"))
    checks.choice("zero_terminal", zero_terminal, ("limit", "one"))
    s = reals("min_snr_weights", "snr", snr, empty=True)
    refuse("min_snr_weights", "snr", s, lambda x: ~(x >= 0), ">= 0, alpha^2 / sigma^2")
    g = jnp.asarray(gamma).astype(s.dtype)
    one = jnp.ones_like(s)
    weights = jnp.minimum(s, g) if prediction == "x0" else jnp.where(s <= g, one, g / jnp.where(s > 0, s, one))
    if prediction == "v":  # times snr / (snr + 1), of infinity too
        small = s < 1
        weights = weights * jnp.where(small, s / (s + 1), 1 / (1 + 1 / jnp.where(small, one, s)))
    return jnp.where(s == 0, one, weights) if zero_terminal == "one" else weights


register(
    min_snr_weights,
    form="function",
    paper=PAPER,
    golden=("second_shelf/min_snr_weights",),
    example={"snr": jax.ShapeDtypeStruct((16,), "float32")},
)
