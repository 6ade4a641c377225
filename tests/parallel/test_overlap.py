"""Exchanges that a step can hide: in the compiled program of a step, the collective and the backward pass do not wait
for each other. What the program says, walked from operand to operand."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.parallel import diloco, error_feedback, int8_compressor, make_mesh, mean_compressor, one_step_delay
from gradkit.parallel import streaming_diloco as streaming

W = 4
_LINE = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_COLLECTIVE = re.compile(r" (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")


class Waits(NamedTuple):
    """Whether a collective needs anything of a backward pass, and a backward pass anything of a collective."""

    collective_for_backward: bool
    backward_for_collective: bool


def waits(text: str) -> Waits:
    """Of the entry of a compiled program. An instruction with computations of its own, such as a fusion or a
    conditional, is a collective or of the backward pass where one within it is.

    Raises:
      AssertionError: there is no collective, or nothing of a backward pass.
    """
    computations: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if head := re.match(r"^(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = head[2]
            computations[current], entry = [], current if head[1] else entry
        elif current and _LINE.match(line):
            computations[current].append(line)

    def within(line: str, sign: Callable[[str], Any]) -> bool:
        names = [name.strip(" %") for one, several in _CALLED.findall(line) for name in (one or several).split(",")]
        return bool(sign(line)) or any(within(x, sign) for name in names for x in computations.get(name, ()))

    lines = {found["name"]: found["rest"] for line in computations[entry] if (found := _LINE.match(line))}
    # What stands behind the operands, such as names in metadata, names no operand.
    operands = {
        name: set(re.findall(r"%([\w.\-]+)", rest.partition(", metadata=")[0])) & lines.keys() - {name}
        for name, rest in lines.items()
    }
    needs: dict[str, set[str]] = {}
    for name in lines:  # in the order of the text, operands stand before
        needs[name] = operands[name].union(*(needs[x] for x in operands[name]))
    collectives = {name for name, rest in lines.items() if within(rest, _COLLECTIVE.search)}
    # Of a product of matrices that jax.grad has transposed.
    backward = {name for name, rest in lines.items() if within(rest, lambda x: "transpose(jvp" in x and "dot" in x)}
    assert collectives and backward, text
    return Waits(
        any(needs[name] & backward for name in collectives), any(needs[name] & collectives for name in backward)
    )


def loss(params: Any, batch: jax.Array) -> jax.Array:
    hidden = jnp.tanh(batch @ params["first"])
    return jnp.mean(jnp.square(hidden @ params["second"]))


def program(tx: Any, at: Callable[[Any], Any] = lambda params: params, **told: Any) -> str:
    """The text of a step of a replica of four: gradients, update and new parameters."""
    params = {"first": jnp.zeros((8, 16)), "second": jnp.zeros((16, 4))}

    def step(*trees: Any) -> Any:
        params, state, batch = jax.tree.map(lambda x: x[0], trees)
        grads = jax.grad(loss)(at(params), batch)
        updates, state = tx.update(grads, state, params, **told)
        return jax.tree.map(lambda x: x[None], (optax.apply_updates(params, updates), state))

    def ahead(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((W, *x.shape), x.dtype), tree)

    mesh, along = make_mesh(f"replica={W}", devices=jax.devices()[:W]), P("replica")
    run = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=along, out_specs=along))
    shapes = ahead((params, jax.eval_shape(tx.init, params), jnp.zeros((5, 8))))
    text = run.lower(*shapes).compile().as_text()
    assert text is not None
    return text


EIGHT = {"exchange": error_feedback(int8_compressor())}
LATE = {"sync_every": 4, "fragments": 2, "delay": 1}


@pytest.mark.parametrize("sync", [0, None])
@pytest.mark.parametrize("exchange", [{}, EIGHT], ids=["mean", "int8"])
def test_a_fragment_travels_beside_the_backward_pass(sync: int | None, exchange: Any) -> None:
    """With a delay; in the program of the step that sends it, and in the one program of all steps, where the collective
    is in a branch that waits for nothing but parameters and state."""
    tx = streaming(gk.adam(0.1), **LATE, **exchange)
    assert waits(program(tx, sync=sync)) == Waits(False, False)


def test_a_gradient_of_one_step_ago_travels_beside_the_backward_pass() -> None:
    tx = one_step_delay(optax.chain(error_feedback(int8_compressor()), gk.adam(0.1)))
    assert waits(program(tx)) == Waits(False, False)


BROKEN = {
    "no delay": lambda: program(streaming(gk.adam(0.1), sync_every=4, fragments=2), sync=0),
    "a whole round at its end": lambda: program(diloco(gk.adam(0.1), sync_every=4), sync=True),
    "this step's gradient": lambda: program(optax.chain(mean_compressor(), gk.adam(0.1))),
    "delayed behind the exchange": lambda: program(optax.chain(mean_compressor(), one_step_delay(gk.adam(0.1)))),
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_exchange_of_what_this_step_computes_waits_for_it(how: str) -> None:
    """The walk sees it: these need the backward pass first."""
    assert waits(BROKEN[how]()).collective_for_backward


def test_gradients_at_what_was_just_exchanged_wait_for_it() -> None:
    """The walk sees this too: the same strategy, with gradients at the mean of the replicas."""

    def mean(params: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.pcast(jax.lax.pmean(x, "replica"), "replica", to="varying"), params)

    text = program(streaming(gk.adam(0.1), **LATE), mean, sync=False)
    assert waits(text).backward_for_collective
