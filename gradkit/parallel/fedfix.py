"""Aggregations of workers of unequal speed, and the weights with which they have the same limit as synchronous ones."""

from typing import Any

import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.parallel.arrivals import EQUAL, Aggregations, arrival_schedule, positive
from gradkit.types import Scalar

PAPER = Paper(
    "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients Updates",
    "Fraboni et al.",
    2022,
    "2206.10189",
)
SCHEMES = ("synchronous", "async", "fedfix", "fedbuff")


def _periods(tau: np.ndarray, period: float) -> np.ndarray:
    """ceil(tau / T), with a tolerance so that 1.1 / 0.1 is 11."""
    return np.ceil(tau / period * (1 - EQUAL))


def _importance(importance: Any, workers: int) -> np.ndarray:
    if importance is None:
        return np.full(workers, 1 / workers)
    p = positive("importance", importance)
    if p.shape != (workers,) or abs(p.sum() - 1) > 1e-6:
        raise ValueError(
            f"importance must be {workers} numbers that add up to 1, got {importance!r}; divide by their sum"
        )
    return p


def arrival_weights(
    scheme: str, tau: Any, importance: Any = None, *, period: Any = None, participation: Any = None
) -> np.ndarray:
    """The weights of the workers' results with which asynchronous training minimises the same loss as synchronous.

    Equations of aggregation n of the workers i in S_n, which started from version r_i:

        theta <- theta + learning_rate sum_{i in S_n} d_i (x_i - theta^{r_i})

    A round of worker i takes the time tau_i, and its loss F_i has the importance p_i, sum_i p_i = 1. If it takes part
    in an aggregation with frequency f_i, the limit minimises sum_i d_i f_i F_i; the unbiased weights are

        d_i = p_i / f_i
        f_i = 1                                         "synchronous"
        f_i = (1/tau_i) / sum_j (1/tau_j)               "async"
        f_i = 1 / ceil(tau_i / T)                       "fedfix" with period T
        f_i = participation_i                           "fedbuff"

    Args:
      scheme: "synchronous", "async" (one arrival per aggregation), "fedfix" (all arrivals up to fixed times) or
        "fedbuff" (a fixed number of arrivals).
      tau: times of a round, > 0, one per worker.
      importance: p, positive, with the sum 1. Default None: equal.
      period: of "fedfix", > 0.
      participation: of "fedbuff", the fraction of the aggregations in which a worker takes part, in (0, 1]:
        `Aggregations.participation`.

    Returns:
      d, one number per worker.

    Raises:
      ValueError: an argument outside its range, or missing for the scheme.

    Example:
      >>> arrival_weights("fedfix", [1.0, 0.7, 0.4], period=0.5).round(3).tolist()
      [0.667, 0.667, 0.333]

    Reference: Fraboni et al. A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients
    Updates. 2022, arXiv 2206.10189. The official code's diagnostic of the workers' influence under FedFix uses
    ceil(tau / T) as the frequency, which is its inverse; no trajectory depends on it.
    """
    checks.choice("scheme", scheme, SCHEMES)
    tau = positive("tau", tau)
    p = _importance(importance, len(tau))
    if scheme == "synchronous":
        return p
    if scheme == "async":
        return p * tau * (1 / tau).sum()
    if scheme == "fedfix":
        checks.real("period", period, "(0, inf)")
        return p * _periods(tau, float(period))
    if participation is None:
        raise ValueError("participation must be given for fedbuff: write participation=table.participation")
    f = positive("participation", participation)
    if f.shape != tau.shape or (f > 1).any():
        raise ValueError(f"participation must be {len(tau)} numbers in (0, 1], got {participation!r}")
    return p / f


def async_fedavg(tau: Any, num_aggregations: int, *, importance: Any = None, unbiased: bool = True) -> Aggregations:
    """The table of a server that aggregates every worker as it arrives.

    Args:
      tau: times of a round, > 0, one per worker.
      num_aggregations: >= 1; one arrival each.
      importance: p, positive, with the sum 1. Default None: equal.
      unbiased: whether weights are those of `arrival_weights`. Default True; False gives every arrival the weight 1,
        with which fast workers dominate the limit.

    Returns:
      `Aggregations`, for `simulate_events`, whose server is then `optax.sgd(learning_rate)`.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> async_fedavg([1.0, 0.7, 0.4], 4).sent.tolist()
      [[-1, -1, 0], [-1, 0, -1], [-1, -1, 1], [0, -1, -1]]

    Reference: Fraboni et al. A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients
    Updates. 2022, arXiv 2206.10189.
    """
    checks.switch(unbiased=unbiased)
    tau = positive("tau", tau)
    table = arrival_schedule(tau, 1, num_aggregations)
    sent = np.full((num_aggregations, len(tau)), -1, np.int32)
    sent[np.arange(num_aggregations), table.worker] = table.version_read
    weights = arrival_weights("async", tau, importance) if unbiased else np.ones(len(tau))
    return Aggregations(sent, table.time, weights)


def fedfix(
    tau: Any, num_aggregations: int, *, period: Scalar, importance: Any = None, unbiased: bool = True
) -> Aggregations:
    """The table of a server that aggregates at fixed times all workers that have arrived by then.

    Aggregation n, at the time (n + 1) T with T = period, has every worker i that started at least tau_i ago; these
    workers start again at that time.

    Args:
      tau: times of a round, > 0, one per worker.
      num_aggregations: >= 1.
      period: T > 0. With T >= max tau it is synchronous FedAvg.
      importance: p, positive, with the sum 1. Default None: equal.
      unbiased: whether weights are those of `arrival_weights`. Default True; False gives equal weights.

    Returns:
      `Aggregations`, for `simulate_events`, whose server is then `optax.sgd(learning_rate)`. An aggregation without
      workers has no effect.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> fedfix([1.0, 0.7, 0.4], 3, period=0.5).sent.tolist()
      [[-1, -1, 0], [0, 0, 1], [-1, -1, 2]]

    Reference: Fraboni et al. A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients
    Updates. 2022, arXiv 2206.10189.
    """
    checks.switch(unbiased=unbiased)
    tau = positive("tau", tau)
    count = checks.integer("num_aggregations", num_aggregations, 1)
    checks.real("period", period, "(0, inf)")
    every = _periods(tau, float(period))
    n = np.arange(1, count + 1)[:, None]
    sent = np.where(n % every == 0, n - every, -1).astype(np.int32)
    p = _importance(importance, len(tau))
    weights = arrival_weights("fedfix", tau, p, period=period) if unbiased else np.full(len(tau), 1 / len(tau))
    return Aggregations(sent, (n[:, 0] * float(period)), weights)


register(
    arrival_weights,
    form="function",
    paper=PAPER,
    example={"scheme": "async", "tau": (1.0, 2.0)},
)
register(
    async_fedavg,
    form="function",
    paper=PAPER,
    delay="any; weights from the times of a round",
    golden=("parallel/async_fedavg",),
    example={"tau": (1.0, 2.0), "num_aggregations": 4},
)
register(
    fedfix,
    form="function",
    paper=PAPER,
    delay="any; whoever has arrived at fixed times",
    golden=("parallel/fedfix",),
    example={"tau": (1.0, 2.0), "num_aggregations": 4, "period": 1.0},
)
