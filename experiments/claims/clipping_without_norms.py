"""Adaptive gradient clipping lets a network without normalisation layers train at larger learning rates.

A residual perceptron of eight blocks of width 64 without normalisation on handwritten digits; SGD with momentum 0.9,
batches of 128, a linear decay to 0. Arms: no clipping, clipping of the global norm (0.3, 1, 3), adaptive clipping
(0.01, 0.03, 0.1), and for comparison the same network with a layer norm at the head of each block and no clipping.
Learning rates a factor of 2 apart, all with all seeds. A rate trains, with a seed, where the training loss at the last
step is at most 0.1 nats; the largest such rate is compared by seed, as a logarithm. Both kinds of clipping are shown
at that one of their three thresholds whose mean is largest.

Verdict, by the paired bootstrap over seeds. Reproduced: adaptive clipping raises the largest rate over none by a
factor of 2 or more in the mean, and is not behind clipping of the global norm. In part: it raises it, but by less, or
is behind clipping of the global norm. Not reproduced here: it does not raise it.
"""

from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn

import gradkit as gk
from experiments.claims import showing, small, tuning
from experiments.claims.protocol import Claim, Judgement, Record, Settings
from experiments.claims.warmup_or_clipping import THRESHOLD, largest
from gradkit.training.report import style

CLAIM = Claim(
    "Brock et al. High-Performance Large-Scale Image Recognition Without Normalization. 2021, arXiv 2102.06171.",
    {"small": {"steps": 120, "rates": 11, "seeds": 5}, "full": {"steps": 1500, "rates": 13, "seeds": 32}},
)
ARMS = {
    "none": (False, None, (1.0,)),
    "global norm": (False, gk.clip_by_global_norm, (0.3, 1.0, 3.0)),
    "adaptive": (False, gk.adaptive_grad_clip, (0.01, 0.03, 0.1)),
    "layer norm, none": (True, None, (1.0,)),
}
Data = tuple[np.ndarray, dict[str, dict[float, np.ndarray]]]


class Residual(nn.Module):
    """Eight residual blocks of width 64 between two dense layers."""

    normalised: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.Dense(64)(x)
        for _ in range(8):
            x = nn.LayerNorm()(h) if self.normalised else h
            h = h + nn.Dense(64)(nn.relu(nn.Dense(64)(x)))
        return nn.Dense(10)(h)


def measure(record: Record, s: Settings) -> Data:
    rates, found = 2.0 ** np.arange(-11, -11 + s["rates"]), {}
    for name, (normalised, clip, thresholds) in ARMS.items():
        problem = small.digits(network=Residual(normalised), batch_size=128)

        def method(learning_rate: Any, threshold: Any, steps: int, clip: Any = clip) -> Any:
            tx = gk.sgd(small.linear(learning_rate, steps), momentum=0.9)
            return tx if clip is None else optax.chain(clip(threshold), tx)

        key = {"claim": "clipping_without_norms", "contestant": name, "steps": s["steps"]}
        train = tuning.swept(problem, method, s["steps"], 1)
        grid = {"learning_rate": rates, "threshold": thresholds}
        ends = tuning.scanned(record, key, train, grid, s["seeds"]).reshape(len(rates), len(thresholds), -1)
        found[name] = {x: ends[:, i] for i, x in enumerate(thresholds)}
    return rates, found


def chosen(rates: np.ndarray, own: dict[float, np.ndarray]) -> float:
    """The threshold with the largest mean."""
    return max(own, key=lambda x: largest(rates, own[x]).mean())


def judge(data: Data, s: Settings) -> Judgement:
    rates, ends = data
    at = {name: chosen(rates, own) for name, own in ends.items()}
    found = {name: largest(rates, ends[name][x]) for name, x in at.items()}
    higher = tuning.compared(found["adaptive"], found["none"]) == "higher"
    behind = tuning.compared(found["adaptive"], found["global norm"]) == "lower"
    factor = 2 ** (found["adaptive"].mean() - found["none"].mean())
    full = higher and factor >= 2 and not behind
    verdict = "reproduced" if full else "reproduced in part" if higher else "not reproduced here"
    rows = [["clipping", "threshold", "largest rate that trains: mean [interval]", "best median loss"]]
    for name, own in found.items():
        low, high = tuning.interval(own)
        best = np.median(ends[name][at[name]], -1).min()
        threshold = "" if ARMS[name][1] is None else f"{at[name]:g}"
        rows.append([name, threshold, f"{2 ** own.mean():.3g} [{2**low:.3g}, {2**high:.3g}]", f"{best:.3g}"])
    text = (
        f"The largest rate that trains is {factor:.2g} times as large with adaptive clipping as without, "
        f"{2 ** (found['global norm'].mean() - found['none'].mean()):.2g} times with clipping of the global norm, and "
        f"{2 ** (found['layer norm, none'].mean() - found['none'].mean()):.2g} times with layer norms and no clipping."
    )
    if found["adaptive"].max() >= np.log2(rates[-1]) - 1e-9:
        text += " Adaptive clipping trains at the largest rate that was tried."
    return Judgement(verdict, text, showing.table(rows))


def draw(data: Data, s: Settings, figure: Any) -> None:
    figure.set_size_inches(7.2, 4.2)
    axes, (rates, ends) = figure.subplots(), data
    for i, (name, own) in enumerate(ends.items()):
        x = chosen(rates, own)
        middle = np.median(own[x], -1)
        kept = np.isfinite(middle)
        label = name if ARMS[name][1] is None else f"{name}, {x:g}"
        axes.plot(rates[kept], middle[kept], "o-", markersize=3, color=style.colour(i), label=label)
    axes.axhline(THRESHOLD, color=style.MUTED, linewidth=0.9, linestyle="--")
    axes.set(xscale="log", yscale="log", xlabel="learning rate; dashed: what counts as trained", ylim=(None, 10))
    axes.set_ylabel(f"training loss after {s['steps']} steps, median")
    axes.legend(frameon=False)
