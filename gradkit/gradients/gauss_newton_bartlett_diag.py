"""The Gauss-Newton-Bartlett estimate of the diagonal of a Gauss-Newton matrix, from a gradient with sampled labels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import widen
from gradkit.engine.keys import as_key
from gradkit.engine.matching import check_leaves
from gradkit.gradients.hutchinson_diag import FUNCTION, scalar_loss
from gradkit.gradients.replicas import mean_over, own_copy
from gradkit.types import Key, PyTree

PAPER = Paper(
    "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training",
    "Liu et al.",
    2023,
    "2305.14342",
)


def gauss_newton_bartlett_diag(
    logits_fn: Callable[[Any, Any], Any],
    loss_fn: Callable[[Any, Any], Any],
    params: PyTree,
    batch: Any,
    key: Key,
    *,
    count: Any = None,
    axis_name: Any = None,
) -> Any:
    """An estimate of the diagonal of the Gauss-Newton matrix that is never negative, at the cost of one gradient.

    Equations:

        y_i ~ softmax(logits_i),  i = 1 ... B               labels sampled from the model's own predictions
        g = gradient of the mean of loss(logits_i, y_i)
        h = B g^2                                           E[h] = diag of the mean of J_i^T (diag(p_i) - p_i p_i^T) J_i

    Use another key for every call.

    Args:
      logits_fn: (params, batch) -> logits, classes along the last axis.
      loss_fn: (logits, labels) -> scalar: the MEAN of the cross entropies of all labels.
      params: the parameters at which the matrix is estimated.
      batch: the batch for `logits_fn`.
      key: a random key (typed key or integer) with which the labels are drawn.
      count: B, how many labels the loss is a mean over, where it leaves some out (padding). Default None: as many as
        there are logits, that is tokens for a language model, on all devices.
      axis_name: axis of `vmap` or `shard_map` whose members hold parts of the batch: each draws its own labels, the
        gradients are averaged over members before the square, and B counts the labels of all. Default None.

    Returns:
      A tree like the parameters, float32 or wider. Collectives: those of a gradient.

    Raises:
      ValueError: no parameters; leaves that are not real floating point numbers; a loss that is no scalar.

    Example:
      >>> def loss(logits, labels):
      ...     return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))
      >>> def logits(x, batch):
      ...     return jnp.stack([batch * x, -batch * x], axis=1)
      >>> h = gauss_newton_bartlett_diag(logits, loss, jnp.array(0.0), jnp.ones(1), jax.random.key(0))
      >>> float(h)  # (d/dx of the log of one half, of logits x and -x)^2
      1.0

    Reference: Liu et al. Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training. 2023,
    arXiv 2305.14342. The official code multiplies by B where it divides by h; here B is in h.
    """
    checks.arrays(params=params, batch=batch)
    checks.axis_name("axis_name", axis_name)
    checks.function("logits_fn", logits_fn)
    checks.function("loss_fn", loss_fn)
    checks.real("count", count, "(0, inf)", optional=True)
    if params is None:
        raise ValueError(
            "gauss_newton_bartlett_diag needs params, at which the matrix is estimated, got None; pass the parameters"
        )
    key = as_key(key)
    check_leaves("gauss_newton_bartlett_diag", params, complex_leaves=False)
    params = own_copy(params, axis_name)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    labels_of = jax.eval_shape(logits_fn, params, batch).shape[:-1]

    def sampled(params: Any) -> Any:
        logits = logits_fn(params, batch)
        labels = jax.random.categorical(key, jax.lax.stop_gradient(logits), axis=-1)
        return loss_fn(logits, labels)

    g = mean_over(widen(jax.grad(scalar_loss("gauss_newton_bartlett_diag", sampled))(params)), axis_name)
    B: Any = np.prod(labels_of, dtype=np.float64).item() if count is None else count
    if axis_name is not None:
        B = B * jax.lax.axis_size(axis_name) if count is None else jax.lax.psum(B, axis_name)
    return jax.tree.map(lambda g: jnp.asarray(B).astype(g.dtype) * jnp.square(g), g)


register(
    gauss_newton_bartlett_diag,
    form="diagnostic",
    paper=PAPER,
    example={
        "logits_fn": lambda x, batch: batch * x[None],
        "loss_fn": lambda logits, labels: jnp.mean(logits),
        "params": np.ones(3, np.float32),
        "batch": np.ones((2, 3), np.float32),
        "key": np.zeros(2, np.uint32),
    },
    opt_outs=dict.fromkeys(("pure", "missing", "abstract", "bad input", "mesh"), FUNCTION),
)
