"""The best learning rate grows with the batch size for SGD and with its square root for Adam, up to a batch from which
it grows more slowly.

A perceptron 64-64-10 on handwritten digits at batch sizes from 4 to 1024, a factor of 4 apart; every run sees the same
number of examples, at a constant learning rate. Rates are a factor of 2 apart, the same at all batch sizes, all with
all seeds; the metric is the training loss at the end of the run. The best rate is where a parabola through the mean of
the logarithm of the loss at the best rate and its two neighbours has its minimum.

Verdict, by slopes of the logarithm of the best rate against that of the batch; the interval is a bootstrap over seeds.
Reproduced: from 4 to 64 the slope of SGD is from 0.7 to 1.3 and that of Adam from 0.3 to 0.7, and from 256 to 1024
both are smaller than that, by the interval of the difference. In part: some of these four hold. Not reproduced here:
none.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import gradkit as gk
from experiments.claims import showing, small, tuning
from experiments.claims.protocol import Claim, Judgement, Record, Settings
from gradkit.training.report import style

CLAIM = Claim(
    "Goyal et al. Accurate, Large Minibatch SGD. 2017, arXiv 1706.02677; Malladi et al. On the SDEs and Scaling Rules "
    "for Adaptive Gradient Algorithms. 2022, arXiv 2205.10287.",
    {"small": {"examples": 16384, "seeds": 6}, "full": {"examples": 131072, "seeds": 32}},
)
BATCHES = (4, 16, 64, 256, 1024)
METHODS: dict[str, tuple[np.ndarray, Callable[..., Any]]] = {
    "SGD": (2.0 ** np.arange(-7, 4), gk.sgd),
    "Adam": (2.0 ** np.arange(-12, -1), lambda learning_rate: gk.adamw(learning_rate, weight_decay=0.0)),
}
# Method -> (rates, loss by (batch, rate, seed)).
Data = dict[str, tuple[np.ndarray, np.ndarray]]


def measure(record: Record, s: Settings, names: Sequence[str] = tuple(METHODS)) -> Data:
    found = {}
    for name in names:
        (rates, method), ends = METHODS[name], []
        for batch in BATCHES:
            problem, steps = small.digits(widths=(64,), batch_size=batch), s["examples"] // batch
            key = {"experiment": "rate_by_batch", "contestant": name, "batch": batch, "steps": steps}
            train = tuning.swept(problem, method, steps, 1)
            ends.append(tuning.scanned(record, key, train, {"learning_rate": rates}, s["seeds"]))
        found[name] = rates, np.stack(ends)
    return found


def best_rates(rates: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The logarithm to base 2 of the best rate of every batch size, from (batch, rate, seed)."""
    losses = np.where(np.isfinite(ends), np.minimum(ends, 10.0), 10.0)
    curves, found = np.log(losses).mean(-1), []
    for curve in curves:
        i = int(curve.argmin())
        shift = 0.0
        if 0 < i < len(rates) - 1:
            bend = curve[i - 1] - 2 * curve[i] + curve[i + 1]
            shift = float((curve[i - 1] - curve[i + 1]) / (2 * bend)) if bend > 0 else 0.0
        found.append(np.log2(rates[i]) + shift)
    return np.array(found)


def slopes(best: np.ndarray) -> tuple[float, float]:
    """The slope up to the batch of 64, and from 256 on."""
    x = np.log2(np.array(BATCHES))
    return float(np.polyfit(x[:3], best[:3], 1)[0]), float(np.polyfit(x[3:], best[3:], 1)[0])


def resampled(rates: np.ndarray, ends: np.ndarray, of: Callable[[np.ndarray], Any], draws: int = 1000) -> np.ndarray:
    """What `of` makes of the best rates of resampled seeds, (draws, …)."""
    random, seeds = np.random.default_rng(0), ends.shape[-1]
    return np.array([of(best_rates(rates, ends[..., random.integers(0, seeds, seeds)])) for _ in range(draws)])


def judge(data: Data, s: Settings) -> Judgement:
    rows = [["method", *(f"batch {batch}" for batch in BATCHES), "slope to 64", "slope from 256"]]
    held, said = [], []
    for name, (rates, ends) in data.items():
        best = best_rates(rates, ends)
        first, last = slopes(best)
        draws = resampled(rates, ends, slopes)
        low, high = np.quantile(draws, [0.025, 0.975], axis=0)
        difference = np.quantile(draws[:, 0] - draws[:, 1], 0.025)
        lowest, largest = (0.7, 1.3) if name == "SGD" else (0.3, 0.7)
        held += [lowest <= first <= largest, difference > 0]
        rows.append(
            [
                name,
                *(f"{2**x:.3g}" for x in best),
                f"{first:.2f} [{low[0]:.2f}, {high[0]:.2f}]",
                f"{last:.2f} [{low[1]:.2f}, {high[1]:.2f}]",
            ]
        )
        said.append(f"{name}: {first:.2f} up to 64 examples, {last:.2f} from 256 on")
    verdict = "reproduced" if all(held) else "reproduced in part" if any(held) else "not reproduced here"
    return Judgement(
        verdict, f"Slopes of the best rate against the batch, logarithmic. {'; '.join(said)}.", showing.table(rows)
    )


def draw(data: Data, s: Settings, figure: Any) -> None:
    figure.set_size_inches(9.6, 4.0)
    for axes, (name, (rates, ends)) in zip(figure.subplots(1, 2), data.items(), strict=True):
        best = best_rates(rates, ends)
        low, high = np.quantile(resampled(rates, ends, lambda x: x), [0.025, 0.975], axis=0)
        x = np.array(BATCHES)
        axes.plot(x, 2.0**best, "o-", color=style.colour(0), label="best rate, with 95% interval")
        axes.fill_between(x, 2.0**low, 2.0**high, color=style.colour(0), alpha=0.2, lw=0)
        power = 1.0 if name == "SGD" else 0.5
        law = "linear" if name == "SGD" else "square root"
        axes.plot(x, 2.0 ** best[1] * (x / x[1]) ** power, "--", color=style.MUTED, lw=1, label=law)
        axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="best learning rate", title=name)
        axes.legend(frameon=False)
