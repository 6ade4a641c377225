"""Conda (Wang et al., 2025)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates
from tests.papers.test_project_low_rank import directions


def reference(gradients: list[np.ndarray], projection: str, interval: int = 2) -> list[np.ndarray]:
    """In plain NumPy, b1 = 0.9, b2 = 0.99, eps = 0.01, with whatever signs LAPACK gives."""
    rows, columns = gradients[0].shape
    short, long = ("right", "left") if rows >= columns else ("left", "right")
    sides = {"std": short, "reverse_std": long, "left": "left", "right": "right", "full": "left right"}[projection]
    m = v = 0.0
    U = V = np.eye(0)
    out = []
    for t, g in enumerate(gradients):
        m = 0.9 * m + 0.1 * g
        if t % interval == 0:
            U, _, Vt = np.linalg.svd(m, full_matrices=False)
            U, V = (U if "left" in sides else np.eye(rows)), (Vt.T if "right" in sides else np.eye(columns))
        v = 0.99 * v + 0.01 * (U.T @ g @ V) ** 2
        u = U @ (U.T @ m @ V / (np.sqrt(v) + 0.01)) @ V.T
        out.append(u * np.sqrt(1 - 0.99 ** (t + 1)) / (1 - 0.9 ** (t + 1)))
    return out


@pytest.mark.parametrize("projection", ["std", "reverse_std", "left", "right", "full"])
def test_the_algorithm(projection: str, x64: None) -> None:
    """Signs do not matter: the momentum is kept in the original basis, and squares are even."""
    shapes = {"wide": (3, 5), "tall": (5, 3), "square": (4, 4)}
    g = [{k: normal(10 * t + i, *s) for i, (k, s) in enumerate(shapes.items())} for t in range(4)]
    got = directions(gk.scale_by_conda(b2=0.99, eps=0.01, update_interval=2, projection=projection), g)
    for name in shapes:
        want = reference([np.asarray(x[name]) for x in g], projection)
        assert_equal([u[name] for u in got], want, 1e-9, 1e-11)


def test_in_the_basis_of_the_axes_it_is_adam(x64: None) -> None:
    """A first gradient with one entry per row has the axes as its singular vectors, and they stay for the interval."""
    first = jnp.zeros((3, 4)).at[jnp.arange(3), jnp.arange(3)].set(jnp.array([3.0, 2.0, 1.0]))
    g = [first, *(normal(i, 3, 4) for i in range(3))]
    got = updates(gk.scale_by_conda(), first, g)
    assert_equal(got, updates(gk.scale_by_adam(eps_in_hat=False), first, g), 1e-10)
    # The corrections of both moments off.
    got = updates(gk.scale_by_conda(bias_correction=False), first, g)
    assert_equal(got, updates(gk.scale_by_adam(bias_correction=False), first, g), 1e-10)


def test_without_memory_it_is_the_sign_in_the_basis(x64: None) -> None:
    g = normal(0, 4, 6)
    d = np.asarray(updates(gk.scale_by_conda(b1=0.0, b2=0.0, eps=0.0), g, [g])[0])
    U = np.linalg.svd(np.asarray(g), full_matrices=False)[0]
    np.testing.assert_allclose(np.abs(U.T @ d), 1, rtol=1e-12)


def test_state_and_other_leaves(x64: None) -> None:
    """2 n m + n^2 words; biases take Adam with eps before the correction."""
    shapes = {"kernel": jax.ShapeDtypeStruct((256, 64), jnp.float32)}
    sizes = [x.size for x in jax.tree.leaves(jax.eval_shape(gk.conda(0.1).init, shapes)) if x.ndim > 1]
    assert sum(sizes) == 2 * 256 * 64 + 64**2
    x: Any = {"bias": normal(0, 4), "kernel": normal(1, 3, 4)}
    g = [jax.tree.map(lambda k, i=i: i * k, x) for i in (1.0, 2.0, 3.0)]
    got = updates(gk.conda(0.1, eps=0.1, weight_decay=0.5), x, g)
    want = updates(gk.scale_by_adam(eps=0.1, eps_in_hat=False), x["bias"], [k["bias"] for k in g])
    bias = x["bias"]
    for u, d in zip(got, want, strict=True):
        assert_equal(u["bias"], -0.1 * (d + 0.5 * bias))
        bias = bias + u["bias"]


def test_what_is_no_matrix_is_named() -> None:
    with pytest.raises(ValueError, match=r"scale_by_conda: the leaf 'bias' of shape \(4,\) is no matrix"):
        gk.scale_by_conda().init({"bias": jnp.ones(4)})
    with pytest.raises(ValueError, match=r"projection must be one of .*'std'"):
        gk.conda(0.1, projection="standard")
    with pytest.raises(ValueError, match="update_interval must be"):
        gk.conda(0.1, update_interval=0)
