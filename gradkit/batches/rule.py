"""What rules for the batch size share: which hyperparameters they are about, and the factor of the batch."""

from collections.abc import Callable, Mapping
from typing import Any

from gradkit import checks

Change = Callable[[Any], Any]


def apply_rule(
    rule: str, hparams: Mapping[str, Any], kappa: Any, changes: Mapping[str, tuple[str, Change]]
) -> dict[str, Any]:
    """Hyperparameters of the batch that is kappa times as large.

    Args:
      rule: the public name, for messages.
      hparams: name -> value.
      kappa: new batch / old batch.
      changes: name -> (interval a value must be in, what the rule makes of the value).

    Raises:
      ValueError: kappa not positive, a value outside its interval, or nothing the rule is about.
    """
    checks.real("kappa", kappa, "(0, inf)")
    if not any(name in hparams for name in changes):
        raise ValueError(f"{rule} is about {', '.join(changes)}, and none of them is in {sorted(hparams)}")
    new = dict(hparams)
    for name, (interval, change) in changes.items():
        if name in hparams:
            checks.real(name, hparams[name], interval)
            new[name] = change(hparams[name])
    return new
