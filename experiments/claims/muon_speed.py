"""Muon needs 1.1 to 1.4 times fewer steps than a tuned AdamW, rather than 2 times fewer.

The language model `bytelm`, batches of 8 windows, a warm-up over a twentieth and a cosine to 0. Muon runs for a number
of steps, AdamW for 1, 1.25, 1.5 and 2 times as many, each under its own cosine and each tuned anew: five learning
rates a factor of 2 apart around that of the card, chosen by the median over tuning seeds and judged on other seeds.
The metric is the held-out loss. By seed, the steps that AdamW needs for Muon's loss are interpolated between its
lengths, the logarithm of the length linearly in the loss; the speed-up is their ratio to Muon's steps. Below the first
length it counts as 1, beyond the last as 2.

Verdict, by the mean of the speed-up over the seeds that judge and its bootstrap interval. Reproduced: the mean is from
1.1 to 1.4. In part: it is not, and the interval is above 1. Not reproduced here: the interval reaches 1.
"""

from typing import Any

import numpy as np

from experiments.claims import showing, tuning
from experiments.claims.protocol import Claim, Judgement, Record, Settings
from experiments.claims.tuning import Tuned
from gradkit.training.report import style

CLAIM = Claim(
    "Wen et al. Fantastic Pretraining Optimizers and Where to Find Them. 2025, arXiv 2509.02046.",
    {
        "small": {"steps": 200, "batch_size": 8, "rates": 5, "tuning_seeds": 2, "seeds": 5},
        "full": {"steps": 4000, "batch_size": 32, "rates": 7, "tuning_seeds": 3, "seeds": 10},
    },
)
LENGTHS = (1.0, 1.25, 1.5, 2.0)


def measure(record: Record, s: Settings) -> tuple[Tuned, list[Tuned]]:
    effort = {name: s[name] for name in ("rates", "tuning_seeds", "seeds")}
    muon = tuning.raced(record, s["batch_size"], "muon", s["steps"], **effort)
    adamw = [tuning.raced(record, s["batch_size"], "adamw", round(s["steps"] * x), **effort) for x in LENGTHS]
    return muon, adamw


def speed(muon: np.ndarray, adamw: np.ndarray) -> np.ndarray:
    """By seed, from losses at the end: (seeds,) and (lengths, seeds)."""
    found = []
    for loss, own in zip(muon, adamw.T, strict=True):
        # Longer is never worse: what a shorter run reached counts for the longer one.
        falling = np.minimum.accumulate(own)[::-1]
        found.append(np.exp(np.interp(loss, falling, np.log(LENGTHS)[::-1])))
    return np.array(found)


def judge(data: tuple[Tuned, list[Tuned]], s: Settings) -> Judgement:
    muon, adamw = data
    ratio = speed(muon.finals, np.stack([one.finals for one in adamw]))
    low, high = tuning.interval(ratio)
    inside = 1.1 <= ratio.mean() <= 1.4
    verdict = "reproduced" if inside else "reproduced in part" if low > 1 else "not reproduced here"
    found = (
        f"AdamW needs {ratio.mean():.2f} [{low:.2f}, {high:.2f}] times the steps of Muon for its loss after "
        f"{s['steps']} "
        f"steps{'; some seeds are beyond the longest run, so that this is a lower bound' if ratio.max() >= 2 else ''}."
    )
    rows = showing.lines([muon, *adamw])
    for row, length in zip(rows[2:], LENGTHS, strict=True):
        row[0] = f"adamw, {round(s['steps'] * length)} steps"
    return Judgement(verdict, found, showing.table(rows))


def draw(data: tuple[Tuned, list[Tuned]], s: Settings, figure: Any) -> None:
    figure.set_size_inches(6.8, 4.2)
    axes, (muon, adamw) = figure.subplots(), data
    steps = np.array([s["steps"] * x for x in LENGTHS])
    finals = np.stack([one.finals for one in adamw])
    axes.plot(steps, np.median(finals, 1), "o-", color=style.colour(0), label="AdamW, tuned at each length")
    axes.fill_between(steps, finals.min(1), finals.max(1), color=style.colour(0), alpha=0.15, lw=0)
    axes.axhline(np.median(muon.finals), color=style.colour(1), label=f"Muon after {s['steps']} steps")
    axes.axhspan(muon.finals.min(), muon.finals.max(), color=style.colour(1), alpha=0.15, lw=0)
    axes.set(xlabel="steps of the run", ylabel="held-out loss at its end, nats per byte")
    axes.legend(frameon=False)
