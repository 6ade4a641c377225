"""Overparameterization without the layers: the update of the product of N linear layers that stand in for a matrix."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import optimizer, scalar, stateless, transformation
from gradkit.engine.explicit import by_compiler
from gradkit.leaves import Layout, Method, axes_of, from_matrices, names, to_matrices
from gradkit.linalg.one_by_one import one_by_one
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.types import Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "On the Optimization of Deep Networks: Implicit Acceleration by Overparameterization",
    "Arora, Cohen, Hazan",
    2018,
    "1802.06509",
)


def mixed(s: jax.Array, t: jax.Array, depth: Any) -> jax.Array:
    """C_ik of two singular values: their divided difference, without cancellation where they are close.

    >>> mixed(jnp.array([4.0, 4.0, 0.0]), jnp.array([1.0, 4.0, 9.0]), 2).round(4).tolist()
    [5.0, 8.0, 9.0]
    """
    N = scalar(depth, s)
    high, low = jnp.maximum(s, t), jnp.minimum(s, t)
    share = (low - high) / jnp.where(high > 0, high, jnp.ones_like(high))
    log = 2 * jnp.log1p(jnp.maximum(share, -1))
    same = log == 0
    small = jnp.where(same, -jnp.ones_like(log), log)
    ratio = jnp.where(same, jnp.ones_like(log) * N, jnp.expm1(small) / jnp.expm1(small / N))
    return ratio * high ** (2 - 2 / N)


def _of_matrices(G: jax.Array, W: jax.Array, depth: Any, eps: Any) -> jax.Array:
    """P of matrices (..., n, m)."""
    product = partial(jnp.einsum, precision="highest")
    U, s, Vt = one_by_one(partial(jnp.linalg.svd, full_matrices=False), W)
    floor = jnp.zeros_like(s) + scalar(eps, s)
    s = jnp.sqrt(jnp.square(s) + jnp.square(floor))
    UtG, GV = product("...ni,...nm->...im", U, G), product("...nm,...km->...nk", G, Vt)
    A = product("...ni,...nk->...ik", U, GV)
    C, c = mixed(s[..., :, None], s[..., None, :], depth), mixed(s, floor, depth)
    within = product("...ni,...ik->...nk", U, C * A)
    right = (GV - product("...ni,...ik->...nk", U, A)) * c[..., None, :]
    below = c[..., :, None] * (UtG - product("...ik,...km->...im", A, Vt))
    return product("...nk,...km->...nm", within + right, Vt) + product("...ni,...im->...nm", U, below)


def _of_vector(g: jax.Array, w: jax.Array, depth: Any, eps: Any) -> jax.Array:
    """P of a matrix of one row: |w|^{2-2/N} (g + (N - 1) <w, g> w / |w|^2)."""
    square = jnp.sum(jnp.square(w))
    norm = jnp.sqrt(square)
    u = w / jnp.where(norm > 0, norm, jnp.ones_like(norm))
    along = jnp.sum(u * g)
    floor = jnp.zeros_like(norm) + scalar(eps, norm)
    s = jnp.sqrt(square + jnp.square(floor))
    return mixed(s, floor, depth) * (g - along * u) + mixed(s, s, depth) * along * u


def scale_by_overparameterization(
    depth: Scalar = 2.0,
    *,
    normalize: bool = False,
    eps: Scalar = 0.0,
    vectors: bool = False,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of a matrix that is the product of N linear layers, computed without the layers.

        P(W, G) = sum_{j=1..N} (W W^T)^{(j-1)/N} G (W^T W)^{(N-j)/N}
        P(w, g) = |w|^{2-2/N} (g + (N - 1) <w, g> w / |w|^2)        of a single output, with `vectors`

    Components along large singular values of W move faster, which acts like an acceleration and a memory of the path.
    `overparameterized` has P by singular vectors, which holds for numbers N between the integers too. <G, P> >= 0.

    Args:
      depth: N >= 1, the number of layers; 1 is gradient descent. Default 2 (the paper has 2 and 3 and no default).
      normalize: whether P is divided by N, so that depths are comparable at one learning rate. Default False (paper).
      eps: added to the singular values, as sqrt(s^2 + eps^2), >= 0. Default 0 (paper): a matrix of zeros, whose P is 0
        for N > 1, then never moves.
      vectors: whether biases, gains and other leaves without inputs and outputs follow the rule of a single output. A
        bias that starts at 0 never moves without `eps`. Default False: such leaves keep their gradient.
      layout: which axes are inputs, outputs and stacks; a convolution is a matrix by it. P of the transposed matrix is
        the transposed P.

    Returns:
      A transformation that needs `params`. No state. P is homogeneous of degree 2 - 2 / N in W: the stable learning
      rate falls as W grows. One thin singular value decomposition per matrix and step. Collectives: sharded matrices
      are all-gathered.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves; at `update`, `params` missing.

    Example:
      >>> tx, x = scale_by_overparameterization(2), jnp.diag(jnp.array([3.0, 1.0]))
      >>> print(tx.update(jnp.ones((2, 2)), tx.init(x), x)[0].round(4))  # sums of two singular values
      [[6. 4.]
       [4. 2.]]

    Reference: Arora, Cohen, Hazan. On the Optimization of Deep Networks: Implicit Acceleration by Overparameterization.
    2018, arXiv 1802.06509. `normalize` and `eps` are this library's.
    """
    checks.layout(layout)
    checks.real("depth", depth, "[1, inf)")
    checks.switch(normalize=normalize, vectors=vectors)
    checks.real("eps", eps, "[0, inf)")

    def leaf(name: str, g: jax.Array, x: jax.Array) -> jax.Array:
        axes = axes_of(layout, name, g.shape)
        if not g.size:
            return g
        if axes.inputs and axes.outputs:
            views = zip(to_matrices(g, axes), to_matrices(x, axes), strict=True)
            P = from_matrices([_of_matrices(G, W, depth, eps) for G, W in views], g.shape, axes)
        elif vectors:
            own = partial(_of_vector, depth=depth, eps=eps)
            for axis in sorted(axes.stack):
                own = jax.vmap(own, axis, axis)
            P = own(g, x)
        else:
            return g
        return P / scalar(depth, P) if normalize else P

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        known = names(updates)

        def directions(updates: Any, params: Any) -> Any:
            g, structure = jax.tree.flatten(updates)
            return structure.unflatten([leaf(*row) for row in zip(known, g, jax.tree.leaves(params), strict=True)])

        return by_compiler(directions, updates, params, like=updates), state

    name = "scale_by_overparameterization"
    return transformation(name, stateless(name, layout), update, needs_params=True)


def overparameterized(
    learning_rate: ScalarOrSchedule,
    *,
    depth: Scalar = 2.0,
    normalize: bool = False,
    eps: Scalar = 0.0,
    vectors: bool = False,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Mask | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent as if every matrix were a product of N linear layers, at the memory of one.

    W = W_N ... W_1 with balanced factors, W_{j+1}^T W_{j+1} = W_j W_j^T. Gradient descent on all of them moves W, for
    small learning rates, by

        P(W, G) = sum_{j=1..N} (W W^T)^{(j-1)/N} G (W^T W)^{(N-j)/N}
        W      <- (1 - learning_rate N weight_decay) W - learning_rate P(W, G)

    With W = U diag(s) V^T and A = U^T G V this is computed as

        P       = U (C * A) V^T + (G V - U A) diag(c) V^T + U diag(c) (U^T G - A V^T)
        C_ik    = (s_i^2 - s_k^2) / (s_i^{2/N} - s_k^{2/N}),    C_ii = N s_i^{2-2/N},    c_i = s_i^{2-2/N}

    Args:
      learning_rate: step size >= 0, or a schedule; the theorem is for small ones.
      depth: N >= 1. Default 2 (the paper has 2 and 3 and no default).
      normalize: whether P, and with it N weight_decay, is divided by N. Default False (paper).
      eps: added to the singular values, as sqrt(s^2 + eps^2), >= 0. Default 0 (paper).
      vectors: whether leaves that are no matrices follow the rule of a single output. Default False: plain gradient
        descent.
      weight_decay: decay of each of the N layers, >= 0; N times as much of their product. Default 0 (paper).
      weight_decay_mask: which leaves decay. Default all.
      layout: which axes are inputs, outputs and stacks.

    Returns:
      A transformation that needs `params`. No state except the counter of the learning rate. Collectives: those of
      `scale_by_overparameterization`.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx, x = overparameterized(0.5), jnp.array([[4.0]])
      >>> tx.update(jnp.array([[1.0]]), tx.init(x), x)[0].round(4).tolist()  # 2 |w| g
      [[-4.0]]

    Reference: Arora, Cohen, Hazan. On the Optimization of Deep Networks: Implicit Acceleration by Overparameterization.
    2018, arXiv 1802.06509. For N > 1, P is the gradient of no loss with a penalty. Leaves that are not matrices decay
    with N weight_decay as well.
    """
    checks.real("weight_decay", weight_decay, "[0, inf)")
    checks.real("depth", depth, "[1, inf)")
    decay = weight_decay if normalize else _times(depth, weight_decay)
    return optimizer(
        Method("overparameterized", learning_rate, weight_decay, weight_decay_mask),
        scale_by_overparameterization(depth, normalize=normalize, eps=eps, vectors=vectors, layout=layout),
        add_decayed_weights(decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


def _times(depth: Any, decay: Any) -> Any:
    """N weight_decay, also where it is a schedule."""
    if callable(decay):
        return lambda step: depth * decay(step)
    return depth * decay


NOTES = "as if every matrix were a product of layers; a matrix of zeros never moves"
GOLDEN = ("second_shelf/overparameterized", "second_shelf/overparameterized_deep")
register(
    scale_by_overparameterization,
    form="primitive",
    paper=PAPER,
    collectives="matrices",
    golden=GOLDEN,
    notes=NOTES,
)
register(
    overparameterized,
    form="optimizer",
    paper=PAPER,
    collectives="matrices",
    golden=GOLDEN,
    notes=NOTES,
    race=Race(1e-2),
)
