"""AdAdaGrad: AdaGrad on batches that grow by the norm test, among a few allowed sizes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.batches.norm_test import PAPER, example_variance, norm_test
from gradkit.catalogue import register
from gradkit.engine.core import increment, optimizer
from gradkit.leaves import Method
from gradkit.transforms import scale_by_learning_rate, scale_by_rss
from gradkit.types import Scalar, ScalarOrSchedule


class BatchState(NamedTuple):
    """The number of steps, and of microbatches that the next step should have: one of the allowed numbers."""

    count: jax.Array
    microbatches: jax.Array


class BatchController(NamedTuple):
    """A pair of pure functions.

    Attributes:
      init: () -> state, with the smallest allowed number.
      update: (state, grad_moments) -> state. `int(state.microbatches)` is the number for the next step.
    """

    init: Callable[[], BatchState]
    update: Callable[[BatchState, Any], BatchState]


class AdaptiveBatches(NamedTuple):
    """An optimizer and the controller of its batches.

    Attributes:
      optimizer: the transformation, which does not depend on the batch size.
      init: () -> state of the controller.
      update: (state, grad_moments) -> state of the controller.
    """

    optimizer: optax.GradientTransformationExtraArgs
    init: Callable[[], BatchState]
    update: Callable[[BatchState, Any], BatchState]


def norm_test_controller(
    allowed: Sequence[int], *, examples: int, replicas: int = 1, eta: Scalar = 0.1, test_interval: int = 1
) -> BatchController:
    """Decides with the norm test how many microbatches the next step has, for any optimizer.

    Equations: n_t and k_{t+1} of `adadagrad`.

    Args:
      allowed: numbers of microbatches (per replica), ascending; the last is the largest. There should be few, because
        each is one compiled program: 2, 4, 8, 16.
      examples: examples in one microbatch, >= 1.
      replicas: the number of replicas, each of which has as many microbatches, >= 1. Default 1. There must be at least
        two microbatches in all: one gradient has no variance.
      eta: relative error of the gradient that is allowed, > 0. Default 0.1 (official scripts).
      test_interval: steps from test to test, >= 1. Default 1.

    Returns:
      A pair (init, update), to be called in the compiled step or after it. `update(state, grad_moments)` takes what
      `gk.gradients.gradient_moments` returns. State: two int32 scalars. Collectives: one scalar where gradients are
      sharded.

    Raises:
      ValueError: an argument outside its range, numbers that do not ascend, a single microbatch.

    Example:
      >>> import gradkit as gk
      >>> controller = norm_test_controller([2, 4, 8], examples=1, eta=0.5)
      >>> batch = jnp.array([1.0, 3.0])  # variance 2, mean 2: 2 / (0.25 * 4) examples
      >>> _, moments = gk.gradients.gradient_moments(lambda x, b: jnp.mean(x * b), 2)(jnp.array(1.0), batch)
      >>> int(controller.update(controller.init(), moments).microbatches)
      2
      >>> controller = norm_test_controller([2, 4, 8], examples=1, eta=0.4)  # 3.1 examples
      >>> int(controller.update(controller.init(), moments).microbatches)
      4

    Reference: Lau, Liu, Kolar. AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods. 2024, arXiv
    2402.11215. The paper takes any number of examples; here few numbers are allowed, because the shape of a batch is
    compiled, and the variance is estimated from microbatches, whose gradients are computed anyway.
    """
    checks.sequence(allowed=allowed)
    checks.integer("examples", examples, 1)
    checks.integer("replicas", replicas, 1)
    checks.integer("test_interval", test_interval, 1)
    checks.real("eta", eta, "(0, inf)")
    numbers = list(allowed)
    for number in numbers:
        checks.integer("allowed", number, 1)
    if not numbers or numbers != sorted(set(numbers)):
        raise ValueError(f"allowed must be numbers of microbatches that ascend, got {allowed!r}")
    if numbers[0] * replicas < 2:
        raise ValueError(f"allowed must be two microbatches or more over all replicas, got {numbers[0]} of {replicas}")
    choices = np.asarray(numbers, np.int32)
    per_choice = examples * replicas

    def init() -> BatchState:
        return BatchState(jnp.zeros((), jnp.int32), jnp.asarray(choices[0]))

    def update(state: BatchState, grad_moments: Any) -> BatchState:
        count = increment(state.count)
        variance = example_variance(grad_moments, examples)
        needed = norm_test(
            grad_moments.mean,
            variance,
            batch_size=state.microbatches * per_choice,
            eta=eta,
            max_batch=max(int(choices[-1]) * per_choice, 2),
        )
        enough = jnp.asarray(choices) * per_choice >= needed
        smallest = jnp.asarray(choices)[jnp.where(enough.any(), jnp.argmax(enough), len(choices) - 1)]
        grown = jnp.maximum(state.microbatches, smallest)
        return BatchState(count, jnp.where(count % test_interval == 0, grown, state.microbatches))

    return BatchController(init, update)


def adadagrad(
    learning_rate: ScalarOrSchedule,
    *,
    allowed: Sequence[int] = (2, 4, 8, 16),
    examples: int = 32,
    replicas: int = 1,
    eta: Scalar = 0.1,
    test_interval: int = 1,
    norm: bool = False,
    initial_accumulator_value: Scalar = 1e-2,
) -> AdaptiveBatches:
    """AdaGrad, or AdaGrad-Norm, on batches that grow by the norm test.

    Equations, with g the mean gradient of step t, and V the summed variance of the gradient of one example, from the
    gradients of the microbatches:

        n_t     = V / (eta^2 |g|^2)                                     examples that the norm test asks for
        k_{t+1} = the smallest allowed k with k examples replicas >= n_t, the largest where there is none;
                  never below k_t
        x_{t+1} = x_t - learning_rate g / sqrt(initial_accumulator_value + sum of g^2)      AdaGrad

    The test is made every test_interval steps. Every allowed number is one compiled program.

    Args:
      learning_rate: step size >= 0, or a schedule.
      allowed: numbers of microbatches per replica, ascending; the last is the largest. Default 2, 4, 8, 16.
      examples: examples in one microbatch, >= 1. Default 32.
      replicas: the number of replicas, each of which has as many microbatches, >= 1. Default 1.
      eta: relative error of the gradient that is allowed, > 0. Default 0.1 (official scripts).
      test_interval: steps from test to test, >= 1. Default 1.
      norm: whether one sum of squares is kept for all coordinates (AdAdaGrad-Norm). Default False.
      initial_accumulator_value: sum of squares at the start, >= 0. Default 1e-2.

    Returns:
      `optimizer`, and `init` and `update` of the controller of `norm_test_controller`. State of the optimizer: 1 word
      per parameter, one scalar with `norm`; of the controller: two int32 scalars. Collectives: a scalar where
      gradients are sharded, one more with `norm`.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> import gradkit as gk
      >>> loss = lambda x, batch: jnp.mean((x - batch) ** 2)
      >>> batches = adadagrad(0.5, allowed=[2, 4], examples=2)
      >>> x, noise = jnp.array(1.0), jnp.array([1.0, -1.0] * 4)
      >>> state, sizes = batches.optimizer.init(x), batches.init()
      >>> for _ in range(3):
      ...     k = int(sizes.microbatches)
      ...     _, moments = gk.gradients.gradient_moments(loss, k)(x, noise[: 2 * k])
      ...     sizes = batches.update(sizes, moments)
      ...     updates, state = batches.optimizer.update(moments.mean, state, x)
      ...     x = x + updates
      >>> k, int(sizes.microbatches)
      (4, 4)

    Reference: Lau, Liu, Kolar. AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods. 2024, arXiv
    2402.11215.
    """
    checks.sequence(allowed=allowed)
    checks.choice("norm", norm, [True, False])
    checks.real("initial_accumulator_value", initial_accumulator_value, "[0, inf)")
    scaled = scale_by_rss(initial_accumulator_value=initial_accumulator_value, norm=norm, eps=0.0)
    controller = norm_test_controller(
        allowed, examples=examples, replicas=replicas, eta=eta, test_interval=test_interval
    )
    steps = optimizer(Method("adadagrad", learning_rate), scaled, scale_by_learning_rate(learning_rate))
    return AdaptiveBatches(steps, *controller)


register(
    norm_test_controller,
    form="controller",
    paper=PAPER,
    needs=("grad_moments",),
    collectives="norms",
    example={"allowed": (2, 4, 8), "examples": 4},
)
register(
    adadagrad,
    form="controller",
    paper=PAPER,
    needs=("grad_moments",),
    words=1,
    collectives="norms",
    example={"learning_rate": 0.1},
    notes="an optimizer, and a controller that any training loop can ask for the next number of microbatches",
)
