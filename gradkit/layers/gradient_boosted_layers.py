"""A hidden layer that is trained block by block, each on what the blocks before it leave over: gradient boosting."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.arrays import reals
from gradkit.engine.keys import as_key
from gradkit.types import Key, Scalar

PAPER = Paper(
    "Sequential Training of Neural Networks with Gradient Boosting", "Emami, Martínez-Muñoz", 2019, "1909.12098"
)
# Newton steps to the constant that minimizes the loss: each doubles its digits, after a few that come near it.
CONSTANT_STEPS = 30


class BoostedBlocks(NamedTuple):
    """T blocks of J hidden units, for inputs of d features and o outputs.

    Attributes:
      constant: F_0, (o,), the best constant prediction.
      hidden_kernel: (T, d, J).
      hidden_bias: (T, J).
      output_kernel: (T, J, o), times the step that was taken along the block.
      output_bias: (T, o), likewise.
      losses: (T + 1,), the mean loss of F_0, ..., F_T on the data.
    """

    constant: jax.Array
    hidden_kernel: jax.Array
    hidden_bias: jax.Array
    output_kernel: jax.Array
    output_bias: jax.Array
    losses: jax.Array


def gradient_boosted_layers(blocks: BoostedBlocks, num_blocks: int | None = None) -> dict[str, dict[str, jax.Array]]:
    """The two layers of one network that computes F_t, the prediction of the first t blocks.

        hidden kernel = [W_1 ... W_t],        hidden bias = [b_1 ... b_t]
        output kernel = [V_1; ...; V_t],      output bias = F_0 + c_1 + ... + c_t

    Args:
      blocks: what `boost` gives.
      num_blocks: t, from 1 to T. Fewer blocks are a smaller network, which needs no further training. Default None: T.

    Returns:
      {"hidden": {"kernel": (d, t J), "bias": (t J,)}, "output": {"kernel": (t J, o), "bias": (o,)}}, for two dense
      layers with the activation of `boost` between them: activation(x W + b) V + c.

    Raises:
      ValueError: `num_blocks` outside its range.

    Example:
      >>> x = jnp.linspace(-1.0, 1.0, 8)[:, None]
      >>> squared = lambda output, target: jnp.sum((output - target) ** 2)
      >>> blocks = boost(squared, x, x**2, optax.sgd(0.1), key=0, num_blocks=3, steps=5)
      >>> jax.tree.map(jnp.shape, gradient_boosted_layers(blocks, 2))
      {'hidden': {'bias': (2,), 'kernel': (1, 2)}, 'output': {'bias': (1,), 'kernel': (2, 1)}}

    Reference: Emami, Martínez-Muñoz. Sequential Training of Neural Networks with Gradient Boosting. 2019, arXiv
    1909.12098.
    """
    checks.instance("blocks", blocks, BoostedBlocks)
    checks.integer("num_blocks", num_blocks, 1, optional=True)
    count, features, units = blocks.hidden_kernel.shape
    t = checks.integer("num_blocks", num_blocks, 1, maximum=count, optional=True)
    t = count if t is None else t
    kernel = jnp.moveaxis(blocks.hidden_kernel[:t], 0, 1).reshape(features, t * units)
    output = blocks.output_kernel[:t].reshape(t * units, -1)
    bias = blocks.constant + jnp.sum(blocks.output_bias[:t], axis=0)
    return {
        "hidden": {"kernel": kernel, "bias": blocks.hidden_bias[:t].reshape(-1)},
        "output": {"kernel": output, "bias": bias},
    }


def _newton(slope: jax.Array, curvature: jax.Array) -> jax.Array:
    """The step to the minimum of a parabola; 0 where it has none."""
    curved = curvature > 0
    return jnp.where(curved, -slope / jnp.where(curved, curvature, jnp.ones_like(curvature)), jnp.zeros_like(slope))


def _constant(mean_loss: Callable[[jax.Array], jax.Array], zero: jax.Array) -> jax.Array:
    """The constant with the smallest mean loss, by Newton's method with a pseudo-inverse."""

    def step(_: Any, c: jax.Array) -> jax.Array:
        values, vectors = jnp.linalg.eigh(jax.hessian(mean_loss)(c))
        along = vectors.T @ jax.grad(mean_loss)(c)
        # A direction without curvature beyond rounding, such as one number added to all logits, is left alone.
        flat = values <= 16 * c.size * jnp.finfo(c.dtype).eps * jnp.max(jnp.abs(values))
        return c + vectors @ _newton(along, jnp.where(flat, jnp.zeros_like(values), values))

    return jax.lax.fori_loop(0, CONSTANT_STEPS, step, zero)


def boost(
    loss_fn: Callable[[jax.Array, Any], jax.Array],
    inputs: Any,
    targets: Any,
    inner: optax.GradientTransformation,
    *,
    key: Key,
    num_outputs: int = 1,
    num_blocks: int = 200,
    units: int = 1,
    steps: int = 200,
    shrinkage: Scalar = 1.0,
    subsample: float = 1.0,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid,
) -> BoostedBlocks:
    """Trains a hidden layer in T blocks: each fits the residuals of those before it, which stay as they are.

        F_0 = the constant that minimizes the mean loss
        r_i = -dL_i / dF at F_{t-1}(x_i)                                            pseudo-residuals
        f_t = activation(x W_t + b_t) V_t + c_t, by least squares to r, with J units
        rho = -<dL/dF, f_t> / <f_t, d^2L/dF^2 f_t>                                  one Newton step along f_t
        F_t = F_{t-1} + shrinkage rho f_t

    With a squared loss the mean loss never rises, however badly a block is fitted, and
    rho = 1 for one that is fitted exactly.

    Args:
      loss_fn: (output (o,), target) -> the loss of one example, a scalar, convex and twice differentiable in the
        output; such as `optax.losses.softmax_cross_entropy_with_integer_labels`.
      inputs: (n, d), floating point; the features of a deep network to train its last layers.
      targets: an array or a tree with a leading axis of n: what `loss_fn` is given one by one.
      inner: the optimizer of a block's four arrays, such as `gk.adam(0.03)`; its state starts anew for each.
      key: a typed key or an integer, for the initial kernels and the subsamples.
      num_outputs: o >= 1; of a classifier the number of classes. Default 1.
      num_blocks: T >= 1. Default 200 (official code: 200 units in all).
      units: J >= 1. Default 1 (official code).
      steps: full-batch steps of `inner` per block, >= 1. Default 200 (official code, with L-BFGS).
      shrinkage: in (0, 1]; may be traced. Default 1 (official code).
      subsample: share of the examples that a block is fitted to, in (0, 1], drawn without replacement; the code has
        0.5. Default 1.
      activation: of the hidden units. Default `jax.nn.sigmoid` (official code).

    Returns:
      `BoostedBlocks`; `gradient_boosted_layers` joins them. One program for all blocks. Collectives: with examples
      sharded, the gradient of one block per step.

    Raises:
      ValueError: an argument outside its range; inputs that are no floating point matrix, targets of another length, a
        loss that is no scalar.

    Example:
      >>> x = jnp.linspace(-1.0, 1.0, 32)[:, None]
      >>> squared = lambda output, target: jnp.sum((output - target) ** 2)
      >>> blocks = boost(squared, x, x**2, optax.sgd(0.5, momentum=0.9), key=0, num_blocks=20, units=2, steps=100)
      >>> bool(blocks.losses[-1] < 0.1 * blocks.losses[0]), bool((jnp.diff(blocks.losses) <= 0).all())
      (True, True)

    Reference: Emami, Martínez-Muñoz. Sequential Training of Neural Networks with Gradient Boosting. 2019, arXiv
    1909.12098. Departures from the code: it fits with L-BFGS; it takes rho = 1 for a squared loss, and the diagonal of
    the Hessian for several classes, where this has all of it; its F_0 for several classes is 0.
    """
    checks.arrays(inputs=inputs, targets=targets)
    num_blocks = checks.integer("num_blocks", num_blocks, 1)
    num_outputs = checks.integer("num_outputs", num_outputs, 1)
    units = checks.integer("units", units, 1)
    steps = checks.integer("steps", steps, 1)
    checks.transformation(inner=inner)
    checks.function("loss_fn", loss_fn)
    checks.function("activation", activation)
    checks.real("shrinkage", shrinkage, "(0, 1]")
    checks.real("subsample", subsample, "(0, 1]")
    x = reals("boost", "inputs", inputs, 2)
    n, features = x.shape
    targets = jax.tree.map(jnp.asarray, targets)
    if {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(targets)} != {(n,)}:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(targets)]
        raise ValueError(f"boost: targets must have a leading axis of {n} as inputs have, got shapes {shapes}")
    tx = optax.with_extra_args_support(inner)
    zero = jnp.zeros(num_outputs, x.dtype)

    def mean_loss(outputs: jax.Array) -> jax.Array:
        losses = jax.vmap(loss_fn)(outputs, targets)
        if losses.shape != (n,):
            raise ValueError(f"boost: loss_fn must give a scalar for one example, got shape {losses.shape[1:]}")
        return jnp.mean(losses.astype(x.dtype))

    def apply(unit: Any, x: jax.Array) -> jax.Array:
        return activation(x @ unit["W"] + unit["b"][None]) @ unit["V"] + unit["c"][None]

    def fitted(key: jax.Array, x: jax.Array, residuals: jax.Array) -> Any:
        keys = jax.random.split(key)
        unit = {
            "W": jax.random.normal(keys[0], (features, units), x.dtype) / np.sqrt(features).astype(x.dtype),
            "b": jnp.zeros(units, x.dtype),
            "V": jax.random.normal(keys[1], (units, zero.size), x.dtype) / np.sqrt(units).astype(x.dtype),
            "c": jnp.zeros_like(zero),
        }

        def least_squares(unit: Any) -> jax.Array:
            return jnp.mean(jnp.sum(jnp.square(apply(unit, x) - residuals), axis=1)) / 2

        def step(carry: Any, _: Any) -> tuple[Any, None]:
            unit, state = carry
            updates, state = tx.update(jax.grad(least_squares)(unit), state, unit)
            return (optax.apply_updates(unit, updates), state), None

        return jax.lax.scan(step, (unit, tx.init(unit)), length=steps)[0][0]

    def block(F: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        keys = jax.random.split(key)
        # Of the mean loss, times n: of the loss of every example.
        residuals = -n * jax.grad(mean_loss)(F)
        own, some = x, residuals
        if (count := max(1, int(subsample * n))) < n:
            chosen = jax.random.permutation(keys[0], n)[:count]
            own, some = x[chosen], residuals[chosen]
        unit = fitted(keys[1], own, some)
        f = apply(unit, x)
        slope_of = lambda rho: jax.jvp(mean_loss, (F + rho * f,), (f,))[1]  # noqa: E731
        slope, curvature = jax.jvp(slope_of, (jnp.zeros((), x.dtype),), (jnp.ones((), x.dtype),))
        rho = jnp.asarray(shrinkage).astype(x.dtype) * _newton(slope, curvature)
        F = F + rho * f
        return F, (unit["W"], unit["b"], rho * unit["V"], rho * unit["c"], mean_loss(F))

    constant = _constant(lambda c: mean_loss(jnp.broadcast_to(c, (n, c.size))), zero)
    start = jnp.broadcast_to(constant, (n, zero.size))
    _, (W, b, V, c, losses) = jax.lax.scan(block, start, jax.random.split(as_key(key), num_blocks))
    return BoostedBlocks(constant, W, b, V, c, jnp.concatenate([mean_loss(start)[None], losses]))


register(boost, form="program", paper=PAPER)
SHAPES = ((1,), (3, 4, 2), (3, 2), (3, 2, 1), (3, 1), (4,))
EXAMPLE = BoostedBlocks._make(jax.ShapeDtypeStruct(shape, "float32") for shape in SHAPES)
register(gradient_boosted_layers, form="function", paper=PAPER, example={"blocks": EXAMPLE})
