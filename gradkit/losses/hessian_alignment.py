"""Hessian alignment: penalties that make the curvature of a classifier's head the same in all domains.

With g_e the gradient of the mean loss of domain e by the head, H_e its Hessian, and g, H those of the mean over
domains:

    penalty = mean_e [alpha |v_e - v|^2 + beta |g_e - g|^2],       v and g constants in the derivative

    hgp_penalty            v_e = H_e g_e,                          v = H g
    hutchinson_penalty     v_e = mean_k z_k * (H_e z_k),           v = mean_k z_k * (H z_k),       z_k random signs
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar
from gradkit.engine.hutchinson import probe
from gradkit.engine.keys import as_key, check_key
from gradkit.types import Key, Scalar

PAPER = Paper("Understanding Hessian Alignment for Domain Generalization", "Hemati et al.", 2023, "2308.11778")
Loss = Callable[[Any, Any], jax.Array]


def _domains(loss_fn: Loss, domain_batches: Sequence[Any]) -> list[Callable[[Any], Any]]:
    """The gradient of the loss of every domain, and last that of their mean, as functions of the head."""
    checks.function("loss_fn", loss_fn)
    batches = list(domain_batches)
    if not batches:
        raise ValueError("domain_batches must be a sequence of one minibatch per domain, got none")
    own = [jax.grad(lambda head, batch=batch: loss_fn(head, batch)) for batch in batches]

    def mean(head: Any) -> jax.Array:
        return jnp.mean(jnp.stack([loss_fn(head, batch) for batch in batches]))

    return [*own, jax.grad(mean)]


def _squared_distance(a: Any, b: Any) -> jax.Array:
    parts = [jnp.sum(jnp.square(x - y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return jnp.sum(jnp.stack(parts))


def _penalty(vectors: Sequence[Any], gradients: Sequence[Any], alpha: Any, beta: Any) -> jax.Array:
    v, g = jax.lax.stop_gradient((vectors[-1], gradients[-1]))
    curved = jnp.mean(jnp.stack([_squared_distance(x, v) for x in vectors[:-1]]))
    sloped = jnp.mean(jnp.stack([_squared_distance(x, g) for x in gradients[:-1]]))
    return scalar(alpha, curved) * curved + scalar(beta, sloped) * sloped


def hgp_penalty(
    loss_fn: Loss, head_params: Any, domain_batches: Sequence[Any], *, alpha: Scalar = 1e-4, beta: Scalar = 5e-3
) -> jax.Array:
    """The Hessian-gradient product penalty: gradients of all domains agree, and so do their products with the Hessian.

        mean_e [alpha |H_e g_e - H g|^2 + beta |g_e - g|^2]        H g and g, of the mean over domains, held constant

    Add it to the mean loss, and differentiate by the features too: with the features in the batches, the gradient
    reaches what computes them.

    Args:
      loss_fn: (head, minibatch of a domain) -> its mean loss, three times differentiable.
      head_params: the parameters of the classifier on top of the features.
      domain_batches: one minibatch per domain: features and labels.
      alpha: weight of the curvature, >= 0. Default 1e-4 (authors' code).
      beta: weight of the gradients, >= 0. Default 5e-3 (authors' code).

    Returns:
      A scalar. Costs a gradient and a product with a Hessian of the head per domain.

    Raises:
      ValueError: no domain, or a hyperparameter outside its range.

    Example:
      >>> loss = lambda w, batch: jnp.mean((batch @ w - 1.0) ** 2)
      >>> batch = jnp.array([[1.0, 2.0], [0.0, 1.0]])
      >>> float(hgp_penalty(loss, jnp.ones(2), [batch, batch]))
      0.0

    Reference: Hemati et al. Understanding Hessian Alignment for Domain Generalization. 2023, arXiv 2308.11778. The
    authors' code takes |g| times the derivative of |g| for H g, which has no value where g is 0; this is the product.
    """
    checks.arrays(head_params=head_params)
    checks.sequence(domain_batches=domain_batches)
    checks.real("alpha", alpha, "[0, inf)")
    checks.real("beta", beta, "[0, inf)")
    functions = _domains(loss_fn, domain_batches)
    gradients = [grad(head_params) for grad in functions]
    vectors = [jax.jvp(grad, (head_params,), (g,))[1] for grad, g in zip(functions, gradients, strict=True)]
    return _penalty(vectors, gradients, alpha, beta)


def hutchinson_penalty(
    loss_fn: Loss,
    head_params: Any,
    domain_batches: Sequence[Any],
    *,
    key: Key,
    alpha: Scalar = 1e-3,
    beta: Scalar = 5e-3,
    num_samples: int = 300,
    share_probes: bool = True,
) -> jax.Array:
    """The Hutchinson penalty: gradients of all domains agree, and so do the diagonals of their Hessians.

        mean_e [alpha |D_e - D|^2 + beta |g_e - g|^2],     D_e = mean_k z_k * (H_e z_k),   z_k random signs
        D and g, of the mean over domains, held constant

    Args:
      loss_fn: (head, minibatch of a domain) -> its mean loss, three times differentiable.
      head_params: the parameters of the classifier on top of the features.
      domain_batches: one minibatch per domain: features and labels.
      key: a random key (typed key or integer).
      alpha: weight of the curvature, >= 0. Default 1e-3 (authors' code).
      beta: weight of the gradients, >= 0. Default 5e-3 (authors' code).
      num_samples: random signs per diagonal, >= 1. Default 300 (authors' code).
      share_probes: whether all domains see the same signs. Default True, which takes most of the noise out of the
        differences; the authors' code draws others for each.

    Returns:
      A scalar. Costs `num_samples` products with a Hessian of the head per domain, one after the other.

    Raises:
      ValueError: no domain, or an argument outside its range.

    Example:
      >>> loss = lambda w, batch: jnp.mean((batch @ w - 1.0) ** 2)
      >>> batch = jnp.array([[1.0, 2.0], [0.0, 1.0]])
      >>> float(hutchinson_penalty(loss, jnp.ones(2), [batch, batch], key=0, num_samples=2))
      0.0

    Reference: Hemati et al. Understanding Hessian Alignment for Domain Generalization. 2023, arXiv 2308.11778.
    """
    checks.arrays(head_params=head_params)
    checks.sequence(domain_batches=domain_batches)
    checks.real("alpha", alpha, "[0, inf)")
    checks.real("beta", beta, "[0, inf)")
    num_samples = checks.integer("num_samples", num_samples, 1)
    checks.switch(share_probes=share_probes)
    if key is None:
        raise ValueError("key must be a random key or an integer, got None; write key=0")
    check_key(key)
    functions, start = _domains(loss_fn, domain_batches), as_key(key)
    gradients = [grad(head_params) for grad in functions]

    def diagonal(grad: Callable[[Any], Any], own: jax.Array) -> Any:
        def add(total: Any, k: jax.Array) -> tuple[Any, None]:
            z = probe(k, head_params, "rademacher")
            product = jax.jvp(grad, (head_params,), (z,))[1]
            return jax.tree.map(lambda t, z, h: t + z * h, total, z, product), None

        zero = jax.tree.map(jnp.zeros_like, head_params)
        total, _ = jax.lax.scan(add, zero, jax.random.split(own, num_samples))
        return jax.tree.map(lambda t: t / num_samples, total)

    keys = [start if share_probes else jax.random.fold_in(start, e) for e in range(len(functions))]
    vectors = [diagonal(grad, own) for grad, own in zip(functions, keys, strict=True)]
    return _penalty(vectors, gradients, alpha, beta)


register(hgp_penalty, form="program", paper=PAPER)
register(hutchinson_penalty, form="program", paper=PAPER)
