"""Momentum for gradients that are D steps old, as in a pipeline: spike compensation and weight prediction."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import as_arrays, increment, optimizer, scalar, transformation, zeros
from gradkit.leaves import Method, names
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.types import Mask, PyTree, Scalar, ScalarOrSchedule

PAPER = Paper(
    "Pipelined Backpropagation at Scale: Training Large Models without Batches", "Kosson et al.", 2020, "2003.11666"
)


class ScaleBySpikeCompensationState(NamedTuple):
    """The momentum v."""

    trace: Any


def delays_of(name: str, delay: Any, params: PyTree) -> Any:
    """One Python integer >= 0 per leaf, from one for all leaves or from a tree of them."""
    if not isinstance(delay, int | np.integer):
        if jax.tree.structure(delay) != jax.tree.structure(params):
            raise ValueError(
                f"{name}: delay must be an integer >= 0 or a tree like the parameters {names(params)}, got {delay!r}; "
                "write delay=1"
            )
        return jax.tree.map(lambda d: checks.integer("delay", d), delay)
    return jax.tree.map(lambda x: checks.integer("delay", delay), params)


def _check_delay(delay: Any) -> None:
    if isinstance(delay, str | float | bool | None) or not jax.tree.leaves(delay):
        raise ValueError(f"delay must be an integer >= 0, or a tree of them, got {delay!r}; write delay=1")
    for d in jax.tree.leaves(delay):
        checks.integer("delay", d)


def scale_by_spike_compensation(
    *, momentum: Scalar = 0.9, delay: int | optax.Params = 1
) -> optax.GradientTransformationExtraArgs:
    """Momentum that compensates for the delay of its gradients.

    Equations, with g_t the gradient at x_{t-D}, or at a prediction of x_t that was made from it:

        v <- m v + g_t
        u = a v + b g_t,    a = m^D,   b = (1 - m^D) / (1 - m)

    Args:
      momentum: m in [0, 1]. Default 0.9. With 1, b is D.
      delay: D >= 0, an integer, or a tree of integers like the parameters, as layers of a pipeline differ. Default
        1, which is Nesterov's momentum.

    Returns:
      A transformation. State: 1 word per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; a tree of delays that is not like the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, g = scale_by_spike_compensation(momentum=0.5, delay=2), jnp.array(1.0)
      >>> print(tx.update(g, tx.init(g))[0])  # 0.25 + 1.5
      1.75

    Reference: Kosson et al. Pipelined Backpropagation at Scale: Training Large Models without Batches. 2020, arXiv
    2003.11666. There is no public code.
    """
    checks.real("momentum", momentum, "[0, 1]")
    _check_delay(delay)

    def init(params: Any) -> ScaleBySpikeCompensationState:
        delays_of("scale_by_spike_compensation", delay, params)
        return ScaleBySpikeCompensationState(zeros(params))

    def update(updates: Any, state: ScaleBySpikeCompensationState, params: Any = None, **extra: Any) -> Any:
        del params, extra
        v = jax.tree.map(lambda v, g: scalar(momentum, v) * v + g, state.trace, updates)

        def compensated(v: jax.Array, g: jax.Array, D: int) -> jax.Array:
            a, b = _coefficients(momentum, D)
            return scalar(a, v) * v + scalar(b, g) * g

        delays = delays_of("scale_by_spike_compensation", delay, updates)
        return jax.tree.map(compensated, v, updates, delays), ScaleBySpikeCompensationState(v)

    return transformation("scale_by_spike_compensation", init, update, complex_leaves=True)


def _coefficients(m: Any, D: int) -> tuple[Any, Any]:
    """a = m^D and b = 1 + m + ... + m^(D-1), which needs no division by 1 - m."""
    if isinstance(m, int | float):
        return m**D, D if m == 1 else (1 - m**D) / (1 - m)
    m = jnp.asarray(m)
    one = m == 1
    return m**D, jnp.where(one, D, (1 - m**D) / jnp.where(one, 1, 1 - m))


def spike_compensation(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Scalar = 0.9,
    delay: int | optax.Params = 1,
    weight_decay: Scalar = 0.0,
    weight_decay_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD with momentum that compensates for the delay of its gradients.

    Equations, with g_t the gradient at x_{t-D}, or at a prediction of x_t that was made from it, plus weight_decay x:

        v <- m v + g_t
        x <- x - learning_rate (a v + b g_t),    a = m^D,   b = (1 - m^D) / (1 - m)

    What momentum would have done with g_t during the D steps of its delay is done at once. In the end a gradient moves
    x by 1 / (1 - m) of itself, whatever D is; D = 0 is momentum, D = 1 Nesterov's momentum. Stage s of S of a pipeline,
    counted from 0, has D = 2 (S - 1 - s). The paper's best combination computes the gradients at
    `linear_weight_prediction` of the horizon D as well.

    Args:
      learning_rate: step size >= 0, or a schedule.
      momentum: m in [0, 1]. Default 0.9.
      delay: D >= 0, an integer, or a tree of integers like the parameters. Default 1.
      weight_decay: coefficient of the L2 penalty, >= 0, added to the gradient, before the momentum (paper). Default 0.
      weight_decay_mask: which leaves are penalised. Default all.

    Returns:
      A transformation; with `weight_decay` it needs `params`. State: 1 word per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; a tree of delays that is not like the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, x = spike_compensation(0.1, momentum=0.5, delay=2), jnp.array(1.0)
      >>> print(tx.update(x, tx.init(x), x)[0])
      -0.175

    Reference: Kosson et al. Pipelined Backpropagation at Scale: Training Large Models without Batches. 2020, arXiv
    2003.11666.
    """
    return optimizer(
        Method("spike_compensation", learning_rate, weight_decay, weight_decay_mask),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_spike_compensation(momentum=momentum, delay=delay),
        scale_by_learning_rate(learning_rate),
    )


def linear_weight_prediction(params: PyTree, velocity: Any, step: Scalar, horizon: Any) -> Any:
    """The parameters `horizon` steps from now, if they go on moving as they do.

    Equations, with T the horizon:

        x^ = x - step T v                        step = learning_rate, v the momentum (`trace` of the state)
        x^ = x + T (x - x_before)                step = -1, velocity = x - x_before

    Args:
      params: x.
      velocity: v, a tree like the parameters.
      step: a number: the learning rate, with a velocity that points uphill.
      horizon: T >= 0, a number, or a tree of numbers like the parameters; usually the delay.

    Returns:
      The parameters at which the forward pass is made, of the same dtypes.

    Raises:
      ValueError: a negative horizon; trees that differ.

    Example:
      >>> print(linear_weight_prediction(jnp.array(1.0), jnp.array(2.0), 0.25, 3))
      -0.5

    Reference: Kosson et al. Pipelined Backpropagation at Scale: Training Large Models without Batches. 2020, arXiv
    2003.11666.
    """
    checks.arrays(params=params, velocity=velocity, step=step)
    params, velocity = as_arrays(params), as_arrays(velocity)
    for T in jax.tree.leaves(horizon):
        checks.real("horizon", T, "[0, inf)")
    if jax.tree.structure(horizon).num_leaves == 1 and jax.tree.structure(params) != jax.tree.structure(horizon):
        horizon = jax.tree.map(lambda x: horizon, params)

    def ahead(x: jax.Array, v: jax.Array, T: Any) -> jax.Array:
        return (x.astype(v.dtype) - scalar(step, v) * scalar(T, v) * v).astype(x.dtype)

    return jax.tree.map(ahead, params, velocity, horizon)


class StaleGradients(NamedTuple):
    """A simulated pipeline.

    Attributes:
      init: parameters -> history.
      value_and_grad: (parameters, history, *args) -> (value, gradient, history).
    """

    init: Callable[[Any], Any]
    value_and_grad: Callable[..., tuple[Any, Any, Any]]


class History(NamedTuple):
    """Steps made, and per leaf the last D + 1 parameters, along a leading axis."""

    count: jax.Array
    ring: Any

    exact_fields = ("ring",)


def stale_gradients(value_and_grad: Callable[..., tuple[Any, Any]], delay: int | optax.Params) -> StaleGradients:
    """Gradients at parameters that are some steps old, leaf by leaf, as a pipeline without flushing computes them.

    Equation, for a leaf of delay D:

        g_t = the gradient of minibatch t at x_{t-D}, and at the first parameters while t < D

    Args:
      value_and_grad: (parameters, *args) -> (value, gradient), as `jax.value_and_grad(loss_fn)` gives it.
      delay: D >= 0, an integer, or a tree of integers like the parameters.

    Returns:
      `StaleGradients`. Memory: D + 1 copies of each leaf. To predict weights, pass the prediction to the returned
      `value_and_grad`: the history records the parameters that it is called with.

    Raises:
      ValueError: an argument outside its range; a tree of delays that is not like the parameters.

    Example:
      >>> stale = stale_gradients(jax.value_and_grad(lambda x: x**2), 1)
      >>> history = stale.init(jnp.array(3.0))
      >>> for x in (3.0, 5.0, 7.0):
      ...     value, g, history = stale.value_and_grad(jnp.array(x), history)
      ...     print(g)
      6.0
      6.0
      10.0

    Reference: Kosson et al. Pipelined Backpropagation at Scale: Training Large Models without Batches. 2020, arXiv
    2003.11666. The gradient of a step is taken at the old parameters; forward and backward passes of a pipeline
    at different parameters (inconsistent weights) are not simulated.
    """
    checks.function("value_and_grad", value_and_grad)
    _check_delay(delay)

    def init(params: Any) -> History:
        params = as_arrays(params)
        delays = delays_of("stale_gradients", delay, params)
        ring = jax.tree.map(lambda x, D: jax.lax.broadcast(x, (D + 1,)), params, delays)
        return History(jnp.zeros((), jnp.int32), ring)

    def stale(params: Any, history: History, *args: Any) -> tuple[Any, Any, History]:
        delays = delays_of("stale_gradients", delay, params)
        t = history.count

        def put(ring: jax.Array, x: jax.Array, D: int) -> jax.Array:
            return jax.lax.dynamic_update_index_in_dim(ring, x, t % (D + 1), 0)

        def old(ring: jax.Array, D: int) -> jax.Array:
            return jax.lax.dynamic_index_in_dim(ring, (t + 1) % (D + 1), 0, keepdims=False)

        ring = jax.tree.map(put, history.ring, as_arrays(params), delays)
        value, g = value_and_grad(jax.tree.map(old, ring, delays), *args)
        return value, g, History(increment(t), ring)

    return StaleGradients(init, stale)


def scale_hyperparameters(
    hparams: Mapping[str, Any], batch_size: Scalar, reference_batch_size: Scalar
) -> dict[str, Any]:
    """Learning rate and momentum at another batch size, so that every example has the same effect.

    Equations, with N and N_r the two batch sizes, and the index r for values at the reference:

        m = m_r^{N / N_r}
        learning_rate = learning_rate_r (1 - m) N / ((1 - m_r) N_r)

    Args:
      hparams: a mapping with `learning_rate` and `momentum` (in [0, 1)) at the reference; other entries are copied.
      batch_size: N > 0.
      reference_batch_size: N_r > 0.

    Returns:
      A new dictionary.

    Raises:
      ValueError: a value outside its range, or missing.

    Example:
      >>> new = scale_hyperparameters({"learning_rate": 0.1, "momentum": 0.9}, 1, 128)
      >>> round(new["momentum"], 6), round(new["learning_rate"], 10)
      (0.999177, 6.428e-06)

    Reference: Kosson et al. Pipelined Backpropagation at Scale: Training Large Models without Batches. 2020, arXiv
    2003.11666.
    """
    checks.mapping(hparams=hparams)
    missing = {"learning_rate", "momentum"} - set(hparams)
    if missing:
        raise ValueError(
            f"scale_hyperparameters: hparams must have {sorted(missing)}, got {sorted(hparams)}; write "
            '{"learning_rate": 0.1, "momentum": 0.9}'
        )
    m_r, rate = hparams["momentum"], hparams["learning_rate"]
    checks.real("momentum", m_r, "[0, 1)")
    checks.real("learning_rate", rate, "[0, inf)")
    checks.real("batch_size", batch_size, "(0, inf)")
    checks.real("reference_batch_size", reference_batch_size, "(0, inf)")
    kappa = batch_size / reference_batch_size
    m = m_r**kappa
    return {**hparams, "momentum": m, "learning_rate": rate * (1 - m) * kappa / (1 - m_r)}


register(scale_by_spike_compensation, form="primitive", paper=PAPER, words=1, example={"delay": 2})
register(spike_compensation, form="optimizer", paper=PAPER, words=1, example={"delay": 2}, race=Race(1e-2))
register(
    linear_weight_prediction,
    form="function",
    paper=PAPER,
    example={"params": 1.0, "velocity": 1.0, "step": 0.1, "horizon": 2},
)
register(stale_gradients, form="program", paper=PAPER)
register(
    scale_hyperparameters,
    form="function",
    paper=PAPER,
    example={"hparams": {"learning_rate": 0.1, "momentum": 0.9}, "batch_size": 1, "reference_batch_size": 128},
)
