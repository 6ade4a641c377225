"""One run of one method on one workload, as pure functions: what sweeps, races and `gradkit train` repeat.

A seed fixes the first parameters and every minibatch, whatever the method: runs with the same seed are
paired, and the batch of step t does not depend on how steps are grouped into programs.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import catalogue
from gradkit.gradients import gradient_moments, microbatch
from gradkit.leaves.recording import Link, links_of
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


def needs_of(tx: optax.GradientTransformation, params: Any) -> tuple[str, ...]:
    """The extra arguments that the links of a transformation cannot do without, as their cards say.

    An optimizer answers for the links that it is made of: it may hand one of them what that link needs.
    """
    cards = catalogue.cards()

    def needs(link: Link) -> Iterator[str]:
        card = cards.get(link.method.name)
        yield from card.needs if card else ()
        if not (card and link.complete):
            for inner in link.links:
                yield from needs(inner)

    return tuple(dict.fromkeys(name for link in links_of(tx, params) for name in needs(link)))


def _source(workload: Workload, microbatches: int, needs: tuple[str, ...]) -> Callable[[Any, Any], Any]:
    """(params, batch) -> (value, gradient, what was measured of the parts of the batch)."""
    whole = workload.batch_size is None  # no examples: all parts are the same
    if "grad_moments" in needs and not whole:
        measured = gradient_moments(workload.loss, max(2, microbatches))

        def with_moments(params: Any, batch: Any) -> Any:
            value, moments = measured(params, batch)
            grads = jax.tree.map(lambda g, p: g.astype(p.dtype), moments.mean, params)
            return value, grads, {"grad_moments": moments}

        return with_moments
    plain = jax.value_and_grad(workload.loss) if microbatches == 1 else microbatch(workload.loss, microbatches)

    def without(params: Any, batch: Any) -> Any:
        value, grads = plain(params, batch)
        found: dict[str, Any] = {}
        if "grad_moments" in needs:
            found["grad_moments"] = grads, jax.tree.map(jnp.square, grads)
        if "grads_a" in needs:
            for name, first in (("grads_a", 0), ("grads_b", 1)):
                part = batch if whole else jax.tree.map(lambda x, i=first: x[i::2], batch)
                found[name] = jax.grad(workload.loss)(params, part)
        return value, grads, found

    return without


def step_function(
    workload: Workload,
    tx: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    place: Callable[[Any], Any] = lambda batch: batch,
    needs: tuple[str, ...] = (),
) -> Callable[[Run], tuple[Run, jax.Array]]:
    """One training step, Run -> (Run, loss of its minibatch).

    The method is offered every cheap extra argument: `value`, `value_fn`, `grad_fn`, `hvp_fn`, `key`, and `model_fn`
    with `targets` where the workload says what it predicts. A function that nobody calls costs nothing once compiled.
    Measurements of parts of the minibatch are made where the card of a link, in any wrapper, says that it needs
    them.

    Args:
      workload: the problem.
      tx: the method.
      microbatches: parts in which a minibatch is computed, one after another; must divide it.
      place: minibatch -> the same, where it should lie on a mesh.
      needs: what is measured besides what the cards of the links ask for: "grad_moments" (over the microbatches;
        over two halves where there are none), "grads_a" (with "grads_b").
    """
    params = jax.eval_shape(lambda: first_params(workload, jnp.zeros((), jnp.uint32)))
    source = _source(workload, microbatches, (*needs_of(tx, params), *needs))
    tx = optax.with_extra_args_support(tx)

    def step(run: Run) -> tuple[Run, jax.Array]:
        key = jax.random.fold_in(run.key, run.step)
        batch = place(workload.batch(key))

        def value_fn(params: Any) -> jax.Array:
            return workload.loss(params, batch) if microbatches == 1 else source(params, batch)[0]

        def grad_fn(params: Any) -> Any:
            return source(params, batch)[1]

        def hvp_fn(vector: Any) -> Any:
            return jax.jvp(grad_fn, (run.params,), (vector,))[1]

        value, grads, measured = source(run.params, batch)
        extra = {"value": value, "value_fn": value_fn, "grad_fn": grad_fn, "hvp_fn": hvp_fn}
        extra |= measured
        if workload.predictions is not None:
            extra["model_fn"], extra["targets"] = workload.predictions(batch)
        updates, opt_state = tx.update(grads, run.opt_state, run.params, key=jax.random.fold_in(key, 1), **extra)
        params = optax.apply_updates(run.params, updates)
        return Run(run.step + 1, params, opt_state, run.key), value

    return step
