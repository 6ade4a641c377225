"""SVRG gains over SGD on a convex problem and does not on a deep network, at the same number of gradients.

Handwritten digits, 1437 images, batches of 32. Convex: a linear classifier with an L2 term of 1e-3. Deep: a perceptron
64-64-64-64-10 with the same L2 term. SVRG (`gk.svrg_estimator`) takes a snapshot every two passes; a step costs two
gradients of a batch and a snapshot one more pass, so that two passes of steps cost five of gradients. SGD gets as many
gradients: two and a half times the steps. Both decay linearly to 0 and are tuned over eight learning rates a factor of
2 apart; the best rate is chosen by the median over tuning seeds and judged on other seeds. The metric is the training
loss with its L2 term; the lowest value that any run reaches, less a thousandth of it, is subtracted before logarithms
are taken.

Verdict, by the paired bootstrap of the logarithm over the seeds that judge. Reproduced: SVRG is lower than SGD on the
convex problem and not lower on the deep one. In part: it is lower on neither. Not reproduced here: it is lower on the
deep one.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from experiments.claims import showing, small, tuning
from experiments.claims.protocol import Claim, Judgement, Record, Settings
from experiments.claims.tuning import Train, Tuned
from gradkit.workloads import Workload

CLAIM = Claim(
    "Defazio, Bottou. On the Ineffectiveness of Variance Reduced Optimization for Deep Learning. 2018, arXiv "
    "1812.04529.",
    {
        "small": {"snapshots": 12, "rates": 8, "tuning_seeds": 2, "seeds": 8},
        "full": {"snapshots": 100, "rates": 12, "tuning_seeds": 5, "seeds": 32},
    },
)
BATCH, EXAMPLES, L2 = 32, 1437, 1e-3
EVERY = 2 * EXAMPLES // BATCH  # steps between snapshots
PROBLEMS = {"convex": (), "deep": (64, 64, 64)}


def problem_of(widths: Sequence[int]) -> tuple[Workload, Any]:
    """The problem, and its loss on all data."""
    plain = small.digits(widths=widths, batch_size=BATCH)

    def norm(params: Any) -> jax.Array:
        return L2 / 2 * sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))

    def full(params: Any) -> jax.Array:
        return plain.metric(params) + norm(params)

    def loss(params: Any, batch: Any) -> jax.Array:
        return plain.loss(params, batch) + norm(params)

    return gk.workloads.problem(plain.init, loss, plain.batch, full, 0.0, batch_size=BATCH), full


def reduced(problem: Workload, full: Any, snapshots: int) -> Train:
    """SVRG: two nested loops, so that the full gradient is computed once per snapshot."""

    def one(rate: jax.Array, seed: jax.Array) -> jax.Array:
        start, key = jax.random.split(jax.random.key(seed))
        tx = optax.chain(gk.svrg_estimator(EVERY), gk.sgd(small.linear(rate, snapshots * EVERY)))
        params, gradient = problem.init(start), jax.grad(problem.loss)

        def snapshot(carry: Any, i: jax.Array) -> tuple[Any, jax.Array]:
            whole = jax.grad(full)(carry[0])

            def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
                params, state = carry
                batch = problem.batch(jax.random.fold_in(key, t))
                there = gradient(state[0].point(params), batch)
                grads = gradient(params, batch)
                updates, state = tx.update(grads, state, params, snapshot_grads=there, full_grads=whole)
                return (optax.apply_updates(params, updates), state), None

            carry, _ = jax.lax.scan(step, carry, i * EVERY + jnp.arange(EVERY))
            return carry, problem.metric(carry[0])

        return jax.lax.scan(snapshot, (params, tx.init(params)), jnp.arange(snapshots))[1]

    program = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))

    def train(grid: dict[str, np.ndarray], seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        curves = program(jnp.asarray(grid["learning_rate"], jnp.float32), jnp.asarray(list(seeds), jnp.uint32))
        return np.arange(1, snapshots + 1), np.asarray(curves)

    return train


def measure(record: Record, s: Settings) -> dict[str, list[Tuned]]:
    found: dict[str, list[Tuned]] = {}
    count = s["snapshots"]
    for name, widths in PROBLEMS.items():
        problem, full = problem_of(widths)
        steps = count * (EVERY * 5 // 2)

        def sgd(learning_rate: Any, steps: int) -> Any:
            return gk.sgd(small.linear(learning_rate, steps))

        trains = {"SGD": tuning.swept(problem, sgd, steps, count), "SVRG": reduced(problem, full, count)}
        for method, train in trains.items():
            key = {"claim": "svrg_deep", "problem": name, "contestant": method, "snapshots": count}
            grid = {"learning_rate": 2.0 ** np.arange(1 - s["rates"], 1)}
            one = tuning.tuned(record, key, train, grid, tuning_seeds=s["tuning_seeds"], seeds=s["seeds"])
            found.setdefault(name, []).append(one._replace(steps=5 * np.arange(1, count + 1)))
    return found


def excess(found: list[Tuned]) -> dict[str, np.ndarray]:
    """The curves above the lowest value of all, and a thousandth of it."""
    low = 0.999 * min(one.curves.min() for one in found)
    return {one.name: np.where(np.isfinite(one.curves), one.curves, 10.0) - low for one in found}


def judge(data: dict[str, list[Tuned]], s: Settings) -> Judgement:
    order, said = {}, []
    for name, found in data.items():
        logs = {method: np.log(curves[:, -1]) for method, curves in excess(found).items()}
        order[name] = tuning.compared(logs["SVRG"], logs["SGD"])
        ratio = float(np.exp(np.mean(logs["SVRG"] - logs["SGD"])))
        said.append(f"on the {name} problem SVRG ends with {ratio:.2g} times the excess loss of SGD ({order[name]})")
    if order["deep"] == "lower":
        verdict = "not reproduced here"
    else:
        verdict = "reproduced" if order["convex"] == "lower" else "reproduced in part"
    text = "\n\n".join(f"{name}\n{showing.table(showing.lines(own, 'SGD'))}" for name, own in data.items())
    return Judgement(verdict, f"After as many gradients, {' and '.join(said)}.", text)


def draw(data: dict[str, list[Tuned]], s: Settings, figure: Any) -> None:
    figure.set_size_inches(9.6, 4.0)
    for axes, (name, found) in zip(figure.subplots(1, 2), data.items(), strict=True):
        curves = excess(found)
        shown = [one._replace(curves=curves[one.name]) for one in found]
        showing.draw_curves(axes, shown, "training loss above the lowest")
        axes.set(yscale="log", xlabel="gradients, in passes over the data", title=name)
