"""A method in the eigenbasis of its gradients (Vyas et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.papers.replay import assert_equal, normal
from tests.papers.test_shampoo import replay


def test_adam_inside_is_soap(x64: None) -> None:
    """Without eps, which SOAP adds elsewhere. The first moment is carried through every turn of the bases."""
    rows = [
        {"w": normal(i, 3, 3), "b": normal(9 + i, 3), "ScanBlock_0": {"k": normal(20 + i, 2, 3, 3)}} for i in range(6)
    ]
    bases = gk.kronecker_bases(update_interval=2)
    got, _ = replay(gk.in_basis(gk.scale_by_adam(b1=0.95, b2=0.95, eps=0.0), bases=bases), rows)
    want, _ = replay(gk.scale_by_soap(update_interval=2, eps=0.0), rows)
    # The first moments go through one product more per turn.
    assert_equal(got, want, rtol=1e-9, atol=1e-10)


def test_linear_methods_do_not_feel_a_basis(x64: None) -> None:
    """Momentum in turning coordinates is momentum, from the second step on."""
    rows = [normal(i, 3, 4) for i in range(5)]
    got, _ = replay(gk.in_basis(optax.trace(0.9), bases=gk.kronecker_bases(update_interval=1)), rows)
    assert_equal(got[0], np.zeros((3, 4)))
    assert_equal(got[1:], replay(optax.trace(0.9), rows[1:])[0], rtol=1e-12, atol=1e-13)


def test_bases_of_the_users_own(x64: None) -> None:
    """One fixed rotation of columns: signs are taken in it."""
    R = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    fixed = (None, jnp.asarray(R)[None])
    bases: Any = gk.kronecker_bases()._replace(
        init=lambda rows, dims, dtype: (),
        first=lambda G, state: (fixed, state),
        next=lambda G, state, Q, calls: (Q, (None, None), state),
    )
    rows = [normal(i, 2, 3) for i in range(2)]
    got, _ = replay(gk.in_basis(optax.scale_by_sign(), bases=bases), rows)
    assert_equal(got[1], np.sign(np.asarray(rows[1]) @ R) @ R.T)
    state = gk.in_basis(gk.scale_by_adam()).init({"w": jnp.ones((2, 3))})
    assert [q.shape for q in jax.tree.leaves(state.Q)] == [(2, 2), (3, 3)]
