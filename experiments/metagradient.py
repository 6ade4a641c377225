"""Hyperparameters by metagradient descent, beside random search with the same compute, on handwritten digits.

    python experiments/metagradient.py --out=experiments/results/metagradient

A perceptron is trained on digits of which a third have a wrong label, with momentum, for a fixed number of steps. Two
sets of hyperparameters are tuned on 400 images with right labels, by Adam on the gradient of the loss at the end of the
training (`gk.gradients.replay_grad`, through all steps):

- rates: the logarithm of the learning rate of each parameter group, a kernel or a bias: six numbers.
- weights: a weight in (0, 2) for each training image: as many numbers as images.

Random search draws each learning rate log-uniformly within two decades to each side of the start, and each weight
uniformly. It has the compute of the metagradients: one costs, in arithmetic operations as XLA counts them for a step,
the derivative of every step and at most ceil(log_k T) more computations of it. It is done five times, with other draws,
and the one whose result is the median is judged. Both keep what was best on the 400 images. What they found is judged
on 360 further images, on runs from parameters and with minibatches that neither has seen. Writes OUT.txt and OUT.png.
"""

import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from absl import app, flags

import gradkit as gk
from gradkit.gradients import replay_grad
from gradkit.gradients.replay_grad import levels
from gradkit.training.report import style
from gradkit.workloads.digits import load_digits
from gradkit.workloads.networks import MLP, apply, initializer

FLAGS = flags.FLAGS
HELD_OUT = 400  # images with right labels, on which hyperparameters are tuned
WRONG = 1 / 3  # share of wrong labels among the others
DECADES = 2.0  # to each side of the start, for random search
SEARCHES = 5  # random searches


class Task(NamedTuple):
    """What is tuned, as functions of hyperparameters `meta`.

    Attributes:
      start: the first hyperparameters.
      draw: key -> random hyperparameters.
      train: (meta, seed) -> (loss on the held-out images, loss and error on the test images) at the end of a training.
      differentiate: meta -> (loss on the held-out images, its gradient), of seed 0.
      cost: trainings that one metagradient costs, at most, in arithmetic operations.
      meta_rate: learning rate of Adam on the hyperparameters.
      wrong: which training labels are wrong.
    """

    start: Any
    draw: Callable[[jax.Array], Any]
    train: Callable[[Any, Any], jax.Array]
    differentiate: Callable[[Any], tuple[jax.Array, Any]]
    cost: float
    meta_rate: float
    wrong: np.ndarray


class Outcome(NamedTuple):
    """What a search found: the best hyperparameters, and the best loss after each evaluation."""

    best: Any
    curve: list[float]


def task(what: str, *, steps: int, width: int, batch: int, rate: float, branching: int) -> Task:
    """The training of a perceptron, and what is tuned of it: "rates" or "weights"."""
    data = load_digits()
    images, labels = data.train_images[HELD_OUT:], data.train_labels[HELD_OUT:]
    held_out = data.train_images[:HELD_OUT], data.train_labels[:HELD_OUT]
    random = np.random.default_rng(0)
    wrong = random.uniform(size=len(labels)) < WRONG
    labels = jnp.where(wrong, (labels + random.integers(1, 10, len(labels)).astype(np.int32)) % 10, labels)
    # A smooth activation: the end of the training should be a smooth function of the hyperparameters.
    network = MLP((width, width, 10), jnp.tanh)
    init, tx = initializer(network, images[:1], gain=1.0), gk.sgd(1.0, momentum=0.9)
    shapes = jax.eval_shape(init, jax.random.key(0))

    def loss(params: Any, images: jax.Array, labels: jax.Array, weights: jax.Array | float = 1.0) -> jax.Array:
        each = optax.softmax_cross_entropy_with_integer_labels(apply(network, params, images), labels)
        return jnp.sum(weights * each) / jnp.sum(weights * jnp.ones_like(each))

    def step(state: Any, meta: Any, t: jax.Array) -> Any:
        params, opt_state, seed = state
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(seed), t), (batch,), 0, len(labels))
        weights = 2 * jax.nn.sigmoid(meta["weights"][rows])
        grads = jax.grad(loss)(params, images[rows], labels[rows], weights)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = jax.tree.map(lambda x, u, r: x + jnp.exp(r) * u, params, updates, meta["rates"])
        return params, opt_state, seed

    def begin(seed: Any) -> Any:
        seed = jnp.asarray(seed, jnp.int32)
        params = init(jax.random.fold_in(jax.random.key(seed), steps))
        return params, tx.init(params), seed

    full = {
        "rates": jax.tree.map(lambda _: jnp.log(jnp.float32(rate)), shapes),
        "weights": jnp.zeros(len(labels), jnp.float32),
    }

    @jax.jit
    def train(meta: Any, seed: jax.Array) -> jax.Array:
        def one(state: Any, t: jax.Array) -> tuple[Any, None]:
            return step(state, full | meta, t), None

        params = jax.lax.scan(one, begin(seed), jnp.arange(steps, dtype=jnp.int32))[0][0]
        test = apply(network, params, data.test_images).argmax(-1).astype(jnp.int32) != data.test_labels
        return jnp.stack([loss(params, *held_out), loss(params, data.test_images, data.test_labels), test.mean()])

    @jax.jit
    def differentiate(meta: Any) -> tuple[jax.Array, Any]:
        outer = lambda state: loss(state[0], *held_out)  # noqa: E731
        one = lambda state, meta, t: step(state, full | meta, t)  # noqa: E731
        return replay_grad(one, outer, begin(0), meta, steps, branching)

    def draw(key: jax.Array) -> Any:
        if what == "weights":
            share = jax.random.uniform(key, full["weights"].shape, minval=1e-3, maxval=1 - 1e-3)
            return {"weights": jnp.log(share) - jnp.log1p(-share)}
        leaves, structure = jax.tree.flatten(full["rates"])
        far = DECADES * np.log(10.0)
        moves = jax.random.uniform(key, (len(leaves),), minval=-far, maxval=far)
        return {"rates": structure.unflatten([x + move for x, move in zip(leaves, moves, strict=True)])}

    def operations(function: Callable[..., Any]) -> float:
        lowered = jax.jit(function).lower(begin(0), full, jnp.int32(0))
        return float((lowered.compile().cost_analysis() or {})["flops"])

    def backward(state: Any, meta: Any, t: jax.Array) -> Any:
        new, back = jax.vjp(lambda state, meta: step((*state, jnp.int32(0)), meta, t)[:2], state[:2], meta)
        return new, back(new)

    cost = levels(steps, branching) + operations(backward) / operations(step)
    return Task({what: full[what]}, draw, train, differentiate, cost, {"rates": 0.2, "weights": 0.5}[what], wrong)


def descend(task: Task, count: int) -> Outcome:
    """Adam on the hyperparameters, `count` metagradients."""
    tx = gk.adam(task.meta_rate)
    update = jax.jit(tx.update)
    meta, state = task.start, tx.init(task.start)
    best: Any = meta
    curve: list[float] = []
    for _ in range(count):
        value, gradient = task.differentiate(meta)
        if not curve or value < min(curve):
            best = meta
        curve.append(float(value))
        updates, state = update(gradient, state, meta)
        meta = optax.apply_updates(meta, updates)
    return Outcome(best, np.fmin.accumulate(curve).tolist())


def search(task: Task, count: int, key: jax.Array) -> Outcome:
    """Random hyperparameters, `count` trainings; the first is that of the start."""
    best: Any = task.start
    curve: list[float] = []
    for i in range(count):
        meta = task.draw(jax.random.fold_in(key, i)) if i else task.start
        value = float(task.train(meta, jnp.int32(0))[0])
        # A training that diverged has not won.
        if not curve or value < np.nanmin(curve):
            best = meta
        curve.append(value)
    return Outcome(best, np.fmin.accumulate(curve).tolist())


def judged(task: Task, meta: Any, seeds: int) -> np.ndarray:
    """Loss on the held-out images, loss and error on the test images, on seeds that were not tuned on: (seeds, 3)."""
    return np.stack([task.train(meta, jnp.int32(1 + seed)) for seed in range(seeds)])


def compared(task: Task, count: int, seeds: int) -> dict[str, Any]:
    """The start, what `count` metagradients find, and what random search finds with the same compute."""
    trainings = round(task.cost * count)
    searches = [search(task, trainings, jax.random.key(i)) for i in range(SEARCHES)]
    searches.sort(key=lambda outcome: outcome.curve[-1])
    found = {"metagradient descent": descend(task, count), "random search": searches[SEARCHES // 2]}
    metas = {"start": task.start, **{name: outcome.best for name, outcome in found.items()}}
    return {
        "ratio": task.cost,
        "found": found,
        "searches": searches,
        "metas": metas,
        "judged": {name: judged(task, meta, seeds) for name, meta in metas.items()},
    }


def notes(task: Task, metas: dict[str, Any]) -> list[str]:
    """What the hyperparameters look like."""
    lines = []
    for name, meta in metas.items():
        if "weights" in meta:
            weights = np.asarray(2 * jax.nn.sigmoid(meta["weights"]))
            means = weights[~task.wrong].mean(), weights[task.wrong].mean()
            lines.append(f"  {name}: mean weight {means[0]:.2f} of right labels, {means[1]:.2f} of wrong ones")
        else:
            rates = {"/".join(key.key for key in path[-2:]): x for path, x in jax.tree.leaves_with_path(meta["rates"])}
            shown = ", ".join(f"{path} {float(jnp.exp(x)):.3g}" for path, x in rates.items())
            lines.append(f"  {name}: {shown}")
    return lines


def table(what: str, task: Task, result: dict[str, Any]) -> str:
    """What was found for one set of hyperparameters."""
    found, size = result["found"], sum(x.size for x in jax.tree.leaves(task.start))
    lines = [
        f"{what}: {size} hyperparameters; one metagradient costs {result['ratio']:.1f} trainings",
        f"{'':<22}{'trainings':>10}{'tuned loss':>12}{'test loss':>11}{'test error':>12}   over seeds",
    ]
    for name, judgement in result["judged"].items():
        of, (_, test, error) = found.get(name), np.median(judgement, 0)
        counts = "-"
        if of is not None:
            counts = str(len(of.curve)) if name == "random search" else f"{len(of.curve) * result['ratio']:.0f}"
        tuned = (of or found["random search"]).curve[-1 if of is not None else 0]
        low, high = judgement[:, 2].min(), judgement[:, 2].max()
        lines.append(f"{name:<22}{counts:>10}{tuned:>12.4f}{test:>11.4f}{error:>12.1%}   {low:.1%} to {high:.1%}")
    ends = [outcome.curve[-1] for outcome in result["searches"]]
    lines.append(f"  the {len(ends)} random searches: tuned losses {', '.join(f'{end:.4f}' for end in ends)}")
    return "\n".join([*lines, *notes(task, result["metas"])])


def draw(results: dict[str, dict[str, Any]], path: str) -> None:
    """The best loss so far against compute, one panel per set of hyperparameters."""
    with matplotlib.rc_context(style.RC):
        from matplotlib.figure import Figure
        from matplotlib.ticker import FormatStrFormatter

        figure = Figure(figsize=(5.4 * len(results), 3.8), layout="constrained", facecolor=style.PAPER)
        panels = figure.subplots(1, len(results), squeeze=False)[0]
        for axes, (what, result) in zip(panels, results.items(), strict=True):
            for place, (name, outcome) in enumerate(result["found"].items()):
                per = result["ratio"] if name != "random search" else 1.0
                at = per * np.arange(1, len(outcome.curve) + 1)
                if name == "random search":
                    curves = np.array([outcome.curve for outcome in result["searches"]])
                    band = {"step": "post", "color": style.colour(place), "alpha": 0.18, "linewidth": 0}
                    axes.fill_between(
                        at, curves.min(0), curves.max(0), **band, label=f"all {len(curves)} random searches"
                    )
                axes.step(at, outcome.curve, where="post", color=style.colour(place), label=name)
            first = result["found"]["random search"].curve[0]
            axes.axhline(first, color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 3)), label="start")
            axes.set_title({"rates": "learning rates of six groups", "weights": "weights of training images"}[what])
            axes.set_xlabel("compute, in trainings")
            axes.set_ylabel("best loss on the images tuned on")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FormatStrFormatter("%.2g"))
            axes.yaxis.set_minor_formatter(FormatStrFormatter("%.2g"))
            axes.legend(frameon=False)
        figure.savefig(path, dpi=130)


def define_flags() -> None:
    """The flags of this script; a test that imports it has none of them."""
    flags.DEFINE_list("what", ["rates", "weights"], "what is tuned")
    flags.DEFINE_integer("steps", 120, "of a training", lower_bound=1)
    flags.DEFINE_integer("width", 64, "of the hidden layers", lower_bound=1)
    flags.DEFINE_integer("batch", 128, "images per step", lower_bound=1)
    flags.DEFINE_float("rate", 0.01, "learning rate at the start, where rates are tuned", lower_bound=0.0)
    flags.DEFINE_float("rate_of_weights", 0.1, "learning rate where weights are tuned", lower_bound=0.0)
    flags.DEFINE_integer("branching", 4, "of replay_grad", lower_bound=2)
    flags.DEFINE_integer("metagradients", 40, "steps of metagradient descent", lower_bound=1)
    flags.DEFINE_integer("seeds", 5, "of the judgement, which were not tuned on", lower_bound=1)
    flags.DEFINE_string("out", "metagradient", "where the table (.txt) and the figure (.png) go")


def main(argv: list[str]) -> None:
    """Tunes both, and writes the table and the figure."""
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    results, texts = {}, []
    for what in FLAGS.what:
        rate = FLAGS.rate if what == "rates" else FLAGS.rate_of_weights
        own = task(what, steps=FLAGS.steps, width=FLAGS.width, batch=FLAGS.batch, rate=rate, branching=FLAGS.branching)
        results[what] = compared(own, FLAGS.metagradients, FLAGS.seeds)
        texts.append(table(what, own, results[what]))
        print(texts[-1], flush=True)
    command = shlex.join(["python", "experiments/metagradient.py", *sys.argv[1:]])
    rates = f"from {FLAGS.rate} where rates are tuned and at {FLAGS.rate_of_weights} where weights are"
    head = (
        f"$ {command}\nMLP 64-{FLAGS.width}-{FLAGS.width}-10 on digits, a third of the labels wrong, {FLAGS.steps} "
        f"steps of momentum, {rates};\ntuned on {HELD_OUT} images with right labels and seed 0, judged on 360 others "
        f"and on {FLAGS.seeds} other seeds (medians);\njax {jax.__version__}, {jax.devices()[0].device_kind}"
    )
    pathlib.Path(f"{FLAGS.out}.txt").write_text("\n\n".join([head, *texts]) + "\n")
    draw(results, f"{FLAGS.out}.png")


if __name__ == "__main__":
    define_flags()
    app.run(main)
