"""SMB: stochastic gradient descent that replaces a step which does not decrease the loss by one from a model.

s = -lr g                                             the trial step, at rate lr
f(x + s) <= f(x) - armijo lr |g|^2                    over all tensors: the step is s
otherwise, in every tensor by itself, with y = gradient(x + s) - g of the same batch,
    r = |y| / |g|,   c = <y, g> / |g|^2,   beta = r + 1 / eta,   kappa = (2 r + 1 / eta) / eta
    step = -lr ( (1 + (beta c + r^2) / kappa) / (beta + c) g  +  y / kappa )

The last line is the minimum of the paper's quadratic model, c_g g + c_s s + c_y y, with s = -lr g put in, which leaves
no difference of nearly equal numbers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import abs_sq, at_count, divide, increment, need, optimizer, scalar, transformation, widen
from gradkit.engine.norms import global_square, packed_sums
from gradkit.leaves import Layout, Method, names, resolve_layout

PAPER = Paper("Bolstering Stochastic Gradient Descent with Model Building", "Birbil et al.", 2021, "2111.07058")
# A gradient that is shorter is taken as it is (official code).
SMALLEST_NORM = 1e-8


class SmbState(NamedTuple):
    """Number of updates; steps from the model since the rate was last changed; the factor of the learning rate; what
    the last step was, as metrics."""

    count: jax.Array
    model_steps: jax.Array
    factor: jax.Array
    metrics: dict[str, jax.Array]


def model_step(g: Any, y: Any, lr: jax.Array, eta: Any, layout: Layout | None) -> Any:
    """The minimum of the model of every tensor; 0 where the gradient is."""
    known, (flat_g, structure), flat_y = names(g), jax.tree.flatten(g), jax.tree.leaves(y)
    squares = [[abs_sq(x) for x in row] for row in (flat_g, flat_y)]
    products = [a * b for a, b in zip(flat_g, flat_y, strict=True)]
    sums = packed_sums(known, "tensor", layout, *squares, products, like=flat_g)

    def parts(gg: jax.Array, yy: jax.Array) -> tuple[jax.Array, jax.Array]:
        inverse = 1 / scalar(eta, gg)
        r = divide(jnp.sqrt(yy), jnp.sqrt(gg))
        return r + inverse, (2 * r + inverse) * inverse

    def of_g(gg: jax.Array, yy: jax.Array, yg: jax.Array) -> jax.Array:
        beta, kappa = parts(gg, yy)
        c = divide(yg, gg)
        factor = (1 + (beta * c + divide(yy, gg)) / kappa) / (beta + c)
        return jnp.where(gg == 0, jnp.zeros_like(gg), factor)

    def of_y(gg: jax.Array, yy: jax.Array, yg: jax.Array) -> jax.Array:
        del yg
        return jnp.where(gg == 0, jnp.zeros_like(gg), 1 / parts(gg, yy)[1])

    rows = zip(flat_g, flat_y, sums.each(of_g), sums.each(of_y), strict=True)
    return structure.unflatten([-scalar(lr, a) * (p * a + q * b) for a, b, p, q in rows])


def smb(
    learning_rate: Any = 0.5,
    *,
    eta: Any = 0.99,
    armijo: Any = 0.1,
    auto_schedule: bool = False,
    steps_per_epoch: int = 500,
    gamma: Any = 0.05,
    lr_decay: Any = 0.9,
    max_learning_rate: Any = 20.0,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Stochastic gradient descent with model building (SMB): a failed step is corrected by a quadratic model.

    s = -lr g is taken where f(x + s) <= f(x) - armijo lr |g|^2. Otherwise every tensor takes the minimum of a model
    that agrees with the gradients at both ends of s; equations at the head of this file.

    Args:
      learning_rate: rate of the trial step, >= 0, or a schedule. Default 0.5 (paper; the official code has 1).
      eta: how far a step from the model may go relative to s, in (0, 1). Default 0.99 (paper).
      armijo: share of the first-order decrease that a trial step must reach, in (0, 1). Default 0.1 (official code).
      auto_schedule: whether the rate follows the share of steps from the model. Default False.
      steps_per_epoch: with `auto_schedule`, updates between two changes of the rate, >= 1. Default 500.
      gamma: with `auto_schedule`, the rate falls if the share of steps from the model is above gamma, in [0, 1], and
        rises otherwise. Default 0.05 (official code).
      lr_decay: with `auto_schedule`, the factor of a fall, and the inverse of that of a rise, in (0, 1]. Default 0.9
        (official code).
      max_learning_rate: with `auto_schedule`, a rise beyond it does not happen, > 0. Default 20 (official code).
      layout: which axes are stacks: every layer of a scan has its own model.

    Returns:
      A transformation that needs `params`, `value_fn` and `grad_fn` of this batch; `value` saves one evaluation. The
      updates are complete: no learning rate follows. State: no word per parameter, three numbers and the metrics
      `model_step` (1 where the trial failed) and `last_learning_rate`. Costs a forward pass a step, and a gradient
      where the trial fails. Collectives: one scalar, and three per tensor where the trial fails, besides those of
      the loss; inside `shard_map` `value_fn` gives the loss of the whole batch.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, an extra argument missing.

    Example:
      >>> f = lambda x: 2 * x**2
      >>> tx, x = smb(1.0, eta=0.5), jnp.array(1.0)
      >>> u, state = tx.update(4 * x, tx.init(x), x, value_fn=f, grad_fn=jax.grad(f))
      >>> round(float(u), 4), int(state[0].metrics["model_step"])  # -4 is uphill: the gradient at its end is -12
      (-0.4, 1)

    Reference: Birbil et al. Bolstering Stochastic Gradient Descent with Model Building. 2021, arXiv 2111.07058. A
    tensor whose gradient is 0 does not move; the official code gives NaN there.
    """
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.real("eta", eta, "(0, 1)")
    checks.real("armijo", armijo, "(0, 1)")
    checks.switch(auto_schedule=auto_schedule)
    steps_per_epoch = checks.integer("steps_per_epoch", steps_per_epoch, 1)
    checks.real("gamma", gamma, "[0, 1]")
    checks.real("lr_decay", lr_decay, "(0, 1]")
    checks.real("max_learning_rate", max_learning_rate, "(0, inf]")

    def published(model: Any, rate: Any) -> dict[str, jax.Array]:
        return {
            "model_step": jnp.asarray(model).astype(jnp.int32),
            "last_learning_rate": jnp.array(rate, jnp.float32, copy=True),
        }

    def init(params: optax.Params) -> SmbState:
        resolve_layout(layout, params, method="smb", matters=True)
        count = jnp.zeros((), jnp.int32)
        rate = at_count(learning_rate, count, "smb: learning_rate")
        factor = jnp.ones((), jnp.result_type(float))
        return SmbState(count, jnp.zeros((), jnp.int32), factor, published(False, rate))

    def scheduled(state: SmbState, count: jax.Array, models: jax.Array, lr: jax.Array) -> tuple[Any, Any]:
        """The factor of the rate, and the steps from the model that it has seen, after this step."""
        if not auto_schedule:
            return state.factor, models
        decay, share = scalar(lr_decay, lr), models.astype(lr.dtype) / steps_per_epoch
        risen = jnp.where(lr / decay <= scalar(max_learning_rate, lr), 1 / decay, jnp.ones_like(lr))
        change = jnp.where(share > scalar(gamma, lr), decay, risen)
        ends = count % steps_per_epoch == 0
        return jnp.where(ends, state.factor * change, state.factor), jnp.where(ends, 0, models)

    def update(g: Any, state: SmbState, params: Any = None, **extra: Any) -> tuple[Any, SmbState]:
        value_fn, grad_fn = need("smb", extra, "value_fn"), need("smb", extra, "grad_fn")
        value = value_fn(params) if extra.get("value") is None else extra["value"]
        dtype = state.factor.dtype
        lr = state.factor * jnp.asarray(at_count(learning_rate, state.count, "smb: learning_rate")).astype(dtype)
        square = global_square(g).astype(dtype)
        trial = jax.tree.map(lambda g: -scalar(lr, g) * g, g)
        there = jax.tree.map(jnp.add, params, trial)
        highest = jnp.asarray(value).astype(dtype) - jnp.asarray(armijo).astype(dtype) * lr * square
        falls = (jnp.asarray(value_fn(there)).astype(dtype) <= highest) | (jnp.sqrt(square) < SMALLEST_NORM)

        def corrected() -> Any:
            y = jax.tree.map(jnp.subtract, widen(grad_fn(there)), g)
            return model_step(g, y, lr, eta, layout)

        moved = jax.lax.cond(falls, lambda: trial, corrected)
        count = increment(state.count)
        factor, models = scheduled(state, count, state.model_steps + (1 - falls.astype(jnp.int32)), lr)
        return moved, SmbState(count, models, factor, published(~falls, lr))

    return optimizer(Method("smb", learning_rate), transformation("smb", init, update, needs_params=True))


register(
    smb,
    form="optimizer",
    paper=PAPER,
    needs=("value_fn", "grad_fn"),
    collectives="norms",
    golden=("step_size/smb",),
    opt_outs={
        "layout": "with the same gradient at both ends of a step all tensors agree; tests/papers has layers of a stack"
    },
    notes="the updates are complete; a failed step costs a second gradient",
    race=Race(0.5, schedule=None),
)
