"""How far gradient estimates without a backward pass are from the gradient, against the number of parameters.

    python experiments/estimates_against_dimension.py --out=experiments/results/estimates_against_dimension

A tanh network of two layers is regressed on a few functions of its inputs; its width makes the number of parameters n.
At the start of the training, on one fixed batch, each method makes many estimates g of the gradient G:

    error = sqrt(mean |g - G|^2) / |G|

    forward, normal        sqrt((n + 1) / K)        K directions; E |g|^2 = (1 + (n + 1) / K) |G|^2
    forward, signs         sqrt((n - 1) / K)
    SPSA, W workers        sqrt((n + 1) / W)        as of forward gradients, for small epsilon
    guided                 sqrt(1 - cos^2)          cos of the angle between the guess and G; no n in it
    random guess           sqrt(1 - 1 / n)          a random direction as the guess: it is shorter, not better

Writes OUT.txt, the errors, the theory beside them and slopes of log error by log n, and OUT.png.
"""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import app, flags
from jax.flatten_util import ravel_pytree

from gradkit.gradients import forward_gradient, guided_forward_gradient
from gradkit.parallel import shared_seed_spsa

FLAGS = flags.FLAGS
flags.DEFINE_multi_integer("width", [8, 28, 96, 312, 996], "units of both hidden layers")
flags.DEFINE_integer("inputs", 4, "of the network", lower_bound=1)
flags.DEFINE_integer("batch", 32, "examples; the guess is the gradient of the first quarter", lower_bound=4)
flags.DEFINE_integer("draws", 256, "estimates per method and width, at most", lower_bound=2)
flags.DEFINE_integer("numbers", 32_000_000, "random numbers per method, one direction and width, about", lower_bound=1)
flags.DEFINE_integer("directions", 16, "of the methods that average over several", lower_bound=2)
flags.DEFINE_float("epsilon", 1e-3, "distance of the two points of SPSA", lower_bound=1e-12)
flags.DEFINE_integer("seed", 0, "of the data, the start and the directions")
flags.DEFINE_string("out", "estimates_against_dimension", "where the numbers (.txt) and the figure (.png) go")

Estimate = Callable[[Any, Any, jax.Array], Any]


def loss(params: Any, batch: Any) -> jax.Array:
    """Half the mean squared error."""
    x, y = batch
    for name in ("first", "second"):
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
    return jnp.mean(jnp.square((x @ params["last"]["kernel"])[:, 0] - y)) / 2


def problem(width: int) -> tuple[Any, Any]:
    """The start of a network of this width, and the batch, which is the same for all widths."""
    random = np.random.default_rng(FLAGS.seed)
    inputs = random.standard_normal((FLAGS.batch, FLAGS.inputs))
    targets = np.sin(2 * inputs).sum(1) + inputs[:, 0] * inputs[:, -1]

    def kernel(n: int, m: int) -> jax.Array:
        return jnp.asarray(random.standard_normal((n, m)) / np.sqrt(n), jnp.float32)

    params = {
        "first": {"kernel": kernel(FLAGS.inputs, width), "bias": jnp.zeros(width)},
        "second": {"kernel": kernel(width, width), "bias": jnp.zeros(width)},
        "last": {"kernel": kernel(width, 1)},
    }
    return params, (jnp.asarray(inputs, jnp.float32), jnp.asarray(targets, jnp.float32))


def methods() -> dict[str, tuple[Estimate, Callable[[float, float], float]]]:
    """Name -> (estimate of the gradient, (n, cos of the guess) -> its error in theory)."""
    K = FLAGS.directions
    forward = lambda K, **more: lambda p, b, key: forward_gradient(loss, K, **more)(p, b, key=key)[1]  # noqa: E731

    def spsa(workers: int) -> Estimate:
        source = shared_seed_spsa(loss, epsilon=FLAGS.epsilon, axis_name="worker")

        def estimate(params: Any, batch: Any, key: jax.Array) -> Any:
            # All workers have the whole batch here: what differs is the direction.
            fn = jax.vmap(lambda _: source(params, batch, key=key)[1], axis_name="worker", out_axes=None)
            return fn(jnp.arange(workers))

        return estimate

    def guided(params: Any, batch: Any, key: jax.Array) -> Any:
        del key
        return guided_forward_gradient(loss, guess, block="global")(params, batch)[1]

    def unguided(params: Any, batch: Any, key: jax.Array) -> Any:
        flat, unravel = ravel_pytree(params)
        u = unravel(jax.random.normal(key, flat.shape))
        return guided_forward_gradient(loss, lambda *_: u, block="global")(params, batch)[1]

    return {
        "forward, normal": (forward(1), lambda n, cos: np.sqrt(n + 1)),
        "forward, signs": (forward(1, distribution="rademacher"), lambda n, cos: np.sqrt(n - 1)),
        f"forward, normal, K={K}": (forward(K), lambda n, cos: np.sqrt((n + 1) / K)),
        "SPSA": (spsa(1), lambda n, cos: np.sqrt(n + 1)),
        f"SPSA, {K} workers": (spsa(K), lambda n, cos: np.sqrt((n + 1) / K)),
        "random guess": (unguided, lambda n, cos: np.sqrt(1 - 1 / n)),
        "guided": (guided, lambda n, cos: np.sqrt(1 - cos**2)),
    }


def guess(params: Any, batch: Any) -> Any:
    """The gradient of a quarter of the batch."""
    return jax.grad(loss)(params, jax.tree.map(lambda x: x[: FLAGS.batch // 4], batch))


def draws(n: int) -> int:
    """How many estimates are made with n parameters."""
    return max(2, min(FLAGS.draws, FLAGS.numbers // n))


def measured(width: int) -> tuple[int, dict[str, float], dict[str, float]]:
    """The number of parameters, and per method its error, measured and in theory."""
    params, batch = problem(width)
    G = ravel_pytree(jax.grad(loss)(params, batch))[0]
    u = ravel_pytree(guess(params, batch))[0]
    cos = float(u @ G / jnp.linalg.norm(u) / jnp.linalg.norm(G))
    keys = jax.random.split(jax.random.key(FLAGS.seed), draws(len(G)))
    errors, theory = {}, {}
    for name, (estimate, law) in methods().items():

        def distance(key: jax.Array, estimate: Estimate = estimate) -> jax.Array:
            return jnp.sum(jnp.square(ravel_pytree(estimate(params, batch, key))[0] - G))

        squares = jax.jit(lambda keys, distance=distance: jax.lax.map(distance, keys))(keys)
        errors[name] = float(jnp.sqrt(jnp.mean(squares)) / jnp.linalg.norm(G))
        theory[name] = float(law(len(G), cos))
    return len(G), errors, theory


def table(sizes: list[int], errors: dict[str, list[float]], theory: dict[str, list[float]], seconds: float) -> str:
    lines = [
        "error of an estimate of the gradient, sqrt(mean |g - G|^2) / |G|; in brackets: theory",
        "",
        f"{'parameters':<22}" + "".join(f"{n:>20,}" for n in sizes) + f"{'slope':>9}{'theory':>8}",
        f"{'draws':<22}" + "".join(f"{draws(n):>20}" for n in sizes),
        f"{'error of one direction':<22}" + "".join(f"{f'+- {100 * (2 * draws(n)) ** -0.5:.1f}%':>20}" for n in sizes),
    ]
    logs = np.log(sizes)
    for name, own in errors.items():
        cells = [f"{a:.4g} ({b:.4g})" for a, b in zip(own, theory[name], strict=True)]
        slopes = [np.polyfit(logs, np.log(values), 1)[0] for values in (own, theory[name])]
        lines.append(f"{name:<22}" + "".join(f"{c:>20}" for c in cells) + f"{slopes[0]:>9.3f}{slopes[1]:>8.3f}")
    return "\n".join([*lines, "", f"{seconds:.0f} s on {jax.devices()[0].device_kind}", ""])


def figure(
    sizes: list[int], errors: dict[str, list[float]], theory: dict[str, list[float]], path: pathlib.Path
) -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for i, (name, own) in enumerate(errors.items()):
        ax.plot(sizes, theory[name], color=f"C{i}", linewidth=1)
        ax.plot(sizes, own, color=f"C{i}", linestyle="", marker="osD^vx+"[i % 7], markersize=6, label=name)
    low = np.array([sizes[0], sizes[-1]], float)
    ax.plot(low, 3 * np.sqrt(low), color="black", linestyle=":", label="slope 1/2")
    ax.set(xscale="log", yscale="log", xlabel="number of parameters", ylabel="error / norm of the gradient")
    ax.set_title("points: measured; lines: theory", fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    fig.savefig(path, dpi=150)


def main(_: list[str]) -> None:
    start, sizes = time.perf_counter(), []
    errors: dict[str, list[float]] = {}
    theory: dict[str, list[float]] = {}
    for width in sorted(FLAGS.width):
        n, own, law = measured(width)
        sizes.append(n)
        for into, values in ((errors, own), (theory, law)):
            for name, value in values.items():
                into.setdefault(name, []).append(value)
        print(f"{n:,} parameters", {name: round(value, 3) for name, value in own.items()}, flush=True)
    text = table(sizes, errors, theory, time.perf_counter() - start)
    out = pathlib.Path(FLAGS.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".txt").write_text(text)
    figure(sizes, errors, theory, out.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    app.run(main)
