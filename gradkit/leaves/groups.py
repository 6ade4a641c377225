"""Parameter groups: an ordered table of rules, the first that matches a leaf decides what it gets.

groups([(by_role("embedding", "head"), adamw(3e-4)), (by_role("vector", "scalar"), {"decay": 0})], default=lion(1e-4))
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.leaves.derived import label_nodes
from gradkit.leaves.paths import names
from gradkit.leaves.recording import Method, announce, links_of
from gradkit.leaves.scopes import decaying, deciding
from gradkit.leaves.selectors import Selector, near


def _rule(rule: Any, default: optax.GradientTransformation | None) -> tuple[Selector, optax.GradientTransformation]:
    """A rule as a pair (selector, transformation)."""
    selector, *rest = rule if isinstance(rule, tuple) else (None,)
    multipliers = dict(rest.pop()) if rest and isinstance(rest[-1], Mapping) else None
    tx = rest[0] if rest else default
    unknown = set(multipliers or ()) - {"rate", "decay"}
    if not isinstance(selector, Selector) or len(rest) > 1 or (not rest and multipliers is None) or unknown:
        raise ValueError(
            "groups: rules must be pairs (selector, transformation), pairs (selector, multipliers) or triples of all; "
            f"multipliers are such as {{'rate': 0.1, 'decay': 0}}; got {rule!r}"
        )
    if tx is None:
        raise ValueError(
            f"groups: the rule {selector.text} multiplies the default, and there is none: write "
            f"default=gk.adamw(1e-3), or ({selector.text}, gk.adamw(1e-3), {multipliers!r})"
        )
    for name, value in (multipliers or {}).items():
        checks.real(name, value, "[0, inf)")
    return selector, tx if multipliers is None else _multiplied(tx, selector.text, **multipliers)


def _multiplied(
    tx: optax.GradientTransformation, text: str, rate: Any = 1.0, decay: Any = 1.0
) -> optax.GradientTransformationExtraArgs:
    """A transformation whose update, and whose weight decay, are multiplied."""
    known = optax.with_extra_args_support(tx)
    rated, decayed = (not isinstance(value, int | float) or value != 1 for value in (rate, decay))

    def start(params: optax.Params) -> optax.OptState:
        with decaying(decay):
            return known.init(params)

    def init(params: optax.Params) -> optax.OptState:
        links = [link for outer in (links_of(known, params) if decayed else ()) for link in outer.walk()]
        if decayed and all(link.method.weight_decay is None for link in links):
            raise ValueError(
                f"groups: the rule {text} multiplies a weight decay, and its transformation has none that is known; "
                "write weight_decay in an optimizer of gradkit, or give the group a transformation of its own"
            )
        return announce(Method("scaled", rate), start, params) if rated else start(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        with decaying(decay):
            updates, state = known.update(updates, state, params, **extra)
        if rated:
            updates = jax.tree.map(lambda u: u * jnp.asarray(rate).astype(u.dtype), updates)
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


def groups(
    rules: Sequence[tuple[Any, ...]],
    *,
    default: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """One transformation per group of parameters, by first match (`optax.partition` underneath).

    Args:
      rules: pairs (selector, transformation), in order of precedence. To leave parameters as they are,
        say so: `(selector, optax.set_to_zero())`. With multipliers, triples (selector, transformation,
        `{"rate": 0.1, "decay": 0}`), or pairs (selector, multipliers), which take the default: `rate` multiplies
        the update, and with it the decay in it; `decay` the coefficient of weight decay. Both are >= 0.
      default: what the leaves get that no rule matches.

    Returns:
      A transformation; `describe(tx, params)` prints which leaf is in which group.

    Raises:
      ValueError: a rule of another form, a multiplier outside its range; at `init`, a rule that matches no leaf of
        its own (a typo would leave a group empty), or a leaf that no rule matches and no default takes; both messages
        offer the nearest names; a multiplier of a decay that the transformation does not have.

    Example:
      >>> import gradkit as gk
      >>> tx = groups([(gk.leaves.by_path(".*kernel"), gk.sgd(1.0))], default=optax.set_to_zero())
      >>> params = {"bias": jnp.ones(2), "kernel": jnp.ones(2)}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["kernel"].tolist(), updates["bias"].tolist()
      ([-1.0, -1.0], [0.0, 0.0])
      >>> tx = groups([(gk.leaves.by_path("bias"), {"rate": 0.5})], default=gk.sgd(1.0))
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["kernel"].tolist(), updates["bias"].tolist()
      ([-1.0, -1.0], [-0.5, -0.5])
    """
    if default is not None:
        checks.transformation(default=default)
    rules = [_rule(rule, default) for rule in rules]
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
