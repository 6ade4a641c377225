"""Hyperball optimization (Wen et al., 2026): weights that keep their norm, and what goes wrong with weights of zero."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.leaves import by_path, layout
from tests.by_numpy import by_numpy
from tests.papers.replay import assert_equal, normal, updates


def test_the_norm_is_that_of_the_start_for_a_thousand_steps() -> None:
    """In float32, of both blocks; roundings do not add up, as every step ends on the sphere: six of them, at most."""
    tx = gk.hyperball(gk.scale_by_adam(), 0.02)
    start = {"kernel": np.asarray(normal(0, 6, 4)).astype(np.float32), "bias": np.zeros(4, np.float32)}
    noise = np.random.default_rng(1).standard_normal((1000, 6, 4)).astype(np.float32)

    def step(carry: Any, g: Any) -> Any:
        x, state = carry
        u, state = tx.update({"kernel": g + x["kernel"], "bias": g[0]}, state, x)
        x = optax.apply_updates(x, u)
        return (x, state), jnp.linalg.norm(x["kernel"])

    (x, _), norms = jax.jit(lambda x, s: jax.lax.scan(step, (x, s), noise))(start, tx.init(start))
    np.testing.assert_allclose(norms, np.linalg.norm(start["kernel"]), rtol=1e-6)
    assert np.linalg.norm(x["kernel"] - start["kernel"]) > 1 and np.all(x["bias"] != 0)


def test_a_step_at_right_angles_turns_by_the_arc_tangent(x64: None) -> None:
    w, u = normal(0, 3, 4), normal(1, 3, 4)
    u = u - jnp.sum(u * w) / jnp.sum(w * w) * w
    for scale in (1.0, 1e6, 1e-6):  # of the direction, which changes nothing
        tx = gk.hyperball(optax.identity(), 0.3)
        after = w + updates(tx, w, [scale * u])[0]
        cosine = jnp.sum(after * w) / jnp.linalg.norm(after) / jnp.linalg.norm(w)
        assert_equal(jnp.arccos(cosine), math.atan(0.3), rtol=1e-9)
        assert_equal(jnp.linalg.norm(after), jnp.linalg.norm(w))


def test_it_is_a_relative_step_and_a_projection(x64: None) -> None:
    """`relative_update`, the learning rate, and `normalize_and_project` onto the norm of the start."""
    x = {"a": normal(0, 3, 4), "b": normal(1, 5, 2)}
    gradients = [{"a": normal(10 + i, 3, 4), "b": normal(20 + i, 5, 2)} for i in range(4)]
    chain = optax.chain(
        gk.scale_by_adam(), gk.relative_update(), gk.scale_by_learning_rate(0.1), gk.normalize_and_project()
    )
    assert_equal(updates(gk.hyperball(gk.scale_by_adam(), 0.1), x, gradients), updates(chain, x, gradients), rtol=1e-9)


def test_the_norm_of_the_sum_is_that_of_three_sums(x64: None) -> None:
    """|W - s u|^2 from |W|^2, |u|^2 and <W, u>: against the direct norm, also where most of W cancels."""
    w = normal(0, 4, 5)
    for angle in (0.0, 0.1, 1.0):
        u = w + angle * normal(1, 4, 5)
        got = w + updates(gk.hyperball(optax.identity(), 0.9), w, [u])[0]
        y = w - 0.9 * jnp.linalg.norm(w) * u / jnp.linalg.norm(u)
        # Of W a tenth is left: two digits of sixteen are lost in its square.
        assert_equal(got, y * jnp.linalg.norm(w) / jnp.linalg.norm(y), rtol=1e-12)


def test_every_block_has_a_radius_of_its_own(x64: None) -> None:
    """Layers of a stack, experts in stacked layers, fused weights, units: not the norm over all but the first axis."""
    x = {"ScanBlock_0": {"VmapExpert_0": {"kernel": normal(0, 2, 3, 4, 5)}}}
    g = jax.tree.map(lambda a: jnp.roll(a, 1, axis=-1), x)
    after = optax.apply_updates(x, updates(gk.hyperball(optax.identity(), 0.5), x, [g])[0])
    (a,), (b,) = jax.tree.leaves(x), jax.tree.leaves(after)
    assert_equal(jnp.linalg.norm(b, axis=(2, 3)), jnp.linalg.norm(a, axis=(2, 3)))
    fused = layout((by_path("qkv"), {"splits": (4, 2)}))
    x = {"qkv": normal(1, 5, 6)}
    whole = gk.hyperball(optax.identity(), 0.5, layout=fused)
    after = x["qkv"] + updates(whole, x, [{"qkv": normal(2, 5, 6)}])[0]["qkv"]
    for part in (slice(0, 4), slice(4, 6)):
        want = x["qkv"][:, part]
        alone = gk.hyperball(optax.identity(), 0.5)
        assert_equal(after[:, part] - want, updates(alone, want, [normal(2, 5, 6)[:, part]])[0])
    units = gk.hyperball(optax.identity(), 0.5, block="unit")
    after = x["qkv"] + updates(units, x["qkv"], [normal(3, 5, 6)])[0]
    assert_equal(jnp.linalg.norm(after, axis=0), jnp.linalg.norm(x["qkv"], axis=0))


ZEROS = {"up": {"kernel": jnp.ones((3, 4))}, "out": {"kernel": jnp.zeros((4, 3))}, "bias": jnp.zeros(4)}


@pytest.mark.parametrize("method", [lambda **k: gk.hyperball(optax.identity(), 0.1, **k), gk.relative_update])
def test_zero_weights_are_refused_by_name(method: Any) -> None:
    """Elsewhere they are NaN, or stay zero for ever without a word. A layer of a stack is enough."""
    with pytest.raises(
        ValueError, match=r"a block of zeros has no norm .* 'out/kernel'\. .* mask=~gk\.leaves\.by_path"
    ):
        method().init(ZEROS)
    method(mask=by_path("up/.*")).init(ZEROS)
    with pytest.raises(ValueError, match="'ScanBlock_0/kernel'"):
        method().init({"ScanBlock_0": {"kernel": jnp.ones((2, 3, 4)).at[1].set(0)}})
    fused = layout((by_path("qkv"), {"splits": (2, 2)}))
    with pytest.raises(ValueError, match="'qkv'"):
        method(layout=fused).init({"qkv": jnp.ones((3, 4)).at[:, 2:].set(0)})


def test_zero_weights_may_be_brought_to_a_sphere(x64: None) -> None:
    """The first step goes to it, against the direction; a radius that is given does the same."""
    x, g = {"out": jnp.zeros((4, 3))}, {"out": normal(0, 4, 3)}
    for how, size in (({"radius_of_zeros": 0.02}, 0.02 * math.sqrt(12)), ({"radius": 5.0}, 5.0)):
        tx = gk.hyperball(optax.identity(), 0.1, **how)
        got = updates(tx, x, [g, g])
        assert_equal(got[0]["out"], -size * g["out"] / jnp.linalg.norm(g["out"]))
        assert_equal(jnp.linalg.norm(got[0]["out"] + got[1]["out"]), size)


def test_where_init_is_traced_a_zero_block_is_left_free_and_counted() -> None:
    x = {"a": jnp.ones((3, 4)), "b": jnp.zeros((2, 3, 4)).at[0].set(1)}
    tx = gk.hyperball(optax.identity(), 0.5, layout=layout((by_path("b"), {"stack": 1})))
    g = jax.tree.map(jnp.ones_like, x)
    u, state = by_numpy(lambda x, g: tx.update(g, tx.init(x), x))(x, g)
    np.testing.assert_array_equal(u["b"][1], -0.5 * np.ones((3, 4), np.float32))
    assert gk.diagnostics.metrics(state)["free_blocks"] == 1
    np.testing.assert_allclose(np.linalg.norm(x["b"][0] + u["b"][0]), math.sqrt(12), rtol=1e-6)


def test_no_direction_no_step(x64: None) -> None:
    """0 / 0 is 0, for one layer and not for its neighbour."""
    x = {"ScanBlock_0": {"kernel": normal(0, 2, 3, 4)}}
    g = {"ScanBlock_0": {"kernel": normal(1, 2, 3, 4).at[0].set(0)}}
    for tx in (gk.hyperball(optax.identity(), 0.1), optax.chain(gk.relative_update(), gk.scale_by_learning_rate(0.1))):
        u = np.asarray(updates(tx, x, [g])[0]["ScanBlock_0"]["kernel"])
        np.testing.assert_allclose(u[0], 0, atol=1e-14)
        assert np.abs(u[1]).max() > 0.01


def test_after_a_restore_weights_go_back_to_the_sphere_of_the_start(x64: None) -> None:
    """Whatever they have been rounded or scaled to meanwhile: the radius is in the state, an array per block, and is
    not taken from the weights again."""
    x = {"kernel": normal(0, 3, 4)}
    tx = gk.hyperball(gk.scale_by_adam(), 0.1)
    state = tx.init(x)
    leaves, structure = jax.tree.flatten(state)  # as a checkpoint without Python objects has it
    state = structure.unflatten([jnp.array(leaf) for leaf in leaves])
    assert state.radius["kernel"].shape == (1, 1)
    trained = {"kernel": 1.7 * x["kernel"]}
    u, _ = tx.update({"kernel": normal(1, 3, 4)}, state, trained)
    assert_equal(jnp.linalg.norm(trained["kernel"] + u["kernel"]), jnp.linalg.norm(x["kernel"]))


def test_bfloat16_weights_do_not_wander() -> None:
    """With master copies they stay at R; without, within the rounding of one step, as R is not that of the weights."""
    start = {"kernel": normal(0, 8, 8).astype(jnp.bfloat16)}
    R = float(jnp.linalg.norm(start["kernel"].astype(jnp.float32)))
    noise = np.random.default_rng(1).standard_normal((500, 8, 8)).astype(jnp.bfloat16)
    for master in (True, False):
        tx = gk.precision(gk.hyperball(gk.scale_by_adam(), 0.01), master=master)

        def step(carry: Any, g: Any, tx: Any = tx) -> Any:
            x, state = carry
            u, state = tx.update({"kernel": g}, state, x)
            return (optax.apply_updates(x, u), state), None

        (x, state), _ = jax.jit(lambda x, s, step=step: jax.lax.scan(step, (x, s), noise))(start, tx.init(start))
        own = x["kernel"].astype(jnp.float32)
        if master:
            own = own + state.residual["kernel"]
        # 2^-9 of every entry at most without a master, at random: a fifth of it for the norm of 64.
        assert abs(float(jnp.linalg.norm(own)) / R - 1) < (1e-5 if master else 2**-9)


def test_what_is_refused() -> None:
    x = {"kernel": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"inner must be a direction without a learning rate, and \w+ has one"):
        gk.hyperball(gk.sgd(0.1), 0.1).init(x)
    with pytest.raises(ValueError, match=r"inner must not decay weights, .* and add_decayed_weights does"):
        gk.hyperball(optax.chain(gk.scale_by_adam(), gk.add_decayed_weights(0.1)), 0.1).init(x)
    with pytest.raises(ValueError, match=r"radius must be in \(0, inf\)"):
        gk.hyperball(gk.scale_by_adam(), 0.1, radius=0.0)
    with pytest.raises(ValueError, match="block must be one of 'tensor', 'unit'"):
        gk.relative_update(block="output")
    tx = gk.hyperball(gk.scale_by_adam(), 0.1)
    with pytest.raises(ValueError, match="hyperball needs params"):
        tx.update(x, tx.init(x))
