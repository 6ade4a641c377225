"""The rows or columns of a momentum that are largest; what is not selected stays in the momentum.

M = M + g
c = the k slices of M of largest l1 norm,   k = ceil(fraction times their number)
u = M on the slices c, 0 elsewhere
M = ef_decay M on the slices c; elsewhere as it is
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar, transformation, zeros
from gradkit.engine.planning import check_matrix, plan_stacks
from gradkit.engine.shards import MatrixSharding, check_shard
from gradkit.engine.slices import ROWS, SELECTIONS, map_slices
from gradkit.leaves import Layout, axes_of, map_named
from gradkit.types import Scalar

PAPER = Paper("Dion2: A Simple Method to Shrink Matrix in Muon", "Ahn et al.", 2025, "2512.16928")


class SelectSlicesState(NamedTuple):
    """The momentum, like the parameters."""

    M: Any


def check_slices(*, fraction: Any, ef_decay: Any, select: Any, selection: Any, shard: Any) -> None:
    """Raises where the arguments that methods of slices share are out of their ranges."""
    checks.real("fraction", fraction, "(0, 1]")
    checks.real("ef_decay", ef_decay, "[0, 1]")
    checks.choice("select", select, ROWS)
    checks.choice("selection", selection, SELECTIONS)
    check_shard(shard)


def fed_back(M: Any, chosen: Any, ef_decay: Any) -> Any:
    """What stays in the momentum, of which the chosen slices were used."""
    return jax.tree.map(lambda m, c: jnp.where(c, scalar(ef_decay, m) * m, m), M, chosen)


def select_slices(
    *,
    fraction: float = 0.25,
    ef_decay: Scalar = 0.95,
    select: str = "short",
    selection: str = "global",
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Passes on the largest slices of a sum of gradients, and keeps all else for later steps (error feedback).

        M = M + g
        u = M on the ceil(fraction times number) slices of largest l1 norm, 0 elsewhere
        M = ef_decay M on these slices, M elsewhere

    Of equal norms the first slice is taken. Behind it, a map of matrices that keeps zero rows and columns zero, such as
    `gk.scale_by_muon(momentum=0.0)`, is Dion2's; `gk.scale_by_dion2` does the same and sends the selected slices alone.
    Layers stacked for a scan, experts and fused weights are matrices of their own.

    Args:
      fraction: the share of the slices that is passed on, in (0, 1]. Default 0.25 (official code).
      ef_decay: what stays in M of slices that were passed on, in [0, 1]. Default 0.95 (official code). With 0, what is
        passed on and what is kept sum up to the sum of all gradients.
      select: "short": slices along the shorter axis (official code), of a square matrix outputs; "output": outputs.
        Default "short".
      selection: "global": the largest of the complete matrix; "local": of every shard of a sharded axis its own
        largest, so that the result depends on the mesh. Default "global".
      layout: which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`, as in `gk.muon`. Default None.

    Returns:
      A transformation. State: 1 word per parameter. Collectives: one number per slice where a matrix axis is sharded.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf without inputs or outputs.

    Example:
      >>> tx = select_slices(fraction=0.5, ef_decay=0.0)
      >>> g = jnp.array([[1.0, 2.0, 3.0], [1.0, 0.0, -2.0]])
      >>> u, state = tx.update(g, tx.init(g))
      >>> u.tolist(), state.M.tolist()
      ([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [1.0, 0.0, -2.0]])

    Reference: Ahn et al. Dion2: A Simple Method to Shrink Matrix in Muon. 2025, arXiv 2512.16928. The paper also draws
    slices at random; its repository takes the largest l1 norms, of every shard by default.
    """
    checks.layout(layout)
    check_slices(fraction=fraction, ef_decay=ef_decay, select=select, selection=selection, shard=shard)

    def init(params: optax.Params) -> SelectSlicesState:
        map_named(lambda name, x: check_matrix("select_slices", name, x.shape, axes_of(layout, name, x.shape)), params)
        return SelectSlicesState(zeros(params))

    def update(updates: Any, state: SelectSlicesState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        M = jax.tree.map(lambda m, g: m + g, state.M, updates)
        plan = plan_stacks(M, method="select_slices", layout=layout, shard=shard, transpose=ROWS[select])
        u, chosen, _ = map_slices(plan, None, M, fraction=fraction, selection=selection)
        return u, SelectSlicesState(fed_back(M, chosen, ef_decay))

    return transformation("select_slices", init, update)


register(
    select_slices,
    form="primitive",
    paper=PAPER,
    words=1,
    collectives="matrices",
    only="matrices",
    notes="for matrices alone, in front of a map of matrices such as scale_by_muon(momentum=0)",
)
