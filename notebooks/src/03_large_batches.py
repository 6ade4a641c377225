# %% [markdown]
# # Large batches
#
# How far a larger batch is of use, which learning rate it needs, and whether LARS and LAMB help: the noise scale of
# the gradient predicts the first, scaling rules the second, and a sweep answers the third.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import gradkit as gk

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3})

# %% [markdown]
# ## A problem at many batch sizes
#
# Handwritten digits and a small perceptron. The target is a loss of 0.1 over all images.

# %%
pixels, labels = load_digits(return_X_y=True)
data = (jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(labels, jnp.int32))


def init(key):
    first, second = jax.random.split(key)
    return {
        "hidden": {"kernel": jax.random.normal(first, (64, 32)) / 8, "bias": jnp.zeros(32)},
        "out": {"kernel": jax.random.normal(second, (32, 10)) / 6, "bias": jnp.zeros(10)},
    }


def loss_fn(params, batch):
    x, y = batch
    h = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    logits = h @ params["out"]["kernel"] + params["out"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def problem(batch_size):
    steps = max(100, 12800 // batch_size)
    return gk.workloads.problem(
        init,
        loss_fn,
        data,
        metric=lambda params: loss_fn(params, data),
        target=0.1,
        batch_size=batch_size,
        steps=steps,
        eval_every=max(2, steps // 160),
        metric_name="training loss",
    )


# %% [markdown]
# ## The noise scale
#
# The gradient of a minibatch is the true gradient plus noise. The noise scale is the batch size at which the two are
# equally large: below it a larger batch makes every step better, above it there is little noise left to remove.
# `gradient_moments` measures it while training, from the gradients of eight parts of the batch.

# %%
BATCH = 256
STEPS = 150

parts = functools.partial(gk.gradients.gradient_moments, microbatches=8)
meter = gk.diagnostics.gradient_noise_scale(batch_small=BATCH // 8, batch_big=BATCH)
tx = gk.sgd(0.1, momentum=0.9)


@jax.jit
def measured_step(carry, batch):
    params, opt_state, meter_state = carry
    loss, moments = parts(loss_fn)(params, batch)
    estimate, meter_state = meter.update(meter_state, **gk.diagnostics.from_moments(moments))
    updates, opt_state = tx.update(moments.mean, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state, meter_state), (loss, estimate.noise_scale)


params = init(jax.random.key(0))
carry, history = (params, tx.init(params), meter.init()), []
for rows in np.random.default_rng(0).integers(0, len(data[1]), (STEPS, BATCH)):
    carry, seen = measured_step(carry, (data[0][rows], data[1][rows]))
    history.append(seen)
losses, noise = (np.array(column, float) for column in zip(*history, strict=True))
above = losses > 0.1  # until the target
typical = float(np.median(noise[above]))

figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
axes[0].semilogy(losses)
axes[0].axhline(0.1, color="k", linestyle=":", linewidth=1)
axes[0].set(title="loss of the minibatch", xlabel="step")
axes[1].plot(noise)
axes[1].set(title="noise scale, in examples", xlabel="step", ylim=(0, None))
plt.show()
print(f"median noise scale on the way to the target: {typical:.0f} examples")

# %% [markdown]
# The noise scale grows while the loss falls: early in training the examples agree, and a small batch is as good as a
# large one; later they do not.
#
# ## Steps against batch size
#
# Now the experiment itself: SGD with momentum at each batch size, each with seven learning rates and three seeds, all
# 21 runs in one program. `sweep` reads off how many steps each of them needs to the target.

# %%
SIZES = [8, 16, 32, 64, 128, 256, 512, 1024]
RATES = np.geomspace(0.02, 1.28, 7)
SEEDS = 3

method = functools.partial(gk.sgd, momentum=0.9)
best_steps, best_rates = [], []
for size in SIZES:
    found = gk.training.sweep(problem(size), method, RATES, seeds=SEEDS)
    medians = np.median(found.steps_to_target, axis=1)
    best_steps.append(medians.min())
    best_rates.append(RATES[medians.argmin()])

sizes, steps = np.array(SIZES), np.array(best_steps)
fit = gk.diagnostics.fit_steps_examples(steps, steps * sizes)
critical = gk.diagnostics.critical_batch_size(*fit)
print(f"at least {fit.min_steps:.0f} steps, at least {fit.min_examples:.0f} examples; critical batch {critical:.0f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
axes[0].loglog(sizes, steps, "o", label="measured, at the best learning rate")
fine = np.geomspace(sizes[0], sizes[-1], 100)
axes[0].loglog(fine, fit.min_steps + fit.min_examples / fine, label="fit: a hyperbola")
axes[0].loglog(fine, fit.min_examples / fine, "k:", linewidth=1, label="twice the batch, half the steps")
axes[0].axvline(critical, color="C2", linewidth=1, label=f"critical batch: {critical:.0f}")
axes[0].axvspan(*np.quantile(noise[above], [0.1, 0.9]), color="C3", alpha=0.15, label="noise scale (80 % of steps)")
axes[0].set(title="steps to a loss of 0.1", xlabel="batch size", ylim=(steps.min() / 5, steps.max() * 1.5))
axes[0].legend(fontsize=8, loc="lower left")
axes[1].loglog(sizes, best_rates, "o", label="best of seven")
for name, power in {"linear scaling": 1.0, "square root": 0.5}.items():
    axes[1].loglog(fine, best_rates[0] * (fine / sizes[0]) ** power, linewidth=1, label=name)
axes[1].set(title="learning rate", xlabel="batch size", ylim=(0.02, 3))
axes[1].legend(fontsize=8)
plt.show()

# %% [markdown]
# Left: at first, twice the batch means half the steps. Around the critical batch the gain runs out, and that is where
# the noise scale said it would: one short run with a meter has predicted the outcome of 168 runs. Right: the best
# learning rate grows in proportion to the batch, until the critical batch; beyond it there is nothing left to scale.
#
# ## Scaling rules
#
# A rule takes hyperparameters that are right for one batch size to another one. For SGD it multiplies the learning
# rate by the factor of the batch. For Adam it multiplies it by the root of that, and the decays of the moments change
# too, which is easily forgotten:

# %%
sgd = gk.batches.linear_scaling({"learning_rate": 0.02, "momentum": 0.9}, 4)
adam = gk.batches.sqrt_scaling({"learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8}, 4)
for name, hyperparameters in {"SGD": sgd, "Adam": adam}.items():
    print(name, {argument: round(value, 10) for argument, value in hyperparameters.items()})

# %% [markdown]
# ## Do LARS and LAMB pay?
#
# Both were made for large batches: they give every layer a step in proportion to the norm of its weights. At a batch
# of 1,024, all with the same effort:

# %%
METHODS = {
    "SGD with momentum": (functools.partial(gk.sgd, momentum=0.9), 0.5),
    "AdamW": (gk.adamw, 0.05),
    "LARS": (functools.partial(gk.lars, trust_coefficient=1.0), 0.02),
    "LAMB": (gk.lamb, 0.05),
}
large = problem(1024)
for name, (factory, centre) in METHODS.items():
    rates = centre * np.geomspace(1 / 8, 8, 7)
    found = gk.training.sweep(large, factory, rates, seeds=SEEDS)
    medians = np.median(found.steps_to_target, axis=1)
    best = medians.argmin()
    edge = "  (at the edge of the grid)" if best in (0, len(rates) - 1) else ""
    print(f"{name:<18} {medians[best]:>4.0f} steps at a learning rate of {rates[best]:.3g}{edge}")

# %% [markdown]
# On this problem they do not: tuned with the same effort, neither needs fewer steps than AdamW. The measurements of
# larger networks in the guide on large batches say the same. What they do bring is a learning rate that is a relative
# step, the same for layers of any size.
