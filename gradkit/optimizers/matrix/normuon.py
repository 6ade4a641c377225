"""NorMuon: Muon, whose neurons are then made equally long by a second moment each.

d_t = the direction of `scale_by_normuon`
x_t = x_{t-1} - learning_rate (d_t + weight_decay x_{t-1})

Embeddings, heads, vectors and scalars take AdamW instead.
"""

from typing import Any

import optax

from gradkit.catalogue import Race, register
from gradkit.leaves import Layout
from gradkit.optimizers.matrix.beside_adamw import beside_adamw
from gradkit.transforms import MatrixSharding, scale_by_normuon
from gradkit.transforms.neuron_rms import PAPER
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule


def normuon(
    learning_rate: ScalarOrSchedule = 0.02,
    *,
    momentum: Scalar = 0.95,
    b2: Scalar = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    nu_eps: Scalar = 1e-10,
    axis: str = "output",
    rescale: str = "frobenius",
    scale: str | None = "spectral",
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.95,
    adam_eps: Scalar = 1e-10,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """NorMuon for matrices, convolutions and experts; AdamW for embeddings, heads, vectors and scalars.

    For a matrix x with inputs i and neurons (outputs) j, and its gradient g; m and v are kept:

        m = momentum m + (1 - momentum) g;   u = (1 - momentum) g + momentum m, or m without `nesterov`
        O = the nearest orthogonal matrix of u, by Newton-Schulz
        v_j = b2 v_j + (1 - b2) mean_i O_ij^2;   P_ij = O_ij / (sqrt(v_j) + nu_eps)
        x = x - learning_rate (s P |O|_F / (|P|_F + nu_eps) + weight_decay x)

    `describe` prints which leaf gets which.

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.02 (official code); with rescale="rms" or
        scale="match_rms_adamw" one of AdamW's.
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.95 (official code).
      nesterov: whether to look ahead. Default True (official code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon".
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`.
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      nu_eps: added to the root of the second moment and to the norm behind it, >= 0. Default 1e-10 (official code).
      axis: "output" (paper) or "long", as in `scale_by_normuon`. Default "output".
      rescale: "frobenius" (official code) or "rms" (paper), as in `scale_by_normuon`. Default "frobenius".
      scale: "spectral", "ratio", "match_rms_adamw" or None, as in `scale_by_muon`. Default "spectral" (official code).
      weight_decay: decoupled decay of the matrices >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay, of all. Default all.
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. Default None: `learning_rate` with
        rescale="rms" or scale="match_rms_adamw"; otherwise it must be given where there are such leaves.
      adam_b1: decay of AdamW's first moment, in [0, 1). Default 0.9 (official code).
      adam_b2: decay of AdamW's second moment, in [0, 1). Default 0.95 (official code).
      adam_eps: AdamW's own eps, >= 0. Default 1e-10 (official code).
      adam_weight_decay: decoupled decay of the other leaves >= 0, or a schedule. Default 0.
      mu_dtype: dtype in which first moments are kept. Default float32.
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices work and second moments are spread. Default None.

    Returns:
      A transformation that needs `params` where leaves decay. State: 1 word per parameter of a matrix and 1 per neuron,
      2 per parameter of the others. Collectives: those of `scale_by_normuon`.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, leaves for AdamW without a learning rate for them.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = normuon(0.1, adam_learning_rate=0.01, b2=0.0)
      >>> x = {"bias": jnp.ones(2), "kernel": jnp.eye(2)}
      >>> updates, _ = tx.update(x, tx.init(x), x)
      >>> print(updates["bias"].round(3), updates["kernel"].round(1))
      [-0.01 -0.01] [[-0.1 -0. ]
       [-0.  -0.1]]

    Reference: Li et al. NorMuon: Making Muon more efficient and scalable. 2025, arXiv 2510.05491.
    """
    direction = scale_by_normuon(
        momentum=momentum,
        b2=b2,
        nesterov=nesterov,
        ns_steps=ns_steps,
        coefficients=coefficients,
        method=method,
        eps=eps,
        nu_eps=nu_eps,
        axis=axis,
        rescale=rescale,
        scale=scale,
        mu_dtype=mu_dtype,
        ns_dtype=ns_dtype,
        layout=layout,
        shard=shard,
    )
    return beside_adamw(
        "normuon",
        learning_rate,
        weight_decay,
        weight_decay_mask,
        direction,
        adam_learning_rate=adam_learning_rate,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
        adam_weight_decay=adam_weight_decay,
        mu_dtype=mu_dtype,
        layout=layout,
        sized_as_adamw=rescale == "rms" or scale == "match_rms_adamw",
        lengths=', or scale="match_rms_adamw" or rescale="rms" with scale=None, under which one rate serves all leaves',
    )


register(
    normuon,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="matrices",
    golden=("modern/normuon", "modern/normuon_long_axis"),
    notes="matrices only; embeddings, heads, vectors and scalars take AdamW",
    example={"adam_learning_rate": 0.01},
    race=Race(1e-2, {"scale": "match_rms_adamw"}),
)
