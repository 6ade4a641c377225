"""Methods that treat a parameter as a matrix."""

from gradkit.optimizers.matrix.conda import ScaleByCondaState, conda, scale_by_conda
from gradkit.optimizers.matrix.dion import ScaleByDionState, dion, scale_by_dion
from gradkit.optimizers.matrix.fira import fira
from gradkit.optimizers.matrix.galore import galore
from gradkit.optimizers.matrix.muon import ScaleByMuonState, muon, scale_by_muon
from gradkit.optimizers.matrix.precondition_by_input_moment import precondition_by_input_moment

__all__ = [
    "ScaleByCondaState",
    "ScaleByDionState",
    "ScaleByMuonState",
    "conda",
    "dion",
    "fira",
    "galore",
    "muon",
    "precondition_by_input_moment",
    "scale_by_conda",
    "scale_by_dion",
    "scale_by_muon",
]
