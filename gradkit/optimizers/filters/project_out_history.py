"""A gradient without the directions in which the parameters have hardly moved, for one small vector."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment, scalar, transformation, wide_dtype
from gradkit.engine.explicit import by_compiler
from gradkit.leaves.paths import map_named
from gradkit.linalg.svd import signed_svd
from gradkit.types import Scalar

PAPER = Paper(
    "Efficient Personalization of Quantized Diffusion Model without Backpropagation", "Seo et al.", 2025, "2503.14868"
)
MAX_DIM = 8192


class ProjectOutHistoryState(NamedTuple):
    """Number of updates made; per leaf the last parameters, and the directions that are removed, which start at
    zero."""

    count: jax.Array
    history: Any
    components: Any

    exact_fields = ("history", "components")


def removed(history: jax.Array, variance: Any, standardize: bool) -> jax.Array:
    """The principal components of some rows after those that explain all but `variance`; the others are zeros.

    >>> rows = jnp.array([[0.0, 0.0], [1.0, 0.01], [2.0, -0.01], [3.0, 0.0]])
    >>> jnp.abs(removed(rows, 0.1, False)).round(1).tolist()
    [[0.0, 0.0], [0.0, 1.0]]
    """
    centred = history - jnp.mean(history, axis=0, keepdims=True)
    if standardize:
        size = jnp.sqrt(jnp.mean(jnp.square(centred), axis=0, keepdims=True))
        centred = centred / jnp.where(size > 0, size, jnp.ones_like(size))
    _, s, Vt = signed_svd(centred)
    power = jnp.square(s)
    total = jnp.sum(power)
    share = jnp.cumsum(power) / jnp.where(total > 0, total, jnp.ones_like(total))
    # The first component that brings the sum above the bound is kept, as are all before it.
    behind = jnp.concatenate([jnp.zeros((1,), bool), share[:-1] > 1 - scalar(variance, share)])
    visited = s > max(history.shape) * jnp.finfo(s.dtype).eps * s[0]
    return jnp.where((behind & visited)[:, None], Vt, jnp.zeros_like(Vt))


def project_out_history(
    window_size: int = 128, variance: Scalar = 1e-3, *, standardize: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Removes from the gradient its part in the low-variance directions of the last parameters.

    Equations:

        every `window_size` steps: the principal components of the last `window_size` parameter vectors; with i the
        first for which components 1 ... i explain more than 1 - variance, the rows of E are those after i
        g <- g - (g E^T) E,    before the first refresh g is not changed

    It belongs behind a zeroth-order gradient of one small vector, such as a token, and in front of Adam without decay:
    the noise of the estimate is spread over all directions, and the path of the parameters is not. Directions that were
    never visited are kept.

    Args:
      window_size: number of parameter vectors in the history, and of steps between refreshes, >= 2. Default 128
        (official code, tau).
      variance: share of the variance that the kept components need not explain, in (0, 1). Default 1e-3 (official
        script; 1 - nu, whose default is 0.99).
      standardize: whether every coordinate of the history is divided by its standard deviation first, as the code does,
        which then applies the components to the raw gradient. Default False, so that both have the same coordinates.

    Returns:
      A transformation that needs `params`; mask it to the small leaf (`optax.masked`): state is 2 window_size words per
      parameter, and there is one singular value decomposition per leaf every `window_size` steps. The state is
      replicated; a sharded leaf is all-gathered.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf of more than 8192 entries; complex leaves; at `update`,
        `params` missing.

    Example:
      >>> tx, x = project_out_history(2, 0.5), jnp.array([0.0, 0.0])
      >>> state = tx.init(x)
      >>> for x in (jnp.array([0.0, 1.0]), jnp.array([1.0, 1.0])):
      ...     u, state = tx.update(jnp.array([3.0, 4.0]), state, x)
      >>> print(u)  # the one direction in which x has moved explains all of the variance
      [3. 4.]

    Reference: Seo et al. Efficient Personalization of Quantized Diffusion Model without Backpropagation. 2025, arXiv
    2503.14868 (ZOODiP). The parameters before this step are the newest of the history, and a refresh already acts on
    this step. Components without variance are arbitrary and are kept, where a decomposition into `window_size`
    components may remove one. The paper's estimator, n one-sided differences with one shared evaluation, divides by n
    sqrt((d' + n - 1) / n), with d' the number of directions that are left; Adam is invariant to that factor.
    """
    window_size = checks.integer("window_size", window_size, 2)
    checks.real("variance", variance, "(0, 1)")
    checks.switch(standardize=standardize)

    def init(params: optax.Params) -> ProjectOutHistoryState:
        def check(name: str, x: Any) -> None:
            if x.size > MAX_DIM:
                raise ValueError(
                    f"project_out_history: leaves must have at most {MAX_DIM} entries, got {x.size} of {name!r}; "
                    "mask it with optax.masked"
                )

        map_named(check, params)

        def rows() -> Any:
            return jax.tree.map(lambda x: jnp.zeros((window_size, *x.shape), wide_dtype(x.dtype)), params)

        return ProjectOutHistoryState(jnp.zeros((), jnp.int32), rows(), rows())

    def one(h: jax.Array, e: jax.Array) -> jax.Array:
        """The directions that are removed from now on."""
        if not h.size:
            return e
        found = removed(h.reshape(window_size, -1), variance, standardize).astype(e.dtype)
        return jnp.pad(found, ((0, window_size - len(found)), (0, 0))).reshape(e.shape)

    def step(updates: Any, params: Any, history: Any, components: Any, place: jax.Array) -> tuple[Any, Any, Any]:
        def record(h: jax.Array, x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_index_in_dim(h, x.astype(h.dtype), place, 0)

        def projected(g: jax.Array, E: jax.Array) -> jax.Array:
            along = jnp.sum(E * g[None], axis=tuple(range(1, E.ndim)), keepdims=True)
            return g - jnp.sum(along * E, axis=0)

        history = jax.tree.map(record, history, params)
        components = jax.lax.cond(
            place == window_size - 1,
            lambda history, components: jax.tree.map(one, history, components),
            lambda history, components: components,
            history,
            components,
        )
        return jax.tree.map(projected, updates, components), history, components

    def update(updates: Any, state: ProjectOutHistoryState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        like = (updates, state.history, state.components)
        place = state.count % window_size
        updates, history, components = by_compiler(
            step, updates, params, state.history, state.components, place, like=like
        )
        return updates, ProjectOutHistoryState(increment(state.count), history, components)

    return transformation("project_out_history", init, update, needs_params=True)


register(
    project_out_history,
    form="primitive",
    paper=PAPER,
    words=256,
    opt_outs={
        "words": "for small leaves alone: the leaves of this test have more entries than it accepts",
    },
    collectives="matrices",
    notes="for one small vector behind a zeroth-order gradient; mask it",
)
