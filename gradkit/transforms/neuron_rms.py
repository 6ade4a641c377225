"""A second moment per neuron, behind any map of matrices: NorMuon's step after the orthogonalisation.

v_j = b2 v_j + (1 - b2) mean over the inputs of O_ij^2                   one number for every neuron j
P_ij = O_ij / (sqrt(v_j) + nu_eps)
u = P |O|_F / (|P|_F + nu_eps)     preserve="frobenius"
u = P                              preserve=None
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import transformation
from gradkit.engine.fields import init_fields
from gradkit.engine.mapping import map_stacks
from gradkit.engine.neurons import by_neuron, norms, rescaled
from gradkit.engine.parts import beside
from gradkit.engine.planning import plan_stacks
from gradkit.engine.shards import MatrixSharding, check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout
from gradkit.types import DTypeLike, Scalar

PAPER = Paper("NorMuon: Making Muon more efficient and scalable", "Li et al.", 2025, "2510.05491")
# Which matrices are transposed, so that the columns are what has a second moment.
COLUMNS = {"output": lambda rows, columns: False, "long": lambda rows, columns: rows > columns}
PRESERVED = ("frobenius", None)


class Own(NamedTuple):
    """What belongs to the matrices of a stack: the second moments of their neurons."""

    nu: Any


class ScaleByNeuronRmsState(NamedTuple):
    """The second moments, of a parameter by the axis they belong to; with `shard`, by stacks of equal matrices, each
    with its owners."""

    nu: Any


def make_neurons(rows: int, dims: tuple[int, ...], dtype: DTypeLike, _: Any) -> Own:
    """The second moments of the columns of a stack, at the start."""
    return Own(beside(jnp.zeros((rows, 1, dims[1]), dtype), ((), (1,))))


def scale_by_neuron_rms(
    *,
    b2: Scalar = 0.95,
    nu_eps: Scalar = 1e-10,
    axis: str = "output",
    preserve: str | None = "frobenius",
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides every neuron of a matrix by the root of a running mean of its squares.

    For the update O of a matrix with inputs i and neurons (outputs) j:

        v_j = b2 v_j + (1 - b2) mean_i O_ij^2,   P_ij = O_ij / (sqrt(v_j) + nu_eps),   u = P |O|_F / (|P|_F + nu_eps)

    It stands behind a map of matrices, such as an orthogonalisation. There is no bias correction: the last equation
    removes a common factor. Layers stacked for a scan, experts and fused weights are matrices of their own.

    Args:
      b2: decay of the second moment, in [0, 1). Default 0.95 (official code).
      nu_eps: added to the root and to the norm, >= 0. Default 1e-10 (official code). With 0, a neuron that is zero
        stays zero.
      axis: "output": one second moment per output, the mean over the inputs; "long": one per index of the longer axis,
        the mean over the shorter one (modded-nanogpt, NVIDIA); of a square matrix as "output". Default "output".
      preserve: "frobenius": every matrix keeps its Frobenius norm; None: it does not. Default "frobenius".
      layout: which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are spread, as in `gk.muon`. Default None.

    Returns:
      A transformation. State: one word per neuron. Collectives: those of `scale_by_muon`. Behind another link that
      works on matrices it moves them a second time: `scale_by_normuon` does both between one pair of all-to-alls.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf without inputs or outputs.

    Example:
      >>> tx = scale_by_neuron_rms(b2=0.0)
      >>> x = jnp.array([[3.0, 0.1], [4.0, 0.0]])
      >>> u, _ = tx.update(x, tx.init(x))
      >>> print(jnp.linalg.norm(u, axis=0).round(3), jnp.linalg.norm(u).round(3), jnp.linalg.norm(x).round(3))
      [3.536 3.536] 5.001 5.001

    Reference: Li et al. NorMuon: Making Muon more efficient and scalable. 2025, arXiv 2510.05491.
    """
    checks.layout(layout)
    method = "scale_by_neuron_rms"
    checks.real("b2", b2, "[0, 1)")
    checks.real("nu_eps", nu_eps, "[0, inf)")
    checks.choice("axis", axis, COLUMNS)
    checks.choice("preserve", preserve, PRESERVED)
    check_shard(shard)

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, make_neurons, method=method, layout=layout, shard=shard, transpose=COLUMNS[axis])

    def kernel(o: jax.Array, own: Own, at: Any, _: Any) -> tuple[jax.Array, Own]:
        P, nu = by_neuron(o, own.nu, at["b2"], at["nu_eps"])
        return (P if preserve is None else rescaled(P, norms(o), at["nu_eps"])), Own(nu)

    def init(params: optax.Params) -> ScaleByNeuronRmsState:
        return ScaleByNeuronRmsState(**init_fields(planned(params), params))

    def update(updates: Any, state: ScaleByNeuronRmsState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        at = {"b2": b2, "nu_eps": nu_eps}
        u, fields = map_stacks(planned(updates), kernel, updates, {"nu": state.nu}, at)
        return u, ScaleByNeuronRmsState(**fields)

    return transformation(method, init, update)


register(
    scale_by_neuron_rms,
    form="primitive",
    paper=PAPER,
    words=0,
    collectives="matrices",
    only="matrices",
    opt_outs={"mismatch": "it keeps one number per neuron, which fits another number of inputs as well"},
    notes="for matrices alone, behind a map of matrices such as scale_by_muon",
)
