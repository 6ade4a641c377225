"""Sculpting subspaces: updates orthogonal to the large singular directions of a matrix, which serve earlier tasks."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import transformation, wide_dtype
from gradkit.engine.explicit import by_compiler
from gradkit.leaves import Layout, axes_of, from_matrices, names, to_matrices

PAPER = Paper(
    "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning",
    "Nayak et al.",
    2025,
    "2504.07097",
)
SIDES = ("both", "left", "right", "factored")
FACTORS = {"U_low": "left", "V_low": "right"}
PIECES = {"left": "left", "0": "left", "right": "right", "1": "right"}
Sides = dict[str, dict[str, Any]]


class ProjectOutSubspaceState(NamedTuple):
    """The bases, as they were given; the bases of another task may replace them."""

    bases: Any


def _project(g: jax.Array, own: dict[str, jax.Array]) -> jax.Array:
    """The direction d of matrices (batch, n, m)."""
    if (U := own.get("left")) is not None:
        U = U.astype(g.dtype)
        g = g - jnp.matmul(U, jnp.matmul(jnp.swapaxes(U, 1, 2), g, precision="highest"), precision="highest")
    if (V := own.get("right")) is not None:
        V = V.astype(g.dtype)
        g = g - jnp.matmul(jnp.matmul(g, jnp.swapaxes(V, 1, 2), precision="highest"), V, precision="highest")
    return g


def _by_leaf(bases: Any, side: str) -> Sides:
    """The bases of every leaf that is projected: name -> side -> basis."""
    found: Sides = {}
    for name, basis in zip(names(bases), jax.tree.leaves(bases), strict=True):
        above, _, last = name.rpartition("/")
        if last not in PIECES:
            raise ValueError(
                f"project_out_subspace: bases must have a pair (U_h, V_h) at the path of a matrix, got a leaf "
                f"{name!r}; write (U_h, V_h), with None for a side without a basis"
            )
        which = PIECES[last]
        if side == "factored":
            above = "/".join(filter(None, (above, next(n for n, own in FACTORS.items() if own == which))))
        if side in ("both", "factored", which):
            found.setdefault(above, {})[which] = basis
    return found


def project_out_subspace(
    bases: Any, *, side: str = "both", layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Projects updates out of subspaces.

    Equations, with bases U_h (n, k) and V_h (k, m) of the k largest singular values of W (n, m):

        d = (I - U_h U_h^T) g (I - V_h^T V_h)        "both"
        d = (I - U_h U_h^T) g                        "left"
        d = g (I - V_h^T V_h)                        "right"

    With "factored", W = W_h + U_low S_low V_low is trained by its factors: U_low takes "left", V_low takes "right", and
    S_low keeps its gradient. Then U_h^T d = 0 and d V_h^T = 0, and the k largest singular triples of W are singular
    triples of W + d.

    Put it last in the chain: an elementwise rule after it, such as Adam or weight decay, moves the update back into the
    subspace. The official code has it before AdamW, where it projects gradients and not updates; for that, put it first
    in the chain.

    Args:
      bases: a tree with a pair (U_h, V_h), as `gk.linalg.svd_subspace` makes it, at the path of every matrix to
        project; one of the two may be None, and leaves without a pair pass unchanged. For (batch, inputs, outputs)
        matrices of the layout: (n, k) and (k, m) for the whole batch, or one per matrix with the batch axis in front.
      side: "both", "left", "right"; or "factored", where a pair belongs to a module whose leaves `U_low` and
        `V_low` are factors of its matrix. Default "both".
      layout: which axes of a leaf are inputs, the rows, and outputs, the columns.

    Returns:
      A transformation. State: (n + m) k words per matrix, constant until a task ends; then build a new transformation,
      or replace `bases` in the state. Collectives: two thin products, k numbers per row or column, where a matrix is
      sharded along the axis that is summed over.

    Raises:
      ValueError: bases at a path without a leaf, of a shape that does not fit the leaf, or of another dtype than the
        leaf is computed in.

    Example:
      >>> from gradkit.linalg import svd_subspace
      >>> w = {"kernel": jnp.diag(jnp.array([3.0, 2.0, 1.0]))}
      >>> tx = project_out_subspace({"kernel": svd_subspace(w["kernel"], 2)})
      >>> g = {"kernel": jnp.ones((3, 3))}
      >>> print(tx.update(g, tx.init(w))[0]["kernel"])
      [[0. 0. 0.]
       [0. 0. 0.]
       [0. 0. 1.]]

    Reference: Nayak et al. Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning. 2025,
    arXiv 2504.07097. The official code trains the factors of the remainder of W; projecting updates of W itself leaves
    the same directions free, to first order.
    """
    checks.layout(layout)
    checks.choice("side", side, SIDES)
    _by_leaf(bases, side)

    def init(params: optax.Params) -> ProjectOutSubspaceState:
        own = _by_leaf(bases, side)
        leaves = dict(zip(names(params), jax.tree.leaves(params), strict=True))
        if unknown := sorted(own.keys() - leaves.keys()):
            raise ValueError(
                f"project_out_subspace: bases name leaves that the parameters do not have: {unknown}; they have "
                f"{sorted(leaves)}"
            )
        for name, sides in own.items():
            x = leaves[name]
            axes = axes_of(layout, name, x.shape)._replace(splits=())
            if not axes.inputs or not axes.outputs:
                raise ValueError(
                    f"project_out_subspace: {name!r} of shape {x.shape} has no inputs or no outputs and is no matrix; "
                    "remove its bases, or give a layout with its axes"
                )
            batch, n, m = jax.eval_shape(lambda x, a=axes: to_matrices(x, a)[0], x).shape
            for which, basis in sides.items():
                what = f"project_out_subspace: the {which} basis of {name!r}"
                k, long = (basis.shape[-1], n) if which == "left" else (basis.shape[-2], m)
                want = (long, k) if which == "left" else (k, long)
                if basis.shape[-2:] != want or k > long or basis.size not in (long * k, batch * long * k):
                    raise ValueError(
                        f"{what}, {batch} x {n} x {m}, has shape {basis.shape}; it must have {want}, k <= {long}, or "
                        f"that with {batch} in front"
                    )
                if basis.dtype != wide_dtype(x.dtype):
                    wide = wide_dtype(x.dtype)
                    raise ValueError(f"{what} must be {wide}, in which the leaf is computed, got {basis.dtype}")
                if k == long > 0:
                    warnings.warn(f"{what} has full rank, so its updates are all 0", stacklevel=2)
        # A copy, because donating the state would delete the user's arrays.
        return ProjectOutSubspaceState(jax.tree.map(lambda x: jnp.array(x, copy=True), bases))

    def update(updates: Any, state: ProjectOutSubspaceState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        known = names(updates)

        def projected(updates: Any, bases: Any) -> Any:
            own = _by_leaf(bases, side)
            leaves, structure = jax.tree.flatten(updates)
            for i, name in enumerate(known):
                if name in own:
                    axes = axes_of(layout, name, leaves[i].shape)._replace(splits=())
                    sides = {which: basis.reshape(-1, *basis.shape[-2:]) for which, basis in own[name].items()}
                    views = [_project(view, sides) for view in to_matrices(leaves[i], axes)]
                    leaves[i] = from_matrices(views, leaves[i].shape, axes)
            return structure.unflatten(leaves)

        return by_compiler(projected, updates, state.bases, like=updates), state

    return transformation("project_out_subspace", init, update)


register(
    project_out_subspace,
    form="primitive",
    paper=PAPER,
    collectives="matrices",
    example={"bases": {}},
    opt_outs={
        "bad input": "its bases are no numbers",
        "layout": "its bases must fit the layout; its paper's test has one",
    },
    notes="for matrices with bases; its example, without any, passes updates on",
)
