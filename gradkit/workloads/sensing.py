"""A badly conditioned matrix of rank 3, from some of its entries or from products with random matrices: a knife edge
for momentum, milliseconds to run.

sensing        min over U, V of  1/2 mean over seen (i, j) of ((U V^T - M)_ij)^2     60 x 60, condition 100, 40 % seen
sensing_1000   min over U, V of  1/2 sum_k (<A_k, U V^T> - <A_k, M>)^2               30 x 30, condition 1000, 600 A_k
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.workloads.workload import Workload

SIZE, RANK, CONDITION, SEEN = 60, 3, 100.0, 0.4


def _low_rank(random: np.random.Generator, size: int, condition: float) -> np.ndarray:
    """A matrix of norm 1 whose singular values fall evenly in their logs."""
    left, right = (np.linalg.qr(random.standard_normal((size, RANK)))[0] for _ in range(2))
    return (left * np.geomspace(1, 1 / condition, RANK)) @ right.T


def _factors(size: int) -> Callable[[jax.Array], Any]:
    def init(key: jax.Array) -> Any:
        for_u, for_v = jax.random.split(key)
        return {
            "u": 0.1 * jax.random.normal(for_u, (size, RANK), jnp.float32),
            "v": 0.1 * jax.random.normal(for_v, (size, RANK), jnp.float32),
        }

    return init


def _error(matrix: jax.Array) -> Callable[[Any], jax.Array]:
    return lambda params: jnp.linalg.norm(params["u"] @ params["v"].T - matrix) / jnp.linalg.norm(matrix)


def sensing() -> Workload:
    """The completion problem, full batch; metric: relative error over the whole matrix."""
    random = np.random.default_rng(0)
    matrix = jnp.asarray(_low_rank(random, SIZE, CONDITION) * SIZE, jnp.float32)
    mask = random.random((SIZE, SIZE)) < SEEN
    seen, places = jnp.asarray(mask, jnp.float32), np.nonzero(mask)

    def loss(params: Any, seen: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(seen * (params["u"] @ params["v"].T - matrix) ** 2) / jnp.sum(seen)

    def predictions(seen: jax.Array) -> tuple[Callable[[Any], jax.Array], jax.Array]:
        del seen
        return lambda params: (params["u"] @ params["v"].T)[places], matrix[places]

    return Workload(
        name="sensing",
        description="matrix completion 60 x 60, rank 3, condition 100, 40 % seen",
        init=_factors(SIZE),
        batch=lambda key: seen,
        loss=loss,
        metric=_error(matrix),
        metric_name="relative error",
        target=0.01,
        budget_steps=8000,
        eval_every=20,
        separable=2.0,
        predictions=predictions,
    )


def sensing_1000() -> Workload:
    """Gaussian measurements, full batch; metric: relative error. The target asks for a tenth of the smallest singular
    value, whose share of the loss is a millionth of the first one's."""
    random = np.random.default_rng(0)
    size, measurements = 30, 600
    matrix = jnp.asarray(_low_rank(random, size, 1000.0), jnp.float32)
    sensors = random.standard_normal((measurements, size * size)) / np.sqrt(measurements)
    data = jnp.asarray(sensors, jnp.float32), jnp.asarray(sensors @ np.asarray(matrix).reshape(-1), jnp.float32)

    def measured(params: Any, sensors: jax.Array) -> jax.Array:
        return sensors @ (params["u"] @ params["v"].T).reshape(-1)

    def predictions(batch: Any) -> tuple[Callable[[Any], jax.Array], jax.Array]:
        sensors, want = batch
        return lambda params: measured(params, sensors), want

    return Workload(
        name="sensing_1000",
        description="matrix sensing 30 x 30, rank 3, condition 1000, 600 Gaussian measurements",
        init=_factors(size),
        batch=lambda key: data,
        loss=lambda params, batch: 0.5 * jnp.sum((measured(params, batch[0]) - batch[1]) ** 2),
        metric=_error(matrix),
        metric_name="relative error",
        target=1e-4,
        budget_steps=2000,
        eval_every=10,
        separable=2.0,
        predictions=predictions,
    )
