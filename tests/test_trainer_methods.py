"""Every optimizer through the trainers that take any: what it keeps, what it needs, and what it says where that is
missing."""

import ast
import inspect
import operator
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import gradkit as gk
from gradkit.catalogue import Card
from tests import stand_ins
from tests.stand_ins import load

CARDS = gk.catalogue.cards("optimizer")
PARAMS = {
    "dense": {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32), "bias": jax.ShapeDtypeStruct((4,), jnp.float32)}
}
# Their rate stands in the equations, where 1 is too much.
IN_THE_EQUATIONS = ("inna", "innaprop")
PAGE = (stand_ins.FOLDER.parents[1] / "docs/trainers.md").read_text()


def required(card: Card) -> list[str]:
    """The arguments without a default, but for the rate."""
    known = inspect.signature(card.function).parameters.values()
    return [p.name for p in known if p.default is p.empty and p.name != "learning_rate"]


def arguments(card: Card) -> Mapping[str, Any]:
    return {key: value for key, value in card.example.items() if key != "learning_rate"}


def params_of(card: Card) -> Any:
    return {"dense": {"kernel": PARAMS["dense"]["kernel"]}} if card.only == "matrices" else PARAMS


def test_easydel_registers_every_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own defaults, without decay; an argument that it cannot do without is named."""
    eformer = stand_ins.EasyDeL()
    names = {"OptimizerBuilder": eformer.OptimizerBuilder, "register_optimizer": eformer.register_optimizer}
    load(monkeypatch, "easydel", {"eformer.optimizers": names})
    assert eformer.builders.keys() == {f"gradkit_{name}" for name in CARDS}
    for name, card in CARDS.items():
        if missing := required(card):
            with pytest.raises(ValueError, match="|".join(missing)):
                eformer.create(f"gradkit_{name}", 0.1)
        tx, _ = eformer.create(f"gradkit_{name}", 0.1, weight_decay_mask=None, **arguments(card))
        state = jax.eval_shape(tx.init, params_of(card))
        decay = {"weight_decay": 0.0} if "weight_decay" in inspect.signature(card.function).parameters else {}
        own = card.function(optax.constant_schedule(0.1), **{**arguments(card), **decay})
        assert jax.tree.leaves(state) == jax.tree.leaves(jax.eval_shape(own.init, params_of(card)))


def test_big_vision_finds_the_names_of_every_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traversal of the state knows a few containers alone; no method has others. Its step counter stays its own."""
    monkeypatch.setattr(optax, "gradkit", None, raising=False)
    load(monkeypatch, "big_vision", {})
    for name, card in CARDS.items():
        rate = {"learning_rate": 0.1} if name in IN_THE_EQUATIONS else {}
        make = operator.attrgetter(f"gradkit.{name}")(optax)
        state = jax.eval_shape(make(**arguments(card), **rate).init, params_of(card))
        every, rest = stand_ins.make_mask_trees(state, [".*dense/(kernel|bias).*", ".*"])
        assert jax.tree.structure(every) == jax.tree.structure(state)
        # What belongs to no parameter is a counter, a key, a few numbers for all.
        assert all(x.size <= 8 for x, other in zip(*map(jax.tree.leaves, (state, rest)), strict=True) if other), name
        with pytest.raises(ValueError, match="unpack"):
            stand_ins.get_count(state)


def test_what_a_trainer_does_not_pass_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first update, before anything is computed."""
    eformer = stand_ins.EasyDeL()
    names = {"OptimizerBuilder": eformer.OptimizerBuilder, "register_optimizer": eformer.register_optimizer}
    load(monkeypatch, "easydel", {"eformer.optimizers": names})
    for name, card in CARDS.items():
        if card.needs:
            tx, _ = eformer.create(f"gradkit_{name}", 0.1, **arguments(card))
            with pytest.raises(ValueError, match=rf"\b({'|'.join(card.needs)})\b"):
                jax.eval_shape(lambda g, tx=tx: tx.update(updates=g, state=tx.init(g), params=g), params_of(card))


def test_the_page_says_what_methods_need() -> None:
    """One row per set of extra arguments, with all optimizers that need these."""
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE)
    said = {tuple(re.findall(r"\w+", needs)): re.findall(r"\w+", methods) for needs, methods in rows}
    want: dict[tuple[str, ...], list[str]] = {}
    for name, card in sorted(CARDS.items()):
        if card.needs:
            want.setdefault(card.needs, []).append(name)
    assert said == want


@pytest.mark.parametrize("path", sorted(stand_ins.FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_the_page_has_the_code_of_the_file(path: Any) -> None:
    """All that stands behind its docstring, under the trainer's heading."""
    text = path.read_text()
    (docstring, *_) = ast.parse(text).body
    code = "\n".join(text.splitlines()[docstring.end_lineno or 0 :]).strip()
    (section,) = [part for part in PAGE.split("\n## ") if f"```python\n{code}\n```" in part]
    assert section.split("\n")[0].lower().replace(" ", "_") == path.stem
    assert f"experiments/trainers/{path.name}" in section
