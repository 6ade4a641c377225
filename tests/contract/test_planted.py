"""Tests of the tests: methods with one fault each, and the point of the contract that catches it.

Each is the sound method below, momentum with a bias correction, with one line changed. The sound one passes the same
points, so it is the fault that is caught.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import gradkit as gk
from gradkit.catalogue import Card, Paper
from gradkit.engine.core import bias_correction, increment, optimizer, transformation, zeros
from gradkit.engine.mismatches import StateMismatchError
from gradkit.engine.norms import global_norm
from gradkit.leaves import Method
from tests.contract import test_as_optax, test_composition, test_numbers, test_program
from tests.golden import build, test_golden
from tests.parallel import test_shardings

PAPER = Paper("None", "None", 2026)


class PlantedState(NamedTuple):
    """A counter, the momentum, and whatever a fault needs."""

    count: Any
    mu: Any
    more: Any = ()


def init(params: Any) -> PlantedState:
    return PlantedState(jnp.zeros((), jnp.int32), zeros(params))


def update(g: Any, state: PlantedState, params: Any = None, **extra: Any) -> tuple[Any, PlantedState]:
    """m = 0.9 m + 0.1 g; u = m / (1 - 0.9^t)."""
    count = increment(state.count)
    mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state.mu, g)
    return jax.tree.map(lambda m: m / bias_correction(0.9, count, m), mu), state._replace(count=count, mu=mu)


def card(init: Any = init, update: Any = update, **fields: Any) -> Card:
    """An optimizer of these two functions."""

    def planted(learning_rate: Any) -> optax.GradientTransformationExtraArgs:
        link = transformation("planted", init, update)
        return optimizer(Method("planted", learning_rate), link, gk.scale_by_learning_rate(learning_rate))

    return Card(**{"function": planted, "form": "optimizer", "paper": PAPER, "words": 1, **fields})


def uphill() -> Card:
    """The sign of the direction is wrong."""

    def wrong(g: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        u, state = update(g, state)
        return jax.tree.map(jnp.negative, u), state

    return card(update=wrong)


def kept_in_half() -> Card:
    """The momentum has the dtype of the parameters, bfloat16, instead of float32."""

    def low(params: Any) -> PlantedState:
        return PlantedState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def rounded(g: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        wide = state._replace(mu=jax.tree.map(lambda m, g: m.astype(g.dtype), state.mu, g))
        u, new = update(g, wide)
        return u, new._replace(mu=jax.tree.map(lambda m, old: m.astype(old.dtype), new.mu, state.mu))

    return card(low, rounded)


def lost_sharding() -> Card:
    """The momentum is a list, in which no leaf has the name of its parameter: it is replicated."""

    def listed(params: Any) -> PlantedState:
        return init(params)._replace(mu=jax.tree.leaves(zeros(params)))

    def from_list(g: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        u, new = update(g, state._replace(mu=jax.tree.unflatten(jax.tree.structure(g), state.mu)))
        return u, new._replace(mu=jax.tree.leaves(new.mu))

    return card(listed, from_list)


def stack_as_one_tensor() -> Card:
    """Each leaf is divided by its norm, which ten layers in one leaf then share."""

    def normalised(g: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return update(jax.tree.map(lambda x: x / (jnp.sqrt(jnp.sum(x * x)) + 1e-6), g), state)

    return card(update=normalised, collectives="norms")


def once_normalised(times: int = 1) -> Card:
    """One norm over all leaves, as "norms" allows; or one after the other."""

    def normalised(g: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        for _ in range(times):
            norm = global_norm(g) + 1e-6
            g = jax.tree.map(lambda x, norm=norm: x / norm, g)
        return update(g, state)

    return card(update=normalised, collectives="norms")


def one_exchange_more() -> Card:
    """The norm of what was divided by the norm: two exchanges, one after the other."""
    return once_normalised(2)


def elementwise_but_a_sum() -> Card:
    """A card that says "none", of a method with a norm."""
    return Card(**{**vars(once_normalised()), "collectives": "none"})


def recompiles() -> Card:
    """A number of the state comes back as Python's, with a weak type: the second step is another program."""

    def strong(params: Any) -> PlantedState:
        return init(params)._replace(more=jnp.ones((), jnp.float32))

    def weak(g: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        u, state = update(g, state)
        return u, state._replace(more=jnp.asarray(1.0))

    return card(strong, weak)


def counts_in_python() -> Card:
    """A counter outside of the state, which a compiled program reads once and for all."""
    calls = []

    def hidden(g: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        calls.append(1)
        u, state = update(g, state)
        return jax.tree.map(lambda x: x / len(calls), u), state

    return card(update=hidden)


def sees_the_trace() -> Card:
    """Another direction under `jit`."""

    def two_faced(g: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        u, state = update(g, state)
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(g))
        return jax.tree.map(lambda x: 2 * x, u) if traced else u, state

    return card(update=two_faced)


def anchor_is_no_copy() -> Card:
    """The state holds the very arrays that the step is given as parameters, and donates both."""

    def anchored(params: Any) -> PlantedState:
        return init(params)._replace(more=params)

    return card(anchored, words=2)


def divides_by_zero() -> Card:
    """Gradients of zeros have a norm of zero."""

    def normalised(g: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        norm = global_norm(g)
        return update(jax.tree.map(lambda x: x / norm, g), state)

    return card(update=normalised, collectives="norms")


def keeps_a_word_more() -> Card:
    """The card says one word of state per parameter, and there are two."""
    return card(lambda params: init(params)._replace(more=zeros(params)))


def swallows_extra_arguments() -> Card:
    """A wrapper that hands nothing on."""

    def planted(inner: Any) -> optax.GradientTransformationExtraArgs:
        def bare(g: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            return inner.update(g, state, params)

        return optax.GradientTransformationExtraArgs(inner.init, bare)

    return Card(planted, "wrapper", PAPER)


Point = Callable[[Card], None]


def keeps_names_of_nodes() -> Card:
    """A leaf in a registered node has another name than a bare one."""

    def wrong(params: Any) -> PlantedState:
        paths = jax.tree_util.tree_flatten_with_path(params)[0]
        return init(params)._replace(more={jax.tree_util.keystr(path): jnp.zeros(()) for path, _ in paths})

    return card(wrong)


def counts_what_is_masked() -> Card:
    """A leaf that belongs to another group has state."""

    def wrong(params: Any) -> PlantedState:
        nodes = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
        return init(params)._replace(more=jnp.zeros(len(nodes)))

    return card(wrong)


def starts_replicated() -> Card:
    """The momentum of a sharded parameter is sharded after the first update alone."""
    return card(lambda params: init(params)._replace(mu=jax.tree.map(lambda x: jnp.zeros(x.shape), params)))


def asks_the_shapes_again() -> Card:
    """A number per layer of a stack, of which `update` asks the shapes anew, and not the decision that `init` has kept:
    what the names on boxes said is lost."""

    def layers(tree: Any) -> dict[str, Any]:
        layout, shapes = gk.leaves.infer_layout(tree), [x.shape for x in jax.tree.leaves(tree)]
        rows = zip(gk.leaves.names(tree), shapes, strict=True)
        return {name: [jnp.zeros(())] * math.prod(shape[a] for a in layout(name, shape).stack) for name, shape in rows}

    def wrong(g: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        u, state = update(g, state)
        return u, state._replace(more=layers(g))

    by_names = "a list per name is no state of parameters"
    return card(lambda params: init(params)._replace(more=layers(params)), wrong, opt_outs={"map_params": by_names})


FAULTS: list[tuple[Callable[[], Card], Point, Any]] = [
    (uphill, test_numbers.test_descends_on_a_quadratic_and_on_digits, "quadratic"),
    (kept_in_half, test_numbers.test_bfloat16_parameters_are_computed_in_float32, "float32"),
    (lost_sharding, test_shardings.test_a_method_on_a_mesh, "is_equivalent_to"),
    (stack_as_one_tensor, test_composition.test_stacked_layers_equal_separate_ones, "Not equal to tolerance"),
    (one_exchange_more, test_shardings.test_a_method_on_a_mesh, "all-reduce"),
    (elementwise_but_a_sum, test_shardings.test_a_method_on_a_mesh, "all-reduce"),
    (recompiles, test_program.test_a_step_compiles_once, "True"),
    (counts_in_python, test_program.test_jit_equals_eager, "Not equal to tolerance"),
    (sees_the_trace, test_program.test_jit_equals_eager, "Not equal to tolerance"),
    (anchor_is_no_copy, test_shardings.test_a_method_on_a_mesh, "donate"),
    (divides_by_zero, test_numbers.test_zero_gradients_and_zero_parameters_stay_finite, "isfinite"),
    (keeps_a_word_more, test_program.test_state_words_are_those_of_the_card, "0.01"),
    (keeps_names_of_nodes, test_as_optax.test_a_node_with_one_array_is_a_leaf, "flat index"),
    (counts_what_is_masked, test_as_optax.test_leaves_that_are_none_or_masked, "At index 3 diff"),
    (starts_replicated, test_as_optax.test_shardings_are_part_of_the_type, "PyTreeDef"),
    (asks_the_shapes_again, test_as_optax.test_what_init_keeps_of_names_of_axes, "call init again"),
    (swallows_extra_arguments, test_composition.test_extra_arguments_pass_through, "value"),
]


@pytest.mark.parametrize(("fault", "point", "words"), FAULTS, ids=[fault.__name__ for fault, *_ in FAULTS])
def test_a_fault_is_caught_by_its_point(fault: Callable[[], Card], point: Point, words: str) -> None:
    # Beside the assertions of the points: what JAX says of a buffer that is gone, and transformations of a state.
    said = (AssertionError, StateMismatchError, jax.errors.JaxRuntimeError)
    with pytest.raises(said, match=words):
        point(fault())


@pytest.mark.parametrize("point", {point: None for _, point, _ in FAULTS}, ids=lambda point: point.__name__[5:])
def test_the_sound_method_passes(point: Point) -> None:
    point(card())
    if point is test_shardings.test_a_method_on_a_mesh:
        point(once_normalised())


@pytest.mark.parametrize("forgotten", [False, True], ids=["sound", "forgotten"])
def test_a_forgotten_bias_correction_is_caught_by_a_trajectory(forgotten: bool, monkeypatch: Any) -> None:
    """No point of the contract knows what a method should compute: its trajectories and the test of its paper do."""
    golden = test_golden.FILES["adaptive/adam"]
    b1, b2, eps = (golden.meta["hyper"][name] for name in ("b1", "b2", "eps"))

    def adam(g: Any, state: PlantedState, params: Any = None, **extra: Any) -> tuple[Any, PlantedState]:
        count = increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, g)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.more, g)

        def one(m: jax.Array, v: jax.Array) -> jax.Array:
            if not forgotten:
                m, v = m / bias_correction(b1, count, m), v / bias_correction(b2, count, v)
            return m / (jnp.sqrt(v) + eps)

        return jax.tree.map(one, mu, nu), PlantedState(count, mu, nu)

    made = card(lambda params: init(params)._replace(more=zeros(params)), adam)
    monkeypatch.setitem(build.TRANSFORMATIONS, "adam", lambda hyper: made.function(hyper["learning_rate"]))
    with jax.enable_x64(True):
        if not forgotten:
            test_golden.test_transformation(golden, x64=None, record_property=lambda name, value: None)
            return
        with pytest.raises(AssertionError, match=r"< 1e-10"):
            test_golden.test_transformation(golden, x64=None, record_property=lambda name, value: None)
