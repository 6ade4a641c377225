"""MARS-AdamW, which corrects the gradient by its difference to the last one, reaches a lower loss than AdamW in as many
steps.

The language model `bytelm`, batches of 8 windows, a warm-up over a twentieth and a cosine to 0. MARS is the
approximate form, which costs one gradient per step. Both are tuned over five learning rates a factor of 2 apart around
that of their cards, and so is AdamW with the momentum and the clipping that MARS has (b1 0.95, b2 0.99), as these
alone could explain a gain. Rates are chosen by the median over tuning seeds and judged on other seeds; the metric is
the held-out loss at the end.

Verdict, by the paired bootstrap over the seeds that judge. Reproduced: MARS is lower than both. In part: it is lower
than AdamW at its defaults alone. Not reproduced here: it is not lower than that.
"""

from typing import Any

from experiments.claims import showing, tuning
from experiments.claims.protocol import Claim, Judgement, Record, Settings
from experiments.claims.tuning import Tuned

CLAIM = Claim(
    "Yuan et al. MARS: Unleashing the Power of Variance Reduction for Training Large Models. 2024, arXiv 2411.10438.",
    {
        "small": {"steps": 200, "batch_size": 8, "rates": 5, "tuning_seeds": 2, "seeds": 5},
        "full": {"steps": 4000, "batch_size": 32, "rates": 7, "tuning_seeds": 3, "seeds": 10},
    },
)
# MARS without its correction, so that all else is the same.
ARMS: tuple[tuple[str, dict[str, Any]], ...] = (("adamw", {}), ("mars_adamw", {"gamma": 0.0}), ("mars_adamw", {}))


def measure(record: Record, s: Settings) -> list[Tuned]:
    effort = {name: s[name] for name in ("rates", "tuning_seeds", "seeds")}
    return [tuning.raced(record, s["batch_size"], name, s["steps"], **effort, **own) for name, own in ARMS]


def judge(data: list[Tuned], s: Settings) -> Judgement:
    adamw, without, mars = data
    order = [tuning.compared(mars.finals, one.finals) for one in (adamw, without)]
    verdict = "not reproduced here"
    if order[0] == "lower":
        verdict = "reproduced" if order[1] == "lower" else "reproduced in part"
    gains = [(mars.finals - one.finals).mean() for one in (adamw, without)]
    found = (
        f"The loss of MARS-AdamW is {gains[0]:+.3f} nats from that of AdamW ({order[0]}), and {gains[1]:+.3f} from "
        "its own "
        f"without the correction ({order[1]})."
    )
    return Judgement(verdict, found, showing.table(showing.lines(data, "mars_adamw")))


def draw(data: list[Tuned], s: Settings, figure: Any) -> None:
    showing.draw_race(figure, data, "held-out loss, nats per byte")
