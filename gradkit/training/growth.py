"""A batch that grows while a run goes on: the norm test of AdAdaGrad as a link in front of any chain.

The link changes no gradient. It counts steps, and keeps how many microbatches the next steps should have: being part
of the state of the chain, that is saved with it, and a run that is started again goes on with the batch it had.
"""

from typing import Any

import optax

from gradkit import checks
from gradkit.batches import norm_test_controller
from gradkit.batches.adadagrad import BatchState
from gradkit.types import Scalar


def allowed_sizes(batch: int, microbatch: int, max_batch: Any) -> tuple[int, ...]:
    """Numbers of microbatches from the first batch to the largest, each twice the one before.

    Raises:
      ValueError: a first batch of one microbatch, which shows no noise; a largest that is no doubling of the first.

    >>> allowed_sizes(64, 32, 256)
    (2, 4, 8)
    """
    checks.integer("max_batch", max_batch, 1)
    if batch < 2 * microbatch:
        raise ValueError(
            f"microbatch must be half of the batch or less where the batch grows, got {microbatch} of {batch}: the "
            "norm test compares microbatches"
        )
    sizes = [batch]
    while sizes[-1] < max_batch:
        sizes.append(2 * sizes[-1])
    if sizes[-1] != max_batch or len(sizes) < 2:
        raise ValueError(f"max_batch must be {batch} doubled once or more, got {max_batch}")
    return tuple(size // microbatch for size in sizes)


def growing_batch(
    allowed: tuple[int, ...], *, examples: int, eta: Scalar, test_interval: int
) -> optax.GradientTransformationExtraArgs:
    """The link. Its state is `BatchState`; `update` needs `grad_moments`.

    Args:
      allowed: numbers of microbatches, ascending.
      examples: in one microbatch.
      eta: relative error of the gradient that is allowed, > 0.
      test_interval: steps from test to test.
    """
    controller = norm_test_controller(allowed, examples=examples, eta=eta, test_interval=test_interval)

    def init(params: Any) -> BatchState:
        del params
        return controller.init()

    def update(
        updates: Any, state: Any, params: Any = None, *, grad_moments: Any = None, **extra: Any
    ) -> tuple[Any, BatchState]:
        del params, extra
        if grad_moments is None:
            raise ValueError("growing_batch needs the extra argument grad_moments: see gk.gradients.gradient_moments")
        return updates, controller.update(state, grad_moments)

    return optax.GradientTransformationExtraArgs(init, update)
