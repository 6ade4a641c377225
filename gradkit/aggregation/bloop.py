"""Bloop: of an auxiliary gradient, what is orthogonal to the average main gradient.

With a main gradient g, an auxiliary gradient h, and the moving average e of main gradients:

    k = <e, h> / (<e, e> + eps),     d = g + aux_weight (h - k e)
    e <- e + ema_rate (g - e)

Inner products run over the whole tree.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.aggregation.makers import aggregator
from gradkit.catalogue import Paper, Tasks, register
from gradkit.engine.core import scalar, widen, zeros
from gradkit.engine.lazy_gradients import inner_products, stacked
from gradkit.types import PyTree, Scalar

PAPER = Paper("Careful with that Scalpel: Improving Gradient Surgery with an EMA", "Hsieh et al.", 2024, "2402.02998")


class BloopState(NamedTuple):
    """Whether there was a step, and the moving average of the main gradient."""

    started: jax.Array
    ema: Any


def product(a: Any, b: Any) -> jax.Array:
    """The inner product of two trees."""
    lead = lambda tree: jax.tree.map(lambda x: x[None], tree)  # noqa: E731
    return inner_products(lead(a), lead(b))[0, 0]


def project_out(a: Any, b: Any, *, eps: Scalar = 0.0) -> Any:
    """What is left of a tree without its part along another tree.

        a - <a, b> / (<b, b> + eps) b        a where b is 0

    Args:
      a: a tree of arrays.
      b: a tree of the same structure and shapes.
      eps: added to the square of b, >= 0. Default 0.

    Returns:
      A tree like `a`, in float32 or wider. One inner product over the whole tree.

    Raises:
      ValueError: `eps` outside its range.

    Example:
      >>> print(project_out(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0])))
      [3. 0.]

    Reference: Hsieh et al. Careful with that Scalpel: Improving Gradient Surgery with an EMA. 2024, arXiv 2402.02998.
    """
    checks.arrays(a=a, b=b)
    checks.real("eps", eps, "[0, inf)")
    a, b = widen(a), widen(b)
    k = ratio(a, b, eps)
    return jax.tree.map(lambda x, y: x - k.astype(x.dtype) * y, a, b)


def ratio(a: Any, b: Any, eps: Scalar) -> jax.Array:
    """<a, b> / (<b, b> + eps), 0 where that is 0 / 0."""
    square = product(b, b)
    square = square + scalar(eps, square)
    return product(a, b) / jnp.where(square > 0, square, jnp.ones_like(square))


def two_of(method: str, gradients: PyTree) -> tuple[Any, Any]:
    """The first and the second of two gradients, in float32 or wider; raises where another number came."""
    rows = stacked(gradients)
    m = len(jax.tree.leaves(rows)[0])
    if m != 2:
        raise ValueError(f"{method}: {m} gradients came, and it takes two, stacked in this order: main, auxiliary")
    return tuple(widen(jax.tree.map(lambda x, i=i: x[i], rows)) for i in range(2))  # pyright: ignore[reportReturnType]


def _surgery(
    method: str, aux_weight: Any, ema_rate: Any, eps: Any, ema_first: bool, init: str, capped: bool
) -> optax.GradientTransformationExtraArgs:
    checks.real("aux_weight", aux_weight, "[0, inf)")
    checks.real("ema_rate", ema_rate, "[0, 1]")
    checks.real("eps", eps, "[0, inf)")
    checks.switch(ema_first=ema_first)
    checks.choice("init", init, ["zeros", "grad"])

    def init_fn(params: Any) -> BloopState:
        return BloopState(jnp.zeros((), bool), zeros(params))

    def moved(e: Any, g: Any) -> Any:
        # What is not finite would stay in the average for ever.
        return jax.tree.map(lambda e, g: jnp.where(jnp.isfinite(g), e + scalar(ema_rate, e) * (g - e), e), e, g)

    def update(gradients: Any, state: BloopState, params: Any, **extra: Any) -> tuple[Any, BloopState]:
        del params, extra
        g, h = two_of(method, gradients)
        before = state.ema
        if init == "grad":
            before = jax.tree.map(lambda e, g: jnp.where(state.started, e, g), before, g)
        after = moved(before, g)
        e = after if ema_first else before
        k = ratio(h, e, eps)
        if capped:
            weight = jnp.asarray(aux_weight, k.dtype)
            k = jnp.minimum(k, jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), jnp.inf))

        def leaf(g: jax.Array, h: jax.Array, e: jax.Array, like: jax.Array) -> jax.Array:
            return (g + scalar(aux_weight, g) * (h - k.astype(g.dtype) * e)).astype(like.dtype)

        like = gradients.like if hasattr(gradients, "like") else gradients
        return jax.tree.map(leaf, g, h, e, like), BloopState(jnp.ones((), bool), after)

    return aggregator(method, update, init=init_fn)


def bloop(
    *,
    aux_weight: Scalar = 0.1,
    ema_rate: Scalar = 0.1,
    eps: Scalar = 1e-7,
    ema_first: bool = False,
    init: str = "zeros",
) -> optax.GradientTransformationExtraArgs:
    """Bilevel optimization with orthogonal projection: an auxiliary loss that does not hinder the main one.

    With a main gradient g, an auxiliary gradient h, and the moving average e of main gradients:

        k = <e, h> / (<e, e> + eps)
        result = g + aux_weight (h - k e)
        e <- e + ema_rate (g - e)             before k is computed with ema_first=True

    Args:
      aux_weight: weight of the auxiliary gradient, >= 0. Default 0.1.
      ema_rate: weight of the new gradient in the average, in [0, 1]. Default 0.1. The authors' configuration for
        ImageNet sets 0.99, with which hardly anything is averaged.
      eps: added to <e, e>, >= 0. Default 1e-7.
      ema_first: whether the average is updated before it projects (authors' code), or after (paper, default): then the
        projection does not depend on this minibatch, and the direction is unbiased.
      init: what the average starts from: "zeros" (default) or "grad", the first main gradient.

    Returns:
      A transformation whose updates come in as two gradients along a leading axis, main and auxiliary, and leave as
      one; put it first in a chain. State: 1 word per parameter. Sharded gradients cost two sums.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, another number of gradients than
        two, leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = bloop(aux_weight=1.0, init="grad", eps=0.0)
      >>> g = jnp.array([[2.0, 0.0], [-5.0, 3.0]])
      >>> print(tx.update(g, tx.init(g[0]))[0])
      [2. 3.]

    Reference: Hsieh et al. Careful with that Scalpel: Improving Gradient Surgery with an EMA. 2024, arXiv 2402.02998,
    Algorithm 1. The authors' code updates the average first, and has an optional rescaling whose factor is
    1 + aux_weight by the precedence of its operators, where 1 / (1 + aux_weight) is meant; it is left out here. For the
    direction whose projection is limited see `gk.aggregation.dynamic_barrier`.
    """
    return _surgery("bloop", aux_weight, ema_rate, eps, ema_first, init, False)


def dynamic_barrier(
    *,
    aux_weight: Scalar = 0.1,
    ema_rate: Scalar = 1.0,
    eps: Scalar = 1e-7,
    ema_first: bool = True,
    init: str = "zeros",
) -> optax.GradientTransformationExtraArgs:
    """Dynamic barrier gradient descent: the auxiliary gradient loses no more than the main one can make up for.

    With a main gradient g, an auxiliary gradient h, and the moving average e of main gradients:

        k = min(<e, h> / (<e, e> + eps), 1 / aux_weight)
        result = g + aux_weight (h - k e)

    With the default ema_rate=1 e is g: where h goes along with g by more than |g|^2 / aux_weight, it is followed alone,
    and otherwise <result, g> = |g|^2.

    Args:
      aux_weight: weight of the auxiliary gradient, >= 0. Default 0.1.
      ema_rate: weight of the new gradient in the average, in [0, 1]. Default 1: no average (paper).
      eps: added to <e, e>, >= 0. Default 1e-7.
      ema_first: whether the average is updated before it projects. Default True.
      init: what the average starts from: "zeros" (default) or "grad", the first main gradient.

    Returns:
      A transformation whose updates come in as two gradients along a leading axis, main and auxiliary, and leave as
      one; put it first in a chain. State: 1 word per parameter. Sharded gradients cost two sums.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, another number of gradients than
        two, leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = dynamic_barrier(aux_weight=1.0, eps=0.0)
      >>> tx.update(jnp.array([[2.0, 0.0], [6.0, 3.0]]), tx.init(jnp.zeros(2)))[0].tolist()  # k is 3, limited to 1
      [6.0, 3.0]

    Reference: the direction of Gong, Liu, Liu, Automatic and harmless regularization with constrained and lexicographic
    optimization, 2021, as it is compared with in Hsieh et al. Careful with that Scalpel: Improving Gradient Surgery
    with an EMA. 2024, arXiv 2402.02998.
    """
    return _surgery("dynamic_barrier", aux_weight, ema_rate, eps, ema_first, init, True)


for _function in (bloop, dynamic_barrier):
    register(
        _function,
        form="aggregator",
        paper=PAPER,
        words=1,
        collectives="norms",
        golden=("estimators/bloop",),
        tasks=Tasks(2, 2),
        notes="two gradients: main, auxiliary",
    )
register(project_out, form="function", paper=PAPER, example={"a": (1.0, 2.0), "b": (1.0, 0.0)})
