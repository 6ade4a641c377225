"""Contract 8: what a checkpoint holds of a method's state comes back bit for bit, on the same mesh and on others.

That a run goes on from such bits as if it had not stopped is in `test_shardings.py`. One checkpoint holds the states of
many methods: most of its time is the files of a checkpoint, however few arrays they hold.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from gradkit.catalogue import Card
from gradkit.engine.owned import Owned
from gradkit.parallel import init_sharded
from gradkit.training import Checkpoints
from tests.contract.methods import make, methods_together, same
from tests.parallel.test_shardings import SHAPES, abstract, mesh_of, unpadded


def shapes_of(cards: Sequence[Card], place: Any) -> Any:
    """Parameters and the states of some methods, as shapes: on a mesh of these axes, or (None) on one device."""
    if place is None:
        params: Any = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in SHAPES.items()}
        return {"params": params} | {card.name: jax.eval_shape(make(card).init, params) for card in cards}
    params = abstract(mesh_of(place))
    return {"params": params} | {card.name: init_sharded(make(card), params) for card in cards}


def filled(shapes: Any) -> Any:
    """Arrays of any bits, among them those of infinities and NaN; keys are keys."""
    rng = np.random.default_rng(0)

    def one(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(rng.integers(2**32, size=(*x.shape, 2), dtype=np.uint32))
        bits = rng.integers(256, size=(*x.shape, x.dtype.itemsize), dtype=np.uint8)
        numbers = bits % 2 == 1 if x.dtype == bool else bits.view(x.dtype)
        return jax.device_put(numbers.reshape(x.shape), x.sharding)

    return jax.tree.map(one, shapes)


def assert_same_rows(got: Any, want: Any) -> None:
    """The same bits in every row but padding. Of a count, which state by parameter has one of, the same sum."""

    def is_owned(node: Any) -> bool:
        return isinstance(node, Owned)

    nodes = jax.tree_util.tree_flatten_with_path(got, is_leaf=is_owned)[0]
    sums: dict[Any, Any] = {}
    for (path, x), y in zip(nodes, jax.tree.leaves(want, is_leaf=is_owned), strict=True):
        if not is_owned(x):
            same(x, y)
            continue
        assert x.rows == y.rows
        named = [bool(row) for row in x.rows]
        for pair in zip(*map(jax.tree.leaves, (x.arrays, y.arrays)), strict=True):
            a, b = (np.asarray(array)[named] for array in pair)
            if x.addresses[0].names == ("",):
                sums[path[:-1]] = sums.get(path[:-1], 0) + np.sum(a, dtype=np.int64) - np.sum(b, dtype=np.int64)
            else:
                same(a, b)
    assert all(difference % 2**32 == 0 for difference in sums.values())


@pytest.mark.slow
@methods_together("checkpoint", 20)
def test_states_come_back_from_a_checkpoint(cards: Sequence[Card], tmp_path: Path) -> None:
    """Saved on a mesh of Auto axes, of Explicit axes, and on one device; read there, and on one device.

    Over Explicit axes the state of some matrix methods is in stacks with owners; on one device it is under the names
    of parameters. What is read there in this form and saved again comes back to the stacks.
    """
    alone = shapes_of(cards, None)
    for place in (AxisType.Auto, AxisType.Explicit, None):
        source = shapes_of(cards, place)
        saved = filled(source)
        alike = {k: x for k, x in alone.items() if jax.tree.structure(x) == jax.tree.structure(source[k])}
        assert place == AxisType.Explicit or len(alike) == len(alone)
        folders = Checkpoints(tmp_path / str(place)), Checkpoints(tmp_path / f"{place} alike")
        with folders[0] as whole, folders[1] as part:
            whole.save(1, saved)
            part.save(1, {k: saved[k] for k in alike})
            if len(alike) < len(alone):
                by_parameter, _ = whole.restore(alone)
                with Checkpoints(tmp_path / f"{place} by parameter") as other:
                    other.save(1, by_parameter)
                    assert_same_rows(other.restore(source)[0], saved)
            for checkpoints, like in ((whole, source), (part, alike))[0 if place else 1 :]:
                back, _ = checkpoints.restore(like)
                assert jax.tree.structure(back) == jax.tree.structure(like)
                for x, y, z in zip(*map(jax.tree.leaves, (back, like, {k: saved[k] for k in like})), strict=True):
                    assert y.sharding is None or x.sharding == y.sharding
                    same(unpadded(x, z), unpadded(z, x))
