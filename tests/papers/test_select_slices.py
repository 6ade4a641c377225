"""Error feedback over slices (Ahn et al., 2025)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from tests.papers.replay import assert_equal, normal, updates


def directions(tx: Any, gradients: list[Any]) -> list[Any]:
    return updates(tx, gradients[0], gradients)


def test_what_is_taken_and_what_is_kept_sum_up_to_all_gradients(x64: None) -> None:
    tx, g = gk.select_slices(fraction=0.3, ef_decay=0.0), [normal(i, 7, 5) for i in range(6)]
    state, total = tx.init(g[0]), np.zeros((7, 5))
    for x in g:
        u, state = tx.update(x, state)
        total = total + np.asarray(u)
        assert (np.abs(np.asarray(u)).sum(axis=0) > 0).sum() == 2  # ceil(0.3 x 5) of the shorter axis
    assert_equal(total + np.asarray(state.M), np.sum([np.asarray(x) for x in g], axis=0), 1e-13, 1e-13)


def test_a_constant_gradient_takes_every_slice_in_turn(x64: None) -> None:
    """Slices of one size: each within 1 / fraction steps."""
    g = jnp.sign(normal(0, 8, 9))
    taken = [np.abs(u).sum(axis=1) > 0 for u in directions(gk.select_slices(fraction=0.25, ef_decay=0.0), [g] * 4)]
    assert np.all(np.sum(taken, axis=0) == 1)


@pytest.mark.parametrize(
    ("shape", "select", "axis", "count"),
    [
        ((4, 9), "short", 0, 1),
        ((9, 4), "short", 1, 1),
        ((6, 6), "short", 1, 2),
        ((4, 9), "output", 1, 3),
        ((9, 4), "output", 1, 1),
    ],
)
def test_which_slices(shape: tuple[int, int], select: str, axis: int, count: int, x64: None) -> None:
    """Those of largest l1 norm; of equal ones the first."""
    g = np.asarray(normal(0, *shape))
    got = np.asarray(directions(gk.select_slices(fraction=0.25, select=select), [jnp.asarray(g)])[0])
    norms = np.abs(g).sum(axis=1 - axis)
    want = np.sort(np.argsort(-norms, kind="stable")[:count])
    assert np.flatnonzero(np.abs(got).sum(axis=1 - axis)).tolist() == want.tolist()
    np.testing.assert_array_equal(np.take(got, want, axis=axis), np.take(g, want, axis=axis))
    first = np.asarray(directions(gk.select_slices(fraction=0.25, select=select), [jnp.ones(shape)])[0])
    assert np.flatnonzero(first.sum(axis=1 - axis)).tolist() == list(range(count))


def test_in_front_of_muon_it_is_dion2(x64: None) -> None:
    g = [
        {"a": normal(i, 4, 9), "b": normal(9 + i, 9, 4), "scan": {"kernel": normal(20 + i, 3, 4, 4)}} for i in range(4)
    ]
    layers = gk.leaves.layout((gk.leaves.by_path("scan/kernel"), {"stack": 1}))
    behind = gk.scale_by_muon(
        momentum=0.0, nesterov=False, coefficients="polar_express", scale="ratio", eps=1e-8, layout=layers
    )
    chain = optax.chain(gk.select_slices(layout=layers), behind)
    assert_equal(directions(chain, g), directions(gk.scale_by_dion2(layout=layers), g), 1e-9, 1e-10)


def test_bad_input() -> None:
    for options, message in (
        ({"fraction": 0.0}, "fraction must be"),
        ({"ef_decay": 1.5}, "ef_decay must be"),
        ({"select": "rows"}, "select must be one of"),
        ({"selection": "all"}, "selection must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            gk.select_slices(**options)
    with pytest.raises(ValueError, match="select_slices: the leaf 'bias'"):
        jax.eval_shape(gk.select_slices().init, {"bias": jnp.ones(3)})
