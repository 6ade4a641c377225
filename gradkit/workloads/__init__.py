"""Small real problems that ship with the package, and problems of one's own: data, network, loss, target."""

from gradkit.workloads.problem import problem
from gradkit.workloads.registry import available, load
from gradkit.workloads.workload import Workload

__all__ = ["Workload", "available", "load", "problem"]
