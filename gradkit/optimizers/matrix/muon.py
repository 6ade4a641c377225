"""Muon: momentum, orthogonalised."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import bias_correction as correction
from gradkit.engine.core import increment, optimizer, scalar, transformation, zeros
from gradkit.engine.mapping import apply_to_matrices
from gradkit.engine.planning import check_matrix, plan_stacks
from gradkit.engine.shape_factor import SCALES, scale_by_shape
from gradkit.engine.shards import MatrixSharding, check_shard
from gradkit.leaves import Layout, Method, axes_of, map_named
from gradkit.leaves.derived import label_nodes
from gradkit.linalg.orthogonalize import check_options, orthogonalize
from gradkit.transforms import add_decayed_weights, scale_by_adam, scale_by_learning_rate
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("Muon: An optimizer for hidden layers in neural networks", "Jordan et al.", 2024)
ROLES = ("matrix", "conv", "expert")


class ScaleByMuonState(NamedTuple):
    """The momentum; with bias correction the number of updates made."""

    count: jax.Array | None
    mu: Any


def scale_by_muon(
    *,
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    scale: str | None = "spectral",
    bias_correction: bool | str = False,
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalises the momentum of every matrix.

    Equations: m_t, u_t, O_t and d_t of `muon`. Layers stacked for a scan, experts and fused weights
    (`splits` of the layout: query, key and value; heads) are matrices of their own; a convolution is one matrix, its
    inputs flattened. Matrices of one shape, up to transposition, are processed in one batch.

    Args:
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      nesterov: whether to look ahead. Default True (official code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`: a preset, (a, b, c), or a list. Default "muon".
      method: "newton_schulz" (in the form with fewer operations for the shape), "plain", "gram", "svd", or a function
        of a batch of matrices, as in `gk.linalg.orthogonalize`. Default "newton_schulz".
      eps: added to the Frobenius norm, >= 0. Default 1e-7 (official code). A zero matrix gives zeros.
      scale: "spectral" (official code), "ratio" (Dion's repository), "match_rms_adamw" (Moonlight: updates as large as
        AdamW's, so its learning rates and decays fit) or None (s = 1). Default "spectral".
      bias_correction: True divides u by 1 - momentum^t, which changes a scale-free method only through `eps`; "optax"
        corrects m and g for different steps as optax does, which changes the direction of the first steps.
        Default False (official code).
      mu_dtype: dtype in which the momentum is kept between steps. Default float32.
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work is distributed. Default None: over the devices that
        leaves are sharded over where a mesh with Explicit axes says so, otherwise the compiler decides, which is rarely
        efficient.

    Returns:
      A transformation. State: 1 word per parameter. Collectives: none without a mesh; for leaves sharded along a matrix
      axis two all-to-alls per shape; for replicated leaves with `shard` one all-gather.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf without inputs or outputs.

    Example:
      >>> tx = scale_by_muon(method="svd", scale=None)
      >>> g = jnp.array([[0.0, 3.0], [-0.1, 0.0]])
      >>> print(tx.update(g, tx.init(g))[0].round(4))
      [[ 0.  1.]
       [-1.  0.]]

    Reference: Jordan et al. Muon: An optimizer for hidden layers in neural networks. 2024. Liu et al. Muon is Scalable
    for LLM Training. 2025, arXiv 2502.16982. The official code scales a convolution by its kernel's height over its
    width; here by its flattened inputs and outputs.
    """
    checks.layout(layout)
    checks.switch(nesterov=nesterov)
    checks.floating_dtype(mu_dtype=mu_dtype, ns_dtype=ns_dtype)
    checks.real("momentum", momentum, "[0, 1)")
    ns_steps = checks.integer("ns_steps", ns_steps, 1, maximum=checks.MOST_UNROLLED)
    check_options(steps=ns_steps, coefficients=coefficients, method=method, eps=eps)
    checks.choice("scale", scale, SCALES)
    checks.choice("bias_correction", bias_correction, (False, True, "optax"))
    check_shard(shard)
    kernel = partial(orthogonalize, steps=ns_steps, coefficients=coefficients, method=method, eps=eps, dtype=ns_dtype)

    def init(params: optax.Params) -> ScaleByMuonState:
        map_named(lambda name, x: check_matrix("scale_by_muon", name, x.shape, axes_of(layout, name, x.shape)), params)
        return ScaleByMuonState(jnp.zeros((), jnp.int32) if bias_correction else None, zeros(params, mu_dtype))

    def update(updates: Any, state: ScaleByMuonState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count = None if state.count is None else increment(state.count)

        def mean(m: jax.Array, g: jax.Array) -> jax.Array:
            return ema(m, g, momentum)

        def look(m: jax.Array, g: jax.Array) -> jax.Array:
            m, b = m.astype(g.dtype), scalar(momentum, g)
            now = ahead = 1.0
            if count is not None:
                now = ahead = 1 / correction(momentum, count, g)
                if bias_correction == "optax":
                    ahead = 1 / correction(momentum, count + 1, g)
            if not nesterov:
                return m * now
            return (1 - b) * g * now + b * m * ahead

        mu = jax.tree.map(mean, state.mu, updates)
        u = jax.tree.map(look, mu, updates)
        # Padding may change the result of a user's function; Newton-Schulz and the SVD keep zero rows and columns.
        pad = not callable(method)
        plan = plan_stacks(u, method="scale_by_muon", layout=layout, shard=shard, transpose=True, merge=pad)
        o = apply_to_matrices(plan, kernel, u)
        return scale_by_shape(o, plan.axes, plan.shapes, scale), ScaleByMuonState(count, mu)

    return transformation("scale_by_muon", init, update)


def muon(
    learning_rate: ScalarOrSchedule = 0.02,
    *,
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    scale: str | None = "spectral",
    bias_correction: bool | str = False,
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
    """Muon for matrices, convolutions and experts; AdamW for embeddings, heads, vectors and scalars.

    Equations:

        m_t = momentum m_{t-1} + (1 - momentum) g_t
        u_t = (1 - momentum) g_t + momentum m_t             (m_t without Nesterov's look-ahead)
        O_t = U V^T of u_t = U S V^T, by Newton-Schulz      every matrix of a leaf by itself
        d_t = s O_t                                         s = sqrt(max(1, outputs / inputs))      "spectral"
                                                            s = sqrt(outputs / inputs)              "ratio"
                                                            s = 0.2 sqrt(max(inputs, outputs))      "match_rms_adamw"
        x_t = x_{t-1} - learning_rate (d_t + weight_decay x_{t-1})

    Embeddings, heads, vectors and scalars take AdamW instead. `describe` prints which rule each leaf gets.

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.02 (official code); with scale="match_rms_adamw" take a
        learning rate of AdamW.
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      nesterov: whether to look ahead. Default True (official code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon".
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`.
      eps: added to the Frobenius norm, >= 0. Default 1e-7 (official code).
      scale: "spectral", "ratio", "match_rms_adamw" or None, as in `scale_by_muon`. Default "spectral" (official code).
      bias_correction: False, True or "optax", as in `scale_by_muon`. Default False (official code).
      weight_decay: decoupled decay of the matrices >= 0, or a schedule. Default 0 (torch has 0.1 with a learning rate
        of 1e-3).
      weight_decay_mask: which leaves decay, of all leaves. Default all.
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. The official code has 3e-4 with 0.02 for
        matrices. Default None: `learning_rate` with scale="match_rms_adamw", where one learning rate suits both; with
        another scale it must be given where there are such leaves.
      adam_b1: decay of AdamW's first moment, in [0, 1). Default 0.9 (official code).
      adam_b2: decay of AdamW's second moment, in [0, 1). Default 0.95 (official code).
      adam_eps: AdamW's own eps, >= 0. Default 1e-10 (official code).
      adam_weight_decay: decoupled decay of the other leaves >= 0, or a schedule. Default 0 (official code).
      mu_dtype: dtype in which first moments are kept. Default float32.
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work is distributed, as in `scale_by_muon`. Default None.

    Returns:
      A transformation that needs `params` where leaves decay. State: 1 word per parameter of a matrix, 2 of the others,
      counters. Collectives: those of `scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, leaves for AdamW without `adam_learning_rate`.

    Example:
      >>> tx = muon(0.1, adam_learning_rate=0.01)
      >>> x = {"bias": jnp.ones(2), "kernel": jnp.eye(2)}
      >>> updates, _ = tx.update(x, tx.init(x), x)
      >>> print(updates["bias"].round(3), updates["kernel"].round(1))
      [-0.01 -0.01] [[-0.1 -0. ]
       [-0.  -0.1]]

    Reference: Jordan et al. Muon: An optimizer for hidden layers in neural networks. 2024. optax's muon corrects
    the bias of m and g for different steps, gives the other leaves Nesterov's Adam with Muon's eps, gives stacks of
    layers to Adam, and processes matrices one by one.
    """

    def decay(amount: Any) -> optax.GradientTransformation:
        return add_decayed_weights(amount, weight_decay_mask=weight_decay_mask)

    adam_rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    for name, value, interval in (("adam_b1", adam_b1, "[0, 1)"), ("adam_b2", adam_b2, "[0, 1)")):
        checks.real(name, value, interval)
    checks.real("adam_eps", adam_eps, "[0, inf)")
    checks.real("adam_weight_decay", adam_weight_decay, "[0, inf)", schedule=True)
    checks.real("adam_learning_rate", adam_learning_rate, "[0, inf)", schedule=True, optional=True)
    described = Method("muon", learning_rate, weight_decay, weight_decay_mask)
    members: dict[Any, Any] = {
        "muon": optimizer(
            described,
            scale_by_muon(
                momentum=momentum,
                nesterov=nesterov,
                ns_steps=ns_steps,
                coefficients=coefficients,
                method=method,
                eps=eps,
                scale=scale,
                bias_correction=bias_correction,
                mu_dtype=mu_dtype,
                ns_dtype=ns_dtype,
                layout=layout,
                shard=shard,
            ),
            decay(weight_decay),
            scale_by_learning_rate(learning_rate),
        ),
        "adamw": optimizer(
            Method("adamw", adam_rate, adam_weight_decay, weight_decay_mask),
            scale_by_adam(b1=adam_b1, b2=adam_b2, eps=adam_eps, mu_dtype=mu_dtype),
            decay(adam_weight_decay),
            scale_by_learning_rate(adam_rate),
        ),
    }

    undecided = adam_learning_rate is None and scale != "match_rms_adamw"

    def label(name: str, x: Any) -> str:
        if axes_of(layout, name, jnp.shape(x)).role in ROLES:
            return "muon"
        if undecided:
            raise ValueError(
                f"muon: {name!r} is no matrix and takes AdamW, for which Muon's learning rate is far too large: give "
                'adam_learning_rate (the official code has 3e-4), or scale="match_rms_adamw", with which one learning '
                "rate of AdamW serves all leaves"
            )
        return "adamw"

    return optimizer(described, optax.partition(members, lambda tree: label_nodes(label, tree)))


register(
    scale_by_muon,
    form="primitive",
    paper=PAPER,
    words=1,
    collectives="matrices",
    only="matrices",
    notes="for matrices alone: give other leaves to another method with gk.leaves.groups",
)
register(
    muon,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="matrices",
    golden=("matrix/muon",),
    notes="matrices only; embeddings, heads, vectors and scalars take AdamW",
    example={"adam_learning_rate": 0.01},
    race=Race(1e-2, {"scale": "match_rms_adamw"}),
)
