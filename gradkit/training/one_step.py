"""One training step, as every loop makes it: loss, gradient, measurements, extra arguments, update.

    value, grads           source(loss)(params, batch)
    extra                  gradkit.engine.extras.offered, as the links of tx need it
    updates, opt_state     tx.update(grads, opt_state, params, **extra)
    params                 params + updates

`make_train_step`, `train`, `sweep`, `race` and the tests of the contract call `one_step`; `inspect` compiles its last
two lines.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import catalogue
from gradkit.engine.extras import GradientMoments, Minibatch, missing, offered
from gradkit.engine.keys import next_key
from gradkit.gradients import LazyGradients, example_gradients, gradient_moments, microbatch, task_gradients
from gradkit.leaves.recording import Link, links_of
from gradkit.types import Key, PyTree


class Stepped(NamedTuple):
    """What a step leaves behind.

    Attributes:
      params: the new parameters.
      opt_state: the new state of the transformation.
      updates: what was added to the parameters.
      value: the loss at the parameters before.
      aux: what the loss returned besides, None without.
      stacked: whether the aux has a leading axis of microbatches or examples.
      losses: where there are several tasks, the loss of each.
    """

    params: Any
    opt_state: Any
    updates: Any
    value: jax.Array
    aux: Any
    stacked: bool
    losses: Any = None


def needs_of(tx: optax.GradientTransformation, params: PyTree) -> tuple[str, ...]:
    """The extra arguments that the links of a transformation cannot do without, as their cards say; with
    "task_gradients" or "example_gradients" where a link is an aggregator of those.

    An optimizer answers for the links that it is made of: it may hand one of them what that link needs.
    """
    cards = catalogue.cards()

    def needs(link: Link) -> Iterator[str]:
        card = cards.get(link.method.name)
        yield from card.needs if card else ()
        if link.method.gradients_of:
            yield "task_gradients" if link.method.gradients_of == "tasks" else "example_gradients"
        if not (card and link.complete):
            for inner in link.links:
                yield from needs(inner)

    return tuple(dict.fromkeys(name for link in links_of(tx, params) for name in needs(link)))


def numbered(loss: Callable[..., Any], microbatches: int, weight: Any, has_aux: bool) -> Callable[..., Any]:
    """(params, batch) -> (value, gradient) over microbatches; the loss is told the number of the first example of
    each, so that random numbers differ between them."""
    of_part = None if weight is None else lambda part: weight(part[0])
    source = microbatch(lambda p, part: loss(p, part[0], part[1][0]), microbatches, weight=of_part, has_aux=has_aux)

    def fn(params: Any, batch: Any) -> Any:
        lengths = [(jnp.shape(x) or (1,))[0] for x in jax.tree.leaves(batch)]
        return source(params, (batch, jnp.arange(max(lengths, default=0))))

    return fn


def summed(loss: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
    """A loss whose value is the sum over tasks, where it has several; any other as it is."""

    def of(value: Any) -> Any:
        if isinstance(value, list):
            return sum(value[1:], value[0])
        return jnp.sum(value) if jnp.ndim(value) == 1 else value

    def total(*args: Any) -> Any:
        out = loss(*args)
        return (of(out[0]), out[1]) if has_aux else of(out)

    return total


def each_example(loss: Callable[..., Any], microbatches: int, has_aux: bool) -> Callable[..., Any]:
    """(params, batch) -> (value, gradients of the examples); the loss is told the number of each, so that random
    numbers differ between them. Chunks are microbatches, where there are some."""

    def fn(params: Any, batch: Any) -> Any:
        size = jnp.shape(jax.tree.leaves(batch)[0])[0]
        chunk = {} if microbatches == 1 else {"chunk": max(1, size // microbatches)}
        source = example_gradients(lambda p, x: loss(p, x[0], x[1][0]), has_aux=has_aux, **chunk)
        return source(params, (batch, jnp.arange(size)))

    return fn


def draws(source: Callable[..., Any]) -> bool:
    """Whether a source of gradients is random: it is called as fn(params, batch, key=...)."""
    key = inspect.signature(source).parameters.get("key")
    return key is not None and key.kind is inspect.Parameter.KEYWORD_ONLY


def returned(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, of which only types and shapes are known."""
    found = []

    def look() -> int:
        found.append(function(*args))
        return 0

    jax.eval_shape(look)
    return found[0]


def check_scalar(out: Any, has_aux: bool) -> None:
    """Raises where a loss returns no scalar, and says what to write instead.

    >>> check_scalar((0.5, {}), False)
    Traceback (most recent call last):
    ValueError: loss_fn must return a scalar, got a tuple; write has_aux=True where it returns (loss, aux)
    """
    value = out[0] if has_aux else out
    if isinstance(value, tuple) and len(value) == 2 and not has_aux:
        raise ValueError("loss_fn must return a scalar, got a tuple; write has_aux=True where it returns (loss, aux)")
    if isinstance(value, tuple | list | dict):
        got, instead, tasks = f"a {type(value).__name__}", "the sum of its losses", isinstance(value, list)
    else:
        got, instead, tasks = f"shape {jnp.shape(value)}", "jnp.mean of it", jnp.ndim(value) == 1
    if got == "shape ()":
        return
    several = "; or, for one loss per task, put an aggregator such as gk.aggregation.upgrad() first in the chain"
    raise ValueError(f"loss_fn must return a scalar, got {got}; write {instead}{several if tasks else ''}")


def one_step(
    loss: Callable[..., Any],
    tx: optax.GradientTransformation,
    params: PyTree,
    opt_state: Any,
    batch: Any,
    *,
    needs: tuple[str, ...],
    key: Key | None = None,
    has_aux: bool = False,
    gradient: Callable[..., Any] | None = None,
    microbatches: int = 1,
    weight: Callable[[Any], Any] | None = None,
    predictions: Any = None,
    examples: bool = True,
) -> Stepped:
    """One step on one minibatch.

    Args:
      loss: (params, batch, index=None) -> scalar, or (scalar, aux); `index` is the number of a microbatch's first
        example. For a chain that begins with an aggregator of tasks a vector of losses, or a list.
      tx: the transformation.
      params: the parameters.
      opt_state: its state.
      batch: the minibatch.
      needs: extra arguments that are made besides the cheap ones: `needs_of(tx, params)`, and what the loop itself
        asks for.
      key: the random key of this step, for the transformation and for a source of gradients that draws.
      has_aux: whether the loss returns an aux.
      gradient: a source of gradients, loss -> function like `jax.value_and_grad(loss)`. Default: as `needs` says.
      microbatches: parts in which the batch is computed.
      weight: microbatch -> the number of tokens or examples that its loss is a mean over.
      predictions: (parameters -> predictions, targets) of this minibatch, where the loss is of these.
      examples: whether the leaves of the batch have a leading axis of examples.

    Raises:
      ValueError: a link that misses an extra argument; it is named, with the argument. Microbatches, and a chain that
        begins with an aggregator of tasks.
    """
    tx = optax.with_extra_args_support(tx)
    source = jax.value_and_grad(loss, has_aux=has_aux)
    total = summed(loss, has_aux)
    plain = jax.value_and_grad(total, has_aux=has_aux)
    if microbatches > 1:
        source = plain = numbered(loss, microbatches, weight, has_aux)
    if gradient is not None:
        source = gradient(loss, has_aux=True) if has_aux else gradient(loss)
        if draws(source):
            source = functools.partial(source, key=next_key("gradient", None, key)[1])
    elif "task_gradients" in needs:
        if microbatches > 1:
            raise ValueError(
                f"microbatches must be 1 where the gradients of tasks are aggregated, got {microbatches}: compute the "
                "losses over parts of the batch inside of the loss, as with jax.lax.map and jax.checkpoint"
            )
        source = task_gradients(loss, has_aux=has_aux)
    elif "example_gradients" in needs:
        source = each_example(loss, microbatches, has_aux)
    elif "grad_moments" in needs and examples:
        source = gradient_moments(loss, max(2, microbatches), has_aux=has_aux)

    def like_params(tree: Any) -> Any:
        return jax.tree.map(lambda x, p: jnp.asarray(x).astype(p.dtype), tree, params)

    def value_alone(params: Any, batch: Any) -> jax.Array:
        return total(params, batch)[0] if has_aux else total(params, batch)

    def value_fn(point: Any) -> jax.Array:
        point = like_params(point)
        if microbatches == 1:
            return value_alone(point, batch)
        value = plain(point, batch)[0]
        return value[0] if has_aux else value

    def grad_fn(point: Any) -> Any:
        return plain(like_params(point), batch)[1]

    try:
        value, grads = source(params, batch)
    except TypeError as error:
        # JAX's own words; a loss that differentiates inside may have caused them as well.
        if "scalar-output" not in str(error):
            raise
        check_scalar(returned(loss, params, batch), has_aux)
        raise
    moments = grads if isinstance(grads, GradientMoments) else None
    if moments is not None:
        grads = like_params(moments.mean)
    value, aux = value if has_aux else (value, None)
    several = isinstance(grads, LazyGradients)
    if not several and not {"task_gradients", "example_gradients"}.intersection(needs):
        # As of a source that takes the derivative along a direction.
        check_scalar(value, False)
    tasks = value if several and jnp.ndim(value) == 1 else None
    value = value if tasks is None else jnp.sum(tasks)
    known, losses = (None, grads.losses) if several else (grads, None)
    step = Minibatch(
        params, batch, value_alone, value, known, value_fn, grad_fn, key, moments, predictions, examples, losses
    )
    updates, opt_state = updated(tx, grads, opt_state, params, offered(step, needs))
    params = optax.apply_updates(params, updates)
    stacked = microbatches > 1 or moments is not None or (several and tasks is None)
    return Stepped(params, opt_state, updates, value, aux, stacked, tasks)


def updated(
    tx: optax.GradientTransformationExtraArgs, grads: PyTree, opt_state: Any, params: PyTree, extra: dict[str, Any]
) -> tuple[Any, Any]:
    """`tx.update` with the extra arguments; a link of another library that misses one is named with it.

    Raises:
      ValueError: an extra argument is missing.
    """
    parameters = inspect.signature(tx.update).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        # As optax.contrib.sam does: it takes what it names and nothing else.
        extra = {name: value for name, value in extra.items() if name in parameters}
    try:
        return tx.update(grads, opt_state, params, **extra)
    except TypeError as error:
        # Python's own words for a required keyword of a function inside the link's factory.
        found = re.match(r"(\w+)\.<locals>\.\S+ missing \d+ required keyword-only arguments?: '(\w+)'", str(error))
        if found is None or found[2] in extra:
            raise
        raise ValueError(f"{missing(*found.groups())}; offered here: {', '.join(extra)}") from error
