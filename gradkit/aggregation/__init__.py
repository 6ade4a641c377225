"""Gradients of tasks, examples or replicas into one update."""

from gradkit.aggregation.differentially_private_aggregate import (
    DifferentiallyPrivateAggregateState,
    differentially_private_aggregate,
)
from gradkit.aggregation.gramian import combine, gramian
from gradkit.aggregation.pcgrad import pcgrad
from gradkit.aggregation.upgrad import upgrad

__all__ = [
    "DifferentiallyPrivateAggregateState",
    "combine",
    "differentially_private_aggregate",
    "gramian",
    "pcgrad",
    "upgrad",
]
