"""Regime adaptation: a batch kappa times as large takes a learning rate sqrt(kappa) times as large."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer

from gradkit import checks
from gradkit.batches.rule import apply_rule
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar

PAPER = Paper(
    "Train longer, generalize better: closing the generalization gap in large batch training of neural networks",
    "Hoffer, Hubara, Soudry",
    2017,
    "1705.08741",
)


def regime_adaptation(hparams: Mapping[str, Any], kappa: Scalar) -> dict[str, Any]:
    """Hyperparameters of SGD for a batch kappa times as large that is trained for as many updates.

    Equations:

        learning_rate <- sqrt(kappa) learning_rate
        epochs        <- ceil(kappa) epochs
        boundaries    <- ceil(kappa) boundaries            in epochs

    It goes with ghost batch normalization and clipping of the gradient's norm (5 in the paper's code), both unchanged.

    Args:
      hparams: name -> value, with any of `learning_rate` >= 0, `epochs` >= 0 and `boundaries`, a tuple or list of
        epochs >= 0 at which the learning rate changes. Of a schedule counted in steps scale the peak alone: its steps
        stay.
      kappa: new batch / old batch, > 0; also less than 1, where epochs stay as they are.

    Returns:
      A dictionary with these scaled, and all other entries unchanged.

    Raises:
      ValueError: kappa not positive, none of the three, or a value outside its range.

    Example:
      >>> regime_adaptation({"learning_rate": 0.1, "epochs": 200, "boundaries": (80, 120)}, 4)
      {'learning_rate': 0.2, 'epochs': 800, 'boundaries': (320, 480)}

    Reference: Hoffer, Hubara, Soudry. Train longer, generalize better: closing the generalization gap in large batch
    training of neural networks. 2017, arXiv 1705.08741.
    """
    checks.mapping(hparams=hparams)
    checks.real("kappa", kappa, "(0, inf)")
    longer: Any = jnp.ceil(kappa) if isinstance(kappa, Tracer) else math.ceil(kappa)

    def later(boundaries: Any) -> Any:
        for epoch in boundaries:
            checks.real("boundaries", epoch, "[0, inf)")
        return type(boundaries)(longer * epoch for epoch in boundaries)

    new = dict(hparams)
    if isinstance(boundaries := new.pop("boundaries", None), tuple | list):
        new["learning_rate"] = new.get("learning_rate", 0.0)
    elif boundaries is not None:
        raise ValueError(f"boundaries must be a tuple or list of epochs, got {boundaries!r}; write (30, 60)")
    changed = apply_rule(
        "regime_adaptation",
        new,
        kappa,
        {
            "learning_rate": ("[0, inf)", lambda rate: kappa**0.5 * rate),
            "epochs": ("[0, inf)", lambda epochs: longer * epochs),
        },
    )
    if boundaries is not None:
        changed["boundaries"] = later(boundaries)
    return {name: changed[name] for name in hparams}


register(
    regime_adaptation,
    form="rule",
    paper=PAPER,
    example={"hparams": {"learning_rate": 0.1, "momentum": 0.9}, "kappa": 4},
)
