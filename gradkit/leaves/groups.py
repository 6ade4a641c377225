"""Parameter groups: an ordered table of rules, the first that matches a leaf decides what it gets.

groups([(by_role("embedding", "head"), adamw(3e-4)), (by_role("vector", "scalar"), sgd(1e-2))], default=lion(1e-4))
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit.leaves.derived import label_nodes
from gradkit.leaves.paths import names
from gradkit.leaves.scopes import deciding
from gradkit.leaves.selectors import Selector, near


def groups(
    rules: Sequence[tuple[Selector, optax.GradientTransformation]],
    *,
    default: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """One transformation per group of parameters, by first match (`optax.partition` underneath).

    Args:
      rules: pairs (selector, transformation), in order of precedence. To leave parameters as they are,
        say so: `(selector, optax.set_to_zero())`.
      default: what the leaves get that no rule matches.

    Returns:
      A transformation; `describe(tx, params)` prints which leaf is in which group.

    Raises:
      ValueError: at `init`, a rule that matches no leaf of its own (a typo would leave a group empty), or
        a leaf that no rule matches and no default takes; both messages offer the nearest names.

    Example:
      >>> import gradkit as gk
      >>> tx = groups([(gk.leaves.by_path(".*kernel"), gk.sgd(1.0))], default=optax.set_to_zero())
      >>> params = {"bias": jnp.ones(2), "kernel": jnp.ones(2)}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["kernel"].tolist(), updates["bias"].tolist()
      ([-1.0, -1.0], [0.0, 0.0])
    """
    rules = list(rules)
    for rule in rules:
        if not (isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[0], Selector)):
            raise ValueError(f"rules must be pairs (selector, transformation), got {rule!r}")
    labels = [f"{i}: {selector.text}" for i, (selector, _) in enumerate(rules)]
    transformations: dict[Any, Any] = dict(zip(labels, (tx for _, tx in rules), strict=True))
    if default is not None:
        transformations["default"] = default

    def label(name: str, x: Any) -> str:
        for text, (selector, _) in zip(labels, rules, strict=True):
            if selector.test(name, jnp.shape(x), getattr(x, "dtype", None)):
                return text
        if default is not None:
            return "default"
        raise ValueError(
            f"groups: no rule matches the leaf {name!r} and there is no default; rules: {'; '.join(labels)}"
        )

    def label_tree(tree: Any) -> Any:
        with deciding(tree):
            return label_nodes(label, tree)

    partition = optax.partition(transformations, label_tree)

    def init(params: optax.Params) -> optax.OptState:
        used = set(jax.tree.leaves(label_tree(params)))
        known = names(params)
        for text, (selector, _) in zip(labels, rules, strict=True):
            if text not in used and known:
                offer = near(selector.text, known)
                raise ValueError(
                    f"groups: the rule {text} decides no leaf{offer or '; leaves: ' + ', '.join(known[:12])}"
                )
        return partition.init(params)

    return optax.GradientTransformationExtraArgs(init, partition.update)
