"""Linear regression under noise of infinite variance: methods that bound the step win, the others miss.

y = a . x + e,     e ~ Student t with 1.3 degrees of freedom,     a_j ~ N(0, s_j^2),  s from 1 to 0.1
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.workloads.networks import sample
from gradkit.workloads.workload import Workload

DIMENSION, EXAMPLES, DEGREES = 50, 2000, 1.3


def heavytail(*, batch_size: int = 32) -> Workload:
    """The regression; metric: excess risk under the true covariance, relative to that of zero."""
    random = np.random.default_rng(0)
    scales = np.geomspace(1, 0.1, DIMENSION)
    inputs = random.standard_normal((EXAMPLES, DIMENSION)) * scales
    truth = random.standard_normal((DIMENSION, 1))
    outputs = inputs @ truth + random.standard_t(DEGREES, (EXAMPLES, 1))
    data = tuple(jnp.asarray(array, jnp.float32) for array in (inputs, outputs))
    scaled_truth, scales = jnp.asarray(truth * scales[:, None], jnp.float32), jnp.asarray(scales[:, None], jnp.float32)

    def loss(params: Any, batch: Any) -> jax.Array:
        inputs, outputs = batch
        return 0.5 * jnp.mean((inputs @ params["kernel"] - outputs) ** 2)

    def metric(params: Any) -> jax.Array:
        return jnp.sum((params["kernel"] * scales - scaled_truth) ** 2) / jnp.sum(scaled_truth**2)

    return Workload(
        name="heavytail",
        description=f"linear regression, Student t noise with 1.3 degrees of freedom, batch {batch_size}",
        init=lambda key: {"kernel": jnp.zeros((DIMENSION, 1), jnp.float32)},
        batch=lambda key: sample(key, data, batch_size),
        loss=loss,
        metric=metric,
        metric_name="relative excess risk",
        target=0.05,
        budget_steps=3000,
        eval_every=20,
        separable=2.0,
        batch_size=batch_size,
    )
