"""Adam, Muon and NorMuon on the hyperball: matrices keep their norm, and the learning rate is the angle of a step.

R  = |W_0|
u  = the direction of Adam, of Muon or of NorMuon
y  = W - learning_rate R u / |u|
W' = R y / |y|

Embeddings, heads, vectors and scalars take AdamW instead.
"""

from typing import Any

import optax

from gradkit import checks
from gradkit.catalogue import Race, register
from gradkit.engine import orthogonal as orthogonals
from gradkit.engine.shards import MatrixSharding
from gradkit.leaves import Layout, Method
from gradkit.optimizers.matrix.rate_inside import with_adamw
from gradkit.transforms import hyperball, scale_by_adam, scale_by_normuon
from gradkit.transforms.hyperball import BY_LAYOUT, ON_A_SPHERE, PAPER
from gradkit.transforms.momenta import Mean, weighted_momenta
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

UNDECIDED = (
    "for which the angle of a step on the hyperball is no learning rate: give adam_learning_rate, 3e-4 to 3e-3 for "
    "most models"
)


def adamh(
    learning_rate: ScalarOrSchedule = 0.018,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    radius: Scalar | None = None,
    radius_of_zeros: Scalar | None = None,
    block: str = "tensor",
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.95,
    adam_eps: Scalar = 1e-8,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam whose matrices keep their norm: the learning rate is the angle of a step, and there is no weight decay.

    Equations, of every matrix W and Adam's direction u:

        R  = |W_0|
        y  = W - learning_rate R u / |u|
        W' = R y / |y|

    Embeddings, heads, vectors and scalars take AdamW. `hyperball` does the same around any direction.

    Args:
      learning_rate: the angle of a step, about, in radians, >= 0, or a schedule. Default 0.018 (record of the modded
        NanoGPT speed run); about sqrt(rate times decay) of an AdamW run.
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.95 (official code).
      eps: added to the root, >= 0. Default 1e-8 (official code).
      radius: the norm of every matrix, > 0. Default None: the one that it starts with.
      radius_of_zeros: the root mean square of the entries that a matrix is brought to which starts at zero, > 0.
        Default None: such a matrix is refused.
      block: "tensor", one matrix, or "unit", the inputs of one output. Default "tensor".
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. Has to be given where there are some.
      adam_b1: decay of their first moment, in [0, 1). Default 0.9.
      adam_b2: decay of their second moment, in [0, 1). Default 0.95.
      adam_eps: added to the root of theirs, >= 0. Default 1e-8.
      adam_weight_decay: their decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which of them decay. Default all.
      mu_dtype: dtype in which first moments are kept. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks.

    Returns:
      A transformation that needs `params`. State: 2 words per parameter, one number per matrix. Collectives: one
      all-reduce of three numbers per matrix where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, a matrix of zeros, and leaves for AdamW without a
        learning rate for them.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, w = adamh(0.1), jnp.array([[3.0, 4.0]])
      >>> u, _ = tx.update(jnp.array([[1.0, -1.0]]), tx.init(w), w)
      >>> print(jnp.linalg.norm(w + u).round(4))
      5.0

    Reference: Wen et al. Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization. 2026,
    arXiv 2606.16899. See `hyperball` for what differs from levanter's AdamH.
    """
    direction = scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype)
    sphere = {"radius": radius, "radius_of_zeros": radius_of_zeros, "block": block, "layout": layout}
    return with_adamw(
        Method("adamh", learning_rate, None, weight_decay_mask),
        hyperball(direction, learning_rate, **sphere),
        adam_learning_rate=adam_learning_rate,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
        adam_weight_decay=adam_weight_decay,
        mu_dtype=mu_dtype,
        layout=layout,
        undecided=UNDECIDED,
    )


def muonh(
    learning_rate: ScalarOrSchedule = 0.018,
    *,
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    radius: Scalar | None = None,
    radius_of_zeros: Scalar | None = None,
    block: str = "tensor",
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.95,
    adam_eps: Scalar = 1e-8,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon whose matrices keep their norm: the learning rate is the angle of a step, and there is no weight decay.

    Equations, of every matrix W and its orthogonalised momentum O:

        m_t = momentum m_{t-1} + (1 - momentum) g_t
        u_t = (1 - momentum) g_t + momentum m_t                 (m_t without Nesterov's look-ahead)
        O_t = U V^T of u_t = U S V^T
        R   = |W_0|,   y = W - learning_rate R O_t / |O_t|,   W' = R y / |y|

    Muon's factor of the shape cancels. Embeddings, heads, vectors and scalars take AdamW.

    Args:
      learning_rate: the angle of a step, about, in radians, >= 0, or a schedule. Default 0.018 (record of the modded
        NanoGPT speed run).
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      nesterov: whether to look ahead. Default True (official code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon".
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`.
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      radius: the norm of every matrix, > 0. Default None: the one that it starts with.
      radius_of_zeros: the root mean square of the entries that a matrix is brought to which starts at zero, > 0.
        Default None: such a matrix is refused.
      block: "tensor", one matrix, or "unit", the inputs of one output. Default "tensor".
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. Has to be given where there are some.
      adam_b1: decay of their first moment, in [0, 1). Default 0.9.
      adam_b2: decay of their second moment, in [0, 1). Default 0.95.
      adam_eps: added to the root of theirs, >= 0. Default 1e-8.
      adam_weight_decay: their decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which of them decay. Default all.
      mu_dtype: dtype in which first moments are kept. Default float32.
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work is spread, as in `gk.scale_by_muon`. Default None.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter of a matrix, 2 of the others, one number per
      matrix. Collectives: those of `gk.scale_by_muon`, and one all-reduce of three numbers per matrix.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, a matrix of zeros, and leaves for AdamW without a
        learning rate for them.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, w = muonh(0.1, momentum=0.0, method="svd"), jnp.eye(2)
      >>> u, _ = tx.update(jnp.array([[0.0, 1.0], [-1.0, 0.0]]), tx.init(w), w)  # at right angles
      >>> print((w + u).round(3))
      [[ 0.995 -0.1  ]
       [ 0.1    0.995]]

    Reference: Wen et al. Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization. 2026,
    arXiv 2606.16899. See `hyperball` for what differs from levanter's MuonH.
    """
    checks.switch(nesterov=nesterov)
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("momentum", momentum, "[0, 1)")
    how = orthogonals.checked(ns_steps, coefficients, method, eps, ns_dtype, shard)
    ahead = ([Mean(momentum, momentum)], 1 - momentum) if nesterov else ([Mean(momentum)], 0.0)
    direction = optax.chain(
        weighted_momenta("muonh", *ahead, mu_dtype=mu_dtype),
        orthogonals.orthogonal_link("muonh", how, layout=layout, shard=shard),
    )
    sphere = {"radius": radius, "radius_of_zeros": radius_of_zeros, "block": block, "layout": layout}
    return with_adamw(
        Method("muonh", learning_rate, None, weight_decay_mask),
        hyperball(direction, learning_rate, **sphere),
        adam_learning_rate=adam_learning_rate,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
        adam_weight_decay=adam_weight_decay,
        mu_dtype=mu_dtype,
        layout=layout,
        undecided=UNDECIDED,
    )


def normuonh(
    learning_rate: ScalarOrSchedule = 0.018,
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
    radius: Scalar | None = None,
    radius_of_zeros: Scalar | None = None,
    block: str = "tensor",
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.95,
    adam_eps: Scalar = 1e-8,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """NorMuon whose matrices keep their norm: the learning rate is the angle of a step, and there is no weight decay.

    Equations, of every matrix W and NorMuon's direction P, the orthogonalised momentum whose neurons are divided by the
    root of a second moment each:

        R = |W_0|,   y = W - learning_rate R P / |P|,   W' = R y / |y|

    What NorMuon does about the size of P cancels. Embeddings, heads, vectors and scalars take AdamW.

    Args:
      learning_rate: the angle of a step, about, in radians, >= 0, or a schedule. Default 0.018, as `muonh`.
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      b2: decay of the second moments, in [0, 1). Default 0.95 (official code).
      nesterov: whether to look ahead. Default True (official code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon".
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`.
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      nu_eps: added to the roots of the second moments, >= 0. Default 1e-10 (official code).
      axis: "output" or "long": what has a second moment, as in `gk.scale_by_normuon`. Default "output".
      radius: the norm of every matrix, > 0. Default None: the one that it starts with.
      radius_of_zeros: the root mean square of the entries that a matrix is brought to which starts at zero, > 0.
        Default None: such a matrix is refused.
      block: "tensor", one matrix, or "unit", the inputs of one output. Default "tensor".
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. Has to be given where there are some.
      adam_b1: decay of their first moment, in [0, 1). Default 0.9.
      adam_b2: decay of their second moment, in [0, 1). Default 0.95.
      adam_eps: added to the root of theirs, >= 0. Default 1e-8.
      adam_weight_decay: their decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which of them decay. Default all.
      mu_dtype: dtype in which first moments are kept. Default float32.
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work is spread, as in `gk.scale_by_muon`. Default None.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter of a matrix, 2 of the others, one number per
      neuron and matrix. Collectives: those of `gk.scale_by_normuon`, and one all-reduce of three numbers per matrix.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, a matrix of zeros, and leaves for AdamW without a
        learning rate for them.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, w = normuonh(0.1, momentum=0.0, method="svd"), jnp.eye(2)
      >>> u, _ = tx.update(jnp.array([[0.0, 1.0], [-1.0, 0.0]]), tx.init(w), w)  # at right angles
      >>> print((w + u).round(3))
      [[ 0.995 -0.1  ]
       [ 0.1    0.995]]

    Reference: Wen et al. Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization. 2026,
    arXiv 2606.16899; Li et al. NorMuon: Making Muon more efficient and scalable. 2025, arXiv 2510.05491.
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
        scale=None,
        mu_dtype=mu_dtype,
        ns_dtype=ns_dtype,
        layout=layout,
        shard=shard,
    )
    sphere = {"radius": radius, "radius_of_zeros": radius_of_zeros, "block": block, "layout": layout}
    return with_adamw(
        Method("normuonh", learning_rate, None, weight_decay_mask),
        hyperball(direction, learning_rate, **sphere),
        adam_learning_rate=adam_learning_rate,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
        adam_weight_decay=adam_weight_decay,
        mu_dtype=mu_dtype,
        layout=layout,
        undecided=UNDECIDED,
    )


SHARED: dict[str, Any] = {
    "form": "optimizer",
    "paper": PAPER,
    "example": {"adam_learning_rate": 0.01},
    "notes": "matrices only, which must not start at zero; embeddings, heads, vectors and scalars take AdamW",
}
register(
    adamh,
    **SHARED,
    words=2,
    collectives="norms",
    golden=("modern/adamh",),
    opt_outs=BY_LAYOUT | ON_A_SPHERE,
    race=Race(2e-2, {"adam_learning_rate": 3e-3}),
)
register(
    muonh,
    **SHARED,
    words=1,
    collectives="matrices",
    golden=("modern/muonh",),
    opt_outs=ON_A_SPHERE,
    race=Race(2e-2, {"adam_learning_rate": 3e-3}),
)
register(
    normuonh,
    **SHARED,
    words=1,
    collectives="matrices",
    opt_outs=ON_A_SPHERE,
    race=Race(2e-2, {"adam_learning_rate": 3e-3}),
)
