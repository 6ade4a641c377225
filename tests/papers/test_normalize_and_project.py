"""Normalize and project (Lyle et al., 2024), and projections as a link."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, descend, normal, updates

X = {"dense": {"bias": (3,), "kernel": (4, 3)}, "norm": {"bias": (3,), "scale": (3,)}}


def tree(seed: int) -> dict:
    leaves, structure = jax.tree.flatten(X, is_leaf=lambda s: isinstance(s, tuple))
    return structure.unflatten([normal(seed + i, *s) for i, s in enumerate(leaves)])


def after(link: optax.GradientTransformation, start: dict, steps: int = 3) -> list[dict]:
    """The iterates of SGD with a link behind it."""
    tx = optax.chain(gk.sgd(0.3), link)
    update, state, out = jax.jit(tx.update), tx.init(start), [start]
    for t in range(steps):
        u, state = update(tree(10 * t + 5), state, out[-1])
        out.append(optax.apply_updates(out[-1], u))
    return out


@pytest.mark.parametrize(("block", "axis"), [("tensor", (0, 1)), ("unit", 0)])
@pytest.mark.parametrize("target", ["init", "unit", 2.5])
def test_norms_of_kernels_stay(block: str, axis: Any, target: Any, x64: None) -> None:
    """At what they were, or at a number; other leaves take the plain step."""
    start = tree(0)
    plain = after(optax.identity(), start, 1)
    ends = after(gk.normalize_and_project(target=target, block=block), start)
    norm = lambda w: np.linalg.norm(w, axis=axis, keepdims=True)  # noqa: E731
    want = {"init": norm(start["dense"]["kernel"]), "unit": 1.0, 2.5: 2.5}[target]
    for w in ends[1:]:
        assert_equal(norm(w["dense"]["kernel"]), want * np.ones_like(norm(w["dense"]["kernel"])))
    assert_equal(ends[1]["dense"]["bias"], plain[1]["dense"]["bias"])
    assert_equal(ends[1]["norm"], plain[1]["norm"])
    # Towards where the step would have ended.
    y = plain[1]["dense"]["kernel"]
    assert_equal(ends[1]["dense"]["kernel"], want * y / norm(y))


def test_every_third_step(x64: None) -> None:
    start = tree(0)
    ends, plain = after(gk.normalize_and_project(update_interval=3), start), after(optax.identity(), start)
    assert_equal(ends[2], plain[2])
    assert_equal(*(np.linalg.norm(w["dense"]["kernel"]) for w in (ends[3], start)))


def test_the_norm_is_kept_in_float32() -> None:
    """After 500 steps it is off by the rounding of one step, not of all."""
    w = jnp.asarray(np.random.default_rng(0).standard_normal((16, 8)), jnp.float32)
    tx = optax.chain(gk.sgd(0.1), gk.normalize_and_project())

    def step(carry: tuple, key: jax.Array) -> tuple:
        x, state = carry
        u, state = tx.update(jax.random.normal(key, x.shape, x.dtype), state, x)
        return (optax.apply_updates(x, u), state), None

    (end, _), _ = jax.jit(lambda c, keys: jax.lax.scan(step, c, keys))(
        (w, tx.init(w)), jax.random.split(jax.random.key(0), 500)
    )
    np.testing.assert_allclose(np.linalg.norm(end), np.linalg.norm(w), rtol=1e-6)


def test_a_scale_invariant_loss_descends_on_the_sphere(x64: None) -> None:
    """Its gradient is orthogonal to w, so that a step is w - rate g, and then back to the sphere."""
    a, start = normal(0, 4, 3), normal(1, 4, 3)
    loss = lambda w: -jnp.sum(a * w) / jnp.linalg.norm(w)  # noqa: E731
    rho, w = jnp.linalg.norm(start), start
    ours = descend(optax.chain(gk.sgd(0.5), gk.normalize_and_project()), start, jax.grad(loss), 4)
    for end in ours[1:]:
        g = jax.grad(loss)(w)
        assert abs(float(jnp.sum(g * w))) < 1e-14
        w = rho * (w - 0.5 * g) / jnp.linalg.norm(w - 0.5 * g)
        assert_equal(end, w)


def test_gains_and_offsets(x64: None) -> None:
    """Together at the norm sqrt(d) they are born with, or drawn to 1 and 0; kernels are kept either way."""
    start, plain = tree(0), after(optax.identity(), tree(0), 1)[1]
    projected = after(gk.normalize_and_project(gains="project"), start, 1)[1]
    length = np.sqrt(sum(np.sum(np.square(x)) for x in plain["norm"].values()))
    assert_equal(projected["norm"], jax.tree.map(lambda x: np.sqrt(3) * x / length, plain["norm"]))
    decayed = after(gk.normalize_and_project(gains="decay", gains_decay=0.25), start, 1)[1]
    assert_equal(decayed["norm"]["scale"], 0.75 * plain["norm"]["scale"] + 0.25)
    assert_equal(decayed["norm"]["bias"], 0.75 * plain["norm"]["bias"])
    for w in (projected, decayed):
        assert_equal(w["dense"]["bias"], plain["dense"]["bias"])
        assert_equal(*(np.linalg.norm(x["dense"]["kernel"]) for x in (w, start)))


def test_stacked_gains_are_layers(x64: None) -> None:
    lead = {"ScanBlock_0": {"norm": {"bias": normal(0, 4, 3), "scale": normal(1, 4, 3)}}}
    g = jax.tree.map(lambda x: jnp.sin(9 * x), lead)
    u = updates(gk.normalize_and_project(gains="project"), lead, [g])[0]
    end = jax.tree.map(jnp.add, lead, u)["ScanBlock_0"]["norm"]
    assert_equal(jnp.sum(end["bias"] ** 2 + end["scale"] ** 2, axis=1), np.full(4, 3.0))


def test_projections_of_optax(x64: None) -> None:
    """The parameters are those of projected gradient descent; on a sphere that is `normalize_and_project`."""
    start = tree(0)
    low, high = (jax.tree.map(lambda x, end=end: jnp.full_like(x, end), start) for end in (-0.5, 0.5))
    box = after(gk.project_updates(lambda w: optax.projections.projection_box(w, low, high)), start)
    x = start
    for t, end in enumerate(box[1:]):
        x = jax.tree.map(lambda w, g: jnp.clip(w - 0.3 * g, -0.5, 0.5), x, tree(10 * t + 5))
        assert_equal(end, x)
    w, g = normal(0, 4, 3), normal(1, 4, 3)
    sphere = gk.project_updates(lambda y: optax.projections.projection_l2_sphere(y, jnp.linalg.norm(w)))
    assert_equal(updates(sphere, w, [g])[0], updates(gk.normalize_and_project(), w, [g])[0])


def test_zero_gradients_and_zero_blocks(x64: None) -> None:
    w = {"kernel": normal(0, 4, 3), "zero": jnp.zeros((2, 2))}
    with pytest.raises(
        ValueError, match="the leaf 'zero' has a block that is 0, which has no norm to keep; exclude the leaf by mask"
    ):
        gk.normalize_and_project().init(w)
    masked = gk.normalize_and_project(mask={"kernel": True, "zero": False})
    g = {"kernel": jnp.zeros((4, 3)), "zero": jnp.ones((2, 2))}
    u = updates(masked, w, [g])[0]
    assert_equal(u, g, atol=1e-15)
    # Under jit nobody sees the zeros; then the block is left free. A step to 0 has no direction to go on in.
    tx = gk.normalize_and_project()
    u, _ = jax.jit(lambda w, g: tx.update(g, tx.init(w), w))(w, g | {"kernel": -w["kernel"]})
    assert_equal(u, g | {"kernel": -w["kernel"]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 0.0}, r"target must be in \(0, inf\)"),
        ({"target": "first"}, "target must be one of"),
        ({"update_interval": 0}, "update_interval must be an integer >= 1"),
        ({"block": "leaf"}, "block must be one of"),
        ({"gains": "drop"}, "gains must be one of"),
        ({"gains_decay": 0.1}, "gains_decay must be None with gains=None"),
    ],
)
def test_bad_input(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gk.normalize_and_project(**arguments)
