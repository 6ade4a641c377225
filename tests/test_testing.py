"""The contract for transformations of one's own: it lets right ones pass, and names what is wrong with others."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.testing import POINTS, check_transformation


@pytest.mark.parametrize(
    "make",
    [
        lambda: gk.adamw(0.01, weight_decay=0.1),
        lambda: gk.muon(0.01, adam_learning_rate=0.01),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)),
    ],
    ids=["adamw", "muon", "of optax"],
)
def test_what_is_right_passes_every_point(make: Callable[[], Any]) -> None:
    with jax.numpy_dtype_promotion("standard"):  # optax's own need it
        report = check_transformation(make(), descends=True)
    assert set(report.passed) == set(POINTS) and not report.skipped


def test_extra_arguments_of_cards_are_known_and_others_are_given() -> None:
    assert "descends" in check_transformation(gk.momo(0.1), descends=True).passed

    def update(updates: Any, state: Any, params: Any = None, *, strength: Any, **_: Any) -> Any:
        return jax.tree.map(lambda u: strength * u, updates), state

    own = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    with pytest.raises(AssertionError, match="strength"):
        check_transformation(own)
    assert not check_transformation(own, extra_args={"strength": 0.5}).failed


def counting(init: Any, update: Callable[[Any, Any], tuple[Any, Any]]) -> optax.GradientTransformation:
    return optax.GradientTransformation(lambda params: init, lambda g, state, params=None: update(g, state))


def by_calls() -> optax.GradientTransformation:
    """A number outside of the state."""
    calls: list[int] = []

    def update(updates: Any, state: Any) -> tuple[Any, Any]:
        calls.append(1)
        return jax.tree.map(lambda g: g * len(calls), updates), state

    return counting(optax.EmptyState(), update)


def in_place() -> optax.GradientTransformation:
    """A state of NumPy, which the update changes where it is."""
    kept = np.zeros((), np.float32)

    def update(updates: Any, state: Any) -> tuple[Any, Any]:
        if isinstance(state, np.ndarray):
            state += np.float32(1.0)
        return updates, state

    return optax.GradientTransformation(lambda params: kept, lambda g, state, params=None: update(g, state))


def scaled(by: Callable[[Any], Any]) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(by, updates))


BROKEN = {
    "init makes arrays": lambda: counting(3, lambda g, state: (g, state)),
    "updates are like gradients": lambda: scaled(lambda g: g.astype(jnp.float16)),
    "a state keeps its types": lambda: counting(jnp.zeros((), jnp.int32), lambda g, state: (g, state + 0.5)),
    "bfloat16 in, bfloat16 out": lambda: scaled(lambda g: g * np.float32(0.5)),
    "the same again": by_calls,
    "inputs are not changed": in_place,
    "zeros give finite updates": lambda: scaled(lambda g: g / jnp.linalg.norm(g)),
    "descends": lambda: gk.scale_by_adam(),
    "vmap = one by one": lambda: scaled(lambda g: jax.pure_callback(np.asarray, g, g)),  # says nothing of vmap
    "jit = eager": lambda: scaled(lambda g: g * (2.0 if isinstance(g, jax.core.Tracer) else 1.0)),
    "scan = loop": by_calls,
}


@pytest.mark.parametrize("point", BROKEN)
def test_what_is_wrong_is_named(point: str) -> None:
    with pytest.raises(AssertionError, match=rf"FAILED +{point}:"):
        check_transformation(BROKEN[point](), descends=point == "descends", steps=2)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="skip must be one of"):
        check_transformation(optax.sgd(0.1), skip=["scan"])
    with pytest.raises(ValueError, match="floating-point"):
        check_transformation(optax.sgd(0.1), jnp.arange(3))
    assert "descends" in check_transformation(optax.sgd(0.1), skip=["jit = eager"]).skipped
