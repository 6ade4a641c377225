"""Square root scaling: how Adam and RMSprop keep their trajectory when the batch grows by kappa."""

from collections.abc import Callable, Mapping
from typing import Any

from jax.core import Tracer

from gradkit import checks
from gradkit.batches.rule import apply_rule
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar

PAPER = Paper("On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", "Malladi et al.", 2022, "2205.10287")
# 1 - 0.9 is below 0.1 in floating point, but ten times it should count as 1.
ROUNDING = 1e-9


def _decay(name: str, kappa: Any) -> Callable[[Any], Any]:
    """The function b -> 1 - kappa (1 - b), which raises where the result is not in [0, 1)."""

    def change(b: Any) -> Any:
        rate = kappa * (1 - b)
        readable = not isinstance(rate, Tracer)
        if readable and float(kappa) != 1 and float(rate) >= 1 - ROUNDING:
            raise ValueError(
                f"sqrt_scaling has no {name} for kappa={kappa!r}: kappa (1 - {name}) must be below 1, "
                f"so kappa below {1 / (1 - b):g} for {name}={b!r}"
            )
        return 1 - rate

    return change


def sqrt_scaling(hparams: Mapping[str, Any], kappa: Scalar) -> dict[str, Any]:
    """Hyperparameters of Adam or RMSprop for a batch kappa times as large.

    Equations:

        learning_rate <- sqrt(kappa) learning_rate
        1 - b1        <- kappa (1 - b1)
        1 - b2        <- kappa (1 - b2)
        eps           <- eps / sqrt(kappa)

    Train for 1 / kappa as many steps: both runs then approximate the same stochastic differential equation.

    Args:
      hparams: name -> value, with any of `learning_rate` >= 0, `b1` and `b2` in [0, 1), `eps` >= 0; numbers or
        traced values. Pass all of them that the optimizer has: one that is left out keeps its default, which is not
        scaled. RMSprop has no `b1`. Of a schedule, scale the peak, and divide its steps by kappa.
      kappa: new batch / old batch, > 0; also less than 1.

    Returns:
      A dictionary with these four scaled, and all other entries unchanged; weight decay is not covered by the theory.

    Raises:
      ValueError: kappa not positive, none of the four, a value outside its range, or kappa (1 - b) >= 1: with
        b1 = 0.9 the rule ends at kappa = 10.

    Example:
      >>> new = sqrt_scaling({"learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8}, 4)
      >>> {name: round(value, 10) for name, value in new.items()}
      {'learning_rate': 0.002, 'b1': 0.6, 'b2': 0.996, 'eps': 5e-09}

    Reference: Malladi et al. On the SDEs and Scaling Rules for Adaptive Gradient Algorithms. 2022, arXiv 2205.10287.
    """
    checks.mapping(hparams=hparams)
    changes: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "learning_rate": ("[0, inf)", lambda rate: kappa**0.5 * rate),
        "b1": ("[0, 1)", _decay("b1", kappa)),
        "b2": ("[0, 1)", _decay("b2", kappa)),
        "eps": ("[0, inf)", lambda eps: eps / kappa**0.5),
    }
    return apply_rule("sqrt_scaling", hparams, kappa, changes)


register(
    sqrt_scaling,
    form="rule",
    paper=PAPER,
    example={"hparams": {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8}, "kappa": 4},
)
