"""Dion2: Muon on the largest slices of the momentum; what is left out stays in it.

M = M + G
c = the k slices of M of largest l1 norm,   k = ceil(fraction times their number)
S = M on c                                                       k slices, the other axis complete
M = ef_decay M on c, M elsewhere
O = the nearest orthogonal matrix of S, by Newton-Schulz
d = s O on c, 0 elsewhere;   x = x - learning_rate (d + weight_decay x)       every entry decays

Embeddings, heads, vectors and scalars take AdamW instead.
"""

from typing import Any, NamedTuple

import jax
import optax

from gradkit import checks
from gradkit.catalogue import Race, register
from gradkit.engine.core import transformation, zeros
from gradkit.engine.planning import check_matrix, plan_stacks
from gradkit.engine.shape_factor import SCALES, scale_by_shape
from gradkit.engine.slices import ROWS, map_slices
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout, axes_of, map_named
from gradkit.linalg.orthogonalize import check_options, orthogonalize
from gradkit.optimizers.matrix.beside_adamw import beside_adamw
from gradkit.transforms import MatrixSharding
from gradkit.transforms.select_slices import PAPER, check_slices, fed_back
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

METHOD = "scale_by_dion2"


class ScaleByDion2State(NamedTuple):
    """The momentum, like the parameters."""

    M: Any


def scale_by_dion2(
    *,
    fraction: float = 0.25,
    ef_decay: Scalar = 0.95,
    eps: Scalar = 1e-8,
    ns_steps: int = 5,
    coefficients: Any = "polar_express",
    scale: str | None = "ratio",
    select: str = "short",
    selection: str = "global",
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalises the largest slices of a momentum; what is not selected stays in it.

    For the gradient G of a matrix; M is kept:

        M = M + G
        c = the k slices of M of largest l1 norm,   k = ceil(fraction times their number)
        S = M on c                                                       k slices, the other axis complete
        M = ef_decay M on c, M elsewhere
        O = the nearest orthogonal matrix of S, by Newton-Schulz
        d = s O on c, 0 elsewhere;   x = x - learning_rate (d + weight_decay x)       every entry decays

    Layers stacked for a scan, experts and fused weights are matrices of their own. Of equal norms the first is taken.

    Args:
      fraction: the share of the slices that moves in a step, in (0, 1]. Default 0.25 (official code).
      ef_decay: what stays in M of slices that have moved, in [0, 1]. Default 0.95 (official code).
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-8 (official code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "polar_express" (official code).
      scale: s: "ratio" (official code), "spectral", "match_rms_adamw" or None, as in `scale_by_muon`, by the sides of
        the complete matrix. Default "ratio".
      select: "short": slices along the shorter axis (official code), of a square matrix outputs; "output": outputs.
        Default "short".
      selection: "global": the largest slices of the complete matrix; "local" (the official default): of every shard of
        an axis that is sharded its own largest, so that the result depends on the mesh. Default "global".
      layout: which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work is spread, as in `gk.muon`. Default None.

    Returns:
      A transformation. State: 1 word per parameter, sharded like it. Collectives, with k of n slices
      selected: an axis that is not selected from is sharded: one number per slice summed, and two all-to-alls per shape
      of k / n of `scale_by_muon`'s words; replicated leaves with `shard`: one all-gather of k / n of them; the selected
      axis is sharded: two all-to-alls, with selection="local" of k / n of the words, with "global" of complete matrices
      and one all-gather of the norms, as the selected slices may all be on one device.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf without inputs or outputs; fused weights that are sharded
        along their outputs.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_dion2(fraction=0.5, ns_steps=8)
      >>> g = jnp.array([[3.0, 1.0], [0.0, 1.0]])
      >>> print(tx.update(g, tx.init(g))[0].round(3) + 0.0)  # the first output alone
      [[1. 0.]
       [0. 0.]]

    Reference: Ahn et al. Dion2: A Simple Method to Shrink Matrix in Muon. 2025, arXiv 2512.16928. The paper also draws
    slices at random; its repository takes the largest l1 norms, of every shard by default, and selects along the axis
    that is sharded, so that its result depends on the mesh.
    """
    checks.layout(layout)
    check_slices(fraction=fraction, ef_decay=ef_decay, select=select, selection=selection, shard=shard)
    ns_steps = checks.integer("ns_steps", ns_steps, 1, maximum=checks.MOST_UNROLLED)
    check_options(steps=ns_steps, coefficients=coefficients, method="newton_schulz", eps=eps)
    checks.choice("scale", scale, SCALES)

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, method=METHOD, layout=layout, shard=shard, transpose=ROWS[select])

    def kernel(S: jax.Array, own: Any, at: Any, places: jax.Array) -> tuple[jax.Array, Any]:
        return orthogonalize(S, steps=ns_steps, coefficients=coefficients, eps=eps), own

    def init(params: optax.Params) -> ScaleByDion2State:
        map_named(lambda name, x: check_matrix(METHOD, name, x.shape, axes_of(layout, name, x.shape)), params)
        return ScaleByDion2State(zeros(params))

    def update(updates: Any, state: ScaleByDion2State, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        M = jax.tree.map(lambda m, g: m + g, state.M, updates)
        plan = planned(M)
        d, chosen, _ = map_slices(plan, kernel, M, fraction=fraction, selection=selection)
        M = fed_back(M, chosen, ef_decay)
        return scale_by_shape(d, plan.axes, plan.shapes, scale), ScaleByDion2State(M)

    return transformation(METHOD, init, update)


def dion2(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    fraction: float = 0.25,
    ef_decay: Scalar = 0.95,
    eps: Scalar = 1e-8,
    ns_steps: int = 5,
    coefficients: Any = "polar_express",
    scale: str | None = "ratio",
    select: str = "short",
    selection: str = "global",
    weight_decay: ScalarOrSchedule = 0.01,
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
    """Dion2 for matrices, convolutions and experts; AdamW for embeddings, heads, vectors and scalars.

    For a matrix x and its gradient G; M is kept:

        M = M + G
        c = the k slices of M of largest l1 norm,   k = ceil(fraction times their number)
        S = M on c                                                       k slices, the other axis complete
        M = ef_decay M on c, M elsewhere
        O = the nearest orthogonal matrix of S, by Newton-Schulz
        d = s O on c, 0 elsewhere;   x = x - learning_rate (d + weight_decay x)       every entry decays

    `describe` prints which leaf gets which.

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.01 (official code).
      fraction: the share of the slices that moves in a step, in (0, 1]. Default 0.25 (official code).
      ef_decay: what stays in M of slices that have moved, in [0, 1]. Default 0.95 (official code).
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-8 (official code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "polar_express" (official code).
      scale: s: "ratio" (official code), "spectral", "match_rms_adamw" or None, as in `scale_by_muon`, by the sides of
        the complete matrix. Default "ratio".
      select: "short": slices along the shorter axis (official code), of a square matrix outputs; "output": outputs.
        Default "short".
      selection: "global": the largest slices of the complete matrix; "local" (the official default): of every shard of
        an axis that is sharded its own largest, so that the result depends on the mesh. Default "global".
      weight_decay: decoupled decay of all entries of the matrices >= 0, or a schedule. Default 0.01 (official code).
      weight_decay_mask: which leaves decay, of all. Default all.
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. Default None: `learning_rate` with
        scale="match_rms_adamw"; otherwise it must be given where there are such leaves.
      adam_b1: decay of AdamW's first moment, in [0, 1). Default 0.9.
      adam_b2: decay of AdamW's second moment, in [0, 1). Default 0.95.
      adam_eps: AdamW's own eps, >= 0. Default 1e-8.
      adam_weight_decay: decoupled decay of the other leaves >= 0, or a schedule. Default 0.
      mu_dtype: dtype in which AdamW's first moment is kept. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work is spread, as in `gk.muon`. Default None.

    Returns:
      A transformation that needs `params` where leaves decay. State: 1 word per parameter of a matrix, 2 of
      the others. Collectives: those of `scale_by_dion2`.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, leaves for AdamW without a learning rate for them.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = dion2(0.1, adam_learning_rate=0.1, fraction=0.5, ns_steps=8, weight_decay=0.0)
      >>> x = {"bias": jnp.ones(2), "kernel": jnp.array([[3.0, 1.0], [0.0, 1.0]])}
      >>> updates, _ = tx.update(x, tx.init(x), x)
      >>> print(updates["bias"].round(3), updates["kernel"].round(3) + 0.0)
      [-0.1 -0.1] [[-0.1  0. ]
       [ 0.   0. ]]

    Reference: Ahn et al. Dion2: A Simple Method to Shrink Matrix in Muon. 2025, arXiv 2512.16928.
    """
    direction = scale_by_dion2(
        fraction=fraction,
        ef_decay=ef_decay,
        eps=eps,
        ns_steps=ns_steps,
        coefficients=coefficients,
        scale=scale,
        select=select,
        selection=selection,
        layout=layout,
        shard=shard,
    )
    return beside_adamw(
        "dion2",
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


register(
    scale_by_dion2,
    form="primitive",
    paper=PAPER,
    words=1,
    collectives="matrices",
    only="matrices",
    notes="for matrices alone: give other leaves to another method with gk.leaves.groups",
)
register(
    dion2,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="matrices",
    golden=("modern/dion2",),
    notes="matrices only; embeddings, heads, vectors and scalars take AdamW",
    example={"adam_learning_rate": 0.01},
    race=Race(2e-2, {"adam_learning_rate": 3e-3}),
)
