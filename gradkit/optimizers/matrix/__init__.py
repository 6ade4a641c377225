"""Methods that treat a parameter as a matrix."""

from gradkit.optimizers.matrix.muon import ScaleByMuonState, muon, scale_by_muon
from gradkit.optimizers.matrix.shampoo import ScaleByShampooState, scale_by_shampoo, shampoo

__all__ = [
    "ScaleByMuonState",
    "ScaleByShampooState",
    "muon",
    "scale_by_muon",
    "scale_by_shampoo",
    "shampoo",
]
