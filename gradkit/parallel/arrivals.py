"""Arrival tables: which worker arrived when, and which version it had read, so that an asynchronous run repeats."""

from typing import Any, NamedTuple

import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar

PAPER = Paper("Asynchronous Local-SGD Training for Language Modeling", "Liu et al.", 2024, "2401.09135")
# Tolerance for numbers that are equal as decimals: 1.1 / 0.1 is more than 11 in binary.
EQUAL = 1e-9


class Arrivals(NamedTuple):
    """Events in the order of their arrival.

    Attributes:
      worker: (events,) int32, which worker arrived.
      version_read: (events,) int32, the version it started from: the number of events before it read.
      time: (events,) float64, when it arrived.
      staleness: (events,) int32, the versions published since it read.
      steps: (events,) int32, its local steps.
    """

    worker: np.ndarray
    version_read: np.ndarray
    time: np.ndarray
    staleness: np.ndarray
    steps: np.ndarray

    def published_every(self, buffer_size: int) -> "Arrivals":
        """The table of a server that publishes a version only every so many arrivals, such as `fedbuff`: its staleness
        counts these versions."""
        K = checks.integer("buffer_size", buffer_size, 1)
        arrived = self.version_read + self.staleness
        return self._replace(staleness=arrived // K - self.version_read // K)


class Aggregations(NamedTuple):
    """Aggregations of a server that takes several workers at once, in their order.

    Attributes:
      sent: (aggregations, workers) int32, the version from which the worker started that takes part; -1 if it does not.
      time: (aggregations,) float64, when.
      weights: (workers,) float64, what a worker's result is multiplied by.
    """

    sent: np.ndarray
    time: np.ndarray
    weights: np.ndarray

    @property
    def participation(self) -> np.ndarray:
        """In which share of the aggregations each worker took part."""
        return (self.sent >= 0).mean(0)


def positive(name: str, value: Any, *, ndims: tuple[int, ...] = (1,)) -> np.ndarray:
    """An array of positive numbers, not empty; infinity stands for a worker that never arrives."""
    array = np.asarray(value, np.float64)
    if array.ndim not in ndims or not array.size or not (array > 0).all():
        shape = "one per worker" if ndims == (1,) else "one per worker, or a row per worker"
        raise ValueError(f"{name} must be positive numbers, {shape}, got {value!r}; write {name}=[1.0, 2.0]")
    return array


def step_counts(name: str, value: Any, workers: int) -> np.ndarray:
    """Whole numbers >= 1, one per worker; one number stands for all."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.shape not in ((), (workers,)) or (array < 1).any():
        raise ValueError(
            f"{name} must be an integer >= 1, or one for each of the {workers} workers, got {value!r}; write {name}=8"
        )
    return np.broadcast_to(array, (workers,)).astype(np.int64)


def arrival_schedule(
    seconds_per_step: Any,
    local_steps: Scalar,
    num_events: int,
    *,
    spread: Any = 0.0,
    failure: Scalar = 0.0,
    seed: int = 0,
) -> Arrivals:
    """The arrivals of workers of given speeds.

    Worker w reads the parameters, makes steps_w local steps, arrives, and reads again. Equations, for the local steps
    steps_w, seconds per step seconds_w and `spread` s:

        duration_w = steps_w seconds_w exp(s z - s^2 / 2),    z ~ N(0, 1)
        finish_w   = start_w + duration_w
        event e    = the earliest finish_w
        staleness  = e - version_read

    Event e publishes version e + 1; of equal times the worker with the lowest number comes first. The factor is
    log-normal with mean 1. A round fails with probability `failure`: nothing arrives, and the worker reads again.
    Computed in NumPy, outside of any program.

    Args:
      seconds_per_step: > 0, one number per worker, as measured; infinity for a worker that never arrives. Or a row of
        numbers per worker, one per round, which is repeated.
      local_steps: steps of a round, >= 1: one integer, or one per worker (`dynamic_local_steps`).
      num_events: number of arrivals, >= 1.
      spread: of the logarithm of the time of a round, >= 0. Default 0: all rounds take the same time.
      failure: probability that a round is lost, in [0, 1). Default 0.
      seed: of the random numbers, which are independent for each worker. Default 0.

    Returns:
      `Arrivals`; the same arguments give the same bits.

    Raises:
      ValueError: an argument outside its range; no worker that ever arrives.

    Example:
      >>> table = arrival_schedule([0.58, 0.75, 1.51, 3.33], 1, 12)
      >>> table.worker.tolist()
      [0, 1, 0, 1, 2, 0, 1, 0, 0, 1, 2, 3]
      >>> table.staleness.tolist()
      [0, 1, 1, 1, 4, 2, 2, 1, 0, 2, 5, 11]

    Reference: The four speeds are those of Liu et al. Asynchronous Local-SGD Training for Language Modeling. 2024,
    arXiv 2401.09135. Equal times: the lowest worker first.
    """
    seconds = positive("seconds_per_step", seconds_per_step, ndims=(1, 2))
    workers = len(seconds)
    steps = step_counts("local_steps", local_steps, workers)
    num_events = checks.integer("num_events", num_events, 1)
    checks.real("spread", spread, "[0, inf)")
    checks.real("failure", failure, "[0, 1)")
    seed = checks.integer("seed", seed)
    rows = seconds.reshape(workers, -1)
    if np.isinf(rows).all():
        raise ValueError(f"seconds_per_step must be finite for one worker at least, got {seconds_per_step!r}")
    draws = [np.random.default_rng([seed, w]) for w in range(workers)]
    rounds = np.zeros(workers, np.int64)

    def duration(w: int) -> float:
        """The duration of the next successful round of worker w, including the failed rounds before it."""
        total = 0.0
        while True:
            factor = np.exp(spread * draws[w].standard_normal() - spread**2 / 2) if spread else 1.0
            total += steps[w] * rows[w, rounds[w] % rows.shape[1]] * factor
            rounds[w] += 1
            if not failure or np.isinf(total) or draws[w].random() >= failure:
                return total

    finish = np.array([duration(w) for w in range(workers)])
    version = np.zeros(workers, np.int64)
    who, read, when = (np.zeros(num_events, kind) for kind in (np.int32, np.int32, np.float64))
    for e in range(num_events):
        w = int(np.argmin(finish))
        who[e], read[e], when[e] = w, version[w], finish[w]
        if np.isinf(finish[w]):
            raise ValueError(f"seconds_per_step: no worker arrives after event {e}, got {seconds_per_step!r}")
        version[w] = e + 1
        finish[w] += duration(w)
    staleness = np.arange(num_events, dtype=np.int32) - read
    return Arrivals(who, read, when, staleness, steps[who].astype(np.int32))


register(
    arrival_schedule,
    form="function",
    paper=PAPER,
    example={"seconds_per_step": (1.0, 2.0), "local_steps": 1, "num_events": 4},
)
