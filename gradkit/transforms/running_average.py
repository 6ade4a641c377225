"""A running average of the iterates of a run, which does not change the run."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import cast, increment, inside, transformation, zeros
from gradkit.engine.mismatches import check_fit
from gradkit.leaves import Method
from gradkit.transforms.evaluation import eval_params
from gradkit.types import PyTree, Scalar

PAPER = Paper(
    "Stochastic Gradient Descent for Non-smooth Optimization: Convergence Results and Optimal Averaging Schemes",
    "Shamir, Zhang",
    2012,
    "1212.1824",
)


class IterateAverageState(NamedTuple):
    """Number of updates made, number of iterates in the mean, and the mean."""

    count: jax.Array
    averaged: jax.Array
    mean: Any

    exact_fields = ("mean",)  # parameters, which gk.precision(state=...) must not round

    def eval_params(self, params: Any) -> Any:
        """The mean, in the parameters' dtypes; the parameters while nothing is averaged."""
        return jax.tree.map(lambda x, m: jnp.where(self.averaged == 0, x, m.astype(x.dtype)), params, self.mean)


def include(mean: jax.Array, x: jax.Array, share: Any) -> jax.Array:
    """(1 - share) mean + share x.

    >>> include(jnp.array(1.0), jnp.array(3.0), 0.5).item()
    2.0
    """
    return mean + share * (x - mean)


def average_iterates(
    method: str,
    share: Callable[[jax.Array, jax.Array], Any],
    *,
    start: int = 0,
    from_first: bool = True,
    before_step: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The link that all averages are built from: it must be the last of a chain, since it averages parameters plus
    updates.

    Args:
      method: the public name, for messages.
      share: (number of iterates in the mean, this one included; leaf) -> weight c, in the dtype of the leaf.
      start: the first step (from 0) whose iterate is averaged.
      from_first: whether the mean starts at the parameters before the first averaged step, or at 0, for weights that
        start with 1.
      before_step: whether the parameters from before every step are averaged, one step behind.
    """

    def init(params: optax.Params) -> IterateAverageState:
        return IterateAverageState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), zeros(params))

    def update(updates: Any, state: IterateAverageState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        check_fit(method, params, state.mean)
        on = state.count >= start
        n = jnp.where(on, increment(state.averaged), state.averaged)

        def followed(m: jax.Array, x: jax.Array, u: jax.Array) -> jax.Array:
            if from_first:
                m = jnp.where(state.averaged == 0, x, m)
            newest = x if before_step else x + u
            return jnp.where(on, include(m, newest, share(jnp.maximum(n, 1), x)), m)

        mean = jax.tree.map(followed, state.mean, params, updates)
        return updates, IterateAverageState(increment(state.count), n, mean)

    return transformation(method, init, update, needs_params=True, complex_leaves=True)


def share_of(name: str, weight: Callable[[Any], Any], t: jax.Array, like: jax.Array) -> jax.Array:
    """The weight of the newest iterate at step t = 1, 2, ..., in the dtype of a leaf."""
    share = jnp.asarray(checks.scalar(f"the value of {name}", weight(t.astype(like.real.dtype))))
    return cast(share, like.dtype)


def _averaged(
    method: str, inner: optax.GradientTransformation, share: Callable[[jax.Array, jax.Array], Any]
) -> optax.GradientTransformationExtraArgs:
    chain = optax.chain(inside(inner), average_iterates(method, share))
    return transformation(
        method, chain.init, chain.update, needs_params=True, complex_leaves=True, described=Method(method)
    )


def running_average(
    inner: optax.GradientTransformation, weight: Callable[[Any], Any]
) -> optax.GradientTransformationExtraArgs:
    """Any optimizer, with a running average of its iterates as evaluation parameters.

    Equations, with the parameters x_{t+1} after step t = 1, 2, ..., and the weight c_t = weight(t) of the newest one:

        mean_t = (1 - c_t) mean_{t-1} + c_t x_{t+1},        mean_0 = x_1

    Every average of iterates of this package is this one with its own weights: 1 / t is the plain mean, 1 - d a running
    mean, (1 + gamma) / (t + gamma) the polynomial decay. The average is of the NEW iterates, parameters plus update, so
    this must be the outermost transformation. Read it with `gk.eval_params(state, params)` or `gk.averaged_params`;
    every loop does.

    Args:
      inner: any optimizer.
      weight: t = 1, 2, ... (as a floating point number) -> the weight of the newest iterate in the average, in [0, 1].
        `lambda t: 1 / t` is the plain mean of all.

    Returns:
      A transformation that needs `params`. The average is in float32, or wider where parameters are. State: 1 word per
      parameter, two counters, and the inner state. Elementwise: no collective.

    Raises:
      ValueError: `weight` is not a function; `inner` is not a transformation; `params` missing.

    Example:
      >>> tx, x = running_average(optax.sgd(1.0), lambda t: 1 / t), jnp.array(0.0)
      >>> state = tx.init(x)
      >>> for g in (-1.0, -2.0):
      ...     u, state = tx.update(jnp.array(g), state, x)
      ...     x = x + u
      >>> x.item(), averaged_params(state, x).item()  # the mean of 1 and 3
      (3.0, 2.0)

    Reference: Shamir, Zhang. Stochastic Gradient Descent for Non-smooth Optimization: Convergence Results and Optimal
    Averaging Schemes. 2012, arXiv 1212.1824.
    """
    checks.function("weight", weight)
    return _averaged("running_average", inner, lambda n, x: share_of("weight", weight, n, x))


def polynomial_decay_average(
    inner: optax.GradientTransformation, *, gamma: Scalar = 8.0
) -> optax.GradientTransformationExtraArgs:
    """Any optimizer, with an average of its iterates in which late ones count more.

    Equations:

        mean_t = (1 - c_t) mean_{t-1} + c_t x_{t+1}
        c_t = (1 + gamma) / (t + gamma),    t = 1, 2, ...

    The weight of an iterate grows as the gamma-th power of its number. `gk.polynomial_decay_average(gk.dog())` is what
    the paper of DoG evaluates. Read it with `gk.eval_params(state, params)` or `gk.averaged_params`; every loop does.

    Args:
      inner: any optimizer.
      gamma: >= 0. Default 8 (DoG). With 0 it is the plain mean of all iterates.

    Returns:
      A transformation that needs `params`. The average is in float32, or wider where parameters are. State: 1 word per
      parameter, two counters, and the inner state. Elementwise: no collective.

    Raises:
      ValueError: `gamma` outside its range; `inner` is not a transformation; `params` missing.

    Example:
      >>> tx, x = polynomial_decay_average(optax.sgd(1.0), gamma=1.0), jnp.array(0.0)
      >>> state = tx.init(x)
      >>> for g in (-3.0, -3.0):
      ...     u, state = tx.update(jnp.array(g), state, x)
      ...     x = x + u
      >>> x.item(), round(averaged_params(state, x).item(), 4)  # 3 / 3 + 6 * 2 / 3
      (6.0, 5.0)

    Reference: Shamir, Zhang. Stochastic Gradient Descent for Non-smooth Optimization: Convergence Results and Optimal
    Averaging Schemes. 2012, arXiv 1212.1824; gamma and the form are those of Ivgi, Hinder, Carmon. DoG is SGD's Best
    Friend. 2023, arXiv 2302.12022.
    """
    checks.real("gamma", gamma, "[0, inf)")

    def weight(t: jax.Array) -> jax.Array:
        own = jnp.asarray(gamma).astype(t.dtype)
        return (1 + own) / (t + own)

    return _averaged("polynomial_decay_average", inner, lambda n, x: share_of("gamma", weight, n, x))


def averaged_params(state: Any, params: PyTree) -> Any:
    """The running average of the iterates, found in the state of any chain or wrapper.

    Args:
      state: of a transformation with an average: `gk.running_average`, `gk.polynomial_decay_average`,
        `gk.polyak_average` or `gk.params_ema`.
      params: the current parameters, whose dtypes the average is given in.

    Returns:
      The average; the parameters before the first step. `gk.eval_params` gives the same, and the parameters where
      there is no average.

    Raises:
      ValueError: the state has no average.

    Example:
      >>> x = jnp.array(2.0)
      >>> tx = polynomial_decay_average(optax.sgd(1.0))
      >>> averaged_params(tx.init(x), x).item()
      2.0

    Reference: This library. 2026.
    """
    checks.arrays(params=params)
    nodes = jax.tree.leaves(
        state, is_leaf=lambda node: isinstance(node, IterateAverageState) or hasattr(node, "decoded")
    )
    if not any(isinstance(node, IterateAverageState) or hasattr(node, "decoded") for node in nodes):
        raise ValueError(
            "averaged_params: the state has no running average of the iterates; write "
            "gk.polynomial_decay_average(inner), or gk.polyak_average() as the last link of the chain"
        )
    return eval_params(state, params)


register(
    running_average,
    form="wrapper",
    paper=PAPER,
    words=1,
    example={"weight": lambda t: 2 / (t + 1)},
    notes="read with gk.averaged_params or gk.eval_params",
)
register(
    polynomial_decay_average,
    form="wrapper",
    paper=PAPER,
    words=1,
    golden=("step_size/dog", "step_size/ldog", "step_size/dog_init_eta"),
    # As the paper of DoG evaluates it.
    variants={f"averaged_{name}": Race(None, schedule=None, around=name) for name in ("dog", "ldog", "a_dog")},
    notes="read with gk.averaged_params or gk.eval_params",
)
