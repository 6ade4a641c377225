"""An estimate of the diagonal of the Hessian for a method that needs the extra argument `curvature`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment, inside, transformation, widen, zeros
from gradkit.engine.hutchinson import check_hutchinson, hutchinson
from gradkit.engine.keys import NoKey, check_key, first_key, next_key
from gradkit.leaves import Layout, names
from gradkit.types import Key

PAPER = Paper("ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning", "Yao et al.", 2020, "2006.00719")
Estimator = Callable[..., Any]


def fitting(method: str, h: Any, like: Any) -> Any:
    """The leaves of a curvature at the paths of the updates (all, or those of a partition), in float32 or wider."""
    known = dict(zip(names(h), jax.tree.leaves(h), strict=True))
    found = []
    for name, g in zip(names(like), jax.tree.leaves(like), strict=True):
        if name not in known or jnp.shape(known[name]) != jnp.shape(g):
            got = f"of shape {jnp.shape(known[name])}" if name in known else "missing"
            raise ValueError(f"{method}: curvature must match the gradients; {name!r} of shape {jnp.shape(g)} is {got}")
        found.append(jnp.asarray(known[name]))
    return widen(jax.tree.structure(like).unflatten(found))


def curvature_of(method: str, extra: Mapping[str, Any], like: Any) -> Any:
    """The extra argument `curvature`, which the method needs."""
    if extra.get("curvature") is None:
        raise ValueError(
            f"{method} needs the extra argument curvature: call update(grads, state, params, curvature=...), or let "
            f"gk.with_curvature compute it from hvp_fn"
        )
    return fitting(method, extra["curvature"], like)


def hutchinson_estimator(
    *,
    num_samples: int = 1,
    first_samples: int | None = None,
    distribution: str = "rademacher",
    absolute: bool = False,
    spatial_average: str | None = None,
    layout: Layout | None = None,
) -> Estimator:
    """Hutchinson's estimator from `hvp_fn`; with `first_samples` samples at the first step where given."""
    check_hutchinson(num_samples, distribution, absolute, spatial_average)

    def estimator(params: Any, key: Any, *, hvp_fn: Any = None, count: Any = 0, **extra: Any) -> Any:
        del extra
        if key is None:
            raise NoKey("with_curvature", "to estimate the curvature")
        samples = num_samples
        if first_samples is not None and first_samples != num_samples:
            samples = jnp.where(count == 0, first_samples, num_samples)
        return hutchinson(
            hvp_fn,
            params,
            key,
            num_samples=samples,
            distribution=distribution,
            absolute=absolute,
            spatial_average=spatial_average,
            layout=layout,
        )

    estimator.needs = ("hvp_fn",)  # pyright: ignore[reportFunctionMemberAccess]
    return estimator


class WithCurvatureState(NamedTuple):
    """Number of steps made, the random key of the next estimate, the last estimate where it is used for several steps,
    the inner state."""

    count: jax.Array
    key: Any
    curvature: Any
    inner: Any


def supply_curvature(
    method: str,
    inner: optax.GradientTransformation,
    estimator: Estimator,
    *,
    update_interval: int = 1,
    key: Key | None = None,
    lazy: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """`with_curvature` under the name of a method; with `lazy` it passes a function, which the method may call."""
    update_interval = checks.integer("update_interval", update_interval, 1)
    checks.function("estimator", estimator)
    check_key(key)
    inner = inside(inner)

    def init(params: optax.Params) -> WithCurvatureState:
        held = zeros(params) if update_interval > 1 else None
        return WithCurvatureState(jnp.zeros((), jnp.int32), first_key(key), held, inner.init(params))

    def update(updates: Any, state: WithCurvatureState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        kept, now = next_key(method, state.key, extra.get("key"))
        given, point = extra.pop("curvature", None), updates if params is None else params
        able = all(extra.get(name) is not None for name in getattr(estimator, "needs", ()))

        def estimate() -> Any:
            others = {name: value for name, value in extra.items() if name != "key"}
            try:
                found = estimator(point, now, count=state.count, **others)
            except NoKey as error:
                raise error.of(method) from None
            return fitting(method, found, updates)

        if given is not None:
            h = given if checks.is_function(given, updates) else fitting(method, given, updates)
        elif not able:
            h = None if lazy else curvature_of(method, extra, updates)
        elif lazy:
            h = estimate
        elif update_interval == 1:
            h = estimate()
        else:
            h = jax.lax.cond(state.count % update_interval == 0, estimate, lambda: state.curvature)
        updates, below = inner.update(updates, state.inner, params, **extra, curvature=h)
        held = None if state.curvature is None else h
        return updates, WithCurvatureState(increment(state.count), kept, held, below)

    return transformation(method, init, update)


def with_curvature(
    inner: optax.GradientTransformation,
    estimator: Estimator | None = None,
    *,
    update_interval: int = 1,
    key: Key | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Passes a method an estimate of the diagonal of the Hessian as `curvature=`, where the caller does not.

    Equations, with k = update_interval:

        every k steps:   h = estimator(params, key, ...)          by default Hutchinson's z (H z) from `hvp_fn`
        u_t = inner(g_t, curvature=h)

    A `curvature` that is passed to `update` takes precedence over the estimate.

    Args:
      inner: any transformation that reads the extra argument `curvature`.
      estimator: (params, key, **extra) -> tree like the parameters; `extra` has the extra arguments of `update`, and
        `count`, the number of earlier steps. Default None: Hutchinson's with one vector of signs, from the extra
        argument `hvp_fn`; for another, `lambda params, key, **extra: gk.gradients.hutchinson_diag(...)`.
      update_interval: k, steps for which one estimate is used, >= 1; steps without an estimate cost nothing. Default 1.
      key: a typed key or integer, from which the keys of all steps are derived. Default None: `update` needs `key=`,
        which takes precedence where both are given.

    Returns:
      A transformation. State: a counter, a key, the inner state; with `update_interval` > 1 one word per parameter
      more. Collectives: those of the estimate, that is of one or two gradients.

    Raises:
      ValueError: `update_interval` < 1; at `update`, neither `curvature` nor the arguments that the estimator needs, or
        no key.

    Example:
      >>> from gradkit.transforms import scale_by_diag_curvature
      >>> tx = with_curvature(scale_by_diag_curvature(b1=0.0, b2=0.0, eps=0.0), key=jax.random.key(0))
      >>> x, a = jnp.array([3.0, 5.0]), jnp.array([2.0, 10.0])  # the loss is a x^2 / 2
      >>> print(tx.update(a * x, tx.init(x), x, hvp_fn=lambda v: a * v)[0])  # Newton's direction is x
      [3. 5.]

    Reference: Yao et al. ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning. 2020, arXiv 2006.00719.
    optax's estimator is a preceding link that replaces the gradient, and computes its products on every step.
    """
    estimator = hutchinson_estimator() if estimator is None else estimator
    return supply_curvature("with_curvature", inner, estimator, update_interval=update_interval, key=key)


def _of_parameters(params: Any, key: Any, **extra: Any) -> Any:
    del key, extra
    return jax.tree.map(lambda x: 1 + jnp.square(x), params)


register(
    with_curvature,
    form="wrapper",
    paper=PAPER,
    example={"estimator": _of_parameters},
    opt_outs={"extra": "what is inside is handed one argument more"},
)
