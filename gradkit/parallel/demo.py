"""DeMo: every replica keeps a momentum of its own, of which it sends the largest coefficients of a cosine transform.

    delta <- decay delta + learning_rate g                 of this replica, which no other sees
    c     = the k largest |DCT(delta)| of every tile       what is sent: values and places
    delta <- delta - DCT^-1(c)
    q     = DCT^-1 of the mean of what was sent, of every coefficient over the replicas that have sent it
    x     <- (1 - learning_rate weight_decay) x - learning_rate sign(q)

A tile is h by w, the largest divisors of the sides of a matrix that are at most `chunk`; of a vector it has one side.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import at_count, check_decay_mask, counter, increment, scalar, transformation, zeros
from gradkit.leaves import Layout, Method, axes_of, names, resolve_layout, resolve_mask, tensor_axes
from gradkit.leaves.scopes import decay_here
from gradkit.parallel.compressors import (
    Compressor,
    check_floating,
    compressing,
    join,
    no_state,
    number_of_replicas,
    separate,
)
from gradkit.parallel.replicas import alike, check_own
from gradkit.types import Mask, Scalar, ScalarOrSchedule

PAPER = Paper("DeMo: Decoupled Momentum Optimization", "Peng, Quesnelle, Kingma", 2024, "2411.19870")
# A basis function of the cosine transform that is 0 at a place is a rounding there, whose sign means nothing.
NOTHING = 1e-6


class _Tiles(NamedTuple):
    """How a leaf is cut: the order of its axes, batch, rows and columns; and the sides of a tile."""

    order: tuple[int, ...]
    sizes: tuple[int, int, int]
    sides: tuple[int, int]


def largest_divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most `most`.

    >>> [largest_divisor(n, 64) for n in (768, 50257, 96, 9)]
    [64, 29, 48, 9]
    """
    return next(d for d in range(min(n, most), 0, -1) if n % d == 0)


@functools.lru_cache(maxsize=256)
def _cosines(n: int) -> np.ndarray:
    """The orthonormal cosine transform (DCT-II) of n numbers, by rows."""
    k, i = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    basis = np.sqrt(2 / n) * np.cos(np.pi * (2 * i + 1) * k / (2 * n))
    return np.where(k == 0, np.sqrt(1 / n), basis)


def _tiles(name: str, shape: tuple[int, ...], chunk: int, layout: Layout | None) -> _Tiles:
    axes = axes_of(layout, name, shape)
    rows, columns = axes.inputs, axes.outputs
    if not rows or not columns:
        own = tensor_axes(axes, shape)
        rows, columns = own[:-1], own[-1:]
    batch = tuple(a for a in range(len(shape)) if a not in rows and a not in columns)
    batch_size, n, m = (math.prod(shape[a] for a in group) for group in (batch, rows, columns))
    return _Tiles((*batch, *rows, *columns), (batch_size, n, m), (largest_divisor(n, chunk), largest_divisor(m, chunk)))


def _cut(x: jax.Array, t: _Tiles) -> jax.Array:
    """The coefficients of every tile, (tiles, h w)."""
    (b, n, m), (h, w) = t.sizes, t.sides
    tiles = x.transpose(t.order).reshape(b, n // h, h, m // w, w).transpose(0, 1, 3, 2, 4).reshape(-1, h, w)
    return _both(tiles, _cosines(h), _cosines(w)).reshape(-1, h * w)


def _join(c: jax.Array, t: _Tiles, shape: Sequence[int]) -> jax.Array:
    """The array of these coefficients."""
    (b, n, m), (h, w) = t.sizes, t.sides
    tiles = _both(c.reshape(-1, h, w), _cosines(h).T, _cosines(w).T)
    x = tiles.reshape(b, n // h, m // w, h, w).transpose(0, 1, 3, 2, 4)
    inverse = sorted(range(len(t.order)), key=lambda a: t.order[a])
    return x.reshape([shape[a] for a in t.order]).transpose(inverse)


def _both(x: jax.Array, left: np.ndarray, right: np.ndarray) -> jax.Array:
    return jnp.einsum(
        "kh,bhw,lw->bkl", left.astype(x.dtype), x, right.astype(x.dtype), precision=jax.lax.Precision.HIGHEST
    )


class _Plan(NamedTuple):
    """The tiles of all leaves, and how many coefficients are sent of each."""

    tiles: list[_Tiles]
    counts: list[int]
    shapes: list[tuple[int, ...]]
    structure: Any

    @classmethod
    def of(cls, tree: Any, chunk: int, top_k: int, layout: Layout | None) -> "_Plan":
        leaves, structure = jax.tree.flatten(tree)
        tiles = [_tiles(name, x.shape, chunk, layout) for name, x in zip(names(tree), leaves, strict=True)]
        counts = [min(top_k, math.prod(t.sides)) for t in tiles]
        return cls(tiles, counts, [x.shape for x in leaves], structure)

    def encode(self, tree: Any) -> tuple[Any, Any]:
        """The largest coefficients of every tile, and where they are."""
        values, places = [], []
        for x, t, k in zip(jax.tree.leaves(tree), self.tiles, self.counts, strict=True):
            c = _cut(x, t)
            at = jax.lax.top_k(jnp.abs(c), k)[1]
            values.append(jnp.take_along_axis(c, at, axis=1))
            places.append(at)
        return values, places

    def dense(self, payload: tuple[Any, Any]) -> list[jax.Array]:
        """Per leaf the coefficients of every tile, 0 of those that were not sent."""
        out = []
        for value, at, t in zip(*payload, self.tiles, strict=True):
            zero = alike(jnp.zeros((value.shape[0], math.prod(t.sides)), value.dtype), value)
            out.append(jnp.put_along_axis(zero, at, value, axis=1, inplace=False))
        return out

    def decode(self, payload: tuple[Any, Any]) -> Any:
        """The tree of what was sent."""
        rows = zip(self.dense(payload), self.tiles, self.shapes, strict=True)
        return self.structure.unflatten([_join(c, t, shape) for c, t, shape in rows])


def _checked(chunk: Any, top_k: Any) -> tuple[int, int]:
    return checks.integer("chunk", chunk, 1), checks.integer("top_k", top_k, 1)


def dct_top_k(
    *, chunk: int = 64, top_k: int = 32, axis_name: Any = "replica", layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """The compressor that sends the largest coefficients of a cosine transform of every tile.

    Equations, of a matrix cut into tiles h by w, the largest divisors of its sides that are at most `chunk`:

        C = DCT(tile),  orthonormal, both ways          of a vector one way
        sent: the top_k entries of C with the largest magnitude, 4 + 4 bytes each
        mean = (1/W) sum_w DCT^-1(sent_w)

    Biased: use it inside `error_feedback`, which says the rest later.

    Args:
      chunk: largest side of a tile, >= 1. Default 64 (official code).
      top_k: coefficients sent per tile, >= 1; all where a tile has fewer. Default 32 (official code).
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica".
      layout: which axes are inputs, outputs and stacks; the layers of a stack are matrices of their own.

    Returns:
      A compressor, and as a transformation: the gradient of a replica in, the mean of what was sent out. No state.
      Collectives: one all-gather of top_k (4 + 4) bytes per tile.

    Raises:
      ValueError: an argument outside its range; at `update`, no axis of this name.

    Example:
      >>> tx = dct_top_k(chunk=2, top_k=1)
      >>> g = jnp.array([[3.0, 3.0], [2.0, -2.0]])  # two replicas: a constant, and an alternating tile
      >>> print(jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="replica")(g).round(4)[0])
      [2.5 0.5]

    Reference: Peng, Quesnelle, Kingma. DeMo: Decoupled Momentum Optimization. 2024, arXiv 2411.19870. The official code
    takes the first two axes of a leaf of any rank for a matrix: a stack of layers is transformed across layers.
    """
    name = "dct_top_k"
    chunk, top_k = _checked(chunk, top_k)

    def exchange(tree: Any, state: Any, axis_name: Any, *, key: Any = None) -> tuple[Any, Any, Any]:
        del key
        replicas = number_of_replicas(name, axis_name)
        check_floating(name, tree)
        plan = _Plan.of(tree, chunk, top_k, layout)
        if not jax.tree.leaves(tree):
            return tree, tree, state
        payload = plan.encode(tree)
        total, _ = _gathered(plan, payload, axis_name)
        mean = [_join(c / replicas, t, s) for c, t, s in zip(total, plan.tiles, plan.shapes, strict=True)]
        return plan.structure.unflatten(mean), plan.decode(payload), state

    return compressing(name, Compressor(no_state, exchange), axis_name)


def _gathered(plan: _Plan, payload: Any, axis_name: Any) -> tuple[list[jax.Array], list[jax.Array]]:
    """Per leaf the sum of the coefficients of all replicas, and how many have sent each; in the order of the replicas,
    so that the bits agree."""
    n, flat = len(payload[0]), [*payload[0], *payload[1]]
    everyone = jax.lax.all_gather(join(flat), axis_name)

    def add(total: Any, joined: Any) -> tuple[Any, None]:
        own = separate(joined, flat)
        row = own[:n], own[n:]
        dense = plan.dense(row)
        counts = plan.dense(([jnp.ones_like(v) for v in row[0]], row[1]))
        return alike(jax.tree.map(jnp.add, total, (dense, counts)), total), None

    own = plan.dense(payload)
    start = [alike(jnp.zeros_like(c), c) for c in own]
    return jax.lax.scan(add, (start, [*start]), everyone)[0]


class DemoState(NamedTuple):
    """Number of updates made (None where neither rate nor decay is a schedule), and the momentum of this replica."""

    count: Any
    delta: Any

    exact_fields = ("delta",)  # what is rounded off here is never sent


def demo(
    learning_rate: ScalarOrSchedule,
    *,
    decay: Scalar = 0.999,
    top_k: int = 32,
    chunk: int = 64,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    axis_name: Any = "replica",
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Decoupled momentum: replicas never exchange gradients, only the largest components of momenta of their own.

    Equations, for one replica with its gradient g:

        delta <- decay delta + learning_rate g
        c = the top_k coefficients of largest magnitude of the cosine transform of every tile of delta
        delta <- delta - DCT^-1(c)
        q = DCT^-1 of the mean of every coefficient over the replicas that have sent it
        x <- (1 - learning_rate weight_decay) x - learning_rate sign(q)

    Parameters stay the same on all replicas; momenta do not.

    Args:
      learning_rate: step size >= 0, or a schedule; it enters the momentum and the step (official code).
      decay: of the momentum, in [0, 1). Default 0.999 (official code).
      top_k: coefficients sent per tile, >= 1; all where a tile has fewer. Default 32 (official code).
      chunk: largest side of a tile, >= 1. Default 64 (official code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0 (official code).
      weight_decay_mask: which leaves decay. Default all.
      axis_name: name of the axis of the replicas, or a tuple of names. Default "replica".
      layout: which axes are inputs, outputs and stacks; the layers of a stack are matrices of their own.

    Returns:
      A transformation of one replica, which needs `params` where leaves decay. State: 1 word per parameter on every
      replica, different on each. Collectives: one all-gather of top_k (4 + 4) bytes per tile.

    Raises:
      ValueError: an argument outside its range; at `update`, no axis of this name.

    Example:
      >>> tx = demo(0.1, top_k=1, chunk=2)
      >>> g = jnp.array([[3.0, 3.0], [1.0, 1.0]])  # two replicas, whose tiles are constant
      >>> print(jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="replica")(g)[0])
      [-0.1 -0.1]

    Reference: Peng, Quesnelle, Kingma. DeMo: Decoupled Momentum Optimization. 2024, arXiv 2411.19870; official code
    bloc97/DeMo, commit 0e48145. Departures: the layout says what a matrix is, where the code takes the first two axes;
    and the sign is 0 where |q| is below 1e-6 of the largest coefficient of its tile, as basis functions have zeros
    where a side of a tile is no power of two, at which the code steps by the sign of a rounding.
    """
    chunk, top_k = _checked(chunk, top_k)
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.real("decay", decay, "[0, 1)")
    checks.real("weight_decay", weight_decay, "[0, inf)", schedule=True)
    checks.axis_name("axis_name", axis_name, optional=False)
    decays = not (isinstance(weight_decay, int | float) and weight_decay == 0)

    def init(params: optax.Params) -> DemoState:
        check_decay_mask("demo", weight_decay_mask, params)
        resolve_layout(layout, params, method="demo", matters=True)
        return DemoState(counter(callable(learning_rate) or callable(weight_decay)), zeros(params))

    def update(updates: Any, state: DemoState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        check_own("demo", updates, axis_name)
        number_of_replicas("demo", axis_name)
        rate = at_count(learning_rate, state.count, "demo: learning_rate")
        delta = jax.tree.map(lambda d, g: scalar(decay, g) * d + scalar(rate, g) * g, state.delta, updates)
        new = DemoState(increment(state.count), delta)
        if not jax.tree.leaves(updates):
            return updates, new
        plan = _Plan.of(updates, chunk, top_k, layout)
        payload = plan.encode(delta)
        delta = jax.tree.map(jnp.subtract, delta, plan.decode(payload))
        sums, counts = _gathered(plan, payload, axis_name)

        def sign(total: jax.Array, count: jax.Array, t: _Tiles, shape: tuple[int, ...]) -> jax.Array:
            c = total / jnp.maximum(count, 1)
            q = _join(c, t, shape)
            least = jnp.broadcast_to(NOTHING * jnp.max(jnp.abs(c), axis=1, keepdims=True), c.shape)
            (b, n, m), (h, w) = t.sizes, t.sides
            tiles = least.reshape(b, n // h, m // w, h, w).transpose(0, 1, 3, 2, 4)
            inverse = sorted(range(len(t.order)), key=lambda a: t.order[a])
            floor = tiles.reshape([shape[a] for a in t.order]).transpose(inverse)
            return jnp.where(jnp.abs(q) < floor, jnp.zeros_like(q), jnp.sign(q))

        signs = [sign(*row) for row in zip(sums, counts, plan.tiles, plan.shapes, strict=True)]
        steps = jax.tree.map(lambda s: -scalar(rate, s) * s, plan.structure.unflatten(signs))
        if decays:
            if params is None:
                raise ValueError("demo needs params where weight_decay is not 0: call update(grads, state, params)")
            own = decay_here(at_count(weight_decay, state.count, "demo: weight_decay"))
            mask = resolve_mask(weight_decay_mask, updates)
            steps = jax.tree.map(
                lambda u, x, on: u - scalar(rate, u) * scalar(own, u) * x if on else u, steps, params, mask
            )
        return steps, alike(new._replace(delta=delta), state)

    return transformation(
        "demo", init, update, described=Method("demo", learning_rate, weight_decay, weight_decay_mask)
    )


GOLDEN = ("modern/demo", "modern/demo_two_workers")
EXAMPLE = {"chunk": 2, "top_k": 2}
register(
    dct_top_k,
    form="exchange",
    paper=PAPER,
    collectives="replicas",
    golden=GOLDEN,
    example=EXAMPLE,
    notes="the largest coefficients of a cosine transform of every tile",
)
register(
    demo,
    form="exchange",
    paper=PAPER,
    words=1,
    collectives="replicas",
    golden=GOLDEN,
    example={"learning_rate": 0.01, **EXAMPLE},
    notes="an optimizer by itself: its update is the step",
)
