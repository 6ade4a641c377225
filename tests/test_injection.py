"""`optax.inject_hyperparams`, as optax has it: every factory, with the numbers in the state and nothing else."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.arguments import is_static
from gradkit.catalogue import TRANSFORMATIONS, Card, cards
from gradkit.engine.extras import samples
from gradkit.training.methods import first_argument
from tests.by_numpy import by_numpy
from tests.contract.methods import close, draw, grads_like, supplied
from tests.contract.test_as_optax import types

FACTORIES = {name: card for name, card in cards().items() if card.is_link}
TREE = {"bias": (4,), "kernel": (6, 4)}
# What these cannot do without, though it has a default.
MUST: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("adjust_lora_gradients", "lora_pro", "lora_pro_adam", "lora_rite"), ("pairs",)),
    **dict.fromkeys(("adago", "adamh", "aurora", "muonh", "namo", "namo_d", "normuonh"), ("adam_learning_rate",)),
    **dict.fromkeys(("oasis", "scale_by_local_lipschitz"), ("deterministic",)),
    **dict.fromkeys(("apollo", "apollo_mini"), ("key",)),
    "dion": ("key", "adam_learning_rate"),
    "gravity": ("alpha",),
    **dict.fromkeys(
        ("contra_muon", "dion2", "dion3", "muon", "nordion2", "normuon", "polargrad", "soap_muon", "soft_muon"),
        ("adam_learning_rate",),
    ),
    "scale_by_dion": ("key",),
    "thermodynamic_ngd": ("time",),
    "with_curvature": ("estimator",),
}
# One rounding of float64 a number, magnified by the square roots and inverse roots of matrices: as in the contract.
F64 = 1e-9


def arguments(card: Card, learning_rate: Any) -> dict[str, Any]:
    """A call of the factory: its example, and what it wraps."""
    known = inspect.signature(card.function).parameters
    given = dict(card.example)
    if "learning_rate" in known:
        given["learning_rate"] = learning_rate
    if card.form == "wrapper" and first_argument(card.function) not in given:
        inner = optax.trace(0.9) if card.wraps == "direction" else optax.sgd(0.1, momentum=0.9)
        given[first_argument(card.function)] = inner
    return given


def injected(card: Card, given: dict[str, Any], dtype: Any = None) -> optax.GradientTransformationExtraArgs:
    """Functions that are no schedules are named, as optax asks for masks; nothing else is."""
    functions = {name for name, value in given.items() if callable(value)}
    made = optax.inject_hyperparams(card.function, static_args=functions, hyperparam_dtype=dtype)
    return supplied(card, made(**given))


def params_of(card: Card) -> Any:
    return draw(0, {"kernel": (6, 4)} if card.only == "matrices" else TREE, np.float64)


@pytest.mark.parametrize("name", FACTORIES)
def test_every_factory_as_with_python_numbers(name: str, x64: None) -> None:
    """Two steps under a trace, where every number of the state is one that cannot be read."""
    card = FACTORIES[name]
    params, given = params_of(card), arguments(card, 0.01)
    tx, want = injected(card, given), supplied(card, card.function(**given))
    state: Any = by_numpy(tx.init)(params)
    known = inspect.signature(card.function).parameters
    assert not {n for n in state.hyperparams if is_static(known[n])} - {"key"}
    plain = by_numpy(want.init)(params)
    assert jax.tree.structure(state.inner_state) == jax.tree.structure(plain)
    update, reference = by_numpy(tx.update), by_numpy(want.update)
    for step in range(2):
        g = grads_like(params, step)
        got, state = update(g, state, params)
        expected, plain = reference(g, plain, params)
        close(expected, got, F64, F64)
    assert len(update.programs) == 1


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("dtype", [None, jnp.float32])
def test_defaults_alone(name: str, dtype: Any) -> None:
    """With no more than a factory must be given, in bfloat16 and as trainers call it, the state is that of the Python
    numbers, and an update keeps its types, also those of a transformation of optax inside."""
    card = FACTORIES[name]
    known = inspect.signature(card.function).parameters
    x = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params_of(card))
    given = {n: value for n, value in arguments(card, 0.01).items() if known[n].default is inspect.Parameter.empty}
    given |= {n: card.example[n] for n in MUST.get(name, ())}
    tx, plain = injected(card, given, dtype), supplied(card, card.function(**given))

    def program(x: Any) -> Any:
        state: Any = tx.init(x)
        if dtype is not None:
            floats = [v.dtype for v in state.hyperparams.values() if jnp.issubdtype(v.dtype, jnp.floating)]
            assert set(floats) <= {jnp.dtype(dtype)}
        updates, after = tx.update(x, state, x)
        assert jax.tree.structure(state.inner_state) == jax.tree.structure(jax.eval_shape(plain.init, x))
        assert types(after) == types(state)
        assert types(updates) == types(x)
        return updates

    jax.make_jaxpr(program)(x)


OTHERS = {name: card for name, card in cards().items() if card.form in ("aggregator", "strategy")}


@pytest.mark.parametrize("name", OTHERS)
def test_aggregators_and_strategies_as_with_python_numbers(name: str) -> None:
    """Over two tasks or replicas: under the same program, the bits are those of the Python numbers."""
    card = OTHERS[name]
    known = inspect.signature(card.function).parameters
    tasks = card.tasks.nearest(2)
    given = card.example_for(tasks)
    if "inner" in known:
        given["inner"] = optax.sgd(0.1, momentum=0.9)
    if "learning_rate" in known:
        given["learning_rate"] = 0.1
    x = draw(0, TREE)
    g = jax.tree.map(lambda *rows: np.stack(rows), *(grads_like(x, i) for i in range(tasks * card.tasks.batches)))
    offered = samples(g if card.form == "aggregator" else x, ("key", "losses", "grad_fn"))
    extra = {name: value for name, value in offered.items() if name in card.needs}
    each = jax.tree.map(lambda w: np.stack([w, w]), x)
    results = []
    for tx in (card.function(**given), optax.inject_hyperparams(card.function)(**given)):

        def step(g: Any, x: Any, tx: Any = tx) -> Any:
            return tx.update(g, tx.init(x), x, **extra)[0]

        of_all = step if card.form == "aggregator" else jax.vmap(step, axis_name="replica")
        results.append(by_numpy(of_all)(g, x if card.form == "aggregator" else each))
    # In float32 1 - b2 is off by 3e-8, for b2 = 0.9999 relative to 1e-4, and the root of the moment by half of it.
    rtol = 2e-4 if name == "mt_dao" else 1e-6
    close(*results, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("name", [name for name, card in FACTORIES.items() if card.form == "optimizer"])
def test_a_new_rate_is_no_new_program(name: str, x64: None) -> None:
    """Changed in the state, the rate holds from the next step on; every hyperparameter is found by its name alone."""
    card = FACTORIES[name]
    params, g = params_of(card), grads_like(params_of(card), 0)
    tx = injected(card, arguments(card, 0.01))
    state: Any = by_numpy(tx.init)(params)
    update = by_numpy(tx.update)
    _, state = update(g, state, params)  # a method may make no move in its first step
    first, _ = update(g, state, params)
    assert all(optax.tree.get(state, name) is value for name, value in state.hyperparams.items())
    faster = optax.tree.set(state, learning_rate=np.float64(0.02))
    second, _ = update(g, faster, params)
    assert len(update.programs) == 1
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    assert any(not np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def test_lengths_dtypes_and_fractions_that_are_given() -> None:
    """What a configuration file passes: none of it is traced, also in a function with arguments bound before."""
    x = {"kernel": jnp.ones((4, 4))}
    calls = (
        (gk.muon, {"ns_steps": 3, "mu_dtype": jnp.bfloat16}),
        (functools.partial(gk.muon, nesterov=False), {"ns_steps": 3}),
        (gk.galore, {"rank": 2, "update_interval": 5}),
        (gk.dion, {"rank_fraction": 0.5, "key": 0}),
        (gk.shampoo, {"max_dim": 2, "update_interval": 2, "start_preconditioning_step": 2}),
    )
    for factory, given in calls:
        tx = optax.inject_hyperparams(factory)(learning_rate=0.1, **given)
        state: Any = jax.eval_shape(tx.init, x)
        assert not state.hyperparams.keys() & given.keys()
        jax.eval_shape(tx.update, x, state, x)
    state = jax.eval_shape(optax.inject_hyperparams(gk.muon)(0.1, mu_dtype=jnp.bfloat16).init, x)
    assert {m.dtype for m in jax.tree.leaves(state.inner_state) if m.shape == (4, 4)} == {jnp.dtype(jnp.bfloat16)}


def test_a_length_that_is_traced_all_the_same() -> None:
    with pytest.raises(ValueError, match=r"ns_steps must be an integer >= 1 .* static_args='ns_steps'"):
        jax.eval_shape(lambda n: gk.muon(0.1, adam_learning_rate=0.1, ns_steps=n).init({"w": jnp.ones((2, 2))}), 3)


def test_every_form_that_gives_a_transformation_is_here() -> None:
    """A controller gives one and the rule beside it, which a loop asks for the size of the next batch; what exchanges
    have for numbers are lengths of arrays."""
    forms = {card.form for card in (*FACTORIES.values(), *OTHERS.values())}
    assert forms == set(TRANSFORMATIONS) - {"controller", "exchange"}


def test_no_default_is_a_function() -> None:
    """optax takes a function for a schedule; a class, such as a dtype, is one too."""
    for name, card in cards().items():
        if card.form in TRANSFORMATIONS:
            for argument in inspect.signature(card.function).parameters.values():
                assert argument.default is argument.empty or not callable(argument.default), (name, argument)


def rule(count: Any) -> Any:
    """Rounds of one step, then of three."""
    return jnp.where(count < 2, 1, 3)


ENDS = np.array([True, True, False, False, True, False, False, True])


@pytest.mark.parametrize("wrapper", [optax.inject_hyperparams, gk.inject_hyperparams], ids=["optax", "gradkit"])
@pytest.mark.parametrize("sync_every", [rule, ENDS], ids=["callable", "table"])
@pytest.mark.parametrize("factory", [gk.parallel.local_sgd, gk.parallel.diloco])
def test_a_rule_for_rounds_is_no_schedule(factory: Any, sync_every: Any, wrapper: Any) -> None:
    """It is asked at the start of a round for the length of that round, as without the wrapper, and not at every step;
    numbers beside it are injected."""
    first = 0.1 if factory is gk.parallel.local_sgd else gk.sgd(0.1)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3)))

    def path(tx: optax.GradientTransformationExtraArgs) -> tuple[Any, Any]:
        state, points = jax.vmap(tx.init)(x), [x]
        step = by_numpy(jax.vmap(tx.update, axis_name="replica"))
        for t in range(8):
            gradients = points[-1] * jnp.asarray([[1.0], [2.0]], x.dtype) + t
            updates, state = step(gradients, state, points[-1])
            points.append(points[-1] + updates)
        return points, state

    want, _ = path(factory(first, sync_every=sync_every))
    got, state = path(wrapper(factory)(first, sync_every=sync_every))
    assert "sync_every" not in state.hyperparams and len(state.hyperparams) > 0
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)  # rates in float32


def test_an_integer_array_without_axes_is_the_length_of_a_round() -> None:
    tx = gk.parallel.local_sgd(0.1, sync_every=jnp.int32(3))
    assert int(tx.init({"w": jnp.zeros(2)}).next_sync) == 3
    with pytest.raises(ValueError, match="sync_every must be an integer >= 1"):
        gk.parallel.local_sgd(0.1, sync_every=jnp.int32(0))
