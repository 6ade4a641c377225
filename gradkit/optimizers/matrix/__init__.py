"""Methods that treat a parameter as a matrix."""

from gradkit.optimizers.matrix.muon import ScaleByMuonState, muon, scale_by_muon

__all__ = ["ScaleByMuonState", "muon", "scale_by_muon"]
