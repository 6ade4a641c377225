"""Methods that treat a parameter as a matrix."""

from gradkit.optimizers.matrix.distributed_shampoo import DistributedShampooState, distributed_shampoo
from gradkit.optimizers.matrix.muon import ScaleByMuonState, muon, scale_by_muon
from gradkit.optimizers.matrix.shampoo import ScaleByShampooState, scale_by_shampoo, shampoo
from gradkit.optimizers.matrix.soap import ScaleBySoapState, scale_by_soap, soap

__all__ = [
    "DistributedShampooState",
    "ScaleByMuonState",
    "ScaleByShampooState",
    "ScaleBySoapState",
    "distributed_shampoo",
    "muon",
    "scale_by_muon",
    "scale_by_shampoo",
    "scale_by_soap",
    "shampoo",
    "soap",
]
