"""Gradients of tasks, examples or replicas into one update."""

from gradkit.aggregation.gramian import combine, gramian
from gradkit.aggregation.pcgrad import pcgrad
from gradkit.aggregation.upgrad import upgrad

__all__ = ["combine", "gramian", "pcgrad", "upgrad"]
