"""Methods that treat a parameter as a matrix."""

from gradkit.optimizers.matrix.muon import ScaleByMuonState, muon, scale_by_muon
from gradkit.optimizers.matrix.precondition_by_input_moment import precondition_by_input_moment

__all__ = ["ScaleByMuonState", "muon", "precondition_by_input_moment", "scale_by_muon"]
