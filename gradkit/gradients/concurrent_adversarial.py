"""Concurrent adversarial learning: adversarial examples of stale parameters, which need not wait for the last step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, scalar, widen
from gradkit.leaves import names
from gradkit.types import Scalar

PAPER = Paper("Concurrent Adversarial Learning for Large-Batch Training", "Liu et al.", 2022, "2106.00221")


class ConcurrentAdversarialState(NamedTuple):
    """A counter, and the parameters of the last tau steps along a leading axis; the oldest are at the index count mod
    tau."""

    count: jax.Array
    stale: Any


class ConcurrentAdversarial(NamedTuple):
    """A source of gradients with a state.

    Attributes:
      init: params -> state.
      value_and_grad: (params, state, x, *args) -> ((value, gradient), state).
    """

    init: Callable[[Any], ConcurrentAdversarialState]
    value_and_grad: Callable[..., tuple[tuple[Any, Any], ConcurrentAdversarialState]]


def _project(delta: Any, radius: Any, norm: str) -> Any:
    if norm == "linf":
        return jax.tree.map(lambda d: jnp.clip(d, -scalar(radius, d), scalar(radius, d)), delta)
    squares = [jnp.sum(jnp.square(d), axis=tuple(range(1, d.ndim))) for d in jax.tree.leaves(delta)]
    length = jnp.sqrt(sum(s.astype(jnp.result_type(*squares)) for s in squares))
    most = jnp.broadcast_to(jnp.asarray(radius).astype(length.dtype), length.shape)
    share = jnp.where(length > most, divide(most, length), jnp.ones_like(length))
    return jax.tree.map(lambda d: d * share.astype(d.dtype).reshape(-1, *(1,) * (d.ndim - 1)), delta)


def concurrent_adversarial(
    loss_fn: Callable[..., Any],
    radius: Scalar,
    step: Any,
    *,
    tau: int = 1,
    weight: Scalar = 1.0,
    norm: str = "linf",
    has_aux: bool = False,
) -> ConcurrentAdversarial:
    """Trains on every batch and on its adversarial copy, made with the parameters of tau steps ago.

    Equations:

        delta = P( step grad_x L(w_{t-tau}; x, y) ),    x^ = x + delta
        value = L(w_t; x, y) + weight L(w_t; x^, y)
        gradient = d value / d w_t                               with x^ constant

        P(delta)_i = clip(delta_i, -radius, radius)              "linf", for every entry
        P(delta)_i = delta_i min(1, radius / |delta_i|)          "l2", for every example i

    L is a mean over examples. w_{t-tau} is w_0 for t < tau. delta depends on nothing that the last tau steps computed,
    so it can be made while they run; with tau = 0 this is one-step adversarial training. It is meant for large batches:
    adversarial copies lead to flatter minima, and no step waits for them.

    Args:
      loss_fn: (params, x, *args) -> scalar, or (scalar, aux): a mean over the examples of x. x is any tree of floating
        point arrays with a leading axis of examples; labels go into *args.
      radius: how far an example is moved at most, >= 0, in units of x. May be traced.
      step: factor of the gradient of the MEAN loss, >= 0. May be traced. With "linf", a step so large that all entries
        are clipped is radius times the sign (FGSM).
      tau: age of the parameters, in steps, >= 0. Default 1. With 0 no copy is kept, and every step waits for delta.
      weight: of the adversarial loss, >= 0. Default 1. May be traced.
      norm: "linf" or "l2". Default "linf".
      has_aux: whether `loss_fn` returns (scalar, aux). Default False.

    Returns:
      A pair (init, value_and_grad). `value_and_grad(params, state, x, *args, model_states=None, **kwargs)` gives
      ((value, gradient), state); with aux ((value, (aux, aux of the copies)), gradient). Where `model_states`, a pair,
      is given, the loss gets `model_state=`, its first member on the batch and its second on the adversarial copies:
      separate statistics of BatchNorm. State: tau words per parameter, in the parameters' dtypes. Three gradients a
      step, of which the one in x depends on neither of the others. No collective of its own.

    Raises:
      ValueError: an argument outside its range; when called, an x that is not floating point.

    Example:
      >>> loss = lambda w, x: jnp.mean(w * x)
      >>> source = concurrent_adversarial(loss, 0.5, 1.0)
      >>> w, x = jnp.array(2.0), jnp.array([1.0, 3.0])
      >>> (value, grads), state = source.value_and_grad(w, source.init(w), x)
      >>> float(value), float(grads)  # x moves by min(0.5, 2 / 2)
      (9.0, 4.5)

    Reference: Liu et al. Concurrent Adversarial Learning for Large-Batch Training. 2022, arXiv 2106.00221. No code was
    published with it; the step is along the gradient itself, which reaches the sign as a limit, and losses add up with
    `weight` instead of being averaged.
    """
    checks.switch(has_aux=has_aux)
    checks.function("loss_fn", loss_fn)
    checks.real("radius", radius, "[0, inf)")
    checks.real("step", step, "[0, inf)")
    checks.integer("tau", tau)
    checks.real("weight", weight, "[0, inf)")
    checks.choice("norm", norm, ("linf", "l2"))

    def init(params: Any) -> ConcurrentAdversarialState:
        def copies(w: Any) -> Any:
            if isinstance(w, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct((tau, *w.shape), w.dtype)
            return jnp.array(jax.lax.broadcast(jnp.asarray(w), (tau,)), copy=True)

        return ConcurrentAdversarialState(jnp.zeros((), jnp.int32), jax.tree.map(copies, params) if tau else None)

    def value_and_grad(
        params: Any, state: ConcurrentAdversarialState, x: Any, *args: Any, model_states: Any = None, **kwargs: Any
    ) -> tuple[tuple[Any, Any], ConcurrentAdversarialState]:
        for name, leaf in zip(names(x), jax.tree.leaves(x), strict=True):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating) or not jnp.ndim(leaf):
                raise ValueError(
                    f"concurrent_adversarial: x must be floating point, with an axis of examples, to be moved; got "
                    f"{jnp.result_type(leaf)} of shape {jnp.shape(leaf)} for {name!r}"
                )
        x = jax.tree.map(jnp.asarray, x)

        def loss(w: Any, x: Any, which: int) -> tuple[Any, Any]:
            more = kwargs if model_states is None else {**kwargs, "model_state": model_states[which]}
            out = loss_fn(w, x, *args, **more)
            return out if has_aux else (out, None)

        place = state.count % max(tau, 1)
        old = jax.tree.map(lambda s: s[place], state.stale) if tau else params
        g = widen(jax.grad(lambda x: loss(old, x, 0)[0])(x))
        delta = _project(jax.tree.map(lambda d: scalar(step, d) * d, g), radius, norm)
        twins = jax.tree.map(lambda x, d: (x.astype(d.dtype) + d).astype(x.dtype), x, delta)

        def both(w: Any) -> tuple[Any, Any]:
            (clean, aux), (moved, twin_aux) = loss(w, x, 0), loss(w, twins, 1)
            return clean + scalar(weight, moved) * moved, (aux, twin_aux)

        (value, aux), gradient = jax.value_and_grad(both, has_aux=True)(params)
        stale = jax.tree.map(lambda s, w: s.at[place].set(w), state.stale, params) if tau else None
        return ((value, aux) if has_aux else value, gradient), ConcurrentAdversarialState(place + 1, stale)

    return ConcurrentAdversarial(init, value_and_grad)


register(concurrent_adversarial, form="program", paper=PAPER, words=1, notes="a source with a state of its own")
