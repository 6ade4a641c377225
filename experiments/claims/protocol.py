"""What claims share: runs that are kept, comparisons that are tuned with equal effort, the bootstrap, and the page.

A claim is a module with a docstring (the claim, the protocol, the rule of the verdict) and

    CLAIM = Claim(source, scales)          settings by scale: "small" for two cores, "full" for a machine
    measure(record, settings) -> data      every expensive part is one `record(key, compute)`
    judge(data, settings) -> Judgement
    draw(data, settings, figure)

`python -m experiments.claims --only=NAME --scale=small` runs it. The jsonl beside the page keeps what was computed,
the same command goes on from there, and the page is written when nothing is missing.
"""

import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import matplotlib
import optax

from experiments.claims import pages
from gradkit.training.report import style

Settings = dict[str, Any]


class Claim(NamedTuple):
    """What a module says beside its docstring: the paper, and the settings by scale."""

    source: str
    scales: dict[str, Settings]


class Judgement(NamedTuple):
    """One of `pages.VERDICTS`, what was found, and the table."""

    verdict: str
    found: str
    table: str


class OutOfTime(Exception):
    """The minutes that were given are over, and parts are missing."""


class Record:
    """What was computed, one line of a jsonl file per part.

    Args:
      path: the file.
      minutes: after which no further part is begun.
      others: files in which a part of the same key may be known already.
    """

    def __init__(self, path: pathlib.Path, minutes: float | None = None, others: Sequence[pathlib.Path] = ()) -> None:
        self.path, self.minutes, self.began = path, minutes, time.perf_counter()
        self.rows: dict[str, dict[str, Any]] = {}
        self.used: dict[str, dict[str, Any]] = {}
        for file in (*others, path):
            for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
                row = json.loads(line)
                self.rows[_words(row["key"])] = row
        self.own = (
            {_words(json.loads(line)["key"]) for line in path.read_text().splitlines()} if path.exists() else set()
        )

    def __call__(self, key: Mapping[str, Any], compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The part of this key; computed where it is not known.

        Raises:
          OutOfTime: it is not known, and the minutes are over.
        """
        words = _words(key)
        if words not in self.rows:
            if self.minutes is not None and time.perf_counter() - self.began > 60 * self.minutes:
                raise OutOfTime(f"the next part is {words}")
            began = time.process_time()
            values = compute()
            taken = {
                "cpu_seconds": round(time.process_time() - began, 1),
                "versions": f"jax {jax.__version__}, optax {optax.__version__}",
            }
            self.rows[words] = {"key": dict(key), **values, **taken}
            print(f"{taken['cpu_seconds']:8.1f} s  {words}", flush=True)
        if words not in self.own:
            self.own.add(words)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.rows[words]) + "\n")
        self.used[words] = self.rows[words]
        return self.rows[words]


def _words(key: Mapping[str, Any]) -> str:
    return json.dumps(dict(key), sort_keys=True)


def changed(claim: Claim, scale: str, changes: Mapping[str, float]) -> Settings:
    """The settings of a scale, with others for a trial.

    Raises:
      ValueError: a setting that the claim does not have.
    """
    settings = dict(claim.scales[scale])
    if unknown := sorted(set(changes) - set(settings)):
        raise ValueError(f"settings must be of {', '.join(settings)}, got {', '.join(unknown)}")
    return settings | dict(changes)


def run(
    module: Any,
    folder: pathlib.Path = pages.RESULTS,
    *,
    scale: str = "small",
    minutes: float | None = None,
    changes: Mapping[str, float] | None = None,
) -> pages.Page:
    """Runs what is missing of a claim and writes its page.

    Args:
      module: of the claim.
      folder: of the pages.
      scale: "small" or "full".
      minutes: after which no further part is begun.
      changes: other settings, for a trial, which must keep its results in another folder.

    Raises:
      OutOfTime: parts are missing; nothing is written but the record.
      ValueError: changes in the folder of the results, or of settings that the claim does not have.
    """
    if changes and folder == pages.RESULTS:
        raise ValueError("other settings are for trials: they must keep their results in another folder, got --results")
    settings = changed(module.CLAIM, scale, changes or {})
    name = module.__name__.rpartition(".")[2]
    stem = name if scale == "small" else f"{name}_{scale}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.jsonl"
    record = Record(path, minutes, [file for file in sorted(folder.glob("*.jsonl")) if file != path])
    data = module.measure(record, settings)
    judgement = module.judge(data, settings)
    claim, protocol = pages.docstring(pages.SCRIPTS / f"{name}.py")
    with matplotlib.rc_context(style.RC):
        from matplotlib.figure import Figure

        figure = Figure(layout="constrained", facecolor=style.PAPER)
        module.draw(data, settings, figure)
        figure.savefig(folder / f"{stem}.png", dpi=120)
    seconds = sum(row["cpu_seconds"] for row in record.used.values())
    versions = sorted({row["versions"] for row in record.used.values()})
    shown = ", ".join(f"{word} {value}" for word, value in settings.items())
    page = pages.Page(
        claim=claim,
        source=module.CLAIM.source,
        verdict=judgement.verdict,
        found=judgement.found,
        protocol=f"{protocol}\n\nSettings: {shown}.",
        figure=f"{stem}.png",
        table=judgement.table,
        command=f"python -m experiments.claims --only={name} --scale={scale}",
        versions=f"{'; '.join(versions)}, {jax.devices()[0].device_kind}; {seconds / 60:.1f} processor minutes.",
    )
    (folder / f"{stem}.md").write_text(pages.text_of(page), encoding="utf-8")
    return page
