"""Contra-Muon and Soft-Muon: the polar factor of the momentum, less some of the momentum or more of early iterates.

m = momentum m + (1 - momentum) g;   u = (1 - momentum) g + momentum m, or m without `nesterov`
X_0 = u / |u|_S4;   X_(j+1) = a X_j + (b A + c A A) X_j,   A = X_j X_j^T;   O = X_(ns_steps)
c = O + contra X_0,   f = sum over j of soft_weights_j X_j        each rescaled to the norm |O|_S4
d = s ((1 - soft) c + soft f)                                     rescaled once more
x = x - learning_rate (d + weight_decay x)

|.|_S4 is the fourth root of the sum of s^4. Embeddings, heads, vectors and scalars take AdamW instead.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import at_count, divide, increment, scalar, transformation, zeros
from gradkit.engine.kronecker import product
from gradkit.engine.mapping import map_stacks
from gradkit.engine.neurons import norms
from gradkit.engine.planning import check_matrix, plan_stacks
from gradkit.engine.presets import called, preset
from gradkit.engine.shape_factor import SCALES, scale_by_shape
from gradkit.engine.shards import check_shard
from gradkit.leaves import Layout, axes_of, map_named
from gradkit.linalg.orthogonalize import check_options, listed, schatten4
from gradkit.optimizers.matrix.beside_adamw import beside_adamw
from gradkit.transforms import MatrixSharding
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("Contra-Muon and Soft-Muon, records 11 and 20 of modded-nanogpt's track 3", "", 2026)
METHOD = "scale_by_contra_muon"
FLOOR = 1e-7
# Of the twelve iterates, so that sum of w_j X_j maps singular values s to about s^0.1.
SOFT_WEIGHTS = (
    0.1091613623,
    0.07085664498,
    0.05210528973,
    0.05457295795,
    0.05011334061,
    0.03334622198,
    0.05022104481,
    0.1053727358,
    0.1187323776,
    0.1185061091,
    0.1185059576,
    0.1185059576,
)


class ScaleByContraMuonState(NamedTuple):
    """Number of updates made; the momentum, like the parameters."""

    count: jax.Array
    mu: Any


def scale_by_contra_muon(
    *,
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    contra: ScalarOrSchedule = -0.2,
    soft: ScalarOrSchedule = 0.0,
    ns_steps: int = 12,
    coefficients: Any = "quintic",
    soft_weights: Any = None,
    ns_norm: str = "schatten4",
    scale: str | None = "spectral",
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalises the momentum of every matrix, and mixes in the momentum itself or early iterates.

        m = momentum m + (1 - momentum) g;   u = (1 - momentum) g + momentum m, or m without `nesterov`
        X_0 = u / |u|_S4;   X_(j+1) = a X_j + (b A + c A A) X_j,   A = X_j X_j^T;   O = X_(ns_steps)
        c = O + contra X_0,   f = sum over j of soft_weights_j X_j        each rescaled to the norm |O|_S4
        d = s ((1 - soft) c + soft f)                                     rescaled once more

    Singular vectors are those of u; a singular value follows the polynomial of the iterates. With contra = soft = 0 it
    is `scale_by_muon`. Layers stacked for a scan, experts and fused weights are matrices of their own.

    Args:
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      nesterov: whether to look ahead. Default True (official code).
      contra: times the normalised momentum is added to its polar factor: below 0 it takes from the large singular
        values. A number > -1, or a schedule. Default -0.2 (record 11); 0 is Muon.
      soft: the share of f, which maps singular values s to about s^0.1, in [0, 1], or a schedule. Default 0.
      ns_steps: Newton-Schulz iterations, >= 1. Default 12 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "quintic" (official code).
      soft_weights: a weight for every iterate, as many as `ns_steps`. Default None: those of record 20, for twelve
        steps.
      ns_norm: what the iterations are normalised by: "schatten4", at least 1e-7, or "frobenius". Default
        "schatten4" (official code).
      scale: s: "spectral", "ratio", "match_rms_adamw" or None, as in `scale_by_muon`. Default "spectral".
      mu_dtype: dtype in which the momentum is kept between steps. Default float32.
      layout: which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are spread, as in `gk.muon`. Default None.

    Returns:
      A transformation. State: 1 word per parameter. Collectives: those of `scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf without inputs or outputs.

    Example:
      >>> tx = scale_by_contra_muon(scale=None)
      >>> g = jnp.diag(jnp.array([2.0, 1.0]))
      >>> print(tx.update(g, tx.init(g))[0].round(3) + 0.0)  # less of the large singular value
      [[0.938 0.   ]
       [0.    1.053]]

    Reference: modded-nanogpt, track 3, records 11 and 20, 2026; nilin/contra-muon. The records divide by neurons
    besides (`scale_by_neuron_rms`), and let contra rise from -0.2 to 0 and then soft from 0 to 0.8.
    """
    checks.layout(layout)
    checks.arrays(soft_weights=soft_weights)
    checks.switch(nesterov=nesterov)
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("momentum", momentum, "[0, 1)")
    checks.real("contra", contra, "(-1, inf)", schedule=True)
    checks.real("soft", soft, "[0, 1]", schedule=True)
    ns_steps = checks.integer("ns_steps", ns_steps, 1, maximum=checks.MOST_UNROLLED)
    check_options(steps=ns_steps, coefficients=coefficients, method="newton_schulz", eps=FLOOR)
    checks.choice("ns_norm", ns_norm, ("schatten4", "frobenius"))
    checks.choice("scale", scale, SCALES)
    check_shard(shard)
    weights = SOFT_WEIGHTS if soft_weights is None else tuple(float(w) for w in soft_weights)
    softened = not (type(soft) in (int, float) and soft == 0)
    if softened and len(weights) != ns_steps:
        raise ValueError(
            f"{METHOD}: soft_weights must have one number for each of the {ns_steps} iterations, got {len(weights)}; "
            "give soft_weights, or write ns_steps=12"
        )
    abc = listed(coefficients, ns_steps)

    def kernel(x: jax.Array, own: Any, at: Any, _: Any) -> tuple[jax.Array, Any]:
        size = schatten4(x)[:, None, None] if ns_norm == "schatten4" else norms(x)
        start = X = x / jnp.maximum(size, FLOOR)
        f = jnp.zeros_like(x)
        for j, (a, b, c) in enumerate(abc):
            if softened:
                f = f + weights[j] * X
            A = product(X, jnp.swapaxes(X, 1, 2))
            X = a * X + product(b * A + c * product(A, A), X)
        whole = schatten4(X)[:, None, None]

        def sized(y: jax.Array) -> jax.Array:
            return y * divide(whole, schatten4(y)[:, None, None])

        y = sized(X + scalar(at["contra"], x) * start)
        if softened:
            t = scalar(at["soft"], x)
            y = (1 - t) * y + t * sized(f)
        return sized(y), own

    def init(params: optax.Params) -> ScaleByContraMuonState:
        map_named(lambda name, x: check_matrix(METHOD, name, x.shape, axes_of(layout, name, x.shape)), params)
        return ScaleByContraMuonState(jnp.zeros((), jnp.int32), zeros(params, mu_dtype))

    def update(updates: Any, state: ScaleByContraMuonState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra

        def look(m: jax.Array, g: jax.Array) -> jax.Array:
            m, b = m.astype(g.dtype), scalar(momentum, g)
            return (1 - b) * g + b * m if nesterov else m

        mu = jax.tree.map(lambda m, g: ema(m, g, momentum), state.mu, updates)
        u = jax.tree.map(look, mu, updates)
        given = {"contra": contra, "soft": soft}
        at = {name: at_count(value, state.count, f"{METHOD}: {name}") for name, value in given.items()}
        plan = plan_stacks(u, method=METHOD, layout=layout, shard=shard, transpose=True)
        d, _ = map_stacks(plan, kernel, u, None, at)
        return scale_by_shape(d, plan.axes, plan.shapes, scale), ScaleByContraMuonState(increment(state.count), mu)

    return transformation(METHOD, init, update)


def contra_muon(
    learning_rate: ScalarOrSchedule = 0.0375,
    *,
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    contra: ScalarOrSchedule = -0.2,
    soft: ScalarOrSchedule = 0.0,
    ns_steps: int = 12,
    coefficients: Any = "quintic",
    soft_weights: Any = None,
    ns_norm: str = "schatten4",
    scale: str | None = "spectral",
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.95,
    adam_eps: Scalar = 1e-8,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Contra-Muon for matrices, convolutions and experts; AdamW for embeddings, heads, vectors and scalars.

        m = momentum m + (1 - momentum) g;   u = (1 - momentum) g + momentum m, or m without `nesterov`
        X_0 = u / |u|_S4;   X_(j+1) = a X_j + (b A + c A A) X_j,   A = X_j X_j^T;   O = X_(ns_steps)
        c = O + contra X_0,   f = sum over j of soft_weights_j X_j        each rescaled to the norm |O|_S4
        d = s ((1 - soft) c + soft f)                                     rescaled once more
        x = x - learning_rate (d + weight_decay x)

    `describe` prints which leaf gets which.

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.0375 (record 20).
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      nesterov: whether to look ahead. Default True (official code).
      contra: times the normalised momentum is added to its polar factor: below 0 it takes from the large singular
        values. A number > -1, or a schedule. Default -0.2 (record 11); 0 is Muon.
      soft: the share of f, which maps singular values s to about s^0.1, in [0, 1], or a schedule. Default 0.
      ns_steps: Newton-Schulz iterations, >= 1. Default 12 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "quintic" (official code).
      soft_weights: a weight for every iterate, as many as `ns_steps`. Default None: those of record 20, for twelve
        steps.
      ns_norm: what the iterations are normalised by: "schatten4", at least 1e-7, or "frobenius". Default
        "schatten4" (official code).
      scale: s: "spectral", "ratio", "match_rms_adamw" or None, as in `scale_by_muon`. Default "spectral".
      weight_decay: decoupled decay of the matrices >= 0, or a schedule. Default 0.0.
      weight_decay_mask: which leaves decay, of all. Default all.
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. Default None:
        `learning_rate` with scale="match_rms_adamw"; otherwise it must be given where there are such leaves.
      adam_b1: decay of AdamW's first moment, in [0, 1). Default 0.9.
      adam_b2: decay of AdamW's second moment, in [0, 1). Default 0.95.
      adam_eps: AdamW's own eps, >= 0. Default 1e-8.
      adam_weight_decay: decoupled decay of the other leaves >= 0, or a schedule. Default 0.
      mu_dtype: dtype in which first moments are kept. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are spread, as in `gk.muon`. Default None.

    Returns:
      A transformation that needs `params` where leaves decay. State: 1 word per parameter of a matrix, and 2 words per
      parameter of the others. Collectives: those of `scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, leaves for AdamW without a learning rate for them.

    Example:
      >>> tx = contra_muon(0.1, adam_learning_rate=0.01)
      >>> x = {"bias": jnp.ones(2), "kernel": jnp.eye(2)}
      >>> updates, _ = tx.update(x, tx.init(x), x)
      >>> print(updates["bias"].round(3), updates["kernel"].round(3) + 0.0)
      [-0.01 -0.01] [[-0.1  0. ]
       [ 0.  -0.1]]

    Reference: modded-nanogpt, track 3, records 11 and 20, 2026; nilin/contra-muon. The records divide by neurons
    besides (`scale_by_neuron_rms`), and let contra rise from -0.2 to 0 and then soft from 0 to 0.8.
    """
    checks.arrays(soft_weights=soft_weights)
    direction = scale_by_contra_muon(
        momentum=momentum,
        nesterov=nesterov,
        contra=contra,
        soft=soft,
        ns_steps=ns_steps,
        coefficients=coefficients,
        soft_weights=soft_weights,
        ns_norm=ns_norm,
        scale=scale,
        mu_dtype=mu_dtype,
        layout=layout,
        shard=shard,
    )
    return beside_adamw(
        called("contra_muon"),
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
        sized_as_adamw=scale == "match_rms_adamw",
        lengths=', or scale="match_rms_adamw", under which one rate serves all leaves',
    )


soft_muon = preset(
    contra_muon,
    "soft_muon",
    "Soft-Muon: Muon whose singular values are about s^0.1 in place of 1.",
    contra=0.0,
    soft=0.8,
)


register(
    scale_by_contra_muon,
    form="primitive",
    paper=PAPER,
    words=1,
    collectives="matrices",
    only="matrices",
    notes="for matrices alone: give other leaves to another method with gk.leaves.groups",
)
register(
    contra_muon,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="matrices",
    golden=("modern/contra_muon",),
    notes="matrices only; embeddings, heads, vectors and scalars take AdamW",
    example={"adam_learning_rate": 0.01},
    race=Race(1e-2, {"scale": "match_rms_adamw"}),
)
register(
    soft_muon,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="matrices",
    golden=("modern/contra_muon",),
    same_as="contra_muon",
    notes="matrices only; embeddings, heads, vectors and scalars take AdamW",
    example={"adam_learning_rate": 0.01},
    race=Race(1e-2, {"scale": "match_rms_adamw"}),
)
