"""DoG: the step size is the distance from the initial parameters over the root of the sum of squared gradient norms."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.anchors import (
    DistanceFromStart,
    check_init_step,
    distance_from_start,
    first_distance,
    numbers_per_tensor,
    offsets,
    over_root_of,
    root_of,
    scalar_dtype,
    squared_sums,
)
from gradkit.engine.core import at_count, increment, optimizer
from gradkit.engine.mismatches import check_fit
from gradkit.leaves import Layout, Method
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.transforms.measured import Measure, scaled_by
from gradkit.types import Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule", "Ivgi, Hinder, Carmon", 2023, "2302.12022"
)
DEFAULT = ("heuristic", 1e-6)


class DogState(NamedTuple):
    """Number of updates; x_0 and the largest distance r; the sum G; the step size, for DoG also as a metric."""

    count: jax.Array
    distance: DistanceFromStart
    total: Any
    step_size: Any
    metrics: dict[str, jax.Array]


@jax.jit
def _size(
    first: jax.Array, start: Any, r: jax.Array, total: jax.Array, sums: tuple[jax.Array, ...], eps: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """eta_t, r_t and G_t of one block; `start` is (r_eps, the first step size or None)."""
    moved, square = sums
    r = jnp.where(first, start[0], jnp.maximum(r, root_of(moved)))
    total = total + square
    eta = over_root_of(r, total, eps)
    return eta if start[1] is None else jnp.where(first, start[1], eta), r, total


def _measure(method: str, init_step: Any, eps: Any, per_tensor: bool, layout: Layout | None) -> Measure:
    init_step = check_init_step(method, init_step)
    checks.real("eps", eps, "[0, inf)")

    def init(params: Any) -> DogState:
        distance = distance_from_start(method, params, per_tensor=per_tensor, layout=layout)

        def zero() -> Any:
            return numbers_per_tensor(method, params, layout) if per_tensor else jnp.zeros((), scalar_dtype(params))

        metrics = {} if per_tensor else {"dog_step_size": zero()}
        return DogState(jnp.zeros((), jnp.int32), distance, zero(), zero(), metrics)

    def update(state: DogState, g: Any, params: Any, **extra: Any) -> tuple[Any, DogState]:
        del extra
        check_fit(method, params, state.distance.start)
        first = state.count == 0
        # One all-reduce for all three; |x| is used in the first step, where x is x_0.
        moved, squares, sizes = squared_sums(
            g, offsets(state.distance, params), g, params, per_tensor=per_tensor, layout=layout
        )

        def block(r: jax.Array, total: jax.Array, moved: jax.Array, square: jax.Array, size: jax.Array) -> tuple:
            moved, square, size = (x.astype(r.dtype) for x in (moved, square, size))
            given = init_step[1] if init_step[0] == "learning_rate" else None
            given = None if given is None else jnp.broadcast_to(jnp.asarray(given, r.dtype), r.shape)
            return _size(first, (first_distance(init_step, size), given), r, total, (moved, square), eps)

        rows = [jax.tree.leaves(x) for x in (state.distance.farthest, state.total, moved, squares, sizes)]
        structure = jax.tree.structure(state.total)
        found = [block(*row) for row in zip(*rows, strict=True)]
        eta, r, total = (structure.unflatten([each[i] for each in found]) for i in range(3))
        # A copy, because a donated state must not contain an array twice.
        metrics = {} if per_tensor else {"dog_step_size": jnp.array(eta, copy=True)}
        distance = DistanceFromStart(state.distance.start, r)
        return eta, DogState(increment(state.count), distance, total, eta, metrics)

    return Measure(init, update)


def scale_by_dog(
    *, init_step: tuple[str, Any] = DEFAULT, eps: Scalar = 1e-8, per_leaf: bool = False, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the gradient by the distance from x_0 over the root of the sum of squared gradient norms.

    Equations: eta_t g_t of `dog`. Norms are over all leaves (DoG), or of every tensor (L-DoG). A link before it, such
    as a clip or a coupled decay, changes what it measures.

    Args:
      init_step: (kind, value > 0), the first distance r_eps: ("heuristic", v) is v (1 + |x_0|); ("distance", v) is v;
        ("learning_rate", v) is 0, and v is the first step size in place of the formula's. Default ("heuristic", 1e-6)
        (official code, which suggests 1e-4 with batch normalization).
      eps: added to the sum of squares, >= 0. Default 1e-8 (official code).
      per_leaf: whether every tensor has a step size of its own (L-DoG). Default False.
      layout: with `per_leaf`, which axes are stacks: every layer of a scan has its own step size.

    Returns:
      A transformation that needs `params`; `init` must get the initial parameters, of which it keeps a copy. State: 1
      word per parameter, and numbers, two per tensor with `per_leaf`. Metric: `dog_step_size` (without `per_leaf`).
      Collectives: three scalars in one all-reduce, three per tensor with `per_leaf`.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `params` missing.

    Example:
      >>> tx = scale_by_dog(init_step=("distance", 0.1), eps=0.0)
      >>> g = jnp.array([3.0, 4.0])
      >>> print(tx.update(g, tx.init(g), g)[0].round(4))  # a step of length 0.1
      [0.06 0.08]

    Reference: Ivgi, Hinder, Carmon. DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule. 2023, arXiv
    2302.12022. optax's keeps the caller's array as x_0, and its sums in the lowest dtype of the parameters.
    """
    checks.layout(layout)
    checks.switch(per_leaf=per_leaf)
    measure = _measure("scale_by_dog", init_step, eps, per_leaf, layout if per_leaf else None)
    return scaled_by("scale_by_dog", measure, needs_params=True)


def _dog(
    method: str,
    learning_rate: Any,
    init_step: Any,
    weight_decay: Any,
    mask: Any,
    **own: Any,
) -> optax.GradientTransformationExtraArgs:
    checks.real("learning_rate", learning_rate, "(0, inf)", schedule=True)
    kind, value = check_init_step(method, init_step)
    if kind == "learning_rate":
        # The first step size is this value, whatever the learning rate.
        value = value / at_count(learning_rate, jnp.zeros((), jnp.int32), f"{method}: learning_rate")
    return optimizer(
        Method(method, learning_rate, weight_decay, mask),
        add_decayed_weights(weight_decay, weight_decay_mask=mask),
        scale_by_dog(init_step=(kind, value), **own),
        scale_by_learning_rate(learning_rate),
    )


def dog(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    init_step: tuple[str, Any] = DEFAULT,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD with the step size of distance over gradients (DoG): no learning rate is tuned.

    Equations, with the gradient g_t, weight_decay x_t added:

        r_t = max(r_{t-1}, |x_t - x_0|),   r_1 = r_eps             the largest distance from x_0 so far
        G_t = G_{t-1} + |g_t|^2,   G_0 = 0                         with the current gradient
        eta_t = r_t / sqrt(G_t + eps)
        x_{t+1} = x_t - learning_rate eta_t g_t

    Evaluate an average of its iterates: `gk.polynomial_decay_average(gk.dog())`.

    Args:
      learning_rate: factor > 0 of the step size, or a schedule. Default 1 (paper).
      init_step: (kind, value > 0): "heuristic", r_eps = value (1 + |x_0|); "distance", r_eps = value; "learning_rate",
        the first step size whatever `learning_rate`. Default ("heuristic", 1e-6) (official code).
      eps: added to the sum of squares, >= 0. Default 1e-8 (official code).
      weight_decay: coupled: part of the gradient and of its norm, >= 0. Default 0.
      weight_decay_mask: which leaves decay. Default all.

    Returns:
      A transformation that needs `params`; `init` must get the initial parameters, of which it keeps a copy. State: 1
      word per parameter and numbers. Metric: `dog_step_size`. Collectives: three scalars.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `params` missing.

    Example:
      >>> tx = dog(init_step=("distance", 0.1))
      >>> x = jnp.array([3.0, 4.0])
      >>> print(tx.update(100 * x, tx.init(x), x)[0].round(4))  # whatever the scale of the loss
      [-0.06 -0.08]

    Reference: Ivgi, Hinder, Carmon. DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule. 2023, arXiv
    2302.12022.
    """
    return _dog("dog", learning_rate, init_step, weight_decay, weight_decay_mask, eps=eps)


def ldog(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    init_step: tuple[str, Any] = DEFAULT,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Mask | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """DoG with a step size for every tensor (L-DoG).

    Equations: those of `dog`, with norms, distances and sums of every tensor separately.

    Args:
      learning_rate: factor > 0 of the step sizes, or a schedule. Default 1 (paper).
      init_step: (kind, value > 0), see `gk.dog`. Default ("heuristic", 1e-6) (official code).
      eps: added to the sums of squares, >= 0. Default 1e-8 (official code).
      weight_decay: coupled, >= 0. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      layout: which axes are stacks: every layer of a scan has its own step size.

    Returns:
      A transformation that needs `params`; `init` must get the initial parameters, of which it keeps a copy. State: 1
      word per parameter and two numbers per tensor. Collectives: three scalars per tensor, packed.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, `params` missing.

    Example:
      >>> tx = ldog(init_step=("distance", 5.0))
      >>> x = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([50.0])}
      >>> print(*(u.round(4) for u in tx.update(x, tx.init(x), x)[0].values()))
      [-3. -4.] [-5.]

    Reference: Ivgi, Hinder, Carmon. DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule. 2023, arXiv
    2302.12022. Every layer of a stack is a tensor, where the official code has one step size for the array.
    """
    return _dog(
        "ldog", learning_rate, init_step, weight_decay, weight_decay_mask, eps=eps, per_leaf=True, layout=layout
    )


# With the default of 1e-6 the first sixty steps would only find the scale.
FAR = {"init_step": ("heuristic", 1e-2)}
COMMON: dict[str, Any] = {"paper": PAPER, "words": 1, "collectives": "norms", "example": FAR}
AVERAGED = "evaluate an average: gk.polynomial_decay_average(gk.dog())"
GOLDEN = ("step_size/dog", "step_size/dog_init_eta")
register(scale_by_dog, form="primitive", **COMMON, golden=GOLDEN, notes=AVERAGED)
register(dog, form="optimizer", **COMMON, golden=GOLDEN, notes=AVERAGED, race=Race(None, schedule=None))
register(ldog, form="optimizer", **COMMON, golden=("step_size/ldog",), notes=AVERAGED, race=Race(None, schedule=None))
