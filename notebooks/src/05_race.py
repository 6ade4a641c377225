# %% [markdown]
# # Race your own problem
#
# Which method trains your problem, each tuned with the same effort: two spirals, a small network, and five
# contestants, of which one is a chain of your own.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import gradkit as gk

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## The problem
#
# Two spirals that wind around each other, and a network that has to say which one a point is on.

# %%
random = np.random.default_rng(0)
turns = np.sqrt(random.uniform(0.02, 1, 600))
label = random.integers(0, 2, 600)
angle = 3.5 * np.pi * turns + np.pi * label
points = turns[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.012 * random.standard_normal((600, 2))
x, y = jnp.asarray(points, jnp.float32), jnp.asarray(label, jnp.float32)


def init(key):
    keys = jax.random.split(key, 3)
    return {
        "first": {"kernel": 2 * jax.random.normal(keys[0], (2, 32)), "bias": jnp.zeros(32)},
        "second": {"kernel": jax.random.normal(keys[1], (32, 32)) / 5, "bias": jnp.zeros(32)},
        "head": {"kernel": jax.random.normal(keys[2], (32, 1)) / 6, "bias": jnp.zeros(1)},
    }


def network(params, x):
    for name in ("first", "second"):
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
    return (x @ params["head"]["kernel"] + params["head"]["bias"])[..., 0]


def loss(params, batch):
    x, y = batch
    return optax.sigmoid_binary_cross_entropy(network(params, x), y).mean()


# %% [markdown]
# `gk.workloads.problem` puts together what a race needs to know: where a run starts, what it trains on, what is
# judged, and when it has arrived. Arrays of examples are enough; minibatches are drawn from them.

# %%
STEPS = 1200

spirals = gk.workloads.problem(
    init,
    loss,
    batches=(x, y),
    metric=lambda params: loss(params, (x, y)),
    target=0.05,
    batch_size=64,
    steps=STEPS,
    eval_every=STEPS // 60,
    name="spirals",
    metric_name="training loss",
)

# %% [markdown]
# ## The race
#
# A contestant is a name, a factory of gradkit or of optax, or any function from a learning rate to a transformation.
# Every one of them gets the same number of learning rates and seeds, all in one compiled program, and two more rates
# where its best one is at the edge. While the race runs, a table shows how far it is.

# %%
RATES, SEEDS = 6, 3


def clipped_momentum(rate):
    return optax.chain(gk.clip_by_global_norm(1.0), gk.sgd(rate, momentum=0.9))


found = gk.training.race(
    spirals,
    ["adamw", gk.lion, "muon", optax.adabelief, ("clipped momentum", clipped_momentum)],
    rates=RATES,
    seeds=SEEDS,
)
found

# %% [markdown]
# How to read it:
#
# - *steps*: the median over seeds until the loss is below the target, at the best learning rate. A miss counts as
#   infinity.
# - *over seeds*: the fastest and the slowest seed. Where two methods overlap too much, the last column calls it a
#   tie.
# - *robust*: how many of the learning rates arrive within twice as many steps as the best one. A method that wins
#   with one rate of six is hard to tune.
# - *time*: steps times the seconds of a step, measured one run at a time. A step of Muon costs more, and on a network
#   as small as this one it has to win by more than that.
#
# ## What the winner has learned

# %%
winner = found.of("spirals")[0]
print(f"{winner.method}, learning rate {winner.best_rate:.3g}: {winner.steps:.0f} steps")
contestant = next(method for method in found.config.contestants if method.name == winner.method)
step = gk.training.make_train_step(loss, contestant.scheduled(winner.best_rate, STEPS))
state = step.init(init(jax.random.key(0)))
for rows in random.integers(0, len(y), (STEPS, 64)):
    state, _ = step(state, (x[rows], y[rows]))

grid = np.stack(np.meshgrid(np.linspace(-1.1, 1.1, 150), np.linspace(-1.1, 1.1, 150)), -1)
surface = jax.nn.sigmoid(network(step.eval_params(state), jnp.asarray(grid, jnp.float32)))
figure, axis = plt.subplots(figsize=(3.6, 3.6), layout="constrained")
axis.contourf(*grid.T, surface.T, levels=[0, 0.5, 1], cmap="RdBu", alpha=0.5)
axis.scatter(*points.T, c=label, cmap="RdBu", s=5)
axis.set(aspect="equal", xticks=[], yticks=[], title=f"trained by {winner.method}")
plt.show()

# %% [markdown]
# The same race from a terminal, with the problem in a file: `gradkit race --problem=spirals.py --methods=adamw,lion`.
# It writes a report of one page.
