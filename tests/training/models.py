"""Models, losses and data of the tests of the training step."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from gradkit.training import step as training

# optax's types do not say what a tree holds.
make_train_step: Any = training.make_train_step
transformation: Any = optax.GradientTransformationExtraArgs

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((8, 3)).astype(np.float32), RNG.standard_normal((8, 1)).astype(np.float32)
BATCH = {"x": X, "y": Y}

# Two programs of the same float32 arithmetic: a few roundings of 2^-24 per operation, over three steps.
F32 = {"rtol": 1e-5, "atol": 1e-6}
# The same in float64.
F64 = {"rtol": 1e-12, "atol": 1e-13}


def close(a: Any, b: Any, **tolerance: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance), a, b)


def linear(params: Any, batch: Any) -> Any:
    return jnp.mean(jnp.square(batch["x"] @ params["w"] + params["b"].reshape(1, 1) - batch["y"]))


def start(dtype: Any = np.float32) -> dict[str, Any]:
    return {"b": jnp.asarray(0.5, dtype), "w": jnp.asarray([[1.0], [-2.0], [0.5]], dtype)}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(x))


class Module(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.inner = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.outer = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.outer(self.dropout(self.norm(self.inner(x))))


def linen_loss(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
    out, new = Linen().apply(
        {"params": params, **model_state}, batch["x"], mutable=["batch_stats"], rngs={"dropout": key}
    )
    return jnp.mean(jnp.square(out - batch["y"])), new


def nnx_loss(model: Any, batch: Any) -> Any:
    return jnp.mean(jnp.square(model(batch["x"]) - batch["y"]))
