"""ScaledGD's rate does not depend on the condition number of the matrix that is factored; gradient descent's does.

    python experiments/scaled_gd_condition.py --out=experiments/results/scaled_gd_condition

min over L, R of  1/2 |L R^T - M|_F^2,   M of rank r with singular values from 1 to 1 / condition, evenly in their logs

from the factors of M plus noise. Both methods run with the same step size, in float64. Writes OUT.txt, the number of
steps after which the error, relative to the smallest singular value, is below each level, and OUT.png.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from absl import app, flags

import gradkit as gk

FLAGS = flags.FLAGS
flags.DEFINE_integer("rows", 60, "rows of M", lower_bound=2)
flags.DEFINE_integer("columns", 40, "columns of M", lower_bound=2)
flags.DEFINE_integer("rank", 4, "rank of M and columns of the factors", lower_bound=2)
flags.DEFINE_list("conditions", ["1", "10", "100", "1000"], "condition numbers")
flags.DEFINE_float("learning_rate", 0.5, "step size of both; M has norm 1", lower_bound=0.0)
flags.DEFINE_float("noise", 0.1, "size of the noise of the start, relative to each singular value", lower_bound=0.0)
flags.DEFINE_integer("steps", 4000, "steps of each run", lower_bound=1)
flags.DEFINE_integer("seed", 0, "of M and of the start")
flags.DEFINE_string("out", "scaled_gd_condition", "where the table (.txt) and the figure (.png) go")

LEVELS = (1e-2, 1e-5, 1e-8)


def problem(condition: float) -> tuple[jax.Array, Any]:
    """M, and a start near it, whose error is the same share of every singular value."""
    random = np.random.default_rng(FLAGS.seed)
    rank = FLAGS.rank
    left, right = (np.linalg.qr(random.standard_normal((n, rank)))[0] for n in (FLAGS.rows, FLAGS.columns))
    values = np.geomspace(1, 1 / condition, rank)
    noise = [random.standard_normal(x.shape) / np.sqrt(len(x)) for x in (left, right)]
    start = [(x + FLAGS.noise * e) * np.sqrt(values) for x, e in zip((left, right), noise, strict=True)]
    return jnp.asarray((left * values) @ right.T), {"l": jnp.asarray(start[0]), "r": jnp.asarray(start[1])}


def errors(tx: optax.GradientTransformation, M: jax.Array, start: Any) -> np.ndarray:
    """|L R^T - M|_F over the smallest singular value of M, after 0, 1, ... steps."""
    smallest = jnp.linalg.svd(M, compute_uv=False)[FLAGS.rank - 1]

    def step(carry: Any, _: None) -> Any:
        x, state = carry
        e = x["l"] @ x["r"].T - M
        updates, state = tx.update({"l": e @ x["r"], "r": e.T @ x["l"]}, state, x)
        return (optax.apply_updates(x, updates), state), jnp.linalg.norm(e) / smallest

    return np.asarray(jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), None, FLAGS.steps + 1))(start)[1])


def table(runs: dict[tuple[str, float], np.ndarray]) -> str:
    """Steps to every level, by method and condition number, and by how much the last ten of them shrink the error."""
    head = ["method", "condition", *(f"steps to {level:.0e}" for level in LEVELS), "factor per step", "last error"]
    rows = [head]
    for (method, condition), error in runs.items():
        reached = [np.flatnonzero(error < level) for level in LEVELS]
        steps = [str(hit[0]) if hit.size else f"> {FLAGS.steps}" for hit in reached]
        end = min(reached[-1][0] if reached[-1].size else FLAGS.steps, FLAGS.steps)
        factor = (error[end] / error[max(0, end - 10)]) ** (1 / min(10, end))
        rows.append([method, f"{condition:g}", *steps, f"{factor:.5f}", f"{error[-1]:.1e}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


def main(argv: list[str]) -> None:
    """Runs both methods for every condition number; writes the table and the figure."""
    del argv
    jax.config.update("jax_enable_x64", True)
    matplotlib.use("agg")
    from matplotlib import pyplot

    out = pathlib.Path(FLAGS.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    runs: dict[tuple[str, float], np.ndarray] = {}
    rate = FLAGS.learning_rate
    transformations = {"gradient descent": gk.sgd(rate), "scaled_gd": gk.scaled_gd(rate, damping=0.0, pairs=("l", "r"))}
    for method, tx in transformations.items():
        for condition in map(float, FLAGS.conditions):
            runs[method, condition] = errors(tx, *problem(condition))
    text = (
        f"{FLAGS.rows} x {FLAGS.columns}, rank {FLAGS.rank}, step size {rate:g}, start off by {FLAGS.noise:g}; "
        f"error |L R^T - M| over the smallest singular value of M\n\n{table(runs)}\n"
    )
    print(text, end="")
    out.with_suffix(".txt").write_text(text)

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    conditions = list(dict.fromkeys(condition for _, condition in runs))
    for (method, condition), error in runs.items():
        shade = 0.15 + 0.7 * conditions.index(condition) / max(1, len(conditions) - 1)
        color = pyplot.get_cmap("Blues" if method == "scaled_gd" else "Oranges")(0.35 + 0.6 * shade)
        dashes = "-" if method == "scaled_gd" else "--"
        axes.loglog(1 + np.arange(len(error)), error, dashes, color=color, label=f"{method}, condition {condition:g}")
    axes.set(xlabel="steps + 1", ylabel="error over the smallest singular value", ylim=(1e-13, None))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(out.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    app.run(main)
