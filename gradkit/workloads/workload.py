"""What a workload is: a real problem, small enough for a laptop, with a target fixed in advance."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True, eq=False)
class Workload:
    """A training problem that methods race on. Every function is pure and runs under `jit` and `vmap`.

    Attributes:
      name: how `load` finds it.
      description: one line for tables and reports.
      init: key -> parameters, float32, under the names Flax gives.
      batch: key -> one minibatch; a full-batch problem returns the same data for every key.
      loss: (parameters, minibatch) -> scalar that is trained on; with a model state (parameters, model state,
        minibatch) -> (scalar, new model state).
      metric: parameters -> scalar that is judged; the target is reached when metric <= target. With a model state
        (parameters, model state) -> scalar.
      metric_name: what the metric is, with its unit.
      target: fixed in advance from the best tuned baseline.
      budget_steps: steps a run may take.
      eval_every: steps between two readings of the metric; divides the budget.
      separable: ratio of steps from which on two medians over five seeds count as different.
      losses: (parameters, minibatch) -> one loss per task, whose sum is `loss`; None with one task.
      batch_size: examples per minibatch, the leading axis of its leaves; None where a batch has no examples to count.
      predictions: minibatch -> (parameters -> predictions, targets), for methods that read the model and not its loss
        alone; up to a factor, `loss` is half the squared error ("mse") or the cross-entropy ("softmax_ce") of these,
        a mean over examples. None where the loss is of another kind.
      model_state: key -> what the model keeps besides parameters, such as the running moments of BatchNorm. None:
        nothing.
    """

    name: str
    description: str
    init: Callable[[jax.Array], Any]
    batch: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any], jax.Array]
    metric: Callable[[Any], jax.Array]
    metric_name: str
    target: float
    budget_steps: int
    eval_every: int
    separable: float
    losses: Callable[[Any, Any], jax.Array] | None = None
    batch_size: int | None = None
    predictions: Callable[[Any], tuple[Callable[[Any], jax.Array], jax.Array]] | None = None
    model_state: Callable[[jax.Array], Any] | None = None

    @property
    def num_tasks(self) -> int:
        """The number of losses."""
        losses = self.losses
        if losses is None:
            return 1
        return jax.eval_shape(lambda key: losses(self.init(key), self.batch(key)), jax.random.key(0)).shape[0]


def with_fixed_state(workload: Workload) -> Workload:
    """The workload without a model state: loss and metric at the one that it begins with."""
    make = workload.model_state
    if make is None:
        return workload
    loss: Callable[..., Any] = workload.loss
    metric: Callable[..., Any] = workload.metric
    first = lambda: make(jax.random.key(0))  # noqa: E731
    return dataclasses.replace(
        workload,
        loss=lambda params, batch: loss(params, first(), batch)[0],
        metric=lambda params: metric(params, first()),
        losses=None,
        model_state=None,
    )
