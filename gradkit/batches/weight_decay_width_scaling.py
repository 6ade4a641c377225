"""How the learning rate and weight decay of AdamW change with the width of a model."""

from collections.abc import Mapping
from typing import Any

import jax

from gradkit import checks
from gradkit.batches.rule import apply_rule
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar

KINDS = ("matrix", "vector")


def weight_decay_width_scaling(hparams: Mapping[str, Any], kappa: Scalar, *, labels: Any = None) -> dict[str, Any]:
    """Hyperparameters of AdamW for a model kappa times as wide.

    Equations, with kappa = width / base width:

        learning_rate <- learning_rate / kappa            matrix-like leaves: both sides grow with the width
        weight_decay  <- weight_decay sqrt(kappa)
        learning_rate <- learning_rate                    vector-like leaves: gains, biases, embeddings
        weight_decay  <- 0

    In the steady state the largest singular value of a matrix is proportional to
    sqrt(learning_rate / weight_decay) width^(3/4): with a learning rate proportional to 1 / width it does not depend on
    the width if and only if the weight decay is proportional to sqrt(width).

    Args:
      hparams: name -> value, with any of `learning_rate` >= 0 and `weight_decay` >= 0, numbers or traced values, as
        tuned at the base width.
      kappa: width / base width, > 0.
      labels: a tree of "matrix" and "vector", one per leaf of the parameters (or for a part of the tree). Default None:
        all matrix-like.

    Returns:
      A dictionary with both scaled, and all other entries unchanged. With `labels` both are trees of one value per
      label.

    Raises:
      ValueError: kappa not positive, none of the two, a value outside its range, an unknown label.

    Example:
      >>> tuned = {"learning_rate": 0.5, "weight_decay": 0.1}
      >>> weight_decay_width_scaling(tuned, 4)
      {'learning_rate': 0.125, 'weight_decay': 0.2}
      >>> weight_decay_width_scaling(tuned, 4, labels={"kernel": "matrix", "bias": "vector"})["weight_decay"]
      {'bias': 0.0, 'kernel': 0.2}

    Reference: Fan et al. Robust Layerwise Scaling Rules by Proper Weight Decay Tuning. 2025, arXiv 2510.15262. The
    weight decay is multiplied by the learning rate in the step, as in AdamW. Embeddings are vector-like, whatever their
    rank.
    """
    checks.mapping(hparams=hparams)
    new = apply_rule(
        "weight_decay_width_scaling",
        hparams,
        kappa,
        {
            "learning_rate": ("[0, inf)", lambda rate: rate / kappa),
            "weight_decay": ("[0, inf)", lambda decay: decay * kappa**0.5),
        },
    )
    if labels is None:
        return new
    for label in jax.tree.leaves(labels):
        checks.choice("labels", label, KINDS)
    of_vectors = {"learning_rate": hparams.get("learning_rate"), "weight_decay": 0.0}

    def per_leaf(name: str) -> Any:
        return jax.tree.map(lambda label: new[name] if label == "matrix" else of_vectors[name], labels)

    return {name: per_leaf(name) if name in of_vectors else value for name, value in new.items()}


register(
    weight_decay_width_scaling,
    form="rule",
    paper=Paper("Robust Layerwise Scaling Rules by Proper Weight Decay Tuning", "Fan et al.", 2025, "2510.15262"),
    example={"hparams": {"learning_rate": 1e-3, "weight_decay": 0.1}, "kappa": 4},
)
