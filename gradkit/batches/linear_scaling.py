"""Linear scaling: a batch kappa times as large takes a learning rate kappa times as large."""

from collections.abc import Mapping
from typing import Any

from gradkit import checks
from gradkit.batches.rule import apply_rule
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar

PAPER = Paper("Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", "Goyal et al.", 2017, "1706.02677")


def linear_scaling(hparams: Mapping[str, Any], kappa: Scalar) -> dict[str, Any]:
    """Hyperparameters of SGD with momentum for a batch kappa times as large.

    Equations:

        learning_rate <- kappa learning_rate

    All other hyperparameters stay as they are. One step then has the length of kappa steps of the small batch, as long
    as the gradient does not change much over them.

    Args:
      hparams: name -> value, with `learning_rate` >= 0, a number or a traced value. Of a schedule, scale the peak,
        and divide its steps by kappa.
      kappa: new batch / old batch, > 0; also less than 1. The paper's reference is a learning rate of 0.1 at 256.

    Returns:
      A dictionary with the learning rate scaled, and momentum, weight decay and all other entries unchanged.

    Raises:
      ValueError: kappa not positive, no learning rate, or one that is not a number >= 0.

    Example:
      >>> linear_scaling({"learning_rate": 0.1, "momentum": 0.9}, 4)
      {'learning_rate': 0.4, 'momentum': 0.9}

    Reference: Goyal et al. Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour. 2017, arXiv 1706.02677. The
    paper warms up to the large learning rate from the small one, not from 0: `gk.schedules.gradual_warmup`. The
    learning rate must multiply the momentum from outside, as in `gk.sgd` and `gk.correct_momentum`; the loss must be a
    mean over the GLOBAL batch.
    """
    checks.mapping(hparams=hparams)
    return apply_rule("linear_scaling", hparams, kappa, {"learning_rate": ("[0, inf)", lambda rate: kappa * rate)})


register(
    linear_scaling,
    form="rule",
    paper=PAPER,
    example={"hparams": {"learning_rate": 0.1, "momentum": 0.9}, "kappa": 4},
)
