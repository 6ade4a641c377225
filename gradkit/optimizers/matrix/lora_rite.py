"""LoRA-RITE: Adam's idea for the factors of an adapter, such that the product does not know how it was factored.

The product is A B^T, A (m, r), B (n, r); of a model with a b, A = a and B = b^T. For A, and alike for B:

B = U R                                              QR; before the step
G = grad_A R^{-1}                                    the gradient without the size of B ("unmagnified")
P = U^T U_{t-1}                                      from the basis of the step before to this one
rho <- b2_t (rho + d(V, P V P^T))                    d(X, Y) = min(max_i (lambda_i(X) - lambda_i(Y)), tr X - tr Y), >= 0
V <- b2_t P V P^T + (1 - b2_t) G^T G / m
M <- b1_t M P^T + (1 - b1_t) G ((V + rho I)^{1/2} + eps I)^{-1}
A <- A - learning_rate M R^{-T},                     b_t = b (1 - b^{t-1}) / (1 - b^t)
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import (
    bias_correction,
    cast,
    divide,
    increment,
    optimizer,
    scalar,
    transformation,
    wide_dtype,
    zeros,
)
from gradkit.engine.explicit import by_compiler
from gradkit.engine.norms import added_up
from gradkit.leaves import Method, names
from gradkit.linalg.one_by_one import one_by_one
from gradkit.optimizers.matrix.factor_pairs import Pairs, check_pairs, check_ranks, find_pairs
from gradkit.transforms import add_decayed_weights, scale_by_adam, scale_by_learning_rate
from gradkit.types import Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "LoRA Done RITE: Robust Invariant Transformation Equilibration for LoRA Optimization",
    "Yen et al.",
    2024,
    "2410.20625",
)
NAME = "lora_rite"
NAMES = ("lora_a", "lora_b")


class LoraRiteState(NamedTuple):
    """Number of updates made; per factor its momentum, its own orthonormal basis, and the second moment with the mass
    that has escaped from it, both in the basis of the other factor; the state of Adam on the other leaves."""

    count: jax.Array
    mu: Any
    basis: Any
    nu: Any
    escaped: Any
    rest: Any


def _mul(*factors: jax.Array) -> jax.Array:
    return functools.reduce(functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST), factors)


def _t(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)


def _qr(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """U of x = U R, and the pseudoinverse of R, 0 of a factor of zeros."""
    U, R = one_by_one(jnp.linalg.qr, x)
    return U, one_by_one(jnp.linalg.pinv, R)


def _lost(before: jax.Array, after: jax.Array) -> jax.Array:
    """The mass that a second moment has lost by a change of its basis, (..., 1, 1)."""
    values = [one_by_one(jnp.linalg.eigvalsh, x) for x in (before, after)]
    apart = values[0] - values[1]
    lost = jnp.minimum(jnp.max(apart, axis=-1), jnp.sum(apart, axis=-1))
    return jnp.maximum(lost, jnp.zeros_like(lost))[..., None, None]


class _Side(NamedTuple):
    """One factor, with r as its last axis: momentum, second moment and escaped mass."""

    mu: jax.Array
    nu: jax.Array
    escaped: jax.Array


def _direction(
    G: jax.Array, bases: tuple[jax.Array, jax.Array], side: _Side, decays: tuple[Any, Any], eps: Any, escape: bool
) -> tuple[jax.Array, _Side]:
    """M and the accumulators of one factor, from its unmagnified gradient and the bases of the other one."""
    b1, b2 = (scalar(b, G) for b in decays)
    P = _mul(_t(bases[0]), bases[1])
    kept = _mul(P, side.nu, _t(P))
    kept = (kept + _t(kept)) / 2
    escaped = b2 * (side.escaped + _lost(side.nu, kept)) if escape else side.escaped
    nu = b2 * kept + (1 - b2) * _mul(_t(G), G) / G.shape[-2]
    values, Q = one_by_one(jnp.linalg.eigh, (nu + _t(nu)) / 2)
    root = jnp.sqrt(jnp.maximum(values, jnp.zeros_like(values))[..., None, :] + escaped) + scalar(eps, G)
    S = _mul(divide(_mul(G, Q), jnp.broadcast_to(root, _mul(G, Q).shape)), _t(Q))
    mu = b1 * _mul(cast(side.mu, G.dtype), _t(P)) + (1 - b1) * S
    return mu, _Side(mu, nu, escaped)


def _scale_by_lora_rite(
    b1: Any, b2: Any, eps: Any, max_norm: Any, escape: bool, pairs: Pairs
) -> optax.GradientTransformationExtraArgs:
    adam = scale_by_adam(b1=b1, b2=b2, eps=eps)
    nothing, numbers = optax.MaskedNode(), {"b1": b1, "b2": b2, "eps": eps, "max_norm": max_norm}

    def found_in(tree: Any) -> list[tuple[int, int]]:
        known, leaves = names(tree), jax.tree.leaves(tree)
        found = find_pairs(NAME, known, pairs)
        for i, j in found:
            check_ranks(NAME, (known[i], known[j]), (leaves[i].shape, leaves[j].shape), (-1, -2))
        return found

    def rest_of(tree: Any, found: list[tuple[int, int]]) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        of_pairs = {k for pair in found for k in pair}
        return structure.unflatten([nothing if k in of_pairs else x for k, x in enumerate(leaves)])

    def init(params: optax.Params) -> LoraRiteState:
        found, (leaves, structure) = found_in(params), jax.tree.flatten(params)
        fields: list[list[Any]] = [[nothing] * len(leaves) for _ in range(4)]
        for i, j in found:
            for k, axis in ((i, -1), (j, -2)):
                x = leaves[k]
                dtype = wide_dtype(x.dtype)
                r, batch = x.shape[axis], x.shape[:-2]
                moments = jnp.zeros((*batch, r, r), dtype), jnp.zeros((*batch, 1, 1), dtype)
                for field, start in zip(fields, (zeros(x), zeros(x), *moments), strict=True):
                    field[k] = start
        trees = [structure.unflatten(field) for field in fields]
        return LoraRiteState(jnp.zeros((), jnp.int32), *trees, rest=adam.init(rest_of(params, found)))

    def update(updates: Any, state: LoraRiteState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        found, structure = found_in(updates), jax.tree.structure(updates)
        count = increment(state.count)

        def corrected(b: Any, count: jax.Array, like: jax.Array) -> jax.Array:
            first = count == 1
            before = jnp.where(first, jnp.ones_like(count), count - 1)
            share = scalar(b, like) * bias_correction(b, before, like) / bias_correction(b, count, like)
            return jnp.where(first, jnp.zeros_like(share), share)

        def directions(updates: Any, params: Any, kept: tuple[Any, ...], count: jax.Array, given: Any) -> Any:
            n, (g, x) = {**numbers, **given}, map(jax.tree.leaves, (updates, params))
            mu, basis, nu, escaped = (list(structure.flatten_up_to(field)) for field in kept)
            d, plain, parts = list(g), [], []
            for i, j in found:
                (U, L), (W, K) = _qr(x[i]), _qr(_t(x[j]))
                G, H = _mul(g[i], K), _mul(_t(g[j]), L)
                plain += [jnp.sum(jnp.square(G)), jnp.sum(jnp.square(H))]
                parts.append((U, W, L, K, G, H))
            size = jnp.sqrt(added_up(plain))
            for (i, j), (U, W, L, K, G, H) in zip(found, parts, strict=True):
                if max_norm is not None:
                    by = jnp.maximum(cast(size, G.dtype) / scalar(n["max_norm"], G), jnp.ones((), G.dtype))
                    G, H = G / by, H / by
                decays = corrected(n["b1"], count, G), corrected(n["b2"], count, G)
                of_a, of_b = _Side(mu[i], nu[i], escaped[i]), _Side(_t(mu[j]), nu[j], escaped[j])
                M, of_a = _direction(G, (W, _t(basis[j])), of_a, decays, n["eps"], escape)
                N, of_b = _direction(H, (U, basis[i]), of_b, decays, n["eps"], escape)
                d[i], d[j] = _mul(M, _t(K)), _t(_mul(N, _t(L)))
                mu[i], mu[j], basis[i], basis[j] = of_a.mu, _t(of_b.mu), U, _t(W)
                nu[i], nu[j], escaped[i], escaped[j] = of_a.nu, of_b.nu, of_a.escaped, of_b.escaped
            new = tuple(structure.unflatten(field) for field in (mu, basis, nu, escaped))
            return structure.unflatten(d), new

        kept = state.mu, state.basis, state.nu, state.escaped
        d = updates
        if found:
            # What is traced is an argument over Explicit axes; Python numbers stay what they are.
            given = {name: value for name, value in numbers.items() if isinstance(value, jax.Array)}
            d, kept = by_compiler(directions, updates, params, kept, count, given, like=(updates, kept))
        others, rest = adam.update(rest_of(updates, found), state.rest)
        both = zip(jax.tree.leaves(d), structure.flatten_up_to(others), strict=True)
        new = structure.unflatten([x if isinstance(u, optax.MaskedNode) else u for x, u in both])
        return new, LoraRiteState(count, *kept, rest=rest)

    return transformation(NAME, init, update, needs_params=True)


def lora_rite(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    max_norm: Scalar | None = 1.0,
    escape: bool = True,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    pairs: Pairs = NAMES,
) -> optax.GradientTransformationExtraArgs:
    """Matrix-adaptive steps of the factors of an adapter, the same for every factorization of one product.

    Equations, with the product A B^T, A (m, r) = a and B (n, r) = b^T, for A, and alike for B:

        B = U R,  G = grad_A R^{-1},  P = U^T U_{t-1}
        rho <- b2_t (rho + d(V, P V P^T)),  d(X, Y) = max(0, min(max_i (lambda_i(X) - lambda_i(Y)), tr X - tr Y))
        V <- b2_t P V P^T + (1 - b2_t) G^T G / m
        M <- b1_t M P^T + (1 - b1_t) G ((V + rho I)^{1/2} + eps I)^{-1}
        A <- A - learning_rate (M R^{-T} + weight_decay A)
        b_t = b (1 - b^{t-1}) / (1 - b^t): a running mean with its bias corrected

    lambda_i are eigenvalues in order. rho is the second moment that the change of basis has lost: without it a step
    could be longer than any gradient has asked for. Replacing (A, B) by (A T, B T^{-T}) changes nothing in the product,
    at any step. Leaves that are no adapter take Adam.

    Args:
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the momentum, in [0, 1). Default 0.9 (paper).
      b2: decay of the second moment, in [0, 1). Default 0.999 (paper).
      eps: added to the roots of eigenvalues, and of Adam's second moment, >= 0. Default 1e-6 (official code).
      max_norm: the gradients G of all adapters together are clipped to this norm, > 0; None clips nothing. Default 1
        (official code).
      escape: whether the escaped mass is added. Default True (paper; the released PyTorch code has False).
      weight_decay: decoupled decay of all leaves >= 0, or a schedule. Default 0. It is of the factors, and so depends
        on the factorization.
      weight_decay_mask: which leaves decay. Default all.
      pairs: which leaves are a and b: the last pieces of their names, or a function of the names of all leaves that
        returns pairs of them, and may return none. Default ("lora_a", "lora_b").

    Returns:
      A transformation that needs `params`. State: 2 words per parameter, and r r + 1 per factor. Collectives: r x r
      numbers per factor, and those of a thin QR, where a or b are sharded along what is not r.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf without its partner, or of another rank; no pair at all.

    Example:
      >>> tx = lora_rite(0.1, eps=0.0)
      >>> x = {"lora_a": jnp.ones((4, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> g = {"lora_a": jnp.zeros((4, 1)), "lora_b": jnp.array([[4.0, -4.0]])}
      >>> u, _ = tx.update(g, tx.init(x), x)
      >>> print(abs(u["lora_b"]).round(3))  # the product moves by 0.1 in every column, in units of |a| = 2
      [[0.05 0.05]]

    Reference: Yen et al. LoRA Done RITE: Robust Invariant Transformation Equilibration for LoRA Optimization. 2024,
    arXiv 2410.20625; the authors' PyTorch code, commit c9bb451. As in that code, V is a running mean over the rows of G
    where the paper has a sum. Departures: its skip of every gradient with a root mean square above 1 is left out, and
    the escaped mass is on by default.
    """
    for name, value in (("b1", b1), ("b2", b2)):
        checks.real(name, value, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.real("max_norm", max_norm, "(0, inf]", optional=True)
    checks.switch(escape=escape)
    check_pairs(pairs)
    return optimizer(
        Method(NAME, learning_rate, weight_decay, weight_decay_mask),
        _scale_by_lora_rite(b1, b2, eps, max_norm, escape, pairs),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


def no_pairs(known: list[str]) -> list[tuple[str, str]]:
    """Of a model without adapters."""
    del known
    return []


register(
    lora_rite,
    form="optimizer",
    paper=PAPER,
    words=2,
    collectives="matrices",
    example={"pairs": no_pairs},
    notes="for adapters; its example, of a model without any, is Adam",
)
