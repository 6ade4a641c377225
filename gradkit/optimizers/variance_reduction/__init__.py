"""Methods that reduce the variance of the gradient with what earlier steps have seen."""

from gradkit.optimizers.variance_reduction.ai_sarah import (
    AiSarah,
    AiSarahState,
    ai_sarah,
)
from gradkit.optimizers.variance_reduction.cluster_momentum import ClusterMomentumState, cluster_momentum
from gradkit.optimizers.variance_reduction.gsnr import vr_adam, vr_lamb, vr_lars, vr_momentum, vr_sgd
from gradkit.optimizers.variance_reduction.implicit_gradient_transport import (
    ImplicitGradientTransportState,
    implicit_gradient_transport,
)
from gradkit.optimizers.variance_reduction.mars import mars_adamw, mars_exact, mars_lion
from gradkit.optimizers.variance_reduction.mars_shampoo import mars_shampoo
from gradkit.optimizers.variance_reduction.predict_correct import PredictCorrectState, predict_correct
from gradkit.optimizers.variance_reduction.saga import TableState, sag_estimator, saga_estimator
from gradkit.optimizers.variance_reduction.sarah import (
    SarahState,
    sarah_estimator,
)
from gradkit.optimizers.variance_reduction.storm import (
    StormState,
    storm,
)
from gradkit.optimizers.variance_reduction.svrg import SvrgState, svrg_estimator

__all__ = [
    "AiSarah",
    "AiSarahState",
    "ClusterMomentumState",
    "ImplicitGradientTransportState",
    "PredictCorrectState",
    "SarahState",
    "StormState",
    "SvrgState",
    "TableState",
    "ai_sarah",
    "cluster_momentum",
    "implicit_gradient_transport",
    "mars_adamw",
    "mars_exact",
    "mars_lion",
    "mars_shampoo",
    "predict_correct",
    "sag_estimator",
    "saga_estimator",
    "sarah_estimator",
    "storm",
    "svrg_estimator",
    "vr_adam",
    "vr_lamb",
    "vr_lars",
    "vr_momentum",
    "vr_sgd",
]
