"""How the contract builds a method from its card, and the trees it runs on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from gradkit.catalogue import Card, cards
from gradkit.engine.extras import samples
from gradkit.training.methods import build
from gradkit.training.one_step import one_step
from tests.by_numpy import Traced, by_numpy
from tests.contract.table import point

OPTIMIZER_MODULES = {card.function.__module__ for card in cards("optimizer").values()}
# A primitive beside an optimizer is that optimizer without its rate: the program that the optimizer is checked as.
METHODS = {
    name: card
    for name, card in cards().items()
    if card.is_link
    and not card.same_as
    and not (card.form == "primitive" and card.function.__module__ in OPTIMIZER_MODULES)
}


def methods(check: str, to: Callable[[Card], bool] = lambda card: True, otherwise: str = "") -> Any:
    """Makes a test a point of the contract: it runs for every method that has not opted out.

    What a method is told when it is built, and its words of state, are checked of every public function, also of
    primitives that are checked as an optimizer otherwise.

    Args:
      check: the name of the point, as opt-outs know it.
      to: whether the point says anything of a method.
      otherwise: why it says nothing of the others; the table at the end of the run prints it.
    """
    everywhere = check in ("bad input", "mismatch", "words")
    known = {name: c for name, c in (cards() if everywhere else METHODS).items() if c.is_link}
    return point("chain", check, known, {n: otherwise for n, card in known.items() if not to(card)})


def methods_together(check: str, count: int) -> Any:
    """Makes a test a point of the contract that takes so many methods at once, as `cards`."""
    return point("chain", check, METHODS, together=count)


def in_float64(test: Callable[..., None]) -> Callable[..., None]:
    """float64 is on while the test runs, however it is called."""

    @functools.wraps(test)
    def wide(*args: Any, **kwargs: Any) -> None:
        with jax.enable_x64(True):
            test(*args, **kwargs)

    return wide


def make(card: Card, learning_rate: Any = 0.01, **changes: Any) -> optax.GradientTransformationExtraArgs:
    """A complete optimizer around (or of) a method; what its `update` needs is supplied where a test does not."""
    return supplied(card, build(card, learning_rate, **changes))


# What a method keeps of an argument that it can do without: every loop has it.
READS = {"accumulate_weighted": ("value",)}


def told(card: Card) -> tuple[str, ...]:
    """The extra arguments that the state of a method depends on."""
    return (*card.needs, *READS.get(card.name, ()))


def supplied(card: Card, tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A transformation whose extra arguments of the card's `needs` are there."""
    inner = optax.with_extra_args_support(tx)
    if not told(card):
        return inner

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return inner.update(updates, state, params, **{**samples(updates, told(card)), **extra})

    return optax.GradientTransformationExtraArgs(inner.init, update)


def linear(params: Any, grads: Any, index: Any = None) -> jax.Array:
    """A loss that has these gradients everywhere, to the last bit."""
    del index
    products = [jnp.sum(g * p).astype(float) for g, p in zip(*map(jax.tree.leaves, (grads, params)), strict=True)]
    return sum(products, jnp.zeros((), float))


def step(tx: optax.GradientTransformation, params: Any, state: Any, grads: Any, **fixed: Any) -> tuple[Any, Any]:
    """(params, state) after the step that every loop of the package takes, with these gradients; `fixed` are extra
    arguments that take precedence over those of the loop."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return optax.with_extra_args_support(tx).update(updates, state, params, **{**extra, **fixed})

    made = one_step(
        linear, optax.GradientTransformationExtraArgs(tx.init, update), params, state, grads, needs=(), examples=False
    )
    return made.params, made.opt_state


SHAPES = {"bias": (4,), "kernel": (6, 4), "conv": (2, 2, 3, 4), "scale": ()}
# What most tests take: the time of a test is that of its compilations, and an operation on arrays of the same shapes is
# compiled once for all methods.
SMALL = {"bias": (4,), "kernel": (6, 4)}


def draw(seed: int, shapes: Any = None, dtype: Any = np.float32) -> Any:
    """A tree of standard normal numbers."""
    shapes = SHAPES if shapes is None else shapes
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple) and not hasattr(x, "_fields"))
    rng = np.random.default_rng(seed)
    # bfloat16 numbers, so that a tree in another dtype holds the same ones.
    numbers = [jax.device_put(rng.standard_normal(s).astype(jnp.bfloat16).astype(dtype)) for s in leaves]
    return structure.unflatten(numbers)


def run(
    tx: optax.GradientTransformation, params: Any, steps: int = 3, how: Callable[[Any], Any] = by_numpy, **extra: Any
) -> tuple[Any, Any]:
    """Replays fixed gradients; returns the last parameters and state. `how` makes programs of `init` and `update`."""
    init, update = (f if isinstance(f, Traced) else how(f) for f in (tx.init, tx.update))
    state = init(params)
    for step in range(steps):
        updates, state = update(grads_like(params, step), state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


def as_it_is(update: Any) -> Any:
    """For a run that is traced as a whole, and for tests of what operations do one by one."""
    return update


def grads_like(params: Any, step: int) -> Any:
    """Gradients of a step: leaf i of any tree of the same leaves gets the same numbers."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng([7, step])
    drawn = [jax.device_put(rng.standard_normal(x.shape).astype(jnp.bfloat16).astype(x.dtype)) for x in leaves]
    return structure.unflatten(drawn)


def close(a: Any, b: Any, rtol: float, atol: float = 0.0) -> None:
    """Leaf by leaf equality to a tolerance."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = (np.asarray(v, np.complex128 if jnp.iscomplexobj(v) else np.float64) for v in (x, y))
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def same(a: Any, b: Any) -> None:
    """Bit for bit equality."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            assert x.dtype == y.dtype
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert jnp.result_type(x) == jnp.result_type(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


class Pair(NamedTuple):
    w: Any
    b: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Box:
    w: Any
    b: Any


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(6, 4, rngs=rngs)


def other_trees() -> dict[str, Any]:
    """The same two leaves, b (4,) and w (6, 4), in containers of every kind, in this order of leaves."""
    b, w = draw(3, {"b": (4,), "w": (6, 4)}).values()
    model = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    state = nnx.as_pure(model)
    variables = jax.tree.unflatten(jax.tree.structure(model), [b, w])
    return {
        "dict": {"b": b, "w": w},
        "tuple": (b, w),
        "list in dict": {"x": [b, {"y": w}]},
        "NamedTuple": Pair(b, w),
        "dataclass": Box(b, w),
        "None leaves": {"a": None, "b": b, "c": {"d": None, "w": w}},
        "MaskedNode": {"a": optax.MaskedNode(), "b": b, "w": w},
        "nnx.State of arrays": jax.tree.unflatten(jax.tree.structure(state), [b, w]),
        "nnx.State of Variables": variables,
    }


def combined_trees() -> dict[str, Any]:
    """The trees of `other_trees`, several kinds of container in one: a program is traced for each."""
    trees = other_trees()
    b, w = trees["tuple"]
    return {
        "dict": trees["dict"],
        "list in tuple": (b, [{"y": w}]),
        "dataclass in NamedTuple": Pair(b, Box(w, None)),
        "None leaves and MaskedNode": {"a": None, "b": b, "c": {"d": optax.MaskedNode(), "e": None, "w": w}},
        "nnx.State of arrays": trees["nnx.State of arrays"],
        "nnx.State of Variables": trees["nnx.State of Variables"],
    }
