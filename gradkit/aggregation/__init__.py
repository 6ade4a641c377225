"""Gradients of tasks, examples or replicas into one update."""

from gradkit.aggregation.aligned_mtl import aligned_mtl
from gradkit.aggregation.cagrad import cagrad
from gradkit.aggregation.config import config
from gradkit.aggregation.differentially_private_aggregate import (
    DifferentiallyPrivateAggregateState,
    differentially_private_aggregate,
)
from gradkit.aggregation.dualproj import dualproj
from gradkit.aggregation.fairgrad import fairgrad
from gradkit.aggregation.graddrop import graddrop
from gradkit.aggregation.gramian import combine, gramian
from gradkit.aggregation.imtl_g import imtl_g
from gradkit.aggregation.krum import krum
from gradkit.aggregation.linear import constant, mean, random_weighting, sum
from gradkit.aggregation.mgda import mgda
from gradkit.aggregation.nash_mtl import nash_mtl
from gradkit.aggregation.pcgrad import pcgrad
from gradkit.aggregation.trimmed_mean import trimmed_mean
from gradkit.aggregation.upgrad import upgrad
from gradkit.aggregation.winsorized_mean import median_of_means, winsorized_mean

__all__ = [
    "DifferentiallyPrivateAggregateState",
    "aligned_mtl",
    "cagrad",
    "combine",
    "config",
    "constant",
    "differentially_private_aggregate",
    "dualproj",
    "fairgrad",
    "graddrop",
    "gramian",
    "imtl_g",
    "krum",
    "mean",
    "median_of_means",
    "mgda",
    "nash_mtl",
    "pcgrad",
    "random_weighting",
    "sum",
    "trimmed_mean",
    "upgrad",
    "winsorized_mean",
]
