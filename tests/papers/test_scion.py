"""Scion (Pethick et al., 2025): norms by role, and weights that stay in the ball."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.by_numpy import by_numpy
from tests.papers.replay import assert_equal, normal, updates

# norm of a leaf -> its size, in units of the radius, of n inputs and p outputs
SIZES: dict[str, Any] = {
    "spectral": lambda x: np.linalg.norm(x, 2) / math.sqrt(x.shape[1] / x.shape[0]),
    "sign": lambda x: x.shape[0] * np.abs(x).max(),
    "row": lambda x: math.sqrt(len(x)) * np.linalg.norm(x, axis=0).max(),
    "col": lambda x: np.linalg.norm(x, axis=1).max() / math.sqrt(x.shape[1]),
    "bias_rms": lambda x: math.sqrt(np.mean(x**2)),
}


def outside(decay: float | None) -> dict[str, float]:
    """How far beyond the radius the weights of each norm come within 30 steps along one gradient; with another decay
    than that of Scion where one is given."""
    g = {norm: normal(i, 4, 6) for i, norm in enumerate(SIZES)}
    x = {norm: 2.0 / SIZES[norm](np.asarray(g[norm])) * g[norm] for norm in SIZES}  # on the sphere of radius 2
    norms = {norm: norm for norm in SIZES}
    own = {"norms": norms, "radius": 2.0, "method": "svd", "momentum": 0.5}
    if decay is None:
        tx = gk.scion(0.2, **own)
    else:
        tx = optax.chain(gk.scale_by_scion(**own), gk.add_decayed_weights(decay), gk.scale_by_learning_rate(0.2))
    state, update, worst = tx.init(x), by_numpy(tx.update), dict.fromkeys(SIZES, 0.0)
    for t in range(30):
        pushed = jax.tree.map(lambda a, t=t: -a if t < 20 else normal(100 + t, 4, 6), g)
        u, state = update(pushed, state, x)
        x = optax.apply_updates(x, u)
        worst = {norm: max(worst[norm], SIZES[norm](np.asarray(x[norm])) / 2 - 1) for norm in SIZES}
    return worst


def test_weights_stay_in_the_ball(x64: None) -> None:
    """Of every norm, pushed outwards from the sphere; with a decay of 0.9 of the weights they would leave it."""
    assert max(outside(None).values()) < 1e-12
    assert min(outside(0.9).values()) > 0.05


def test_the_algorithm(x64: None) -> None:
    """The mean starts at 0 without correction; the weights are drawn to 0 by the whole rate."""
    gradients, x = [normal(i, 3, 4) for i in range(4)], np.asarray(normal(9, 3, 4))
    m, want = np.zeros((3, 4)), []
    for g in map(np.asarray, gradients):
        m = 0.8 * m + 0.2 * g
        step = -0.05 * (7.0 * m / (2 * np.linalg.norm(m, axis=0, keepdims=True) * math.sqrt(3) / 2 + 1e-8) + x)
        want.append(step)
        x = x + step
    tx = gk.scion(0.05, momentum=0.8, norms={"hidden": "row"}, radius=7.0)
    assert_equal(updates(tx, normal(9, 3, 4), gradients), want, rtol=1e-10)


def test_sign_of_the_mean_with_weight_decay_one(x64: None) -> None:
    """In absolute units with radius 1 it is the sign of the momentum, with decay 1: Signum."""
    gradients, x = [normal(i, 3, 4) for i in range(3)], normal(9, 3, 4)
    signed = {"norm": "sign", "normalized": False}
    got = updates(gk.scion(0.1, norms={"hidden": signed}, radius=1.0), x, gradients)
    m, want = np.zeros((3, 4)), []
    for g in map(np.asarray, gradients):
        m = 0.9 * m + 0.1 * g
        want.append(-0.1 * (np.sign(m) + np.asarray(x)))
        x = x + want[-1]
    assert_equal(got, want)


def test_unconstrained_and_spectral_it_is_muon(x64: None) -> None:
    """Without look-ahead, and with sqrt(outputs / inputs)."""
    gradients = [{"wide": normal(i, 4, 9), "tall": normal(10 + i, 9, 4)} for i in range(3)]
    got = updates(gk.scion(0.1, momentum=0.95, radius=1.0, constrained=False), gradients[0], gradients)
    plain = updates(gk.scale_by_muon(momentum=0.95, nesterov=False, scale=None), gradients[0], gradients)
    factor = {"wide": 1.5, "tall": 2 / 3}
    want = [{name: -0.1 * factor[name] * d for name, d in step.items()} for step in plain]
    assert_equal(got, want)


def test_the_light_form_has_a_sum(x64: None) -> None:
    """m / (1 - momentum): the same points of the ball but for eps, which counts less beside a sum."""
    gradients = [{"w": normal(i, 3, 4), "b": normal(i, 3)} for i in range(4)]
    one, light = (
        updates(tx(0.05, norm_eps=0.0, eps=0.0, method="svd"), gradients[0], gradients)
        for tx in (gk.scion, gk.scion_light)
    )
    assert_equal(one, light, rtol=1e-9)
    with_eps = updates(gk.scion_light(0.05, norm_eps=0.1), gradients[0], gradients)[1]["b"]
    m = 0.9 * np.asarray(gradients[0]["b"]) + np.asarray(gradients[1]["b"])
    x = np.asarray(gradients[0]["b"])
    x = x + np.asarray(updates(gk.scion_light(0.05, norm_eps=0.1), gradients[0], gradients)[0]["b"])
    assert_equal(with_eps, -0.05 * (m / (math.sqrt(np.mean(m**2)) + 0.1) + x))


def test_norms_and_radii_by_role(x64: None) -> None:
    params = {
        "embed": {"embedding": normal(0, 9, 4)},
        "Dense_0": {"kernel": normal(1, 4, 6), "bias": normal(2, 6)},
        "Conv_0": {"kernel": normal(3, 3, 3, 2, 4)},
        "VmapExpert_0": {"kernel": normal(4, 2, 4, 4)},
        "lm_head": {"kernel": normal(5, 4, 9)},
        "temperature": normal(6),
    }
    d = updates(gk.scale_by_scion(momentum=0.0, method="svd"), params, [params])[0]
    tokens = d["embed"]["embedding"]
    assert_equal(np.sqrt(np.mean(np.square(tokens), axis=1)), np.full(9, 50.0), rtol=1e-6)
    assert_equal(np.linalg.norm(d["Dense_0"]["kernel"], 2), 50 * math.sqrt(6 / 4))
    assert_equal(np.sqrt(np.mean(np.square(d["Dense_0"]["bias"]))), 1.0, rtol=1e-6)
    assert_equal(np.linalg.norm(d["Conv_0"]["kernel"].reshape(18, 4), 2), 50 * math.sqrt(2) / 9)
    assert_equal([np.linalg.norm(x, 2) for x in d["VmapExpert_0"]["kernel"]], [50.0, 50.0])
    assert_equal(d["lm_head"]["kernel"], 3000 / 4 * np.sign(params["lm_head"]["kernel"]))
    assert_equal(d["temperature"], np.sign(params["temperature"]), rtol=1e-6)


def test_a_path_takes_precedence_over_a_part(x64: None) -> None:
    params = {"first": {"kernel": normal(0, 3, 4)}, "second": {"kernel": normal(1, 3, 4)}}
    tx = gk.scale_by_scion(
        momentum=0.0, norms={"first/.*": {"norm": "sign", "normalized": False}}, radius={"hidden": 2.0, "first/.*": 5.0}
    )
    d = updates(tx, params, [params])[0]
    assert_equal(d["first"]["kernel"], 5 * np.sign(params["first"]["kernel"]))
    assert np.linalg.norm(d["second"]["kernel"], 2) < 1.14 * 2 * math.sqrt(4 / 3)


def test_momentum_zero_keeps_nothing() -> None:
    assert jax.tree.leaves(gk.scale_by_scion(momentum=0.0).init({"w": jnp.ones((3, 4))})) == []


def test_what_is_refused() -> None:
    kernel = {"w": jnp.ones((3, 4))}
    with pytest.raises(ValueError, match=r"learning_rate must be in \[0, 1\]"):
        gk.scion(1.5)
    gk.scion(1.5, constrained=False)
    with pytest.raises(ValueError, match="norms must be one of 'spectral'"):
        gk.scion(0.1, norms={"hidden": "spectrum"})
    with pytest.raises(ValueError, match="a key of norms must be one of 'norm'"):
        gk.scion(0.1, norms={"hidden": {"norm": "sign", "normalised": True}})
    with pytest.raises(ValueError, match=r"a radius must be in \(0, inf\)"):
        gk.scion(0.1, radius={"hidden": 0.0})
    with pytest.raises(ValueError, match=r"radius has no entry for the part 'vector', of which 'b' is .* write"):
        gk.scion(0.1, radius={"hidden": 1.0}).init({**kernel, "b": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"the key of norms by_path\('heed'\) matches no leaf"):
        gk.scion(0.1, norms={"heed": "sign"}).init(kernel)
    with pytest.raises(ValueError, match="'spectral' is one of matrices, and the leaf 'b'"):
        gk.scion(0.1, norms={"vector": "spectral"}).init({"b": jnp.ones(3)})
