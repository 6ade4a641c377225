"""Step sizes from what a step measures."""

from gradkit.optimizers.parameter_free.dog import DogState, dog, ldog, scale_by_dog
from gradkit.optimizers.parameter_free.momo import ScaleByMomoState, momo, momo_adam, scale_by_momo

__all__ = ["DogState", "ScaleByMomoState", "dog", "ldog", "momo", "momo_adam", "scale_by_dog", "scale_by_momo"]
