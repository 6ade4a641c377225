"""Gradients of tasks, examples or replicas into one update."""

from gradkit.aggregation.aggregate import aggregate
from gradkit.aggregation.aligned_mtl import aligned_mtl
from gradkit.aggregation.bloop import bloop, dynamic_barrier, project_out
from gradkit.aggregation.cagrad import cagrad
from gradkit.aggregation.config import config
from gradkit.aggregation.cr_mogm import cr_mogm
from gradkit.aggregation.differentially_private_aggregate import (
    DifferentiallyPrivateAggregateState,
    differentially_private_aggregate,
)
from gradkit.aggregation.dualproj import dualproj
from gradkit.aggregation.dwa import dwa
from gradkit.aggregation.excess_mtl import excess_mtl
from gradkit.aggregation.fairgrad import fairgrad
from gradkit.aggregation.famo import famo
from gradkit.aggregation.graddrop import graddrop
from gradkit.aggregation.gradnorm import gradnorm
from gradkit.aggregation.gradvac import gradvac
from gradkit.aggregation.gramian import combine, gramian
from gradkit.aggregation.hedge import (
    HedgeWeights,
    hedge,
    hedge_weights,
)
from gradkit.aggregation.imtl_g import imtl_g
from gradkit.aggregation.krum import krum
from gradkit.aggregation.learned_weights import imtl_l, uncertainty_weighting
from gradkit.aggregation.linear import constant, mean, random_weighting, sum
from gradkit.aggregation.mgda import mgda
from gradkit.aggregation.modo import modo
from gradkit.aggregation.nash_mtl import nash_mtl
from gradkit.aggregation.pcd import pcd
from gradkit.aggregation.pcgrad import pcgrad
from gradkit.aggregation.per_class_normalized import (
    per_class_normalized,
)
from gradkit.aggregation.prograd import prograd
from gradkit.aggregation.scalarizers import cosmos, geometric_mean_loss, pbi, stch
from gradkit.aggregation.sdmgrad import sdmgrad
from gradkit.aggregation.trimmed_mean import trimmed_mean
from gradkit.aggregation.upgrad import upgrad
from gradkit.aggregation.winsorized_mean import median_of_means, winsorized_mean

__all__ = [
    "DifferentiallyPrivateAggregateState",
    "HedgeWeights",
    "aggregate",
    "aligned_mtl",
    "bloop",
    "cagrad",
    "combine",
    "config",
    "constant",
    "cosmos",
    "cr_mogm",
    "differentially_private_aggregate",
    "dualproj",
    "dwa",
    "dynamic_barrier",
    "excess_mtl",
    "fairgrad",
    "famo",
    "geometric_mean_loss",
    "graddrop",
    "gradnorm",
    "gradvac",
    "gramian",
    "hedge",
    "hedge_weights",
    "imtl_g",
    "imtl_l",
    "krum",
    "mean",
    "median_of_means",
    "mgda",
    "modo",
    "nash_mtl",
    "pbi",
    "pcd",
    "pcgrad",
    "per_class_normalized",
    "prograd",
    "project_out",
    "random_weighting",
    "sdmgrad",
    "stch",
    "sum",
    "trimmed_mean",
    "uncertainty_weighting",
    "upgrad",
    "winsorized_mean",
]
