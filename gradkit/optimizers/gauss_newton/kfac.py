"""K-FAC, by kfac-jax: its preconditioner as a link of a chain, and a function that advances its state.

Every layer's curvature is a Kronecker product of the second moments of its inputs and of the gradients of its outputs;
the package finds layers and losses in the traced program. A step:

    state   <- advance(state, (params, batch), key)                   the curvature, and every so often its inverse
    updates <- transform.update(grads, ..., precond_state=state)      the inverse times the gradients
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import need, transformation
from gradkit.types import Scalar

PAPER = Paper(
    "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", "Martens, Grosse", 2015, "1503.05671"
)
ASKED = ("init", "maybe_update", "increment_count", "as_gradient_transform")


class Kfac(NamedTuple):
    """A preconditioner in three parts.

    Attributes:
      init: (func_args, key) -> the state of the preconditioner; func_args, (params, batch), are what its loss takes.
      advance: (state, func_args, key) -> the state for the gradients of this step.
      transform: a transformation whose `update` needs that state as the extra argument `precond_state`.
    """

    init: Callable[[Any, Any], Any]
    advance: Callable[[Any, Any, Any], Any]
    transform: optax.GradientTransformationExtraArgs


def from_kfac(preconditioner: Any) -> Kfac:
    """Takes a `kfac_jax.OptaxPreconditioner` apart into what a loop of this library's kind calls.

    Args:
      preconditioner: a `kfac_jax.OptaxPreconditioner`, or what has its methods `init`, `maybe_update`,
        `increment_count` and `as_gradient_transform`. Under jit with sharded arrays build it with
        distributed_inverses=False and distributed_precon_apply=False: its own distribution is that of `jax.pmap`.

    Returns:
      A `Kfac`. The counter of the state, which schedules and the period of inverses see, is the number of earlier
      steps, from `advance` to the end of the step. The state is the package's; `transform` keeps none.

    Raises:
      ValueError: an object that lacks one of these methods; at update, `precond_state` missing.

    Example:
      >>> import jax.numpy as jnp
      >>> from types import SimpleNamespace as Stub
      >>> double = optax.GradientTransformationExtraArgs(
      ...     lambda params: optax.EmptyState(),
      ...     lambda g, state, params=None, *, precond_state, **extra: (2.0 * g, state))
      >>> stub = Stub(init=None, maybe_update=None, increment_count=None, as_gradient_transform=lambda: double)
      >>> tx = from_kfac(stub).transform
      >>> float(tx.update(jnp.array(3.0), tx.init(jnp.array(0.0)), precond_state=0)[0])
      6.0

    Reference: Martens, Grosse. Optimizing Neural Networks with Kronecker-factored Approximate Curvature. 2015, arXiv
    1503.05671. Botev, Martens. KFAC-JAX. 2022. The last release of kfac-jax, 0.0.8, reads a private interface that JAX
    changed in 0.9.2: there, tracing a model fails inside the package.
    """
    if lacks := [name for name in ASKED if not hasattr(preconditioner, name)]:
        raise ValueError(f"preconditioner must be a kfac_jax.OptaxPreconditioner; {preconditioner!r} lacks {lacks}")
    inner = preconditioner.as_gradient_transform()

    def first(func_args: Any, key: Any) -> Any:
        state = preconditioner.init(func_args, key)
        # `advance` counts before it looks, as its result is used until the next one: the first step is step 0.
        return state._replace(count=state.count - 1)

    def advance(state: Any, func_args: Any, key: Any) -> Any:
        return preconditioner.maybe_update(preconditioner.increment_count(state), func_args, key)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        precond_state = need("from_kfac", extra, "precond_state")
        return inner.update(updates, state, params, precond_state=precond_state)

    return Kfac(first, advance, transformation("from_kfac", inner.init, update))


def kfac_preconditioner(
    loss_fn: Callable[..., Any],
    *,
    damping: Scalar,
    curvature_ema: Scalar = 0.95,
    update_interval: int = 5,
    norm_constraint: Scalar | None = None,
    estimation_mode: str = "fisher_gradients",
    **options: Any,
) -> Kfac:
    """Builds kfac-jax's preconditioner, set up for jit and sharded arrays, and takes it apart.

    Args:
      loss_fn: (params, batch) -> loss. It must register its loss, as with
        `kfac_jax.register_softmax_cross_entropy_loss(logits, labels)`, and be made of layers that the package knows.
      damping: added to the curvature, in its units, >= 0.
      curvature_ema: decay of the running mean of the factors, in [0, 1). Default 0.95 (kfac-jax).
      update_interval: steps between inverses, >= 1. Default 5 (kfac-jax).
      norm_constraint: largest squared length of an update in the metric of the curvature, > 0. Default None (kfac-jax).
      estimation_mode: "fisher_gradients" (sampled targets), "fisher_exact", "ggn_curvature_prop", ... Default
        "fisher_gradients" (kfac-jax).
      **options: any other argument of `kfac_jax.OptaxPreconditioner`. Its own distribution, for `jax.pmap`, is off
        unless asked for.

    Returns:
      A `Kfac`, as `from_kfac` returns.

    Raises:
      ImportError: kfac-jax is not installed.
      ValueError: a hyperparameter outside its range. A schedule for the damping is refused: in kfac-jax 0.0.8 it fails
        at the first step.

    Example:
      >>> kfac = kfac_preconditioner(loss, damping=1e-3)  # doctest: +SKIP
      >>> tx = optax.chain(kfac.transform, optax.sgd(0.1))  # doctest: +SKIP
      >>> state = kfac.advance(kfac.init((params, batch), key), (params, batch), key)  # doctest: +SKIP
      >>> updates, opt_state = tx.update(grads, tx.init(params), params, precond_state=state)  # doctest: +SKIP

    Reference: Martens, Grosse. Optimizing Neural Networks with Kronecker-factored Approximate Curvature. 2015, arXiv
    1503.05671, whose momentum, quadratic model and adaptive damping are in `kfac_jax.Optimizer`, not here.
    """
    checks.function("loss_fn", loss_fn)
    checks.real("damping", damping, "[0, inf)")
    checks.real("curvature_ema", curvature_ema, "[0, 1)")
    update_interval = checks.integer("update_interval", update_interval, 1)
    checks.real("norm_constraint", norm_constraint, "(0, inf)", optional=True)
    try:
        package = importlib.import_module("kfac_jax")
    except ImportError as error:
        raise ImportError("kfac_preconditioner needs the package kfac-jax: pip install 'gradkit[kfac]'") from error
    whole = {"distributed_inverses": False, "distributed_precon_apply": False}
    return from_kfac(
        package.OptaxPreconditioner(
            loss_fn,
            damping=damping,
            curvature_ema=curvature_ema,
            inverse_update_period=update_interval,
            norm_constraint=norm_constraint,
            estimation_mode=estimation_mode,
            **{**whole, **options},
        )
    )


NOTES = "kfac-jax, taken apart; install with gradkit[kfac]"
register(from_kfac, form="program", paper=PAPER, notes=NOTES)
register(kfac_preconditioner, form="program", paper=PAPER, notes=NOTES)
