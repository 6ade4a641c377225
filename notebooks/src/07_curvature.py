# %% [markdown]
# # Seeing curvature
#
# Gradient descent makes the loss sharper and sharper until it is at the edge of stability, and stays there. Sharpness
# along a run, the spectrum of the Hessian before and after it, and what momentum changes.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import gradkit as gk

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3})

# %% [markdown]
# ## A network and a full batch
#
# 400 digits, a network with one hidden layer and the squared error. The batch is always all of them, so there is no
# noise to blame.

# %%
pixels, labels = load_digits(return_X_y=True)
x = jnp.asarray((pixels[:400] - pixels[:400].mean(0)) / 16, jnp.float32)
y = jax.nn.one_hot(labels[:400], 10)


def init(key):
    first, second = jax.random.split(key)
    return {
        "hidden": {"kernel": jax.random.normal(first, (64, 32)) / 8, "bias": jnp.zeros(32)},
        "out": {"kernel": jax.random.normal(second, (32, 10)) / 6, "bias": jnp.zeros(10)},
    }


def loss_fn(params):
    h = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    out = h @ params["out"]["kernel"] + params["out"]["bias"]
    return 0.5 * jnp.mean(jnp.sum((out - y) ** 2, axis=1))


params = init(jax.random.key(0))
print(f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters, loss {loss_fn(params):.3f} at the start")

# %% [markdown]
# ## Sharpness along the run
#
# The sharpness is the largest eigenvalue of the Hessian. `top_hessian_eigenvalue` finds it from twenty products of
# the Hessian with a vector, which cost about as much as twenty gradients; the Hessian itself is never made. Gradient
# descent with a learning rate is stable on a quadratic as long as the sharpness is below 2 / rate.
#
# Three learning rates, in one program:

# %%
EVERY, READINGS = 40, 75
RATES = jnp.array([0.3, 0.5, 1.2])


def run(rate, momentum=0.0):
    tx = gk.sgd(rate, momentum=momentum)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss_fn)(params), state, params)
        return (jax.tree.map(jnp.add, params, updates), state), None

    def reading(carry, _):
        sharpness = gk.diagnostics.top_hessian_eigenvalue(loss_fn, carry[0], jax.random.key(0))
        measured = (loss_fn(carry[0]), sharpness)
        carry, _ = jax.lax.scan(step, carry, None, EVERY)
        return carry, measured

    (last, _), (losses, sharpness) = jax.lax.scan(reading, (params, tx.init(params)), None, READINGS)
    return last, losses, sharpness


trained, losses, sharpness = jax.jit(jax.vmap(run))(RATES)
steps = EVERY * np.arange(READINGS)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for i, rate in enumerate(RATES.tolist()):
    axes[0].semilogy(steps, losses[i], linewidth=1, label=f"learning rate {rate:.1f}")
    axes[1].plot(steps, sharpness[i], linewidth=1, color=f"C{i}")
    axes[1].axhline(2 / rate, color=f"C{i}", linestyle=":")
axes[0].set(title="loss", xlabel="step")
axes[1].set(title="sharpness; dotted: 2 / learning rate", xlabel="step", ylim=(0, None))
axes[0].legend()
plt.show()
for rate, values in zip(RATES.tolist(), sharpness, strict=True):
    late = float(jnp.mean(values[-READINGS // 4 :]))
    print(
        f"rate {rate:.1f}: sharpness {values[0]:.1f} at the start, {late:.2f} late in the run; 2 / rate: {2 / rate:.2f}"
    )

# %% [markdown]
# While the loss falls, the sharpness rises. With a rate of 0.5 it meets its dotted line at 2 / rate and stays there:
# steps along the sharpest direction overshoot, the loss is no longer monotone, and yet it does not diverge. Training
# goes on at the edge of stability. With 0.3 the line is higher, and the sharpness is still on its way. With 1.2 the
# run begins above its line, is thrown out of that place by its first steps, and settles at the edge where it is
# flatter. The learning rate chooses how sharp the place is that training ends in.
#
# ## The spectrum
#
# Of all eigenvalues, not only the largest: `spectral_density` estimates how many there are at every height, by the
# stochastic Lanczos method.

# %%
PROBES, LANCZOS_STEPS = 4, 60


@jax.jit
def spectrum(params):
    def product(v):
        return jax.jvp(jax.grad(loss_fn), (params,), (v,))[1]

    found = gk.diagnostics.spectral_density(
        product, jax.random.key(1), params, steps=LANCZOS_STEPS, num_probes=PROBES, num_points=2000, sigma_squared=2e-4
    )
    return found.grid, found.density


places = {"at the start": params, "trained with rate 0.5": jax.tree.map(lambda leaf: leaf[1], trained)}
figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained", sharex=True, sharey=True)
for axis, (title, place) in zip(axes, places.items(), strict=True):
    grid, density = spectrum(place)
    axis.fill_between(grid, 1e-4, np.maximum(density, 1e-4))
    axis.set(title=title, xlabel="eigenvalue of the Hessian", yscale="log", ylim=(1e-4, None))
axes[0].set_ylabel("density")
axes[1].axvline(2 / 0.5, color="k", linestyle=":")
plt.show()

# %% [markdown]
# Nearly all of the 2,410 eigenvalues are close to zero, at the start and at the end. The few that stand out are what
# decides about the learning rate; training has pushed them to the right, up to the dotted line at 2 / rate.
#
# ## With momentum
#
# With heavy-ball momentum b the edge is at 2 (1 + b) / rate. `curvature_stability` has this limit, and those of other
# methods:

# %%
RATE, MOMENTUM = 0.8, 0.9

_, _, with_momentum = jax.jit(run, static_argnums=1)(jnp.asarray(RATE), MOMENTUM)
late = float(jnp.mean(with_momentum[-READINGS // 4 :]))
edge = gk.diagnostics.curvature_stability(late, RATE, b1=MOMENTUM)
print(f"sharpness late in the run: {late:.2f}")
print(f"the edge, 2 (1 + b) / rate: {float(edge.limit) / RATE:.2f}; ratio {float(edge.ratio):.2f}")
print(f"largest stable learning rate at this sharpness: {float(edge.largest_rate):.3f}")
