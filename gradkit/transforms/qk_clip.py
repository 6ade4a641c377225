"""QK-clip: query and key weights made smaller, head by head, where the attention logits have become too large."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import need, scalar, transformation
from gradkit.engine.sums import own_parts, whole_shape
from gradkit.leaves import Layout, axes_of, names, resolve_layout
from gradkit.types import Scalar

PAPER = Paper("Kimi K2: Open Agentic Intelligence", "Kimi Team", 2025, "2507.20534")
NAME, LOGITS = "qk_clip", "max_attention_logits"
ROLES = ("query", "key", "query_rotary")


class QKRole(NamedTuple):
    r"""What a kernel is for the attention logits.

    Attributes:
      role: "query", "key", or "query_rotary", the part of a query whose key is shared by all heads and never clipped.
      attention: the name of the attention in `max_attention_logits`; of a regular expression with groups what
        `re.Match.expand` makes of it: r"\1" for the first group of r"(.*)/query/kernel".
      heads: the number of heads that the kernel has.
      heads_axis: the axis of the leaf along which heads are: as many entries, or contiguous blocks of equal length;
        negative ones count from the last. Not used with one head, which is the leaf.
      features: (start, stop) of the features of every head that have this role, where a kernel has several. They are
        within the block of a head, or on the axis behind `heads_axis` where that has one entry per head. Default None:
        all.

    >>> QKRole("query", "attention", heads=4, heads_axis=1).features is None
    True
    """

    role: str
    attention: str
    heads: int = 1
    heads_axis: int = -1
    features: tuple[int, int] | None = None


class QKClipState(NamedTuple):
    """Metrics: how many heads were clipped, and how many logits were not finite, at the last update."""

    metrics: dict[str, jax.Array]


def _role(given: Any) -> QKRole:
    own = QKRole(**given) if isinstance(given, Mapping) else given
    if not isinstance(own, QKRole):
        raise ValueError(
            f"{NAME}: roles must be of QKRole, got {given!r}; write gk.QKRole('query', 'attention', heads=8)"
        )
    checks.choice("role", own.role, ROLES)
    checks.integer("heads", own.heads, 1)
    if own.features is not None and not (len(own.features) == 2 and 0 <= own.features[0] < own.features[1]):
        raise ValueError(f"{NAME}: features must be (start, stop) with 0 <= start < stop, got {own.features!r}")
    return own


class _Rule(NamedTuple):
    """The roles of the leaves whose path a regular expression matches."""

    pattern: re.Pattern[str]
    roles: tuple[QKRole, ...]


def _rules(roles: Any) -> list[_Rule]:
    if not isinstance(roles, Mapping):
        raise ValueError(
            f"{NAME}: roles must be a mapping of paths to gk.QKRole, got {roles!r}; write "
            "roles={'(.*)/query/kernel': gk.QKRole('query', r'\\1', heads=8, heads_axis=1), ...}"
        )
    out = []
    for path, given in roles.items():
        several = isinstance(given, Sequence) and not isinstance(given, QKRole)
        try:
            pattern = re.compile(path)
        except re.error as error:
            raise ValueError(f"{NAME}: roles has the key {path!r}, which is no regular expression: {error}") from error
        out.append(_Rule(pattern, tuple(map(_role, given if several else [given]))))
    return out


class _Use(NamedTuple):
    """One role of one leaf."""

    leaf: int
    role: QKRole


def _uses(rules: Sequence[_Rule], known: Sequence[str]) -> list[_Use]:
    """The roles of the leaves of these names, attentions by their own names."""
    out = []
    for i, name in enumerate(known):
        for rule in rules:
            if (match := rule.pattern.fullmatch(name)) is not None:
                out += [_Use(i, role._replace(attention=match.expand(role.attention))) for role in rule.roles]
    return out


def _check_heads(name: str, shape: Sequence[int], role: QKRole) -> None:
    """Raises where the heads of a role do not fit its leaf."""
    if role.heads == 1:
        return
    if not -len(shape) <= role.heads_axis < len(shape):
        raise ValueError(
            f"{NAME}: heads_axis of {name!r}, of shape {tuple(shape)}, must be one of its axes, got {role}"
        )
    length = shape[role.heads_axis]
    if length % role.heads:
        raise ValueError(
            f"{NAME}: heads of {name!r} must divide the length {length} of its axis {role.heads_axis}, got {role.heads}"
        )


def _factor_of_heads(gamma: jax.Array, name: str, shape: Sequence[int], stack: Sequence[int], role: QKRole) -> Any:
    """gamma (heads,) or (stack, heads) in a shape that broadcasts against the leaf."""
    rank = len(shape)
    layers = gamma.ndim > 1
    lengths = [shape[a] if layers and a in stack else 1 for a in range(rank)]
    if role.heads == 1 and role.features is None:
        return gamma.reshape(lengths)
    axis = role.heads_axis % rank
    per = shape[axis] // role.heads
    behind = per == 1 and role.heads > 1
    width = shape[axis + 1] if behind and axis + 1 < rank else per
    if role.features is not None and role.features[1] > width:
        raise ValueError(
            f"{NAME}: features of {name!r} must be within its {width} features of a head, got {role.features}"
        )
    on = jnp.zeros((width,), gamma.dtype).at[slice(*(role.features or (None,)))].set(1)
    of_entries = 1 + (gamma[..., None] - 1) * on.reshape([1] * gamma.ndim + [width])
    if behind and role.features is not None:
        lengths[axis], lengths[axis + 1] = role.heads, width
        return of_entries.reshape(lengths)
    if behind:
        of_entries = gamma
    lengths[axis] = shape[axis]
    return of_entries.reshape(lengths)


def qk_clip(
    roles: Mapping[str, Any],
    *,
    threshold: Scalar = 100.0,
    alpha: Scalar | None = None,
    missing: str = "error",
    axis_name: Any = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Bounds the attention logits by the weights that make them, after the step and outside of the optimizer.

    Equations, with the step u of a leaf W and the largest logit S_h that head h had before it:

        y = W + u,   gamma_h = min(1, threshold / S_h)                          (1 where S_h <= 0 or not finite)
        query:         head h of y times gamma_h^alpha
        key:           head h of y times gamma_h^(1 - alpha)
        query_rotary:  head h of y times gamma_h                                (its key is shared by all heads)

    With grouped queries a key head serves several query heads: with alpha = 1 the queries alone move, and every head
    gets its own gamma; with a smaller one the key head takes the least gamma of its group to the power 1 - alpha, and
    query h takes gamma_h over that, at most 1. Put it last, after the learning rate. Momenta are not touched. A head
    whose logits are below the threshold takes its step as it is, bit for bit.

    Args:
      roles: path of a leaf (a regular expression) -> `gk.QKRole`, or several where one kernel has several.
      threshold: the largest logit, > 0. Default 100 (paper).
      alpha: the share of the query, in [0, 1]. Default None: 0.5 (paper) where queries and keys have as many heads,
        else 1.
      missing: what becomes of an attention without logits: "error", or "skip", which leaves it alone. Default "error".
      axis_name: mapped axes (of `jax.shard_map` or `jax.vmap`) over which the maximum of the logits is taken. Default
        None: it is that of all devices already, as under `jit`.
      layout: which axes are stacks.

    Returns:
      A transformation that needs `params` and the extra argument `max_attention_logits`: name of an attention -> (heads
      of the queries,), the maximum over batch and positions of the scaled logits before the softmax, at the parameters
      that the gradient is of; of layers stacked for a scan (layers, heads), or (heads,) for all of them.
      `gk.layers.recorded_attention` makes them in models of Flax. Where gradients are accumulated it must be the
      maximum over all microbatches. State: two metrics, `clipped_heads` and `nonfinite_logits`. No collective.

    Raises:
      ValueError: an argument outside its range; heads that do not divide their axis; a path that matches no leaf; at
        `update`, no logits, none of an attention, or of another number of heads.

    Example:
      >>> tx = qk_clip({"q": QKRole("query", "a", 2, 1), "k": QKRole("key", "a", 2, 1)})
      >>> w = {"k": jnp.ones((1, 2)), "q": jnp.ones((1, 2))}
      >>> u, _ = tx.update(jax.tree.map(jnp.zeros_like, w), tx.init(w), w, max_attention_logits={"a": [400.0, 50.0]})
      >>> print(w["q"] + u["q"], w["k"] + u["k"])  # head 0: sqrt(1 / 4) each
      [[0.5 1. ]] [[0.5 1. ]]

    Reference: Kimi Team. Kimi K2: Open Agentic Intelligence. 2025, arXiv 2507.20534, Algorithm 1. Departures: heads of
    grouped queries, which pytorch_optimizer's MuonClip scales by the factors of other heads; logits that are not finite
    are counted and change nothing.
    """
    checks.layout(layout)
    rules = _rules(roles)
    checks.real("threshold", threshold, "(0, inf)")
    checks.real("alpha", alpha, "[0, 1]", optional=True)
    checks.choice("missing", missing, ("error", "skip"))
    checks.axis_name("axis_name", axis_name)

    def init(params: optax.Params) -> QKClipState:
        resolve_layout(layout, params, method=NAME)
        known, leaves = names(params), jax.tree.leaves(params)
        for rule in rules:
            if known and not any(rule.pattern.fullmatch(name) for name in known):
                raise ValueError(
                    f"{NAME}: the path {rule.pattern.pattern!r} of roles matches no leaf; the leaves are "
                    f"{', '.join(map(repr, known[:12]))}"
                )
        for leaf, role in _uses(rules, known):
            _check_heads(known[leaf], leaves[leaf].shape, role)
        return QKClipState({name: jnp.zeros((), jnp.float32) for name in ("clipped_heads", "nonfinite_logits")})

    def update(updates: Any, state: QKClipState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del state
        given = need(NAME, extra, LOGITS)
        leaves, structure = jax.tree.flatten(updates)
        w, known = jax.tree.leaves(params), names(updates)
        uses = _uses(rules, known)
        logits, counts = {}, {"clipped_heads": 0.0, "nonfinite_logits": 0.0}
        for attention in dict.fromkeys(use.role.attention for use in uses):
            if attention in given:
                logits[attention], *count = gammas(attention, given[attention])
                counts = {name: old + new for (name, old), new in zip(counts.items(), count, strict=True)}
            elif missing == "error":
                raise ValueError(
                    f"{NAME}: {LOGITS} has no entry for the attention {attention!r} of "
                    f"{known[_first(uses, attention)]!r}; it has {', '.join(map(repr, given)) or 'none'}; give it, or "
                    "write missing='skip'"
                )
        heads = {use.role.attention: use.role.heads for use in uses if use.role.role == "key"}
        for leaf, role in uses:
            if role.attention in logits and leaves[leaf].size:
                name, shape = known[leaf], whole_shape(known[leaf], leaves[leaf].shape)
                power = powers(name, role, logits[role.attention], heads.get(role.attention))
                stack = axes_of(layout, name, leaves[leaf].shape).stack
                check_stack(name, role, power, [shape[a] for a in stack])
                f = _factor_of_heads(power, name, shape, stack, role)
                (f,) = own_parts([name], [leaves[leaf]], [f])
                f = f.astype(leaves[leaf].dtype)
                leaves[leaf] = (f - 1) * w[leaf] + f * leaves[leaf]
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in counts.items()}
        return structure.unflatten(leaves), QKClipState(metrics)

    def gammas(attention: str, given: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        S = jnp.asarray(given, jnp.result_type(float))
        if S.ndim == 0:
            raise ValueError(f"{NAME}: {LOGITS}[{attention!r}] must be (heads,), got a number; write value.reshape(1)")
        S = S if axis_name is None else jax.lax.pmax(S, axis_name)
        finite = jnp.isfinite(S)
        high = finite & (scalar(threshold, S) < S)
        gamma = jnp.where(high, scalar(threshold, S) / jnp.where(high, S, jnp.ones_like(S)), jnp.ones_like(S))
        return gamma, jnp.sum(high, dtype=jnp.float32), jnp.sum(~finite, dtype=jnp.float32)

    def powers(name: str, role: QKRole, gamma: jax.Array, key_heads: int | None) -> jax.Array:
        """What the heads of a leaf are multiplied by, (heads,) or (layers, heads)."""
        number = gamma.shape[-1]
        if number % role.heads or (role.role != "key" and number != role.heads):
            raise ValueError(
                f"{NAME}: {LOGITS}[{role.attention!r}] must have the {role.heads} heads of {name!r}, got {number}"
            )
        groups = role.heads if role.role == "key" else (key_heads or number)
        share = (0.5 if groups == number else 1.0) if alpha is None else alpha
        if role.role == "query_rotary":
            return gamma
        if groups == number:
            return gamma ** scalar(share if role.role == "query" else 1 - share, gamma)
        least = jnp.min(gamma.reshape(*gamma.shape[:-1], groups, number // groups), axis=-1)
        of_keys = least ** scalar(1 - share, gamma)
        if role.role == "key":
            return of_keys
        return jnp.minimum(gamma / jnp.repeat(of_keys, number // groups, axis=-1), 1)

    def check_stack(name: str, role: QKRole, gamma: jax.Array, stack: list[int]) -> None:
        if gamma.ndim > 1 and list(gamma.shape[:-1]) != stack:
            raise ValueError(
                f"{NAME}: {LOGITS}[{role.attention!r}] must be {(*stack, 'heads')} or ('heads',) for the stack "
                f"{name!r}, got {gamma.shape[:-1]} in front of the heads"
            )

    return transformation(NAME, init, update, needs_params=True, complex_leaves=True)


def _first(uses: Sequence[_Use], attention: str) -> int:
    return next(use.leaf for use in uses if use.role.attention == attention)


register(
    qk_clip,
    form="primitive",
    paper=PAPER,
    needs=(LOGITS,),
    golden=("modern/qk_clip",),
    example={"roles": {".*": QKRole("query", "attention")}},
    opt_outs={"descends": "it goes behind the learning rate, which the contract chains behind it"},
    notes="the last link, after the learning rate",
)
