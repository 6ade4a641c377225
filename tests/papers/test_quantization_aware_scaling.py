"""Codes that learn as real weights do, and sparse updates within a budget."""

import itertools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk

SCALES = np.array([0.01, 0.5, 3.0])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_on_codes_is_sgd_on_the_weights(momentum: float, x64: None) -> None:
    rng = np.random.default_rng(0)
    w, target = rng.standard_normal((2, 3)), rng.standard_normal((2, 3))
    links = (gk.sgd(0.1, momentum=momentum),)
    real, own = optax.chain(*links), optax.chain(gk.quantization_aware_scaling(SCALES), *links)
    x, code = jnp.asarray(w), jnp.asarray(w / SCALES)
    a, b = real.init(x), own.init(code)
    for _ in range(5):
        u, a = real.update(x - target, a, x)
        x = x + u
        u, b = own.update((code * SCALES[None] - target) * SCALES[None], b, code)
        code = code + u
    np.testing.assert_allclose(code * SCALES[None], x, rtol=1e-13)


def test_scales_of_one_change_nothing_and_wrong_ones_are_refused() -> None:
    g = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    tx = gk.quantization_aware_scaling({"kernel": 1.0, "bias": np.ones(3, np.float32)})
    np.testing.assert_array_equal(tx.update(g, tx.init(g))[0]["kernel"], g["kernel"])
    with pytest.raises(ValueError, match="scales must be numbers > 0"):
        gk.quantization_aware_scaling({"kernel": np.array([1.0, 0.0])})
    with pytest.raises(ValueError, match="scales must broadcast"):
        gk.quantization_aware_scaling(np.ones(2)).update(g, tx.init(g))
    with pytest.raises(ValueError, match="refinement"):
        gk.quantization_aware_scaling({"other": 1.0}).update(g, tx.init(g))


def test_so_many_input_channels_of_the_chosen_kernels_are_updated() -> None:
    rng = np.random.default_rng(1)
    params = {
        "conv": {"kernel": rng.standard_normal((3, 3, 6, 4)), "bias": np.zeros(4)},
        "depthwise": {"kernel": rng.standard_normal((3, 3, 1, 8)), "bias": np.zeros(8)},
        "dense": {"kernel": rng.standard_normal((5, 3)), "bias": np.zeros(3)},
    }
    layers = {name: {"kernel": name != "dense", "bias": False} for name in params}
    biases = {name: {"kernel": False, "bias": name == "dense"} for name in params}
    mask = gk.sparse_update(params, layers, 0.5, biases=biases)
    norms = (params["conv"]["kernel"] ** 2).sum((0, 1, 3))
    np.testing.assert_array_equal(np.asarray(mask["conv"]["kernel"])[0, 0, :, 0], norms >= np.sort(norms)[-3])
    conv = np.asarray(mask["conv"]["kernel"])
    np.testing.assert_array_equal(conv.all((0, 1, 3)), conv.any((0, 1, 3)))
    assert np.asarray(mask["depthwise"]["kernel"])[0, 0, 0].sum() == 4
    assert not np.asarray(mask["dense"]["kernel"]).any() and np.asarray(mask["dense"]["bias"]).all()
    assert not np.asarray(mask["conv"]["bias"]).any()
    least = gk.sparse_update(params, layers, 0.5, "magnitude-")
    assert not (np.asarray(least["conv"]["kernel"]) & np.asarray(mask["conv"]["kernel"])).any()
    random = gk.sparse_update(params, layers, {"conv/kernel": 0.4, "depthwise/kernel": 1.0}, "random", key=3)
    assert np.asarray(random["conv"]["kernel"])[0, 0, :, 0].sum() == 2  # int(0.4 6)
    with pytest.raises(ValueError, match="layers must select kernels"):
        gk.sparse_update(params, True)


def test_the_plan_is_the_best_of_all() -> None:
    rng = np.random.default_rng(2)
    bias, weight = rng.random(3), rng.random((4, 2))
    cost = rng.integers(1, 9, 3), rng.integers(1, 9, (4, 2))
    for budget in (0, 5, 11, 60):
        plan = gk.plan_sparse_update(bias, weight, cost, budget, ratios=(0.5, 1.0))
        best = 0.0
        for k, *rows in itertools.product(range(4), *[range(3)] * 4):
            gain = sum(weight[i, r - 1] for i, r in enumerate(rows) if r) + (bias[k - 1] if k else 0.0)
            spent = sum(cost[1][i, r - 1] for i, r in enumerate(rows) if r) + (cost[0][k - 1] if k else 0)
            best = max(best, gain) if spent <= budget else best
        np.testing.assert_allclose(plan.gain, best, rtol=1e-14)
        assert plan.cost <= budget
