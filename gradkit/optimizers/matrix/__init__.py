"""Methods that treat a parameter as a matrix."""

from gradkit.optimizers.matrix.kron import kron, psgd_kron
from gradkit.optimizers.matrix.muon import ScaleByMuonState, muon, scale_by_muon

__all__ = ["ScaleByMuonState", "kron", "muon", "psgd_kron", "scale_by_muon"]
