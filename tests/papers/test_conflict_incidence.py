"""The incidence of conflicts, by pairs."""

import jax.numpy as jnp
import numpy as np
import pytest

from gradkit.aggregation import gramian
from gradkit.diagnostics import conflict_incidence
from tests.papers.stacks import draw


def test_pairs_are_counted_once_and_over_steps() -> None:
    stacks = [draw(seed, 5).astype(np.float32) for seed in range(3)]
    want = [np.mean([J[i] @ J[j] < 0 for i in range(5) for j in range(i)]) for J in stacks]
    got = conflict_incidence(jnp.stack([gramian(jnp.asarray(J)) for J in stacks]))
    np.testing.assert_allclose(np.asarray(got), want, rtol=1e-6)
    assert len(set(want)) > 1
    assert float(conflict_incidence(jnp.ones((1, 1)))) == 0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="G must be square matrices"):
        conflict_incidence(jnp.ones((2, 3)))
