"""Maximal update parametrization: the learning rate tuned at one width, on a model of another.

A side of a leaf (its inputs, its outputs) is wide where its size differs from that of the base model. With m_in and
m_out the ratios of the sizes, 1 of a side that is not wide:

                                        Adam        SGD            spectral             initial values, from fan-in
    hidden       both sides wide        1 / m_in    m_out / m_in   sqrt(m_out / m_in)   1
    embedding, bias, gain   outputs     1           m_out          sqrt(m_out)          1
    head, "readout"         inputs      1           m_in           sqrt(m_in)           sqrt(m_in), inputs / m_in
    head, "init"            inputs      1 / m_in    1 / m_in       1 / sqrt(m_in)       1 / sqrt(m_in)
    neither side wide                   1           1              1                    1
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import inside, transformation
from gradkit.leaves import Axes, Layout, Method, by_path, groups, names, resolve_layout
from gradkit.leaves.recording import announce, links_of

NAME = "scale_by_width"
PAPER = Paper(
    "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer",
    "Yang et al.",
    2022,
    "2203.03466",
)
OPTIMIZERS = ("adam", "sgd", "spectral")


class Multipliers(NamedTuple):
    """What the width of a model multiplies for one leaf, relative to the base model.

    Attributes:
      rate: the learning rate, or the update.
      decay: the coefficient of weight decay.
      init: the initial values.
      output: what the layer's input, or its output, is multiplied by in the forward pass; 1 but for a readout.
    """

    rate: float = 1.0
    decay: float = 1.0
    init: float = 1.0
    output: float = 1.0


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple | list) and all(isinstance(n, int) and not isinstance(n, bool) for n in node)


def _shapes(argument: str, tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf, by its name."""

    def abstract(x: Any) -> jax.ShapeDtypeStruct:
        if not _is_shape(x) and not hasattr(x, "shape"):
            raise ValueError(
                f"{argument} must be a tree of shapes, arrays or jax.ShapeDtypeStructs, got a leaf {x!r} in "
                "mup_multipliers: write jax.eval_shape(model.init, ...)"
            )
        return jax.ShapeDtypeStruct(tuple(x) if _is_shape(x) else x.shape, jnp.float32)

    known = jax.tree.map(abstract, tree, is_leaf=_is_shape)
    return {name: x.shape for name, x in zip(names(known), jax.tree.leaves(known), strict=True)}


def _ratio(base: Sequence[int], shape: Sequence[int], side: Sequence[int]) -> float:
    return math.prod(shape[a] for a in side) / math.prod(base[a] for a in side)


def _sides(name: str, base: tuple[int, ...], shape: tuple[int, ...], axes: Axes) -> tuple[float | None, float | None]:
    """m_in and m_out of a leaf; None of a side that is not wide."""
    if len(base) != len(shape):
        raise ValueError(
            f"base_shapes must have leaves of as many axes as shapes: {name!r} has {base} in the base and {shape} in "
            "the model in mup_multipliers; build both by the same code with another width"
        )
    wide = {a for a in range(len(shape)) if base[a] != shape[a]} - {*axes.stack}
    beside = sorted(wide - {*axes.inputs} - {*axes.outputs})
    if beside:
        raise ValueError(
            f"base_shapes may differ from shapes in inputs, outputs and stacks: the axis {beside[0]} of {name!r}, from "
            f"{base[beside[0]]} to {shape[beside[0]]}, is none of these in mup_multipliers; declare it with "
            "layout=gk.leaves.layout((selector, {'inputs': ..., 'outputs': ...}))"
        )
    m_in, m_out = (_ratio(base, shape, side) if wide & {*side} else None for side in (axes.inputs, axes.outputs))
    return m_in, m_out


def _rate(optimizer: str, form: str, m_in: float | None, m_out: float | None) -> float:
    a, b = m_in or 1.0, m_out or 1.0
    head = m_in is not None and m_out is None
    if optimizer == "adam":
        return 1.0 if head and form == "readout" else 1 / a
    if optimizer == "sgd":
        return a if head and form == "readout" else b / a
    return math.sqrt(a) if head and form == "readout" else math.sqrt(b / a)


def _init(form: str, drawn: str, m_in: float | None, m_out: float | None) -> float:
    """The factor of the initial values of a weight."""
    if m_in is None:
        return 1.0
    from_fan_in = 1.0 if m_out is not None else math.sqrt(m_in) if form == "readout" else 1 / math.sqrt(m_in)
    return from_fan_in / (1.0 if drawn == "fan_in" else math.sqrt(m_in))


def mup_multipliers(
    base_shapes: Any,
    shapes: Any,
    *,
    optimizer: str = "adam",
    form: str = "readout",
    init: str = "fan_in",
    decoupled_decay: bool = False,
    layout: Layout | None = None,
) -> Any:
    """The multipliers of rate, decay, initial values and outputs of every leaf of a model wider than the one tuned.

    Equations, with m_in and m_out the ratios of the sizes of the inputs and outputs of a leaf to those in the base
    model, for a side whose size differs (a wide one), and 1 otherwise:

                            Adam rate   SGD rate       spectral rate        init, drawn by fan-in   drawn by a constant
        hidden (both wide)  1 / m_in    m_out / m_in   sqrt(m_out / m_in)   1                       1 / sqrt(m_in)
        embedding, bias     1           m_out          sqrt(m_out)          1                       1
        head, "readout"     1           m_in           sqrt(m_in)           sqrt(m_in)              1
        head, "init"        1 / m_in    1 / m_in       1 / sqrt(m_in)       1 / sqrt(m_in)          1 / m_in
        none wide           1           1              1                    1                       1

        decay = 1 / rate, so that rate times decay stays that of the base; 1 with decoupled_decay
        output = 1 / m_in for a head of the form "readout": its input is divided by m_in in the forward pass

    A head is a leaf whose inputs alone are wide. A bias drawn by fan-in takes sqrt(m_in) of the weight beside it, so
    that it stays as large as in the base. An embedding shared with the head takes the row of the embedding, and the
    output of a head. Attention scores are divided by the head size, not its root, where the head size is wide; that,
    as the output, is for the model to do.

    Args:
      base_shapes: the tree of the model whose hyperparameters were tuned: arrays, shapes as tuples, or
        `jax.ShapeDtypeStruct`s, such as `jax.eval_shape(model.init, ...)`.
      shapes: the tree of the model to train, with the same names and numbers of axes.
      optimizer: "adam" (and other methods whose step does not depend on the size of the gradient), "sgd", or
        "spectral" for updates of spectral norm 1, as orthogonalized ones are; not where the method multiplies by
        sqrt(outputs / inputs) itself, as `gk.muon` does for wide outputs. Default "adam".
      form: how the head is kept small: "readout", by an input divided by m_in, or "init", by its initial values and
        rate. Both are the same function under Adam. Default "readout" (official code).
      init: how the initial values are drawn: "fan_in", with a standard deviation of 1 / sqrt(inputs), or "constant".
        Default "fan_in".
      decoupled_decay: whether the decay is not multiplied by the learning rate. Default False.
      layout: which axes are inputs, outputs and stacks, which never count as width. Default None: the tree.

    Returns:
      A tree like `shapes` with `Multipliers` of Python floats, for `gk.scale_by_width` and `gk.mup_init`.

    Raises:
      ValueError: a leaf of `shapes` that is not in `base_shapes`, or with another number of axes; an axis that
        differs and is neither an input, an output nor a stack; an unknown choice.

    Example:
      >>> model = lambda d: {"embed": {"embedding": (99, d)}, "up": {"kernel": (d, 4 * d)}, "head": {"kernel": (d, 99)}}
      >>> for name, m in mup_multipliers(model(64), model(256)).items():
      ...     print(name, *m.values())
      embed Multipliers(rate=1.0, decay=1.0, init=1.0, output=1.0)
      head Multipliers(rate=1.0, decay=1.0, init=2.0, output=0.25)
      up Multipliers(rate=0.25, decay=4.0, init=1.0, output=1.0)

    Reference: Yang et al. Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer. 2022,
    arXiv 2203.03466; Yang, Simon, Bernstein. A Spectral Condition for Feature Learning. 2023, arXiv 2310.17813;
    microsoft/mup, commit 1981497. There a leaf with wide inputs and narrow outputs must be of the class of readouts;
    here it is taken for a head.
    """
    checks.choice("optimizer", optimizer, OPTIMIZERS)
    checks.choice("form", form, ("readout", "init"))
    checks.choice("init", init, ("fan_in", "constant"))
    checks.switch(decoupled_decay=decoupled_decay)
    base, own = _shapes("base_shapes", base_shapes), _shapes("shapes", shapes)
    missing = [name for name in own if name not in base]
    if missing:
        raise ValueError(
            f"base_shapes must have every leaf of shapes, and has no {missing[0]!r} in mup_multipliers; it has "
            f"{', '.join(map(repr, [*base][:12]))}: build both by the same code with another width"
        )
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(tuple(x) if _is_shape(x) else x.shape, jnp.float32), shapes, is_leaf=_is_shape
    )
    meaning = resolve_layout(layout, abstract, method="mup_multipliers")
    sides = {name: _sides(name, base[name], shape, meaning(name, shape)) for name, shape in own.items()}
    of_layer = {name.rpartition("/")[0]: sides[name][0] for name, shape in own.items() if meaning(name, shape).inputs}

    def one(name: str, shape: tuple[int, ...]) -> Multipliers:
        m_in, m_out = sides[name]
        rate = _rate(optimizer, form, m_in, m_out)
        factor = _init(form, init, m_in, m_out)
        last = name.rpartition("/")[2].lower()
        if init == "fan_in" and not meaning(name, shape).inputs and "bias" in last:
            factor = math.sqrt(of_layer.get(name.rpartition("/")[0]) or 1.0)
        output = 1 / m_in if form == "readout" and m_in is not None and m_out is None else 1.0
        return Multipliers(rate, 1.0 if decoupled_decay else 1 / rate, factor, output)

    return jax.tree.unflatten(jax.tree.structure(abstract), [one(name, shape) for name, shape in own.items()])


def _is_multipliers(node: Any) -> bool:
    return isinstance(node, Multipliers)


def _check(multipliers: Any, method: str) -> tuple[list[Multipliers], Any]:
    """The multipliers of a tree of them, and its structure."""
    found, structure = jax.tree.flatten(multipliers, is_leaf=_is_multipliers)
    if not all(map(_is_multipliers, found)):
        raise ValueError(
            f"multipliers must be a tree of gk.Multipliers, one per leaf of the parameters, got {multipliers!r} in "
            f"{method}: write gk.mup_multipliers(base_shapes, params)"
        )
    return found, structure


def _by_name(multipliers: Any, tree: Any, method: str) -> list[Multipliers]:
    """The multipliers of the leaves of a tree, or of a part of it, by name."""
    found, structure = _check(multipliers(tree) if callable(multipliers) else multipliers, method)
    known = dict(zip(names(structure.unflatten([0] * len(found))), found, strict=True))
    absent = [name for name in names(tree) if name not in known]
    if absent:
        raise ValueError(
            f"multipliers must have every leaf of the parameters, and have no {absent[0]!r} in {method}; they have "
            f"{', '.join(map(repr, [*known][:12]))}: write gk.mup_multipliers(base_shapes, params)"
        )
    return [known[name] for name in names(tree)]


def mup_init(params: optax.Params, multipliers: Any) -> Any:
    """The initial values of a wider model, from those that its own initializers drew.

    Equations: x <- init x per leaf, with `init` of its multipliers; done once, before training.

    Args:
      params: the parameters as drawn.
      multipliers: a tree of `gk.Multipliers`, as `gk.mup_multipliers` makes it, or a function of `params` that does.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: a leaf without multipliers.

    Example:
      >>> params = {"head": {"kernel": jnp.ones((4, 2))}}
      >>> mup_init(params, mup_multipliers({"head": {"kernel": (1, 2)}}, params))["head"]["kernel"][0].tolist()
      [2.0, 2.0]

    Reference: Yang et al. Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer. 2022,
    arXiv 2203.03466.
    """
    leaves, structure = jax.tree.flatten(params)
    rows = zip(leaves, _by_name(multipliers, params, "mup_init"), strict=True)
    return structure.unflatten([x if m.init == 1 else x * m.init for x, m in rows])


def scale_by_width(inner: optax.GradientTransformation, multipliers: Any) -> optax.GradientTransformationExtraArgs:
    """An optimizer, or a part of a chain, whose rate and weight decay are those of a wider model.

    Equations, per leaf with its multipliers:

        u <- rate u,      the weight decay of `inner` <- decay times it

    Around an optimizer, `scale_by_width(gk.adamw(1e-3), m)`. In a chain, around the direction: then the decay behind it
    is not scaled, which is the same for coupled decay, where rate times decay is 1.

    Args:
      inner: any transformation.
      multipliers: a tree of `gk.Multipliers` with the names of the parameters, as `gk.mup_multipliers` makes it, or a
        function of the parameters that makes one.

    Returns:
      A transformation. State: that of `inner`. Where `inner` decays weights, it is run once per group of leaves with
      the same multipliers (`gk.leaves.groups`), so what looks at all leaves, as clipping by the global norm, belongs in
      front. Elementwise: no collective besides those of `inner`.

    Raises:
      ValueError: a leaf without multipliers; multipliers of a decay around a transformation of which nothing is known,
        such as `optax.adamw`.

    Example:
      >>> params = {"up": {"kernel": jnp.ones((8, 8))}, "norm": {"scale": jnp.ones(8)}}
      >>> base = {"up": {"kernel": (2, 2)}, "norm": {"scale": (2,)}}
      >>> tx = scale_by_width(optax.scale(-1.0), mup_multipliers(base, params, decoupled_decay=True))
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["up"]["kernel"][0, 0].item(), updates["norm"]["scale"][0].item()
      (-0.25, -1.0)

    Reference: Yang et al. Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer. 2022,
    arXiv 2203.03466. microsoft/mup scales the decay of its AdamW by default, as here: torch multiplies it by the rate.
    """
    below = inside(inner)
    if not callable(multipliers):
        _check(multipliers, NAME)

    def grouped(tree: Any) -> optax.GradientTransformationExtraArgs:
        rows: dict[tuple[float, float], list[str]] = {}
        for name, m in zip(names(tree), _by_name(multipliers, tree, NAME), strict=True):
            rows.setdefault((m.rate, m.decay), []).append(name)
        rules = [
            (by_path("|".join(map(re.escape, own))), below, {"rate": rate, "decay": decay})
            for (rate, decay), own in rows.items()
        ]
        return groups(rules)

    def decays(params: Any) -> bool:
        """Whether there is a weight decay inside that is to be scaled."""
        if all(m.decay == 1 for m in _by_name(multipliers, params, NAME)):
            return False
        links = [link for outer in links_of(below, params) for link in outer.walk()]
        if not links:
            raise ValueError(
                f"multipliers of a decay must be 1 around a transformation that is not of gradkit, of whose weight "
                f"decay nothing is known, in {NAME}: write an optimizer of gradkit, or decoupled_decay=True in "
                "gk.mup_multipliers and the decay as a link behind"
            )
        return any(_is_decay(link.method.weight_decay) for link in links)

    def init(params: optax.Params) -> Any:
        if decays(params):
            return grouped(params).init(params)
        for rate, own in _rates(params, _by_name(multipliers, params, NAME)).items():
            announce(Method(NAME, rate), lambda _: optax.EmptyState(), own)
        return below.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if decays(updates):
            return grouped(updates).update(updates, state, params, **extra)
        new, state = below.update(updates, state, params, **extra)
        leaves, structure = jax.tree.flatten(new)
        rows = zip(leaves, _by_name(multipliers, updates, NAME), strict=True)
        return structure.unflatten([u if m.rate == 1 else u * m.rate for u, m in rows]), state

    return transformation(NAME, init, update, complex_leaves=True)


def _is_decay(value: Any) -> bool:
    return value is not None and not (isinstance(value, int | float) and value == 0)


def _rates(params: Any, found: Sequence[Multipliers]) -> dict[float, Any]:
    """The trees of leaves of every rate but 1, for `describe`."""
    leaves, structure = jax.tree.flatten(params)
    out = {}
    for rate in dict.fromkeys(m.rate for m in found if m.rate != 1):
        own = [x if m.rate == rate else optax.MaskedNode() for x, m in zip(leaves, found, strict=True)]
        out[rate] = structure.unflatten(own)
    return out


def _halved(params: Any) -> Any:
    """Multipliers for the contract: the rate of a hidden matrix twice as wide, on every leaf."""
    return jax.tree.map(lambda _: Multipliers(0.5), params)


BASE, WIDE = ({"kernel": jax.ShapeDtypeStruct((n, 2 * n), "float32")} for n in (4, 8))
register(
    mup_multipliers,
    form="function",
    paper=PAPER,
    example={"base_shapes": BASE, "shapes": WIDE},
    golden=("modern/mup_multipliers",),
    notes="also the spectral condition of Yang, Simon, Bernstein, 2023, arXiv 2310.17813",
)
register(
    mup_init,
    form="function",
    paper=PAPER,
    golden=("modern/mup_multipliers",),
    example={"params": WIDE, "multipliers": _halved},
)
register(
    scale_by_width,
    form="wrapper",
    paper=PAPER,
    golden=("modern/mup_multipliers",),
    example={"multipliers": _halved},
)
