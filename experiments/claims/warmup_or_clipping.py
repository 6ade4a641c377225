"""Warm-up and gradient clipping do the same for the largest learning rate that trains: each raises it, and both
together hardly more.

A deep perceptron 64-64-64-64-64-64-10 without normalisation on handwritten digits, started with kernels of twice the
usual variance, so that it starts in a sharp region; SGD with momentum 0.9, batches of 128. Four arms: neither, a
linear warm-up over the first quarter of the steps, the gradient clipped to a global norm of 1, and both; then a
constant rate. Learning rates a factor of 2^(1/2) apart, all with all seeds; nothing is chosen. A rate trains, with a
seed, where the training loss at the last step is at most 0.1 nats; the largest such rate is compared by seed, as a
logarithm.

Verdict, by the paired bootstrap over seeds. Reproduced: warm-up alone and clipping alone raise the largest rate, and
both together raise it by less than a factor of 2 over the better of the two. In part: one of these does not hold. Not
reproduced here: neither alone raises it.
"""

from typing import Any

import numpy as np
import optax

import gradkit as gk
from experiments.claims import showing, small, tuning
from experiments.claims.protocol import Claim, Judgement, Record, Settings
from gradkit.training.report import style

CLAIM = Claim(
    "Gilmer et al. A Loss Curvature Perspective on Training Instability in Deep Learning. 2021, arXiv 2110.04369.",
    {"small": {"steps": 200, "rates": 19, "seeds": 8}, "full": {"steps": 2000, "rates": 29, "seeds": 32}},
)
THRESHOLD = 0.1
ARMS = {"neither": (False, False), "warm-up": (True, False), "clipping": (False, True), "both": (True, True)}
Data = tuple[np.ndarray, dict[str, np.ndarray]]


def measure(record: Record, s: Settings) -> Data:
    problem = small.digits(widths=(64,) * 5, batch_size=128, gain=4.0)
    rates, found = 1e-3 * 2.0 ** (np.arange(s["rates"]) / 2), {}
    for name, (warm, clip) in ARMS.items():

        def method(learning_rate: Any, steps: int, warm: bool = warm, clip: bool = clip) -> Any:
            long = steps // 4
            rate = (lambda t: learning_rate * (t + 1.0).clip(max=long) / long) if warm else learning_rate
            tx = gk.sgd(rate, momentum=0.9)
            return optax.chain(gk.clip_by_global_norm(1.0), tx) if clip else tx

        key = {"claim": "warmup_or_clipping", "contestant": name, "steps": s["steps"]}
        train = tuning.swept(problem, method, s["steps"], 1)
        found[name] = tuning.scanned(record, key, train, {"learning_rate": rates}, s["seeds"])
    return rates, found


def largest(rates: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The logarithm to base 2 of the largest rate that trains, by seed; one below the smallest where none does."""
    trains = ends <= THRESHOLD
    last = len(rates) - 1 - np.argmax(trains[::-1], 0)
    return np.where(trains.any(0), np.log2(rates)[last], np.log2(rates[0]) - 1)


def judge(data: Data, s: Settings) -> Judgement:
    rates, ends = data
    found = {name: largest(rates, own) for name, own in ends.items()}
    alone = [tuning.compared(found[name], found["neither"]) == "higher" for name in ("warm-up", "clipping")]
    better = max(("warm-up", "clipping"), key=lambda name: found[name].mean())
    more = found["both"].mean() - found[better].mean()
    verdict = "not reproduced here"
    if any(alone):
        verdict = "reproduced" if all(alone) and more < 1 else "reproduced in part"
    rows = [["arm", "largest rate that trains: mean [interval]", "than neither", "best median loss"]]
    for name, own in found.items():
        low, high = tuning.interval(own)
        than = tuning.compared(own, found["neither"]) if name != "neither" else ""
        best = np.median(ends[name], -1).min()
        rows.append([name, f"{2 ** own.mean():.3g} [{2**low:.3g}, {2**high:.3g}]", than, f"{best:.3g}"])
    shown = ", ".join(f"{name} {2 ** own.mean():.2g}" for name, own in found.items())
    text = f"The largest learning rates that train: {shown}; both together {2**more:.2g} times the better of the two."
    if any(own.max() >= np.log2(rates[-1]) - 1e-9 for own in found.values()):
        text += " Some arms train at the largest rate that was tried."
    return Judgement(verdict, text, showing.table(rows))


def draw(data: Data, s: Settings, figure: Any) -> None:
    figure.set_size_inches(7.2, 4.2)
    axes, (rates, ends) = figure.subplots(), data
    for i, (name, own) in enumerate(ends.items()):
        middle = np.median(own, -1)
        kept = np.isfinite(middle)
        axes.plot(rates[kept], middle[kept], "o-", markersize=3, color=style.colour(i), label=name)
    axes.axhline(THRESHOLD, color=style.MUTED, linewidth=0.9, linestyle="--")
    axes.set(xscale="log", yscale="log", xlabel="learning rate; dashed: what counts as trained", ylim=(None, 10))
    axes.set_ylabel(f"training loss after {s['steps']} steps, median")
    axes.legend(frameon=False)
