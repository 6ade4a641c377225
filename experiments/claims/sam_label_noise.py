"""SAM generalises better than SGD, and its gain is large where training labels are wrong.

A perceptron 64-128-128-10 on handwritten digits, with all training labels right or 40% of them drawn at random (the
same ones for every seed); batches of 64, momentum 0.9, a linear decay to 0; the metric is the error on held-out
images, all of which have the right labels. SAM is tuned over learning rates and its radius; SGD over learning rates
and weight decays, as many trials, once with the steps of SAM and once with twice as many, which is the same number of
gradients. The best point is chosen by the median over tuning seeds and judged on other seeds.

Verdict, by the paired bootstrap over the seeds that judge, against the better of the two runs of SGD. Reproduced: SAM
is lower with wrong labels by at least a tenth of SGD's error, and not higher with right ones. In part: it is lower
with wrong labels by less, or only than SGD with its own number of steps. Not reproduced here: neither.
"""

from typing import Any

import jax
import numpy as np

import gradkit as gk
from experiments.claims import showing, small, tuning
from experiments.claims.protocol import Claim, Judgement, Record, Settings
from experiments.claims.tuning import Tuned

CLAIM = Claim(
    "Foret et al. Sharpness-Aware Minimization for Efficiently Improving Generalization. 2020, arXiv 2010.01412.",
    {
        "small": {"steps": 800, "tuning_seeds": 2, "seeds": 8},
        "full": {"steps": 8000, "tuning_seeds": 5, "seeds": 32},
    },
)
RATES = (0.01, 0.03, 0.09, 0.27)
NOISES = (0.0, 0.4)
SAM, SGD, TWICE = "SAM", "SGD", "SGD, twice the steps"


def measure(record: Record, s: Settings) -> dict[float, list[Tuned]]:
    found: dict[float, list[Tuned]] = {}
    for noise in NOISES:
        problem = small.digits(label_noise=noise, judged="test error")
        for name in (SGD, TWICE, SAM):
            steps = s["steps"] * (1 + (name == TWICE))

            def sharp(learning_rate: Any, rho: Any, steps: int = steps) -> Any:
                rate = small.linear(learning_rate, steps)
                return gk.sgd(rate, momentum=0.9), lambda loss: gk.gradients.sam(loss, rho)

            def plain(learning_rate: Any, weight_decay: Any, steps: int = steps) -> Any:
                rate = small.linear(learning_rate, steps)
                return gk.sgd(rate, momentum=0.9, weight_decay=weight_decay), jax.value_and_grad

            own = {"rho": (0.05, 0.1, 0.2, 0.4)} if name == SAM else {"weight_decay": (0.0, 1e-3, 3e-3, 1e-2)}
            train = small.looped(problem, sharp if name == SAM else plain, steps, 10)
            key = {"claim": "sam_label_noise", "noise": noise, "contestant": name, "steps": steps}
            grid = {"learning_rate": RATES, **own}
            one = tuning.tuned(record, key, train, grid, tuning_seeds=s["tuning_seeds"], seeds=s["seeds"])
            found.setdefault(noise, []).append(one)
    return found


def judge(data: dict[float, list[Tuned]], s: Settings) -> Judgement:
    by = {noise: {one.name: one.finals for one in found} for noise, found in data.items()}
    right, wrong = (by[noise] for noise in NOISES)
    strong = {noise: min((SGD, TWICE), key=lambda name: by[noise][name].mean()) for noise in NOISES}
    against = {noise: tuning.compared(by[noise][SAM], by[noise][strong[noise]]) for noise in NOISES}
    gain = 1 - wrong[SAM].mean() / wrong[strong[NOISES[1]]].mean()
    lower = against[NOISES[1]] == "lower"
    if lower and gain >= 0.1 and against[NOISES[0]] != "higher":
        verdict = "reproduced"
    elif lower or tuning.compared(wrong[SAM], wrong[SGD]) == "lower":
        verdict = "reproduced in part"
    else:
        verdict = "not reproduced here"
    found = (
        f"With 40% of the labels wrong the mean held-out error of SAM is {wrong[SAM].mean():.3f} against "
        f"{wrong[SGD].mean():.3f} of SGD with as many steps and {wrong[TWICE].mean():.3f} with as many gradients; with "
        f"right labels {right[SAM].mean():.4f} against {right[SGD].mean():.4f} and {right[TWICE].mean():.4f}. Than the "
        f"better of these SAM is, by the bootstrap: {against[NOISES[1]]} and {against[NOISES[0]]}."
    )
    text = "\n\n".join(
        f"labels drawn at random: {noise:.0%}\n{showing.table(showing.lines(own, SAM))}" for noise, own in data.items()
    )
    return Judgement(verdict, found, text)


def draw(data: dict[float, list[Tuned]], s: Settings, figure: Any) -> None:
    figure.set_size_inches(9.6, 3.8)
    for axes, (noise, found) in zip(figure.subplots(1, 2), data.items(), strict=True):
        # Against the share of the run, as one of the contestants takes twice the steps.
        shown = [one._replace(steps=one.steps / one.steps[-1]) for one in found]
        showing.draw_curves(axes, shown, "held-out error")
        axes.set(xlabel="share of the run", title=f"{noise:.0%} of the labels drawn at random")
        axes.set_ylim(0, 1.6 * float(np.max([np.median(one.curves, 0)[1:].max() for one in found])))
