"""Prodigy and DoG, which have no learning rate to tune, end where tuned Adam and tuned SGD end.

Handwritten digits (a perceptron 64-128-128-10, batches of 64, training loss) and the convolutional network
`digits_cnn` (batches of 128, test error). Prodigy is run at its defaults under a cosine to 0, DoG at its defaults with
polynomial averaging, as their papers advise; Adam under the same cosine and SGD with momentum under it are tuned over
eight learning rates a factor of 10^(1/2) apart. The best rate is chosen by the median over tuning seeds and judged on
other seeds; all runs have the same number of steps.

Verdict, by the paired bootstrap over the seeds that judge, of the logarithm of the loss and of the error. A method
holds on a problem where it is not higher than its counterpart (Adam for Prodigy, SGD for DoG), or its mean is at most
1.1 times as large. Reproduced: both hold on both. In part: some hold. Not reproduced here: none holds.
"""

from typing import Any

import numpy as np

import gradkit as gk
from experiments.claims import showing, small, tuning
from experiments.claims.protocol import Claim, Judgement, Record, Settings
from experiments.claims.tuning import Tuned
from gradkit.workloads import Workload, load

CLAIM = Claim(
    "Mishchenko, Defazio. Prodigy. 2023, arXiv 2306.06101; Ivgi et al. DoG is SGD's Best Friend. 2023, arXiv "
    "2302.12022.",
    {
        "small": {"steps": 400, "cnn_steps": 200, "tuning_seeds": 2, "seeds": 6},
        "full": {"steps": 4000, "cnn_steps": 2000, "tuning_seeds": 5, "seeds": 20},
    },
)


PAIRS = {"Prodigy": "Adam", "DoG": "SGD"}
ADAM_RATES, SGD_RATES = 10.0 ** (np.arange(-9, -1) / 2), 10.0 ** (np.arange(-6, 2) / 2)
METHODS: dict[str, tuple[Any, Any]] = {
    "Adam": (lambda learning_rate, steps: gk.adamw(small.cosine(learning_rate, steps), weight_decay=0.0), ADAM_RATES),
    "Prodigy": (lambda learning_rate, steps: gk.prodigy(small.cosine(learning_rate, steps)), [1.0]),
    "SGD": (lambda learning_rate, steps: gk.sgd(small.cosine(learning_rate, steps), momentum=0.9), SGD_RATES),
    "DoG": (lambda learning_rate, steps: gk.polynomial_decay_average(gk.dog(learning_rate)), [1.0]),
}


def problems(s: Settings) -> dict[str, tuple[Workload, int]]:
    return {"digits": (small.digits(), s["steps"]), "digits_cnn": (load("digits_cnn", batch_size=128), s["cnn_steps"])}


def measure(record: Record, s: Settings) -> dict[str, list[Tuned]]:
    found: dict[str, list[Tuned]] = {}
    for name, (problem, steps) in problems(s).items():
        for method, (make, rates) in METHODS.items():
            key = {"claim": "parameter_free", "problem": name, "contestant": method, "steps": steps}
            train = tuning.swept(problem, make, steps)
            grid = {"learning_rate": rates}
            one = tuning.tuned(record, key, train, grid, tuning_seeds=s["tuning_seeds"], seeds=s["seeds"])
            found.setdefault(name, []).append(one)
    return found


def judge(data: dict[str, list[Tuned]], s: Settings) -> Judgement:
    held, said = [], []
    for name, own in data.items():
        # Of an error of 0 there is no logarithm.
        ends = {one.name: np.log(np.minimum(one.finals, 10.0) + 1e-4) for one in own}
        for free, counterpart in PAIRS.items():
            ratio = float(np.exp(np.mean(ends[free] - ends[counterpart])))
            order = tuning.compared(ends[free], ends[counterpart])
            held.append(order != "higher" or ratio <= 1.1)
            said.append(f"{free} on {name} {ratio:.2g} times that of {counterpart} ({order})")
    verdict = "reproduced" if all(held) else "reproduced in part" if any(held) else "not reproduced here"
    found = f"The loss or error at the end, as a geometric mean over seeds: {'; '.join(said)}."
    text = "\n\n".join(f"{name}\n{showing.table(showing.lines(own))}" for name, own in data.items())
    return Judgement(verdict, found, text)


def draw(data: dict[str, list[Tuned]], s: Settings, figure: Any) -> None:
    figure.set_size_inches(9.6, 4.0)
    for axes, (name, found) in zip(figure.subplots(1, 2), data.items(), strict=True):
        showing.draw_curves(axes, found, "training loss" if name == "digits" else "test error")
        axes.set(yscale="log", title=name)
