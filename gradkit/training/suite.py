"""A suite: methods on several workloads, each with the same number of trials, scored by the time to the target.

A trial is a learning rate, and a study all trials of one seed. Trial i of N is at the place that the van der Corput
sequence has at i, on a logarithmic scale of a decade to each side of the middle of the method's learning rates: the
first trials of a budget are those of every larger one. The rules are on one page, docs/guides/suite.md.

What a method did on a workload is one line of JSON in FOLDER/METHOD.jsonl, written when it is measured: the same
command goes on where an earlier one was stopped.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np

from gradkit import checks
from gradkit.diagnostics import algoperf_score, performance_profile
from gradkit.training import methods
from gradkit.training.methods import Method
from gradkit.training.race import measure as time_of_steps
from gradkit.training.race import score
from gradkit.training.settings import RaceConfig
from gradkit.training.sweep import sweep
from gradkit.workloads import Workload, load
from gradkit.workloads.registry import SUITES

# Of the workloads, their targets and the rules: records of different versions are not compared.
VERSION = 1
BASELINE = "adamw"
DECADES = 1.0
R_MAX = 4.0


@dataclasses.dataclass(frozen=True)
class Record:
    """What a method did on a workload: one line of a file.

    Attributes:
      suite: name of the suite.
      version: of its workloads and rules.
      workload: name of the workload.
      method: name of the method.
      trials: learning rates that were allowed.
      studies: seeds of each.
      rates: the learning rates, one per trial.
      steps: step of the first evaluation that reaches the target, by trial and study; None for a miss.
      final: the last metric, by trial and study; None where it is not finite.
      seconds_per_step: of the trial that is best, compiled as one run.
      baseline_seconds_per_step: of AdamW, in the same minutes on the same machine; 0 where the method raised.
      budget_steps: steps of a run.
      target: of the metric.
      error: what the method raised, where it cannot train on the workload; it then misses the target.
      gradkit: version of the package.
      jax: version of JAX.
      device: what it ran on.
    """

    suite: str
    version: int
    workload: str
    method: str
    trials: int
    studies: int
    rates: list[float]
    steps: list[list[int | None]]
    final: list[list[float | None]]
    seconds_per_step: float
    baseline_seconds_per_step: float
    budget_steps: int
    target: float
    error: str
    gradkit: str
    jax: str
    device: str

    @property
    def key(self) -> tuple[str, str, int, int, int]:
        """What makes two records comparable, and the workload and method."""
        return self.workload, self.method, self.version, self.trials, self.studies

    @property
    def relative_time(self) -> float:
        """Seconds of a step in steps of the baseline; infinity where the method raised."""
        base = self.baseline_seconds_per_step
        return self.seconds_per_step / base if base > 0 else math.inf


class Standings(NamedTuple):
    """The methods that have a record of every workload, with the same trials and studies; the fastest first.

    Attributes:
      suite: name of the suite.
      trials: of each.
      studies: of each.
      methods: their names.
      records: method -> workload -> record.
      steps: median over studies of the least steps over trials, (methods, workloads); infinity for a miss.
      times: the same in steps of the baseline.
      score_by_steps: of AlgoPerf, (methods,).
      score_by_time: the same of times.
    """

    suite: str
    trials: int
    studies: int
    methods: tuple[str, ...]
    records: dict[str, dict[str, Record]]
    steps: np.ndarray
    times: np.ndarray
    score_by_steps: np.ndarray
    score_by_time: np.ndarray

    @property
    def workloads(self) -> tuple[str, ...]:
        """The workloads of the suite."""
        return SUITES[self.suite]

    def profile(self, which: str, taus: Any) -> np.ndarray:
        """The share of workloads within factors of the fastest, (methods, factors); of "steps" or of "time"."""
        values = self.steps if which == "steps" else self.times
        return performance_profile(values, taus, r_max=R_MAX)


def trial_rates(centre: float | None, trials: int) -> np.ndarray:
    """The learning rates of a budget; a method whose rate is its own has one trial.

    >>> trial_rates(0.1, 5).round(3).tolist()
    [0.1, 0.032, 0.316, 0.018, 0.178]
    >>> trial_rates(None, 5).tolist()
    [1.0]
    """
    if centre is None:
        return np.ones(1)
    places = [int(f"{i:b}"[::-1], 2) / 2 ** i.bit_length() for i in range(1, trials + 1)]
    return centre * 10.0 ** (DECADES * (2 * np.asarray(places) - 1))


def run(config: RaceConfig, folder: pathlib.Path, say: Callable[[str], None] = lambda _: None) -> Standings:
    """Runs what the folder has no record of, and reads the standings of the configuration's methods.

    Args:
      config: with a `suite`.
      folder: where records are and go to; see `prepare`.
      say: called with a line now and then.

    Returns:
      The standings, as all records of the folder have them.
    """
    assert config.suite is not None
    done = {record.key: record for record in read(folder)}
    for method in config.contestants:
        file = folder / f"{re.sub(r'[^A-Za-z0-9_.+-]', '_', method.name)}.jsonl"
        for workload in SUITES[config.suite]:
            if (workload, method.name, VERSION, config.trials, config.seeds) in done:
                continue
            say(f"{workload}  {method.name}: {config.trials} trials x {config.seeds} studies …")
            began = time.perf_counter()
            record = measure(config.suite, load(workload), method, config.trials, config.seeds)
            done[record.key] = record
            _write(file, [*(old for old in done.values() if old.method == method.name)])
            say(f"{workload}  {method.name}: {outcome(record)}  ({time.perf_counter() - began:.0f} s)")
    return standings([*done.values()], config.suite, config.trials, config.seeds)


def outcome(record: Record) -> str:
    """One record in words."""
    if record.error:
        return record.error
    median = _median(np.asarray(_steps(record)).min(0, keepdims=True))[0]
    if not np.isfinite(median):
        return "target missed"
    return f"target in {median:.0f} steps, a step takes {record.relative_time:.2f} of {BASELINE}"


def measure(suite: str, problem: Workload, method: Method, trials: int, studies: int) -> Record:
    """All trials and studies of a method on a workload in one program, then the time of a step beside the baseline's.

    A method that raises a `ValueError`, because a workload lacks what it asks for, has missed the target.
    """
    rates = trial_rates(method.centre, trials)
    shared: dict[str, Any] = {
        "suite": suite, "version": VERSION, "workload": problem.name, "method": method.name, "trials": trials,
        "studies": studies, "rates": rates.tolist(), "budget_steps": problem.budget_steps, "target": problem.target,
        "gradkit": metadata.version("gradkit"), "jax": jax.__version__, "device": jax.devices()[0].device_kind,
    }  # fmt: skip
    method = method.on(problem.num_tasks)
    try:
        found = sweep(problem, method.scheduled, rates, seeds=studies)
    except ValueError as error:
        nothing: list[list[Any]] = [[None] * studies for _ in rates]
        said = " ".join(str(error).split())[:200]
        return Record(
            **shared, steps=nothing, final=nothing, seconds_per_step=0, baseline_seconds_per_step=0, error=said
        )
    result = score(problem.name, method.name, found)
    rows, contestants = [result], [method]
    if method.name != BASELINE:
        baseline = methods.find(BASELINE)
        grid = {"learning_rate": np.full(len(rates), baseline.centre)}
        rows.append(result._replace(method=BASELINE, sweep=found._replace(grid=grid)))
        contestants.append(baseline)
    timing = RaceConfig(workloads=(problem,), methods=tuple(contestants))  # pyright: ignore[reportArgumentType]
    timed = time_of_steps(problem, rows, timing, lambda _: None)
    return Record(
        **shared,
        steps=[[int(n) if np.isfinite(n) else None for n in row] for row in found.steps_to_target],
        final=[[float(x) if np.isfinite(x) else None for x in row] for row in found.curves[..., -1]],
        seconds_per_step=timed[0].seconds_per_step,
        baseline_seconds_per_step=timed[-1].seconds_per_step,
        error="",
    )


def _write(file: pathlib.Path, records: Iterable[Record]) -> None:
    """The file is replaced as one, so that a command that is killed leaves no half of a line."""
    new = file.with_name(f".{file.name}.new")
    new.write_text("".join(f"{json.dumps(dataclasses.asdict(record))}\n" for record in records), encoding="utf-8")
    os.replace(new, file)


def prepare(out: str | None, suite: str) -> pathlib.Path:
    """The folder of records, made where it is not there; default: suite/NAME.

    Raises:
      ValueError: a file of records that cannot be read.
      OSError: a folder that cannot be made or written to.
    """
    folder = pathlib.Path("suite", suite) if out is None else pathlib.Path(out)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--out={folder} is a file, not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"--out={folder} cannot be written to")
    read(folder)
    return folder


def read(folder: pathlib.Path) -> list[Record]:
    """The records of all files of a folder, in the order of their names.

    Raises:
      ValueError: a line that is no record; two records of one method, workload and budget.
    """
    found: dict[tuple[str, str, int, int, int], str] = {}
    records = []
    for file in sorted(folder.glob("*.jsonl")):
        for i, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            where = f"{file}, line {i}"
            record = parse(line, where)
            if record.key in found:
                raise ValueError(f"{where}: the same workload, method and budget as {found[record.key]}; keep one")
            found[record.key] = where
            records.append(record)
    return records


def parse(line: str, where: str) -> Record:
    """One line of a file of records, checked.

    Raises:
      ValueError: it is no record, or its numbers do not fit each other.
    """
    names = [field.name for field in dataclasses.fields(Record)]
    try:
        given = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: this is not JSON: {error}") from error
    if not isinstance(given, dict) or sorted(given) != sorted(names):
        fields = sorted(given) if isinstance(given, dict) else type(given).__name__
        raise ValueError(f"{where}: a record has the fields {', '.join(names)}, got {fields}")
    record = Record(**given)
    checks.choice(f"{where}: suite", record.suite, SUITES)
    checks.choice(f"{where}: workload", record.workload, SUITES[record.suite])
    for name in ("version", "trials", "studies", "budget_steps"):
        checks.integer(f"{where}: {name}", given[name], 1)
    shape = (len(record.rates), record.studies)
    if len(record.rates) not in (1, record.trials):
        raise ValueError(f"{where}: rates must be {record.trials}, one per trial, got {len(record.rates)}")
    for name in ("steps", "final"):
        if np.shape(given[name]) != shape:
            raise ValueError(f"{where}: {name} must be of shape {shape}, got {np.shape(given[name])}")
    steps = _steps(record)
    if not ((steps > 0) & ((steps <= record.budget_steps) | np.isinf(steps))).all():
        raise ValueError(f"{where}: steps must be from 1 to budget_steps={record.budget_steps}, or null")
    for name in ("seconds_per_step", "baseline_seconds_per_step"):
        checks.real(f"{where}: {name}", given[name], "[0, inf)" if record.error else "(0, inf)")
    return record


def _steps(record: Record) -> np.ndarray:
    """Steps to the target as floats, infinity for a miss; (trials, studies)."""
    return np.asarray([[math.inf if n is None else n for n in row] for row in record.steps], np.float64)


def _median(values: np.ndarray) -> np.ndarray:
    """Along the last axis, infinities included."""
    ordered, n = np.sort(values, -1), values.shape[-1]
    return (ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2


def standings(records: Sequence[Record], suite: str, trials: int, studies: int) -> Standings:
    """What records of one budget say; methods that lack a workload are left out.

    Raises:
      ValueError: no method has a record of every workload.
    """
    workloads = SUITES[suite]
    by_method: dict[str, dict[str, Record]] = {}
    for record in records:
        if (record.suite, record.version, record.trials, record.studies) == (suite, VERSION, trials, studies):
            by_method.setdefault(record.method, {})[record.workload] = record
    complete = {name: own for name, own in by_method.items() if own.keys() == set(workloads)}
    if not complete:
        raise ValueError(
            f"no method has records of all workloads of {suite} with {trials} trials and {studies} studies: run "
            f"gradkit race --suite={suite} --budget={trials} --seeds={studies} to its end"
        )
    steps = np.array([[_median(_steps(own[w]).min(0)) for w in workloads] for own in complete.values()])
    times = steps * np.array([[own[w].relative_time for w in workloads] for own in complete.values()])
    scores = algoperf_score(steps, r_max=R_MAX), algoperf_score(times, r_max=R_MAX)
    order = np.lexsort((-scores[0], -scores[1]))
    names = tuple(complete)
    return Standings(
        suite=suite,
        trials=trials,
        studies=studies,
        methods=tuple(names[i] for i in order),
        records={names[i]: complete[names[i]] for i in order},
        steps=steps[order],
        times=times[order],
        score_by_steps=scores[0][order],
        score_by_time=scores[1][order],
    )


def budgets(records: Iterable[Record]) -> list[tuple[str, int, int]]:
    """The suites, trials and studies that there are records of in this version, the largest budget first."""
    found = {(record.suite, record.trials, record.studies) for record in records if record.version == VERSION}
    return sorted(found, key=lambda budget: (budget[0], -budget[1], -budget[2]))
