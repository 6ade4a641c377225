"""What optimizers of matrices share that have the learning rate inside: AdamW for the other leaves."""

from typing import Any

import optax

from gradkit import checks
from gradkit.engine.by_role import by_role
from gradkit.engine.core import optimizer
from gradkit.leaves import Layout, Method
from gradkit.transforms import add_decayed_weights, scale_by_adam, scale_by_learning_rate
from gradkit.types import DTypeLike


def with_adamw(
    described: Method,
    matrices: optax.GradientTransformation,
    *,
    adam_learning_rate: Any,
    adam_b1: Any,
    adam_b2: Any,
    adam_eps: Any,
    adam_weight_decay: Any,
    mu_dtype: DTypeLike | None,
    layout: Layout | None,
    undecided: str = "",
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that gives matrices, convolutions and experts to one transformation, and all other leaves to AdamW.

    Args:
      described: the name, learning rate and weight decay of the matrices, and which leaves decay, of all.
      matrices: moves matrices, learning rate included.
      adam_learning_rate: of the other leaves, or None for that of the matrices.
      adam_b1: decay of AdamW's first moment.
      adam_b2: decay of AdamW's second moment.
      adam_eps: AdamW's own eps.
      adam_weight_decay: of the other leaves.
      mu_dtype: dtype of AdamW's first moment.
      layout: what decides the roles.
      undecided: what is wrong with that of the matrices. Default: nothing, one rate serves both.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, other leaves for which no rate was given.
    """
    for name, value in (("adam_b1", adam_b1), ("adam_b2", adam_b2)):
        checks.real(name, value, "[0, 1)")
    checks.real("adam_eps", adam_eps, "[0, inf)")
    checks.real("adam_weight_decay", adam_weight_decay, "[0, inf)", schedule=True)
    checks.real("adam_learning_rate", adam_learning_rate, "[0, inf)", schedule=True, optional=True)
    rate = described.learning_rate if adam_learning_rate is None else adam_learning_rate
    others = optimizer(
        Method("adamw", rate, adam_weight_decay, described.weight_decay_mask),
        scale_by_adam(b1=adam_b1, b2=adam_b2, eps=adam_eps, mu_dtype=mu_dtype),
        add_decayed_weights(adam_weight_decay, weight_decay_mask=described.weight_decay_mask),
        scale_by_learning_rate(rate),
    )
    return by_role(
        described, optimizer(described, matrices), others, layout, undecided if adam_learning_rate is None else ""
    )
