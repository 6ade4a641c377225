"""Lion's best learning rate is 3 to 10 times smaller than AdamW's, and its best weight decay 3 to 10 times larger.

A perceptron 64-128-128-10 on 400 handwritten digits of which a tenth have labels drawn at random, batches of 50, a
linear warm-up over a twentieth of the steps and a linear decay to 0, so that weight decay matters; the metric is the
loss on held-out images. Both methods are tuned over learning rates a factor of 2 apart and weight decays a factor of
10^(1/2) apart, as many for both, and all points are run with all seeds: the best point is the one with the lowest mean
over them.

Verdict, by the ratio of AdamW's best rate to Lion's and of Lion's best decay to AdamW's, which are accepted from 2.5
to 12, as the grid is coarse. Reproduced: both. In part: one of them. Not reproduced here: none, or the losses at the
best points differ by more than a tenth. How often the bootstrap over seeds accepts each ratio stands in the table.
"""

from typing import Any

import numpy as np

import gradkit as gk
from experiments.claims import showing, small, tuning
from experiments.claims.protocol import Claim, Judgement, Record, Settings

CLAIM = Claim(
    "Chen et al. Symbolic Discovery of Optimization Algorithms. 2023, arXiv 2302.06675.",
    {
        "small": {"steps": 400, "rates": 7, "decays": 6, "seeds": 5},
        "full": {"steps": 4000, "rates": 9, "decays": 8, "seeds": 20},
    },
)
METHODS = {
    "AdamW": (4e-4, 0.01, gk.adamw),
    "Lion": (5e-5, 0.01, gk.lion),
}
Data = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def measure(record: Record, s: Settings) -> Data:
    problem, found = small.digits(examples=400, label_noise=0.1, batch_size=50, judged="test loss"), {}
    for name, (rate, decay, factory) in METHODS.items():
        rates, decays = rate * 2.0 ** np.arange(s["rates"]), decay * 10.0 ** (np.arange(s["decays"]) / 2)

        def method(learning_rate: Any, weight_decay: Any, steps: int, factory: Any = factory) -> Any:
            return factory(small.linear(learning_rate, steps, steps // 20), weight_decay=weight_decay)

        key = {"claim": "lion_rate", "contestant": name, "steps": s["steps"]}
        train = tuning.swept(problem, method, s["steps"], 1)
        ends = tuning.scanned(record, key, train, {"learning_rate": rates, "weight_decay": decays}, s["seeds"])
        found[name] = rates, decays, ends.reshape(len(rates), len(decays), -1)
    return found


def best(rates: np.ndarray, decays: np.ndarray, ends: np.ndarray) -> tuple[float, float, float]:
    """(rate, decay, loss) of the lowest mean."""
    mean = np.where(np.isfinite(ends), ends, 1e3).mean(-1)
    i, j = np.unravel_index(mean.argmin(), mean.shape)
    return float(rates[i]), float(decays[j]), float(mean[i, j])


def accepted(ratio: float) -> bool:
    return 2.5 <= ratio <= 12


def judge(data: Data, s: Settings) -> Judgement:
    adam, lion = (best(*data[name]) for name in METHODS)
    ratios = adam[0] / lion[0], lion[1] / adam[1]
    random, often = np.random.default_rng(0), np.zeros(2)
    for _ in range(1000):
        at = random.integers(0, s["seeds"], s["seeds"])
        a, b = (best(rates, decays, ends[..., at]) for rates, decays, ends in data.values())
        often += accepted(a[0] / b[0]), accepted(b[1] / a[1])
    level = abs(adam[2] - lion[2]) <= 0.1 * min(adam[2], lion[2])
    count = sum(map(accepted, ratios)) if level else 0
    verdict = ("not reproduced here", "reproduced in part", "reproduced")[count]
    edge = [
        name for name, (rates, decays, ends) in data.items()
        for x, grid in zip(best(rates, decays, ends), (rates, decays), strict=False) if x in (grid[0], grid[-1])
    ]  # fmt: skip
    found = (
        f"AdamW's best learning rate is {ratios[0]:.3g} times Lion's, and Lion's best weight decay {ratios[1]:.3g} "
        "times "
        f"AdamW's; their losses there are {adam[2]:.3g} and {lion[2]:.3g}."
        + (f" A best point of {' and '.join(sorted(set(edge)))} is at the edge of its grid." if edge else "")
    )
    rows = [["method", "best rate", "best decay", "mean loss"]]
    rows += [[name, *map(showing.number, point)] for name, point in zip(METHODS, (adam, lion), strict=True)]
    rows += [["ratio", showing.number(ratios[0]), showing.number(ratios[1]), ""]]
    rows += [["accepted in resamples", f"{often[0] / 10:.0f}%", f"{often[1] / 10:.0f}%", ""]]
    return Judgement(verdict, found, showing.table(rows))


def draw(data: Data, s: Settings, figure: Any) -> None:
    figure.set_size_inches(9.6, 3.8)
    mean = {name: np.where(np.isfinite(own[2]), own[2], np.nan).mean(-1) for name, own in data.items()}
    low = min(np.nanmin(x) for x in mean.values())
    for axes, (name, (rates, decays, ends)) in zip(figure.subplots(1, 2), data.items(), strict=True):
        shown = axes.pcolormesh(
            rates, decays, mean[name].T, vmin=low, vmax=low + 0.6, cmap="viridis_r", shading="nearest"
        )
        axes.plot(*best(rates, decays, ends)[:2], "o", color="white", markeredgecolor="black")
        axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="weight decay", title=name)
        axes.grid(visible=False)
    figure.colorbar(shown, ax=figure.axes, label="held-out loss, mean over seeds")
