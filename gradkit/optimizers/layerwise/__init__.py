"""Methods whose step depends on the norms of a layer."""

from gradkit.optimizers.layerwise.agvm import (
    ScaleByAgvmState,
    agvm,
    agvm_adamw,
    scale_by_agvm,
)
from gradkit.optimizers.layerwise.lamb import lamb, lambc, nlamb
from gradkit.optimizers.layerwise.lars import larc, lars
from gradkit.optimizers.layerwise.novograd import (
    ScaleByNovogradState,
    novograd,
    scale_by_novograd,
)
from gradkit.optimizers.layerwise.tvlars import tvlars

__all__ = [
    "ScaleByAgvmState",
    "ScaleByNovogradState",
    "agvm",
    "agvm_adamw",
    "lamb",
    "lambc",
    "larc",
    "lars",
    "nlamb",
    "novograd",
    "scale_by_agvm",
    "scale_by_novograd",
    "tvlars",
]
