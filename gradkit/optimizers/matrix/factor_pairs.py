"""Which leaves are the two factors of one matrix: by the last pieces of their names, or by a function."""

from collections.abc import Callable, Sequence
from typing import Any

from gradkit import checks

Pairs = tuple[str, str] | Callable[[list[str]], Sequence[tuple[str, str]]]


def check_pairs(pairs: Any) -> None:
    """Raises where `pairs` is neither a function nor two names."""
    if callable(pairs):
        return
    named = isinstance(pairs, tuple) and len(pairs) == 2 and all(isinstance(p, str) and p for p in pairs)
    if not named or pairs[0] == pairs[1]:
        raise ValueError(f"pairs must be two different names, or a function of the names of all leaves, got {pairs!r}")


def find_pairs(method: str, known: list[str], pairs: Pairs) -> list[tuple[int, int]]:
    """The positions of the two factors of every pair.

    Args:
      method: the public name, for messages.
      known: the names of all leaves.
      pairs: the last pieces of the names of the first and the second factor; or a function of the names of all leaves
        that returns pairs of them, and may return none.

    Raises:
      ValueError: a factor without its partner; names of leaves that are not there, or twice in pairs; no pair at all
        where `pairs` are names and there are leaves.

    >>> find_pairs("lora_pro", ["bias", "up/lora_a", "up/lora_b"], ("lora_a", "lora_b"))
    [(1, 2)]
    >>> find_pairs("lora_pro", ["up/lora_a"], ("lora_a", "lora_b"))
    Traceback (most recent call last):
    ValueError: lora_pro: the leaf 'up/lora_a' has no partner 'up/lora_b'
    """
    at = {name: i for i, name in enumerate(known)}
    if callable(pairs):
        found = [tuple(pair) for pair in pairs(list(known))]
    else:
        found = []
        for name in known:
            above, _, last = name.rpartition("/")
            if last in pairs:
                other = pairs[1 - pairs.index(last)]
                partner = f"{above}/{other}" if above else other
                if partner not in at:
                    raise ValueError(f"{method}: the leaf {name!r} has no partner {partner!r}")
                if last == pairs[0]:
                    found.append((name, partner))
        if not found and known:
            offer = checks.nearest(pairs[0], sorted({name.rpartition("/")[2] for name in known}))
            raise ValueError(f"{method}: pairs= says that factors are called {pairs[0]!r}, and no leaf is{offer}")
    used = [name for pair in found for name in pair]
    if unknown := [name for name in used if name not in at]:
        raise ValueError(f"{method}: pairs has leaves that are not there: {unknown}")
    if len(set(used)) != len(used):
        raise ValueError(f"{method}: pairs has a leaf more than once: {found}")
    return [(at[first], at[second]) for first, second in found]


def check_ranks(method: str, names: tuple[str, str], shapes: tuple[Any, Any], axes: tuple[int, int]) -> None:
    """Raises where two factors do not have one rank along these axes, or not the same axes in front."""
    first, second = shapes
    if len(first) < 2 or len(first) != len(second) or first[:-2] != second[:-2] or first[axes[0]] != second[axes[1]]:
        raise ValueError(f"{method}: {names[0]!r} {tuple(first)} and {names[1]!r} {tuple(second)} have no common rank")
