"""InfoBatch (Qin et al., 2024)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from gradkit.batches import infobatch, infobatch_loss

pytestmark = pytest.mark.slow

N = 40
KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles in a moment


def scored(plan, seed: int = 0):
    losses = np.random.default_rng(seed).exponential(size=N).astype(np.float32)
    return losses, plan.record(plan.init(N), np.arange(N), losses)


@pytest.mark.parametrize("prune_ratio", [0.3, 0.9])
def test_a_plan_leaves_out_a_share_of_those_doing_well(prune_ratio: float) -> None:
    """Exactly int(keep w) of them stay, with weight 1 / keep; all others with weight 1, those left out with 0."""
    plan = infobatch(8, prune_ratio=prune_ratio)
    losses, state = scored(plan)
    well, keep = losses < losses.mean(), 1 - prune_ratio
    stay = int(keep * well.sum())
    indices, weights = (np.asarray(x) for x in jax.jit(plan.plan_epoch)(state, KEY, 2))
    assert sorted(indices) == list(range(N))
    count = int((weights > 0).sum())
    assert count == stay + (~well).sum() and (weights[:count] > 0).all()
    by_example = np.empty(N)
    by_example[indices] = weights
    np.testing.assert_array_equal(by_example[~well], 1)
    assert (by_example[well] > 0).sum() == stay
    np.testing.assert_allclose(by_example[well & (by_example > 0)], 1 / keep, rtol=1e-6)
    assert abs(weights.sum() - N) <= 1 / keep + 1e-3  # what int() cuts off, at most one example of weight 1 / keep


def test_the_mean_over_draws_is_the_full_gradient() -> None:
    """Every example's mean weight is 1 (int() cuts nothing here), and its place in the epoch is any."""
    plan = infobatch(8, prune_ratio=0.5)
    losses = np.where(np.arange(N) < 24, 0.1, 2.0).astype(np.float32)
    state = plan.record(plan.init(N), np.arange(N), losses)
    draws = 2000
    keys = jax.random.split(KEY, draws)
    indices, weights = (np.asarray(x) for x in jax.jit(jax.vmap(lambda key: plan.plan_epoch(state, key, 0)))(keys))
    by_example = np.zeros((draws, N))
    np.put_along_axis(by_example, indices, weights, 1)
    # Weights are 0 or 2 with equal chance: standard deviation 1. Five of them, over 24 examples.
    assert np.abs(by_example.mean(0) - 1).max() <= 5 / math.sqrt(draws)
    # 28 places, uniform: the mean place of every group is 13.5, of standard deviation 8.1 per draw and example.
    for group in (indices < 24, indices >= 24):
        places = np.broadcast_to(np.arange(N), indices.shape)[group & (weights > 0)]
        assert abs(places.mean() - 13.5) <= 5 * 8.1 / math.sqrt(draws * 12)


def test_first_and_last_epochs_see_everything() -> None:
    """All scores are equal at first, also where their mean rounds to a number above them, as that of 40 times 0.1 does;
    from ceil(delta epochs) on nothing is left out."""
    plan = infobatch(10, delta=0.875, initial_score=0.1)
    fresh = plan.plan_epoch(plan.init(N), KEY, 0)[1]
    assert (fresh == 1).all()
    _, state = scored(plan)
    counts = jax.jit(jax.vmap(lambda e: (plan.plan_epoch(state, KEY, e)[1] > 0).sum()))(jnp.arange(10))
    assert (counts[:9] < N).all() and counts[9] == N


def test_scores_are_the_unweighted_losses_of_what_was_seen() -> None:
    plan = infobatch(4)
    state = plan.init(5)
    np.testing.assert_array_equal(state.scores, np.full(5, 3.0))
    state = jax.jit(plan.record)(state, jnp.array([4, 1, 0]), jnp.array([0.5, 2.0, 9.0]), jnp.array([2.0, 1.0, 0.0]))
    np.testing.assert_array_equal(state.scores, [3.0, 2.0, 3.0, 3.0, 0.5])
    assert state.scores.dtype == jnp.float32
    assert infobatch_loss(jnp.array([0.5, 2.0, 9.0]), jnp.array([2.0, 1.0, 0.0])) == 1.0


def test_a_batch_cut_over_devices_is_recorded_on_all() -> None:
    plan, whole = infobatch(4, axis_name="data"), infobatch(4)
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
    indices, losses = jnp.array([7, 2, 5, 0]), jnp.array([1.0, 2.0, 4.0, 8.0])
    cut = jax.shard_map(
        lambda *a: plan.record(*a).scores[None], mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P("data")
    )
    every = jax.jit(cut)(plan.init(8), indices, losses)
    want = whole.record(whole.init(8), indices, losses).scores
    np.testing.assert_array_equal(every, np.broadcast_to(want, (4, 8)))


def test_bad_input() -> None:
    good = {"epochs": 4}
    bads = (("epochs", 0), ("prune_ratio", 1.0), ("prune_ratio", -0.1), ("delta", 1.5), ("initial_score", math.nan))
    for name, bad in bads:
        with pytest.raises(ValueError, match=f"{name} must be"):
            infobatch(**{**good, name: bad})
    plan = infobatch(4)
    with pytest.raises(ValueError, match="n must be"):
        plan.init(0)
    with pytest.raises(ValueError, match="must be of one shape"):
        plan.record(plan.init(4), jnp.arange(2), jnp.ones(3))
    with pytest.raises(ValueError, match="losses and weights must have the same shape"):
        infobatch_loss(jnp.ones(2), jnp.ones(3))
