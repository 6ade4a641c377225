"""MoMo and MoMo-Adam train over a wider range of learning rates than SGD with momentum and Adam.

A perceptron 64-128-128-10 on handwritten digits, batches of 64, constant learning rates a factor of 10^(1/3) apart:
over seven decades for each pair, the same rates for both methods of it. Nothing is chosen: all rates are run with all
seeds. A rate trains, with a seed, where the training loss at the last step is at most 0.05 nats. The width of a method
is how many decades of rates train, by seed.

Verdict, by the paired bootstrap of the widths over seeds. Reproduced: both are wider than their counterparts, and the
best median loss of each is at most 1.5 times that of its counterpart. In part: one of the two pairs. Not reproduced
here: neither.
"""

from typing import Any

import numpy as np

import gradkit as gk
from experiments.claims import showing, small, tuning
from experiments.claims.protocol import Claim, Judgement, Record, Settings
from gradkit.training.report import style

CLAIM = Claim(
    "Schaipp et al. MoMo: Momentum Models for Adaptive Learning Rates. 2023, arXiv 2305.07583.",
    {"small": {"steps": 300, "per_decade": 3, "seeds": 6}, "full": {"steps": 3000, "per_decade": 6, "seeds": 20}},
)
THRESHOLD = 0.05
PAIRS = {
    "SGD": (1e-3, {"SGD, momentum": lambda learning_rate: gk.sgd(learning_rate, momentum=0.9), "MoMo": gk.momo}),
    "Adam": (
        1e-5,
        {"Adam": lambda learning_rate: gk.adamw(learning_rate, weight_decay=0.0), "MoMo-Adam": gk.momo_adam},
    ),
}
Data = dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]


def measure(record: Record, s: Settings) -> Data:
    problem, found = small.digits(), {}
    for pair, (lowest, methods) in PAIRS.items():
        rates = lowest * 10.0 ** (np.arange(7 * s["per_decade"] + 1) / s["per_decade"])
        ends = {}
        for name, method in methods.items():
            key = {"claim": "momo_rates", "contestant": name, "steps": s["steps"]}
            train = tuning.swept(problem, method, s["steps"], 1)
            ends[name] = tuning.scanned(record, key, train, {"learning_rate": rates}, s["seeds"])
        found[pair] = rates, ends
    return found


def judge(data: Data, s: Settings) -> Judgement:
    rows, wider = [["method", "decades that train: mean [interval]", "best median loss", "at"]], []
    for rates, ends in data.values():
        widths = {name: (own <= THRESHOLD).sum(0) / s["per_decade"] for name, own in ends.items()}
        medians = {name: np.median(own, -1) for name, own in ends.items()}
        plain, own = ends
        level = medians[own].min() <= 1.5 * medians[plain].min()
        wider.append(tuning.compared(widths[own], widths[plain]) == "higher" and level)
        for name in ends:
            low, high = tuning.interval(widths[name])
            best = medians[name].argmin()
            rows.append(
                [
                    name,
                    f"{widths[name].mean():.2f} [{low:.2f}, {high:.2f}]",
                    f"{medians[name][best]:.3g}",
                    f"{rates[best]:.3g}",
                ]
            )
    verdict = ("not reproduced here", "reproduced in part", "reproduced")[sum(wider)]
    named = [row[0].split(",")[0] + " " + row[1].split(" ")[0] for row in rows[1:]]
    found = f"Decades of learning rates that train to {THRESHOLD:g} nats in {s['steps']} steps: {', '.join(named)}."
    return Judgement(verdict, found, showing.table(rows))


def draw(data: Data, s: Settings, figure: Any) -> None:
    figure.set_size_inches(9.6, 3.8)
    for axes, (pair, (rates, ends)) in zip(figure.subplots(1, 2, sharey=True), data.items(), strict=True):
        for i, (name, own) in enumerate(ends.items()):
            middle = np.median(own, -1)
            kept = np.isfinite(middle)
            axes.plot(rates[kept], middle[kept], color=style.colour(i), label=name)
            low, high = (np.where(np.isfinite(x), x, np.nan) for x in (own.min(-1), own.max(-1)))
            axes.fill_between(rates, low, high, color=style.colour(i), alpha=0.15, lw=0)
        axes.axhline(THRESHOLD, color=style.MUTED, linewidth=0.9, linestyle="--")
        axes.set(xscale="log", yscale="log", xlabel="learning rate", title=f"{pair} and its model", ylim=(None, 10))
        axes.legend(frameon=False)
    figure.axes[0].set_ylabel(f"training loss after {s['steps']} steps")
