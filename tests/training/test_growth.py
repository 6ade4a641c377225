"""A batch that grows while a run goes on."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from gradkit.training import TrainConfig
from gradkit.training.growth import allowed_sizes, growing_batch
from gradkit.training.train import go_on, start, train

SETTINGS = {"workload": "digits_mlp", "method": "adagrad", "learning_rate": 0.02, "eval_every": 2}
SIZES = {"global_batch": 8, "microbatch": 4, "max_batch": 32}


def test_the_batch_doubles_as_the_norm_test_asks() -> None:
    """An error that is always small enough keeps the batch; one that never is takes the largest at the first test."""
    for eta, want in ((1e3, [8, 8, 8]), (1e-3, [8, 32, 32])):
        records = list(train(TrainConfig(**SETTINGS, **SIZES, steps=6, norm_test_eta=eta)))
        assert [record["batch_size"] for record in records] == want


@pytest.mark.slow
def test_a_batch_that_does_not_grow_changes_no_number_of_the_run() -> None:
    plain = start(TrainConfig(**SETTINGS, global_batch=8, microbatch=4, steps=2))
    tested = start(TrainConfig(**SETTINGS, **SIZES, steps=2, norm_test_eta=1e3))
    ours, theirs = (list(go_on(TrainConfig(**SETTINGS, steps=2), started)) for started in (tested, plain))
    assert {k: v for k, v in ours[0].items() if k not in ("batch_size", "seconds")} == pytest.approx(
        {k: v for k, v in theirs[0].items() if k != "seconds"}, rel=1e-6
    )


@pytest.mark.slow
def test_a_run_that_is_started_again_goes_on_with_the_batch_it_had(tmp_path: Path) -> None:
    whole = TrainConfig(**SETTINGS, **SIZES, steps=6, norm_test_eta=1e-3, checkpoint_dir=str(tmp_path / "whole"))
    parts = TrainConfig(**SETTINGS, **SIZES, steps=6, norm_test_eta=1e-3, checkpoint_dir=str(tmp_path / "parts"))
    list(train(whole))
    for _ in itertools.islice(go_on(parts, start(parts)), 2):
        pass
    went_on = start(parts)
    assert int(went_on.state.step) == 4 and int(went_on.state.opt_state[0].microbatches) == 8
    records = list(go_on(parts, went_on))
    assert [record["batch_size"] for record in records] == [32]
    ends = [start(config).state for config in (whole, parts)]
    for a, b in zip(*map(jax.tree.leaves, (ends[0].params, ends[1].params)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sizes_that_cannot_be_are_refused() -> None:
    assert allowed_sizes(64, 32, 256) == (2, 4, 8)
    with pytest.raises(ValueError, match="max_batch must be 8 doubled once or more, got 24"):
        allowed_sizes(8, 4, 24)
    with pytest.raises(ValueError, match="max_batch must be 8 doubled"):
        allowed_sizes(8, 4, 8)
    with pytest.raises(ValueError, match="microbatch must be half of the batch or less"):
        allowed_sizes(8, 8, 16)
    with pytest.raises(ValueError, match="max_batch needs microbatch"):
        TrainConfig(max_batch=64)
    with pytest.raises(ValueError, match="norm_test_eta must be"):
        TrainConfig(norm_test_eta=0.0)
    link = growing_batch((2, 4), examples=4, eta=0.1, test_interval=1)
    with pytest.raises(ValueError, match="needs the extra argument grad_moments"):
        link.update({}, link.init({}), {})
