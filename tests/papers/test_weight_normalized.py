"""Weight normalization of ordinary weights (Salimans, Kingma, 2016)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.golden import build, fixture
from tests.papers.replay import assert_equal, descend, normal

units = lambda x: jnp.sqrt(jnp.sum(x**2, 0, keepdims=True))  # noqa: E731


@pytest.mark.parametrize("inner", [lambda: gk.sgd(0.1, momentum=0.9), lambda: gk.adam(0.1)], ids=["sgd", "adam"])
def test_equals_a_model_written_with_v_and_g(inner: Any, x64: None) -> None:
    """With the derivative that JAX takes of g v / |v|, biases beside them."""
    w, a, b = normal(0, 5, 3), normal(1, 5, 3), normal(2, 3)
    loss = lambda p: jnp.sum((p["w"] - a) ** 4) + jnp.sum((p["b"] - 1) ** 2)  # noqa: E731
    written = lambda z: loss({"w": z["g"] * z["v"] / units(z["v"]), "b": z["b"]})  # noqa: E731
    got = descend(gk.weight_normalized(inner()), {"w": w, "b": b}, jax.grad(loss), 5)
    want = descend(inner(), {"v": w, "g": units(w), "b": b}, jax.grad(written), 5)
    for p, z in zip(got, want, strict=True):
        assert_equal(p, {"w": z["g"] * z["v"] / units(z["v"]), "b": z["b"]}, rtol=1e-11)


def test_the_length_of_v_grows_by_pythagoras(x64: None) -> None:
    """Under gradient descent |v'|^2 = |v|^2 + |step|^2: the step stands at right angles to v."""
    w, rate = normal(0, 6, 4), 0.3
    tx = gk.weight_normalized(gk.sgd(rate, momentum=0.0))
    state = tx.init(w)
    for seed in (1, 2, 3):
        before = state.latent.v
        u, state = tx.update(normal(seed, 6, 4), state, w)
        w = w + u
        step = state.latent.v - before
        assert_equal(units(state.latent.v) ** 2, units(before) ** 2 + units(step) ** 2)
        assert (units(step) > 0).all()


def test_the_first_step_to_first_order(x64: None) -> None:
    """-rate times the gradient, along w as it is (dg = G . w / |w|) and across w times (g / |v|)^2 = 1 at the start;
    scaled by 4 when v is half as long as w."""
    w, G, rate = normal(0, 6, 4), normal(1, 6, 4), 1e-7
    tx = gk.weight_normalized(gk.sgd(rate, momentum=0.0))
    state = tx.init(w)
    along = w * jnp.sum(w * G, 0, keepdims=True) / units(w) ** 2
    for shorter in (1.0, 2.0):
        latent = state.latent._replace(v=state.latent.v / shorter)
        u: Any = tx.update(G, state._replace(latent=latent), w)[0]
        want = -rate * (along + shorter**2 * (G - along))
        # The next order is rate^2 |G|^2 shorter^4 / |w|, 1e-14 * 10 * 16.
        np.testing.assert_allclose(u, want, rtol=0, atol=2e-12)


def test_golden_directions_and_lengths(x64: None) -> None:
    """The reference's last v and g, beside its trajectory of weights."""
    golden = fixture.read(fixture.Path(fixture.__file__).parent / "data/large_batch/weight_norm.npz")
    x = {leaf: jnp.asarray(value) for leaf, value in fixture.params(golden).items()}
    tx = build.TRANSFORMATIONS[golden.method](golden.meta["hyper"])
    grads = [fixture.grads(golden, t) for t in range(len(golden.steps))]
    stacked = {leaf: jnp.stack([g[leaf] for g in grads]) for leaf in x}

    def step(carry: Any, g: Any) -> Any:
        x, state = carry
        u, state = tx.update(g, state, x)
        return (optax.apply_updates(x, u), state), None

    (_, state), _ = jax.jit(lambda x: jax.lax.scan(step, (x, tx.init(x)), stacked))(x)
    for leaf in x:
        assert_equal(state.latent.v[leaf], golden.extra()[f"v/{leaf}"], rtol=1e-10, atol=1e-12)
        assert_equal(state.latent.g[leaf][0], golden.extra()[f"g/{leaf}"], rtol=1e-10, atol=1e-12)


def test_what_is_left_out_and_what_is_decayed(x64: None) -> None:
    """Biases take plain steps; a decay of g alone shortens weights; of v alone it changes no weight."""
    w = {"b": normal(0, 3), "w": normal(1, 4, 3)}
    zero = jax.tree.map(jnp.zeros_like, w)
    for path, factor in (("g/.*", 0.95), ("v/w", 1.0)):
        inner = gk.adamw(0.1, weight_decay=0.5, weight_decay_mask=gk.leaves.by_path(path))
        tx = gk.weight_normalized(inner)
        u, _ = tx.update(zero, tx.init(w), w)
        assert_equal(w["w"] + u["w"], factor * w["w"])
        assert_equal(u["b"], zero["b"])
    tx = gk.weight_normalized(gk.sgd(0.1, momentum=0.0), mask=False)
    u, _ = tx.update(w, tx.init(w), w)
    assert_equal(u, jax.tree.map(lambda x: -0.1 * x, w))


def test_a_unit_of_zeros_can_start(x64: None) -> None:
    """It moves along ones first, by the mean of its gradient; its neighbour does not notice."""
    w = normal(0, 4, 2).at[:, 0].set(0.0)
    tx = gk.weight_normalized(gk.sgd(0.1, momentum=0.0))
    G = normal(1, 4, 2)
    u, _ = tx.update(G, tx.init(w), w)
    assert_equal(u[:, 0], jnp.full(4, -0.1 * G[:, 0].mean()))
    alone = tx.update(G[:, 1:], tx.init(w[:, 1:]), w[:, 1:])[0]
    assert_equal(u[:, 1:], alone)
