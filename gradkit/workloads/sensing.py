"""Matrix completion with a condition number of 100: a knife edge for momentum, milliseconds to run.

min over U, V of  1/2 mean over seen (i, j) of ((U V^T - M)_ij)^2,     M of rank 3, 60 x 60, 40 % seen
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.workloads.workload import Workload

SIZE, RANK, CONDITION, SEEN = 60, 3, 100.0, 0.4


def sensing() -> Workload:
    """The completion problem, full batch; metric: relative error over the whole matrix."""
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.standard_normal((SIZE, RANK)))[0] for _ in range(2))
    matrix = jnp.asarray((left * np.geomspace(1, 1 / CONDITION, RANK)) @ right.T * SIZE, jnp.float32)
    seen = jnp.asarray(random.random((SIZE, SIZE)) < SEEN, jnp.float32)

    def init(key: jax.Array) -> Any:
        for_u, for_v = jax.random.split(key)
        shape = (SIZE, RANK)
        return {
            "u": 0.1 * jax.random.normal(for_u, shape, jnp.float32),
            "v": 0.1 * jax.random.normal(for_v, shape, jnp.float32),
        }

    def loss(params: Any, seen: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(seen * (params["u"] @ params["v"].T - matrix) ** 2) / jnp.sum(seen)

    def metric(params: Any) -> jax.Array:
        return jnp.linalg.norm(params["u"] @ params["v"].T - matrix) / jnp.linalg.norm(matrix)

    return Workload(
        name="sensing",
        description="matrix completion 60 x 60, rank 3, condition 100, 40 % seen",
        init=init,
        batch=lambda key: seen,
        loss=loss,
        metric=metric,
        metric_name="relative error",
        target=0.01,
        budget_steps=8000,
        eval_every=20,
        separable=2.0,
    )
