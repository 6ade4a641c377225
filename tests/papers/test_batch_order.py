"""Orders of examples, and what a single shuffle does to batch normalization (Wu, Yun, Sra, 2023)."""

from typing import Any

import jax
import numpy as np
import pytest

from gradkit.batches import batch_order

N, B, PER = 7, 2, 3
SCHEMES = ("random_reshuffle", "single_shuffle", "flip_flop", "with_replacement")


def epochs(scheme: str, count: int, key: Any = 3) -> np.ndarray:
    """(epochs, steps, batch size)."""
    batch = jax.jit(jax.vmap(batch_order(N, B, scheme=scheme, key=key)))
    return np.asarray(batch(np.arange(count * PER, dtype=np.int32))).reshape(count, PER, B)


@pytest.mark.parametrize("scheme", SCHEMES[:3])
def test_no_example_twice_in_an_epoch(scheme: str) -> None:
    for epoch in epochs(scheme, 6):
        assert len(set(epoch.reshape(-1))) == PER * B


def test_epochs_of_the_schemes() -> None:
    single = epochs("single_shuffle", 4)
    assert (single == single[:1]).all()
    fresh = epochs("random_reshuffle", 4)
    assert (fresh[0] == single[0]).all() and len({tuple(e.reshape(-1)) for e in fresh}) == 4
    flip = epochs("flip_flop", 4)
    for i in (0, 2):
        assert (flip[i + 1].reshape(-1) == flip[i].reshape(-1)[::-1]).all()
    assert (flip[2] != flip[0]).any()
    drawn = epochs("with_replacement", 200).reshape(-1)
    # Five standard deviations of a frequency of 1/7 among 1200.
    np.testing.assert_allclose(np.bincount(drawn, minlength=N) / 1200, 1 / 7, atol=5 * np.sqrt(6 / 49 / 1200))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_step_at_once(scheme: str) -> None:
    """The same key and step have the same examples, in a loop, alone, and on another host."""
    assert batch_order(N, B, scheme=scheme, key=3)(10).tolist() == epochs(scheme, 4)[3, 1].tolist()
    assert batch_order(N, B, scheme=scheme, key=4)(10).tolist() != epochs(scheme, 4)[3, 1].tolist()


def test_with_batch_normalization_a_single_shuffle_solves_another_problem() -> None:
    """A linear model behind batch normalization: the least squares solution of the batches of that partition,
    normalized one by one; not the mean solution over partitions, which reshuffling is near."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 2)), rng.standard_normal(8)

    def normalized(x: np.ndarray) -> np.ndarray:
        return (x - x.mean(axis=0)) / x.std(axis=0)

    def trained(scheme: str) -> np.ndarray:
        batch, w, tail = batch_order(8, 4, scheme=scheme, key=1), np.zeros(2), []
        order = np.asarray(jax.jit(jax.vmap(batch))(np.arange(8000, dtype=np.int32)))
        for step, i in enumerate(order):
            z = normalized(x[i])
            w = w - 5e-3 * 2 * z.T @ (z @ w - y[i]) / 4
            tail += [w] if step >= 4000 else []
        return np.mean(tail, axis=0)

    i = np.concatenate([np.asarray(batch_order(8, 4, scheme="single_shuffle", key=1)(s)) for s in range(2)])
    z = np.concatenate([normalized(x[i[:4]]), normalized(x[i[4:]])])
    solution = np.linalg.lstsq(z, y[i], rcond=None)[0]
    # Of a step of 5e-3 and a curvature of about 2, the bias is a hundredth or less.
    np.testing.assert_allclose(trained("single_shuffle"), solution, atol=1e-2)
    assert np.abs(trained("random_reshuffle") - solution).max() > 5e-2


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="scheme must be one of"):
        batch_order(4, 2, scheme="shuffle")
    with pytest.raises(ValueError, match="batch_size must be in"):
        batch_order(4, 5)
