"""A training problem of one's own, for races, sweeps and `inspect`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.workloads.networks import sample
from gradkit.workloads.workload import Workload


def problem(
    init: Callable[[jax.Array], Any] | Any,
    loss: Callable[..., Any],
    batches: Callable[[jax.Array], Any] | Any,
    metric: Callable[..., jax.Array],
    target: float,
    *,
    batch_size: int | None = None,
    steps: int = 1000,
    eval_every: int | None = None,
    name: str = "problem",
    description: str | None = None,
    metric_name: str = "metric",
    predictions: Callable[[Any], tuple[Callable[[Any], jax.Array], jax.Array]] | None = None,
    model_state: Callable[[jax.Array], Any] | Any = None,
    losses: Callable[..., Any] | None = None,
) -> Workload:
    """A problem for `gk.training.race`, `gk.training.sweep` and the command line (`--problem=FILE.py`).

    Every function runs under `jit` and `vmap`.

    Args:
      init: key -> parameters; or parameters, from which every seed then starts.
      loss: (parameters, minibatch) -> scalar, a mean over the minibatch. For a module of Flax,
        `lambda params, batch: my_loss(model.apply({"params": params}, batch["x"]), batch["y"])`.
      batches: key -> minibatch; or arrays with a leading axis of examples, of which `batch_size` are drawn at every
        step, with replacement, or all of them where that is None.
      metric: parameters -> scalar that is judged, such as the loss on held-out examples; lower is better. It is read at
        the parameters that a method means for evaluation (`gk.eval_params`).
      target: the run has arrived where the metric is at or below it.
      batch_size: examples per minibatch, >= 1; of batches that are a function, how many it returns. None: the batch has
        no examples that could be divided into parts.
      steps: that a run may take, >= 1. Default 1000.
      eval_every: steps between two readings of the metric; divides `steps`. Default: a fiftieth of them, as nearly as
        divides.
      name: in tables and files.
      description: one line for reports. Default: the name.
      metric_name: in tables.
      predictions: minibatch -> (parameters -> predictions, targets), for Gauss-Newton methods, see `Workload`.
      model_state: key -> what the model keeps besides parameters, such as the running moments of BatchNorm; or a tree
        of arrays. The loss is then (parameters, model state, minibatch) -> (scalar, new model state), and the metric
        (parameters, model state) -> scalar. Where a method evaluates at other parameters than it trains, the metric
        gets running moments that were computed anew, over a few minibatches. Default None.
      losses: as `loss`, with one loss per task in a vector, for methods that aggregate the gradients of tasks; `loss`
        is its sum. Default None: one task.

    Returns:
      A `Workload`.

    Raises:
      ValueError: an argument of the wrong kind or outside its range.

    Example:
      >>> x = jnp.arange(8.0)[:, None] / 8
      >>> mine = problem(
      ...     {"w": jnp.zeros(1)},
      ...     lambda params, batch: jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2),
      ...     (x, 2 * x[:, 0]),
      ...     metric=lambda params: jnp.abs(params["w"][0] - 2),
      ...     target=0.01,
      ...     batch_size=4,
      ...     steps=100,
      ... )
      >>> mine.eval_every, mine.batch(jax.random.key(0))[0].shape
      (2, (4, 1))
    """
    for word, function in (("loss", loss), ("metric", metric)):
        checks.function(word, function)
    checks.real("target", target)
    checks.integer("batch_size", batch_size, 1, optional=True)
    checks.integer("steps", steps, 1)
    checks.integer("eval_every", eval_every, 1, optional=True)
    start, draw, state = init, batches, model_state
    if model_state is not None and not callable(model_state):
        state = _fixed(model_state)
    if not callable(init):
        start = _fixed(init)
    if not callable(batches):
        draw = _fixed(batches) if batch_size is None else _drawn(batches, batch_size)
    if eval_every is None:
        eval_every = max(n for n in range(1, max(1, steps // 50) + 1) if steps % n == 0)
    return Workload(
        name=name,
        description=name if description is None else description,
        init=start,
        batch=draw,
        loss=loss,
        metric=metric,
        metric_name=metric_name,
        target=float(target),
        budget_steps=steps,
        eval_every=eval_every,
        separable=1.5,
        batch_size=batch_size,
        predictions=predictions,
        model_state=state,
        losses=losses,
    )


def _fixed(tree: Any) -> Callable[[jax.Array], Any]:
    arrays = jax.tree.map(jnp.asarray, tree)
    return lambda key: arrays


def _drawn(examples: Any, batch_size: int) -> Callable[[jax.Array], Any]:
    arrays = jax.tree.map(jnp.asarray, examples)
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(arrays)}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(f"batches must be arrays with one leading axis of examples, got lengths {sorted(lengths)}")
    return lambda key: sample(key, arrays, batch_size)
