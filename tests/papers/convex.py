"""Small convex problems with noise: methods without a rate to tune are set beside SGD with the best of many rates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.papers.replay import normal

N, DIM, STEPS = 512, 8, 2000
RATES = np.logspace(-4, 2, 13)


def losses(name: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(parameters, rows) -> the mean loss of these rows: logistic and hinge regression with wrong labels, absolute and
    squared errors."""
    A, w = normal(1, N, DIM) * jnp.linspace(0.5, 2.0, DIM)[None, :], normal(2, DIM)
    flipped = jnp.asarray(np.random.default_rng(3).random(N) < 0.1)
    labels = jnp.where(flipped, -1.0, 1.0) * jnp.sign(A @ w)
    y = A @ w + normal(4, N)
    kinds = {
        "logistic": lambda x, rows: jnp.logaddexp(0.0, -labels[rows] * (A[rows] @ x)),
        "hinge": lambda x, rows: jnp.maximum(0.0, 1 - labels[rows] * (A[rows] @ x)),
        "absolute": lambda x, rows: jnp.abs(A[rows] @ x - y[rows]),
        "squares": lambda x, rows: jnp.square(A[rows] @ x - y[rows]) / 2,
    }
    return lambda x, rows: jnp.mean(kinds[name](x, rows))


def reached(name: str, make: Callable[[Any], optax.GradientTransformation], rates: Any = (1.0,)) -> np.ndarray:
    """Per rate, the loss over all rows at the evaluation parameters, after so many steps on four rows each; a second
    gradient is of four others."""
    loss = losses(name)

    def end(rate: jax.Array) -> jax.Array:
        tx, x = optax.with_extra_args_support(make(rate)), jnp.zeros(DIM)

        def step(carry: Any, rows: jax.Array) -> Any:
            x, state = carry
            value, g = jax.value_and_grad(loss)(x, rows[0])
            u, state = tx.update(g, state, x, value=value, grad_fn=lambda x: jax.grad(loss)(x, rows[1]))
            return (x + u, state), None

        order = jnp.asarray(np.random.default_rng(5).integers(0, N, (STEPS, 2, 4)))
        (x, state), _ = jax.lax.scan(step, (x, tx.init(x)), order)
        return loss(gk.eval_params(state, x), jnp.arange(N))

    found = np.asarray(jax.jit(jax.vmap(end))(jnp.asarray(rates)))
    return np.where(np.isfinite(found), found, np.inf)


def tuned(name: str) -> np.ndarray:
    """What the average of SGD reaches with each of the rates."""
    return reached(name, lambda rate: gk.polynomial_decay_average(gk.sgd(rate)), RATES)
