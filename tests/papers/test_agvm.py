"""AGVM: adaptive gradient variance modulation (Xue et al., 2022)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal

SHAPES = {"backbone": {"bias": (3,), "kernel": (4, 3)}, "head": {"kernel": (3, 2)}, "neck": (5,)}
LABELS = {"backbone": "backbone", "head": "head", "neck": "neck"}


def tree(seed: int) -> dict:
    leaves, structure = jax.tree.flatten(SHAPES, is_leaf=lambda s: isinstance(s, tuple))
    return structure.unflatten([normal(seed + i, *s) for i, s in enumerate(leaves)])


def factors(halves: list[tuple[dict, dict]], **hyper: Any) -> list[dict[str, float]]:
    tx = gk.scale_by_agvm(LABELS, "backbone", **{"update_interval": 1, "start": 0, **hyper})
    x, out = tree(0), []
    state, update = tx.init(x), jax.jit(tx.update)
    for a, b in halves:
        u, state = update(x, state, x, grads_a=a, grads_b=b)
        out.append({name: float(mu) for name, mu in state.factors.items()})
        for module, part in u.items():
            assert_equal(part, jax.tree.map(lambda w, m=module: out[-1][m] * w, x[module]))
    return out


def variances(a: dict, b: dict) -> dict[str, float]:
    found = {}
    for module in SHAPES:
        p, q = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(half[module])]) for half in (a, b))
        found[module] = 1 - p @ q / (np.linalg.norm(p) * np.linalg.norm(q))
    return found


def test_against_numpy(x64: None) -> None:
    """A module's leaves are one vector; the clip comes before the root; the factor is a running mean from 1."""
    halves, mu = [(tree(10 * t), tree(10 * t + 5)) for t in range(4)], dict.fromkeys(SHAPES, 1.0)
    for (a, b), got in zip(halves, factors(halves, decay=0.7, clip=(0.8, 1.1)), strict=True):
        phi = variances(a, b)
        for module in SHAPES:
            ratio = np.clip((phi["backbone"] + 1e-6) / (phi[module] + 1e-6), 0.8, 1.1)
            mu[module] = 0.7 * mu[module] + 0.3 * np.sqrt(ratio)
            assert got[module] == pytest.approx(mu[module], rel=1e-12)
    assert mu["backbone"] == 1.0 and len({*mu.values()}) == 3


def test_halves_that_agree_do_not_change_the_factors(x64: None) -> None:
    g = tree(3)
    # The cosine of equal vectors is 1 up to a few roundings, far below eps = 1e-6.
    assert factors([(g, jax.tree.map(lambda x: 3 * x, g))], decay=0.0)[0] == pytest.approx(dict.fromkeys(SHAPES, 1.0))


def test_the_ratio_of_variances_is_clipped_before_the_root(x64: None) -> None:
    """Phi = 1 against Phi = 1/4: the root of the clipped 1/2, not the clipped root of 1/4."""
    a, b = tree(0), tree(0)
    a["neck"], b["neck"] = jnp.array([1.0, 0, 0, 0, 0]), jnp.array([0, 1.0, 0, 0, 0])
    a["backbone"] = jax.tree.map(jnp.zeros_like, a["backbone"]) | {"bias": jnp.array([1.0, 0, 0])}
    b["backbone"] = a["backbone"] | {"bias": jnp.array([0.75, np.sqrt(1 - 0.75**2), 0])}
    got = factors([(a, b)], decay=0.0)[0]
    assert got["neck"] == pytest.approx(np.sqrt(0.5), rel=1e-12)
    assert got["head"] == pytest.approx(np.sqrt(10.0), rel=1e-12)


def test_when_it_measures(x64: None) -> None:
    """At multiples of the update_interval from start to stop; in between, and afterwards, the factors do not change."""
    halves = [(tree(10 * t), tree(10 * t + 5)) for t in range(10)]
    got = [f["head"] for f in factors(halves, update_interval=2, start=3, stop=7)]
    assert [i for i in range(1, 10) if got[i] != got[i - 1]] == [4, 6] and got[3] == 1.0


def test_a_module_without_gradient_keeps_its_factor(x64: None) -> None:
    a, b = tree(1), tree(5)
    a["neck"] = jnp.zeros(5)
    (got,) = factors([(a, b)])
    assert got["neck"] == 1.0 and got["head"] != 1.0
    a["backbone"] = jax.tree.map(jnp.zeros_like, a["backbone"])
    assert factors([(a, b)])[0] == dict.fromkeys(SHAPES, 1.0)


def run(tx: Any, steps: int = 3) -> tuple[list[Any], Any]:
    x, out = tree(0), []
    state, update = tx.init(x), jax.jit(tx.update)
    for t in range(steps):
        a, b = tree(10 * t), tree(10 * t + 5)
        u, state = update(jax.tree.map(lambda p, q: (p + q) / 2, a, b), state, x, grads_a=a, grads_b=b)
        x = optax.apply_updates(x, u)
        out.append(u)
    return out, state


def test_the_factor_scales_the_complete_step(x64: None) -> None:
    """All of the step, momentum and decay included, is the base's times the factor; until `start` it is the base's."""
    kwargs = {"labels": LABELS, "reference": "backbone"}
    late, _ = run(gk.agvm(0.1, weight_decay=0.2, **kwargs))
    base, _ = run(optax.chain(gk.add_decayed_weights(0.2), gk.sgd(0.1, momentum=0.9)))
    assert_equal(late, base)
    (first,), state = run(gk.agvm(0.1, weight_decay=0.2, start=0, **kwargs), 1)
    (mu,) = [
        s.factors for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "factors")) if hasattr(s, "factors")
    ]
    for module, part in first.items():
        assert_equal(part, jax.tree.map(lambda u, m=module: mu[m] * u, base[0][module]))
    assert float(mu["head"]) != 1.0


def test_adam_compares_what_adam_makes_of_the_halves(x64: None) -> None:
    """With the second moment before the step, and without bias correction."""
    kwargs = {"labels": LABELS, "reference": "backbone", "start": 1, "update_interval": 1, "decay": 0.0, "eps": 1e-3}
    got, _ = run(gk.agvm_adamw(0.1, weight_decay=0.2, b2=0.9, **kwargs), 2)
    base, _ = run(gk.adamw(0.1, weight_decay=0.2, b2=0.9, eps=1e-3), 2)
    assert_equal(got[0], base[0])
    g = jax.tree.map(lambda p, q: (p + q) / 2, tree(0), tree(5))
    v = jax.tree.map(lambda g: 0.1 * g**2, g)
    halves = [jax.tree.map(lambda g, v: g / (np.sqrt(0.9 * v + 0.1 * g**2) + 1e-3), tree(s), v) for s in (10, 15)]
    phi = variances(*halves)
    for module in SHAPES:
        mu = np.sqrt(np.clip((phi["backbone"] + 1e-6) / (phi[module] + 1e-6), 0.5, 10))
        assert_equal(got[1][module], jax.tree.map(lambda u, mu=mu: mu * u, base[1][module]), rtol=1e-10)


def test_halves_of_a_batch_under_vmap(x64: None) -> None:
    """How a user gets the halves: one gradient per half, whose mean is that of the batch."""
    x, data = {"w": normal(0, 3)}, normal(1, 8, 3)
    loss = lambda p, batch: jnp.mean(jnp.sin(batch @ p["w"]))  # noqa: E731
    halves = jax.vmap(jax.grad(loss), (None, 0))(x, data.reshape(2, 4, 3))
    a, b = (jax.tree.map(lambda g, i=i: g[i], halves) for i in (0, 1))
    assert_equal(jax.tree.map(lambda p, q: (p + q) / 2, a, b), jax.grad(loss)(x, data))
    tx = gk.scale_by_agvm(lambda p: {"w": "all"}, "all", start=0)
    assert_equal(tx.update(a, tx.init(x), x, grads_a=a, grads_b=b)[0], a)


def test_a_tree_of_labels_needs_no_parameters(x64: None) -> None:
    """So that optax's tools find what in the state belongs to parameters."""
    tx, x = gk.agvm(0.1, labels=LABELS, reference="backbone"), tree(0)
    state = tx.init(x)
    mapped = optax.tree.map_params(tx, lambda m: m + 1, state)
    assert_equal(mapped[1].trace, jax.tree.map(jnp.ones_like, x))
    assert mapped[2].factors == state[2].factors


def test_bad_input() -> None:
    x = {"a": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"reference must be one of \['body'\], got 'bodi'; did you mean 'body'"):
        gk.scale_by_agvm({"a": "body"}, "bodi").init(x)
    with pytest.raises(ValueError, match="labels must match the parameters"):
        gk.scale_by_agvm({"b": "body"}, "body").init(x)
    tx = gk.scale_by_agvm({"a": "body"}, "body")
    with pytest.raises(ValueError, match="scale_by_agvm needs the extra argument grads_b"):
        tx.update(x, tx.init(x), x, grads_a=x)
    for bad in ((0.0, 10.0), (0.5, 0.9), (2.0, 3.0)):
        with pytest.raises(ValueError, match="of clip must be"):
            gk.scale_by_agvm({"a": "body"}, "body", clip=bad)
    with pytest.raises(ValueError, match="stop must be an integer >= 560 or None"):
        gk.scale_by_agvm({"a": "body"}, "body", stop=5)
