"""NorMuon, which normalises the rows of Muon's update, reaches a lower loss than Muon in as many steps.

The language model `bytelm`, batches of 8 windows, a warm-up over a twentieth and a cosine to 0. Both methods have the
same arguments but for the normalisation, and are tuned over five learning rates a factor of 2 apart around that of
their cards, chosen by the median over tuning seeds and judged on other seeds. The metric is the held-out loss at the
end.

Verdict, by the paired bootstrap over the seeds that judge. Reproduced: NorMuon is lower. Not reproduced here: a tie,
or it is higher.
"""

from typing import Any

from experiments.claims import showing, tuning
from experiments.claims.protocol import Claim, Judgement, Record, Settings
from experiments.claims.tuning import Tuned

CLAIM = Claim(
    "Li et al. NorMuon: Making Muon more efficient and scalable. 2025, arXiv 2510.05491.",
    {
        "small": {"steps": 200, "batch_size": 8, "rates": 5, "tuning_seeds": 2, "seeds": 5},
        "full": {"steps": 4000, "batch_size": 32, "rates": 7, "tuning_seeds": 3, "seeds": 10},
    },
)


def measure(record: Record, s: Settings) -> list[Tuned]:
    effort = {name: s[name] for name in ("rates", "tuning_seeds", "seeds")}
    return [tuning.raced(record, s["batch_size"], name, s["steps"], **effort) for name in ("muon", "normuon")]


def judge(data: list[Tuned], s: Settings) -> Judgement:
    muon, normuon = (one.finals for one in data)
    order = tuning.compared(normuon, muon)
    low, high = tuning.interval(normuon - muon)
    found = f"NorMuon's loss is {(normuon - muon).mean():+.4f} [{low:+.4f}, {high:+.4f}] nats from Muon's: {order}."
    verdict = "reproduced" if order == "lower" else "not reproduced here"
    return Judgement(verdict, found, showing.table(showing.lines(data, "muon")))


def draw(data: list[Tuned], s: Settings, figure: Any) -> None:
    showing.draw_race(figure, data, "held-out loss, nats per byte")
