"""Methods that treat a parameter as a matrix."""

from gradkit.optimizers.matrix.adago import (
    adago,
)
from gradkit.optimizers.matrix.adamh import (
    adamh,
    muonh,
    normuonh,
)
from gradkit.optimizers.matrix.adamuon import (
    ScaleByAdamuonState,
    adamuon,
    scale_by_adamuon,
)
from gradkit.optimizers.matrix.apollo import (
    apollo,
    apollo_mini,
)
from gradkit.optimizers.matrix.auon import (
    auon,
    hybrid_auon,
    scale_by_auon,
    scale_by_cosh_rms,
    scale_by_hybrid_auon,
)
from gradkit.optimizers.matrix.aurora import (
    aurora,
    balance_rows,
)
from gradkit.optimizers.matrix.conda import (
    ScaleByCondaState,
    conda,
    scale_by_conda,
)
from gradkit.optimizers.matrix.contra_muon import (
    ScaleByContraMuonState,
    contra_muon,
    scale_by_contra_muon,
    soft_muon,
)
from gradkit.optimizers.matrix.dion import (
    ScaleByDionState,
    dion,
    scale_by_dion,
)
from gradkit.optimizers.matrix.dion2 import (
    ScaleByDion2State,
    dion2,
    scale_by_dion2,
)
from gradkit.optimizers.matrix.distributed_shampoo import (
    DistributedShampooState,
    distributed_shampoo,
)
from gradkit.optimizers.matrix.fira import (
    fira,
)
from gradkit.optimizers.matrix.galore import (
    galore,
)
from gradkit.optimizers.matrix.kl_direction import (
    ScaleByKLState,
)
from gradkit.optimizers.matrix.kl_shampoo import (
    kl_shampoo,
    scale_by_kl_shampoo,
)
from gradkit.optimizers.matrix.kl_soap import (
    kl_soap,
    scale_by_kl_soap,
)
from gradkit.optimizers.matrix.kron import (
    kron,
    psgd_kron,
)
from gradkit.optimizers.matrix.lora_pro import (
    adjust_lora_gradients,
    lora_pro,
    lora_pro_adam,
)
from gradkit.optimizers.matrix.lora_rite import (
    lora_rite,
)
from gradkit.optimizers.matrix.muon import (
    ScaleByMuonState,
    muon,
    scale_by_muon,
)
from gradkit.optimizers.matrix.muon_clip import (
    muon_clip,
)
from gradkit.optimizers.matrix.muown import (
    muown,
)
from gradkit.optimizers.matrix.namo import (
    namo,
    namo_d,
)
from gradkit.optimizers.matrix.newton_muon import (
    NewtonMuonState,
    newton_muon,
    scale_by_newton_muon,
)
from gradkit.optimizers.matrix.nordion2 import (
    ScaleByNordion2State,
    dion3,
    nordion2,
    scale_by_nordion2,
)
from gradkit.optimizers.matrix.normuon import (
    normuon,
)
from gradkit.optimizers.matrix.overparameterized import (
    overparameterized,
    scale_by_overparameterization,
)
from gradkit.optimizers.matrix.polargrad import (
    ScaleByPolargradState,
    polargrad,
    scale_by_polargrad,
)
from gradkit.optimizers.matrix.precondition_by_input_moment import (
    precondition_by_input_moment,
)
from gradkit.optimizers.matrix.project_out_subspace import (
    ProjectOutSubspaceState,
    project_out_subspace,
)
from gradkit.optimizers.matrix.psgd_pro import (
    ScaleByPsgdProState,
    psgd_pro,
    scale_by_psgd_pro,
)
from gradkit.optimizers.matrix.scaled_gd import (
    scale_by_factor_gram,
    scaled_gd,
)
from gradkit.optimizers.matrix.scion import (
    ScaleByScionState,
    scale_by_scion,
    scion,
    scion_light,
)
from gradkit.optimizers.matrix.shampoo import (
    ScaleByShampooState,
    scale_by_shampoo,
    shampoo,
)
from gradkit.optimizers.matrix.soap import (
    ScaleBySoapState,
    scale_by_soap,
    soap,
)
from gradkit.optimizers.matrix.soap_muon import (
    ScaleBySoapMuonState,
    scale_by_soap_muon,
    soap_muon,
)
from gradkit.optimizers.matrix.splus import (
    ScaleBySplusState,
    scale_by_splus,
    splus,
)

__all__ = [
    "DistributedShampooState",
    "NewtonMuonState",
    "ProjectOutSubspaceState",
    "ScaleByAdamuonState",
    "ScaleByCondaState",
    "ScaleByContraMuonState",
    "ScaleByDion2State",
    "ScaleByDionState",
    "ScaleByKLState",
    "ScaleByMuonState",
    "ScaleByNordion2State",
    "ScaleByPolargradState",
    "ScaleByPsgdProState",
    "ScaleByScionState",
    "ScaleByShampooState",
    "ScaleBySoapMuonState",
    "ScaleBySoapState",
    "ScaleBySplusState",
    "adago",
    "adamh",
    "adamuon",
    "adjust_lora_gradients",
    "apollo",
    "apollo_mini",
    "auon",
    "aurora",
    "balance_rows",
    "conda",
    "contra_muon",
    "dion",
    "dion2",
    "dion3",
    "distributed_shampoo",
    "fira",
    "galore",
    "hybrid_auon",
    "kl_shampoo",
    "kl_soap",
    "kron",
    "lora_pro",
    "lora_pro_adam",
    "lora_rite",
    "muon",
    "muon_clip",
    "muonh",
    "muown",
    "namo",
    "namo_d",
    "newton_muon",
    "nordion2",
    "normuon",
    "normuonh",
    "overparameterized",
    "polargrad",
    "precondition_by_input_moment",
    "project_out_subspace",
    "psgd_kron",
    "psgd_pro",
    "scale_by_adamuon",
    "scale_by_auon",
    "scale_by_conda",
    "scale_by_contra_muon",
    "scale_by_cosh_rms",
    "scale_by_dion",
    "scale_by_dion2",
    "scale_by_factor_gram",
    "scale_by_hybrid_auon",
    "scale_by_kl_shampoo",
    "scale_by_kl_soap",
    "scale_by_muon",
    "scale_by_newton_muon",
    "scale_by_nordion2",
    "scale_by_overparameterization",
    "scale_by_polargrad",
    "scale_by_psgd_pro",
    "scale_by_scion",
    "scale_by_shampoo",
    "scale_by_soap",
    "scale_by_soap_muon",
    "scale_by_splus",
    "scaled_gd",
    "scion",
    "scion_light",
    "shampoo",
    "soap",
    "soap_muon",
    "soft_muon",
    "splus",
]
