"""GSAM: SAM that also reduces the surrogate gap, the loss at the perturbed parameters minus that at the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import abs_sq, cast, divide, wide_dtype, widen
from gradkit.engine.norms import global_sums
from gradkit.gradients.replicas import mean_over, own_copy
from gradkit.gradients.sam import ascent
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper("Surrogate Gap Minimization Improves Sharpness-Aware Training", "Zhuang et al.", 2022, "2203.08065")
RATES = ("rho_min", "learning_rate", "max_learning_rate")


def across(a: Any, b: Any) -> Any:
    """The part of a that is orthogonal to b; a where b is 0.

    >>> across(jnp.array([3.0, 4.0]), jnp.array([2.0, 0.0])).tolist()
    [0.0, 4.0]
    """
    product, square = global_sums(jax.tree.map(lambda a, b: jnp.real(jnp.conj(b) * a), a, b), jax.tree.map(abs_sq, b))
    share = divide(product, square)
    return jax.tree.map(lambda a, b: a - cast(share, a.dtype) * b, a, b)


def gsam(
    loss_fn: Callable[..., Any],
    rho: Scalar = 0.05,
    *,
    alpha: Scalar,
    rho_min: Scalar | None = None,
    learning_rate: Scalar | None = None,
    max_learning_rate: ScalarOrSchedule | None = None,
    minimize: str = "perturbed",
    has_aux: bool = False,
    axis_name: Any = None,
) -> Callable[..., tuple[Any, Any]]:
    """Surrogate-gap guided SAM: the gradient at perturbed parameters, plus a step that reduces the surrogate gap.

    Equations, with g the gradient at x, and p the one at x + rho_t g / (|g| + 1e-12), on the same minibatch:

        rho_t  = rho                                                                        without rho_min
        rho_t  = rho_min + (rho - rho_min) learning_rate / max_learning_rate                with rho_min
        result = p - alpha (g - (<g, p> / |p|^2) p)                                         minimize="perturbed"
        result = g + alpha (p - (<g, p> / |g|^2) g)                                         minimize="clean"

    With "perturbed" it descends along p, and ascends along the part of g that is orthogonal to p; with "clean" it
    descends along g, and along the part of p that is orthogonal to g. Norms and products run over the whole tree.

    Args:
      loss_fn: (params, *args) -> scalar, or (scalar, aux).
      rho: length of the step uphill, at the largest learning rate, >= 0. Default 0.05, as `sam`. May be traced.
      alpha: weight of the orthogonal part, >= 0. The paper tunes it. May be traced.
      rho_min: length of the step uphill at a learning rate of 0, >= 0; needs both learning rates. Default None: `rho`
        in every step.
      learning_rate: the learning rate of this step, >= 0. May be traced. Default None.
      max_learning_rate: the peak of its schedule, > 0. Default None.
      minimize: "perturbed" or "clean", the gradient that is followed. Default "perturbed" (paper).
      has_aux: whether `loss_fn` returns (scalar, aux). Default False.
      axis_name: axis of `vmap` or `shard_map` over whose members gradients are averaged, before the step uphill
        and after. Default None: each member climbs by its own gradient.

    Returns:
      fn(params, *args, **kwargs) -> (value, gradient) or ((value, aux), gradient), with value and aux at the
      parameters themselves. Two gradients a step; no state; a norm and two sums of the whole tree.

    Raises:
      ValueError: an argument outside its range; some of rho_min, learning_rate and max_learning_rate without the
        others.

    Example:
      >>> curvature = jnp.array([1.0, 4.0])
      >>> fn = gsam(lambda x: jnp.sum(curvature * x**2) / 2, rho=0.5, alpha=1.0)
      >>> value, g = fn(jnp.array([3.0, 1.0]))  # p is (3.3, 5.6), and g across it (0.48, -0.28)
      >>> float(value), [round(float(x), 2) for x in g]
      (6.5, [2.82, 5.88])

    Reference: Zhuang et al. Surrogate Gap Minimization Improves Sharpness-Aware Training. 2022, arXiv 2203.08065;
    big_vision's trainer, commit 0127fb6, where the least learning rate, at which rho is rho_min, is an argument: here
    it is 0. Where the vector that is divided by is 0, the orthogonal part is left out.
    """
    checks.axis_name("axis_name", axis_name)
    checks.switch(has_aux=has_aux)
    checks.function("loss_fn", loss_fn)
    checks.real("rho", rho, "[0, inf)")
    checks.real("alpha", alpha, "[0, inf)")
    checks.choice("minimize", minimize, ("perturbed", "clean"))
    checks.real("rho_min", rho_min, "[0, inf)", optional=True)
    checks.real("learning_rate", learning_rate, "[0, inf)", optional=True)
    checks.real("max_learning_rate", max_learning_rate, "(0, inf)", optional=True)
    given = dict(zip(RATES, (rho_min, learning_rate, max_learning_rate), strict=True))
    absent = [name for name, value in given.items() if value is None]
    if absent and len(absent) < len(RATES):
        raise ValueError(
            f"gsam: {', '.join(absent)} must be given too, because rho depends on the learning rate from rho_min: got "
            f"{', '.join(f'{k}={v}' for k, v in given.items() if v is not None)}; write all of {', '.join(RATES)}, or "
            "none for one rho"
        )

    def fn(params: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        params = own_copy(params, axis_name)
        value, g = jax.value_and_grad(loss_fn, has_aux=has_aux)(params, *args, **kwargs)
        value, aux = value if has_aux else (value, None)
        value, g = mean_over((value, widen(g)), axis_name)
        radius = rho
        if not absent:
            least, rate, most = (jnp.asarray(x, jnp.result_type(float)) for x in given.values())
            radius = least + (jnp.asarray(rho, least.dtype) - least) * rate / most

        def move(x: jax.Array, e: jax.Array) -> jax.Array:
            return (x.astype(wide_dtype(x.dtype)) + e).astype(x.dtype)

        beside = jax.tree.map(move, params, ascent(g, radius))
        p = jax.grad(loss_fn, has_aux=has_aux)(beside, *args, **kwargs)
        p = mean_over(widen(p[0] if has_aux else p), axis_name)
        followed, other, sign = (p, g, -1) if minimize == "perturbed" else (g, p, 1)

        def joined(a: jax.Array, b: jax.Array, x: jax.Array) -> jax.Array:
            return (a + sign * jnp.asarray(alpha, a.dtype) * b).astype(x.dtype)

        new = jax.tree.map(joined, followed, across(other, followed), params)
        return ((value, aux) if has_aux else value), new

    return fn


register(
    gsam, form="source", paper=PAPER, collectives="norms", golden=("modern/gsam",), example={"rho": 0.1, "alpha": 0.4}
)
