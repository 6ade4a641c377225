# %% [markdown]
# # First steps
#
# A classifier of handwritten digits: a chain that you can read, a table of what it does to every parameter, and
# metrics that say what happened at every step.
#
# gradkit is a library of optax transformations. Whatever it has goes into `optax.chain`, and whatever takes an optax
# optimizer takes its optimizers.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import gradkit as gk

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3})

# %% [markdown]
# ## Data and model
#
# 1,797 images of 8 x 8 pixels, of which 360 are for testing. The model is a plain tree of arrays, with a hidden
# layer. Flax modules work in the same way.

# %%
pixels, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
x, y = jnp.asarray(pixels[order] / 16, jnp.float32), jnp.asarray(labels[order], jnp.int32)
train, test = (x[:1437], y[:1437]), (x[1437:], y[1437:])


def init(key):
    return {
        "hidden": {"kernel": jax.random.normal(key, (64, 128)) / 8, "bias": jnp.zeros(128)},
        "out": {"kernel": jnp.zeros((128, 10)), "bias": jnp.zeros(10)},
    }


def logits(params, x):
    h = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return h @ params["out"]["kernel"] + params["out"]["bias"]


def loss_fn(params, batch):
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


params = init(jax.random.key(0))

# %% [markdown]
# ## A schedule and a chain
#
# Phases of a schedule are added up: a warm-up, then a cosine from where it ends. A schedule can be drawn before it is
# used.

# %%
STEPS = 300

schedule = gk.schedules.warmup(30, 3e-3) + gk.schedules.decay("cosine", STEPS - 30)
print(schedule.plot(width=80, height=6))

# %% [markdown]
# The chain clips the gradient to a norm of 1 and hands it to AdamW, whose weight decay spares biases.

# %%
tx = optax.chain(
    gk.clip_by_global_norm(1.0),
    gk.adamw(schedule, weight_decay=0.01, weight_decay_mask=gk.leaves.no_decay()),
)

# %% [markdown]
# `describe` says what it will do to each parameter: which method, rate and decay it gets, and how many bytes of
# state. Nothing is computed for that, so it works for models that do not fit into memory as well.

# %%
gk.leaves.describe(tx, params)

# %% [markdown]
# ## Training
#
# `make_train_step` compiles loss, gradient and update together. Besides the loss, the metrics have whatever the links
# of the chain measured: here the norm of the gradient before clipping, and the learning rate.


# %%
def fit(tx, seed=1):
    step = gk.training.make_train_step(loss_fn, tx)
    state, history = step.init(params), []
    rows = np.random.default_rng(seed).integers(0, len(train[0]), (STEPS, 64))
    for chosen in rows:
        state, metrics = step(state, (train[0][chosen], train[1][chosen]))
        history.append(metrics)
    return state, {name: np.array([float(m[name]) for m in history]) for name in history[0]}


def accuracy(params, data):
    return float((logits(params, data[0]).argmax(-1) == data[1]).mean())


state, history = fit(tx)
print("published at every step:", ", ".join(history))
print(f"accuracy on test images: {accuracy(state.params, test):.1%}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 2.8), layout="constrained")
titles = {"loss": "loss of the minibatch", "gradient_norm": "norm of the gradient", "learning_rate": "learning rate"}
for axis, (name, title) in zip(axes, titles.items(), strict=True):
    axis.plot(history[name], linewidth=1)
    axis.set(title=title, xlabel="step")
axes[0].set_yscale("log")
axes[1].axhline(1.0, color="k", linestyle=":", linewidth=1)
axes[1].text(STEPS, 1.03, "clipped above this line", ha="right")
plt.show()
print(f"clipped in {(history['gradient_norm'] > 1).sum()} of {STEPS} steps")

# %% [markdown]
# ## Groups
#
# Different parameters want different methods. A table of rules says which; the first that matches decides. Here the
# biases get SGD with momentum and the last layer AdamW; what is left, the hidden kernel, gets Muon.

# %%
muon_schedule = gk.schedules.warmup(30, 0.02) + gk.schedules.decay("cosine", STEPS - 30)
grouped = optax.chain(
    gk.clip_by_global_norm(1.0),
    gk.leaves.groups(
        [
            (gk.leaves.by_role("vector"), gk.sgd(0.1, momentum=0.9)),
            (gk.leaves.by_path("out/.*"), gk.adamw(schedule, weight_decay=0.01)),
        ],
        default=gk.muon(muon_schedule, weight_decay=0.01),
    ),
)
gk.leaves.describe(grouped, params)

# %%
grouped_state, grouped_history = fit(grouped)
print(f"accuracy on test images: {accuracy(grouped_state.params, test):.1%}")

figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
for name, losses in {"AdamW": history["loss"], "in groups": grouped_history["loss"]}.items():
    smooth = np.convolve(losses, np.ones(10) / 10, "valid")
    axis.semilogy(np.arange(len(smooth)) + 10, smooth, label=name)
axis.set(title="loss, a mean over ten minibatches", xlabel="step")
axis.legend()
plt.show()

# %% [markdown]
# A rule that matches nothing is nearly always a typo. It is an error, and not an empty group that trains on with the
# wrong method:

# %%
try:
    gk.leaves.groups([(gk.leaves.by_path("uot/.*"), gk.adamw(1e-3))], default=gk.lion(1e-4)).init(params)
except ValueError as error:
    print(error)

# %% [markdown]
# ## What a state holds
#
# A state is a tree of arrays like any other. `state_table` prints what is in it, and `find` takes a part of it out by
# its names.

# %%
print(gk.diagnostics.state_table(state.opt_state))

# %%
moment = gk.find(state.opt_state, "nu/hidden/kernel")
seen = np.asarray(moment).sum(1).reshape(8, 8)

figure, axes = plt.subplots(1, 2, figsize=(5.5, 2.6), layout="constrained")
for axis, (title, picture) in zip(axes, {"mean image": x.mean(0).reshape(8, 8), "second moment": seen}.items()):
    axis.imshow(picture, cmap="magma")
    axis.set(title=title, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# AdamW's second moment of the hidden kernel, added up over the hidden units, looks like the digits themselves: pixels
# in the corners are always black, so their weights have no gradient at all.
#
# Next: [a transformer in Flax NNX](02_muon_transformer.ipynb), or [a race on a problem of your own](05_race.ipynb).
