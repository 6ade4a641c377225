"""Hyperparameters and methods of the files of independent implementations, in our words."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradkit as gk

# Every array is one tensor, whatever its name.
ARRAYS = gk.leaves.layout((gk.leaves.by_rank(), {"stack": ()}))
MASKS = {
    "ndim>1": gk.leaves.by_rank(2),
    "ndim<=1": gk.leaves.by_rank(0, 1),
    "all but bias": ~gk.leaves.by_path("bias"),
    "all": True,
    "none": False,
}
NAMES = {
    "l2": "weight_decay",
    "norm_max": "param_norm_max",
    "mask": "weight_decay_mask",
    "debias": "bias_correction",
    "correct_bias": "bias_correction",
    "use_bias_correction": "bias_correction",
    "precondition_frequency": "update_interval",
    "max_precond_dim": "max_dim",
    "max_preconditioner_dim": "max_dim",
    "max_size_triangular": "max_dim",
    "sync_period": "sync_every",
    "total": "total_steps",
    "max_grad_norm": "max_norm",
    "num_iterations": "total_steps",
    "initial_accumulator": "initial_accumulator_value",
}
# What may have a value per step.
SCHEDULED = ("learning_rate", "weight_decay")


def known(hyper: dict[str, Any], *drop: str) -> dict[str, Any]:
    """Hyperparameters under this library's names and types."""
    out = {}
    for name, value in hyper.items():
        if name in drop:
            continue
        if name in SCHEDULED and isinstance(value, list):
            value = per_step(value)
        if isinstance(value, str) and name.endswith("mask"):
            value = MASKS[value]
        out[NAMES.get(name, name)] = value
    return out


def per_step(values: list[float]) -> Callable[[Any], Any]:
    return lambda count: jnp.asarray(values)[count]


def direct(function: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda hyper: function(**known(hyper))


def penalised(function: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
    """A method that has both an L2 penalty and decoupled decay."""
    return lambda hyper: function(**known(hyper, "l2"), l2=hyper.get("l2", 0.0))


def without(function: Callable[..., Any], *foreign: str) -> Callable[[dict[str, Any]], Any]:
    """A file whose reference has arguments that its method does not read."""
    return lambda hyper: function(**known(hyper, *foreign))


def around(wrapper: Callable[..., Any], inner: Callable[..., Any], *names: str) -> Callable[[dict[str, Any]], Any]:
    """A wrapper whose file has the hyperparameters of both."""

    def build(hyper: dict[str, Any]) -> optax.GradientTransformation:
        own = {name: hyper[name] for name in names if name in hyper}
        return wrapper(inner(**known(hyper, *names)), **own)

    return build


def averaged(method: Callable[..., Any], **own: Any) -> Callable[[dict[str, Any]], Any]:
    """A file of a method and of the polynomial average of its iterates."""

    def build(hyper: dict[str, Any]) -> optax.GradientTransformation:
        given = {**known(hyper, "average_gamma"), "init_step": tuple(hyper["init_step"]), **own}
        return gk.polynomial_decay_average(method(**given), gamma=hyper["average_gamma"])

    return build


def lars(hyper: dict[str, Any]) -> optax.GradientTransformation:
    clip = hyper.get("ratio_clip")
    assert clip in (None, "larc")
    return (gk.larc if clip else gk.lars)(**known(hyper, "ratio_clip"))


def tvlars(hyper: dict[str, Any]) -> optax.GradientTransformation:
    """`norm_max` is of both norms here; the reference has the joint denominator, which is the only one."""
    own = {**hyper}
    assert own.pop("denominator", "joint") == "joint"
    return gk.tvlars(norm_max=own.pop("norm_max", math.inf), **known(own))


def proximal_ewma(hyper: dict[str, Any]) -> optax.GradientTransformation:
    """A file of the mean: the parameters that move are kept in the state, and what is replayed is the mean of them."""
    tx = optax.chain(gk.sgd(**known(hyper, "decay", "reset_at")), gk.proximal_ewma(hyper["decay"]))
    reset_at = hyper.get("reset_at") or 0

    def init(x: Any) -> Any:
        return 1, x, tx.init(x)

    def update(g: Any, state: Any, mean: Any, **extra: Any) -> Any:
        t, x, inner = state
        u, inner = tx.update(g, inner, x, reset=t == reset_at)
        x = optax.apply_updates(x, u)
        return jax.tree.map(jnp.subtract, inner[-1].proximal_params(x), mean), (t + 1, x, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def adam_l2(hyper: dict[str, Any]) -> optax.GradientTransformation:
    return optax.chain(gk.add_decayed_weights(hyper["l2"]), gk.adam(**known(hyper, "l2")))


def agc(hyper: dict[str, Any]) -> optax.GradientTransformation:
    clip = gk.adaptive_grad_clip(hyper["clipping"], eps=hyper["eps"])
    return optax.chain(clip, gk.sgd(**known(hyper, "clipping", "eps")))


def through(function: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
    """Gradient descent on weights behind a function, when the gradient of the file arrives at its value."""

    def build(hyper: dict[str, Any]) -> optax.GradientTransformation:
        moves = ("learning_rate", "momentum", "dampening", "nesterov", "weight_decay")
        own = {name: hyper[name] for name in hyper if name not in moves}
        value = lambda w: function(w, **own)  # noqa: E731

        def update(g: Any, state: Any, params: Any = None) -> Any:
            return jax.tree.map(lambda w, d: jax.vjp(value, w)[1](d)[0], params, g), state

        back = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
        return optax.chain(back, gk.sgd(**known({name: hyper[name] for name in moves if name in hyper})))

    return build


def low_rank(function: Callable[..., Any]) -> Callable[[dict[str, Any]], Any]:
    """Codes that name the interval and the side otherwise, and whose "std" is the shorter side.

    They ran on the arrays as they are: their "left" are the rows, which are the inputs here.
    """
    names = {"update_proj_gap": "update_interval", "gamma": "growth_limit", "projection": "side"}
    sides = {"std": "short", "reverse_std": "long", "left": "inputs", "right": "outputs"}

    def build(hyper: dict[str, Any]) -> Any:
        own = known(hyper)
        return function(**{names.get(k, k): sides.get(v, v) if k == "projection" else v for k, v in own.items()})

    return build


def conda(hyper: dict[str, Any]) -> Any:
    own = known(hyper)
    if "update_proj_gap" in own:
        own["update_interval"] = own.pop("update_proj_gap")
    return gk.conda(**own)


def shampoo(hyper: dict[str, Any]) -> optax.GradientTransformation:
    """The reference's exponent is one of matrices, where it is given."""
    own = known(hyper)
    exponent = own.pop("exponent_override", None)
    return gk.shampoo(**own if exponent is None else {**own, "exponent": exponent})
