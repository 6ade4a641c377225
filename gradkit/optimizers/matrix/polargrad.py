"""PolarGrad: the polar factor of the momentum, times its nuclear norm.

m = momentum m + (1 - momentum) g;   O = polar(m);   d = <m, O>^nuclear_power O
with `polar_first`:   O = polar(g);   M = momentum M + (1 - momentum) O;   d = <g, O>^nuclear_power M
x = x - learning_rate (d + weight_decay x)

Embeddings, heads, vectors and scalars take AdamW instead.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import scalar, transformation
from gradkit.engine.fields import init_fields
from gradkit.engine.mapping import map_stacks
from gradkit.engine.parts import like
from gradkit.engine.planning import plan_stacks
from gradkit.engine.shards import check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout
from gradkit.linalg.one_sided_polar import one_sided_polar
from gradkit.linalg.orthogonalize import check_options, orthogonalize
from gradkit.optimizers.matrix.beside_adamw import beside_adamw
from gradkit.transforms import MatrixSharding
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "PolarGrad: A Class of Matrix-Gradient Optimizers from a Unifying Preconditioning Perspective",
    "Lau, Long, Su",
    2025,
    "2505.21799",
)
METHOD = "scale_by_polargrad"


class Own(NamedTuple):
    """What belongs to the matrices of a stack: the momentum."""

    mu: Any


class ScaleByPolargradState(NamedTuple):
    """The momentum, like the parameters; with `shard`, by stacks of equal matrices, each with its owners."""

    mu: Any


def scale_by_polargrad(
    *,
    momentum: Scalar = 0.95,
    polar_first: bool = False,
    nuclear_power: Scalar = 1.0,
    one_sided: str | None = None,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "svd",
    eps: Scalar = 1e-7,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The polar factor of the momentum of every matrix, times its nuclear norm.

        m = momentum m + (1 - momentum) g;   O = polar(m);   d = <m, O>^nuclear_power O
        with `polar_first`:   O = polar(g);   M = momentum M + (1 - momentum) O;   d = <g, O>^nuclear_power M

    <m, O> is the nuclear norm of m for the exact polar factor, so that d is homogeneous in the gradient: without
    momentum it is the steepest descent in the spectral norm. There is no factor of shape and no look-ahead. Layers
    stacked for a scan, experts and fused weights are matrices of their own.

    Args:
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      polar_first: whether the momentum is one of polar factors. Default False (official code).
      nuclear_power: 0 is Muon without a factor of shape. >= 0. Default 1 (paper).
      one_sided: None: the polar factor by `method`; "outputs" or "inputs": `gk.linalg.one_sided_polar`, for tables
        and routers with one short side. Default None.
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon" (official code).
      method: of the polar factor: "svd", "newton_schulz", "gram" or a function, as in `gk.linalg.orthogonalize`. With
        five steps of "newton_schulz" <m, O> is 0.68 to 1.13 times the nuclear norm. Default "svd".
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      mu_dtype: dtype in which the momentum is kept between steps. Default float32.
      layout: which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are spread, as in `gk.muon`. Default None.

    Returns:
      A transformation. State: 1 word per parameter. Collectives: those of `scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf without inputs or outputs.

    Example:
      >>> tx = scale_by_polargrad(momentum=0.0)
      >>> g = jnp.array([[0.0, 3.0], [-1.0, 0.0]])
      >>> print(tx.update(g, tx.init(g))[0].round(3))
      [[ 0.  4.]
       [-4.  0.]]

    Reference: Lau, Long, Su. PolarGrad: A Class of Matrix-Gradient Optimizers from a Unifying Preconditioning
    Perspective. 2025, arXiv 2505.21799. The official code takes the polar factor by two iterations of QDWH.
    """
    checks.layout(layout)
    checks.switch(polar_first=polar_first)
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("momentum", momentum, "[0, 1)")
    checks.real("nuclear_power", nuclear_power, "[0, inf)")
    checks.choice("one_sided", one_sided, (None, "inputs", "outputs"))
    ns_steps = checks.integer("ns_steps", ns_steps, 1, maximum=checks.MOST_UNROLLED)
    check_options(steps=ns_steps, coefficients=coefficients, method=method, eps=eps)
    check_shard(shard)

    def polar(x: jax.Array) -> jax.Array:
        if one_sided is not None:
            return one_sided_polar(x, side=one_sided)
        return orthogonalize(x, steps=ns_steps, coefficients=coefficients, method=method, eps=eps)

    def make(rows: int, dims: tuple[int, ...], dtype: Any, _: Any) -> Own:
        return Own(like(jnp.zeros((rows, *dims), mu_dtype or dtype)))

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, make, method=METHOD, layout=layout, shard=shard)

    def kernel(g: jax.Array, own: Own, at: Any, _: Any) -> tuple[jax.Array, Own]:
        x = g if polar_first else ema(own.mu, g, at["momentum"]).astype(g.dtype)
        o = polar(x)
        inner = jnp.sum(x * o, axis=(1, 2), keepdims=True)
        mu = ema(own.mu, o if polar_first else g, at["momentum"])
        size = jnp.where(inner > 0, jnp.where(inner > 0, inner, 1) ** scalar(at["power"], x), 0)
        return size * (mu.astype(g.dtype) if polar_first else o), Own(mu)

    def init(params: optax.Params) -> ScaleByPolargradState:
        return ScaleByPolargradState(**init_fields(planned(params), params))

    def update(updates: Any, state: ScaleByPolargradState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        at = {"momentum": momentum, "power": nuclear_power}
        d, fields = map_stacks(planned(updates), kernel, updates, {"mu": state.mu}, at)
        return d, ScaleByPolargradState(**fields)

    return transformation(METHOD, init, update)


def polargrad(
    learning_rate: ScalarOrSchedule = 0.02,
    *,
    momentum: Scalar = 0.95,
    polar_first: bool = False,
    nuclear_power: Scalar = 1.0,
    one_sided: str | None = None,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "svd",
    eps: Scalar = 1e-7,
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
    """PolarGrad for matrices, convolutions and experts; AdamW for embeddings, heads, vectors and scalars.

        m = momentum m + (1 - momentum) g;   O = polar(m);   d = <m, O>^nuclear_power O
        with `polar_first`:   O = polar(g);   M = momentum M + (1 - momentum) O;   d = <g, O>^nuclear_power M
        x = x - learning_rate (d + weight_decay x)

    `describe` prints which leaf gets which.

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.02 (official code).
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      polar_first: whether the momentum is one of polar factors. Default False (official code).
      nuclear_power: 0 is Muon without a factor of shape. >= 0. Default 1 (paper).
      one_sided: None: the polar factor by `method`; "outputs" or "inputs": `gk.linalg.one_sided_polar`, for tables
        and routers with one short side. Default None.
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon" (official code).
      method: of the polar factor: "svd", "newton_schulz", "gram" or a function, as in `gk.linalg.orthogonalize`. With
        five steps of "newton_schulz" <m, O> is 0.68 to 1.13 times the nuclear norm. Default "svd".
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      weight_decay: decoupled decay of the matrices >= 0, or a schedule. Default 0.0.
      weight_decay_mask: which leaves decay, of all. Default all.
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. It must be given
        where there are such leaves.
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
      >>> tx = polargrad(0.1, momentum=0.0, adam_learning_rate=0.01)
      >>> x = {"bias": jnp.ones(2), "kernel": jnp.diag(jnp.array([3.0, 1.0]))}
      >>> updates, _ = tx.update(x, tx.init(x), x)
      >>> print(updates["bias"].round(3), updates["kernel"].round(3) + 0.0)
      [-0.01 -0.01] [[-0.4  0. ]
       [ 0.  -0.4]]

    Reference: Lau, Long, Su. PolarGrad: A Class of Matrix-Gradient Optimizers from a Unifying Preconditioning
    Perspective. 2025, arXiv 2505.21799. The official code takes the polar factor by two iterations of QDWH.
    """
    direction = scale_by_polargrad(
        momentum=momentum,
        polar_first=polar_first,
        nuclear_power=nuclear_power,
        one_sided=one_sided,
        ns_steps=ns_steps,
        coefficients=coefficients,
        method=method,
        eps=eps,
        mu_dtype=mu_dtype,
        layout=layout,
        shard=shard,
    )
    return beside_adamw(
        "polargrad",
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
        sized_as_adamw=False,
    )


register(
    scale_by_polargrad,
    form="primitive",
    paper=PAPER,
    words=1,
    collectives="matrices",
    only="matrices",
    notes="for matrices alone: give other leaves to another method with gk.leaves.groups",
)
register(
    polargrad,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="matrices",
    golden=("modern/polargrad",),
    notes="matrices only; embeddings, heads, vectors and scalars take AdamW",
    example={"adam_learning_rate": 0.01},
    race=Race(1e-2, {"adam_learning_rate": 3e-3}),
)
