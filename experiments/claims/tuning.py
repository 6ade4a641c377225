"""Comparisons: contestants that are tuned with equal effort, and the bootstrap over seeds that separates them."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.claims.protocol import Record
from gradkit.training import methods
from gradkit.training.sweep import sweep
from gradkit.workloads import Workload, load


def resampled(values: Sequence[float] | np.ndarray, draws: int = 10_000) -> np.ndarray:
    """Means of resamples with replacement, sorted: all n^n of them where these are fewer than `draws`.

    >>> resampled([0.0, 1.0]).tolist()
    [0.0, 0.5, 0.5, 1.0]
    """
    values = np.asarray(values, float)
    n = len(values)
    if n**n <= draws:
        rows = np.array(list(itertools.product(range(n), repeat=n)))
    else:
        rows = np.random.default_rng(0).integers(0, n, (draws, n))
    return np.sort(values[rows].mean(1))


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The 95% bootstrap interval of a mean."""
    low, high = np.quantile(resampled(values), [0.025, 0.975])
    return float(low), float(high)


def compared(first: Any, second: Any) -> str:
    """Whether `first` is "lower" than `second`, "higher", or a "tie": by the bootstrap interval of the mean of the
    differences, paired by seed. Runs that diverged count as the worst finite value of both, doubled."""
    first, second = (np.asarray(x, float) for x in (first, second))
    finite = np.concatenate([first, second])
    finite = finite[np.isfinite(finite)]
    worst = 2 * np.abs(finite).max(initial=1.0)
    low, high = interval(np.where(np.isfinite(first), first, worst) - np.where(np.isfinite(second), second, worst))
    return "lower" if high < 0 else "higher" if low > 0 else "tie"


# (points of the grid, seeds) -> (steps of the evaluations, metric by (point, seed, evaluation))
Train = Callable[[dict[str, np.ndarray], Sequence[int]], tuple[np.ndarray, np.ndarray]]


class Tuned(NamedTuple):
    """A contestant at its best point.

    Attributes:
      name: in tables.
      points: everything that was tried, one dictionary each.
      tuning: the metric at the end of every trial, (points, tuning seeds).
      best: index of the best point, by the median over the tuning seeds.
      at_edge: whether its learning rate is the smallest or largest that was tried.
      steps: of the evaluations.
      curves: of the seeds that judge, which are others, (seeds, evaluations).
    """

    name: str
    points: list[dict[str, float]]
    tuning: np.ndarray
    best: int
    at_edge: bool
    steps: np.ndarray
    curves: np.ndarray

    @property
    def point(self) -> dict[str, float]:
        return self.points[self.best]

    @property
    def rate(self) -> float:
        return self.point["learning_rate"]

    @property
    def finals(self) -> np.ndarray:
        return np.where(np.isfinite(self.curves[:, -1]), self.curves[:, -1], np.inf)

    def by_rate(self) -> tuple[np.ndarray, np.ndarray]:
        """Learning rates in rising order, and at each the median at the end, at the best of the other settings."""
        ends = np.median(np.where(np.isfinite(self.tuning), self.tuning, np.inf), -1)
        rates = np.array([point["learning_rate"] for point in self.points])
        found = np.unique(rates)
        return found, np.array([ends[rates == rate].min() for rate in found])


def swept(problem: Workload, method: Any, steps: int, evaluations: int = 10) -> Train:
    """Training by `gradkit.training.sweep`: all points and seeds in one program."""

    def train(grid: dict[str, np.ndarray], seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        found = sweep(problem, method, grid, seeds=list(seeds), steps=steps, eval_every=steps // evaluations)
        return found.steps, found.curves

    return train


def product(grid: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """All points of a grid as columns.

    >>> {k: v.tolist() for k, v in product({"learning_rate": [1, 2], "rho": [0, 5]}).items()}
    {'learning_rate': [1.0, 1.0, 2.0, 2.0], 'rho': [0.0, 5.0, 0.0, 5.0]}
    """
    rows = np.array(list(itertools.product(*grid.values())), float)
    return {name: rows[:, i] for i, name in enumerate(grid)}


def tuned(
    record: Record,
    key: Mapping[str, Any],
    train: Train,
    grid: Mapping[str, Sequence[float]],
    *,
    tuning_seeds: int,
    seeds: int,
    extensions: int = 2,
) -> Tuned:
    """Tunes a contestant over a grid and runs it at its best point with other seeds.

    The learning rates of the grid are log-spaced. Where the best one is at the edge, two more are tried on that side,
    with all other settings, at most `extensions` times: the same rule for everybody.

    Args:
      record: keeps both parts.
      key: what the runs depend on besides the grid and the seeds; has "contestant".
      train: makes the runs.
      grid: hyperparameter -> values; has "learning_rate" where anything is tuned.
      tuning_seeds: how many seeds tune: 1000, 1001, …
      seeds: how many judge: 0, 1, …
      extensions: how often rates may be added.
    """
    first = range(1000, 1000 + tuning_seeds)
    axes = {name: [float(f"{x:.6g}") for x in values] for name, values in grid.items()}

    def trial(axes: dict[str, list[float]]) -> tuple[list[dict[str, float]], np.ndarray]:
        columns = product(axes)
        points = [dict(zip(columns, map(float, row), strict=True)) for row in zip(*columns.values(), strict=True)]
        part = {**key, "part": "tuning", "grid": axes, "seeds": tuning_seeds}
        ends = record(part, lambda: {"ends": _rounded(train(columns, first)[1][..., -1])})["ends"]
        return points, np.array(ends, float)

    points, ends = trial(axes)
    rates = sorted(set(axes["learning_rate"]))
    for _ in range(extensions if len(rates) > 1 else 0):
        best = points[_best(ends)]["learning_rate"]
        ratio = rates[1] / rates[0]
        if best == rates[0]:
            more = [rates[0] / ratio**2, rates[0] / ratio]
        elif best == rates[-1]:
            more = [rates[-1] * ratio, rates[-1] * ratio**2]
        else:
            break
        more = [float(f"{x:.6g}") for x in more]
        own, found = trial({**axes, "learning_rate": more})
        points, ends, rates = points + own, np.concatenate([ends, found]), sorted([*rates, *more])
    best = _best(ends)

    def judged() -> dict[str, Any]:
        at, curves = train({name: np.array([value]) for name, value in points[best].items()}, range(seeds))
        return {"steps": np.asarray(at).tolist(), "curves": _rounded(curves[0])}

    row = record({**key, "part": "judged", "point": points[best], "seeds": seeds}, judged)
    return Tuned(
        name=str(key["contestant"]),
        points=points,
        tuning=ends,
        best=best,
        at_edge=len(rates) > 1 and points[best]["learning_rate"] in (rates[0], rates[-1]),
        steps=np.array(row["steps"]),
        curves=np.array(row["curves"], float),
    )


def raced(
    record: Record,
    batch_size: int,
    name: str,
    steps: int,
    *,
    rates: int,
    tuning_seeds: int,
    seeds: int,
    **arguments: Any,
) -> Tuned:
    """A method of the catalogue on the language model `bytelm`, under a warm-up over a twentieth and a cosine to 0,
    tuned over rates a factor of 2 apart around that of its card. Claims share these runs.

    Args:
      record: keeps them.
      batch_size: windows of 32 bytes.
      name: of the method.
      steps: of a run.
      rates: how many, an odd number.
      tuning_seeds: how many seeds tune.
      seeds: how many judge.
      **arguments: of the method, beside its learning rate.
    """
    method = methods.find(name)
    assert method.centre is not None and method.card is not None
    factory = functools.partial(method.card.function, **arguments) if arguments else method.make
    told = "".join(f", {word} {value}" for word, value in arguments.items())
    key = {"problem": "bytelm", "batch": batch_size, "contestant": name + told, "steps": steps, "schedule": "cosine"}
    train = swept(load("bytelm", batch_size=batch_size), method._replace(make=factory).scheduled, steps, evaluations=5)
    grid = {"learning_rate": method.centre * 2.0 ** (np.arange(rates) - rates // 2)}
    return tuned(record, key, train, grid, tuning_seeds=tuning_seeds, seeds=seeds)


def scanned(
    record: Record, key: Mapping[str, Any], train: Train, grid: Mapping[str, Sequence[float]], seeds: int
) -> np.ndarray:
    """The metric at the end of every point of a grid, all seeds, without tuning: (points, seeds)."""
    axes = {name: [float(f"{x:.6g}") for x in values] for name, values in grid.items()}
    part = {**key, "part": "scan", "grid": axes, "seeds": seeds}
    row = record(part, lambda: {"ends": _rounded(train(product(axes), range(seeds))[1][..., -1])})
    return np.array(row["ends"], float)


def _best(ends: np.ndarray) -> int:
    ends = np.where(np.isfinite(ends), ends, np.inf)
    return int(np.lexsort((ends.min(-1), np.median(ends, -1)))[0])


def _rounded(values: Any) -> Any:
    """Five digits are enough to keep, and NaN is kept as infinity."""
    values = np.where(np.isfinite(values), values, np.inf)
    return np.vectorize(lambda x: float(f"{x:.5g}"), otypes=[float])(values).tolist()
