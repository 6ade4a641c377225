"""Metrics: what the links of a chain publish, read from the state.

A link that measures something anyway (a norm, a ratio, the learning rate) leaves it in a field `metrics` of
its state: a dictionary name -> scalar of fixed names. Reading costs nothing, and nothing is computed twice.

A metric with the name of a hyperparameter is kept as `last_NAME`, so that `optax.tree.get(state, "learning_rate")` and
`optax.tree.set(state, learning_rate=...)` find the hyperparameter that `optax.inject_hyperparams` keeps, and it alone.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.engine.norms import global_norm
from gradkit.engine.states import walk
from gradkit.types import PyTree


def metrics(state: Any, *, updates: PyTree = None, params: PyTree = None, nonfinite: bool = False) -> dict[str, Any]:
    """All published scalars of a state, however deep the links that publish them are.

    Args:
      state: the state of any transformation.
      updates: the updates of the step, where their norm is wanted. Default None.
      params: the parameters, where their norm is wanted. Default None.
      nonfinite: whether the entries of the state that are NaN or infinite are counted. After a gradient that was not
        finite most methods keep such entries for good; some then make updates that are not finite, and some make none.
        Reads the whole state. Default False.

    Returns:
      Name -> scalar array: `learning_rate`, `gradient_norm`, `clipped`, `trust_ratio`, … What the links of a group of
      leaves publish has the name of the group in front (`adamw/learning_rate`, `muon/learning_rate`), also the names in
      `optax.named_chain`. Where several links of one chain publish one name, each has the name of the link in front
      (`clip_by_global_norm/gradient_norm`), and a number where these are the same as well. `update_norm` and
      `param_norm`: of all leaves together, where their trees are given. `nonfinite_state`: 0 as long as all is well.

    Example:
      >>> import gradkit as gk
      >>> import jax.numpy as jnp
      >>> tx = gk.adam(gk.schedules.wsd(0.5, warmup_steps=0))
      >>> x = jnp.ones(4)
      >>> updates, state = tx.update(x, tx.init(x), x)
      >>> {name: round(float(value), 4) for name, value in metrics(state, updates=updates).items()}
      {'learning_rate': 0.5, 'update_norm': 1.0}

    Reference: the most asked question about optax is how to read the current learning rate.
    """
    checks.arrays(state=state, updates=updates, params=params)
    checks.switch(nonfinite=nonfinite)
    rows = [
        ("/".join(node.groups), node.link, kept.removeprefix("last_"), value)
        for node in walk(state)
        if isinstance(getattr(node.value, "metrics", None), dict)
        for kept, value in node.value.metrics.items()
    ]
    plain = Counter((group, name) for group, _, name, _ in rows)
    seen: Counter[tuple[str, ...]] = Counter()
    found: dict[str, Any] = {}
    for group, link, name, value in rows:
        if plain[group, name] > 1:
            place = seen[group, link, name]
            seen[group, link, name] += 1
            name = f"{link}_{place}/{name}" if place else f"{link}/{name}"
        found[f"{group}/{name}" if group else name] = value
    if nonfinite:
        found["nonfinite_state"] = nonfinite_entries(state)
    for name, tree in (("update_norm", updates), ("param_norm", params)):
        if tree is not None:
            found[name] = global_norm(tree)
    return found


@jax.jit
def _nonfinite(x: jax.Array) -> jax.Array:
    return jnp.sum(~jnp.isfinite(x), dtype=jnp.float32)


def nonfinite_entries(state: Any) -> jax.Array:
    """How many entries of a state are NaN or infinite; not counted is what a link declares as `may_be_nan`, because an
    empty place is a NaN there."""

    def counted(node: Any) -> Iterator[jax.Array]:
        free = getattr(type(node), "may_be_nan", ())
        if free:
            node = [value for field, value in zip(node._fields, node, strict=True) if field not in free]
        inside = jax.tree.leaves(node, is_leaf=lambda x: x is not node and hasattr(type(x), "may_be_nan"))
        for x in inside:
            if hasattr(type(x), "may_be_nan"):
                yield from counted(x)
            elif jnp.issubdtype(x.dtype, jnp.inexact):
                yield _nonfinite(x)

    return sum(counted(state), jnp.zeros((), jnp.float32))
