"""Small real problems that ship with the package: data, network, loss, target."""

from gradkit.workloads.registry import available, load
from gradkit.workloads.workload import Workload

__all__ = ["Workload", "available", "load"]
