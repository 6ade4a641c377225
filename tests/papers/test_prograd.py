"""ProGrad: per tensor, and orthogonal to the general gradient where they conflict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.aggregation import prograd
from tests.papers.stacks import aggregate, draw, tree_of


def test_in_conflict_the_result_is_orthogonal_to_the_general_gradient(x64: None) -> None:
    J = draw(0, 2)
    J[1] -= 2 * J[0]
    out = aggregate(prograd(per_leaf=False), J)
    assert abs(out @ J[1]) < 1e-12
    np.testing.assert_allclose(out, J[0] - J[0] @ J[1] / (J[1] @ J[1]) * J[1], rtol=1e-12)
    half = aggregate(prograd(per_leaf=False, strength=0.5), J)
    np.testing.assert_allclose(half, (out + J[0]) / 2, rtol=1e-12, atol=1e-14)


def test_without_a_conflict_the_general_gradient_does_not_enter(x64: None) -> None:
    J = draw(1, 2)
    J[1] += 5 * J[0]
    np.testing.assert_array_equal(aggregate(prograd(per_leaf=False), J), J[0])
    J[1] = 0
    np.testing.assert_array_equal(aggregate(prograd(), J), J[0])


def test_every_tensor_is_treated_by_itself(x64: None) -> None:
    """One leaf conflicts, the other does not, though the whole tree does."""
    J = draw(2, 2)
    J[1] = np.concatenate([-J[0, :3], 0.1 * J[0, 3:]])
    tx = prograd()
    got = tx.update(tree_of(J), tx.init(jax.tree.map(lambda x: x[0], tree_of(J))))[0]
    np.testing.assert_allclose(np.asarray(got["a"]), np.zeros(3), atol=1e-14)
    np.testing.assert_array_equal(got["b"], J[0, 3:, None])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\]"):
        prograd(strength=2.0)
    with pytest.raises(ValueError, match="prograd: 1 gradients came, and it takes two"):
        prograd().update(jnp.ones((1, 3)), prograd().init(jnp.ones(3)))
