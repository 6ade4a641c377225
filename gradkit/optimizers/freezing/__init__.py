"""Methods that stop training what has converged."""

from gradkit.optimizers.freezing.grades import (
    FreezeOnConvergenceState,
    all_frozen,
    freeze_on_convergence,
    frozen_mask,
    grades,
)

__all__ = ["FreezeOnConvergenceState", "all_frozen", "freeze_on_convergence", "frozen_mask", "grades"]
