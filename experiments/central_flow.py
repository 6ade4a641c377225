"""The central flow follows gradient descent at the edge of stability; gradient flow does not.

    python experiments/central_flow.py --out=experiments/results/central_flow

A small network is trained on the full batch by gradient descent, w <- w - lr grad L, in float64. From the same start

    gradient flow      dw/dt = -lr grad L
    central flow       gradient flow with the oscillation of gradient descent averaged in (`central_flow_step`)

are integrated, where one unit of time is one step. Writes OUT.txt and OUT.png: the largest eigenvalue of the Hessian,
the loss, and the distance of each flow to gradient descent, whose oscillation is taken out by means over two steps.
"""

import itertools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import app, flags
from jax.flatten_util import ravel_pytree

from gradkit.diagnostics import central_flow_step, stable_flow_step, top_eigenpairs

FLAGS = flags.FLAGS
flags.DEFINE_integer("examples", 40, "examples of the regression", lower_bound=1)
flags.DEFINE_integer("width", 20, "units of the two hidden layers", lower_bound=1)
flags.DEFINE_float("learning_rate", 0.15, "of gradient descent", lower_bound=1e-9)
flags.DEFINE_integer("steps", 1200, "steps of gradient descent", lower_bound=2)
flags.DEFINE_integer("max_critical", 3, "how many eigenvalues may be at the edge", lower_bound=1)
flags.DEFINE_integer("substeps", 8, "steps of the central flow per step of gradient descent", lower_bound=1)
flags.DEFINE_integer("flow_substeps", 32, "steps of gradient flow per step of gradient descent", lower_bound=1)
flags.DEFINE_integer(
    "window", 201, "steps over which the loss of gradient descent is averaged in the figure", lower_bound=1
)
flags.DEFINE_integer("seed", 0, "of the data and the start")
flags.DEFINE_string("out", "central_flow", "where the numbers (.txt) and the figure (.png) go")


def problem() -> tuple[Any, Any]:
    """The start, and the loss: half the mean squared error of a tanh network on a function of three variables."""
    random = np.random.default_rng(FLAGS.seed)
    inputs = random.standard_normal((FLAGS.examples, 3))
    targets = np.sin(2 * inputs).sum(1) + inputs[:, 0] * inputs[:, 1]
    sizes = (3, FLAGS.width, FLAGS.width, 1)
    start = {
        f"layer_{i}": {"kernel": jnp.asarray(random.standard_normal((n, m)) / np.sqrt(n)), "bias": jnp.zeros(m)}
        for i, (n, m) in enumerate(itertools.pairwise(sizes))
    }
    x, y = jnp.asarray(inputs), jnp.asarray(targets)

    def loss(params: Any) -> jax.Array:
        h = x
        for i in range(len(sizes) - 1):
            h = h @ params[f"layer_{i}"]["kernel"] + params[f"layer_{i}"]["bias"]
            h = jnp.tanh(h) if i + 2 < len(sizes) else h
        return jnp.mean(jnp.square(h[:, 0] - y)) / 2

    return start, loss


def runs(start: Any, loss: Any) -> dict[str, dict[str, np.ndarray]]:
    """Per method the parameters, loss and largest eigenvalue at every step; of the central flow its predictions."""
    rate, key = FLAGS.learning_rate, jax.random.key(FLAGS.seed)

    def seen(x: Any) -> dict[str, jax.Array]:
        product = jax.linearize(jax.grad(loss), x)[1]
        found = top_eigenpairs(product, key, x, 1, steps=20)
        return {"params": ravel_pytree(x)[0], "loss": loss(x), "sharpness": found.values[0]}

    def descent(x: Any) -> Any:
        return jax.tree.map(lambda p, g: p - rate * g, x, jax.grad(loss)(x)), {}

    def flow(x: Any) -> Any:
        def one(_: Any, x: Any) -> Any:
            return stable_flow_step("gd", loss, x, None, learning_rate=rate, dt=1 / FLAGS.flow_substeps)[0]

        return jax.lax.fori_loop(0, FLAGS.flow_substeps, one, x), {}

    def central(x: Any) -> Any:
        def one(x: Any, _: None) -> Any:
            found = central_flow_step(
                "gd", loss, x, None, learning_rate=rate, dt=1 / FLAGS.substeps, max_critical=FLAGS.max_critical
            )
            # The variance along all critical directions, in units of the parameters.
            own = {"variance": rate * jnp.trace(found.X), "mean loss": found.time_averaged_loss}
            return found.params, own | {"at the edge": jnp.sum(found.eigenvalues > 1.95)}

        x, own = jax.lax.scan(one, x, None, FLAGS.substeps)
        return x, jax.tree.map(lambda v: v[0], own)

    out = {}
    for name, step in (("gradient descent", descent), ("gradient flow", flow), ("central flow", central)):

        def body(x: Any, _: None, step: Any = step) -> Any:
            new, own = step(x)
            return new, seen(x) | own

        out[name] = jax.tree.map(np.asarray, jax.jit(lambda x, b=body: jax.lax.scan(b, x, None, FLAGS.steps)[1])(start))
    return out


def middles(rows: np.ndarray) -> np.ndarray:
    """Means over two steps before and after a step, in which an oscillation of period two cancels."""
    return (rows[:-2] + 2 * rows[1:-1] + rows[2:]) / 4


def main(argv: list[str]) -> None:
    """Integrates all three from one start; writes the numbers and the figure."""
    del argv
    jax.config.update("jax_enable_x64", True)
    matplotlib.use("agg")
    from matplotlib import pyplot

    began = time.perf_counter()
    out = pathlib.Path(FLAGS.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    start, loss = problem()
    found = runs(start, loss)
    descent, flow, central = (found[name] for name in ("gradient descent", "gradient flow", "central flow"))
    mean = middles(descent["params"])
    distance = {
        name: np.linalg.norm(found[name]["params"][1:-1] - mean, axis=1) for name in ("gradient flow", "central flow")
    }
    edge = 2 / FLAGS.learning_rate
    averaged = middles(descent["loss"])
    first = int(np.argmax(central["at the edge"] > 0)) if central["at the edge"].any() else FLAGS.steps - 2
    rows = [
        f"{descent['params'].shape[1]} parameters, {FLAGS.examples} examples, learning rate {FLAGS.learning_rate:g}, "
        f"{FLAGS.steps} steps, edge of stability 2 / lr = {edge:g}",
        f"the edge is reached at step {first}; at most {int(central['at the edge'].max())} eigenvalues are critical",
        "",
        "step   distance to gradient descent      sharpness                          loss",
        "       gradient flow  central flow       descent    flow   central        "
        "  descent    flow   central  predicted",
    ]
    for t in np.unique(np.linspace(1, FLAGS.steps - 2, 11).astype(int)):
        rows.append(
            f"{t:>5}  {distance['gradient flow'][t - 1]:13.5f}  {distance['central flow'][t - 1]:12.5f}      "
            f"{descent['sharpness'][t]:8.3f} {flow['sharpness'][t]:8.3f} {central['sharpness'][t]:8.3f}        "
            f"{averaged[t - 1]:8.5f} {flow['loss'][t]:8.5f} {central['loss'][t]:8.5f} {central['mean loss'][t]:9.5f}"
        )
    after = slice(first + 50, None)
    rows += [
        "",
        f"distance at the end: central flow {distance['central flow'][-1]:.4f}, gradient flow "
        f"{distance['gradient flow'][-1]:.4f}, way of gradient descent "
        f"{np.linalg.norm(mean[-1] - descent['params'][0]):.4f}",
        f"sharpness of the central flow from step {first + 50} on: {central['sharpness'][after].min():.3f} to "
        f"{central['sharpness'][after].max():.3f}",
        f"mean loss from step {first} on: gradient descent {descent['loss'][first:].mean():.5f}, predicted by the "
        f"central flow {central['mean loss'][first:].mean():.5f}",
    ]
    text = "\n".join(rows) + "\n"
    print(text, f"{time.perf_counter() - began:.0f} s", sep="")
    out.with_suffix(".txt").write_text(text)

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    colours = {"gradient descent": "#9aa2ae", "gradient flow": "#d55e00", "central flow": "#0072b2"}
    steps = np.arange(FLAGS.steps)
    for name, run in found.items():
        line = {"color": colours[name], "lw": 1 if name == "gradient descent" else 2, "label": name}
        axes[0].plot(steps, run["sharpness"], **line)
        axes[1].semilogy(steps, run["loss"], **line)
        if name != "gradient descent":
            axes[2].semilogy(steps[1:-1], distance[name], **line)
    axes[1].semilogy(steps, central["mean loss"], color="#009e73", lw=2, ls="--", label="central flow, mean loss")
    smooth = np.convolve(descent["loss"], np.ones(FLAGS.window) / FLAGS.window, mode="valid")
    middle = steps[FLAGS.window // 2 :][: len(smooth)]
    axes[1].semilogy(middle, smooth, color="black", lw=1, ls="--", label=f"gradient descent, mean of {FLAGS.window}")
    axes[0].axhline(edge, color="black", lw=1, ls=":", label="2 / lr")
    axes[0].set(xlabel="step", title="largest eigenvalue of the Hessian")
    axes[1].set(xlabel="step", title="loss")
    axes[2].set(xlabel="step", title="distance to gradient descent (two-step means)")
    for each in axes:
        each.grid(alpha=0.3)
        each.legend(fontsize=8)
    figure.savefig(out.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    app.run(main)
