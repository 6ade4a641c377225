"""K-FAC (Martens, Grosse, 2015), of which the mathematics is kfac-jax's."""

import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import normal


class CountedState(NamedTuple):
    count: jax.Array
    seen: jax.Array


class Stub:
    """An object with the package's methods: it divides by 1 + the step, and notes the step at which it looked."""

    def init(self, func_args: Any, rng: Any) -> CountedState:
        return CountedState(jnp.zeros((), jnp.int32), jnp.full((), -7, jnp.int32))

    def maybe_update(self, state: CountedState, func_args: Any, rng: Any) -> CountedState:
        return state._replace(seen=state.count)

    def increment_count(self, state: CountedState) -> CountedState:
        return state._replace(count=state.count + 1)

    def as_gradient_transform(self) -> optax.GradientTransformationExtraArgs:
        def update(updates: Any, state: Any, params: Any = None, *, precond_state: Any, **extra: Any) -> Any:
            return jax.tree.map(lambda g: g / (1 + precond_state.count).astype(g.dtype), updates), state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def test_a_loop_sees_the_steps_in_order() -> None:
    kfac = gk.from_kfac(Stub())
    tx = optax.chain(kfac.transform, gk.sgd(1.0, momentum=0.0))
    x = {"w": jnp.ones(2, jnp.bfloat16)}
    state, opt_state = kfac.init((x, None), jax.random.key(0)), tx.init(x)

    @jax.jit
    def step(state: Any, opt_state: Any) -> Any:
        state = kfac.advance(state, (x, None), jax.random.key(1))
        updates, opt_state = tx.update(x, opt_state, x, precond_state=state)
        return state, opt_state, updates

    for t in range(3):
        state, opt_state, updates = step(state, opt_state)
        assert int(state.seen) == int(state.count) == t
        assert updates["w"].dtype == jnp.bfloat16
        np.testing.assert_allclose(updates["w"].astype(jnp.float32), -1 / (1 + t), rtol=2**-8)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"lacks \['init', 'maybe_update', 'increment_count', "):
        gk.from_kfac(object())
    tx = gk.from_kfac(Stub()).transform
    with pytest.raises(ValueError, match="from_kfac needs the extra argument precond_state"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    with pytest.raises(ValueError, match=r"damping must be in \[0, inf\)"):
        gk.kfac_preconditioner(lambda params, batch: 0.0, damping=-1.0)
    with pytest.raises(ValueError, match="damping must be a number"):
        gk.kfac_preconditioner(lambda params, batch: 0.0, damping=lambda step: 1.0)


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kfac_jax", None)  # how Python notes that a module cannot be imported
    with pytest.raises(ImportError, match=r"needs the package kfac-jax: pip install 'gradkit\[kfac\]'"):
        gk.kfac_preconditioner(lambda params, batch: 0.0, damping=1.0)


@pytest.fixture
def package() -> Iterator[Any]:
    """kfac-jax, with the settings that it is written for; skips where it is not there or does not run."""
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")  # of names that JAX deprecates
        package = pytest.importorskip("kfac_jax", exc_type=Exception)

        def loss(params: Any, batch: Any) -> jax.Array:
            prediction = batch[0] @ params
            package.register_squared_error_loss(prediction, batch[1], weight=0.5)
            return jnp.mean((prediction - batch[1]) ** 2) / 2

        arguments = (jnp.zeros((2, 1)), (jnp.ones((4, 2)), jnp.ones((4, 1))))
        try:
            whole = {"distributed_inverses": False, "distributed_precon_apply": False}
            preconditioner = package.OptaxPreconditioner(loss, damping=1.0, **whole)
            state = preconditioner.init(arguments, jax.random.key(0))
            preconditioner.maybe_update(state, arguments, jax.random.key(0))
        except (ValueError, TypeError, AttributeError) as error:
            # The package alone, before anything of ours: its released versions reach into JAX's private parts.
            pytest.skip(f"kfac-jax {package.__version__} does not run with jax {jax.__version__}: {error}")
        yield package


def test_a_linear_layer_takes_the_natural_gradient(package: Any) -> None:
    """One output and half a squared error: the curvature is x^T x / b, which K-FAC has exactly."""
    X, y, w = normal(0, 16, 3), normal(1, 16, 1), normal(2, 3, 1)

    def loss(params: Any, batch: Any) -> jax.Array:
        prediction = batch[0] @ params["w"]
        package.register_squared_error_loss(prediction, batch[1], weight=0.5)
        return jnp.mean(jnp.sum((prediction - batch[1]) ** 2, axis=1)) / 2

    kfac = gk.kfac_preconditioner(
        loss, damping=1e-6, curvature_ema=0.0, update_interval=1, estimation_mode="fisher_exact"
    )
    tx = optax.chain(kfac.transform, optax.scale(-1.0))
    params, batch = {"w": w}, (X, y)
    state = kfac.init((params, batch), jax.random.key(0))

    @jax.jit
    def step(state: Any) -> Any:
        state = kfac.advance(state, (params, batch), jax.random.key(1))
        updates, _ = tx.update(jax.grad(loss)(params, batch), tx.init(params), params, precond_state=state)
        return updates, state

    updates, state = step(state)
    want = np.linalg.lstsq(np.asarray(X, np.float64), np.asarray(y, np.float64), rcond=None)[0]
    # A solve of condition 3 in float32, and a damping of 1e-6.
    np.testing.assert_allclose(w + updates["w"], want, atol=1e-4)
    assert int(state.count) == 0
    assert int(step(state)[1].count) == 1
