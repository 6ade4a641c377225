"""Gravity: momentum of gradients whose largest entries are damped, as a ball is that falls down a steep slope."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import at_count, increment, optimizer, scalar, transformation, zeros
from gradkit.engine.keys import check_key, first_key
from gradkit.leaves import Layout, Method, axes_of, map_named, tensor_axes
from gradkit.schedules.phases import real_array
from gradkit.transforms import scale_by_learning_rate
from gradkit.types import Key, Scalar, ScalarOrSchedule

PAPER = Paper(
    "Gravity Optimizer: a Kinematic Approach on Optimization in Deep Learning",
    "Bahrami, Pouriyan Zadeh",
    2021,
    "2101.09192",
)


def _is_zero(value: Any) -> bool:
    return not isinstance(value, Tracer) and bool(value == 0)


def _number(value: Any) -> Any:
    """A number as a Python float; a traced number unchanged."""
    known = checks.readable(value)
    return value if known is None else known


class ScaleByGravityState(NamedTuple):
    """Number of updates made, and the velocity."""

    count: jax.Array
    velocity: Any


def scale_by_gravity(
    *, beta: Scalar = 0.9, init_std: float = 0.0, key: Key | None = None, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """The momentum of gradients that are damped where they are large for their tensor.

    Equations, with V_0 ~ N(0, init_std^2), entry by entry, and the update V_t:

        M = max |g| over the tensor
        z = g / (1 + (g M)^2)                                     at most 1 / (2 M), where |g| = 1 / M
        V_t = b_t V_{t-1} + (1 - b_t) z,   b_t = (beta t + 1) / (t + 2)

    Entries above 1 / M move less the larger they are.

    Args:
      beta: decay of the velocity after many steps, in [0, 1]; at the first step it is (beta + 1) / 3. Default 0.9
        (official code).
      init_std: standard deviation of V_0, >= 0. Default 0: it starts at rest.
      key: a typed random key or an integer that V_0 is drawn with; needed where `init_std` is not 0. Default None.
      layout: which axes are stacks: every layer of a scan has its own M.

    Returns:
      A transformation. State: 1 word per parameter and a counter. Collectives: one maximum per tensor where leaves
      are sharded.

    Raises:
      ValueError: a hyperparameter outside its range; a missing key where one is needed (with a traced `init_std`, at
        `init`).

    Example:
      >>> tx = scale_by_gravity(beta=0.5)
      >>> g = jnp.array([1.0, 2.0])
      >>> [round(float(u), 4) for u in tx.update(g, tx.init(g))[0]]  # half of 1 / (1 + 4) and of 2 / (1 + 16)
      [0.1, 0.0588]

    Reference: Bahrami, Pouriyan Zadeh. Gravity Optimizer: a Kinematic Approach on Optimization in Deep Learning.
    2021, arXiv 2101.09192. t is 1 at the first step, as in the official torch code; the one for Keras starts at 0. The
    official codes divide by 1 / M, which is NaN for a gradient of zeros; here it is 0.
    """
    checks.layout(layout)
    checks.real("beta", beta, "[0, 1]")
    checks.real("init_std", init_std, "[0, inf)")
    init_std = _number(init_std)
    missing = "scale_by_gravity needs a key to draw the first velocity: pass key=jax.random.key(...)"
    if key is None and not isinstance(init_std, Tracer) and not _is_zero(init_std):
        raise ValueError(missing)
    check_key(key)

    def init(params: optax.Params) -> ScaleByGravityState:
        leaves, structure = jax.tree.flatten(zeros(params))
        if not _is_zero(init_std):
            if key is None:
                raise ValueError(missing)
            start = first_key(key)
            keys = [jax.random.fold_in(start, i) for i in range(len(leaves))]
            drawn = (jax.random.normal(k, v.shape, v.dtype) for k, v in zip(keys, leaves, strict=True))
            leaves = [scalar(init_std, z) * z for z in drawn]
        return ScaleByGravityState(jnp.zeros((), jnp.int32), structure.unflatten(leaves))

    def update(updates: Any, state: ScaleByGravityState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count = increment(state.count)

        def damped(name: str, g: jax.Array) -> jax.Array:
            axes = tensor_axes(axes_of(layout, name, g.shape), g.shape)
            largest = jnp.max(jnp.abs(g), axis=axes, keepdims=True, initial=0)
            return g / (1 + jnp.square(g * largest))

        def follow(v: jax.Array, z: jax.Array) -> jax.Array:
            t = real_array(count).astype(z.dtype)
            b = (scalar(beta, z) * t + 1) / (t + 2)
            return ema(v, z, b)

        velocity = jax.tree.map(follow, state.velocity, map_named(damped, updates))
        return velocity, ScaleByGravityState(count, velocity)

    return transformation("scale_by_gravity", init, update)


def gravity(
    learning_rate: ScalarOrSchedule,
    *,
    alpha: float = 0.01,
    beta: Scalar = 0.9,
    key: Key | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with the momentum of gradients whose large entries are damped (Gravity).

    Equations, with V_0 ~ N(0, (alpha / learning_rate)^2), entry by entry:

        M = max |g| over the tensor
        z = g / (1 + (g M)^2)                                     at most 1 / (2 M), where |g| = 1 / M
        V_t = b_t V_{t-1} + (1 - b_t) z,   b_t = (beta t + 1) / (t + 2)
        x_t = x_{t-1} - learning_rate V_t

    Args:
      learning_rate: step size >= 0, or a schedule. The official code has 0.1. With alpha > 0 its first value must be
        > 0, as alpha is divided by it for the first velocity.
      alpha: standard deviation of the step that the first velocity alone would make, >= 0. Default 0.01 (official
        code; the authors' notes advise 0.05). 0 starts at rest.
      beta: decay of the velocity after many steps, in [0, 1]. Default 0.9 (official code).
      key: a typed key or integer, for the first velocity; needed where alpha is not 0. Default None.
      layout: which axes are stacks.

    Returns:
      A transformation. State: 1 word per parameter. Collectives: one maximum per tensor where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range; with alpha > 0, a missing key or a first learning rate of 0.

    Example:
      >>> tx = gravity(0.1, alpha=0.0, beta=0.5)
      >>> x = jnp.array([1.0, 2.0])
      >>> print(tx.update(x, tx.init(x), x)[0].round(4))
      [-0.01   -0.0059]

    Reference: Bahrami, Pouriyan Zadeh. Gravity Optimizer: a Kinematic Approach on Optimization in Deep Learning.
    2021, arXiv 2101.09192. Departures: those of `scale_by_gravity`.
    """
    checks.real("alpha", alpha, "[0, inf)")
    alpha = _number(alpha)
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    init_std = 0.0
    if not _is_zero(alpha):
        first = at_count(learning_rate, jnp.zeros((), jnp.int32), "gravity: learning_rate")
        checks.real("learning_rate must be above 0 at its first step with alpha > 0: it", first, "(0, inf)")
        init_std = alpha / first
    return optimizer(
        Method("gravity", learning_rate),
        scale_by_gravity(beta=beta, init_std=init_std, key=key, layout=layout),
        scale_by_learning_rate(learning_rate),
    )


register(scale_by_gravity, form="primitive", paper=PAPER, words=1, collectives="norms", golden=("adaptive/gravity",))
register(
    gravity,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="norms",
    golden=("adaptive/gravity",),
    example={"alpha": 0.0},
    notes="needs a key for its random first velocity, or alpha=0",
    # A race has no key where a method is built, so the velocity starts at 0.
    race=Race(5e-1, {"alpha": 0.0}),
)
