"""MARS-Shampoo (Yuan et al., 2024)."""

import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def orthogonal(M: np.ndarray, steps: int = 5) -> np.ndarray:
    """The same odd polynomial, applied to the singular values: an independent way to the result."""
    U, s, Vt = np.linalg.svd(M, full_matrices=False)
    s = s / np.linalg.norm(s)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (U * s) @ Vt


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4)])
def test_equations_by_singular_values(shape: tuple[int, int], x64: None) -> None:
    gradients, m = [0.1 * normal(i, *shape) for i in range(4)], np.zeros(shape)
    got = updates(gk.mars_shampoo(1.0, eps=0.0), gradients[0], gradients)
    clipped = updates(gk.mars_correction(), gradients[0], gradients)
    for c, u in zip(map(np.asarray, clipped), got, strict=True):
        m = 0.95 * m + 0.05 * c
        # Five steps multiply an error by at most 3.45^5 = 490; of some 20 roundings that is 1e-12.
        assert_equal(u, -orthogonal(m) * max(1, shape[1] / shape[0]) ** 0.5, rtol=1e-10, atol=2e-12)


def test_every_member_of_a_stack_is_a_matrix_and_clipped_by_itself(x64: None) -> None:
    """A declared stack, a recognised one and separate leaves are the same."""
    w = {"kernel": normal(0, 3, 4, 5), "bias": normal(1, 3, 5)}
    g = {"kernel": normal(2, 3, 4, 5), "bias": normal(3, 3, 5)}
    layout = gk.leaves.layout((gk.leaves.by_path("blocks/.*"), {"stack": 1}))
    (declared,) = updates(gk.mars_shampoo(1.0, layout=layout), {"blocks": w}, [{"blocks": g}])
    (recognised,) = updates(gk.mars_shampoo(1.0), {"ScanBlock_0": w}, [{"ScanBlock_0": g}])
    assert_equal(declared["blocks"], recognised["ScanBlock_0"])
    for i in range(3):
        own = {name: x[i] for name, x in g.items()}
        (alone,) = updates(gk.mars_shampoo(1.0), own, [own])
        assert_equal({name: x[i] for name, x in declared["blocks"].items()}, alone, atol=1e-12)


def test_a_vector_is_a_matrix_of_one_row(x64: None) -> None:
    g = normal(0, 6)
    (vector,), (matrix,) = (updates(gk.mars_shampoo(1.0), x, [x]) for x in (g, g.reshape(1, 6)))
    assert_equal(vector, matrix[0])


def test_the_iterations_in_another_dtype(x64: None) -> None:
    """Five steps in bfloat16 stay within 490 times a rounding of 2^-8 of the singular values' size; in practice far."""
    g = normal(0, 4, 6)
    (high,), (low,) = (updates(gk.mars_shampoo(1.0, ns_dtype=d), g, [g]) for d in (None, jnp.bfloat16))
    assert low.dtype == high.dtype
    assert 1e-4 < float(jnp.abs(high - low).max()) < 0.2
