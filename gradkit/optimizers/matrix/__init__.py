"""Methods that treat a parameter as a matrix."""

from gradkit.optimizers.matrix.kron import (
    kron,
    psgd_kron,
)
from gradkit.optimizers.matrix.muon import (
    ScaleByMuonState,
    muon,
    scale_by_muon,
)
from gradkit.optimizers.matrix.precondition_by_input_moment import (
    precondition_by_input_moment,
)

__all__ = [
    "ScaleByMuonState",
    "kron",
    "muon",
    "precondition_by_input_moment",
    "psgd_kron",
    "scale_by_muon",
]
