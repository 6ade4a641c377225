"""What optimizers of matrices share: AdamW for embeddings, heads, vectors and scalars."""

from typing import Any

import optax

from gradkit import checks
from gradkit.engine.by_role import by_role
from gradkit.engine.core import optimizer
from gradkit.leaves import Layout, Method
from gradkit.transforms import add_decayed_weights, scale_by_adam, scale_by_learning_rate
from gradkit.types import DTypeLike, Mask, ScalarOrSchedule


def beside_adamw(
    method: str,
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    weight_decay_mask: Mask,
    *links: optax.GradientTransformation,
    adam_learning_rate: Any,
    adam_b1: Any,
    adam_b2: Any,
    adam_eps: Any,
    adam_weight_decay: Any,
    mu_dtype: DTypeLike | None,
    layout: Layout | None,
    sized_as_adamw: bool,
    lengths: str = "",
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that gives matrices, convolutions and experts to some links, and all other leaves to AdamW.

    Args:
      method: the public name, for messages and `describe`.
      learning_rate: of the matrices; for the other leaves where updates are as large as AdamW's.
      weight_decay: of the matrices.
      weight_decay_mask: which leaves decay, of all.
      *links: the direction of the matrices.
      adam_learning_rate: of the other leaves, or None.
      adam_b1: decay of AdamW's first moment.
      adam_b2: decay of AdamW's second moment.
      adam_eps: AdamW's own eps.
      adam_weight_decay: of the other leaves.
      mu_dtype: dtype of AdamW's first moment.
      layout: what decides the roles.
      sized_as_adamw: whether the updates of matrices are as large as AdamW's, so that one rate serves both.
      lengths: with which arguments they would be, for the message. Default: with none.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, other leaves for which no rate was given.
    """
    for name, value in (("adam_b1", adam_b1), ("adam_b2", adam_b2)):
        checks.real(name, value, "[0, 1)")
    checks.real("adam_eps", adam_eps, "[0, inf)")
    checks.real("adam_weight_decay", adam_weight_decay, "[0, inf)", schedule=True)
    checks.real("adam_learning_rate", adam_learning_rate, "[0, inf)", schedule=True, optional=True)
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate

    def ready(name: str, rate: Any, decay: Any, *links: optax.GradientTransformation) -> Any:
        return optimizer(
            Method(name, rate, decay, weight_decay_mask),
            *links,
            add_decayed_weights(decay, weight_decay_mask=weight_decay_mask),
            scale_by_learning_rate(rate),
        )

    undecided = (
        f"for which the learning rate of the matrices is far too large: give adam_learning_rate, 3e-4 to 3e-3 for most "
        f"models{lengths}"
    )
    return by_role(
        Method(method, learning_rate, weight_decay, weight_decay_mask),
        ready(method, learning_rate, weight_decay, *links),
        ready("adamw", rate, adam_weight_decay, scale_by_adam(b1=adam_b1, b2=adam_b2, eps=adam_eps, mu_dtype=mu_dtype)),
        layout,
        "" if adam_learning_rate is not None or sized_as_adamw else undecided,
    )
