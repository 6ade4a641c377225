"""NorDion2: Dion2 with one second moment per output.

M = M + G
c = the k outputs of M of largest l1 norm,   k = ceil(fraction times their number)
S = M on c                                                       k slices, the other axis complete
M = ef_decay M on c, M elsewhere
O = the nearest orthogonal matrix of S, by Newton-Schulz
v_j = b2 v_j + (1 - b2) mean over the inputs of O_ij^2             for the outputs j in c
P = O / (sqrt(v) + nu_eps);   d = s P |O|_F / max(|P|_F, 1e-8) on c, 0 elsewhere
x = x - learning_rate (d + weight_decay x)                       every entry decays

Embeddings, heads, vectors and scalars take AdamW instead.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Race, register
from gradkit.engine.core import divide, transformation, zeros
from gradkit.engine.fields import init_fields, settled
from gradkit.engine.neurons import by_neuron, norms
from gradkit.engine.parts import beside
from gradkit.engine.planning import plan_stacks
from gradkit.engine.presets import called, preset
from gradkit.engine.shape_factor import SCALES, scale_by_shape
from gradkit.engine.slices import ROWS, map_slices
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout
from gradkit.linalg.orthogonalize import check_options, orthogonalize
from gradkit.optimizers.matrix.beside_adamw import beside_adamw
from gradkit.transforms import MatrixSharding
from gradkit.transforms.select_slices import PAPER, check_slices, fed_back
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

METHOD = "scale_by_nordion2"
FLOOR = 1e-8


class Own(NamedTuple):
    """What belongs to the matrices of a stack: the second moments of their outputs."""

    nu: Any


def make(rows: int, dims: tuple[int, ...], dtype: DTypeLike, _: Any) -> Own:
    """The second moments at the start; outputs are the rows of a stack."""
    return Own(beside(jnp.zeros((rows, 1, dims[0]), dtype), ((), (0,))))


class ScaleByNordion2State(NamedTuple):
    """The momentum, like the parameters; the second moments, of a parameter by its outputs; with `shard`, by stacks
    of equal matrices, each with its owners."""

    M: Any
    nu: Any


def scale_by_nordion2(
    *,
    fraction: float = 0.25,
    ef_decay: Scalar = 0.95,
    eps: Scalar = 1e-8,
    ns_steps: int = 5,
    coefficients: Any = "polar_express",
    scale: str | None = "ratio",
    selection: str = "global",
    b2: Scalar = 0.95,
    nu_eps: Scalar = 1e-8,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalises the largest outputs of a momentum, each with a second moment; what is not selected stays in it.

    For the gradient G of a matrix; M and v are kept:

        M = M + G
        c = the k outputs of M of largest l1 norm,   k = ceil(fraction times their number)
        S = M on c                                                       k slices, the other axis complete
        M = ef_decay M on c, M elsewhere
        O = the nearest orthogonal matrix of S, by Newton-Schulz
        v_j = b2 v_j + (1 - b2) mean over the inputs of O_ij^2             for the outputs j in c
        P = O / (sqrt(v) + nu_eps);   d = s P |O|_F / max(|P|_F, 1e-8) on c, 0 elsewhere
        x = x - learning_rate (d + weight_decay x)                       every entry decays

    Layers stacked for a scan, experts and fused weights are matrices of their own. Of equal norms the first is taken.

    Args:
      fraction: the share of the slices that moves in a step, in (0, 1]. Default 0.25 (official code).
      ef_decay: what stays in M of slices that have moved, in [0, 1]. Default 0.95 (official code).
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-8 (official code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "polar_express" (official code).
      scale: s: "ratio" (official code), "spectral", "match_rms_adamw" or None, as in `scale_by_muon`, by the sides of
        the complete matrix. Default "ratio".
      selection: "global": the largest slices of the complete matrix; "local" (the official default): of every shard of
        an axis that is sharded its own largest, so that the result depends on the mesh. Default "global".
      b2: decay of the second moments, in [0, 1). Default 0.95 (official code).
      nu_eps: added to the root of the second moment; the norm behind it is at least 1e-8. >= 0. Default 1e-8 (official
        code).
      layout: which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work is spread, as in `gk.muon`. Default None.

    Returns:
      A transformation. State: 1 word per parameter, sharded like it, and 1 per output, with the owner of the matrix.
      Collectives, with k of n slices
      selected: an axis that is not selected from is sharded: one number per slice summed, and two all-to-alls per shape
      of k / n of `scale_by_muon`'s words; replicated leaves with `shard`: one all-gather of k / n of them; the selected
      axis is sharded: two all-to-alls, with selection="local" of k / n of the words, with "global" of complete matrices
      and one all-gather of the norms, as the selected slices may all be on one device.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf without inputs or outputs; fused weights that are sharded
        along their outputs.

    Example:
      >>> tx = scale_by_nordion2(fraction=0.5, ns_steps=8, scale=None)
      >>> g = jnp.array([[3.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
      >>> print(tx.update(g, tx.init(g))[0].round(3) + 0.0)  # the first output alone
      [[0.707 0.   ]
       [0.    0.   ]
       [0.707 0.   ]]

    Reference: Ahn et al. Dion2: A Simple Method to Shrink Matrix in Muon. 2025, arXiv 2512.16928, for the selection;
    the second moments are those of the repository's nordion2.py, which calls the method Dion3 and takes norms and
    selections of each shard by default. As there, |P| has the floor 1e-8.
    """
    checks.layout(layout)
    check_slices(fraction=fraction, ef_decay=ef_decay, select="output", selection=selection, shard=shard)
    ns_steps = checks.integer("ns_steps", ns_steps, 1, maximum=checks.MOST_UNROLLED)
    check_options(steps=ns_steps, coefficients=coefficients, method="newton_schulz", eps=eps)
    checks.choice("scale", scale, SCALES)
    checks.real("b2", b2, "[0, 1)")
    checks.real("nu_eps", nu_eps, "[0, inf)")

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, make, method=METHOD, layout=layout, shard=shard, transpose=ROWS["output"])

    def kernel(S: jax.Array, own: Own, at: Any, places: jax.Array) -> tuple[jax.Array, Own]:
        o = jnp.swapaxes(orthogonalize(S, steps=ns_steps, coefficients=coefficients, eps=eps), 1, 2)
        before = jnp.take_along_axis(own.nu, places[:, None, :], axis=2)
        P, after = by_neuron(o, before, at["b2"], at["nu_eps"])
        nu = jnp.put_along_axis(own.nu, places[:, None, :], after, axis=2, inplace=False)
        return jnp.swapaxes(P * divide(norms(o), jnp.maximum(norms(P), FLOOR)), 1, 2), Own(nu)

    def init(params: optax.Params) -> ScaleByNordion2State:
        return ScaleByNordion2State(zeros(params), **init_fields(planned(params), params))

    def update(updates: Any, state: ScaleByNordion2State, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        M = jax.tree.map(lambda m, g: m + g, state.M, updates)
        plan = planned(M)
        kept, at = {"nu": state.nu}, {"b2": b2, "nu_eps": nu_eps}
        d, chosen, fields = map_slices(plan, kernel, M, kept, at, fraction=fraction, selection=selection)
        M = settled(fed_back(M, chosen, ef_decay), state.M)
        return scale_by_shape(d, plan.axes, plan.shapes, scale), ScaleByNordion2State(M, **fields)

    return transformation(METHOD, init, update)


def nordion2(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    fraction: float = 0.25,
    ef_decay: Scalar = 0.95,
    eps: Scalar = 1e-8,
    ns_steps: int = 5,
    coefficients: Any = "polar_express",
    scale: str | None = "ratio",
    selection: str = "global",
    b2: Scalar = 0.95,
    nu_eps: Scalar = 1e-8,
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
    """NorDion2 for matrices, convolutions and experts; AdamW for embeddings, heads, vectors and scalars.

    For a matrix x and its gradient G; M and v are kept:

        M = M + G
        c = the k outputs of M of largest l1 norm,   k = ceil(fraction times their number)
        S = M on c                                                       k slices, the other axis complete
        M = ef_decay M on c, M elsewhere
        O = the nearest orthogonal matrix of S, by Newton-Schulz
        v_j = b2 v_j + (1 - b2) mean over the inputs of O_ij^2             for the outputs j in c
        P = O / (sqrt(v) + nu_eps);   d = s P |O|_F / max(|P|_F, 1e-8) on c, 0 elsewhere
        x = x - learning_rate (d + weight_decay x)                       every entry decays

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
      selection: "global": the largest slices of the complete matrix; "local" (the official default): of every shard of
        an axis that is sharded its own largest, so that the result depends on the mesh. Default "global".
      b2: decay of the second moments, in [0, 1). Default 0.95 (official code).
      nu_eps: added to the root of the second moment; the norm behind it is at least 1e-8. >= 0. Default 1e-8 (official
        code).
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
      A transformation that needs `params` where leaves decay. State: 1 word per parameter of a matrix and 1 per output,
      2 of the others. Collectives: those of `scale_by_nordion2`.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, leaves for AdamW without a learning rate for them.

    Example:
      >>> tx = nordion2(0.1, adam_learning_rate=0.1, fraction=0.5, ns_steps=8, weight_decay=0.0)
      >>> x = {"bias": jnp.ones(2), "kernel": jnp.array([[3.0, 1.0], [0.0, 1.0]])}
      >>> updates, _ = tx.update(x, tx.init(x), x)
      >>> print(updates["bias"].round(3), updates["kernel"].round(3) + 0.0)
      [-0.1 -0.1] [[-0.1  0. ]
       [ 0.   0. ]]

    Reference: Ahn et al. Dion2: A Simple Method to Shrink Matrix in Muon. 2025, arXiv 2512.16928; the repository's
    nordion2.py.
    """
    direction = scale_by_nordion2(
        fraction=fraction,
        ef_decay=ef_decay,
        eps=eps,
        ns_steps=ns_steps,
        coefficients=coefficients,
        scale=scale,
        selection=selection,
        b2=b2,
        nu_eps=nu_eps,
        layout=layout,
        shard=shard,
    )
    return beside_adamw(
        called("nordion2"),
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


dion3 = preset(nordion2, "dion3", "NorDion2 under the name that its repository gives it.")


register(
    scale_by_nordion2,
    form="primitive",
    paper=PAPER,
    words=1,
    collectives="matrices",
    only="matrices",
    notes="for matrices alone: give other leaves to another method with gk.leaves.groups",
)
register(
    nordion2,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="matrices",
    golden=("modern/nordion2",),
    notes="matrices only; embeddings, heads, vectors and scalars take AdamW",
    example={"adam_learning_rate": 0.01},
    race=Race(2e-2, {"adam_learning_rate": 3e-3}),
)
register(
    dion3,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="matrices",
    golden=("modern/nordion2",),
    same_as="nordion2",
    notes="matrices only; embeddings, heads, vectors and scalars take AdamW",
    example={"adam_learning_rate": 0.01},
    race=Race(2e-2, {"adam_learning_rate": 3e-3}),
)
