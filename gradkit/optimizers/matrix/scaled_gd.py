"""ScaledGD(lambda): gradient descent on the factors of a matrix, at a rate independent of the matrix's conditioning."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import optimizer, transformation
from gradkit.engine.explicit import by_compiler
from gradkit.leaves import Layout, Method, axes_of, from_matrices, names, to_matrices
from gradkit.linalg.damped import resolved
from gradkit.linalg.one_by_one import one_by_one
from gradkit.optimizers.matrix.factor_pairs import Pairs, check_pairs, check_ranks, find_pairs
from gradkit.transforms import scale_by_learning_rate
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper(
    "The Power of Preconditioning in Overparameterized Low-Rank Matrix Sensing", "Xu et al.", 2023, "2302.01186"
)
PRODUCTS = ("L R^T", "L R")


def _over_gram(G: jax.Array, F: jax.Array, damping: Any) -> jax.Array:
    """G (F^T F + damping I)^{-1} of matrices (..., n, r)."""
    product = partial(jnp.einsum, precision="highest")
    eye = jnp.broadcast_to(jnp.eye(F.shape[-1], dtype=F.dtype), (*F.shape[:-2], F.shape[-1], F.shape[-1]))
    gram = product("...ni,...nj->...ij", F, F)
    lower = one_by_one(jnp.linalg.cholesky, gram + resolved(damping, gram) * eye)
    # A solve with G on the right would all-gather its rows; matrix products keep them sharded.
    inverse = one_by_one(partial(jax.lax.linalg.triangular_solve, left_side=True, lower=True), lower, eye)
    return product("...nj,...ji->...ni", product("...nj,...ij->...ni", G, inverse), inverse)


def _full_rank(name: str, damping: Any, rows: int, rank: int) -> None:
    if isinstance(damping, int | float) and damping == 0 and rank > rows:
        raise ValueError(
            f"scale_by_factor_gram: the Gram matrix of {name!r}, {rows} x {rank}, is singular with damping=0; "
            "give damping > 0"
        )


def scale_by_factor_gram(
    damping: Scalar, *, pairs: Pairs | None = None, product: str = "L R^T", layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Divides the gradient of a factor by the Gram matrix of its partner.

    Equations: the directions d_X, or d_L and d_R, of `scaled_gd`. Leaves that are not factors keep their gradient.

    Args:
      damping: lambda, in the units of the Gram matrix, >= 0. Take it of the order of the smallest relevant singular
        value of the target, or below. With 0 a singular Gram matrix gives NaN.
      pairs: which leaves are L and R: the last parts of their names, such as ("u", "v"), or a function of the names of
        all leaves that returns pairs of them. Default None: every leaf with inputs and outputs is a factor X of its own
        X X^T, with its inputs as rows.
      product: how the factors of a pair make the matrix: "L R^T", both (..., n, r), or "L R", where the second is
        (..., r, m), as adapters `lora_a` and `lora_b` are. Default "L R^T".
      layout: without pairs, which axes are inputs, outputs and stacks.

    Returns:
      A transformation that needs `params`. No state. Collectives: r x r numbers per factor whose rows are sharded.

    Raises:
      ValueError: a damping outside its range, or 0 with a factor of more columns than rows; a factor without partner;
        partners of different rank; `params` missing.

    Example:
      >>> tx = scale_by_factor_gram(1.0)
      >>> x, g = jnp.array([[1.0], [1.0]]), jnp.array([[3.0], [6.0]])
      >>> print(tx.update(g, tx.init(x), x)[0].round(4).T)  # X^T X + 1 = 3
      [[1. 2.]]

    Reference: Xu et al. The Power of Preconditioning in Overparameterized Low-Rank Matrix Sensing. 2023, arXiv
    2302.01186. With damping 0 it is ScaledGD of Tong, Ma, Chi 2020, arXiv 2005.08898. In float32 the Gram matrix
    squares the condition number: damping below 1e-7 of the largest singular value has no effect.
    """
    checks.layout(layout)
    checks.real("damping", damping, "[0, inf)")
    checks.choice("product", product, PRODUCTS)
    if pairs is not None:
        check_pairs(pairs)

    def pairs_of(tree: Any) -> list[tuple[int, int]]:
        known, leaves = names(tree), jax.tree.leaves(tree)
        found = find_pairs("scale_by_factor_gram", known, pairs) if pairs is not None else []
        for i, j in found:
            axes = (-1, -1 if product == "L R^T" else -2)
            check_ranks("scale_by_factor_gram", (known[i], known[j]), (leaves[i].shape, leaves[j].shape), axes)
            for k, (rows, rank) in ((i, (-2, -1)), (j, (-2, -1) if product == "L R^T" else (-1, -2))):
                _full_rank(known[k], damping, leaves[k].shape[rows], leaves[k].shape[rank])
        return found

    def init(params: optax.Params) -> optax.EmptyState:
        pairs_of(params)
        if pairs is None:
            for name, x in zip(names(params), jax.tree.leaves(params), strict=True):
                axes = axes_of(layout, name, x.shape)
                if axes.inputs and axes.outputs:
                    for view in jax.eval_shape(lambda x, a=axes: to_matrices(x, a), x):
                        _full_rank(name, damping, view.shape[1], view.shape[2])
        return optax.EmptyState()

    def symmetric(name: str, g: jax.Array, x: jax.Array) -> jax.Array:
        axes = axes_of(layout, name, g.shape)
        if not axes.inputs or not axes.outputs or not g.size:
            return g
        views = zip(to_matrices(g, axes), to_matrices(x, axes), strict=True)
        return from_matrices([_over_gram(G, X, damping) for G, X in views], g.shape, axes)

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        known, found = names(updates), pairs_of(updates)

        def directions(updates: Any, params: Any) -> Any:
            g, structure = jax.tree.flatten(updates)
            x = jax.tree.leaves(params)
            if pairs is None:
                return structure.unflatten([symmetric(*row) for row in zip(known, g, x, strict=True)])
            d = list(g)
            for i, j in found:
                as_right = (lambda m: m) if product == "L R^T" else (lambda m: jnp.swapaxes(m, -1, -2))
                d[i] = _over_gram(g[i], as_right(x[j]), damping)
                d[j] = as_right(_over_gram(as_right(g[j]), x[i], damping))
            return structure.unflatten(d)

        return by_compiler(directions, updates, params, like=updates), state

    return transformation("scale_by_factor_gram", init, update, needs_params=True)


def scaled_gd(
    learning_rate: ScalarOrSchedule = 0.5,
    *,
    damping: Scalar,
    pairs: Pairs | None = None,
    product: str = "L R^T",
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """ScaledGD(lambda): gradient descent on factors, each preconditioned by the Gram matrix of its partner.

    Equations, of a matrix M = X X^T or M = L R^T:

        d_X = G_X (X^T X + lambda I)^{-1}
        d_L = G_L (R^T R + lambda I)^{-1}      d_R = G_R (L^T L + lambda I)^{-1}
        x_t = x_{t-1} - learning_rate d_t

    X, L and R have r columns, and the linear systems are r x r. The speed of convergence does not depend on the
    condition number of the target. Start from a small random X, with more columns than the rank of the target where
    that is unknown.

    Args:
      learning_rate: step size >= 0, or a schedule; a number below 1 suits every target. Default 0.5.
      damping: lambda, >= 0, of the order of the smallest relevant singular value of the target, or below.
      pairs: which leaves are L and R, as in `scale_by_factor_gram`. Default None: every matrix is an X of its own.
      product: "L R^T" or "L R", as in `scale_by_factor_gram`. Default "L R^T".
      layout: without pairs, which axes are inputs, outputs and stacks.

    Returns:
      A transformation that needs `params`. No state except the counter of the learning rate. Collectives: those of
      `scale_by_factor_gram`.

    Raises:
      ValueError: a hyperparameter outside its range, or no damping for a factor of more columns than rows.

    Example:
      >>> tx = scaled_gd(1.0, damping=0.0)
      >>> x = jnp.array([[2.0], [1.0]])
      >>> g = x @ x.T @ x  # of |X X^T|^2 / 4: X^T X cancels
      >>> print(tx.update(g, tx.init(x), x)[0].round(4).T)
      [[-2. -1.]]

    Reference: Xu et al. The Power of Preconditioning in Overparameterized Low-Rank Matrix Sensing. 2023, arXiv
    2302.01186.
    """
    return optimizer(
        Method("scaled_gd", learning_rate),
        scale_by_factor_gram(damping, pairs=pairs, product=product, layout=layout),
        scale_by_learning_rate(learning_rate),
    )


def _u_and_v(known: Sequence[str]) -> list[tuple[str, str]]:
    """The pair of factors of those problems of a race that have one."""
    return [("u", "v")] if {"u", "v"} <= set(known) else []


NOTES = "for factors of a matrix: other leaves descend along their gradient"
register(
    scale_by_factor_gram, form="primitive", paper=PAPER, collectives="matrices", example={"damping": 0.1}, notes=NOTES
)
register(
    scaled_gd,
    form="optimizer",
    paper=PAPER,
    collectives="matrices",
    example={"damping": 0.1},
    notes=NOTES,
    # Where a problem has factors u and v of one matrix, of norm 1; other leaves descend their gradient.
    race=Race(3e-1, {"damping": 1e-3, "pairs": _u_and_v}),
)
