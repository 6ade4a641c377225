"""The contract of rules for the batch size, and of diagnostics: pure functions that say what they do."""

import copy
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.catalogue import Card
from tests.contract.forms import of, ranged, refuses
from tests.contract.methods import close, same

BAD = [math.nan, 0.0, -1.0, math.inf, "high"]


def apply(card: Card, kappa: Any, hparams: Any = None) -> dict[str, Any]:
    return card.function(dict(card.example["hparams"]) if hparams is None else hparams, kappa)


@of("rule", "pure")
def test_a_rule_returns_a_new_dictionary(card: Card) -> None:
    """The one that came in is not touched, what the rule is not about comes through, and the call can be repeated."""
    hparams = {**card.example["hparams"], "name": "run 1", "layers": (1, 2)}
    before = copy.deepcopy(hparams)
    new = apply(card, card.example["kappa"], hparams)
    assert hparams == before and new is not hparams
    assert list(new) == list(before) and (new["name"], new["layers"]) == ("run 1", (1, 2))
    assert new == apply(card, card.example["kappa"], hparams)
    assert any(new[name] != before[name] for name in before)


@of("rule", "group")
def test_a_rule_is_a_change_of_the_batch(card: Card) -> None:
    """The same batch changes nothing, there and back neither, and two changes are one."""
    start = card.example["hparams"]
    # 1 - b loses what b has beyond 2^-53; there and back that is some 2^-53 of 1 - b, ten times over.
    want = {name: pytest.approx(value, rel=1e-12) for name, value in start.items()}
    assert apply(card, 1) == want and apply(card, 1.0) == want
    assert apply(card, 1 / 4, apply(card, 4)) == want
    two = apply(card, 1.5, apply(card, 2))
    assert two == {name: pytest.approx(value, rel=1e-12) for name, value in apply(card, 3).items()}


@of("rule", "traced")
def test_a_rule_can_be_traced(card: Card, x64: None) -> None:
    """With kappa, or all values, traced, the numbers are those of the Python numbers."""
    start = {name: jnp.asarray(value) for name, value in card.example["hparams"].items()}
    want = {name: jnp.asarray(value) for name, value in apply(card, 2.0).items()}
    close(want, jax.jit(lambda kappa: apply(card, kappa))(2.0), 1e-12)
    close(want, jax.jit(lambda hparams: apply(card, 2.0, hparams))(start), 1e-12)
    many = jax.vmap(lambda kappa: apply(card, kappa, start))(jnp.array([1.0, 2.0]))
    close(want, {name: value[1] for name, value in many.items()}, 1e-12)


@of("rule", "bad input")
@pytest.mark.parametrize("bad", BAD)
def test_bad_input_of_a_rule_is_refused_by_name(card: Card, bad: object) -> None:
    start, new = card.example["hparams"], apply(card, card.example["kappa"])
    with pytest.raises(ValueError, match=r"\bkappa\b must be"):
        apply(card, bad)
    for name in start:
        if new[name] != start[name] and bad != 0.0:  # a rate of zero is a rate
            with pytest.raises(ValueError, match=rf"\b{name}\b must be"):
                apply(card, 2, {**start, name: bad})
    with pytest.raises(ValueError, match=card.name):
        apply(card, 2, {})


def _asked(update: Any) -> dict[str, jax.Array]:
    """A number for everything that the update of a meter asks for."""
    names = [name for name, p in inspect.signature(update).parameters.items() if p.kind is p.KEYWORD_ONLY]
    return {name: jnp.asarray(10.0 / (1 + i)) for i, name in enumerate(names)}


@of("diagnostic", "pure")
def test_a_meter_is_a_pair_of_pure_functions(card: Card, x64: None) -> None:
    """jit = eager, a scan keeps the state's structure and dtypes, vmap is one meter per row, nothing is mutated."""
    meter = card.function(**card.example)
    state, asked = meter.init(), _asked(meter.update)
    before = jax.tree.map(np.array, state)
    want = meter.update(state, **asked)
    same(before, state)
    same(want, meter.update(state, **asked))
    same(want, card.function(**card.example).update(state, **asked))
    update = jax.jit(meter.update)
    close(want, update(state, **asked), 1e-12)

    rows = {name: jnp.stack([value, 1.5 * value, 2 * value]) for name, value in asked.items()}
    last, estimates = jax.lax.scan(lambda state, now: meter.update(state, **now)[::-1], state, rows)
    loop = state
    for i in range(3):
        estimate, loop = update(loop, **{name: value[i] for name, value in rows.items()})
        close(estimate, jax.tree.map(lambda x, i=i: x[i], estimates), 1e-12)
    close(loop, last, 1e-12)

    many = jax.vmap(lambda now: meter.update(state, **now))(rows)
    close(want, jax.tree.map(lambda x: x[0], many), 1e-12)


@of("diagnostic", "missing")
def test_a_meter_asks_for_what_it_misses(card: Card) -> None:
    meter = card.function(**card.example)
    asked = _asked(meter.update)
    for name in asked:
        others = {key: value for key, value in asked.items() if key != name}
        with pytest.raises(ValueError, match=rf"{card.name} needs .*\b{name}\b"):
            meter.update(meter.init(), **others)


@of("diagnostic", "abstract")
def test_the_state_of_a_meter_is_fresh(card: Card) -> None:
    """Donated, it takes no other state along; integers counted in int32, everything else float32."""
    meter = card.function(**card.example)
    asked = _asked(meter.update)
    want = jax.jit(meter.update)(meter.init(), **asked)
    got = jax.jit(meter.update, donate_argnums=0)(meter.init(), **asked)
    same(want, got)
    assert all(x.dtype in (jnp.float32, jnp.int32) and not x.weak_type for x in jax.tree.leaves(got[1]))


@of("diagnostic", "bad input")
@pytest.mark.parametrize("bad", [math.nan, -1.0, "high"])
def test_bad_input_of_a_diagnostic_is_refused_by_name(card: Card, bad: object) -> None:
    for name in ranged(card):
        refuses(card, name, bad)
