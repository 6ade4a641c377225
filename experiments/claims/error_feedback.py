"""Compressed gradients lose nothing against the full mean with error feedback, and lose without it.

Four replicas (an axis of `vmap`) train a perceptron 64-128-128-10 on handwritten digits by SGD with momentum 0.9, each
on batches of 16 of its own, under a linear decay to 0. Exchanges: the mean in float32; the largest hundredth of the
entries and factors of rank 1 (PowerSGD), each with and without error feedback. Every one is tuned over eight learning
rates a factor of 2 apart, chosen by the median over tuning seeds and judged on other seeds. The metric is the training
loss.

Verdict, by the paired bootstrap of the logarithm of the loss over the seeds that judge. Reproduced: for both kinds the
loss without error feedback is higher than with it, and that with it is at most 1.5 times that of the mean. In part:
for both kinds it is higher without, but with it more than 1.5 times that of the mean; or one kind alone. Not
reproduced here: it is not higher without, for either kind.
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
from gradkit import parallel
from gradkit.workloads import Workload

CLAIM = Claim(
    "Vogels et al. PowerSGD. 2019, arXiv 1905.13727; Lin et al. Deep Gradient Compression. 2017, arXiv 1712.01887; "
    "Karimireddy et al. Error Feedback Fixes SignSGD and other Gradient Compression Schemes. 2019, arXiv 1901.09847.",
    {
        "small": {"steps": 300, "rates": 8, "tuning_seeds": 2, "seeds": 8},
        "full": {"steps": 5000, "rates": 10, "tuning_seeds": 4, "seeds": 32},
    },
)
REPLICAS = 4
EXCHANGES: dict[str, Any] = {
    "mean": parallel.mean_compressor,
    "top 1%": lambda: parallel.top_k_compressor(0.01),
    "top 1%, feedback": lambda: parallel.error_feedback(parallel.top_k_compressor(0.01)),
    "rank 1": lambda: parallel.powersgd(1, error_feedback=False),
    "rank 1, feedback": lambda: parallel.powersgd(1),
}


def replicated(problem: Workload, exchange: Any, steps: int, evaluations: int = 10) -> Train:
    """Data-parallel training with an exchange, on one device."""
    every = steps // evaluations

    def one(rate: jax.Array, seed: jax.Array) -> jax.Array:
        start, key = jax.random.split(jax.random.key(seed))
        tx = optax.chain(exchange(), gk.sgd(small.linear(rate, steps), momentum=0.9))
        params = parallel.replicate(problem.init(start), REPLICAS)

        def own(params: Any, state: Any, key: jax.Array) -> Any:
            grads = jax.grad(problem.loss)(params, problem.batch(key))
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
            keys = jax.random.split(jax.random.fold_in(key, t), REPLICAS)
            return jax.vmap(own, axis_name="replica")(*carry, keys), None

        def evaluation(carry: Any, t: jax.Array) -> tuple[Any, jax.Array]:
            carry, _ = jax.lax.scan(step, carry, t * every + jnp.arange(every))
            return carry, problem.metric(jax.tree.map(lambda x: x[0], carry[0]))

        return jax.lax.scan(evaluation, (params, jax.vmap(tx.init)(params)), jnp.arange(evaluations))[1]

    program = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))

    def train(grid: dict[str, np.ndarray], seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        curves = program(jnp.asarray(grid["learning_rate"], jnp.float32), jnp.asarray(list(seeds), jnp.uint32))
        return every * np.arange(1, evaluations + 1), np.asarray(curves)

    return train


def measure(record: Record, s: Settings) -> list[Tuned]:
    problem, found = small.digits(batch_size=16), []
    for name, exchange in EXCHANGES.items():
        key = {"claim": "error_feedback", "contestant": name, "steps": s["steps"]}
        train = replicated(problem, exchange, s["steps"])
        grid = {"learning_rate": 2.0 ** np.arange(-s["rates"], 0)}
        found.append(tuning.tuned(record, key, train, grid, tuning_seeds=s["tuning_seeds"], seeds=s["seeds"]))
    return found


def judge(data: list[Tuned], s: Settings) -> Judgement:
    logs = {one.name: np.log(np.minimum(one.finals, 10.0)) for one in data}
    worse, level, said = [], [], []
    for kind in ("top 1%", "rank 1"):
        worse.append(tuning.compared(logs[kind], logs[f"{kind}, feedback"]) == "higher")
        ratio = {name: float(np.exp(np.mean(logs[name] - logs["mean"]))) for name in (kind, f"{kind}, feedback")}
        level.append(ratio[f"{kind}, feedback"] <= 1.5)
        said.append(f"{kind}: {ratio[f'{kind}, feedback']:.2g} with and {ratio[kind]:.2g} without error feedback")
    verdict = (
        "reproduced" if all(worse) and all(level) else "reproduced in part" if any(worse) else "not reproduced here"
    )
    found = f"The training loss at the end, as a multiple of that of the uncompressed mean: {'; '.join(said)}."
    return Judgement(verdict, found, showing.table(showing.lines(data, "mean")))


def draw(data: list[Tuned], s: Settings, figure: Any) -> None:
    figure.set_size_inches(9.6, 4.0)
    left, right = figure.subplots(1, 2)
    showing.draw_rates(left, data, "training loss at the end of tuning")
    showing.draw_curves(right, data, "training loss")
    for axes in (left, right):
        axes.set_yscale("log")
