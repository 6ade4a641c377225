"""AdEMAMix, which adds a slow momentum to Adam's, reaches a lower loss than AdamW with any one momentum.

A perceptron 64-128-128-10 on handwritten digits whose labels are replaced, anew in every minibatch, by random ones
with probability 0.3, so that averaging over many steps has something to win; the metric is the expected loss over all
training images under that noise. Batches of 64, a linear warm-up over a twentieth of the steps and a linear decay to
0. AdEMAMix is tuned over five learning rates a factor of 2 apart, its slow b3 (0.98, 0.995) and its alpha (2, 5),
which warm up over the run as the paper has it; AdamW over the same rates and four momenta b1 (0.8, 0.9, 0.97, 0.99):
as many trials. The best point is chosen by the median over tuning seeds and judged on other seeds. The slow momentum
of the paper remembers 10,000 steps of runs of 256,000 and more; here it is up to 200 of 1,000.

Verdict, by the paired bootstrap over the seeds that judge. Reproduced: AdEMAMix is lower. Not reproduced here: a tie,
or it is higher.
"""

from typing import Any

import gradkit as gk
from experiments.claims import showing, small, tuning
from experiments.claims.convex_bound import noisy
from experiments.claims.protocol import Claim, Judgement, Record, Settings
from experiments.claims.tuning import Tuned

CLAIM = Claim(
    "Pagliardini et al. The AdEMAMix Optimizer: Better, Faster, Older. 2024, arXiv 2409.03137.",
    {
        "small": {"steps": 1000, "tuning_seeds": 2, "seeds": 8},
        "full": {"steps": 20_000, "tuning_seeds": 4, "seeds": 32},
    },
)
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)


def adamw(learning_rate: Any, b1: Any, steps: int) -> Any:
    return gk.adamw(small.linear(learning_rate, steps, steps // 20), b1=b1, weight_decay=0.0)


def ademamix(learning_rate: Any, b3: Any, alpha: Any, steps: int) -> Any:
    rate = small.linear(learning_rate, steps, steps // 20)
    return gk.ademamix(rate, b3=b3, alpha=alpha, alpha_warmup=steps, b3_warmup=steps)


METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "AdamW": (adamw, {"b1": (0.8, 0.9, 0.97, 0.99)}),
    "AdEMAMix": (ademamix, {"b3": (0.98, 0.995), "alpha": (2.0, 5.0)}),
}


def measure(record: Record, s: Settings) -> list[Tuned]:
    problem, found = noisy(), []
    for name, (method, own) in METHODS.items():
        key = {"claim": "ademamix_memory", "contestant": name, "steps": s["steps"]}
        train = tuning.swept(problem, method, s["steps"])
        grid = {"learning_rate": RATES, **own}
        found.append(tuning.tuned(record, key, train, grid, tuning_seeds=s["tuning_seeds"], seeds=s["seeds"]))
    return found


def judge(data: list[Tuned], s: Settings) -> Judgement:
    adamw, mixed = (one.finals for one in data)
    order = tuning.compared(mixed, adamw)
    low, high = tuning.interval(mixed - adamw)
    found = (
        f"The loss of AdEMAMix at the end is {(mixed - adamw).mean():+.4f} [{low:+.4f}, {high:+.4f}] nats from that "
        "of AdamW "
        f"with its momentum tuned: {order}."
    )
    verdict = "reproduced" if order == "lower" else "not reproduced here"
    return Judgement(verdict, found, showing.table(showing.lines(data, "AdamW")))


def draw(data: list[Tuned], s: Settings, figure: Any) -> None:
    showing.draw_race(figure, data, "expected training loss")
