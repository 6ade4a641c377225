# %% [markdown]
# # Write your own method
#
# An optimizer in twenty lines, the contract that finds two faults in its first version, and a race that shows what it
# is good for.

# %%
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from gradkit.testing import check_transformation

# %% [markdown]
# ## The idea
#
# Gradients with heavy tails: now and then one example is so far off that its gradient throws SGD far away, and a
# momentum remembers it for many steps. So let every gradient count the same, however large it is, tensor by tensor:
#
#     n_t = g_t / rms(g_t)
#     m_t = b m_{t-1} + (1 - b) n_t
#     u_t = m_t / (1 - b^t)                  without the bias towards the zeros that m starts from
#     x_t = x_{t-1} - learning_rate u_t
#
# ## A first version
#
# A link of a chain is a pair of functions: one makes a state from the parameters, the other makes updates from
# gradients.


# %%
class State(NamedTuple):
    count: Any
    momentum: Any


def first_version(b=0.9):
    def init(params):
        return State(0, jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        count = state.count + 1
        normalized = jax.tree.map(lambda g: g / jnp.sqrt(jnp.mean(g**2)), updates)
        momentum = jax.tree.map(lambda m, n: b * m + (1 - b) * n, state.momentum, normalized)
        return jax.tree.map(lambda m: m / (1 - b**count), momentum), State(count, momentum)

    return optax.GradientTransformation(init, update)


# %% [markdown]
# It looks right, and it trains. `check_transformation` runs it as loops, `jit`, `scan`, `vmap`, checkpoints and
# meshes will, and says what does not hold:

# %%
try:
    check_transformation(first_version())
except AssertionError as error:
    print(error)

# %% [markdown]
# Three points fail, for two reasons, and both would have shown late:
#
# - The counter is a Python number. After the first step under `jit` it is an array, so the step is compiled twice,
#   and a checkpoint of the first state does not fit later ones.
# - A gradient of zeros is divided by zero: an embedding that no example of a minibatch uses, a frozen layer or a dead
#   unit puts NaNs into the parameters for good.
#
# ## The second version
#
# Twenty lines.


# %%
class NormalizedState(NamedTuple):
    count: jax.Array
    momentum: optax.Updates


def scale_by_normalized_momentum(b=0.9, eps=1e-8):
    def init(params):
        return NormalizedState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        count = optax.safe_increment(state.count)
        normalized = jax.tree.map(lambda g: g / (jnp.sqrt(jnp.mean(g**2)) + eps), updates)
        momentum = jax.tree.map(lambda m, n: b * m + (1 - b) * n, state.momentum, normalized)
        corrected = jax.tree.map(lambda m: (m / (1 - b**count)).astype(m.dtype), momentum)
        return corrected, NormalizedState(count, momentum)

    return optax.GradientTransformation(init, update)


def normalized_momentum(learning_rate, b=0.9):
    return optax.chain(scale_by_normalized_momentum(b), gk.scale_by_learning_rate(learning_rate))


# %%
print(check_transformation(normalized_momentum(0.01), descends=True))

# %% [markdown]
# What the contract does not know is what the method is meant to be. For that, compare a few steps with the equations
# in NumPy:

# %%
tx, random = scale_by_normalized_momentum(b=0.9), np.random.default_rng(0)
state, m = tx.init(jnp.zeros(5)), np.zeros(5)
for t in range(1, 4):
    g = random.standard_normal(5)
    update, state = tx.update(jnp.asarray(g, jnp.float32), state)
    m = 0.9 * m + 0.1 * g / np.sqrt(np.mean(g**2))
    np.testing.assert_allclose(update, m / (1 - 0.9**t), rtol=1e-5)
print("three steps agree")

# %% [markdown]
# ## What is it good for?
#
# `heavytail` is a linear regression under noise of infinite variance. Every method gets the same learning rates and
# seeds.

# %%
RATES, SEEDS, STEPS = 6, 3, 1000

found = gk.training.race(
    "heavytail",
    ["sgd", "adamw", "clipped_sgd", normalized_momentum],
    rates=RATES,
    seeds=SEEDS,
    steps=STEPS,
)
found

# %% [markdown]
# Both methods that bound what a single gradient can do arrive: the new one, and SGD that clips, which needs a
# threshold for that. Neither AdamW nor plain SGD does within 1,000 steps.
#
# The new method is a transformation like any other now: it goes into `optax.chain`, parameter groups,
# `gk.training.make_train_step` and `nnx.Optimizer`. To add a method to the library itself, with a card, a page and
# the test of its paper, see *Write a method* in the guides.
