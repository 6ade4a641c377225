"""Step sizes from what a step measures."""

from gradkit.optimizers.parameter_free.cocob import ScaleByCocobState, cocob, scale_by_cocob
from gradkit.optimizers.parameter_free.d_adaptation import DAdaptationState, dadapt_adam, dadapt_lion, dadapt_sgd
from gradkit.optimizers.parameter_free.dog import DogState, dog, ldog, scale_by_dog
from gradkit.optimizers.parameter_free.dowg import DowgState, dowg, scale_by_dowg
from gradkit.optimizers.parameter_free.mechanic import MechanicState, mechanic
from gradkit.optimizers.parameter_free.momo import ScaleByMomoState, momo, momo_adam, scale_by_momo
from gradkit.optimizers.parameter_free.normalized_logistic import normalized_logistic, scale_by_inverse_slope
from gradkit.optimizers.parameter_free.prodigy import ScaleByProdigyState, prodigy, scale_by_prodigy
from gradkit.optimizers.parameter_free.tamed_dog import TamedDogState, tamed_dog
from gradkit.optimizers.parameter_free.u_dog import (
    ADogState,
    ExtrapolationState,
    UDogNumbers,
    a_dog,
    u_dog,
    u_dog_eval_params,
    unixgrad,
)

__all__ = [
    "ADogState",
    "DAdaptationState",
    "DogState",
    "DowgState",
    "ExtrapolationState",
    "MechanicState",
    "ScaleByCocobState",
    "ScaleByMomoState",
    "ScaleByProdigyState",
    "TamedDogState",
    "UDogNumbers",
    "a_dog",
    "cocob",
    "dadapt_adam",
    "dadapt_lion",
    "dadapt_sgd",
    "dog",
    "dowg",
    "ldog",
    "mechanic",
    "momo",
    "momo_adam",
    "normalized_logistic",
    "prodigy",
    "scale_by_cocob",
    "scale_by_dog",
    "scale_by_dowg",
    "scale_by_inverse_slope",
    "scale_by_momo",
    "scale_by_prodigy",
    "tamed_dog",
    "u_dog",
    "u_dog_eval_params",
    "unixgrad",
]
