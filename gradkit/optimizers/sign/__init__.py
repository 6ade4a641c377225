"""Methods that step by the sign of a direction."""

from gradkit.optimizers.sign.lion import ScaleByLionState, lion, scale_by_lion

__all__ = ["ScaleByLionState", "lion", "scale_by_lion"]
