"""AdaMuon: Muon of the signs of the momentum, divided entry by entry by the root of a second moment.

m = momentum m + (1 - momentum) g;   u = (1 - momentum) g + momentum m, or m without `nesterov`
O = the nearest orthogonal matrix of sign(u), or of u without `sign`, by Newton-Schulz
v = b2 v + (1 - b2) O^2                                          per entry; not bias-corrected
q = O / (sqrt(v) + nu_eps);   d = 0.2 sqrt(inputs outputs) q / (|q|_F + nu_eps)
x = x - learning_rate (d + weight_decay x)

Embeddings, heads, vectors and scalars take AdamW instead.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import divide, scalar, transformation, zeros
from gradkit.engine.fields import init_fields
from gradkit.engine.mapping import map_stacks
from gradkit.engine.neurons import norms
from gradkit.engine.parts import like
from gradkit.engine.planning import plan_stacks
from gradkit.engine.shards import check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout
from gradkit.linalg.orthogonalize import check_options, orthogonalize
from gradkit.optimizers.matrix.beside_adamw import beside_adamw
from gradkit.transforms import MatrixSharding
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("AdaMuon: Adaptive Muon Optimizer", "Si et al.", 2025, "2507.11005")
METHOD = "scale_by_adamuon"


class Own(NamedTuple):
    """What belongs to the matrices of a stack: the second moment."""

    nu: Any


class ScaleByAdamuonState(NamedTuple):
    """The momentum and the second moment, like the parameters; the latter with `shard` by stacks of equal matrices,
    each with its owners."""

    mu: Any
    nu: Any


def scale_by_adamuon(
    *,
    momentum: Scalar = 0.95,
    b2: Scalar | None = None,
    nesterov: bool = True,
    sign: bool = True,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    nu_eps: Scalar = 1e-8,
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalises the signs of the momentum, and divides every entry by the root of its second moment.

        m = momentum m + (1 - momentum) g;   u = (1 - momentum) g + momentum m, or m without `nesterov`
        O = the nearest orthogonal matrix of sign(u), or of u without `sign`, by Newton-Schulz
        v = b2 v + (1 - b2) O^2                                          per entry; not bias-corrected
        q = O / (sqrt(v) + nu_eps);   d = 0.2 sqrt(inputs outputs) q / (|q|_F + nu_eps)

    The root mean square of d is 0.2, so that AdamW's learning rates fit. Layers stacked for a scan, experts and fused
    weights (`splits` of the layout) are matrices of their own.

    Args:
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      b2: decay of the second moment, in [0, 1). Default None: `momentum` (official code).
      nesterov: whether to look ahead. Default True (official code).
      sign: whether the signs of u are orthogonalised, which makes steps the same for every size of the gradient.
        Default True (official code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon" (official code).
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`.
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      nu_eps: added to the root of the second moment and to the norm behind it, >= 0. Default 1e-8 (official code).
      mu_dtype: dtype in which the momentum is kept between steps. Default float32.
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are spread, as in `gk.muon`. Default None.

    Returns:
      A transformation. State: 2 words per parameter, the second moment with the owner of the matrix. Collectives: those
      of `scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf without inputs or outputs.

    Example:
      >>> tx = scale_by_adamuon(b2=0.0)
      >>> g = jnp.array([[5.0, 0.1], [-0.2, 3.0]])
      >>> print(tx.update(g, tx.init(g))[0].round(3))
      [[ 0.2  0.2]
       [-0.2  0.2]]

    Reference: Si et al. AdaMuon: Adaptive Muon Optimizer. 2025, arXiv 2507.11005, from its second version on, and its
    code. The first version, and what other libraries have, takes no signs, does not look ahead, corrects the bias of v
    and scales otherwise.
    """
    checks.layout(layout)
    checks.switch(nesterov=nesterov, sign=sign)
    checks.floating_dtype(mu_dtype=mu_dtype, ns_dtype=ns_dtype)
    checks.real("momentum", momentum, "[0, 1)")
    checks.real("b2", b2, "[0, 1)", optional=True)
    checks.real("nu_eps", nu_eps, "[0, inf)")
    ns_steps = checks.integer("ns_steps", ns_steps, 1, maximum=checks.MOST_UNROLLED)
    check_options(steps=ns_steps, coefficients=coefficients, method=method, eps=eps)
    check_shard(shard)
    polar = partial(orthogonalize, steps=ns_steps, coefficients=coefficients, method=method, eps=eps, dtype=ns_dtype)

    def make(rows: int, dims: tuple[int, ...], dtype: Any, _: Any) -> Own:
        return Own(like(jnp.zeros((rows, *dims), dtype)))

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, make, method=METHOD, layout=layout, shard=shard, transpose=lambda n, m: n > m)

    def kernel(u: jax.Array, own: Own, at: Any, _: Any) -> tuple[jax.Array, Own]:
        o = polar(jnp.sign(u) if sign else u)
        nu = ema(own.nu, jnp.square(o), at["b2"])
        q = divide(o, jnp.sqrt(nu) + scalar(at["nu_eps"], nu))
        size = norms(q)
        n, m = u.shape[1:]
        return 0.2 * math.sqrt(n * m) * q * divide(jnp.ones_like(size), size + scalar(at["nu_eps"], q)), Own(nu)

    def init(params: optax.Params) -> ScaleByAdamuonState:
        return ScaleByAdamuonState(zeros(params, mu_dtype), **init_fields(planned(params), params))

    def update(updates: Any, state: ScaleByAdamuonState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra

        def look(m: jax.Array, g: jax.Array) -> jax.Array:
            m, b = m.astype(g.dtype), scalar(momentum, g)
            return (1 - b) * g + b * m if nesterov else m

        mu = jax.tree.map(lambda m, g: ema(m, g, momentum), state.mu, updates)
        u = jax.tree.map(look, mu, updates)
        at = {"b2": momentum if b2 is None else b2, "nu_eps": nu_eps}
        d, fields = map_stacks(planned(u), kernel, u, {"nu": state.nu}, at)
        return d, ScaleByAdamuonState(mu, **fields)

    return transformation(METHOD, init, update)


def adamuon(
    learning_rate: ScalarOrSchedule = 0.02,
    *,
    momentum: Scalar = 0.95,
    b2: Scalar | None = None,
    nesterov: bool = True,
    sign: bool = True,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    nu_eps: Scalar = 1e-8,
    ns_dtype: DTypeLike | None = None,
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
    """AdaMuon for matrices, convolutions and experts; AdamW for embeddings, heads, vectors and scalars.

        m = momentum m + (1 - momentum) g;   u = (1 - momentum) g + momentum m, or m without `nesterov`
        O = the nearest orthogonal matrix of sign(u), or of u without `sign`, by Newton-Schulz
        v = b2 v + (1 - b2) O^2                                          per entry; not bias-corrected
        q = O / (sqrt(v) + nu_eps);   d = 0.2 sqrt(inputs outputs) q / (|q|_F + nu_eps)
        x = x - learning_rate (d + weight_decay x)

    `describe` prints which leaf gets which.

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.02; AdamW's fit.
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      b2: decay of the second moment, in [0, 1). Default None: `momentum` (official code).
      nesterov: whether to look ahead. Default True (official code).
      sign: whether the signs of u are orthogonalised, which makes steps the same for every size of the gradient.
        Default True (official code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon" (official code).
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`.
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      nu_eps: added to the root of the second moment and to the norm behind it, >= 0. Default 1e-8 (official code).
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      weight_decay: decoupled decay of the matrices >= 0, or a schedule. Default 0.01 (official code).
      weight_decay_mask: which leaves decay, of all. Default all.
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. Default None: `learning_rate`.
      adam_b1: decay of AdamW's first moment, in [0, 1). Default 0.9.
      adam_b2: decay of AdamW's second moment, in [0, 1). Default 0.95.
      adam_eps: AdamW's own eps, >= 0. Default 1e-8.
      adam_weight_decay: decoupled decay of the other leaves >= 0, or a schedule. Default 0.
      mu_dtype: dtype in which first moments are kept. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are spread, as in `gk.muon`. Default None.

    Returns:
      A transformation that needs `params` where leaves decay. State: 2 words per parameter of a matrix, and 2 words per
      parameter of the others. Collectives: those of `scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, leaves for AdamW without a learning rate for them.

    Example:
      >>> tx = adamuon(0.1, weight_decay=0.0)
      >>> x = {"bias": jnp.ones(2), "kernel": jnp.eye(2)}
      >>> updates, _ = tx.update(x, tx.init(x), x)
      >>> print(updates["bias"].round(3), updates["kernel"].round(3) + 0.0)
      [-0.1 -0.1] [[-0.028  0.   ]
       [ 0.    -0.028]]

    Reference: Si et al. AdaMuon: Adaptive Muon Optimizer. 2025, arXiv 2507.11005, from its second version on, and its
    code. The first version, and what other libraries have, takes no signs, does not look ahead, corrects the bias of v
    and scales otherwise.
    """
    direction = scale_by_adamuon(
        momentum=momentum,
        b2=b2,
        nesterov=nesterov,
        sign=sign,
        ns_steps=ns_steps,
        coefficients=coefficients,
        method=method,
        eps=eps,
        nu_eps=nu_eps,
        mu_dtype=mu_dtype,
        ns_dtype=ns_dtype,
        layout=layout,
        shard=shard,
    )
    return beside_adamw(
        "adamuon",
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
        sized_as_adamw=True,
    )


register(
    scale_by_adamuon,
    form="primitive",
    paper=PAPER,
    words=2,
    collectives="matrices",
    only="matrices",
    notes="for matrices alone: give other leaves to another method with gk.leaves.groups",
)
register(
    adamuon,
    form="optimizer",
    paper=PAPER,
    words=2,
    collectives="matrices",
    golden=("modern/adamuon",),
    notes="matrices only; embeddings, heads, vectors and scalars take AdamW",
    race=Race(1e-2),
)
