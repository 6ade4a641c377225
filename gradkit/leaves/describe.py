"""What a transformation will do to each parameter, as a table, without allocating anything."""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gradkit import checks, tables
from gradkit.leaves.derived import unboxed
from gradkit.leaves.infer import infer_layout
from gradkit.leaves.paths import names
from gradkit.leaves.recording import Link, recorded
from gradkit.leaves.scopes import Layout
from gradkit.leaves.selectors import resolve_mask
from gradkit.types import PyTree

TEXTS = 7  # columns of text, before those of bytes


class Row(NamedTuple):
    """One parameter: its name, shape, role and stack axes; the method, rate and decay it gets; the bytes of its state.
    With `gk.precision(state=...)` also the bytes that codes save, and those that are kept exactly."""

    name: str
    shape: tuple[int, ...]
    role: str
    stack: tuple[int, ...]
    method: str
    rate: str
    decay: str
    state_bytes: int
    saved_bytes: int = 0
    exact_bytes: int = 0


class Description(NamedTuple):
    """The rows of `describe`, and the bytes of state that belong to no single parameter. Printed, an aligned table; in
    a notebook, one of HTML."""

    rows: tuple[Row, ...]
    shared_bytes: int

    def __str__(self) -> str:
        head, cells = self._table()
        widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
        pad = [str.ljust] * TEXTS + [str.rjust] * (len(head) - TEXTS)
        return "\n".join(
            "  ".join(p(cell, w) for p, cell, w in zip(pad, row, widths, strict=True)).rstrip()
            for row in [head, *cells]
        )

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The titles of the columns, and the cells of every row and of the total."""
        state = [r.state_bytes for r in self.rows]
        columns = {"state bytes": [*state, sum(state) + self.shared_bytes]}
        for title, sizes in (
            ("saved bytes", [r.saved_bytes for r in self.rows]),
            ("kept exactly", [r.exact_bytes for r in self.rows]),
        ):
            columns |= {title: [*sizes, sum(sizes)]} if any(sizes) else {}
        head = ("name", "shape", "role", "stack", "method", "rate", "decay", *columns)
        texts = [
            (r.name, _list("x", r.shape), r.role, _list(",", r.stack), r.method, r.rate, r.decay) for r in self.rows
        ]
        texts.append(("total", "", "", "", "", "", ""))
        return head, [
            (*text, *(f"{size:,}" for size in sizes)) for text, *sizes in zip(texts, *columns.values(), strict=True)
        ]

    def _repr_html_(self) -> str:
        head, cells = self._table()
        return tables.as_html(head, cells, right=range(TEXTS, len(head)), bold=[len(cells) - 1])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What IPython shows in a terminal."""
        del cycle
        printer.text(str(self))


def _list(separator: str, numbers: tuple[int, ...]) -> str:
    return separator.join(map(str, numbers)) or "-"


def describe(tx: optax.GradientTransformation, params: PyTree, *, layout: Layout | None = None) -> Description:
    """For every leaf: name, role, stack axes, method, learning rate, weight decay, bytes of state.

    Args:
      tx: any transformation, in any wrapper: `optax.chain`, `named_chain`, `partition`, `masked`, `MultiSteps`,
        `inject_hyperparams`, `gk.precision`, `groups`. Of links and optimizers of this library the method, rate and
        decay are known; links of optax are named after their state.
      params: parameters, or `jax.ShapeDtypeStruct`s of them; of an `nnx.Module`, its `nnx.Param`s, as
        `nnx.Optimizer(model, tx, wrt=nnx.Param)` takes them.
      layout: how roles and stack axes are decided. Default None: by the tree, as every method does.

    Returns:
      A description; `print` it, or end a cell of a notebook with it. The method of a leaf reads `first + second` where
      links follow one another, and `wrapper(inner)` where one wraps another. A rate or decay that follows the step is a
      "schedule", one that is known only while a program runs is "traced". Where `gk.precision(state=...)` codes the
      state, two columns say how many bytes that saves, and how many of the rest are kept exactly, since codes would
      break the method.

    Raises:
      ValueError: `tx` is no transformation, such as the name of a method; or the two in the other order.

    Example:
      >>> import gradkit as gk, numpy as np
      >>> print(describe(gk.adam(1e-3), {"Dense_0": {"kernel": np.zeros((8, 4), np.float32)}}))
      name            shape  role    stack  method  rate   decay  state bytes
      Dense_0/kernel  8x4    matrix  -      adam    0.001  -              256
      total                                                               264
    """
    checks.layout(layout)
    _check(tx, params)
    params = nnx.state(params, nnx.Param) if isinstance(params, nnx.Module) else params
    abstract = jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, params)) if _has_values(params) else params
    layout = infer_layout(abstract) if layout is None else layout
    foreign: list[tuple[str, frozenset[str]]] = []

    def run(params: Any) -> Any:
        with recorded() as links:
            state = tx.init(params)
        # Arrays, not nodes: containers of state are made anew where parameters are in boxes or Variables.
        made = {id(x) for link in links for each in link.walk() for x in jax.tree.leaves(each.state)}
        ours = frozenset(made - {id(x) for x in jax.tree.leaves(params)})
        foreign.extend(_foreign(state, ours, names(params))[0])
        found.extend(links)
        return state

    found: list[Link] = []
    state = jax.eval_shape(run, abstract)
    known = names(abstract)
    # Where nothing at all is known, the name of the function that made it is better than nothing.
    unknown = "-" if found or foreign else str(getattr(tx.update, "__qualname__", "-")).split(".<locals>")[0]
    owned, shared = _bytes(state, known)
    rows = []
    for name, x in zip(known, jax.tree.leaves(abstract), strict=True):
        axes = layout(name, tuple(x.shape))
        parts = [text for link in found for text in _texts(link, name)]
        parts += [_Text(text, "-", "-") for text, leaves in foreign if name in leaves]
        text = _joined(parts) if parts else _Text(unknown, "-", "-")
        rows.append(Row(name, tuple(x.shape), axes.role, axes.stack, *text, *owned[name]))
    return Description(tuple(rows), shared.state)


def _check(tx: Any, params: Any) -> None:
    if _is_transformation(params) and not _is_transformation(tx):
        raise ValueError(
            "describe: tx comes first, then params, got them in the other order; write describe(tx, params)"
        )
    if isinstance(tx, str):
        raise ValueError(
            f"describe: tx must be an optax transformation, got the name {tx!r}; write describe(gk.{tx}(1e-3), params)"
        )
    checks.transformation(tx=tx)
    if _is_transformation(params):
        raise ValueError("describe: params must be parameters, got a transformation; write describe(tx, params)")


def _is_transformation(value: Any) -> bool:
    return isinstance(value, optax.GradientTransformation)


class _Text(NamedTuple):
    method: str
    rate: str
    decay: str


def _texts(link: Link, name: str) -> list[_Text]:
    """What a link and those inside it do to a leaf; nothing where the leaf was not given to it."""
    if not any(name == leaf or leaf.startswith(name + "/") for leaf in link.leaves):
        return []
    inner = [text for each in link.links for text in _texts(each, name)]
    if link.complete:
        # An optimizer that shares the leaves out to several is, for each leaf, the one that the leaf is given to.
        members = [each for each in link.links if each.complete]
        return [text for each in members for text in _texts(each, name)] if len(members) > 1 else [_own(link, name)]
    own = _own(link, name)
    if not inner:
        return [own]
    return [_joined([own, *inner])._replace(method=f"{own.method}({_joined(inner).method})")]


def _joined(parts: Sequence[_Text]) -> _Text:
    rates, decays = ([t for t in column if t != "-"] for column in ([p.rate for p in parts], [p.decay for p in parts]))
    return _Text(" + ".join(p.method for p in parts), " * ".join(rates) or "-", " + ".join(decays) or "-")


def _own(link: Link, name: str) -> _Text:
    method = link.method
    mask = resolve_mask(method.weight_decay_mask, link.params)
    decayed = dict(zip(names(link.params), jax.tree.leaves(mask), strict=True))
    decay = method.weight_decay if decayed.get(name, True) else None
    return _Text(method.name, _number(method.learning_rate), _number(decay))


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if callable(value):
        return "schedule"
    return f"{value:g}" if isinstance(value, int | float) else "traced"


def _has_values(params: Any) -> bool:
    return any(not isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params))


def _foreign(node: Any, ours: frozenset[int], params: list[str]) -> tuple[list[tuple[str, frozenset[str]]], bool]:
    """The links of other libraries below a node of the state, by the names of their states, with the leaves that they
    keep arrays for; and whether the node holds the state of a link of this library.

    Args:
      node: of the state.
      ours: the arrays that links of this library made.
      params: the names of the parameters.
    """
    arrays = jax.tree.leaves(node)
    if arrays and all(id(x) in ours for x in arrays):
        return [], True
    level = jax.tree_util.default_registry.flatten_one_level(node)
    below = [_foreign(child, ours, params) for child in (level[0] if level else ())]
    found, known = [link for links, _ in below for link in links], any(flag for _, flag in below)
    if not found and not known and isinstance(node, tuple) and hasattr(node, "_fields"):
        owners = frozenset(o for path in names(node) if (o := _owner(path, params)) is not None)
        words = type(node).__name__.removesuffix("State")
        found = [("".join(f"_{c.lower()}" if c.isupper() else c for c in words).lstrip("_"), owners)] if owners else []
    return found, known


class _Bytes(NamedTuple):
    """Bytes of state: all of them, those that codes save, those that are kept exactly among codes."""

    state: int = 0
    saved: int = 0
    exact: int = 0

    def plus(self, other: "_Bytes", share: int = 1) -> "_Bytes":
        """The sum with an equal share of others."""
        return _Bytes(*(x + y // share for x, y in zip(self, other, strict=True)))


def _bytes(state: Any, params: list[str]) -> tuple[dict[str, _Bytes], _Bytes]:
    """The bytes of state of every parameter, and those that belong to none or to several."""
    owned: dict[str | None, _Bytes] = dict.fromkeys([*params, None], _Bytes())
    known = iter(names(state))
    for node in jax.tree.leaves(state, is_leaf=lambda node: _is_stack(node) or _is_code(node)):
        for part in jax.tree.leaves(node, is_leaf=_is_code):
            path, *_ = [next(known) for _ in jax.tree.leaves(part)]
            size = _bytes_of(part)
            # Of a stack of matrices, every row belongs to the parameter that its name begins with.
            rows = [row.rpartition("[")[0] or None for row in node.rows] if _is_stack(node) else [_owner(path, params)]
            for owner in rows:
                owner = owner if owner in owned else None
                owned[owner] = owned[owner].plus(size, len(rows))
    shared = owned.pop(None)
    return {name: size for name, size in owned.items() if name is not None}, shared


def _bytes_of(part: Any) -> _Bytes:
    """The bytes of an array, or of a code and of the array that it stands for."""
    state = sum(map(_size, jax.tree.leaves(part)))
    if not _is_code(part):
        return _Bytes(state)
    (decoded,) = jax.tree.leaves(jax.eval_shape(lambda code: unboxed(code).decode(), part))
    saved = _size(decoded) - state
    return _Bytes(state, saved, state if not saved else 0)


def _is_code(node: Any) -> bool:
    """Whether a node is an array in a narrow format, or one that `gk.precision` keeps as it is."""
    return isinstance(node, tuple) and callable(getattr(node, "decode", None))


def _is_stack(node: Any) -> bool:
    return bool(getattr(node, "rows", ()))


def _size(x: Any) -> int:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.eval_shape(jax.random.key_data, x)
    return math.prod(x.shape) * x.dtype.itemsize


def _owner(path: str, params: Collection[str]) -> str | None:
    """The parameter that an array of the state belongs to: the longest name that stands in its path, the last such."""
    pieces = path.split("/")
    for length in range(len(pieces), 0, -1):
        for start in range(len(pieces) - length, -1, -1):
            if (name := "/".join(pieces[start : start + length])) in params:
                return name
    return "" if "" in params else None
