"""A state in a narrow format: which of its arrays are coded, which are kept as they are, and which have no code.

    floating, smaller in the format             coded: moments, statistics, factors, bases, windows; also with owners
    a field that its state calls exact          `Exact`, as it is: parameters, and what does not survive rounding
    float64, complex                            a ValueError with the name
    scalars, rows of one entry, whole numbers   as they are

The state of a link says which of its fields must not be rounded by an attribute of its class, `exact_fields`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.engine.codecs import CODED, Exact, encode, gains, like_box
from gradkit.leaves.derived import flatten, node_names

# Fields of optax's states that hold parameters, or what is only read as a difference: as `exact_fields`.
OF_OPTAX = {
    "COCOBState": ("init_particles",),
    "DoGState": ("init_params",),
    "DoWGState": ("init_params",),
    "MadgradState": ("x0",),
    "MechanicState": ("x0",),
    "ProdigyState": ("params0",),
    "ScaleByBacktrackingLinesearchState": ("grad",),
    "ScaleByDistanceOverGradientsState": ("init_params",),
    "ScaleByLBFGSState": ("params", "updates", "diff_params_memory", "diff_updates_memory"),
    "ScaleByZoomLinesearchState": ("grad",),
    "ScheduleFreeState": ("z",),
}


def exact_fields(node: Any) -> tuple[str, ...]:
    """The fields of a state that must not be rounded.

    >>> import optax
    >>> exact_fields(optax.contrib.ScheduleFreeState(0, 0, 0, 0, 0, 0)), exact_fields(optax.EmptyState())
    (('z',), ())
    """
    if not hasattr(node, "_fields"):
        return ()
    foreign = OF_OPTAX.get(type(node).__name__, ()) if type(node).__module__.startswith("optax.") else ()
    return getattr(type(node), "exact_fields", foreign)


def _exact(state: Any) -> list[bool]:
    """Per leaf, whether it must not be rounded."""
    out: list[bool] = []
    for node in jax.tree.leaves(state, is_leaf=lambda node: bool(exact_fields(node))):
        exact = exact_fields(node)
        if not exact:
            out.append(False)
        for field, value in node._asdict().items() if exact else ():
            out += [True] * len(jax.tree.leaves(value)) if field in exact else _exact(value)
    return out


def encode_state(method: str, state: Any, form: str, count: jax.Array, block: int) -> Any:
    """The state with every array in a narrow format that becomes smaller by it.

    Args:
      method: the public name, for messages.
      state: of any transformation; boxes stay around what was in them.
      form: one of `codecs.FORMATS`.
      count: the number of the step, for the dither.
      block: entries of the last axis that share a scale.

    Raises:
      ValueError: an array that would have to be coded has a dtype without a code.
    """
    exact = iter(_exact(state))
    nodes, structure = flatten(state)

    def one(name: str, node: Any) -> Any:
        leaves = jax.tree.leaves(node)
        kept = [next(exact) for _ in leaves]
        if len(leaves) != 1 or not _floating(leaves[0]) or not gains(leaves[0], form, block):
            return node
        (x,) = leaves
        if kept[0]:
            return Exact(node)
        if x.dtype not in CODED:
            allowed = ", ".join(map(str, CODED))
            raise ValueError(
                f"{method}: the state {name!r} is {x.dtype}, and state={form!r} has codes of {allowed} only; write "
                f"state=None, or keep this part of the parameters out of it with optax.masked or gk.groups"
            )
        code = encode(x, form, count, block)
        return code if node is x else like_box(node, code)

    return structure.unflatten([one(name, node) for name, node in zip(node_names(state), nodes, strict=True)])


def _floating(x: Any) -> bool:
    return not jnp.issubdtype(x.dtype, jax.dtypes.prng_key) and jnp.issubdtype(x.dtype, np.inexact)
