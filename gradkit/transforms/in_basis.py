"""A transformation in a slowly rotating basis: gradients are rotated into it, updates are rotated back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import ema
from gradkit.engine.blocks import factor_sources
from gradkit.engine.core import increment, inside, transformation, wide_dtype, widen
from gradkit.engine.fields import settled
from gradkit.engine.kronecker import BY_LAYOUT, along_all, first_bases, next_bases, reorder, statistic, transposes
from gradkit.engine.owned import map_unowned
from gradkit.engine.parts import get, keys_of, placeholder, put
from gradkit.engine.placement import as_it_lay, everywhere, everywhere_of_auto
from gradkit.engine.refreshes import refreshed, renewed
from gradkit.leaves import Layout, axes_of, names, tensor_axes
from gradkit.leaves.derived import Companions, derived, flatten, node_names
from gradkit.types import Scalar

PAPER = Paper("SOAP: Improving and Stabilizing Shampoo using Adam", "Vyas et al.", 2024, "2409.11321")
LINEAR, SQUARE = ("mu", "trace"), ("nu",)


class Bases(NamedTuple):
    """How the bases of a batch of tensors are computed.

    Attributes:
      init: (number of tensors, lengths of their axes, dtype) -> state.
      first: (G, state) -> (bases, state): at the first call; G is (B, d_1, ..., d_k).
      next: (G, state, bases, number of earlier calls) -> (bases, orders, state): at the end of every later call. For
        every axis a basis (B, d, d) or None, and for each of its columns the index of the previous column that it
        continues, (B, d) or None.
    """

    init: Callable[[int, tuple[int, ...], Any], Any]
    first: Callable[[jax.Array, Any], tuple[Any, Any]]
    next: Callable[[jax.Array, Any, Any, jax.Array], tuple[Any, Any, Any]]


def kronecker_bases(
    *,
    shampoo_beta: Scalar = 0.95,
    update_interval: int = 10,
    max_dim: int = 10000,
    precondition_1d: bool = False,
) -> Bases:
    """The eigenbases of Shampoo's statistics, refreshed by one step of the power method every `update_interval` calls.

    Equations, for every axis i of a tensor G, S_i(G) its contraction with itself over all other axes:

        S_i = shampoo_beta S_i + (1 - shampoo_beta) S_i(G)
        Q_i = qr(S_i Q_i[:, order]).Q                            order = diag(Q_i^T S_i Q_i) descending

    Args:
      shampoo_beta: decay of the statistics, in [0, 1). Default 0.95 (SOAP's code).
      update_interval: calls between two refreshes, >= 1. Default 10 (SOAP's code).
      max_dim: longer axes have no basis. Default 10000 (SOAP's code).
      precondition_1d: whether vectors have one. Default False (SOAP's code).

    Returns:
      What `in_basis` takes.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> bases = kronecker_bases()
      >>> Q, _ = bases.first(jnp.array([[[0.0, 2.0], [1.0, 0.0]]]), bases.init(1, (2, 2), jnp.float32))
      >>> print(Q[1][0])
      [[0. 1.]
       [1. 0.]]

    Reference: Vyas et al. SOAP: Improving and Stabilizing Shampoo using Adam. 2024, arXiv 2409.11321.
    """
    checks.switch(precondition_1d=precondition_1d)
    checks.real("shampoo_beta", shampoo_beta, "[0, 1)")
    update_interval = checks.integer("update_interval", update_interval, 1)
    max_dim = checks.integer("max_dim", max_dim, 1)

    def init(rows: int, dims: tuple[int, ...], dtype: Any) -> Any:
        plain = (len(dims) == 1 and not precondition_1d) or 0 in dims
        return tuple(None if plain or d > max_dim else jnp.zeros((rows, d, d), dtype) for d in dims)

    def moments(G: jax.Array, S: Any) -> Any:
        return tuple(None if s is None else ema(s, statistic(G, axis), shampoo_beta) for axis, s in enumerate(S))

    def first(G: jax.Array, S: Any) -> tuple[Any, Any]:
        S = moments(G, S)
        return first_bases(S), S

    def later(G: jax.Array, S: Any, Q: Any, calls: jax.Array) -> tuple[Any, Any, Any]:
        S = moments(G, S)

        same = tuple(None if q is None else jnp.tile(jnp.arange(q.shape[1], dtype=jnp.int32), (len(q), 1)) for q in Q)
        now, none = (calls > 0) & (calls % update_interval == 0), jnp.zeros(G.shape[:1], jnp.int32)
        (Q, orders), _ = refreshed(now, lambda S, old: next_bases(S, old[0]), S, (Q, same), none)
        return Q, orders, S

    return Bases(init, first, later)


class InBasisState(NamedTuple):
    """Number of calls; for every parameter the bases of its axes, by axis, and the state that they are computed from;
    the state of the inner transformation."""

    count: jax.Array
    Q: Any
    bases: Any
    inner: Any


def in_basis(
    inner: optax.GradientTransformation, *, bases: Bases | None = None, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Runs a transformation in the eigenbasis of the gradients.

    Equations, after a first call that only computes the bases Q_i and whose update is 0:

        G' = Q_i^T along every axis of G that has a basis
        u' = inner(G')
        u  = Q_i along every axis of u' that has a basis

    Then the bases are updated with G. Where they change, the inner state follows: fields `mu` and `trace`, sums of
    gradients, are rotated from the old bases into the new; fields `nu`, sums of squares, are reordered as the columns
    are.

    With `scale_by_adam` inside it is SOAP, but `gk.scale_by_soap` adds eps before bias correction and stores its state
    on the owner device of a tensor: use it on a mesh.

    Args:
      inner: a transformation of directions, without a learning rate or weight decay. The fields `mu` and `trace` of its
        state that have the shape of the parameters are rotated with the bases, and fields `nu` are reordered; all other
        fields are unchanged.
      bases: how bases are computed. Default None: `kronecker_bases()`.
      layout: which axes are stacks: every layer of a stack has bases of its own.

    Returns:
      A transformation. State: per tensor twice the sum of the squares of the lengths of its axes, and that of `inner`.
      Parameters are not rotated: `inner` gets none. Collectives: whatever the compiler inserts.

    Raises:
      ValueError: complex leaves.

    Example:
      >>> tx = in_basis(optax.scale_by_sign())
      >>> g = jnp.array([[0.0, 3.0], [-0.1, 0.0]])
      >>> _, state = tx.update(g, tx.init(g))  # the first call computes the bases
      >>> tx.update(g, state)[0].round(3).tolist()
      [[0.0, 1.0], [-1.0, 0.0]]

    Reference: Vyas et al. SOAP: Improving and Stabilizing Shampoo using Adam. 2024, arXiv 2409.11321.
    """
    checks.layout(layout)
    made = kronecker_bases() if bases is None else bases
    if not isinstance(made, Bases):
        raise ValueError(
            f"in_basis: bases must be gk.transforms.in_basis.Bases, as gk.kronecker_bases() makes them, or None, got "
            f"{bases!r}"
        )
    below = inside(inner)

    def batched(name: str, x: jax.Array) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        """The tensors of a leaf along one leading axis, and the function that restores the leaf's shape."""
        axes = axes_of(layout, name, x.shape)
        order = (*axes.stack, *tensor_axes(axes, x.shape))
        lead = len(axes.stack)
        moved = x.transpose(order)
        shape = moved.shape
        rows = 1
        for length in shape[:lead]:
            rows *= length
        back = sorted(range(len(order)), key=lambda a: order[a])
        return moved.reshape(rows, *(shape[lead:] or (1,))), lambda y: y.reshape(shape).transpose(back)

    def on_leaves(function: Callable[..., Any], tree: Any, *rest: list[Any]) -> Any:
        """Applies a function (tensors of a leaf, one entry of every list) -> tensors to the leaves of a tree."""
        leaves, structure = jax.tree.flatten(tree)
        out = []
        for name, x, *row in zip(names(tree), leaves, *rest, strict=True):
            y, back = batched(name, everywhere(x))
            out.append(as_it_lay(back(function(y, *row)), x))
        return structure.unflatten(out)

    def companions_of(known: list[str], nodes: list[Any]) -> Companions:
        shapes = [jax.tree.leaves(node)[0].shape for node in nodes]
        return Companions(nodes, [axes_of(layout, name, s).stack for name, s in zip(known, shapes, strict=True)])

    def kept(name: str, node: Any, own: Any, companions: Companions) -> Any:
        """The state of the tensors of a leaf, as derived from its parameter for sharding."""
        (x,), out = jax.tree.leaves(node), {}
        own_axes = axes_of(layout, name, x.shape)
        stack, axes = own_axes.stack, tensor_axes(own_axes, x.shape)
        for path, value in jax.tree_util.tree_flatten_with_path(own)[0]:
            keys, sources = keys_of(path), [()] * (value.ndim - 1)
            axis = int(keys[-1]) if keys[-1].isdigit() and int(keys[-1]) < len(axes) else None
            if axis is not None and value.shape[1:] == (x.shape[axes[axis]],) * 2:
                sources = factor_sources([(a,) for a in axes], axis)
            shaped = value.reshape(*(x.shape[a] for a in stack), *value.shape[1:])
            put(out, keys, derived(node, shaped, [*((a,) for a in stack), *sources], companions))
        return out

    def batches(tree: Any, shapes: Any) -> Any:
        """The inverse of `kept`: the state in the shapes that the kernels use."""
        found, structure = jax.tree_util.tree_flatten_with_path(shapes)
        return structure.unflatten([get(tree, keys_of(path)).reshape(like.shape) for path, like in found])

    def shapes_of(name: str, x: Any) -> tuple[Any, Any]:
        """The shapes of the bases, and of the state that they are computed from."""
        like = jax.eval_shape(lambda v: batched(name, v)[0], jax.ShapeDtypeStruct(x.shape, wide_dtype(x.dtype)))
        state = jax.eval_shape(lambda: made.init(like.shape[0], like.shape[1:], like.dtype))
        return jax.eval_shape(made.first, like, state)[0], state

    def init(params: optax.Params) -> InBasisState:
        nodes, structure = flatten(params)
        mapped = isinstance(params, placeholder())

        def start(name: str, x: Any) -> tuple[Any, Any]:
            like = jax.eval_shape(lambda v: batched(name, v)[0], jax.ShapeDtypeStruct(x.shape, x.dtype))
            state = made.init(like.shape[0], like.shape[1:], wide_dtype(x.dtype))
            shapes = jax.eval_shape(made.first, jax.ShapeDtypeStruct(like.shape, wide_dtype(x.dtype)), state)[0]
            eye = [q and jnp.tile(jnp.eye(q.shape[1], dtype=q.dtype)[None], (q.shape[0], 1, 1)) for q in shapes]
            return tuple(eye), state

        known = node_names(params)
        companions = companions_of(known, nodes)
        pairs = [start(name, jax.tree.leaves(node)[0]) for name, node in zip(known, nodes, strict=True)]
        Q, states = (
            jnp.zeros((), jnp.int32)
            if mapped
            else structure.unflatten(
                [kept(name, node, pair[i], companions) for name, node, pair in zip(known, nodes, pairs, strict=True)]
            )
            for i in (0, 1)
        )
        return InBasisState(jnp.zeros((), jnp.int32), Q, states, below.init(params))

    def update(updates: Any, state: InBasisState, params: Any = None, **extra: Any) -> tuple[Any, InBasisState]:
        del params
        lay, updates = updates, everywhere(updates)
        known, leaves, structure = names(updates), jax.tree.leaves(updates), jax.tree.structure(updates)
        shapes = [shapes_of(name, x) for name, x in zip(known, leaves, strict=True)]
        Q, kept_before = (
            [batches(tree, like[i]) for tree, like in zip(structure.flatten_up_to(own), shapes, strict=True)]
            for i, own in enumerate((state.Q, state.bases))
        )
        Q, kept_before = everywhere((Q, kept_before))
        G = [batched(name, x)[0] for name, x in zip(names(updates), jax.tree.leaves(updates), strict=True)]

        def first(Q: Any, states: Any, own: Any) -> Any:
            def fresh(G: Any, old: Any) -> Any:
                return [made.first(g, k) for g, (_, k) in zip(G, old, strict=True)]

            done = renewed(state.count == 0, fresh, G, list(zip(Q, states, strict=True)))
            return jax.tree.map(jnp.zeros_like, lay), [q for q, _ in done], [k for _, k in done], own

        def later(Q: Any, states: Any, own: Any) -> Any:
            rotated = on_leaves(lambda x, q: along_all(transposes(q), x), updates, Q)
            u, own = below.update(rotated, own, None, **extra)
            u = on_leaves(lambda x, q: along_all(q, x), widen(u), Q)
            done = [made.next(g, k, q, state.count) for g, k, q in zip(G, states, Q, strict=True)]
            new = [q for q, _, _ in done]
            orders = [o for _, o, _ in done]
            own = _carried(own, jax.tree.structure(updates), on_leaves, Q, new, orders)
            return jax.tree.map(as_it_lay, u, lay), new, [k for _, _, k in done], own

        companions = companions_of(known, leaves)
        inner = map_unowned(everywhere_of_auto, state.inner)
        made_now = jax.lax.cond(state.count == 0, first, later, Q, kept_before, inner)
        u, Q, states, own = map_unowned(everywhere_of_auto, made_now)
        Q, bases = (
            structure.unflatten(
                [kept(name, x, o, companions) for name, x, o in zip(known, leaves, per_leaf, strict=True)]
            )
            for per_leaf in (Q, states)
        )
        Q, bases = settled([Q, bases], [state.Q, state.bases])
        return u, InBasisState(increment(state.count), Q, bases, map_unowned(settled, own, state.inner))

    return transformation("in_basis", init, update)


def _carried(own: Any, like: Any, on_leaves: Callable[..., Any], old: Any, new: Any, orders: Any) -> Any:
    """The state of the inner transformation in the new bases."""

    def field(name: str, value: Any) -> Any:
        if jax.tree.structure(value) != like:
            return walk(value)
        if name in LINEAR:
            return on_leaves(
                lambda x, q, r: along_all(transposes(r), along_all(q, x.astype(wide_dtype(x.dtype)))).astype(x.dtype),
                value,
                old,
                new,
            )
        return on_leaves(reorder, value, orders) if name in SQUARE else value

    def walk(node: Any) -> Any:
        if hasattr(node, "_fields"):
            return type(node)(**{name: field(name, getattr(node, name)) for name in node._fields})
        return type(node)(walk(child) for child in node) if isinstance(node, list | tuple) else node

    return walk(own)


register(
    in_basis,
    form="wrapper",
    paper=PAPER,
    words=4,
    collectives="matrices",
    wraps="direction",
    opt_outs=BY_LAYOUT,
)
