"""Adam's best learning rate rises with the batch size, has a peak, and falls again above it.

The runs of Adam of `rate_by_batch`: batch sizes from 4 to 1024 with the same number of examples, constant rates a
factor of 2 apart, all with all seeds; the best rate as there. Beside it stands the law of the paper, rate = 2 max /
(sqrt(N / B) + sqrt(B / N)), fitted by `gk.batches.fit_surge`.

Verdict, by a bootstrap over seeds. Reproduced: in 95% of the resamples the largest best rate is at an inner batch size
and the best rate of 1024 examples is lower than it by a factor of 2^(1/2) or more. In part: it rises by less than half
the square root between the two largest batch sizes, without such a fall. Not reproduced here: neither.
"""

from typing import Any

import numpy as np

from experiments.claims import rate_by_batch, showing
from experiments.claims.protocol import Claim, Judgement, Record, Settings
from experiments.claims.rate_by_batch import BATCHES, best_rates, resampled
from gradkit.batches import fit_surge, surge_learning_rate
from gradkit.training.report import style

CLAIM = Claim(
    "Li et al. Surge Phenomenon in Optimal Learning Rate and Batch Size Scaling. 2024, arXiv 2405.14578.",
    rate_by_batch.CLAIM.scales,
)


def measure(record: Record, s: Settings) -> rate_by_batch.Data:
    return rate_by_batch.measure(record, s, ("Adam",))


def falls(best: np.ndarray) -> bool:
    return bool(0 < best.argmax() < len(best) - 1 and best[-1] <= best.max() - 0.5)


def fitted(best: np.ndarray) -> tuple[float, float] | None:
    """The largest rate and its batch; None where no such law fits."""
    try:
        fit = fit_surge(BATCHES, 2.0**best)
    except ValueError:
        return None
    return float(fit[0]), float(fit[1])


def judge(data: rate_by_batch.Data, s: Settings) -> Judgement:
    rates, ends = data["Adam"]
    best = best_rates(rates, ends)
    share = resampled(rates, ends, falls).mean()
    flat = best[-1] - best[-2] < 0.25 * np.log2(BATCHES[-1] / BATCHES[-2])
    verdict = "reproduced" if share >= 0.95 else "reproduced in part" if flat else "not reproduced here"
    fit = fitted(best)
    law = (
        "no law of this form fits"
        if fit is None
        else f"the law fits with its peak of {fit[0]:.2g} at {fit[1]:.0f} examples"
    )
    found = (
        f"Best rates from 4 to 1024 examples: {', '.join(f'{2**x:.3g}' for x in best)}. A peak with a fall by "
        "2^(1/2) or "
        f"more is in {share:.0%} of the resamples; {law}."
    )
    rows = [["batch", "best rate", "law"]]
    for batch, x in zip(BATCHES, best, strict=True):
        rows.append([str(batch), f"{2**x:.3g}", "-" if fit is None else f"{surge_learning_rate(batch, *fit):.3g}"])
    return Judgement(verdict, found, showing.table(rows))


def draw(data: rate_by_batch.Data, s: Settings, figure: Any) -> None:
    figure.set_size_inches(6.4, 4.2)
    axes, (rates, ends) = figure.subplots(), data["Adam"]
    best = best_rates(rates, ends)
    low, high = np.quantile(resampled(rates, ends, lambda x: x), [0.025, 0.975], axis=0)
    x = np.array(BATCHES)
    axes.plot(x, 2.0**best, "o-", color=style.colour(0), label="best rate, with 95% interval")
    axes.fill_between(x, 2.0**low, 2.0**high, color=style.colour(0), alpha=0.2, lw=0)
    if (fit := fitted(best)) is not None:
        fine = np.geomspace(x[0], x[-1], 50)
        axes.plot(
            fine, [surge_learning_rate(b, *fit) for b in fine], "--", color=style.colour(1), label="law of the paper"
        )
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="best learning rate of Adam")
    axes.legend(frameon=False)
