"""OASIS: gradients preconditioned by the curvature, with a step size from the local Lipschitz constant."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import increment, inside, optimizer, transformation, widen, zeros
from gradkit.engine.matching import check_match
from gradkit.engine.norms import global_sums
from gradkit.leaves import Method
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate, trace
from gradkit.transforms.diag_curvature import ScaleByDiagCurvatureState, diag_curvature
from gradkit.transforms.with_curvature import hutchinson_estimator, supply_curvature
from gradkit.types import Key, Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "Doubly Adaptive Scaled Algorithm for Machine Learning Using Second-Order Information",
    "Jahani et al.",
    2021,
    "2109.05198",
)
WITHOUT_CURVATURE = Paper("Adaptive Gradient Descent without Descent", "Malitsky, Mishchenko", 2019, "1910.09529")


def scale_by_oasis(*, b2: Scalar = 0.999, alpha: Scalar = 1e-5) -> optax.GradientTransformationExtraArgs:
    """Divides gradients by the absolute value of the mean of the curvature.

    Equations: g_t / M_t with D_t and M_t of `oasis`.

    Args:
      b2: decay of the mean, in [0, 1). Default 0.999.
      alpha: smallest entry of the metric, > 0. Default 1e-5.

    Returns:
      A transformation that needs the extra argument `curvature`, which `gk.with_curvature` computes. State: 1 word per
      parameter and a counter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, curvature missing or of another structure.

    Example:
      >>> tx = scale_by_oasis()
      >>> g = jnp.array([3.0, 5.0])
      >>> print(tx.update(g, tx.init(g), curvature=jnp.array([-1.0, 10.0]))[0])
      [3.  0.5]

    Reference: Jahani et al. Doubly Adaptive Scaled Algorithm for Machine Learning Using Second-Order Information. 2021,
    arXiv 2109.05198. The mean starts with the first estimate.
    """
    checks.real("b2", b2, "[0, 1)")
    checks.real("alpha", alpha, "(0, inf)")
    return diag_curvature(
        "scale_by_oasis",
        b1=0.0,
        b2=b2,
        second="mean",
        floor="max",
        power=1.0,
        eps=alpha,
        bias_correction=False,
        start="first",
        mu_dtype=None,
    )


def next_step(eta: jax.Array, theta: jax.Array, free: jax.Array, moved: jax.Array, changed: jax.Array) -> jax.Array:
    """The next eta from the squared norms of the changes of parameters and gradients; without the first bound where it
    is `free`."""
    one = jnp.ones((), eta.dtype)
    bound = jnp.where(free, jnp.inf, jnp.sqrt(1 + theta) * eta)
    quotient = jnp.where(changed > 0, jnp.sqrt(moved / jnp.where(changed > 0, changed, one)) / 2, jnp.inf)
    eta_next = jnp.minimum(bound, quotient)
    return jnp.where((moved > 0) & jnp.isfinite(eta_next), eta_next, eta)


class ScaleByLocalLipschitzState(NamedTuple):
    """Number of updates made; eta and theta; the previous parameters, and their gradient where the loss is the same at
    every step; the inner state; the step size as a metric."""

    count: jax.Array
    eta: jax.Array
    theta: jax.Array
    previous: Any
    gradient: Any
    inner: Any
    metrics: dict[str, jax.Array]

    # Parameters, and a gradient that is read only in a difference: gk.precision(state=...) must not round them.
    exact_fields = ("previous", "gradient")


def scale_by_local_lipschitz(
    inner: optax.GradientTransformation | None = None,
    *,
    metric: Callable[[Any], Any] | None = None,
    init_learning_rate: Scalar = 0.01,
    deterministic: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Adaptive gradient descent: the step size that the change of the gradient along the last step allows.

    Equations, with the direction d_t of `inner`, the metric M_t (1 by default), and the change of the gradient
    y_t = g(x_t) - g(x_{t-1}), both of the same minibatch; |s|_M^2 is the sum of M s^2 over all leaves:

        eta_t = min(sqrt(1 + theta_{t-1}) eta_{t-1}, |x_t - x_{t-1}|_M / (2 |y_t|_{1/M}))
        theta_t = eta_t / eta_{t-1},    theta_1 infinite
        u_t = eta_t d_t

    Where y_t = 0 the step grows by the first bound; where x_t = x_{t-1} it does not change.

    Args:
      inner: any transformation gradient -> direction, not negated. Default None: the gradient itself.
      metric: state of `inner` -> M, a tree like the parameters. Default None: 1.
      init_learning_rate: eta of the first step, > 0. Default 0.01; the second step does not depend on it.
      deterministic: whether the loss is the same at every step, so that the last gradient can be kept. Default False:
        the gradient of each minibatch is computed at the previous parameters too.

    Returns:
      A transformation that needs `params`; unless deterministic also `previous_grads`, the gradient of this minibatch
      at the previous parameters, or `grad_fn`, which computes it. State: 1 word per parameter (2 if deterministic) and
      the inner one; the metric `lipschitz_step`. Collectives: two scalars, in one all-reduce.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, neither `previous_grads` nor `grad_fn`.

    Example:
      >>> tx = scale_by_local_lipschitz(init_learning_rate=0.125, deterministic=True)
      >>> x = jnp.array([4.0])  # the loss is x^2, whose constant is 2
      >>> state = tx.init(x)
      >>> for _ in range(2):
      ...     d, state = tx.update(2 * x, state, x)
      ...     x = x - d
      >>> float(state.eta)
      0.25

    Reference: Malitsky, Mishchenko. Adaptive Gradient Descent without Descent. 2019, arXiv 1910.09529. With a metric:
    Jahani et al. 2021, arXiv 2109.05198.
    """
    checks.real("init_learning_rate", init_learning_rate, "(0, inf)")
    checks.choice("deterministic", deterministic, (True, False))
    if metric is not None:
        checks.function("metric", metric)
    within = inside(optax.identity() if inner is None else inner)

    def init(params: optax.Params) -> ScaleByLocalLipschitzState:
        eta = jnp.array(init_learning_rate, jnp.result_type(float), copy=True)
        return ScaleByLocalLipschitzState(
            jnp.zeros((), jnp.int32),
            eta,
            jnp.ones_like(eta),
            zeros(params),
            zeros(params) if deterministic else None,
            within.init(params),
            {"lipschitz_step": jnp.array(eta, jnp.float32, copy=True)},
        )

    def update(g: Any, state: ScaleByLocalLipschitzState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        d, below = within.update(g, state.inner, params, **extra)
        before = state.gradient
        if not deterministic:
            before = extra.get("previous_grads")
            if before is None and extra.get("grad_fn") is None:
                raise ValueError(
                    "scale_by_local_lipschitz needs the extra argument previous_grads, or grad_fn; call update(grads, "
                    "state, params, grad_fn=...)"
                )
            if before is None:
                # The first step has no previous parameters; the gradient at the current ones is not used.
                point = jax.tree.map(lambda p, x: jnp.where(state.count == 0, x, p), state.previous, params)
                before = extra["grad_fn"](point)
            check_match("scale_by_local_lipschitz", before, params)
            before = widen(before)
        M = jax.tree.map(jnp.ones_like, g) if metric is None else metric(below)
        # Squared norms: |x_t - x_{t-1}|_M^2 and |y_t|_{1/M}^2.
        moved = jax.tree.map(lambda x, p, m: m * jnp.square(x - p), params, state.previous, M)
        changed = jax.tree.map(lambda g, b, m: jnp.square(g - b) / m, g, before, M)
        moved, changed = (s.astype(state.eta.dtype) for s in global_sums(moved, changed))
        first = state.count == 0
        eta = jnp.where(first, state.eta, next_step(state.eta, state.theta, state.count == 1, moved, changed))
        theta = jnp.where(first, state.theta, eta / state.eta)
        d = jax.tree.map(lambda d: eta.astype(d.dtype) * d, d)
        published = {"lipschitz_step": eta.astype(jnp.float32)}
        kept = g if deterministic else None
        # Copies, because a step that donates parameters and state must not get an array twice.
        here = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
        return d, ScaleByLocalLipschitzState(increment(state.count), eta, theta, here, kept, below, published)

    return transformation("scale_by_local_lipschitz", init, update, needs_params=True)


def _metric(alpha: Any) -> Callable[[Any], Any]:
    """The function from the state of OASIS' chain to the metric M."""

    def metric(state: Any) -> Any:
        found = [link for link in state if isinstance(link, ScaleByDiagCurvatureState)]
        return jax.tree.map(lambda D: jnp.maximum(jnp.abs(D), jnp.asarray(alpha).astype(D.dtype)), found[0].nu)

    return metric


def oasis(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    b2: Scalar = 0.999,
    alpha: Scalar = 1e-5,
    init_learning_rate: Scalar = 0.01,
    adaptive: bool = True,
    deterministic: bool = False,
    momentum: Scalar | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    first_samples: int = 10,
    num_samples: int = 1,
    key: Key | None = None,
) -> optax.GradientTransformationExtraArgs:
    """OASIS: gradients over the curvature, estimated from `hvp_fn` where it is not given, without a learning rate.

    Equations, with the momentum m_t of the gradients, random vectors of signs z, and the change of the gradient
    y_t = g(x_t) - g(x_{t-1}), both of the same minibatch; |s|_M^2 is the sum of M s^2 over all leaves:

        h_t = z (H z),   D_1 = h_1 (mean over several z),   D_t = b2 D_{t-1} + (1 - b2) h_t
        M_t = max(|D_t|, alpha)
        d_t = m_t / M_t + weight_decay x_t
        eta_t = min(sqrt(1 + theta_{t-1}) eta_{t-1}, |x_t - x_{t-1}|_M / (2 |y_t|_{1/M}))
        theta_t = eta_t / eta_{t-1}
        x_{t+1} = x_t - learning_rate eta_t d_t

    theta_1 is infinite: the second step uses only the quotient. With M = 1 this is the adaptive gradient descent of
    Malitsky and Mishchenko. Where y_t = 0 the step grows by the first bound; where x_t = x_{t-1} it does not change.

    Args:
      learning_rate: factor >= 0 of the step, or a schedule. Default 1; without `adaptive` the step itself.
      b2: decay of the mean of the curvature, in [0, 1). Default 0.999.
      alpha: smallest entry of the metric, > 0. Default 1e-5.
      init_learning_rate: eta of the first step, > 0. Default 0.01.
      adaptive: whether the step size follows the change of the gradient. Default True; False: eta = 1.
      deterministic: whether the loss is the same at every step, so that the last gradient is kept. Default False.
      momentum: decay of a mean of the gradients, m = momentum m + (1 - momentum) g, in [0, 1]. Default None, which
        means 0: no mean.
      weight_decay: decoupled decay >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      first_samples: random vectors of the first estimate, >= 1. Default 10.
      num_samples: random vectors of the later estimates, >= 1. Default 1.
      key: a typed key or integer, from which the keys of all steps are derived. Default None: `update` needs `key=`,
        unless the curvature is given.

    Returns:
      A transformation that needs `params`; `curvature`, or `hvp_fn` and a key; and unless deterministic `grad_fn` or
      `previous_grads`. State: 2 words per parameter, one more if deterministic, and with momentum; 1 without
      `adaptive`. Collectives: two scalars, in one all-reduce, and those of the estimate.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, an extra argument missing.

    Example:
      >>> tx = oasis(adaptive=False, key=jax.random.key(0))
      >>> x, a = jnp.array([2.0, 4.0]), jnp.array([1.0, 10.0])  # the loss is a x^2 / 2
      >>> print(tx.update(a * x, tx.init(x), x, hvp_fn=lambda v: a * v)[0].round(4))
      [-2. -4.]

    Reference: Jahani et al. Doubly Adaptive Scaled Algorithm for Machine Learning Using Second-Order Information. 2021,
    arXiv 2109.05198. The change of the gradient is measured in the dual norm, as a Lipschitz constant requires.
    """
    checks.switch(deterministic=deterministic)
    checks.choice("adaptive", adaptive, (True, False))
    checks.real("init_learning_rate", init_learning_rate, "(0, inf)")
    checks.real("momentum", momentum, "[0, 1]", optional=True)
    first_samples = checks.integer("first_samples", first_samples, 1)
    plain = checks.absent(momentum)
    chain = optax.chain(
        *([] if plain or momentum is None else [trace(momentum, dampening=momentum, dampen_first=True)]),
        scale_by_oasis(b2=b2, alpha=alpha),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
    )
    if adaptive:
        chain = scale_by_local_lipschitz(
            chain, metric=_metric(alpha), init_learning_rate=init_learning_rate, deterministic=deterministic
        )
    estimator = hutchinson_estimator(num_samples=num_samples, first_samples=first_samples)
    return optimizer(
        Method("oasis", learning_rate, weight_decay, weight_decay_mask),
        supply_curvature("oasis", chain, estimator, key=key),
        scale_by_learning_rate(learning_rate),
    )


register(scale_by_oasis, form="primitive", paper=PAPER, needs=("curvature",), words=1)
register(
    scale_by_local_lipschitz,
    form="primitive",
    paper=WITHOUT_CURVATURE,
    words=2,
    collectives="norms",
    example={"deterministic": True},
    notes="with deterministic=False it needs previous_grads, or grad_fn",
)
register(
    oasis,
    form="optimizer",
    paper=PAPER,
    needs=("curvature",),
    words=3,
    collectives="norms",
    example={"deterministic": True},
    notes="with deterministic=False it needs previous_grads, or grad_fn, and a word less",
    # It finds its step itself, of which the rate is a factor.
    race=Race(1.0, {"alpha": 1e-2}, schedule=None),
)
