"""Methods that step by the sign of a direction."""

from gradkit.optimizers.sign.lion import ScaleByLionState, cautious_lion, lion, scale_by_lion

__all__ = ["ScaleByLionState", "cautious_lion", "lion", "scale_by_lion"]
