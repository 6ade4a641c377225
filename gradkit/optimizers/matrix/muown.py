"""Muown: Muon on the directions of neurons, Adam on their magnitudes.

W_j = gamma_j v_j / |v_j|                        every neuron (column of a kernel) j
gamma_0 = |v_0| = |W_0|

Embeddings, heads, vectors and scalars take AdamW instead.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine import orthogonal as orthogonals
from gradkit.engine.accumulators import ema, ema_of_square, over_root
from gradkit.engine.core import at_count, bias_correction, divide, increment, scalar, transformation, zeros
from gradkit.engine.fields import settled
from gradkit.engine.matrix_sums import block_of, matrix_sums, zero_blocks
from gradkit.engine.orthogonal import Orthogonal, orthogonal
from gradkit.engine.planning import check_matrix
from gradkit.engine.shards import MatrixSharding
from gradkit.leaves import Layout, Method, axes_of, check_mask_form, names, resolve_mask
from gradkit.leaves.scopes import decay_here
from gradkit.optimizers.matrix.rate_inside import with_adamw
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("Muown: Row-Norm Control for Muon Optimization", "Lion et al.", 2026, "2605.10797")
NAME = "muown"
# Magnitudes are never divided by less (NVIDIA's code).
LEAST = 1e-12


class MuownState(NamedTuple):
    """Number of updates made; the momentum of the directions, like the parameters; per neuron its magnitude, the norm
    of its v, and Adam's two moments of the magnitude; the learning rate of the last update as a metric."""

    count: jax.Array
    mu: Any
    magnitude: Any
    norm: Any
    magnitude_mu: Any
    magnitude_nu: Any
    metrics: dict[str, jax.Array]

    exact_fields = ("magnitude", "norm")  # norms of parameters, which gk.precision(state=...) must not round


class _Own(NamedTuple):
    """The hyperparameters of the matrices."""

    learning_rate: Any
    momentum: Any
    nesterov: bool
    b1: Any
    b2: Any
    adam_eps: Any
    direction_scale: Any
    weight_decay: Any
    weight_decay_mask: Any
    mu_dtype: Any


def _matrices(
    own: _Own, how: Orthogonal, layout: Layout | None, shard: MatrixSharding | None
) -> optax.GradientTransformationExtraArgs:
    """Muown of leaves that are all matrices."""
    undecayed = isinstance(own.weight_decay, int | float) and own.weight_decay == 0
    unit = block_of("unit")

    def sums(known: list[str], like: list[jax.Array], *quantities: list[jax.Array]) -> list[list[jax.Array]]:
        made = matrix_sums(known, layout, *quantities, over=unit, like=like)
        return [made.per_leaf(part) for part in made.parts]

    def published(rate: Any) -> dict[str, jax.Array]:
        return {"last_learning_rate": jnp.array(rate, jnp.float32, copy=True)}

    def norms(params: Any) -> list[jax.Array]:
        leaves = [
            x.astype(y.dtype) for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(zeros(params)), strict=True)
        ]
        return [jnp.sqrt(x) for x in sums(names(params), leaves, [jnp.square(x) for x in leaves])[0]]

    def init(params: optax.Params) -> MuownState:
        leaves, structure = jax.tree.flatten(params)
        known = names(params)
        for name, x in zip(known, leaves, strict=True):
            check_matrix(NAME, name, x.shape, axes_of(layout, name, x.shape))
        if whole := zero_blocks(known, layout, leaves, block_of("tensor")):
            raise ValueError(
                f"{NAME}: a matrix of zeros has neither direction nor magnitude, and these leaves have one: "
                f"{', '.join(map(repr, whole[:8]))}. Initialise them otherwise, or give them to another method with "
                "gk.leaves.groups"
            )
        abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)
        made = jax.eval_shape(norms, params) if abstract else norms(params)
        if abstract:
            made = [jnp.zeros(x.shape, x.dtype) for x in made]
        none = [jnp.zeros_like(x) for x in made]
        copies = [jnp.array(x, copy=True) for x in made]
        parts = (structure.unflatten(x) for x in (made, copies, none, [jnp.zeros_like(x) for x in made]))
        count = jnp.zeros((), jnp.int32)
        rate = at_count(own.learning_rate, count, f"{NAME}: learning_rate")
        return MuownState(count, zeros(params, own.mu_dtype), *parts, metrics=published(rate))

    def update(g: Any, state: MuownState, params: Any = None, **extra: Any) -> tuple[Any, MuownState]:
        del extra
        leaves, structure = jax.tree.flatten(g)
        known, w = names(g), jax.tree.leaves(params)
        gamma, norm, mu = (jax.tree.leaves(x) for x in (state.magnitude, state.norm, state.mu))
        gamma, norm = ([x.astype(y.dtype) for x, y in zip(own, leaves, strict=True)] for own in (gamma, norm))
        rate = at_count(own.learning_rate, state.count, f"{NAME}: learning_rate")
        count = increment(state.count)

        floored = [jnp.where(jnp.abs(x) < LEAST, jnp.full_like(x, LEAST), x) for x in gamma]
        unit_w = [x / y for x, y in zip(w, floored, strict=True)]
        (d_gamma,) = sums(known, leaves, [x * y for x, y in zip(leaves, unit_w, strict=True)])
        stretch = [jnp.where(n > LEAST, y / jnp.maximum(n, LEAST), 1) for y, n in zip(floored, norm, strict=True)]
        dv = [s * (x - e * c) for s, x, e, c in zip(stretch, leaves, unit_w, d_gamma, strict=True)]
        mu = [(scalar(own.momentum, x) * m.astype(x.dtype) + x).astype(m.dtype) for m, x in zip(mu, dv, strict=True)]
        d = [m.astype(x.dtype) for m, x in zip(mu, dv, strict=True)]
        if own.nesterov:
            d = [x + scalar(own.momentum, x) * m for x, m in zip(dv, d, strict=True)]
        done = orthogonal(
            NAME,
            how,
            structure.unflatten(d),
            scale=lambda inputs, outputs: math.sqrt(max(inputs, outputs)),
            layout=layout,
            shard=shard,
        )
        v = [
            e * n - scalar(rate, e) * scalar(own.direction_scale, e) * o
            for e, n, o in zip(unit_w, norm, jax.tree.leaves(done), strict=True)
        ]
        quantities = [[jnp.square(x) for x in v]]
        if not undecayed:
            quantities += [[x * y for x, y in zip(v, w, strict=True)], [jnp.square(y) for y in w]]
        squares, *more = sums(known, leaves, *quantities)
        new_norm = [jnp.sqrt(x) for x in squares]

        m1 = [ema(m, x, own.b1) for m, x in zip(jax.tree.leaves(state.magnitude_mu), d_gamma, strict=True)]
        m2 = [ema_of_square(m, x, own.b2) for m, x in zip(jax.tree.leaves(state.magnitude_nu), d_gamma, strict=True)]
        turned = []
        for m, s, x in zip(m1, m2, floored, strict=True):
            by = (bias_correction(b, count, x).astype(x.dtype) for b in (own.b1, own.b2))
            first, second = by
            turned.append(x - scalar(rate, x) * over_root(m, s, own.adam_eps, x_by=first, v_by=second))

        unit_v = [divide(x, n) for x, n in zip(v, new_norm, strict=True)]
        out = [c * e - x for c, e, x in zip(turned, unit_v, w, strict=True)]
        if not undecayed:
            decay = decay_here(at_count(own.weight_decay, state.count, f"{NAME}: weight_decay"))
            on = jax.tree.leaves(resolve_mask(own.weight_decay_mask, g))
            for i, (c, n, product, square) in enumerate(zip(turned, new_norm, *more, strict=True)):
                if on[i]:
                    k = scalar(rate, c) * scalar(decay, c)
                    out[i] = out[i] - k * w[i]
                    # |c v / |v| - k W|, which is |c| where nothing decays.
                    after = c * c - 2 * k * c * divide(product, n) + k * k * square
                    turned[i] = jnp.where(k == 0, c, jnp.sqrt(jnp.maximum(after, 0)))
        kept = [
            [x.astype(y.dtype) for x, y in zip(new, jax.tree.leaves(old), strict=True)]
            for new, old in ((turned, state.magnitude), (new_norm, state.norm))
        ]
        old = (state.magnitude, state.norm, state.magnitude_mu, state.magnitude_nu)
        numbers = settled(tuple(map(structure.unflatten, (*kept, m1, m2))), old)
        return structure.unflatten(out), MuownState(count, structure.unflatten(mu), *numbers, metrics=published(rate))

    described = Method(NAME, own.learning_rate, own.weight_decay, own.weight_decay_mask)
    return transformation(NAME, init, update, needs_params=True, as_params=True, described=described)


def muown(
    learning_rate: ScalarOrSchedule = 3e-4,
    *,
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    adam_eps: Scalar = 1e-8,
    direction_scale: Scalar = 0.2,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Trains the magnitude of every neuron by Adam, and the directions of all neurons of a matrix together by Muon.

    Equations, of every neuron W_j = gamma v / |v|, a column of a kernel, with gamma_0 = |v_0| = |W_0|:

        e       = W / gamma,   v = e |v|
        d_gamma = <g, e>
        dv      = (gamma / |v|) (g - e d_gamma)                              at right angles to v
        m       <- momentum m + dv;   d = dv + momentum m                    (m without Nesterov's look-ahead)
        v'      = v - learning_rate direction_scale sqrt(max(inputs, outputs)) O,   O = U V^T of d = U S V^T
        gamma'  = gamma - learning_rate (Adam's direction of d_gamma)        with bias correction, eps outside the root
        W'      = gamma' v' / |v'| - learning_rate weight_decay W
        |v|     <- |v'|;   gamma <- gamma', and |W'| where weights decay

    v is not kept: it is W times |v| / gamma. As dv stands at right angles to v, |v| grows and the angle of a step
    shrinks, a schedule that comes by itself. Embeddings, heads, vectors and scalars take AdamW.

    Args:
      learning_rate: step size >= 0, or a schedule, of AdamW's size. Default 3e-4 (official code).
      momentum: decay of the sum, in [0, 1). Default 0.95 (official code).
      nesterov: whether to look ahead. Default True (official code).
      b1: decay of the first moment of magnitudes, and of AdamW, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment of magnitudes, and of AdamW, in [0, 1). Default 0.95 (official code).
      adam_eps: added to the root of these, >= 0. Default 1e-8 (official code).
      direction_scale: factor of the step of directions, > 0. Default 0.2 (official code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon" (official code).
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`. Default "newton_schulz".
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      weight_decay: decoupled decay of matrices >= 0, or a schedule. Default 0 (official code).
      weight_decay_mask: which leaves decay, of all. Default all.
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. Default None: `learning_rate`.
      adam_weight_decay: their decoupled decay >= 0, or a schedule. Default 0.
      mu_dtype: dtype in which the momentum and AdamW's first moment are kept. Default float32.
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks; a leaf of queries, keys and values
        is declared by its `splits`.
      shard: a `gk.MatrixSharding`: over which devices the work is spread, as in `gk.scale_by_muon`. Default None.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter of a matrix and 4 per neuron, 2 of other leaves.
      Collectives: those of `gk.scale_by_muon`, and two all-reduces of up to three numbers per neuron where inputs are
      sharded.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, a matrix of zeros. Where `init` is traced this cannot
        be seen, and magnitudes of 0 are taken for 1e-12, also of single neurons.

    Example:
      >>> tx = muown(0.1, momentum=0.0, method="svd", direction_scale=1.0)
      >>> w = jnp.eye(2)
      >>> u, _ = tx.update(jnp.array([[0.0, -1.0], [1.0, 0.0]]), tx.init(w), w)  # at right angles: magnitudes stay
      >>> print(jnp.linalg.norm(w + u, axis=0).round(4))
      [1. 1.]

    Reference: Lion et al. Muown: Row-Norm Control for Muon Optimization. 2026, arXiv 2605.10797. Departures: a neuron
    of zeros can be trained (the official code divides 0 by 0); weights decay once, as in its class for one device, and
    not twice, as in the one for several; what is three times as wide as its inputs is not split unless `splits` says
    so.
    """
    checks.switch(nesterov=nesterov)
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    for argument, value in (("momentum", momentum), ("b1", b1), ("b2", b2)):
        checks.real(argument, value, "[0, 1)")
    checks.real("adam_eps", adam_eps, "[0, inf)")
    checks.real("direction_scale", direction_scale, "(0, inf)")
    checks.real("weight_decay", weight_decay, "[0, inf)", schedule=True)
    check_mask_form(weight_decay_mask=weight_decay_mask)
    how = orthogonals.checked(ns_steps, coefficients, method, eps, ns_dtype, shard)
    own = _Own(
        learning_rate,
        momentum,
        nesterov,
        b1,
        b2,
        adam_eps,
        direction_scale,
        weight_decay,
        weight_decay_mask,
        mu_dtype,
    )
    return with_adamw(
        Method(NAME, learning_rate, weight_decay, weight_decay_mask),
        _matrices(own, how, layout, shard),
        adam_learning_rate=adam_learning_rate,
        adam_b1=b1,
        adam_b2=b2,
        adam_eps=adam_eps,
        adam_weight_decay=adam_weight_decay,
        mu_dtype=mu_dtype,
        layout=layout,
    )


register(
    muown,
    form="optimizer",
    paper=PAPER,
    words=1 + 4 / 256,
    collectives="matrices",
    golden=("modern/muown",),
    notes="matrices only, which must not start at zero; others take AdamW; the words are those of 256 inputs",
    race=Race(5e-3),
)
