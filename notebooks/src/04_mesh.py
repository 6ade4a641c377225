# %% [markdown]
# # On a mesh of eight devices
#
# FSDP, ZeRO and Muon on eight virtual devices of one processor: what each device holds, what a step sends, and that
# the numbers stay those of one device.
#
# Nothing here needs an accelerator. Virtual devices share the cores of this machine, so nothing gets faster, but
# shardings and collectives are those of real ones.

# %%
import time

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)  # before JAX first looks at its devices

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import gradkit as gk

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3})
print(jax.device_count(), "devices")

# %% [markdown]
# ## A model with stacked layers
#
# A residual network on digits, eight layers of width 256 that are stacked along a leading axis.

# %%
pixels, labels = load_digits(return_X_y=True)
x, y = jnp.asarray(pixels / 16, jnp.float32), jnp.asarray(labels, jnp.int32)


def init(key):
    first, layers = jax.random.split(key)
    return {
        "first": {"kernel": jax.random.normal(first, (64, 256)) / 8, "bias": jnp.zeros(256)},
        "layers": {"kernel": jax.random.normal(layers, (8, 256, 256)) / 32, "bias": jnp.zeros((8, 256))},
        "head": {"kernel": jnp.zeros((256, 10)), "bias": jnp.zeros(10)},
    }


def loss_fn(params, batch):
    def layer(h, own):
        return h + jnp.tanh(h @ own["kernel"] + own["bias"]), None

    h, _ = jax.lax.scan(layer, batch[0] @ params["first"]["kernel"] + params["first"]["bias"], params["layers"])
    logits = h @ params["head"]["kernel"] + params["head"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


params = init(jax.random.key(0))

# %% [markdown]
# ## FSDP: parameters are sharded
#
# `param_shardings` shards every parameter along the axis `fsdp`; it leaves the axis of the layers alone, since a scan
# runs over that one.

# %%
mesh = gk.parallel.make_mesh("fsdp=8")
shardings = gk.parallel.param_shardings(params, mesh)
sharded = jax.device_put(params, shardings)

print(f"{'parameter':<15} {'shape':>14}   on one device")
for name, leaf in zip(gk.leaves.names(params), jax.tree.leaves(sharded), strict=True):
    print(f"{name:<15} {leaf.shape!s:>14}   {leaf.sharding.shard_shape(leaf.shape)}")

# %% [markdown]
# Three lines change in a program: parameters and minibatches are put where they belong, and there is a mesh. The
# training step is the same.

# %%
STEPS = 30


def train(tx, mesh=None):
    own = params
    if mesh is not None:
        own = jax.device_put(params, gk.parallel.param_shardings(params, mesh))
    step = gk.training.make_train_step(loss_fn, tx)
    state, losses = step.init(own), []
    for rows in np.random.default_rng(0).integers(0, len(y), (STEPS, 64)):
        batch = (x[rows], y[rows])
        if mesh is not None:
            batch = jax.device_put(batch, gk.parallel.batch_sharding(mesh))
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return np.array(losses), step, state, batch


one, *_ = train(gk.adamw(1e-3))
eight, *_ = train(gk.adamw(1e-3), mesh)
print(f"loss after {STEPS} steps: {one[-1]:.4f} on one device, {eight[-1]:.4f} on eight")
print(f"largest difference in any step: {np.abs(one - eight).max():.0e}")

# %% [markdown]
# ## ZeRO: state is sharded, parameters are not
#
# With data parallelism every device holds all parameters, and AdamW's state is twice as large again. `init_sharded`
# with `zero_axis="data"` shards the state along the axis of the data. FSDP shards both.


# %%
def megabytes(tree):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree)) / 1e6


tx = gk.adamw(1e-3)
data = gk.parallel.make_mesh("data=8")
replicated = jax.device_put(params, gk.parallel.param_shardings(params, data))
held = {
    "data parallel": (replicated, gk.parallel.init_sharded(tx, replicated)),
    "ZeRO": (replicated, gk.parallel.init_sharded(tx, replicated, zero_axis="data")),
    "FSDP": (sharded, gk.parallel.init_sharded(tx, sharded)),
}
sizes = {name: [megabytes(tree) for tree in trees] for name, trees in held.items()}

figure, axis = plt.subplots(figsize=(7, 2.2), layout="constrained")
left = np.zeros(len(sizes))
for i, part in enumerate(["parameters", "state"]):
    width = np.array([size[i] for size in sizes.values()])
    axis.barh(list(sizes), width, left=left, label=part)
    left += width
for row, total in enumerate(left):
    axis.text(total + 0.1, row, f"{total:.1f} MB", va="center")
axis.invert_yaxis()
axis.grid(axis="y", visible=False)
axis.set(title="AdamW: megabytes on each device", xlim=(0, left.max() * 1.15))
axis.legend(loc="lower right")
plt.show()

# %% [markdown]
# ## Muon's collectives, before and after
#
# AdamW works on every number for itself, so its update sends nothing. Muon works on matrices. Where a matrix is
# sharded, or where every device holds all of them, something has to be said about who orthogonalises which.
#
# - *before*: nothing is said. Every device orthogonalises every matrix, and where parameters are sharded it has to
#   gather all of them first.
# - *after*: `shard=gk.MatrixSharding(mesh, axis)` deals the matrices out. Each is orthogonalised by one device, its
#   owner, and the results are sent back.
#
# ### What is computed
#
# All eight devices are on one processor here, so work that is done eight times takes eight times as long. The network
# from above, data parallel:

# %%
REPEATS = 5


def milliseconds(tx):
    state = gk.parallel.init_sharded(tx, replicated)
    update = jax.jit(tx.update)
    jax.block_until_ready(update(replicated, state, replicated))
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(update(replicated, state, replicated))
        times.append(1e3 * (time.perf_counter() - began))
    return min(times)


before = milliseconds(gk.muon(0.02, adam_learning_rate=1e-3))
owners = gk.MatrixSharding(data, "data", specs=jax.sharding.PartitionSpec())
after = milliseconds(gk.muon(0.02, adam_learning_rate=1e-3, shard=owners))
print(f"an update of Muon takes {before:.0f} ms before and {after:.0f} ms after")

# %% [markdown]
# ### What is sent
#
# `inspect` compiles the update for a mesh without running it. So the parameters may be those of GPT-2, 124 million of
# them, of which nothing is allocated here. A method that is given by name gets a `MatrixSharding`.

# %%
AXES = ["data", "fsdp"]

shapes = gk.workloads.model_shapes("gpt2-124m")


def plain_muon(rate):
    return gk.muon(rate, adam_learning_rate=rate)


found = {}
for axis_name in AXES:
    axes = f"{axis_name}=8"
    found[axes, "before"] = gk.training.inspect(plain_muon, shapes, mesh=axes, name="GPT-2")
    found[axes, "after"] = gk.training.inspect("muon", shapes, mesh=axes, name="GPT-2")

for (axes, when), one in found.items():
    kinds = ", ".join(f"{row['count']:.0f} {kind}" for kind, row in one.collectives.items()) or "nothing"
    sent = sum(row["wire_bytes"] for row in one.collectives.values())
    print(f"{axes}  {when:<7} {sent / 1e6:4.0f} MB from each device in an update: {kinds}")

# %% [markdown]
# With FSDP the matrices have to be brought together in any case. Dealing them out takes four all-to-alls, to the
# owners and back for each of two shapes, and sends less than half of what the compiler comes up with by itself. (That
# number is a lower bound: what is sent inside of a loop counts once.) With data parallelism the results have to be
# gathered, which is the price of an eighth of the work.
#
# The full account of one of them:

# %%
found[f"{AXES[-1]}=8", "after"]

# %% [markdown]
# ## The same numbers
#
# In a program of your own the sharding of the matrices also needs to know how the parameters are sharded, `specs`.
# Here is the network from above with Muon, on one device and with its matrices dealt out to eight:

# %%
alone, *_ = train(gk.muon(0.02, adam_learning_rate=1e-3))
dealt = gk.muon(0.02, adam_learning_rate=1e-3, shard=gk.MatrixSharding(mesh, "fsdp", specs=shardings))
shared, step, state, batch = train(dealt, mesh)
print(f"loss after {STEPS} steps: {alone[-1]:.4f} on one device, {shared[-1]:.4f} on eight")
print(f"largest difference in any step: {np.abs(alone - shared).max():.0e}")
