"""Pure measurements of a training run."""

from gradkit.diagnostics.directional_sharpness import directional_sharpness
from gradkit.diagnostics.gradient_noise_scale import (
    NoiseScale,
    NoiseScaleEstimate,
    NoiseScaleState,
    StepsExamples,
    critical_batch_size,
    fit_steps_examples,
    from_moments,
    gradient_noise_scale,
    optimal_rate,
)
from gradkit.diagnostics.metrics import metrics

__all__ = [
    "NoiseScale",
    "NoiseScaleEstimate",
    "NoiseScaleState",
    "StepsExamples",
    "critical_batch_size",
    "directional_sharpness",
    "fit_steps_examples",
    "from_moments",
    "gradient_noise_scale",
    "metrics",
    "optimal_rate",
]
