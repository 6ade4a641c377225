# %% [markdown]
# # Many tasks
#
# Two losses that want different things, and one of them ten times as loud. What an aggregator of gradients does about
# that, first in two dimensions, where one can see it, and then in a network with two heads.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import gradkit as gk

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## In two dimensions
#
# Both tasks have a minimum, in different places. Between these runs a curve of points where no task can gain without
# the other losing, the Pareto set. Every point of it is a fair end; what differs is how a method gets there, and
# which point it chooses.

# %%
LOUD = 10.0


def losses(x):
    quiet = 0.5 * ((x[0] + 1) ** 2 + 4 * (x[1] + 0.3) ** 2)
    loud = LOUD * 0.5 * (4 * (x[0] - 1) ** 2 + (x[1] - 0.5) ** 2)
    return jnp.stack([quiet, loud])


AGGREGATORS = {
    "mean": gk.aggregation.mean(),
    "mgda": gk.aggregation.mgda(),
    "upgrad": gk.aggregation.upgrad(),
    "cagrad": gk.aggregation.cagrad(c=0.5),
}
STARTS = jnp.array([[-1.8, 1.6], [0.2, 2.0], [1.8, -1.2], [-0.6, -1.7]])


def path(aggregator, start, steps=1500):
    tx = optax.chain(aggregator, gk.sgd(0.01))

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(jax.jacrev(losses)(x), state, x)
        return (x + updates, state), x

    return jax.lax.scan(step, (start, tx.init(start)), None, steps)[1]


# %% [markdown]
# The chain is `optax.chain(aggregator, optimizer)`: gradients of all tasks come in along a leading axis, and one
# update goes out.

# %%
share = np.linspace(0, 1, 200)
# Where the weighted sum of both losses is smallest, for all weights: the Pareto set.
pareto = np.stack(
    [
        (-(1 - share) + LOUD * 4 * share) / ((1 - share) + LOUD * 4 * share),
        (-0.3 * 4 * (1 - share) + LOUD * 0.5 * share) / (4 * (1 - share) + LOUD * share),
    ]
)
ticks = np.linspace(-2.2, 2.2, 80)
surface = np.asarray(jax.vmap(jax.vmap(losses))(jnp.stack(jnp.meshgrid(ticks, ticks), -1)))

figure, axes = plt.subplots(1, len(AGGREGATORS), figsize=(2.7 * len(AGGREGATORS), 2.8), layout="constrained")
for axis, (name, aggregator) in zip(np.atleast_1d(axes), AGGREGATORS.items(), strict=True):
    for task, colour in enumerate(["tab:blue", "tab:red"]):
        levels = np.quantile(surface[..., task], [0.02, 0.1, 0.25, 0.5])
        axis.contour(ticks, ticks, surface[..., task], levels=levels, colors=colour, linewidths=0.6, alpha=0.5)
    axis.plot(*pareto, color="0.6", linewidth=4, solid_capstyle="round", alpha=0.7)
    for track in np.asarray(jax.jit(jax.vmap(lambda start, tx=aggregator: path(tx, start)))(STARTS)):
        axis.plot(*track.T, color="k", linewidth=1.2)
        axis.plot(*track[-1], "o", color="gold", markeredgecolor="k", markersize=7, zorder=4)
    axis.set(title=name, xticks=[], yticks=[], xlim=(-2.2, 2.2), ylim=(-2.2, 2.2))
plt.show()

# %% [markdown]
# Blue is the quiet task, red the loud one, grey the Pareto set, and a dot the end of a run.
#
# - *mean*: the loud task decides. Wherever a run begins, it ends close to the minimum of that task.
# - *mgda* takes the shortest combination of both gradients. It goes down to the Pareto set and stops where it meets
#   it, so the start decides.
# - *upgrad* projects every gradient so that it harms no other task, and takes the mean of those. No task gets worse
#   on the way, but the loud one still has the louder say.
# - *cagrad* stays within half a gradient of the mean and helps the task that gains least. It bends its paths, and
#   ends where the mean ends.
#
# ## In a network
#
# Six tasks on one narrow trunk: which digit, is it even, is it five or more, its remainder by three, the image
# itself, and which digit when the image is mirrored. Their losses differ in size by a factor of 300, as those of real
# tasks do. `make_train_step` asks for a loss per task, and computes their gradients as far as the aggregator looks at
# them.

# %%
STEPS = 200
TASKS = ["digit", "parity", "five or more", "remainder by three", "image", "mirrored"]
SIZES = np.array([1.0, 10.0, 0.1, 1.0, 30.0, 0.3])  # by which the losses of this problem are multiplied

problem = gk.workloads.load("multitask_six")
schedule = gk.schedules.warmup(STEPS // 20, 0.03) + gk.schedules.decay("cosine", STEPS - STEPS // 20)
params = problem.init(jax.random.key(0))


def fit(aggregator):
    step = gk.training.make_train_step(problem.losses, optax.chain(aggregator, gk.adam(schedule)))
    state, draw = step.init(params), jax.jit(problem.batch)
    for key in jax.random.split(jax.random.key(1), STEPS):
        state, _ = step(state, draw(key))
    batches = [draw(key) for key in jax.random.split(jax.random.key(2), 8)]
    return np.mean([problem.losses(state.params, batch) for batch in batches], axis=0) / SIZES


NETWORK = {
    "mean": gk.aggregation.mean(),
    "upgrad": gk.aggregation.upgrad(),
    "imtl_l": gk.aggregation.imtl_l(num_tasks=6),
    "weights 1 / size": gk.aggregation.constant(1 / SIZES),
}
ends = {name: fit(aggregator) for name, aggregator in NETWORK.items()}

# %%
figure, axis = plt.subplots(figsize=(9.5, 3), layout="constrained")
width = 0.8 / len(ends)
for i, (name, values) in enumerate(ends.items()):
    axis.bar(np.arange(6) + (i - (len(ends) - 1) / 2) * width, values / ends["mean"], width, label=name)
axis.axhline(1, color="k", linewidth=1)
axis.set_xticks(range(6), [f"{task}\nsize {size:g}" for task, size in zip(TASKS, SIZES, strict=True)])
axis.set(title="loss of every task after training, as a multiple of that with the mean", ylim=(0, 2.4))
axis.legend(ncols=4, loc="upper right")
plt.show()
print(f"{'loss':<18}" + "".join(f"{name:>18}" for name in ends))
for i, task in enumerate(TASKS):
    print(f"{task:<18}" + "".join(f"{values[i]:18.3f}" for values in ends.values()))

# %% [markdown]
# What hurts here is not that gradients point in different directions, but that they have different lengths. UPGrad,
# which removes conflicts and nothing else, changes little. `imtl_l` learns a scale for every task, at the price of
# one backward pass: five of six tasks get better, most of them by far, and the image, the loudest, pays a little.
# Where sizes are known in advance, dividing by them does the same for the quiet tasks, and costs the loud ones more.
