"""One run of one method on one workload, as pure functions: what sweeps, races and `gradkit train` repeat.

A seed fixes the first parameters and every minibatch, whatever the method: runs with the same seed are
paired, and the batch of step t does not depend on how steps are grouped into programs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit.training.forms import joined
from gradkit.training.one_step import needs_of, one_step
from gradkit.training.statistics import statistics_over
from gradkit.transforms import eval_params
from gradkit.types import PyTree
from gradkit.workloads import Workload

# Minibatches over which running moments are computed anew, where the evaluation parameters are others.
STATISTICS_BATCHES = 8


class Run(NamedTuple):
    """Where a run stands: step to be made next, parameters, state of the method, key of its minibatches, and what the
    model keeps besides parameters."""

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array
    model_state: Any = None


def first_params(workload: Workload, seed: jax.Array) -> Any:
    """The parameters that a seed starts from."""
    return workload.init(jax.random.fold_in(jax.random.key(seed), 0))


def first_model_state(workload: Workload, seed: jax.Array) -> Any:
    """The model state that a seed starts from; None where the workload has none."""
    return None if workload.model_state is None else workload.model_state(jax.random.fold_in(jax.random.key(seed), 0))


def start(params: PyTree, tx: optax.GradientTransformation, seed: jax.Array, model_state: Any = None) -> Run:
    """The beginning of a run."""
    return Run(jnp.zeros((), jnp.int32), params, tx.init(params), first_key(seed), model_state)


def first_key(seed: jax.Array) -> jax.Array:
    """The key of the minibatches of a seed."""
    return jax.random.fold_in(jax.random.key(seed), 1)


def measured(workload: Workload, run: Run, point: Any = None) -> jax.Array:
    """The metric of a run: at the parameters that the method evaluates, or at others, with statistics of them."""
    metric: Callable[..., jax.Array] = workload.metric
    point = eval_params(run.opt_state, run.params) if point is None else point
    if workload.model_state is None:
        return metric(point)
    model_state, key = run.model_state, jax.random.fold_in(jax.random.fold_in(run.key, run.step), 2)
    if point is not run.params:
        loss: Callable[..., Any] = workload.loss

        def apply(state: Any, batch: Any) -> Any:
            return loss(point, state, batch)[1]

        def draw(i: jax.Array) -> Any:
            return workload.batch(jax.random.fold_in(key, i))

        model_state = statistics_over(apply, model_state, draw, STATISTICS_BATCHES)
    return metric(point, model_state)


def check_source(workload: Workload, tx: optax.GradientTransformation) -> None:
    """Refuses a chain that aggregates the gradients of tasks or examples that a workload does not have.

    Raises:
      ValueError: a workload of one task, or one whose batch has no examples to count.
    """
    needs = needs_of(tx, jax.eval_shape(lambda: first_params(workload, jnp.zeros((), jnp.uint32))))
    if "task_gradients" in needs and workload.losses is None:
        raise ValueError(
            f"the chain aggregates the gradients of several tasks, and the workload {workload.name} has one loss: take "
            "a workload with `losses`, such as multitask, or leave the aggregator out"
        )
    if "example_gradients" in needs and workload.batch_size is None:
        raise ValueError(
            f"the chain aggregates the gradients of examples, and a batch of the workload {workload.name} has none to "
            "count: take a workload with a batch_size, or leave the aggregator out"
        )


def step_function(
    workload: Workload,
    tx: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    place: Callable[[Any], Any] = lambda batch: batch,
    needs: tuple[str, ...] = (),
) -> Callable[[Run], tuple[Run, jax.Array]]:
    """One training step, Run -> (Run, loss of its minibatch).

    The method is offered every cheap extra argument (`gradkit.engine.extras`), `model_fn` and `targets` where
    the workload says what it predicts; measurements of parts of the minibatch where the card of a link, in any wrapper,
    says that it needs them.

    Args:
      workload: the problem.
      tx: the method.
      microbatches: parts in which a minibatch is computed, one after another; must divide it.
      place: minibatch -> the same, placed as it should be on a mesh.
      needs: what is made besides what the cards of the links ask for: "grad_moments" (over the microbatches; over two
        halves where there are none), "grads_a" (with "grads_b").
    """
    params = jax.eval_shape(lambda: first_params(workload, jnp.zeros((), jnp.uint32)))
    needs = tuple(dict.fromkeys((*needs_of(tx, params), *needs)))
    of_workload: Any = workload.losses if "task_gradients" in needs else workload.loss
    check_source(workload, tx)

    has_state = workload.model_state is not None

    def step(run: Run) -> tuple[Run, jax.Array]:
        def loss(params: Any, batch: Any, index: Any = None) -> Any:
            del index
            return of_workload(params, run.model_state, batch) if has_state else of_workload(params, batch)

        key = jax.random.fold_in(run.key, run.step)
        batch = place(workload.batch(key))
        made = one_step(
            loss,
            tx,
            run.params,
            run.opt_state,
            batch,
            needs=needs,
            key=jax.random.fold_in(key, 1),
            has_aux=has_state,
            microbatches=microbatches,
            predictions=None if workload.predictions is None else workload.predictions(batch),
            examples=workload.batch_size is not None,
        )
        model_state = joined(made.aux) if has_state and made.stacked else made.aux
        return Run(run.step + 1, made.params, made.opt_state, run.key, model_state), made.value

    return step
