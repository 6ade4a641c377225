"""What the contracts of the forms that are no chain share: their cards, and which arguments have a range."""

import inspect
from typing import Any

import pytest

from gradkit.catalogue import Card, cards
from tests.contract.table import point


def of(form: str, check: str) -> Any:
    """Makes a test a point of the contract of a form: it runs for every method of it that has not opted out."""
    return point(form, check, cards(form))


def ranged(card: Card) -> list[str]:
    """The hyperparameters of a method that NaN is no value of: all but switches and those that default to None.

    What the contract hands over itself is left out: the loss of a source, the values a rule starts from.
    """
    found = []
    for name, parameter in inspect.signature(card.function).parameters.items():
        default = card.example.get(name, parameter.default)
        switch = default is None or isinstance(parameter.default, bool)
        if name not in ("loss_fn", "hparams") and not switch:
            found.append(name)
    return found


def refuses(card: Card, name: str, bad: Any, *args: Any) -> None:
    """A hyperparameter outside its range is an error at construction that names it."""
    with pytest.raises(ValueError, match=rf"\b{name}\b must be"):
        card.function(*args, **{**card.example, name: bad})
