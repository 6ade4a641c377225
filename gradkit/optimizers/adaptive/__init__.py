"""Methods that rescale every coordinate by a second moment."""

from gradkit.optimizers.adaptive.adam import adam
from gradkit.optimizers.adaptive.adamp import adamp, sgdp
from gradkit.optimizers.adaptive.adamw import adamw
from gradkit.optimizers.adaptive.grams import grams

__all__ = ["adam", "adamp", "adamw", "grams", "sgdp"]
