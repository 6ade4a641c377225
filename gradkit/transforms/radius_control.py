"""The last link of an optimizer, in the place of the learning rate alone: how long a step may be, and which way it may
change the norm of the weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import at_count, counter, divide, increment, scalar, transformation
from gradkit.engine.matrix_sums import BLOCKS, Block, part_masks
from gradkit.engine.presets import called, preset
from gradkit.engine.sums import whole_shape
from gradkit.leaves import (
    Layout,
    Method,
    axes_of,
    check_mask,
    check_mask_form,
    matrices_by_default,
    names,
    resolve_layout,
)
from gradkit.leaves.scopes import decay_here
from gradkit.transforms.hyperball import BY_LAYOUT, chosen_leaves, three_sums
from gradkit.types import Mask, Scalar, ScalarOrSchedule

PAPER = Paper("modded-nanogpt: Speedrunning the NanoGPT baseline", "Jordan et al.", 2024)
BRAKES = ("direction", "norm")
# Norms are never divided by less (records of the speed run).
LEAST = 1e-8


class RadiusControlState(NamedTuple):
    """Number of updates made (None where nothing is a schedule), and the learning rate of the last one as a metric."""

    count: Any
    metrics: dict[str, jax.Array]


class _Controls(NamedTuple):
    """The hyperparameters at a step; `ratio` None and `outward` and `inward` 1 change nothing."""

    rate: Any
    ratio: Any
    outward: Any
    inward: Any
    brake: str
    pin: bool


def _is_one(value: Any) -> bool:
    return isinstance(value, int | float) and value == 1


def _totals(block: Block, name: str, layout: Layout | None, shape: tuple[int, ...], unit: bool) -> Callable[..., Any]:
    """Numbers of the units of a leaf -> those of their matrices, in the same places."""
    axes = axes_of(layout, name, shape)
    if not unit or not (axes.inputs and axes.outputs):
        return lambda x: x
    masks = part_masks(axes, whole_shape(name, shape))

    def total(x: jax.Array) -> jax.Array:
        if masks == [None]:
            return jnp.sum(x, axis=axes.outputs, keepdims=True)
        own = [jnp.asarray(m, x.dtype) for m in masks if m is not None]
        return sum((m * jnp.sum(x * m, axis=axes.outputs, keepdims=True) for m in own), jnp.zeros_like(x))

    return total


def _factors(
    w_square: jax.Array, u_square: jax.Array, product: jax.Array, total: Callable[[jax.Array], jax.Array], at: _Controls
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(a, f, g) of the step g (W - rate f (u + a W)), from the sums of a block; a and g are those of its matrix."""
    rate = scalar(at.rate, w_square)
    W_square, inner = total(w_square), total(product)
    n = jnp.sqrt(W_square)
    a, f = jnp.zeros_like(inner), jnp.ones_like(w_square)
    if at.brake == "direction":
        c = divide(inner, W_square)
        k = jnp.where(c < 0, scalar(at.outward, c), scalar(at.inward, c))
        a = (k - 1) * c
        u_square = jnp.maximum(u_square + 2 * a * product + a * a * w_square, 0)
        product = product + a * w_square
    if at.ratio is not None:
        longer = scalar(at.ratio, f) * jnp.sqrt(w_square) / jnp.maximum(jnp.sqrt(u_square), LEAST)
        f = jnp.where(w_square > 0, jnp.maximum(longer, 1), f)
    inner = total(f * product)
    y = jnp.sqrt(jnp.maximum(W_square - 2 * rate * inner + rate * rate * total(f * f * u_square), 0))
    g = jnp.ones_like(y)
    if at.pin:
        r = jnp.maximum(n - rate * divide(inner, n), LEAST)
        # What is zero has no radius to be pinned to, and would stay zero.
        g = jnp.where(n > 0, r / jnp.maximum(y, LEAST), g)
    elif at.brake == "norm":
        k = jnp.where(y > n, scalar(at.outward, y), scalar(at.inward, y))
        g = jnp.where((y > 0) & (n > 0), divide(n + k * (y - n), y), g)
    return a, f, g


def radius_control(
    learning_rate: ScalarOrSchedule,
    *,
    ratio: Scalar | None = None,
    block: str = "tensor",
    outward: Scalar = 1.0,
    inward: Scalar = 1.0,
    brake: str = "direction",
    pin: bool = False,
    cautious_decay: ScalarOrSchedule = 0.0,
    mask: Mask | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The learning rate, with a floor under the size of a step and a hand on the norm of the weights.

    Equations, of every matrix W of the parameters and its direction u, in this order:

        brake="direction"   c = <u, W> / <W, W>,   u <- u + (k - 1) c W          k = outward if c < 0, else inward
        ratio               u <- u max(1, ratio |W| / |u|)                       of every block
        step                y = W - learning_rate u
        pin                 y <- y r / |y|,   r = |W| - learning_rate <u, W> / |W|
        brake="norm"        y <- y (|W| + k (|y| - |W|)) / |y|                   k = outward if |y| > |W|, else inward
        cautious_decay      y <- y (1 - learning_rate cautious_decay 1[u W > 0]) entrywise, W that before the step

    A step with c < 0 makes the norm grow. A pinned norm changes by the radial part of the step alone, and not by the
    growth of second order that a step at right angles brings. With all defaults it is `scale_by_learning_rate`, bit for
    bit. Matrices of zeros move as they do without all this: they have no radius yet, and any step is long enough.

    Args:
      learning_rate: step size >= 0, or a schedule.
      ratio: smallest norm of u relative to that of W, >= 0. Default None: no floor. Records of the speed run have 0.35
        with matrices and 0.3825 with units.
      block: what the floor is of: "tensor", one matrix (of a stack, of fused weights), or "unit", the inputs of one
        output. Brake and pin are always of one matrix. Default "tensor".
      outward: share, in [0, 1], of what would make the norm grow. Default 1; 0.5 in NVIDIA's code and the records.
      inward: share, in [0, 1], of what would make it shrink. Default 1.
      brake: whether these are shares of the direction (records) or of the change of the norm (NVIDIA's code).
      pin: whether the norm changes by the radial part of the step alone. Default False. With brake="direction".
      cautious_decay: decoupled decay >= 0, or a schedule, of the entries that the step takes towards 0. Default 0.
      mask: which leaves are controlled; the others move by -learning_rate u. Default None: those with inputs and
        outputs.
      layout: which axes are stacks, inputs and outputs.

    Returns:
      A transformation that needs `params`. No state but counters of schedules. Collectives: one all-reduce of three
      numbers per block where leaves are sharded.

    Raises:
      ValueError: an argument outside its range; `pin` with brake="norm"; `params` missing.

    Example:
      >>> w, u = jnp.array([[3.0, 4.0]]), jnp.array([[-3.0, -4.0]])  # outwards
      >>> tx = radius_control(0.1, outward=0.5)
      >>> tx.update(u, tx.init(w), w)[0].round(3).tolist()
      [[0.15000000596046448, 0.20000000298023224]]
      >>> tx = radius_control(0.1, ratio=2.0)
      >>> tx.update(u, tx.init(w), w)[0].round(3).tolist()
      [[0.6000000238418579, 0.800000011920929]]

    Reference: Jordan et al. modded-nanogpt: Speedrunning the NanoGPT baseline. 2024, records 9 and 46 of its track on
    optimization (floor, brake of the direction, pin, cautious decay); NVIDIA's Emerging-Optimizers (brake of the norm).
    Departures: their pin keeps a matrix of zeros at the norm 1e-8, for ever, and the brake of the norm halves its first
    step.
    """
    own = called("radius_control")
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.real("ratio", ratio, "[0, inf)", optional=True)
    checks.choice("block", block, BLOCKS)
    checks.real("outward", outward, "[0, 1]")
    checks.real("inward", inward, "[0, 1]")
    checks.choice("brake", brake, BRAKES)
    checks.switch(pin=pin)
    checks.real("cautious_decay", cautious_decay, "[0, inf)", schedule=True)
    if pin and brake == "norm":
        raise ValueError(
            f"{own}: pin must be False with brake='norm', got True: both set the norm after the step; write "
            "brake='direction'"
        )
    check_mask_form(mask=mask)
    chosen_by = matrices_by_default(layout) if mask is None else mask
    undecayed = isinstance(cautious_decay, int | float) and cautious_decay == 0
    measured = ratio is not None or pin or not (_is_one(outward) and _is_one(inward))

    def published(rate: Any) -> dict[str, jax.Array]:
        return {"last_learning_rate": jnp.array(rate, jnp.float32, copy=True)}

    def init(params: optax.Params) -> RadiusControlState:
        resolve_layout(layout, params, method=own, matters=measured)
        check_mask(chosen_by, params, method=own, argument="mask", instead="mask=False")
        count = counter(callable(learning_rate) or callable(cautious_decay))
        return RadiusControlState(count, published(at_count(learning_rate, count, f"{own}: learning_rate")))

    def update(updates: Any, state: RadiusControlState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        leaves, structure = jax.tree.flatten(updates)
        rate = at_count(learning_rate, state.count, f"{own}: learning_rate")
        # In the order of `scale_by_learning_rate`, to the last bit.
        out = [u * scalar(-rate if isinstance(rate, int | float) else rate, u) for u in leaves]
        out = out if isinstance(rate, int | float) else [-u for u in out]
        if measured or not undecayed:
            decay = 0.0 if undecayed else decay_here(at_count(cautious_decay, state.count, f"{own}: cautious_decay"))
            chosen = chosen_leaves(chosen_by, updates)
            known, w, u = names(updates), jax.tree.leaves(params), [leaves[i] for i in chosen]
            some, w = [known[i] for i in chosen], [w[i] for i in chosen]
            at = _Controls(rate, ratio, outward, inward, brake, pin)
            for i, new in zip(chosen, controlled(some, w, u, at, decay), strict=True):
                out[i] = new
        return structure.unflatten(out), RadiusControlState(increment(state.count), published(rate))

    def controlled(
        known: list[str], w: list[jax.Array], u: list[jax.Array], at: _Controls, decay: Any
    ) -> list[jax.Array]:
        factors: list[Any] = [(0.0, 1.0, 1.0)] * len(u)
        if measured:
            sums = three_sums(known, layout, w, u, block)
            rows = []
            for b, w_square, u_square, product in zip(sums.blocks, *sums.parts, strict=True):
                total = _totals(b, known[b.leaf], layout, u[b.leaf].shape, block == "unit")
                rows.append(_factors(w_square, u_square, product, total, at))
            each = [
                sums.per_leaf([jnp.broadcast_to(x, s.shape) for x, s in zip(row, sums.parts[0], strict=True)])
                for row in zip(*rows, strict=True)
            ]
            factors = [tuple(x.astype(y.dtype) for x in row) for y, *row in zip(u, *each, strict=True)]
        out = []
        for x, d, (a, f, g) in zip(w, u, factors, strict=True):
            d = f * (d + a * x) if measured else d
            lr = scalar(at.rate, x)
            if not undecayed:
                inwards = (jnp.sign(d) * jnp.sign(x) > 0).astype(x.dtype)
                g = g * (1 - lr * scalar(decay, x) * inwards)
            out.append((g - 1) * x - g * lr * d)
        return out

    return transformation(
        own,
        init,
        update,
        needs_params=measured or not undecayed,
        as_params=True,
        described=Method(own, learning_rate, None if undecayed else cautious_decay, None if undecayed else chosen_by),
    )


_PLAIN: dict[str, Any] = {"ratio": None, "block": "tensor", "outward": 1.0, "inward": 1.0, "brake": "direction"}
_PLAIN |= {"pin": False, "cautious_decay": 0.0}


def _fixed(*free: str, **others: Any) -> dict[str, Any]:
    return {name: value for name, value in {**_PLAIN, **others}.items() if name not in free}


update_ratio_floor = preset(
    radius_control,
    "update_ratio_floor",
    "The learning rate, for updates that are at least so long relative to their matrix.",
    fixed=_fixed("ratio"),
    ratio=0.35,
)
row_floor = preset(
    radius_control,
    "row_floor",
    "The learning rate, for updates of every output that are at least so long relative to its weights.",
    fixed=_fixed("ratio", block="unit"),
    ratio=0.3825,
)
radial_brake = preset(
    radius_control,
    "radial_brake",
    "The learning rate, where the norm of every matrix follows a part of its growth alone.",
    fixed=_fixed("outward", "inward", "brake"),
    outward=0.5,
    brake="norm",
)
pin_radius = preset(
    radius_control,
    "pin_radius",
    "The learning rate, where the norm of every matrix changes by the radial part of the step alone.",
    fixed=_fixed(pin=True),
)

SHARED: dict[str, Any] = {
    "form": "optimizer",
    "paper": PAPER,
    "collectives": "norms",
    "opt_outs": BY_LAYOUT,
    "notes": "the last link of a chain, in the place of the learning rate",
}
FLOOR, ROWS, BRAKE = ("modern/update_ratio_floor",), ("modern/row_floor_stack",), ("modern/radial_brake",)
register(
    radius_control,
    **SHARED,
    golden=FLOOR + ROWS + BRAKE,
    example={"ratio": 0.5, "block": "unit", "outward": 0.5, "pin": True, "cautious_decay": 0.025},
)
register(update_ratio_floor, **SHARED, golden=FLOOR)
register(row_floor, **SHARED, golden=ROWS, same_as="radius_control")
register(radial_brake, **SHARED, golden=BRAKE)
register(pin_radius, **SHARED, same_as="radius_control")
