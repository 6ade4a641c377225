"""Under gradient noise of infinite variance clipped SGD converges where SGD does not; under Gaussian noise clipping
gains little.

Linear regression in 50 dimensions with scales from 1 to 0.1, fresh examples in every step, noise of Student's t with
1.5 degrees of freedom (infinite variance) or Gaussian of the same scale. The metric is the excess risk at the last
step relative to that of zero; the learning rate decays linearly to 0. Clipped SGD is tuned over learning rates and
thresholds of the global norm; SGD gets as many trials, all of them learning rates over the same range. The best point
is chosen by the median over tuning seeds and judged on other seeds.

Verdict, by the paired bootstrap of the logarithm of the excess risk over the seeds that judge. Reproduced: clipped SGD
is lower under heavy tails by more than a factor of 2 in the mean, and under Gaussian noise by less than a factor of
1.5. In part: it is lower under heavy tails in another way than that. Not reproduced here: it is not lower there.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from experiments.claims import showing, small, tuning
from experiments.claims.protocol import Claim, Judgement, Record, Settings
from experiments.claims.tuning import Tuned
from gradkit.workloads import Workload

CLAIM = Claim(
    "Zhang et al. Why are Adaptive Methods Good for Attention Models? 2019, arXiv 1912.03194; Gorbunov et al. "
    "Stochastic Optimization with Heavy-Tailed Noise via Accelerated Gradient Clipping. 2020, arXiv 2005.10785.",
    {
        "small": {"steps": 2000, "batch": 16, "rates": 8, "tuning_seeds": 4, "seeds": 12},
        "full": {"steps": 20_000, "batch": 16, "rates": 12, "tuning_seeds": 8, "seeds": 32},
    },
)
DIMENSION, DEGREES = 50, 1.5
THRESHOLDS = (0.3, 1.0, 3.0, 10.0)
NOISES = ("heavy", "gaussian")


def regression(noise: str, batch: int) -> Workload:
    scales = np.geomspace(1, 0.1, DIMENSION).astype(np.float32)
    truth = np.random.default_rng(0).standard_normal(DIMENSION).astype(np.float32)

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, b = jax.random.split(key)
        x = scales * jax.random.normal(a, (batch, DIMENSION))
        heavy = noise == "heavy"
        e = jax.random.t(b, DEGREES, (batch,), jnp.float32) if heavy else jax.random.normal(b, (batch,))
        return x, x @ truth + e

    def loss(params: Any, examples: Any) -> jax.Array:
        x, y = examples
        return jnp.mean(jnp.square(x @ params["w"] - y)) / 2

    def metric(params: Any) -> jax.Array:
        return jnp.sum(jnp.square(scales * (params["w"] - truth))) / np.sum(np.square(scales * truth))

    return gk.workloads.problem({"w": jnp.zeros(DIMENSION)}, loss, draw, metric, 0.0, batch_size=batch)


def sgd(learning_rate: Any, steps: int) -> Any:
    return gk.sgd(small.linear(learning_rate, steps))


def clipped(learning_rate: Any, max_norm: Any, steps: int) -> Any:
    return optax.chain(gk.clip_by_global_norm(max_norm), sgd(learning_rate, steps))


def measure(record: Record, s: Settings) -> dict[str, list[Tuned]]:
    few = np.geomspace(1e-3, 1.0, s["rates"])
    many = np.geomspace(1e-3, 1.0, s["rates"] * len(THRESHOLDS))
    grids = {
        "SGD": (sgd, {"learning_rate": many}),
        "clipped SGD": (clipped, {"learning_rate": few, "max_norm": THRESHOLDS}),
    }
    found: dict[str, list[Tuned]] = {}
    for noise in NOISES:
        problem = regression(noise, s["batch"])
        for name, (method, grid) in grids.items():
            key = {
                "claim": "clipping_heavy_tails",
                "noise": noise,
                "contestant": name,
                "steps": s["steps"],
                "batch": s["batch"],
            }
            train = tuning.swept(problem, method, s["steps"], 20)
            one = tuning.tuned(record, key, train, grid, tuning_seeds=s["tuning_seeds"], seeds=s["seeds"])
            found.setdefault(noise, []).append(one)
    return found


def judge(data: dict[str, list[Tuned]], s: Settings) -> Judgement:
    gain, order = {}, {}
    for noise, (plain, clip) in data.items():
        # A run that diverged counts as one that learned nothing.
        logs = [np.log(np.minimum(one.finals, 1.0)) for one in (plain, clip)]
        gain[noise], order[noise] = float(np.exp(np.mean(logs[0] - logs[1]))), tuning.compared(logs[1], logs[0])
    heavy = order["heavy"] == "lower"
    reproduced = heavy and gain["heavy"] > 2 and gain["gaussian"] < 1.5
    verdict = "reproduced" if reproduced else "reproduced in part" if heavy else "not reproduced here"
    found = (
        f"The excess risk of tuned SGD is {gain['heavy']:.2g} times that of tuned clipped SGD under noise of infinite "
        f"variance (clipped SGD is {order['heavy']} by the bootstrap), and {gain['gaussian']:.2g} times under Gaussian "
        f"noise ({order['gaussian']})."
    )
    text = "\n\n".join(f"noise: {noise}\n{showing.table(showing.lines(found, 'SGD'))}" for noise, found in data.items())
    return Judgement(verdict, found, text)


def draw(data: dict[str, list[Tuned]], s: Settings, figure: Any) -> None:
    figure.set_size_inches(9.6, 6.4)
    panels = figure.subplots(2, 2)
    for row, (noise, found) in zip(panels, data.items(), strict=True):
        showing.draw_rates(row[0], found, "excess risk at the end")
        showing.draw_curves(row[1], found, "excess risk")
        for axes in row:
            axes.set_yscale("log")
            axes.set_title(f"{noise} noise")
        row[0].set_ylim(top=3)
