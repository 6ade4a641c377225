"""Optimization in other coordinates: the user has w, an inner transformation moves z, and w = decode(z)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar, transformation, wide_dtype, widen
from gradkit.engine.extras import EXTRAS
from gradkit.engine.mismatches import check_fit
from gradkit.engine.norms import global_sums

PAPER = Paper(
    "Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural Networks",
    "Salimans, Kingma",
    2016,
    "1602.07868",
)
# Extra arguments about gradients with respect to w that cannot be converted to z: an inner method that needs one of
# them raises that it is missing.
OF_OTHER_COORDINATES = frozenset(name for name, extra in EXTRAS.items() if extra.local)


class ReparameterizeState(NamedTuple):
    """The latent parameters, which the inner transformation moves, and its state."""

    latent: Any
    inner: Any

    exact_fields = ("latent",)  # parameters, which gk.precision(state=...) must not round


def reparameterize(
    inner: optax.GradientTransformation,
    encode: Callable[[Any], Any],
    decode: Callable[[Any], Any],
    *,
    pullback: Callable[[Any, Any], Any] | None = None,
    resync: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Lets a transformation work in other coordinates than those of the model.

    Equations, with the gradient g with respect to w:

        z_0 = encode(w_0)
        dz  = (d decode / dz)^T g
        z_{t+1} = z_t + u_t                u_t from the inner transformation, which gets dz and z_t
        w_{t+1} = decode(z_{t+1})          the returned update is decode(z_{t+1}) - w_t

    It must own the parameters: any other change of them is undone at the next update (see `resync`). A learning rate
    belongs inside.

    Args:
      inner: moves the latent parameters; its weight decay, masks and norms apply to those.
      encode: tree of parameters -> tree of latent parameters, of any structure. `lambda w: w` where training starts
        at latent parameters that ARE the parameters: then decode(w) should be w, or the first update jumps to it.
      decode: tree of latent parameters -> tree of parameters. For a function of one kernel,
        `lambda z: jax.tree.map(lambda w: f(w) if w.ndim > 1 else w, z)`.
      pullback: (latent, gradient) -> gradient of the latent parameters. Default None: the derivative of `decode`.
      resync: a distance |decode(z) - w| / |w| over the whole tree, > 0, above which z is set to encode(w); the inner
        state does not change. It must be above the rounding of the parameters' dtype, 0.01 for bfloat16. Default None:
        never.

    Returns:
      A transformation that needs `params`. State: the latent parameters (float32 copies) and the inner state. The extra
      arguments `grad`, `value_fn`, `grad_fn`, `hvp_fn`, `model_fn` and `obj_fn` are converted to the latent parameters;
      other gradients that are given as arrays are not passed on. Elementwise except for the functions; with `resync`
      one all-reduce of two numbers.

    Raises:
      ValueError: an argument that is not a function, a `resync` outside its range, complex leaves; at `init`, a
        decode(encode(w)) of other shapes than w.

    Example:
      >>> log, exp = (lambda tree, f=f: jax.tree.map(f, tree) for f in (jnp.log, jnp.exp))
      >>> positive = reparameterize(optax.sgd(0.5), log, exp)
      >>> w = {"scale": jnp.array(1.0)}
      >>> u, _ = positive.update({"scale": jnp.array(4.0)}, positive.init(w), w)
      >>> round(float(w["scale"] + u["scale"]), 4)  # exp(0 - 0.5 * 4): it cannot become negative
      0.1353

    Reference: The form that weight normalization and its relatives share: Salimans, Kingma. Weight Normalization: A
    Simple Reparameterization to Accelerate Training of Deep Neural Networks. 2016, arXiv 1602.07868.
    """
    checks.function("encode", encode)
    checks.function("decode", decode)
    checks.real("resync", resync, "(0, inf)", optional=True)
    if pullback is not None:
        checks.function("pullback", pullback)
    checks.transformation(inner=inner)
    below = optax.with_extra_args_support(inner)

    def back(z: Any, g: Any) -> Any:
        if pullback is not None:
            return pullback(z, g)
        w, transposed = jax.vjp(lambda z: jax.tree.leaves(decode(z)), z)
        return transposed([d.astype(x.dtype) for d, x in zip(jax.tree.leaves(g), w, strict=True)])[0]

    def init(params: optax.Params) -> ReparameterizeState:
        like = jax.eval_shape(lambda x: encode(widen(x)), params)
        made = [x.shape for x in jax.tree.leaves(jax.eval_shape(decode, like))]
        if made != (own := [jnp.shape(x) for x in jax.tree.leaves(params)]):
            raise ValueError(
                f"reparameterize: decode(encode(params)) has leaves of shapes {made}, the parameters {own}; decode "
                "must return a tree like the parameters"
            )
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params)):
            # Shapes have no values: the result has the right structure, but a run cannot start from it.
            z = jax.tree.map(lambda x: jnp.zeros(x.shape, wide_dtype(x.dtype)), like)
        else:
            z = jax.tree.map(lambda x: jnp.array(x, wide_dtype(x.dtype), copy=True), encode(widen(params)))
        return ReparameterizeState(z, below.init(z))

    def update(g: Any, state: ReparameterizeState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        structure = jax.tree.structure(params)

        def at(z: Any) -> Any:
            return structure.unflatten(jax.tree.leaves(decode(z)))

        z = state.latent
        check_fit("reparameterize", g, jax.eval_shape(at, z))
        if resync is not None:
            gap = jax.tree.map(lambda w, own: jnp.square(w - own.astype(w.dtype)), params, at(z))
            square, whole = global_sums(gap, jax.tree.map(jnp.square, params))
            off = square > jnp.square(scalar(resync, square)) * whole
            z = jax.tree.map(lambda old, new: jnp.where(off, new.astype(old.dtype), old), z, encode(params))
        u, state_below = below.update(back(z, g), state.inner, z, **_translated(extra, z, at, back))
        z = jax.tree.map(lambda x, u: x + u.astype(x.dtype), z, u)
        moved = jax.tree.map(lambda new, w: new.astype(w.dtype) - w, at(z), params)
        return jax.tree.unflatten(jax.tree.structure(g), jax.tree.leaves(moved)), ReparameterizeState(z, state_below)

    return transformation("reparameterize", init, update, needs_params=True)


def _at(function: Callable[..., Any], at: Callable[[Any], Any]) -> Callable[..., Any]:
    """A function of the parameters as one of the latent ones, with the same signature, which line searches read."""

    @functools.wraps(function)
    def of_latent(z: Any, **others: Any) -> Any:
        return function(at(z), **others)

    return of_latent


def _translated(
    extra: Mapping[str, Any], z: Any, at: Callable[[Any], Any], back: Callable[[Any, Any], Any]
) -> dict[str, Any]:
    """The extra arguments, converted to the latent parameters."""
    out = {name: value for name, value in extra.items() if name not in OF_OTHER_COORDINATES}
    grad_fn = extra.get("grad_fn")
    for name in ("value_fn", "obj_fn", "model_fn"):
        if extra.get(name) is not None:
            out[name] = _at(extra[name], at)
    if extra.get("grad") is not None:
        out["grad"] = back(z, extra["grad"])
    if grad_fn is not None:
        out["grad_fn"] = lambda z: back(z, grad_fn(at(z)))
    if out.pop("hvp_fn", None) is not None and grad_fn is not None:
        # The Hessian of the loss as a function of z, which contains the second derivative of `decode`.
        out["hvp_fn"] = lambda v: jax.jvp(out["grad_fn"], (z,), (v,))[1]
    return out


register(
    reparameterize,
    form="wrapper",
    paper=PAPER,
    words=1,
    example={
        "encode": lambda w: jax.tree.map(jnp.arcsinh, w),
        "decode": lambda z: jax.tree.map(jnp.sinh, z),
    },
)
