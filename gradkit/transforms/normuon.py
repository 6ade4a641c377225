"""The direction of NorMuon: Muon's, whose neurons are then made equally long by a second moment each.

m_t = momentum m_{t-1} + (1 - momentum) g_t
u_t = (1 - momentum) g_t + momentum m_t                 (m_t without Nesterov's look-ahead)
O_t = U V^T of u_t = U S V^T, by Newton-Schulz          every matrix of a leaf by itself
v_j = b2 v_j + (1 - b2) mean over the inputs of O_ij^2  one number for every neuron (output) j; not bias-corrected
P_ij = O_ij / (sqrt(v_j) + nu_eps)
d_t = s P |O|_F / (|P|_F + nu_eps)                      rescale="frobenius"; s as in Muon
d_t = 0.2 sqrt(inputs outputs) P / (|P|_F + nu_eps)     rescale="rms": updates as large as AdamW's
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import scalar, transformation, zeros
from gradkit.engine.fields import init_fields
from gradkit.engine.mapping import map_stacks
from gradkit.engine.neurons import by_neuron, norms, rescaled
from gradkit.engine.planning import plan_stacks
from gradkit.engine.shape_factor import SCALES, scale_by_shape
from gradkit.engine.shards import MatrixSharding, check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout
from gradkit.linalg.orthogonalize import check_options, orthogonalize
from gradkit.transforms.neuron_rms import COLUMNS, PAPER, Own, make_neurons
from gradkit.types import DTypeLike, Scalar

RESCALES = ("frobenius", "rms")
METHOD = "scale_by_normuon"


class ScaleByNormuonState(NamedTuple):
    """The momentum, like the parameters; the second moments, of a parameter by the axis they belong to; with `shard`,
    by stacks of equal matrices, each with its owners."""

    mu: Any
    nu: Any


def scale_by_normuon(
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
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalises the momentum of every matrix, and divides every neuron by the root of its second moment.

    For a gradient g of a matrix with inputs i and neurons (outputs) j; m and v are kept:

        m = momentum m + (1 - momentum) g;   u = (1 - momentum) g + momentum m, or m without `nesterov`
        O = the nearest orthogonal matrix of u, by Newton-Schulz
        v_j = b2 v_j + (1 - b2) mean_i O_ij^2;   P_ij = O_ij / (sqrt(v_j) + nu_eps)
        d = s P |O|_F / (|P|_F + nu_eps)                        rescale="frobenius"
        d = 0.2 sqrt(inputs outputs) P / (|P|_F + nu_eps)       rescale="rms"

    Layers stacked for a scan, experts and fused weights (`splits` of the layout) are matrices of their own; a
    convolution is one matrix, its inputs flattened. All norms and means are those of complete matrices, however these
    are sharded.

    Args:
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.95 (official code). With 0 all neurons are equally long.
      nesterov: whether to look ahead. Default True (official code; the paper does not).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon" (official code).
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`.
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      nu_eps: added to the root of the second moment and to the norm behind it, >= 0. Default 1e-10 (official code).
      axis: "output": one second moment per output, the mean over the inputs (paper); "long": one per index of the
        longer axis, the mean over the shorter one (modded-nanogpt, NVIDIA); of a square matrix as "output". Default
        "output".
      rescale: "frobenius": every matrix keeps its norm (official code); "rms": entries have the root mean square 0.2
        (paper), under which AdamW's learning rates fit; then write scale=None. Default "frobenius".
      scale: s: "spectral" (official code), "ratio" (Dion's repository), "match_rms_adamw" or None, as in
        `scale_by_muon`. Default "spectral".
      mu_dtype: dtype in which the momentum is kept between steps. Default float32.
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices work and second moments are spread, as in `gk.muon`. Default
        None.

    Returns:
      A transformation. State: 1 word per parameter, sharded like it, and 1 per neuron, with the owner of the matrix.
      Collectives: those of `scale_by_muon`, and no more: leaves sharded along a matrix axis: two all-to-alls per shape;
      replicated leaves with `shard`: one all-gather.

    Raises:
      ValueError: a hyperparameter outside its range; `scale` with rescale="rms"; a leaf without inputs or outputs.

    Example:
      >>> tx = scale_by_normuon(method="svd", scale=None, b2=0.0)
      >>> g = jnp.array([[3.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
      >>> print(jnp.linalg.norm(tx.update(g, tx.init(g))[0], axis=0).round(4))  # sqrt(2 / 3) for every neuron
      [0.8165 0.8165 0.8165]

    Reference: Li et al. NorMuon: Making Muon more efficient and scalable. 2025, arXiv 2510.05491. Dion's
    repository has the learning rate 0.01, weight decay 0.01, no look-ahead, scale="ratio" and "polar_express"; where
    matrices are sharded it takes norms and means of each shard, which makes its steps depend on the mesh.
    """
    checks.layout(layout)
    checks.switch(nesterov=nesterov)
    checks.floating_dtype(mu_dtype=mu_dtype, ns_dtype=ns_dtype)
    checks.real("momentum", momentum, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    checks.real("nu_eps", nu_eps, "[0, inf)")
    ns_steps = checks.integer("ns_steps", ns_steps, 1, maximum=checks.MOST_UNROLLED)
    check_options(steps=ns_steps, coefficients=coefficients, method=method, eps=eps)
    checks.choice("axis", axis, COLUMNS)
    checks.choice("rescale", rescale, RESCALES)
    checks.choice("scale", scale, SCALES)
    if rescale == "rms" and scale is not None:
        raise ValueError(
            f"{METHOD}: rescale='rms' sets the size of an update by itself, got scale={scale!r} as well; write "
            "scale=None, or rescale='frobenius'"
        )
    check_shard(shard)
    polar = partial(orthogonalize, steps=ns_steps, coefficients=coefficients, method=method, eps=eps, dtype=ns_dtype)

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, make_neurons, method=METHOD, layout=layout, shard=shard, transpose=COLUMNS[axis])

    def kernel(u: jax.Array, own: Own, at: Any, _: Any) -> tuple[jax.Array, Own]:
        o = polar(u)
        P, nu = by_neuron(o, own.nu, at["b2"], at["nu_eps"])
        n, m = o.shape[1:]
        size = norms(o)
        if rescale == "rms":
            size = jnp.where(size > 0, 0.2 * math.sqrt(n * m), 0).astype(o.dtype)
        return rescaled(P, size, at["nu_eps"]), Own(nu)

    def init(params: optax.Params) -> ScaleByNormuonState:
        return ScaleByNormuonState(zeros(params, mu_dtype), **init_fields(planned(params), params))

    def update(updates: Any, state: ScaleByNormuonState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra

        def look(m: jax.Array, g: jax.Array) -> jax.Array:
            m, b = m.astype(g.dtype), scalar(momentum, g)
            return (1 - b) * g + b * m if nesterov else m

        mu = jax.tree.map(lambda m, g: ema(m, g, momentum), state.mu, updates)
        u = jax.tree.map(look, mu, updates)
        plan = planned(u)
        d, fields = map_stacks(plan, kernel, u, {"nu": state.nu}, {"b2": b2, "nu_eps": nu_eps})
        return scale_by_shape(d, plan.axes, plan.shapes, scale), ScaleByNormuonState(mu, **fields)

    return transformation(METHOD, init, update)


register(
    scale_by_normuon,
    form="primitive",
    paper=PAPER,
    words=1,
    collectives="matrices",
    only="matrices",
    same_as="normuon",
    notes="for matrices alone: give other leaves to another method with gk.leaves.groups",
)
