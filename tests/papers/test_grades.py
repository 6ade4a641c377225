"""GradES (Wen et al., 2025)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def flags(tx: Any, x: Any, gradients: list) -> list:
    """The flags of frozen tensors after every step."""
    state, out = tx.init(x), []
    for g in gradients:
        u, state = tx.update(g, state, x)
        x = optax.apply_updates(x, u)
        out.append(gk.frozen_mask(state))
    return out


def test_a_tiny_threshold_is_the_inner_optimizer(x64: None) -> None:
    gradients = [{"a": normal(i, 3), "b": normal(9 + i, 2, 2)} for i in range(5)]
    inner = gk.adamw(0.1)
    for metric in ("grad", "grad_change", "update"):
        tx = gk.freeze_on_convergence(inner, tau=1e-300, total_steps=5, alpha=0.0, metric=metric)
        assert_equal(*(updates(t, gradients[0], gradients) for t in (tx, inner)))


def test_a_tensor_with_a_small_gradient_stays_bit_for_bit_from_the_first_allowed_step(x64: None) -> None:
    """Decay would move it, and does so until then; its inner state does not change either. It stays frozen."""
    x = {"a": normal(0, 4), "b": normal(1, 4)}
    tx = gk.freeze_on_convergence(gk.adamw(0.1, weight_decay=0.5), tau=1e-3, total_steps=10, alpha=0.3)
    state, seen = tx.init(x), []
    for t in range(1, 8):
        g = {"a": normal(t, 4), "b": normal(t, 4) * (1e-5 if t < 5 else 1.0)}
        u, new = tx.update(g, state, x)
        assert (np.asarray(u["b"]) == 0).all() == (t >= 3)
        assert (np.asarray(u["a"]) != 0).all()
        if t >= 3:
            assert_equal(new.inner[0].mu["b"], state.inner[0].mu["b"], rtol=0, atol=0)
            assert_equal(new.inner[0].nu["b"], state.inner[0].nu["b"], rtol=0, atol=0)
        state, x = new, optax.apply_updates(x, u)
        seen.append(gk.frozen_mask(new)["b"])
    assert seen == [False, False, True, True, True, True, True]
    assert gk.all_frozen(state) is False


def test_the_three_metrics(x64: None) -> None:
    """The gradient itself, its change, and the step: each freezes where it alone is small, when it may."""
    big, small = 5 * jnp.ones(2), 0.01 * jnp.ones(2)
    x = {"steady": big, "quiet": small}
    gradients = [{"steady": big, "quiet": small * (-1) ** t} for t in range(4)]

    def of(metric: str, rate: float = 1.0, **kwargs: Any) -> list:
        tx = gk.freeze_on_convergence(gk.sgd(rate), tau=0.03, total_steps=4, alpha=0.0, metric=metric, **kwargs)
        return [tuple(f[name] for name in ("steady", "quiet")) for f in flags(tx, x, gradients)]

    assert of("grad") == [(False, True)] * 4
    # No change at the first step, as there is none before; the quiet one changes by 0.02 each, 0.04 in all.
    assert of("grad_change") == [(False, False), (True, False), (True, False), (True, False)]
    assert of("update") == [(False, True)] * 4
    assert of("update", rate=1e-3) == [(True, True)] * 4


@pytest.mark.parametrize("metric", ["grad", "grad_change", "update"])
@pytest.mark.parametrize("grouped", [False, True])
def test_an_expert_without_tokens_is_not_frozen(metric: str, grouped: bool, x64: None) -> None:
    """A gradient of zeros is no convergence, neither in its first step nor in the step after it; a small one is."""
    x = {"routed": jnp.ones(2), "idle": jnp.ones(2), "rest": jnp.ones(2)}
    groups = (lambda name: None if name == "rest" else name) if grouped else None
    tx = gk.freeze_on_convergence(gk.sgd(1.0), tau=0.03, total_steps=9, alpha=0.0, metric=metric, groups=groups)
    idle = [0.0, 0.0, 0.0, 0.01, 0.01, 0.01]
    gradients = [
        {"routed": jnp.full(2, 0.01 * (t + 1)), "idle": jnp.full(2, g), "rest": 0 * x["rest"]}
        for t, g in enumerate(idle)
    ]
    frozen = flags(tx, x, gradients)
    assert [f["idle"] for f in frozen] == [False] * (4 if metric == "grad_change" else 3) + [True] * (
        2 if metric == "grad_change" else 3
    )
    assert not any(f["rest"] for f in frozen)
    assert frozen[1 if metric == "grad_change" else 0]["routed"]


@pytest.mark.parametrize("alpha", [0.29, 0.57, 0.07])
def test_the_first_step_is_rounded_as_in_python(alpha: float) -> None:
    """0.29 * 100 is 28.999999999999996, of which float32 makes 29."""
    x = {"w": jnp.full(2, 0.01)}
    first = int(alpha * 100)
    tx = gk.freeze_on_convergence(gk.sgd(0.0), tau=1.0, total_steps=100, alpha=alpha)
    state = tx.init(x)
    for count, want in ((first - 2, False), (first - 1, True)):
        _, after = tx.update(x, state._replace(count=jnp.int32(count)), x)
        assert gk.frozen_mask(after) == {"w": want}


def test_the_largest_number_of_frozen_tensors_is_rounded_as_in_python() -> None:
    x = {f"{i:03}": jnp.full(2, 0.01) for i in range(100)}
    tx = gk.freeze_on_convergence(gk.sgd(0.0), tau=1.0, total_steps=2, alpha=0.0, max_frozen_ratio=0.29)
    assert sum(flags(tx, x, [x])[0].values()) == 28


def test_the_update_metric_freezes_from_the_next_step_on(x64: None) -> None:
    tx = gk.freeze_on_convergence(gk.sgd(1.0), tau=0.5, total_steps=4, alpha=0.0, metric="update")
    first, second = updates(tx, jnp.ones(2), [0.1 * jnp.ones(2), jnp.ones(2)])
    assert_equal((first, second), (-0.1 * jnp.ones(2), jnp.zeros(2)))


def test_groups_are_frozen_as_one(x64: None) -> None:
    """0.2 + 0.7 is below 1, 0.2 + 0.9 is not."""
    x = {name: jnp.ones(1) for name in ("q/A", "q/B", "v/A", "v/B", "alone")}
    g = {"q/A": 0.2, "q/B": 0.7, "v/A": 0.2, "v/B": 0.9, "alone": 0.95}
    g = {name: jnp.full(1, value) for name, value in g.items()}
    tx = gk.freeze_on_convergence(
        gk.sgd(0.1), tau=1.0, total_steps=2, alpha=0.0, groups=lambda n: n.split("/")[0] if "/" in n else None
    )
    assert flags(tx, x, [g]) == [{"q/A": True, "q/B": True, "v/A": False, "v/B": False, "alone": True}]
    with pytest.raises(ValueError, match="is a stack of"):
        stacked = {"ScanA_0": {"w": jnp.ones((2, 3))}, "w": jnp.ones(3)}
        odd = gk.freeze_on_convergence(gk.sgd(0.1), tau=1.0, total_steps=2, alpha=0.0, groups=lambda n: "all")
        odd.update(stacked, odd.init(stacked), stacked)


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.5, 2), (0.74, 2), (0.75, 3), (1.0, 4)])
def test_no_more_than_a_share_is_frozen(ratio: float, count: int, x64: None) -> None:
    x = {name: jnp.zeros(2) for name in "abcd"}
    tx = gk.freeze_on_convergence(gk.sgd(0.1), tau=1.0, total_steps=2, alpha=0.0, max_frozen_ratio=ratio)
    for mask in flags(tx, x, [jax.tree.map(lambda p: p + 0.1, x)] * 2):
        assert sum(mask.values()) == count


def test_layers_of_a_stack_are_frozen_one_by_one(x64: None) -> None:
    x = {"ScanBlock_0": {"kernel": normal(0, 3, 2, 2)}}
    g = jax.tree.map(jnp.ones_like, x)
    g["ScanBlock_0"]["kernel"] = g["ScanBlock_0"]["kernel"].at[1].set(0.01)
    tx = gk.grades(gk.adamw(0.1), tau=0.1, total_steps=2, alpha=0.0)
    (u,) = updates(tx, x, [g])
    _, state = tx.update(g, tx.init(x), x)
    assert np.asarray(u["ScanBlock_0"]["kernel"]).any((1, 2)).tolist() == [True, False, True]
    assert gk.frozen_mask(state) == {"ScanBlock_0": {"kernel": False}}
    _, state = tx.update(jax.tree.map(lambda x: 0.01 * x, g), state, x)
    assert gk.frozen_mask(state) == {"ScanBlock_0": {"kernel": True}} and gk.all_frozen(state)


def test_a_declared_stack_is_one(x64: None) -> None:
    """Sums of 6 per layer and 18 in all, and a threshold of 10."""
    x = {"parts": {"kernel": jnp.ones((3, 2, 3))}}
    layout = gk.leaves.layout((gk.leaves.by_path("parts/.*"), {"stack": 1}))
    for given, want in (({"layout": layout}, True), ({}, False)):
        for metric in ("grad", "update"):
            tx = gk.freeze_on_convergence(gk.sgd(1.0), tau=10.0, total_steps=2, alpha=0.0, metric=metric, **given)
            assert flags(tx, x, [x]) == [{"parts": {"kernel": want}}]


def test_grades_does_not_freeze_vectors() -> None:
    x = {"bias": jnp.full(2, 0.1), "kernel": jnp.full((2, 2), 0.1)}
    assert flags(gk.grades(gk.sgd(0.1), tau=1.0, total_steps=1, alpha=0.0), x, [x])[0] == {
        "bias": False,
        "kernel": True,
    }


@pytest.mark.full_pipeline
def test_the_mask_skips_gradients() -> None:
    """Behind stop_gradient a frozen layer costs no gradient of its weights, and the run is the same."""
    x = {"one": jnp.asarray(normal(0, 64, 64), jnp.float32) / 8, "two": jnp.asarray(normal(1, 64, 64), jnp.float32) / 8}
    data = jnp.asarray(normal(2, 256, 64), jnp.float32)

    def gradient(frozen: Any) -> Any:
        def loss(x: Any) -> jax.Array:
            x = jax.tree.map(lambda p, f: jax.lax.stop_gradient(p) if f else p, x, frozen)
            return jnp.mean(jnp.square(jnp.tanh(data @ x["one"]) @ x["two"]))

        return jax.jit(jax.grad(loss)).lower(x).compile()

    tx = gk.freeze_on_convergence(gk.adamw(0.01), tau=1e9, total_steps=2, alpha=0.0, mask={"one": True, "two": False})
    all_of_it = gradient({"one": False, "two": False})
    _, state = tx.update(all_of_it(x), tx.init(x), x)
    mask = gk.frozen_mask(state)
    assert mask == {"one": True, "two": False}
    less = gradient(mask)

    def flops(program: Any) -> float:
        return program.cost_analysis()["flops"]

    # Forward 2 products; backward 1 for two, 2 for one (its input needs no gradient: 1 through two, 1 for its weights).
    assert flops(less) < 0.65 * flops(all_of_it)
    assert_equal(tx.update(less(x), state, x)[0], tx.update(all_of_it(x), state, x)[0], rtol=1e-5, atol=1e-7)


def test_bad_input() -> None:
    good = {"tau": 1.0, "total_steps": 5}
    for bad in ({"tau": 0.0}, {"alpha": 1.0}, {"total_steps": 0}, {"metric": "loss"}, {"max_frozen_ratio": 1.1}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            gk.freeze_on_convergence(gk.sgd(0.1), **{**good, **bad})
    with pytest.raises(ValueError, match="must contain one state of freeze_on_convergence, got 0; write frozen_mask"):
        gk.frozen_mask(gk.sgd(0.1).init(jnp.ones(2)))
