"""Optimizers around a zeroth-order gradient: training in the memory of inference.

The gradient g is that of `gk.gradients.zeroth_order_gradient`, of a key that is another one every step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import optimizer
from gradkit.engine.zeroth_order import Estimate
from gradkit.gradients.replicas import mean_over, own_copy
from gradkit.leaves import Method
from gradkit.transforms import scale_by_adam, scale_by_learning_rate, trace
from gradkit.transforms.keep_best import keep_best
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper(
    "ZeroFlow: Overcoming Catastrophic Forgetting is Easier than You Think", "Feng et al.", 2025, "2501.01045"
)


class ZerothOrder(NamedTuple):
    """A zeroth-order optimizer of one loss.

    Attributes:
      init: parameters -> state.
      update: (state, params, *args, key, direction=None, **kwargs) -> (value, updates, state). The updates are added
        to the parameters (`optax.apply_updates`); key and direction as in `zeroth_order_gradient`.
    """

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any, Any]]


def _around(
    method: str,
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformationExtraArgs,
    axis_name: Any,
    *estimate: Any,
) -> ZerothOrder:
    """The optimizer `tx` behind an estimate of these hyperparameters."""
    checks.function("loss_fn", loss_fn)
    checks.axis_name("axis_name", axis_name)
    rule = Estimate(method, *estimate).checked()

    def update(
        state: Any, params: Any, *args: Any, key: Any = None, direction: Any = None, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        params, over = own_copy(jax.tree.map(jnp.asarray, params), axis_name), partial(mean_over, axis_name=axis_name)
        value, g = rule.gradient(loss_fn, params, args, kwargs, key, direction, over)
        value_fn = lambda x: over(jnp.asarray(loss_fn(x, *args, **kwargs)))  # noqa: E731
        updates, state = tx.update(g, state, params, value_fn=value_fn)
        return value, updates, state

    return ZerothOrder(tx.init, update)


def _promoting(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """One of optax that promotes dtypes implicitly, which a caller may have forbidden."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(updates, state, params)

    return optax.GradientTransformation(tx.init, update)


def zo_sgd(
    loss_fn: Callable[..., Any],
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Scalar = 0.0,
    epsilon: Scalar = 1e-3,
    num_directions: int = 1,
    two_sided: bool = True,
    distribution: str = "normal",
    nonzero_fraction: Scalar = 1.0,
    axis_name: Any = None,
) -> ZerothOrder:
    """ZO-SGD: gradient descent on a zeroth-order gradient; with momentum, ZO-SGD-MMT.

        z ~ N(0, I),    c = (L(x + epsilon z) - L(x - epsilon z)) / (2 epsilon),    g = c z
        m <- momentum m + g
        x <- x - learning_rate m

    Args:
      loss_fn: (params, *args) -> scalar, deterministic given its arguments; need not be differentiable.
      learning_rate: step size >= 0, or a schedule. It must be about d + 2 times less than that of gradient descent, for
        d parameters. The benchmark of language models takes 1e-7 to 1e-6 for all parameters, 1e-4 to 1e-3 for
        adapters.
      momentum: decay in [0, 1). Default 0, without a buffer.
      epsilon: distance, > 0. Default 1e-3 (official code).
      num_directions: directions per step, whose mean is taken, >= 1. Default 1 (official code).
      two_sided: whether both sides are evaluated. Default True (official code).
      distribution: "normal", "rademacher" or "sphere". Default "normal".
      nonzero_fraction: the probability with which an entry of a direction is not 0, in (0, 1]. Default 1.
      axis_name: axis of `vmap` or `shard_map` whose members hold parts of the batch, and the same key. Default None.

    Returns:
      `ZerothOrder(init, update)`. State: 0 words per parameter, 1 with momentum. Memory: one perturbed copy of the
      parameters. Collectives: two numbers per direction with `axis_name`.

    Raises:
      ValueError: a hyperparameter outside its range; when called, as `zeroth_order_gradient`.

    Example:
      >>> method, x = zo_sgd(lambda x: jnp.sum(x**2) / 2, 0.1), jnp.array([1.0, -2.0])
      >>> state = method.init(x)
      >>> for step in range(100):
      ...     value, u, state = method.update(state, x, key=step)
      ...     x = x + u
      >>> float(jnp.sum(x**2)) < 0.01
      True

    Reference: Feng et al. ZeroFlow: Overcoming Catastrophic Forgetting is Easier than You Think. 2025, arXiv
    2501.01045; Zhang et al. 2024, arXiv 2402.11592. Departures: those of `zeroth_order_gradient`.
    """
    checks.real("momentum", momentum, "[0, 1)")
    links = [] if isinstance(momentum, int | float) and momentum == 0 else [trace(momentum)]
    tx = optimizer(Method("zo_sgd", learning_rate), *links, scale_by_learning_rate(learning_rate))
    estimate = (epsilon, num_directions, two_sided, distribution, False, nonzero_fraction)
    return _around("zo_sgd", loss_fn, tx, axis_name, *estimate)


def zo_sign_sgd(
    loss_fn: Callable[..., Any],
    learning_rate: ScalarOrSchedule,
    *,
    epsilon: Scalar = 1e-3,
    num_directions: int = 1,
    two_sided: bool = True,
    distribution: str = "normal",
    nonzero_fraction: Scalar = 1.0,
    axis_name: Any = None,
) -> ZerothOrder:
    """ZO-SGD-Sign of the benchmarks: the sign of the slope, times the direction.

        c = the slope of L along z ~ N(0, I), as in `zo_sgd`
        x <- x - learning_rate sign(c) z

    The number c is signed and z keeps its normal entries: every step has the size learning_rate |z|. The original
    ZO-signSGD takes the sign of every entry of the mean of c z: `zeroth_order_gradient` with `optax.scale_by_sign`.

    Args:
      loss_fn: as in `zo_sgd`.
      learning_rate: step size >= 0, or a schedule.
      epsilon: as in `zo_sgd`, > 0. Default 1e-3.
      num_directions: as in `zo_sgd`, >= 1. Default 1.
      two_sided: as in `zo_sgd`. Default True.
      distribution: as in `zo_sgd`. Default "normal".
      nonzero_fraction: as in `zo_sgd`, in (0, 1]. Default 1.
      axis_name: as in `zo_sgd`. Default None.

    Returns:
      `ZerothOrder(init, update)`, without state. Memory and collectives: those of `zo_sgd`.

    Raises:
      ValueError: a hyperparameter outside its range; when called, as `zeroth_order_gradient`.

    Example:
      >>> method, x = zo_sign_sgd(lambda x: jnp.sum(x**2) / 2, 0.5), jnp.array([1.0, -2.0])
      >>> z = jnp.array([[0.2, 0.4]])  # along which the loss falls
      >>> method.update(method.init(x), x, direction=z)[1].round(4).tolist()
      [0.10000000149011612, 0.20000000298023224]

    Reference: Feng et al. ZeroFlow: Overcoming Catastrophic Forgetting is Easier than You Think. 2025, arXiv
    2501.01045; the entries' sign is of Liu et al. signSGD via Zeroth-Order Oracle. 2019.
    """
    tx = optimizer(Method("zo_sign_sgd", learning_rate), scale_by_learning_rate(learning_rate))
    estimate = (epsilon, num_directions, two_sided, distribution, True, nonzero_fraction)
    return _around("zo_sign_sgd", loss_fn, tx, axis_name, *estimate)


def zo_conservative(
    loss_fn: Callable[..., Any],
    learning_rate: ScalarOrSchedule,
    *,
    epsilon: Scalar = 1e-3,
    num_directions: int = 1,
    two_sided: bool = True,
    distribution: str = "normal",
    nonzero_fraction: Scalar = 1.0,
    axis_name: Any = None,
) -> ZerothOrder:
    """ZO-SGD-Conserve: the best of no step, a step, and the opposite step.

        u = -learning_rate g,    g as in `zo_sgd`
        x <- the point among x, x + u, x - u with the smallest loss on the batch; x on a tie with it

    Args:
      loss_fn: as in `zo_sgd`.
      learning_rate: step size >= 0, or a schedule.
      epsilon: as in `zo_sgd`, > 0. Default 1e-3.
      num_directions: as in `zo_sgd`, >= 1. Default 1.
      two_sided: as in `zo_sgd`. Default True.
      distribution: as in `zo_sgd`. Default "normal".
      nonzero_fraction: as in `zo_sgd`, in (0, 1]. Default 1.
      axis_name: as in `zo_sgd`. Default None.

    Returns:
      `ZerothOrder(init, update)`: `gk.keep_best` around SGD; around another optimizer it is a link of its own. The
      loss on the batch never rises. State: one number, the metric `kept`. Three evaluations besides those of `zo_sgd`.

    Raises:
      ValueError: a hyperparameter outside its range; when called, as `zeroth_order_gradient`.

    Example:
      >>> method, x = zo_conservative(jnp.square, 2.0), jnp.array(1.0)  # to -3 or 5: both are worse
      >>> float(method.update(method.init(x), x, direction=jnp.ones(1))[1])
      0.0

    Reference: Feng et al. ZeroFlow: Overcoming Catastrophic Forgetting is Easier than You Think. 2025, arXiv
    2501.01045. Departures: those of `gk.keep_best`.
    """
    tx = keep_best(optimizer(Method("zo_conservative", learning_rate), scale_by_learning_rate(learning_rate)))
    estimate = (epsilon, num_directions, two_sided, distribution, False, nonzero_fraction)
    return _around("zo_conservative", loss_fn, tx, axis_name, *estimate)


def zo_adam(
    loss_fn: Callable[..., Any],
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    epsilon: Scalar = 1e-3,
    num_directions: int = 1,
    two_sided: bool = True,
    distribution: str = "normal",
    nonzero_fraction: Scalar = 1.0,
    axis_name: Any = None,
) -> ZerothOrder:
    """ZO-Adam: Adam on a zeroth-order gradient.

        m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2,    g as in `zo_sgd`
        x <- x - learning_rate m^ / (sqrt(v^) + eps),           m^, v^ with bias correction

    Args:
      loss_fn: as in `zo_sgd`.
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the first moment, in [0, 1). Default 0.9 (Adam).
      b2: decay of the second moment, in [0, 1). Default 0.999 (Adam).
      eps: added to the root, >= 0. Default 1e-8 (Adam).
      epsilon: as in `zo_sgd`, > 0. Default 1e-3.
      num_directions: as in `zo_sgd`, >= 1. Default 1.
      two_sided: as in `zo_sgd`. Default True.
      distribution: as in `zo_sgd`. Default "normal".
      nonzero_fraction: as in `zo_sgd`, in (0, 1]. Default 1.
      axis_name: as in `zo_sgd`. Default None.

    Returns:
      `ZerothOrder(init, update)`. State: 2 words per parameter. Memory and collectives: those of `zo_sgd`.

    Raises:
      ValueError: a hyperparameter outside its range; when called, as `zeroth_order_gradient`.

    Example:
      >>> method, x = zo_adam(lambda x: 3 * x, 0.5), jnp.array(1.0)
      >>> round(float(method.update(method.init(x), x, direction=jnp.ones(1))[1]), 4)  # the first step is a sign
      -0.5

    Reference: Feng et al. ZeroFlow: Overcoming Catastrophic Forgetting is Easier than You Think. 2025, arXiv
    2501.01045.
    """
    rule = scale_by_adam(b1=b1, b2=b2, eps=eps)
    tx = optimizer(Method("zo_adam", learning_rate), rule, scale_by_learning_rate(learning_rate))
    estimate = (epsilon, num_directions, two_sided, distribution, False, nonzero_fraction)
    return _around("zo_adam", loss_fn, tx, axis_name, *estimate)


def zo_adamm(
    loss_fn: Callable[..., Any],
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    epsilon: Scalar = 1e-3,
    num_directions: int = 1,
    two_sided: bool = True,
    distribution: str = "normal",
    nonzero_fraction: Scalar = 1.0,
    axis_name: Any = None,
) -> ZerothOrder:
    """ZO-AdaMM: AMSGrad on a zeroth-order gradient.

        m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2,    w <- max(w, v^),    g as in `zo_sgd`
        x <- x - learning_rate m^ / (sqrt(w) + eps),            m^, v^ with bias correction

    Args:
      loss_fn: as in `zo_sgd`.
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the first moment, in [0, 1). Default 0.9 (Adam).
      b2: decay of the second moment, in [0, 1). Default 0.999 (Adam).
      eps: added to the root, >= 0. Default 1e-8 (Adam).
      epsilon: as in `zo_sgd`, > 0. Default 1e-3.
      num_directions: as in `zo_sgd`, >= 1. Default 1.
      two_sided: as in `zo_sgd`. Default True.
      distribution: as in `zo_sgd`. Default "normal".
      nonzero_fraction: as in `zo_sgd`, in (0, 1]. Default 1.
      axis_name: as in `zo_sgd`. Default None.

    Returns:
      `ZerothOrder(init, update)`. State: 3 words per parameter. Memory and collectives: those of `zo_sgd`.

    Raises:
      ValueError: a hyperparameter outside its range; when called, as `zeroth_order_gradient`.

    Example:
      >>> method, x = zo_adamm(lambda x: 3 * x, 0.5), jnp.array(1.0)
      >>> round(float(method.update(method.init(x), x, direction=jnp.ones(1))[1]), 4)  # the first step is a sign
      -0.5

    Reference: Feng et al. ZeroFlow: Overcoming Catastrophic Forgetting is Easier than You Think. 2025, arXiv
    2501.01045; Chen et al. ZO-AdaMM: Zeroth-Order Adaptive Momentum Method for Black-Box Optimization. 2019, arXiv
    1910.06513. The inner rule is `optax.scale_by_amsgrad`.
    """
    checks.real("b1", b1, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    rule = _promoting(optax.scale_by_amsgrad(b1=b1, b2=b2, eps=eps))
    tx = optimizer(Method("zo_adamm", learning_rate), rule, scale_by_learning_rate(learning_rate))
    estimate = (epsilon, num_directions, two_sided, distribution, False, nonzero_fraction)
    return _around("zo_adamm", loss_fn, tx, axis_name, *estimate)


register(zo_sgd, form="program", paper=PAPER, golden=("second_shelf/zo_sgd", "second_shelf/zo_sgd_one_sided"))
register(zo_sign_sgd, form="program", paper=PAPER, golden=("second_shelf/zo_sign_sgd",))
register(zo_conservative, form="program", paper=PAPER, golden=("second_shelf/zo_conservative",))
register(zo_adam, form="program", paper=PAPER, golden=("second_shelf/zo_adam",))
register(zo_adamm, form="program", paper=PAPER)
