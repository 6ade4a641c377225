"""Training of quantized networks in little memory: scaled gradients of the codes, and updates of a few channels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import transformation
from gradkit.engine.keys import as_key, check_key
from gradkit.leaves import Layout, resolve_layout, resolve_mask
from gradkit.leaves.paths import map_named
from gradkit.types import Key, PyTree, Scalar

PAPER = Paper("On-Device Training Under 256KB Memory", "Lin et al.", 2022, "2206.15472")
CRITERIA = ("magnitude+", "magnitude-", "random")
RATIOS = (1 / 8, 1 / 4, 1 / 2, 1.0)


def quantization_aware_scaling(scales: Any) -> optax.GradientTransformationExtraArgs:
    """Divides the gradient of integer codes by the squared scale, so that codes learn as real weights do.

    Equation, for weight = scale code:

        g <- g / scale^2

    The gradient of a code is scale times that of the weight, and the code is weight / scale: their ratio differs from
    that of the real weight by scale^-2. With this link SGD on the codes, with or without momentum, is SGD on the real
    weights, and decoupled decay means the same. Adam does not need it; its steps are then in units of the codes.

    Args:
      scales: positive numbers, or a tree of them of which the parameters may be a refinement. Each has to broadcast to
        its leaf: one number, or one per output channel, the last axis. The scale of a kernel is s_W, that of a bias in
        int32 codes s_x s_W.

    Returns:
      A transformation for the place in front of momentum. No state. Elementwise: no collective; scales are sharded
      like the channels.

    Raises:
      ValueError: scales that are not positive, of another structure, or that do not broadcast to their leaf; leaves
        that are not real floating point numbers: keep the codes in floating point and round them in the forward pass.

    Example:
      >>> tx = quantization_aware_scaling({"kernel": jnp.array([0.5, 2.0])})
      >>> g = {"kernel": jnp.ones((1, 2))}
      >>> tx.update(g, tx.init(g))[0]["kernel"].tolist()
      [[4.0, 0.25]]

    Reference: Lin et al. On-Device Training Under 256KB Memory. 2022, arXiv 2206.15472. Its code trains with SGD,
    momentum 0 or 0.9, at 0.1 per 256 examples.
    """
    for scale in jax.tree.leaves(scales):
        if isinstance(scale, jax.core.Tracer):
            continue
        numeric = np.asarray(scale).dtype.kind in "iuf" or jnp.issubdtype(np.asarray(scale).dtype, jnp.floating)
        if not numeric or not (np.asarray(scale, float) > 0).all():
            raise ValueError(f"scales must be numbers > 0, got {scale!r}; write the step of the codes, max|w| / 127")

    def spread(tree: Any) -> Any:
        try:
            return jax.tree.map(lambda scale, part: jax.tree.map(lambda _: scale, part), scales, tree)
        except ValueError as error:
            raise ValueError(
                "quantization_aware_scaling: scales must be one number or a tree of which the parameters are a "
                f"refinement, got the structure {jax.tree.structure(scales)}; write one scale per leaf ({error})"
            ) from error

    def leaf(g: jax.Array, scale: Any) -> jax.Array:
        s = jnp.asarray(scale).astype(g.dtype)
        if s.ndim > g.ndim or any(a not in (1, b) for a, b in zip(s.shape[::-1], g.shape[::-1], strict=False)):
            raise ValueError(
                f"quantization_aware_scaling: scales must broadcast to their leaves, got {s.shape} for {g.shape}; "
                "write one number, or one per entry of the last axis"
            )
        return g / jnp.broadcast_to(jnp.square(s).reshape((1,) * (g.ndim - s.ndim) + s.shape), g.shape)

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        del params, extra
        return jax.tree.map(leaf, updates, spread(updates)), state

    return transformation("quantization_aware_scaling", lambda params: optax.EmptyState(), update)


def sparse_update(
    params: PyTree,
    layers: Any,
    ratio: Scalar = 1.0,
    criterion: str = "magnitude+",
    *,
    biases: Any = False,
    key: Key = 0,
    layout: Layout | None = None,
) -> Any:
    """The mask of a sparse update: some input channels of some kernels, and all entries of some other leaves.

        int(ratio n) of the n input channels of a kernel: those with the largest ("magnitude+") or the smallest
        ("magnitude-") norm of their weights over all other axes, or some at random ("random")

    The mask is made once, before training; `gk.keep_updates(mask)` is the last link of the chain. A mask alone saves no
    memory: activations are no longer saved if the other parameters are closed over, or stopped with
    `jax.lax.stop_gradient` before the loss is traced, and if the channels are a static slice.

    Args:
      params: the parameters at the start.
      layers: which kernels: a selector, a tree of booleans, a function params -> booleans, a boolean.
      ratio: in (0, 1]; or names of kernels -> ratios, as `plan_sparse_update` decides them. Default 1.
      criterion: "magnitude+" (paper), "magnitude-" or "random". Default "magnitude+".
      biases: which leaves are updated completely, in the same forms, such as the biases of the last layers. Default
        False: none.
      key: for "random", a random key or an integer. Default 0.
      layout: which axes are inputs, outputs and stacks. Default None: the tree.

    Returns:
      A tree of boolean arrays like `params`. The input channel of a convolution (HWIO) is I; that of a depthwise
      convolution, whose I is 1, is its output channel. Every layer of a stack has channels of its own.

    Raises:
      ValueError: an argument outside its range; a kernel without input axes among `layers`, or without a ratio.

    Example:
      >>> mask = sparse_update({"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}, True, 0.5)
      >>> mask["kernel"].tolist()  # the second input has the larger weights
      [[False, False], [True, True]]

    Reference: Lin et al. On-Device Training Under 256KB Memory. 2022, arXiv 2206.15472.
    """
    checks.arrays(params=params)
    checks.choice("criterion", criterion, CRITERIA)
    check_key(key)
    for each in ratio.values() if isinstance(ratio, Mapping) else [ratio]:
        checks.real("ratio", each, "(0, 1]")
    meaning = resolve_layout(layout, params, method="sparse_update")
    chosen = resolve_mask(layers, params, argument="layers", method="sparse_update")
    complete = resolve_mask(biases, params, argument="biases", method="sparse_update")
    flags, full = iter(jax.tree.leaves(chosen)), iter(jax.tree.leaves(complete))
    numbers = iter(range(len(jax.tree.leaves(params))))

    def leaf(name: str, x: Any) -> jax.Array:
        picked, complete_leaf, number = next(flags), next(full), next(numbers)
        shape = jnp.shape(x)
        if complete_leaf or not picked:
            return jnp.full(shape, complete_leaf, bool)
        axes = meaning(name, shape)
        if not axes.inputs or not axes.outputs:
            raise ValueError(
                f"sparse_update: layers must select kernels, got {name!r} without input channels; write it in biases"
            )
        if isinstance(ratio, Mapping) and name not in ratio:
            raise ValueError(f"sparse_update: ratio must have all selected kernels, got none for {name!r}; add it")
        channel = axes.inputs[-1] if shape[axes.inputs[-1]] > 1 else axes.outputs[-1]
        keep = int((ratio[name] if isinstance(ratio, Mapping) else ratio) * shape[channel])
        others = tuple(a for a in (*axes.inputs, *axes.outputs) if a != channel)
        score = jnp.sum(jnp.square(jnp.abs(jnp.asarray(x))), axis=others, keepdims=True)
        if criterion == "random":
            score = jax.random.uniform(jax.random.fold_in(as_key(key), number), score.shape)
        order = jnp.argsort(score if criterion == "magnitude-" else -score, axis=channel, stable=True)
        rank = jnp.argsort(order, axis=channel, stable=True)
        return jnp.broadcast_to(rank < keep, shape)

    return map_named(leaf, params)


class SparsePlan(NamedTuple):
    """What is updated: the biases of the last `bias_layers` layers, and the share `ratios[i]` of the input channels of
    the kernel of layer i, 0 for none; the gain and the cost of that."""

    bias_layers: int
    ratios: tuple[float, ...]
    gain: float
    cost: float


def plan_sparse_update(
    bias_gain: Sequence[float],
    weight_gain: Any,
    cost: tuple[Sequence[float], Any],
    budget: float,
    *,
    ratios: Sequence[float] = RATIOS,
) -> SparsePlan:
    """The sparse update with the largest gain within a budget of memory.

        maximise  bias_gain[k] + sum_i weight_gain[i, r_i]    subject to the same sum of costs <= budget

    The variables are k, the number of last layers whose biases are updated, and for every layer a ratio r_i or none. A
    gain is the improvement in accuracy from updating one item alone, measured offline; that gains add up is an
    assumption (contribution analysis).

    Args:
      bias_gain: gains for k = 1, 2, ..., finite; k = 0 has gain and cost 0.
      weight_gain: gains (layers, len(ratios)), finite.
      cost: (costs like `bias_gain`, costs like `weight_gain`), >= 0: bytes of what is kept for the backward pass.
      budget: >= 0, in the same unit.
      ratios: of the columns, each in (0, 1]. Default 1/8, 1/4, 1/2, 1 (paper).

    Returns:
      A `SparsePlan`, the optimum; among equal gains the cheapest. It has no JAX arrays and is made before training.

    Raises:
      ValueError: shapes that do not fit each other, numbers outside their range.

    Example:
      >>> plan = plan_sparse_update([1.0, 1.5], [[2.0, 2.5]], ([1, 4], [[3, 6]]), 7, ratios=(0.5, 1.0))
      >>> plan.bias_layers, plan.ratios, plan.gain  # 1 + 2.5 for 1 + 6
      (1, (1.0,), 3.5)

    Reference: Lin et al. On-Device Training Under 256KB Memory. 2022, arXiv 2206.15472, which searches by evolution; at
    these sizes dynamic programming is exact: a partial plan is dropped where another one has at least its gain at no
    more than its cost.
    """
    checks.arrays(weight_gain=weight_gain)
    checks.sequence(bias_gain=bias_gain, cost=cost, ratios=ratios)
    for each in ratios:
        checks.real("ratios", each, "(0, 1]")
    checks.real("budget", budget, "[0, inf)")
    bias, weight = np.asarray(bias_gain, float).reshape(-1), np.asarray(weight_gain, float)
    bias_cost, weight_cost = np.asarray(cost[0], float).reshape(-1), np.asarray(cost[1], float)
    if weight.ndim != 2 or weight.shape[1] != len(ratios):
        raise ValueError(
            f"weight_gain must have shape (layers, {len(ratios)}), got {weight.shape}; one column per ratio"
        )
    if bias_cost.shape != bias.shape or weight_cost.shape != weight.shape:
        raise ValueError(
            f"cost must have the shapes {bias.shape} and {weight.shape} of the gains, got {bias_cost.shape} and "
            f"{weight_cost.shape}; write one cost per gain"
        )
    for name, values in (("cost", [*bias_cost, *weight_cost.ravel()]), ("gains", [*bias, *weight.ravel()])):
        if not np.isfinite(values).all() or (name == "cost" and min(values, default=0.0) < 0):
            raise ValueError(f"{name} must be finite{' and >= 0' if name == 'cost' else ''}, got {values}")
    options = [[(0.0, 0.0), *zip(c, g, strict=True)] for c, g in zip(weight_cost, weight, strict=True)]
    front: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]
    for choices in [[(0.0, 0.0), *zip(bias_cost, bias, strict=True)], *options]:
        grown = [(c + dc, g + dg, (*path, i)) for c, g, path in front for i, (dc, dg) in enumerate(choices)]
        front, best = [], -math.inf
        for row in sorted((r for r in grown if r[0] <= budget), key=lambda r: (r[0], -r[1])):
            if row[1] > best:
                front.append(row)
                best = row[1]
    spent, gain, (k, *picked) = front[-1]
    return SparsePlan(k, tuple(float(ratios[i - 1]) if i else 0.0 for i in picked), float(gain), float(spent))


register(quantization_aware_scaling, form="primitive", paper=PAPER, example={"scales": 0.5})
register(
    sparse_update,
    form="function",
    paper=PAPER,
    example={"params": {"kernel": jax.ShapeDtypeStruct((4, 2), "float32")}, "layers": True},
)
register(
    plan_sparse_update,
    form="function",
    paper=PAPER,
    example={"bias_gain": [1.0], "weight_gain": [[1.0] * 4], "cost": ([1.0], [[1.0] * 4]), "budget": 2.0},
)
