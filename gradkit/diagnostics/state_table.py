"""A state in lines: what every link keeps, of how many leaves, in which dtypes, in how many bytes."""

from typing import Any

import jax
import numpy as np

from gradkit import checks
from gradkit.engine.states import is_leaf, is_link, walk


def state_table(state: Any) -> str:
    """What a state consists of, to be printed instead of its arrays.

    Args:
      state: the state of any transformation, of arrays or of shapes (`jax.eval_shape(tx.init, params)`).

    Returns:
      A line for every link, and under it one for every field: the value of a scalar, or the number of arrays, their
      dtypes and bytes together. The names are those that `gk.find` knows.

    Example:
      >>> import jax.numpy as jnp
      >>> import gradkit as gk
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> print(state_table(gk.adam(0.1).init(params)))
      0/scale_by_adam
        count  0
        mu     2 arrays, float32, 32 bytes
        nu     2 arrays, float32, 32 bytes
      1/scale_by_learning_rate
        metrics/last_learning_rate  0.1

    Reference: printing a NamedTuple prints every array in it.
    """
    checks.arrays(state=state)
    lines: list[str] = []
    rows: list[tuple[str, str]] = []

    def flush() -> None:
        width = max((len(name) for name, _ in rows), default=0)
        lines.extend(f"  {name:<{width}}  {text}" for name, text in rows)
        rows.clear()

    links = {node.path: node for node in walk(state) if is_link(node.value)}
    for path, node in links.items():
        fields = [(field, getattr(node.value, field)) for field in node.value._fields]
        own = [(name, _text(value)) for field, tree in fields for name, value in _parts(field, tree)]
        if own:
            lines.append("/".join(path))
            rows.extend(own)
            flush()
    if not links:
        rows.extend((name or "state", _text(value)) for name, value in _parts("", state))
        flush()
    return "\n".join(lines)


def _parts(field: str, tree: Any) -> list[tuple[str, Any]]:
    """A field as it is; one that holds the states of other links has its lines there; metrics have a line each."""
    if any(is_link(node.value) for node in walk(tree)):
        return []
    if field == "metrics" and isinstance(tree, dict):
        return [(f"{field}/{name}", value) for name, value in tree.items()]
    return [(field, tree)] if jax.tree.leaves(tree) else []


def _text(tree: Any) -> str:
    leaves = jax.tree.leaves(tree)
    if len(leaves) == 1 and is_leaf(tree) and np.ndim(tree) == 0 and not isinstance(tree, jax.ShapeDtypeStruct):
        return str(tree)
    dtypes = sorted({str(x.dtype) for x in leaves})
    count = f"{len(leaves)} array" + ("s" if len(leaves) != 1 else "")
    return f"{count}, {', '.join(dtypes)}, {sum(x.size * x.dtype.itemsize for x in leaves):,} bytes"
