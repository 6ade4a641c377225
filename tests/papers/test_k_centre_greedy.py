"""k centres, greedily (Sener, Savarese, 2018)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gradkit.batches import k_centre_greedy
from gradkit.parallel import collective_bytes
from tests.papers.replay import normal


def radius(x: np.ndarray, centres: list[int]) -> float:
    return float(np.linalg.norm(x[:, None] - x[centres][None], axis=-1).min(axis=1).max())


def test_at_most_twice_the_best_radius(x64: None) -> None:
    """Against all choices of k centres, of nine points, for three sets."""
    for seed, k in itertools.product(range(3), (1, 2, 3)):
        x = np.asarray(normal(seed, 9, 2))
        found = k_centre_greedy(x, None, k, key=seed)
        best = min(radius(x, list(c)) for c in itertools.combinations(range(9), k))
        np.testing.assert_allclose(found.radius, radius(x, found.indices.tolist()), rtol=1e-13)
        assert best <= found.radius + 1e-12 and found.radius <= 2 * best


def test_the_radius_falls_to_zero(x64: None) -> None:
    """With one more centre it never grows; a longer selection begins with the shorter one; all points: 0."""
    x = normal(0, 7, 3)
    found = [k_centre_greedy(x, [2], k) for k in range(1, 7)]
    radii = [float(f.radius) for f in found]
    assert radii == sorted(radii, reverse=True) and radii[-1] == 0
    assert all(f.indices.tolist() == found[-1].indices.tolist()[: len(f.indices)] for f in found)
    assert sorted(found[-1].indices.tolist()) == [0, 1, 3, 4, 5, 6]


def test_the_start_is_drawn() -> None:
    """Without labelled rows the first pick is not always row 0, and the second is the row farthest from it."""
    x = np.arange(8, dtype=np.float32)[:, None]
    found = [k_centre_greedy(x, None, 2, key=seed).indices.tolist() for seed in range(12)]
    assert len({first for first, _ in found}) > 3
    assert all(second == (7 if first < 4 else 0) for first, second in found)


@pytest.mark.full_pipeline
def test_rows_that_are_sharded_stay() -> None:
    """A pick moves a row and a number or a place per device."""
    mesh = jax.make_mesh((8,), ("a",), (AxisType.Auto,))
    x = jax.ShapeDtypeStruct((1024, 16), jnp.float32, sharding=NamedSharding(mesh, P("a")))
    program = jax.jit(lambda x: k_centre_greedy(x, [0], 5)).lower(x).compile()
    found = collective_bytes(program)
    assert found and all(row.result_bytes <= 4 * 16 for row in found)


def test_bad_input() -> None:
    x = np.ones((4, 2), np.float32)
    for given, message in (
        ((x, None, 2), "key must be given where initial has no rows"),
        ((x, [4], 1), "initial must be rows from 0 to 3"),
        ((x, [0.5], 1), "initial must be rows of features"),
        ((x, [0, 1], 3), "k must be an integer >= 1 and <= 2"),
        ((x[0], [0], 1), "features must be floating point with 2 axes"),
    ):
        with pytest.raises(ValueError, match=message):
            k_centre_greedy(*given)
