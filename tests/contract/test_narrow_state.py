"""Contract: `gk.precision(state=...)` codes every floating array of every method, or keeps it exactly and says so."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.catalogue import Card
from gradkit.engine.codecs import Exact, decode, is_encoded
from tests.by_numpy import by_numpy
from tests.contract.methods import SMALL, draw, grads_like, methods
from tests.contract.shared import shared

# Parameters are of this size, gradients of size 1: what is as large in a state is made of parameters.
FAR = 100.0


def coded_bytes(shape: tuple[int, ...], form: str) -> int:
    """What an array of these lengths takes: 2 bytes an entry; or a byte, 4 a row, and 4 an entry of a diagonal."""
    entries, columns = int(np.prod(shape)), shape[-1]
    if form == "bfloat16":
        return 2 * entries
    square = len(shape) > 1 and shape[-2] == columns
    return entries + (4 + 4 * square) * entries // columns


def spacing(x: np.ndarray, form: str) -> np.ndarray:
    """A bound of what coding takes from each entry: of bfloat16 the distance of two neighbours, at most 2^-7 of the
    number; of 8 bits 1/127 of the row's largest, which is not less than (2 r + 1) / 255^2 of it for every root r < 255,
    and nothing on a diagonal. 1e-6 of it for roundings of float32."""
    if form == "bfloat16":
        return np.abs(x) * 2.0**-7
    square = x.ndim > 1 and x.shape[-1] == x.shape[-2]
    off = np.broadcast_to(~np.eye(x.shape[-1], dtype=bool) if square else True, x.shape)
    largest = np.max(np.abs(x) * off, axis=-1, keepdims=True)
    return off * largest * (1 / 127 + 1e-6)


def entries_of(state: Any) -> list[tuple[str, Any]]:
    """Arrays and codes of a state, by name."""
    nodes = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_encoded)[0]
    return [(jax.tree_util.keystr(path), node) for path, node in nodes]


def check_codes(got: Any, want: Any, form: str) -> None:
    """Every array of a state that was coded: its bytes, and how far it is from what was given."""
    for (name, code), x in zip(entries_of(got), jax.tree.leaves(want), strict=True):
        x = np.asarray(x) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        if not is_encoded(code):
            # A scalar, a whole number, a key, a row that codes make no smaller.
            assert not floating or not x.size or not x.ndim or coded_bytes(x.shape, form) >= x.nbytes, name
            continue
        assert floating and x.dtype == np.float32, name
        if isinstance(code, Exact):
            np.testing.assert_array_equal(code.value, x, err_msg=name)
            continue
        assert sum(y.nbytes for y in code) == coded_bytes(x.shape, form) < x.nbytes, name
        assert np.all(np.abs(np.asarray(code.decode(), np.float64) - x) <= spacing(x.astype(np.float64), form)), name
        assert np.abs(np.median(x) - FAR) > FAR / 10, f"{name} is made of parameters, which must be in exact_fields"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["bfloat16", "int8-block"])
@methods("narrow state")
def test_every_floating_state_is_coded_and_nothing_else_changes(card: Card, form: str) -> None:
    """A step from a coded state is the method's own step from what the codes say, to the last bit; and the codes say
    what the method made to within one spacing. By induction a run differs by codes alone."""
    inner, tx = shared(card).numbers, gk.precision(shared(card).tx, state=form)
    init, update = by_numpy(tx.init), by_numpy(tx.update)
    params = jax.tree.map(lambda x: jax.device_put(np.asarray(x) + np.float32(FAR)), draw(0, SMALL))
    state = init(params)
    check_codes(state.inner, inner.init(params), form)
    for step in range(3):
        grads = grads_like(params, step)
        want, after = inner.update(grads, decode(state.inner), params)
        got, state = update(grads, state, params)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_array_equal(x, y)
        check_codes(state.inner, after, form)
        params = optax.apply_updates(params, got)
