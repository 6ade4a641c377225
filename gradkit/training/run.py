"""One run of one method on one workload, as pure functions: what sweeps, races and `gradkit train` repeat.

A seed fixes the first parameters and every minibatch, whatever the method: runs with the same seed are
paired, and the batch of step t does not depend on how steps are grouped into programs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import catalogue
from gradkit.gradients import gradient_moments, microbatch
from gradkit.workloads import Workload


class Run(NamedTuple):
    """Where a run stands: step to be made next, parameters, state of the method, key of its minibatches."""

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array


def first_params(workload: Workload, seed: jax.Array) -> Any:
    """The parameters that a seed starts from."""
    return workload.init(jax.random.fold_in(jax.random.key(seed), 0))


def start(params: Any, tx: optax.GradientTransformation, seed: jax.Array) -> Run:
    """The beginning of a run."""
    return Run(jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.fold_in(jax.random.key(seed), 1))


def measurements(
    workload: Workload, tx: optax.GradientTransformation, parts: int
) -> Callable[[Any, Any], dict[str, Any]]:
    """(params, batch) -> the extra arguments that a method needs of the gradients of parts of the minibatch."""
    card = catalogue.cards().get(getattr(getattr(tx.init, "method", None), "name", ""))
    needs = card.needs if card else ()

    def measure(params: Any, batch: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "grad_moments" in needs:
            found["grad_moments"] = gradient_moments(workload.loss, parts)(params, batch)[1]
        if "grads_a" in needs:
            for name, first in (("grads_a", 0), ("grads_b", 1)):
                found[name] = jax.grad(workload.loss)(params, jax.tree.map(lambda x, i=first: x[i::2], batch))
        return found

    return measure


def step_function(
    workload: Workload,
    tx: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    place: Callable[[Any], Any] = lambda batch: batch,
) -> Callable[[Run], tuple[Run, jax.Array]]:
    """One training step, Run -> (Run, loss of its minibatch).

    The method is offered every cheap extra argument: `value`, `value_fn`, `grad_fn`, `hvp_fn`, `key`. A
    function that nobody calls costs nothing once compiled. Measurements of parts of the minibatch are made where the
    card of the method says that it needs them.

    Args:
      workload: the problem.
      tx: the method.
      microbatches: parts in which a minibatch is computed, one after another; must divide it.
      place: minibatch -> the same, where it should lie on a mesh.
    """
    tx = optax.with_extra_args_support(tx)
    measure = measurements(workload, tx, max(2, microbatches))
    source = jax.value_and_grad(workload.loss) if microbatches == 1 else microbatch(workload.loss, microbatches)

    def step(run: Run) -> tuple[Run, jax.Array]:
        key = jax.random.fold_in(run.key, run.step)
        batch = place(workload.batch(key))

        def value_fn(params: Any) -> jax.Array:
            return workload.loss(params, batch) if microbatches == 1 else source(params, batch)[0]

        def grad_fn(params: Any) -> Any:
            return source(params, batch)[1]

        def hvp_fn(vector: Any) -> Any:
            return jax.jvp(grad_fn, (run.params,), (vector,))[1]

        value, grads = source(run.params, batch)
        extra = {"value": value, "value_fn": value_fn, "grad_fn": grad_fn, "hvp_fn": hvp_fn}
        extra |= measure(run.params, batch)
        updates, opt_state = tx.update(grads, run.opt_state, run.params, key=jax.random.fold_in(key, 1), **extra)
        params = optax.apply_updates(run.params, updates)
        return Run(run.step + 1, params, opt_state, run.key), value

    return step
