"""docs/replicas.md: its tables are what the cards and the compiled exchanges say, and its loops train."""

import inspect
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from gradkit import catalogue
from gradkit.catalogue import Card
from gradkit.parallel import collective_bytes, make_mesh

PAGE = (Path(__file__).parents[1] / "docs/replicas.md").read_text()
SIDE = 256
REQUIRED = inspect.Parameter.empty


def state(card: Card) -> str:
    """The words of state, beside which a wrapper keeps those of what it goes around."""
    own, around = f"{card.words:g}", {"inner": "the method's", "compressor": "the compressor's"}
    first = next(iter(inspect.signature(card.function).parameters), "")
    return f"{own} + {around[first]}" if first in around else own


def sent_bytes(card: Card) -> float:
    """What one replica of four sends per parameter, of a matrix 256 x 256, read from the compiled program."""
    arguments = inspect.signature(card.function).parameters
    tx = card.function(**{k: v for k, v in card.example.items() if arguments[k].default is REQUIRED or k == "key"})
    like = {"w": jnp.zeros((SIDE, SIDE))}

    def exchange(grads: Any) -> Any:
        grads = jax.tree.map(lambda g: g[0], grads)
        return jax.tree.map(lambda x: x[None], tx.update(grads, tx.init(like), like)[0])

    mesh, along = make_mesh("replica=4", devices=jax.devices()[:4]), P("replica")
    program = jax.jit(jax.shard_map(exchange, mesh=mesh, in_specs=along, out_specs=along))
    grads = {"w": jax.ShapeDtypeStruct((4, SIDE, SIDE), "float32")}
    return sum(row.wire_bytes for row in collective_bytes(program.lower(grads).compile())) / SIDE**2


def strategy(card: Card) -> str:
    arguments = inspect.signature(card.function).parameters
    default = arguments["sync_every"].default if "sync_every" in arguments else 1
    length = "as given" if default is REQUIRED else "every step" if default == 1 else f"{default} steps"
    # The mean of four replicas, 6 bytes per word, once per round; without rounds it goes to neighbours.
    share = "sync_every" if default is REQUIRED else default
    each = "-" if default == 1 else f"{6 * card.sent:g} / {share}"
    exchange = "yes" if "exchange" in arguments else "no"
    row = (f"`{card.name}`", f"{card.sent:g}", length, each, state(card), exchange, card.delay or "none", card.notes)
    return f"| {' | '.join(row)} |"


def exchange(card: Card) -> str:
    sent = "as its compressor" if card.name == "error_feedback" else f"{sent_bytes(card):.2g}"
    return f"| `{card.name}` | {sent} | {state(card)} | {card.notes} |"


def late(card: Card) -> str:
    return f"| `{card.name}` | {card.form} | {state(card)} | {card.delay} | {card.notes} |"


def rows(of: str) -> list[str]:
    cards = catalogue.cards()
    if of == "late":
        return [late(card) for card in cards.values() if card.delay and card.form != "strategy"]
    return [{"strategy": strategy, "exchange": exchange}[of](card) for card in cards.values() if card.form == of]


@pytest.mark.parametrize("of", ["strategy", "exchange", "late"])
def test_a_table_is_what_the_cards_say(of: str) -> None:
    (section,) = [part for part in PAGE.split("\n## ") if part.startswith(HEADINGS[of])]
    assert re.findall(r"^\| `.*$", section, re.MULTILINE) == rows(of)


HEADINGS = {"strategy": "Strategies", "exchange": "Exchanges", "late": "Servers and stragglers"}


def test_the_loops_train() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    known: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "docs/replicas.md", "exec"), known)
        # Both begin at the loss 32, the number of inputs; a loop that does not learn stays there.
        assert float(known["value"]) < 8
    assert len(blocks) == 2
