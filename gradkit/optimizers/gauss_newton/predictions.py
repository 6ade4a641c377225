"""Losses of predictions, as Gauss-Newton methods need them: value, minus the derivative per example, second derivative.

           loss of one example               r = -d loss / d y         Q = d^2 loss / d y^2
mse            |t - y|^2 / 2                   t - y                     I
softmax_ce     -t . log softmax(y)             t - sum(t) softmax(y)     sum(t) (diag(p) - p p^T),  p = softmax(y)
sigmoid_bce    sum log(1 + e^y) - t y          t - sigmoid(y)            diag(p (1 - p)),           p = sigmoid(y)

The loss is the mean over the examples, the first axis.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit.engine.core import need, wide_dtype
from gradkit.types import PyTree

LOSSES = ("mse", "softmax_ce", "sigmoid_bce")


class Linearized(NamedTuple):
    """Predictions of a minibatch at some parameters: products with their derivative J and its transpose, r and Q, and
    the loss at any parameters."""

    jvp: Callable[[Any], jax.Array]
    vjp: Callable[[jax.Array], Any]
    residual: jax.Array
    loss_hessian: jax.Array | None
    loss: Callable[[Any], jax.Array] | None


def _targets(method: str, loss: str, y: Any, targets: jax.Array) -> jax.Array:
    """Targets as (b, c), beside predictions of this shape."""
    classes = loss == "softmax_ce" and jnp.issubdtype(targets.dtype, jnp.integer)
    want = y.shape[:1] if classes else y.shape
    if y.ndim not in ((2,) if loss == "softmax_ce" else (1, 2)) or not y.shape[0]:
        raise ValueError(f"{method}: model_fn must give (examples, outputs) for {loss}, got shape {y.shape}")
    if targets.shape != want:
        raise ValueError(f"{method}: targets must have shape {want} for {loss}, got {targets.shape}")
    if classes:
        targets = jax.nn.one_hot(targets, y.shape[1], dtype=wide_dtype(y.dtype))
    return targets.astype(wide_dtype(y.dtype)).reshape(y.shape[0], -1)


def _value(loss: str, y: jax.Array, t: jax.Array) -> jax.Array:
    if loss == "mse":
        each = jnp.square(t - y) / 2
    elif loss == "softmax_ce":
        each = -t * jax.nn.log_softmax(y, axis=1)
    else:
        each = jax.nn.softplus(y) - t * y
    return jnp.sum(each) / y.shape[0]


def _derivatives(loss: str, y: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    eye = jnp.eye(y.shape[1], dtype=y.dtype)[None]
    if loss == "mse":
        return t - y, None
    if loss == "softmax_ce":
        p, mass = jax.nn.softmax(y, axis=1), jnp.sum(t, axis=1, keepdims=True)
        return t - mass * p, mass[:, :, None] * (p[:, :, None] * eye - p[:, :, None] * p[:, None, :])
    p = jax.nn.sigmoid(y)
    return t - p, (p * (1 - p))[:, :, None] * eye


def linearized(method: str, loss: str, params: PyTree, extra: Any) -> Linearized:
    """What the extra arguments of an update say of the predictions at `params`.

    Args:
      method: the public name, for messages.
      loss: one of `LOSSES`.
      params: the parameters.
      extra: `model_fn` (parameters -> predictions of this minibatch, (b,) or (b, c)) and `targets`; or `residuals`,
        `jvp` and `vjp`, and `loss_hessian` where it is not the identity.
    """
    if extra.get("residuals") is not None:
        r, Q = jnp.asarray(extra["residuals"]), extra.get("loss_hessian")
        jvp, vjp = (need(method, extra, name) for name in ("jvp", "vjp"))
        if r.ndim not in (1, 2):
            raise ValueError(f"{method}: residuals must be (examples,) or (examples, outputs), got shape {r.shape}")
        if Q is not None and Q.shape != (r.shape[0], r.size // r.shape[0], r.size // r.shape[0]):
            raise ValueError(f"{method}: loss_hessian must be (examples, outputs, outputs), got shape {Q.shape}")
        return Linearized(jvp, vjp, r, Q, extra.get("value_fn"))
    model_fn, targets = (need(method, extra, name) for name in ("model_fn", "targets"))
    t = _targets(method, loss, jax.eval_shape(model_fn, params), jnp.asarray(targets))

    def predict(params: Any) -> jax.Array:
        y = model_fn(params)
        if any(jax.typeof(y).sharding.spec):  # over Explicit axes: the system is solved on every device
            y = jax.sharding.reshard(y, jax.sharding.PartitionSpec())
        return y.astype(t.dtype).reshape(t.shape)

    y, jvp = jax.linearize(predict, params)
    transpose = jax.vjp(predict, params)[1]
    residual, Q = _derivatives(loss, y, t)
    return Linearized(jvp, lambda w: transpose(w)[0], residual, Q, lambda params: _value(loss, predict(params), t))
