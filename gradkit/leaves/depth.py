"""Layer-wise decay of the learning rate: later layers take larger steps."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.leaves import naming
from gradkit.leaves.infer import Decision
from gradkit.leaves.paths import names
from gradkit.leaves.recording import Method, announce
from gradkit.leaves.scopes import Layout, resolve_layout, scoped_init, scoped_update
from gradkit.types import PyTree, Scalar

_NUMBER = re.compile(r"(.*?)[_.]?(\d+)")
_EARLY = re.compile(r"embed\w*|emb|wte|wpe|stem|patch\w*|pos\w*|cls|tokens?|tokenizer|input|init|in")


class _Place(NamedTuple):
    """The position of a leaf in a tower of layers: the tower, the number of its module or None, the stack axes."""

    tower: str
    number: int | None
    axes: tuple[int, ...]


def exponents(params: PyTree, layout: Layout | None = None) -> list[np.ndarray]:
    """The exponent of the decay for each leaf, along its stack axes where it is a stack of layers.

    Args:
      params: arrays or shapes.
      layout: which axes are stacks. Default None: what is inferred from the tree.

    Returns:
      Integer arrays that broadcast against the leaves, in the order of `jax.tree.leaves`.

    Raises:
      ValueError: no layers are found.

    Example:
      >>> params = {"embed": {"embedding": np.zeros((9, 4))}, "head": {"kernel": np.zeros((4, 9))}}
      >>> params |= {f"layers_{i}": {"kernel": np.zeros((4, 4))} for i in range(2)}
      >>> [e.item() for e in exponents(params)]
      [3, 0, 2, 1]
    """
    known = names(params)
    shapes = [tuple(jnp.shape(x)) for x in jax.tree.leaves(params)]
    decided = resolve_layout(layout, params, method="layerwise_decay")
    every = [decided(name, shape) for name, shape in zip(known, shapes, strict=True)]
    # A layout of the user does not distinguish stacks of layers from stacks of experts.
    layers = (
        {e[0]: own for e, own in zip(decided.entries, decided.layers, strict=True)}
        if isinstance(decided, Decision)
        else {}
    )
    stacks = [layers.get(name, axes.stack) for name, axes in zip(known, every, strict=True)]
    places = _places(known, stacks, shapes, named=True) or _places(known, stacks, shapes, named=False)
    if not places:
        raise ValueError(
            f"layerwise_decay: no layers were found among {', '.join(known[:12])}; they are numbered modules such as "
            "'layers_0' or stack axes: declare those with layout=gk.leaves.layout((selector, {'stack': 1}))"
        )
    depth = {tower: _count(tower, places, shapes) for tower in {p.tower for p in places.values()}}
    out = []
    for i, (name, shape, axes) in enumerate(zip(known, shapes, every, strict=True)):
        if i in places:
            out.append(_inside(i, places, shapes, depth[places[i].tower]))
        else:
            early = axes.role == "embedding" or any(
                _EARLY.fullmatch(w) for p in name.split("/") for w in naming.words(p)
            )
            out.append(np.full((1,) * len(shape), _nearest(name, depth) + 1 if early else 0))
    return out


def _places(
    known: Sequence[str], stacks: Sequence[tuple[int, ...]], shapes: Sequence[tuple[int, ...]], *, named: bool
) -> dict[int, _Place]:
    """Which leaves belong to layers; `named`: only modules whose names say that they are layers."""
    numbers: dict[str, set[int]] = {}
    found: list[list[tuple[str, int]]] = []
    for name in known:
        pieces, own = name.split("/"), []
        for i, piece in enumerate(pieces):
            match = _NUMBER.fullmatch(piece)
            if match is None:
                continue
            word = match[1] or (pieces[i - 1] if i else "")
            if (
                not named
                or naming.stacks(word)
                or any(w.endswith(("block", "layer", "stage")) for w in naming.words(word))
            ):
                own.append(("/".join([*pieces[:i], match[1]]), int(match[2])))
                numbers.setdefault(own[-1][0], set()).add(own[-1][1])
        found.append(own)
    out = {}
    for i, own in enumerate(found):
        number = next(((stem, n) for stem, n in own if len(numbers[stem]) > 1), None)
        axes = stacks[i] if named else ()
        if number is not None:
            out[i] = _Place(number[0], number[1], axes)
        elif axes:
            out[i] = _Place(_stacked_module(i, known, stacks, shapes), None, axes)
    return out


def _stacked_module(
    i: int, known: Sequence[str], stacks: Sequence[tuple[int, ...]], shapes: Sequence[tuple[int, ...]]
) -> str:
    """The largest module all of whose leaves have the same stack axes as this one."""

    def sizes(j: int) -> tuple[int, ...]:
        return tuple(shapes[j][a] for a in stacks[j])

    module = known[i]
    while module:
        above = module.rpartition("/")[0]
        below = [j for j, name in enumerate(known) if name.startswith(above + "/") or not above]
        if any(sizes(j)[:1] != sizes(i)[:1] for j in below):
            break
        module = above
    return module


def _sizes(i: int, places: dict[int, _Place], shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(shapes[i][a] for a in places[i].axes)


def _numbers(tower: str, places: dict[int, _Place], shapes: Sequence[tuple[int, ...]]) -> dict[int, int]:
    """The number of layers that are stacked in each numbered module of a tower, by the number of the module."""
    out: dict[int, int] = {}
    for i, place in places.items():
        if place.tower == tower and place.number is not None:
            out[place.number] = max(out.get(place.number, 1), int(np.prod(_sizes(i, places, shapes)[:1] or (1,))))
    return dict(sorted(out.items()))


def _count(tower: str, places: dict[int, _Place], shapes: Sequence[tuple[int, ...]]) -> int:
    numbers = _numbers(tower, places, shapes)
    if numbers:
        return sum(numbers.values())
    return max(int(np.prod(_sizes(i, places, shapes))) for i, place in places.items() if place.tower == tower)


def _inside(i: int, places: dict[int, _Place], shapes: Sequence[tuple[int, ...]], count: int) -> np.ndarray:
    """The exponents of a leaf of a layer, or of a stack of them."""
    place, numbers = places[i], _numbers(places[i].tower, places, shapes)
    axes, shape = place.axes, [1] * len(shapes[i])
    own = _sizes(i, places, shapes)
    for a, n in zip(axes, own, strict=True):
        shape[a] = n
    index = np.arange(int(np.prod(own or (1,)))).reshape(own or ())
    if place.number is not None:
        order = list(numbers)
        if axes and len(set(numbers.values())) == 1:
            # A scan over blocks that hold numbered layers.
            index = index * len(order) + order.index(place.number)
        else:
            index = index + sum(n for number, n in numbers.items() if number < place.number)
    return (count - index).reshape(shape)


def _nearest(name: str, depth: dict[str, int]) -> int:
    """The number of layers of the deepest of the towers that are nearest to a leaf."""
    module = name
    while True:
        module = module.rpartition("/")[0]
        below = [n for tower, n in depth.items() if not module or tower == module or tower.startswith(module + "/")]
        if below or not module:
            return max(below)


def _power(decay: Any, exponent: np.ndarray) -> Any:
    if isinstance(decay, int | float):
        return decay**exponent
    base = jnp.asarray(decay)
    return jnp.power(base, jnp.asarray(exponent, base.dtype))


def layerwise_decay(decay: Scalar, *, layout: Layout | None = None) -> optax.GradientTransformationExtraArgs:
    """Layer-wise decay of the learning rate: the last layer learns fastest, the embeddings slowest.

    Equations:

        d_t = decay^n u_t
        n   = N + 1                               embeddings, and other leaves before the layers
        n   = N - i                               layer i of N, i = 0 ... N - 1
        n   = 0                                   final norm, head, and other leaves after the layers

    Layers are numbered modules (`layers/3`, `encoderblock_3`) or the stack axes of the layout. It is the last link of a
    chain, after the optimizer.

    Args:
      decay: factor per layer, in (0, 1]. Fine-tuning of large models takes 0.65 to 0.9.
      layout: which axes stack layers. Default None: what is inferred from the tree.

    Returns:
      A transformation. No state. Elementwise: no collective.

    Raises:
      ValueError: a factor outside its range; at `init`, no layers are found.

    Example:
      >>> params = {"layers_0": {"bias": jnp.ones(1)}, "layers_1": {"bias": jnp.ones(1)}, "norm": {"bias": jnp.ones(1)}}
      >>> tx = layerwise_decay(0.5)
      >>> updates, _ = tx.update(params, tx.init(params))
      >>> [float(x[0]) for x in jax.tree.leaves(updates)]
      [0.25, 0.5, 1.0]

    Reference: Clark et al. ELECTRA. 2020, arXiv 2003.10555; the exponents are those of Bao, Dong, Wei. BEiT. 2021,
    arXiv 2106.08254.
    """
    checks.layout(layout)
    checks.real("decay", decay, "(0, 1]")

    def start(params: optax.Params) -> optax.EmptyState:
        exponents(params, layout)
        return optax.EmptyState()

    def init(params: optax.Params) -> optax.OptState:
        return scoped_init(lambda p: announce(Method("layerwise_decay"), start, p), params, "layerwise_decay")

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra

        def scale(state: Any) -> tuple[Any, Any]:
            leaves, structure = jax.tree.flatten(updates)
            powers = exponents(updates, layout)
            # A Python float is rounded once, to the dtype of the leaf.
            factors = [_power(decay, e) for e in powers]
            scaled = [u * jnp.asarray(f).astype(u.dtype) for u, f in zip(leaves, factors, strict=True)]
            return structure.unflatten(scaled), state

        return scoped_update(scale, updates if params is None else params, state)

    return optax.GradientTransformationExtraArgs(init, update)
