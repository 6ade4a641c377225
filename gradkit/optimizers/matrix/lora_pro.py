"""LoRA-Pro: gradients of the two factors of an adapter that together move its product as full training would."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, optimizer, transformation, wide_dtype
from gradkit.engine.explicit import by_compiler
from gradkit.leaves import Method, names
from gradkit.linalg.one_by_one import one_by_one
from gradkit.optimizers.matrix.factor_pairs import Pairs, check_pairs, check_ranks, find_pairs
from gradkit.transforms import add_decayed_weights, scale_by_adam, scale_by_learning_rate
from gradkit.types import Mask, Scalar, ScalarOrSchedule

PAPER = Paper("LoRA-Pro: Are Low-Rank Adapters Properly Optimized?", "Wang et al.", 2024, "2407.18242")
CHOICES = ("sylvester", "zero", "symmetric")
NAMES = ("lora_a", "lora_b")


def _mul(*factors: jax.Array) -> jax.Array:
    product = factors[0]
    for factor in factors[1:]:
        product = jnp.matmul(product, factor, precision="highest")
    return product


def _t(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)


def _sylvester(P: jax.Array, Q: jax.Array, C: jax.Array) -> jax.Array:
    """Solves P Y + Y Q = C with symmetric positive semidefinite P and Q; Y is 0 along directions that both map to 0."""
    (lam, U), (mu, V) = one_by_one(jnp.linalg.eigh, P), one_by_one(jnp.linalg.eigh, Q)
    # Rounding may make a null eigenvalue negative.
    total = jnp.maximum(lam, 0)[..., :, None] + jnp.maximum(mu, 0)[..., None, :]
    return _mul(U, divide(_mul(_t(U), C, V), total), _t(V))


def _inverse(P: jax.Array, damping: jax.Array) -> jax.Array:
    """(P + damping I)^{-1} of a Gram matrix, and 0 along directions that are null up to rounding, as where two rows are
    equal: the gradients of the factors have no such component, and rounding errors are not divided by the damping."""
    lam, U = one_by_one(jnp.linalg.eigh, P)
    largest = jnp.max(lam, axis=-1, keepdims=True)
    below = jnp.maximum(lam, 0) + damping
    real = ((lam > P.shape[-1] * jnp.finfo(P.dtype).eps * largest) | (largest <= 0)) & (below > 0)
    inverse = jnp.where(real, 1 / jnp.where(real, below, 1), 0)
    return _mul(U * inverse[..., None, :], _t(U))


def adjusted(
    a: jax.Array, b: jax.Array, g_a: jax.Array, g_b: jax.Array, s: jax.Array, damping: jax.Array, choose_x: str
) -> tuple[jax.Array, jax.Array]:
    """The directions d_a and d_b of `lora_pro`."""
    P, Q = _mul(_t(a), a), _mul(b, _t(b))
    A, B = _inverse(P, damping), _inverse(Q, damping)
    # Two divisions by s, because the square of a small scaling may underflow to 0.
    x, y = _mul(g_a, B) / s / s, _mul(A, g_b) / s / s
    y = y - _mul(_mul(y, _t(b)), B, b)
    if choose_x == "zero":
        return x, y
    C = -_mul(_t(a), x)
    Y = _sylvester(P, Q, C) if choose_x == "sylvester" else _mul(A, C) / 2
    return x + _mul(a, Y), y - _mul(Y, b)


def _check(scaling: Any, damping: Any, choose_x: Any, pairs: Any) -> None:
    checks.real("scaling", scaling, "(0, inf)")
    checks.real("damping", damping, "[0, inf)")
    checks.choice("choose_x", choose_x, CHOICES)
    check_pairs(pairs)


def _found(method: str, tree: Any, pairs: Pairs) -> list[tuple[int, int]]:
    known, leaves = names(tree), jax.tree.leaves(tree)
    found = find_pairs(method, known, pairs)
    for i, j in found:
        check_ranks(method, (known[i], known[j]), (leaves[i].shape, leaves[j].shape), (-1, -2))
    return found


def adjust_lora_gradients(
    scaling: Scalar, *, damping: Scalar = 1e-8, choose_x: str = "sylvester", pairs: Pairs = NAMES
) -> optax.GradientTransformationExtraArgs:
    """Replaces the gradients of adapters by those whose product is nearest to the full gradient.

    Equations: d_a and d_b of `lora_pro`. Any optimizer may follow it: with SGD it is the paper's SGD; an Adam that
    follows has moments of the factors, which is not the paper's Adam, `lora_pro_adam`. Leaves that are not adapters
    pass unchanged.

    Args:
      scaling: s of the product s a b, > 0: alpha / r or alpha / sqrt(r), as the model has it; 1 for `nnx.LoRA`.
      damping: delta, added to the r x r Gram matrices, in the units of squared parameters, >= 0. Default 1e-8 (official
        code). A Gram matrix of zeros, as for b = 0, needs it; where rows of b are equal, the null directions are left
        out.
      choose_x: "sylvester", "zero" or "symmetric": how the factors share the update; the product moves by the same
        amount. Default "sylvester" (official code).
      pairs: which leaves are a and b: the last parts of their names, or a function of the names of all leaves that
        returns pairs of them, and may return none. Default ("lora_a", "lora_b").

    Returns:
      A transformation that needs `params`. No state. Collectives: r x r numbers per pair and factor, and a thin
      product, where a or b is sharded along its axis other than r.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf without its partner, or of another rank; no pair at all.

    Example:
      >>> tx = adjust_lora_gradients(2.0)
      >>> x = {"lora_a": jnp.ones((3, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> g = {"lora_a": jnp.zeros((3, 1)), "lora_b": jnp.array([[6.0, 12.0]])}
      >>> u, _ = tx.update(g, tx.init(x), x)
      >>> print(u["lora_b"].round(3))  # at b = 0: (a^T a)^{-1} g_b / s^2
      [[0.5 1. ]]

    Reference: Wang et al. LoRA-Pro: Are Low-Rank Adapters Properly Optimized? 2024, arXiv 2407.18242. The released code
    has scaling 2 and a branch for b = 0 that is never taken; here the general formula covers that case.
    """
    _check(scaling, damping, choose_x, pairs)

    def init(params: optax.Params) -> optax.EmptyState:
        _found("adjust_lora_gradients", params, pairs)
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        found = _found("adjust_lora_gradients", updates, pairs)

        def directions(updates: Any, params: Any) -> Any:
            g, structure = jax.tree.flatten(updates)
            x, d = jax.tree.leaves(params), list(g)
            for i, j in found:
                s, delta = (jnp.asarray(value).astype(x[i].dtype) for value in (scaling, damping))
                d[i], d[j] = adjusted(x[i], x[j], g[i], g[j], s, delta, choose_x)
            return structure.unflatten(d)

        return by_compiler(directions, updates, params, like=updates), state

    return transformation("adjust_lora_gradients", init, update, needs_params=True)


def lora_pro(
    learning_rate: ScalarOrSchedule,
    *,
    scaling: Scalar,
    damping: Scalar = 1e-8,
    choose_x: str = "sylvester",
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    pairs: Pairs = NAMES,
) -> optax.GradientTransformationExtraArgs:
    """LoRA-Pro with gradient descent: the product of every adapter moves as the full matrix would, as near as it can.

    The product is s a b with a (..., in, r), b (..., r, out) and the scaling s; g_a = s G b^T and g_b = s a^T G are the
    incoming gradients. The gradient G of the product is not needed.

    Equations:

        A^ = (a^T a + damping I)^{-1}                B^ = (b b^T + damping I)^{-1}

        d_a = g_a B^ / s^2 + a Y                     d_b = A^ g_b (I - b^T B^ b) / s^2 - Y b
        Y   solves a^T a Y + Y b b^T = -a^T g_a B^ / s^2       "sylvester": nearest to the gradients (g_a, g_b)
            = 0                                                "zero"
            = -A^ a^T g_a B^ / (2 s^2)                         "symmetric": the factors share what both can move
        a  <- a - learning_rate d_a,    b <- b - learning_rate d_b

    The product moves by -learning_rate E, E = s (d_a b + a d_b), whatever Y is. E equals G where G is in the row space
    of b or the column space of a, and otherwise is the nearest matrix to G that factors of rank r can give. Leaves that
    are not adapters descend along their gradient.

    Args:
      learning_rate: step size >= 0, or a schedule; of the product, as in full training.
      scaling: s of the product s a b, > 0: alpha / r or alpha / sqrt(r), as the model has it; 1 for `nnx.LoRA`.
      damping: delta, added to the r x r Gram matrices, >= 0. Default 1e-8 (official code).
      choose_x: "sylvester", "zero" or "symmetric". Default "sylvester" (official code).
      weight_decay: decoupled decay of the factors >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      pairs: which leaves are a and b, as in `adjust_lora_gradients`. Default ("lora_a", "lora_b").

    Returns:
      A transformation that needs `params`. No state. Collectives: those of `adjust_lora_gradients`.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf without its partner, or of another rank; no pair at all.

    Example:
      >>> tx = lora_pro(0.1, scaling=1.0)
      >>> x = {"lora_a": jnp.ones((4, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> g = {"lora_a": jnp.zeros((4, 1)), "lora_b": jnp.array([[4.0, -8.0]])}
      >>> u, _ = tx.update(g, tx.init(x), x)
      >>> print(u["lora_b"].round(3))  # of the full gradient an adapter of ones can follow the means of columns
      [[-0.1  0.2]]

    Reference: Wang et al. LoRA-Pro: Are Low-Rank Adapters Properly Optimized? 2024, arXiv 2407.18242.
    """
    return optimizer(
        Method("lora_pro", learning_rate, weight_decay, weight_decay_mask),
        adjust_lora_gradients(scaling, damping=damping, choose_x=choose_x, pairs=pairs),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


def _dense(tree: Any, found: list[tuple[int, int]], product: Callable[[Any, Any], Any]) -> Any:
    """A tree with the product of every pair in place of its first factor, and a `MaskedNode` in place of the second."""
    leaves, structure = jax.tree.flatten(tree)
    for i, j in found:
        leaves[i], leaves[j] = product(leaves[i], leaves[j]), optax.MaskedNode()
    return structure.unflatten(leaves)


def _abstract(a: Any, b: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*a.shape[:-1], b.shape[-1]), wide_dtype(a.dtype))


def lora_pro_adam(
    learning_rate: ScalarOrSchedule,
    *,
    scaling: Scalar,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    damping: Scalar = 1e-8,
    choose_x: str = "sylvester",
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    pairs: Pairs = NAMES,
) -> optax.GradientTransformationExtraArgs:
    """LoRA-Pro with Adam on the product of the adapters; other leaves take ordinary Adam.

    Equations, with d_a and d_b as functions of the gradients as in `lora_pro`:

        E   = s (d_a b + a d_b)                    of the incoming gradients, with Y = 0
        E'  = Adam(E)                              with dense moments
        d_a, d_b                                   of the gradients s E' b^T and s a^T E'
        a  <- a - learning_rate d_a,    b <- b - learning_rate d_b

    Args:
      learning_rate: step size >= 0, or a schedule.
      scaling: s of the product s a b, > 0: alpha / r or alpha / sqrt(r), as the model has it; 1 for `nnx.LoRA`.
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-8 (official code).
      damping: delta, added to the r x r Gram matrices, >= 0. Default 1e-8 (official code).
      choose_x: "sylvester", "zero" or "symmetric". Default "sylvester" (official code).
      weight_decay: decoupled decay of the factors >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      pairs: which leaves are a and b, as in `adjust_lora_gradients`. Default ("lora_a", "lora_b").

    Returns:
      A transformation that needs `params`. State: 2 in out words per adapter, as much as Adam on the full matrix and
      far more than Adam on the factors; 2 words per parameter of other leaves. The dense moments have the shape of no
      parameter, so `gk.parallel.state_shardings` replicates them: on a mesh, constrain them to the sharding of the
      weight that the adapter belongs to. Collectives: those of `adjust_lora_gradients`.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf without its partner, or of another rank; no pair at all.

    Example:
      >>> tx = lora_pro_adam(0.1, scaling=1.0)
      >>> x = {"lora_a": jnp.ones((4, 1)), "lora_b": jnp.zeros((1, 2))}
      >>> g = {"lora_a": jnp.zeros((4, 1)), "lora_b": jnp.array([[6.0, -1.0]])}
      >>> u, _ = tx.update(g, tx.init(x), x)
      >>> print(u["lora_b"].round(3))  # every entry of the product moves by 0.1
      [[-0.1  0.1]]

    Reference: Wang et al. LoRA-Pro: Are Low-Rank Adapters Properly Optimized? 2024, arXiv 2407.18242. The released code
    counts a step before it corrects the bias, so its first step is corrected like the second; here the first step has
    the correction of step 1.
    """
    _check(scaling, damping, choose_x, pairs)
    adam = scale_by_adam(b1=b1, b2=b2, eps=eps)

    def init(params: optax.Params) -> Any:
        return adam.init(_dense(params, _found("lora_pro_adam", params, pairs), _abstract))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        found = _found("lora_pro_adam", updates, pairs)
        second = {j for _, j in found}

        def numbers(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.asarray(scaling).astype(x.dtype), jnp.asarray(damping).astype(x.dtype)

        def through_adam(updates: Any, params: Any, state: Any) -> Any:
            (g, structure), x = jax.tree.flatten(updates), jax.tree.leaves(params)
            E = list(g)
            for i, j in found:
                s, delta = numbers(x[i])
                d_a, d_b = adjusted(x[i], x[j], g[i], g[j], s, delta, "zero")
                E[i], E[j] = s * (_mul(d_a, x[j]) + _mul(x[i], d_b)), optax.MaskedNode()
            E, state = adam.update(structure.unflatten(E), state)
            dense = iter(jax.tree.leaves(E))
            d: list[Any] = [None if k in second else next(dense) for k in range(len(g))]
            for i, j in found:
                s, delta = numbers(x[i])
                g_a, g_b = s * _mul(d[i], _t(x[j])), s * _mul(_t(x[i]), d[i])
                d[i], d[j] = adjusted(x[i], x[j], g_a, g_b, s, delta, choose_x)
            return structure.unflatten(d), state

        return by_compiler(through_adam, updates, params, state, like=(updates, state))

    return optimizer(
        Method("lora_pro_adam", learning_rate, weight_decay, weight_decay_mask),
        transformation("lora_pro_adam", init, update, needs_params=True),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


def no_pairs(known: list[str]) -> list[tuple[str, str]]:
    """The pairs of a model without adapters: none."""
    del known
    return []


EXAMPLE = {"scaling": 2.0, "pairs": no_pairs}
register(
    adjust_lora_gradients,
    form="primitive",
    paper=PAPER,
    collectives="matrices",
    example=EXAMPLE,
    notes="for adapters; its example, of a model without any, passes gradients on",
)
register(
    lora_pro,
    form="optimizer",
    paper=PAPER,
    words=0,
    collectives="matrices",
    example=EXAMPLE,
    notes="for adapters; its example, of a model without any, is gradient descent",
)
register(
    lora_pro_adam,
    form="optimizer",
    paper=PAPER,
    words=2,
    collectives="matrices",
    golden=("matrix/lora_pro_adam",),
    example=EXAMPLE,
    notes="dense moments per adapter; its example, of a model without any, is Adam",
)
