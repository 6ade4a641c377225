"""Metrics: what the links of a chain publish, read from the state.

A link that measures something anyway (a norm, a ratio, the learning rate) leaves it in a field `metrics` of
its state: a dictionary name -> scalar of fixed names. Reading costs nothing, and nothing is computed twice.

A metric with the name of a hyperparameter is kept as `last_NAME`, so that `optax.tree.get(state, "learning_rate")` and
`optax.tree.set(state, learning_rate=...)` find the hyperparameter that `optax.inject_hyperparams` keeps, and it alone.
"""

from typing import Any

import jax


def metrics(state: Any) -> dict[str, Any]:
    """All published scalars of a state, however deep the links that publish them are.

    Args:
      state: the state of any transformation.

    Returns:
      Name -> scalar array: `learning_rate`, `gradient_norm`, `clipped`, `trust_ratio`, … Where several links
      publish one name, the second is `name_1`, the third `name_2`, in the order of the chain.

    Example:
      >>> import gradkit as gk
      >>> import jax.numpy as jnp
      >>> tx = gk.adam(gk.schedules.wsd(0.5, warmup_steps=0))
      >>> x = jnp.ones(3)
      >>> _, state = tx.update(x, tx.init(x), x)
      >>> {name: round(float(value), 4) for name, value in metrics(state).items()}
      {'learning_rate': 0.5}

    Reference: the most asked question about optax is how to read the current learning rate.
    """

    def publishes(node: Any) -> bool:
        return isinstance(getattr(node, "metrics", None), dict)

    found: dict[str, Any] = {}

    def collect(tree: Any) -> None:
        for node in jax.tree.leaves(tree, is_leaf=publishes):
            if not publishes(node):
                continue
            for kept, value in node.metrics.items():
                name = kept.removeprefix("last_")
                same = sum(key == name or key.removeprefix(name + "_").isdigit() for key in found)
                found[f"{name}_{same}" if same else name] = value
            if hasattr(node, "_fields"):
                collect([getattr(node, field) for field in node._fields if field != "metrics"])

    collect(state)
    return found
