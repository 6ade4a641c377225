"""Aurora: Muon whose update has rows of equal norm along the longer axis, as well as orthogonal columns.

m_t = momentum m_{t-1} + (1 - momentum) g_t
u_t = (1 - momentum) g_t + momentum m_t
O_t = the balanced orthogonal factor of u_t
x_t = x_{t-1} - learning_rate (sqrt(max(1, outputs / inputs)) O_t + weight_decay x_{t-1})

Embeddings, heads, vectors and scalars take AdamW instead.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine import orthogonal as orthogonals
from gradkit.engine.core import scalar
from gradkit.engine.orthogonal import Orthogonal
from gradkit.engine.shape_factor import SCALES
from gradkit.engine.shards import MatrixSharding
from gradkit.leaves import Layout
from gradkit.optimizers.matrix.beside_adamw import beside_adamw
from gradkit.transforms.momenta import Mean, weighted_momenta
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("Aurora: A Leverage-Aware Optimizer for Rectangular Matrices", "Dewulf et al.", 2026)


def balanced(x: jax.Array, *, how: Orthogonal, steps: int, power: Any, eps: Any) -> jax.Array:
    """The factor of matrices (B, n, m), n <= m, whose m columns are balanced; of square ones the orthogonal factor."""
    n, m = x.shape[1:]
    if n == m:
        return how.kernel(x)

    def squares(y: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(y), axis=1, keepdims=True)

    own = jnp.sqrt(squares(x))
    # A column of zeros stays one: what it is multiplied by would grow from step to step, until it is no number.
    D = jnp.where(own > 0, 1 / jnp.maximum(own, scalar(eps, x)), jnp.zeros_like(own))
    y = how.kernel(x * D)
    for _ in range(steps - 1):
        r = squares(y)
        D = D * (jnp.asarray(n / m, x.dtype) / jnp.maximum(r, jnp.square(jnp.asarray(eps, x.dtype)))) ** scalar(
            power, x
        )
        y = how.kernel(x * D)
    return y


def balance_rows(
    *,
    balance_steps: int = 2,
    balance_power: Scalar = 0.5,
    balance_eps: Scalar = 1e-7,
    ns_steps: int = 12,
    coefficients: Any = "quintic",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    scale: str | None = "spectral",
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalises every matrix such that its rows, along the longer axis, have equal norms too.

    Equations, of a matrix X with N rows and n < N columns, transposed where it is wide:

        D = 1 / max(|row|, balance_eps)                                             of every row of X
        O = U V^T of D X = U S V^T
        D <- D (n / N / max(|row of O|^2, balance_eps^2))^balance_power             balance_steps - 1 times, each with
        O = U V^T of D X                                                            another O
        direction = s O

    The rows of an orthogonal factor have squares that add up to n, and an update of a neuron with small leverage would
    stay small whatever its gradient; balanced, all of them are near n / N. A square matrix has rows of norm 1 anyway,
    and gets its orthogonal factor. One link between a momentum and the learning rate.

    Args:
      balance_steps: orthogonalisations, >= 1, of which the first balances the rows of X. Default 2 (official code).
      balance_power: in (0, 1]. Default 0.5 (official code).
      balance_eps: smallest norm of a row that is divided by, > 0. Default 1e-7 (official code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 12 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "quintic" (official code).
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`. Default "newton_schulz".
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      scale: s, as in `gk.scale_by_muon`. Default "spectral" (official code).
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work is spread. Default None.

    Returns:
      A transformation. No state. Collectives: those of `gk.scale_by_muon`: the repetitions are the owner's.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf that is no matrix.

    Example:
      >>> tx = balance_rows(balance_steps=8, method="svd")
      >>> g = jnp.array([[9.0, 0.0], [0.0, 1.0], [0.1, 0.1]])
      >>> print(jnp.sum(tx.update(g, tx.init(g))[0] ** 2, axis=1).round(2))  # of 2 / 3 each
      [0.67 0.67 0.67]

    Reference: Dewulf et al. Aurora: A Leverage-Aware Optimizer for Rectangular Matrices. 2026. Its repository has a
    Riemannian form too, which is not here, and a later version takes Muon for wide matrices. Departure: rows of zeros
    stay zero for any number of steps.
    """
    checks.layout(layout)
    balance_steps = checks.integer("balance_steps", balance_steps, 1, maximum=checks.MOST_UNROLLED)
    checks.real("balance_power", balance_power, "(0, 1]")
    checks.real("balance_eps", balance_eps, "(0, inf)")
    checks.choice("scale", scale, SCALES)
    how = orthogonals.checked(ns_steps, coefficients, method, eps, ns_dtype, shard)
    kernel = partial(balanced, how=how, steps=balance_steps, power=balance_power, eps=balance_eps)
    return orthogonals.orthogonal_link("balance_rows", how, scale=scale, layout=layout, shard=shard, kernel=kernel)


def aurora(
    learning_rate: ScalarOrSchedule = 0.05,
    *,
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    balance_steps: int = 2,
    balance_power: Scalar = 0.5,
    balance_eps: Scalar = 1e-7,
    ns_steps: int = 12,
    coefficients: Any = "quintic",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    scale: str | None = "spectral",
    weight_decay: ScalarOrSchedule = 0.025,
    weight_decay_mask: Mask | None = None,
    adam_learning_rate: Any = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.95,
    adam_eps: Scalar = 1e-10,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon whose updates have rows of equal norm along the longer axis, as well as orthogonal columns.

    Equations:

        m_t = momentum m_{t-1} + (1 - momentum) g_t
        u_t = (1 - momentum) g_t + momentum m_t                    (m_t without Nesterov's look-ahead)
        O_t = what `balance_rows` makes of u_t
        x_t = x_{t-1} - learning_rate (s O_t + weight_decay x_{t-1})

    Embeddings, heads, vectors and scalars take AdamW.

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.05 (official code).
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      nesterov: whether to look ahead. Default True (official code).
      balance_steps: orthogonalisations, >= 1, as in `balance_rows`. Default 2 (official code).
      balance_power: in (0, 1], as in `balance_rows`. Default 0.5 (official code).
      balance_eps: smallest norm of a row that is divided by, > 0. Default 1e-7 (official code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 12 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "quintic" (official code).
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`. Default "newton_schulz".
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      scale: s, as in `gk.scale_by_muon`. Default "spectral" (official code).
      weight_decay: decoupled decay of the matrices >= 0, or a schedule. Default 0.025 (official code).
      weight_decay_mask: which leaves decay, of all. Default all.
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. Has to be given where there are some,
        unless scale="match_rms_adamw", under which one rate of AdamW's serves all leaves.
      adam_b1: decay of their first moment, in [0, 1). Default 0.9.
      adam_b2: decay of their second moment, in [0, 1). Default 0.95.
      adam_eps: added to the root of theirs, >= 0. Default 1e-10.
      adam_weight_decay: their decoupled decay >= 0, or a schedule. Default 0.
      mu_dtype: dtype in which first moments are kept. Default float32.
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work is spread, as in `gk.scale_by_muon`. Default None.

    Returns:
      A transformation that needs `params` where leaves decay. State: 1 word per parameter of a matrix, 2 of the others.
      Collectives: those of `gk.scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, leaves for AdamW without a learning rate for them.

    Example:
      >>> tx = aurora(1.0, momentum=0.0, weight_decay=0.0, method="svd")
      >>> x = jnp.array([[0.0, 3.0], [2.0, 0.0]])  # square: Muon
      >>> print(-tx.update(x, tx.init(x), x)[0].round(3) + 0.0)
      [[0. 1.]
       [1. 0.]]

    Reference: Dewulf et al. Aurora: A Leverage-Aware Optimizer for Rectangular Matrices. 2026.
    """
    checks.switch(nesterov=nesterov)
    checks.real("momentum", momentum, "[0, 1)")
    checks.floating_dtype(mu_dtype=mu_dtype)
    ahead = ([Mean(momentum, momentum)], 1 - momentum) if nesterov else ([Mean(momentum)], 0.0)
    rows = balance_rows(
        balance_steps=balance_steps,
        balance_power=balance_power,
        balance_eps=balance_eps,
        ns_steps=ns_steps,
        coefficients=coefficients,
        method=method,
        eps=eps,
        scale=scale,
        ns_dtype=ns_dtype,
        layout=layout,
        shard=shard,
    )
    return beside_adamw(
        "aurora",
        learning_rate,
        weight_decay,
        weight_decay_mask,
        weighted_momenta("aurora", *ahead, mu_dtype=mu_dtype),
        rows,
        adam_learning_rate=adam_learning_rate,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
        adam_weight_decay=adam_weight_decay,
        mu_dtype=mu_dtype,
        layout=layout,
        sized_as_adamw=scale == "match_rms_adamw",
        lengths=', or scale="match_rms_adamw"',
    )


register(
    balance_rows,
    form="primitive",
    paper=PAPER,
    collectives="matrices",
    only="matrices",
    notes="between a momentum and the learning rate; for matrices alone",
)
register(
    aurora,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="matrices",
    golden=("modern/aurora",),
    example={"adam_learning_rate": 0.01},
    notes="matrices only; embeddings, heads, vectors and scalars take AdamW",
    race=Race(1e-2, {"scale": "match_rms_adamw"}),
)
