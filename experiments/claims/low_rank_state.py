"""GaLore and APOLLO reach the loss of AdamW with moments of a quarter of the rank.

The language model `bytelm`, batches of 8 windows, a warm-up over a twentieth and a cosine to 0. Rank 16 where the
matrices have a smaller side of 64, refreshed every 50 steps; all else at the defaults of the library. All three are
tuned over five learning rates a factor of 2 apart around that of their cards, chosen by the median over tuning seeds
and judged on other seeds. The metric is the held-out loss at the end.

Verdict, by the paired bootstrap over the seeds that judge; a method holds where it is not higher than AdamW, or by at
most 0.02 nats in the mean. Reproduced: both hold. In part: one holds. Not reproduced here: neither.
"""

from typing import Any

import jax

import gradkit as gk
from experiments.claims import showing, tuning
from experiments.claims.protocol import Claim, Judgement, Record, Settings
from experiments.claims.tuning import Tuned
from gradkit.workloads import load

CLAIM = Claim(
    "Zhao et al. GaLore. 2024, arXiv 2403.03507; Zhu et al. APOLLO: SGD-like Memory, AdamW-level Performance. 2024, "
    "arXiv "
    "2412.05270.",
    {
        "small": {"steps": 200, "batch_size": 8, "rates": 5, "tuning_seeds": 2, "seeds": 5},
        "full": {"steps": 4000, "batch_size": 32, "rates": 7, "tuning_seeds": 3, "seeds": 10},
    },
)
LOW = {"rank": 16, "update_interval": 50}
ARMS: tuple[tuple[str, dict[str, Any]], ...] = (("adamw", {}), ("galore", LOW), ("apollo", {**LOW, "key": 0}))


def measure(record: Record, s: Settings) -> list[Tuned]:
    effort = {name: s[name] for name in ("rates", "tuning_seeds", "seeds")}
    return [tuning.raced(record, s["batch_size"], name, s["steps"], **effort, **own) for name, own in ARMS]


def words(name: str, arguments: dict[str, Any]) -> float:
    """Numbers of state per parameter."""
    params = jax.eval_shape(load("bytelm").init, jax.random.key(0))
    state = jax.eval_shape(getattr(gk, name)(1e-3, **arguments).init, params)
    count = sum(x.size for x in jax.tree.leaves(state))
    return count / sum(x.size for x in jax.tree.leaves(params))


def judge(data: list[Tuned], s: Settings) -> Judgement:
    adamw, *low = data
    held, said = [], []
    for one in low:
        behind, order = (one.finals - adamw.finals).mean(), tuning.compared(one.finals, adamw.finals)
        held.append(order != "higher" or behind <= 0.02)
        said.append(f"{one.name.split(',')[0]} ends {behind:+.3f} nats from AdamW ({order})")
    state = [words(*arm) for arm in ARMS]
    verdict = ("not reproduced here", "reproduced in part", "reproduced")[sum(held)]
    found = f"{'; '.join(said)}. State per parameter: {state[0]:.2f}, {state[1]:.2f} and {state[2]:.2f} numbers."
    return Judgement(verdict, found, showing.table(showing.lines(data, "adamw")))


def draw(data: list[Tuned], s: Settings, figure: Any) -> None:
    showing.draw_race(figure, data, "held-out loss, nats per byte")
