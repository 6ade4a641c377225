"""SMB: stochastic gradient descent that replaces a step which does not decrease the loss by one from a model."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import (
    abs_sq,
    at_count,
    divide,
    increment,
    need,
    optimizer,
    scalar,
    transformation,
    widen,
    zeros,
)
from gradkit.engine.norms import global_square, packed_sums
from gradkit.leaves import Layout, Method, names, resolve_layout
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper("Bolstering Stochastic Gradient Descent with Model Building", "Birbil et al.", 2021, "2111.07058")
# With a shorter gradient the trial step is always taken (official code).
SMALLEST_NORM = 1e-8


class SmbState(NamedTuple):
    """Number of updates; number of steps from the model since the learning rate last changed; the factor of the
    learning rate; whether the last step was from the model, and its learning rate, as metrics."""

    count: jax.Array
    model_steps: jax.Array
    factor: jax.Array
    metrics: dict[str, jax.Array]


class SmbiState(NamedTuple):
    """The fields of `SmbState`, whether the last step failed, 0 or 1, and the gradient of the last batch."""

    count: jax.Array
    failed: jax.Array
    gradient: Any
    model_steps: jax.Array
    factor: jax.Array
    metrics: dict[str, jax.Array]


def _parts(gg: jax.Array, yy: jax.Array, eta: Any) -> tuple[jax.Array, jax.Array]:
    """beta and kappa of the model."""
    inverse = 1 / scalar(eta, gg)
    r = divide(jnp.sqrt(yy), jnp.sqrt(gg))
    return r + inverse, (2 * r + inverse) * inverse


def model_step(g: Any, y: Any, lr: jax.Array, eta: Any, layout: Layout | None) -> Any:
    """The minimum of the model of every tensor; 0 where the gradient is 0."""
    known, (flat_g, structure), flat_y = names(g), jax.tree.flatten(g), jax.tree.leaves(y)
    squares = [[abs_sq(x) for x in row] for row in (flat_g, flat_y)]
    products = [a * b for a, b in zip(flat_g, flat_y, strict=True)]
    sums = packed_sums(known, "tensor", layout, *squares, products, like=flat_g)

    def of_g(gg: jax.Array, yy: jax.Array, yg: jax.Array) -> jax.Array:
        beta, kappa = _parts(gg, yy, eta)
        c = divide(yg, gg)
        factor = (1 + (beta * c + divide(yy, gg)) / kappa) / (beta + c)
        return jnp.where(gg == 0, jnp.zeros_like(gg), factor)

    def of_y(gg: jax.Array, yy: jax.Array, yg: jax.Array) -> jax.Array:
        del yg
        return jnp.where(gg == 0, jnp.zeros_like(gg), 1 / _parts(gg, yy, eta)[1])

    rows = zip(flat_g, flat_y, sums.each(of_g), sums.each(of_y), strict=True)
    return structure.unflatten([-scalar(lr, a) * (p * a + q * b) for a, b, p, q in rows])


def independent_model_step(g: Any, h: Any, y: Any, lr: jax.Array, eta: Any, layout: Layout | None) -> Any:
    """The minimum, for every tensor, of the model of the gradient g with curvature along the gradient h of another
    batch; 0 where h is 0."""
    known, (flat_g, structure), flat_h, flat_y = names(g), jax.tree.flatten(g), jax.tree.leaves(h), jax.tree.leaves(y)
    squares = [[abs_sq(x) for x in row] for row in (flat_h, flat_y)]
    pairs = ((flat_y, flat_h), (flat_y, flat_g), (flat_h, flat_g))
    products = [[a * b for a, b in zip(*pair, strict=True)] for pair in pairs]
    sums = packed_sums(known, "tensor", layout, *squares, *products, like=flat_g)

    def factor(which: str) -> Any:
        def of(hh: jax.Array, yy: jax.Array, yh: jax.Array, yg: jax.Array, hg: jax.Array) -> jax.Array:
            beta, kappa = _parts(hh, yy, eta)
            p, q = divide(yg, hh), divide(hg, hh)
            own = {"g": jnp.ones_like(hh), "h": (beta * p + divide(yy, hh) * q) / kappa, "y": (beta * q + p) / kappa}
            return jnp.where(hh == 0, jnp.zeros_like(hh), own[which] / (beta + divide(yh, hh)))

        return sums.each(of)

    rows = zip(flat_g, flat_h, flat_y, factor("g"), factor("h"), factor("y"), strict=True)
    return structure.unflatten([-scalar(lr, a) * (p * a + q * b + r * c) for a, b, c, p, q, r in rows])


class _Rate(NamedTuple):
    """The hyperparameters of both methods, and the learning rate that follows from them."""

    name: str
    learning_rate: Any
    eta: Any
    armijo: Any
    auto_schedule: bool
    steps_per_epoch: int
    gamma: Any
    lr_decay: Any
    max_learning_rate: Any

    def checked(self) -> "_Rate":
        """The same hyperparameters, checked."""
        checks.real("learning_rate", self.learning_rate, "[0, inf)", schedule=True)
        checks.real("eta", self.eta, "(0, 1)")
        checks.real("armijo", self.armijo, "(0, 1)")
        checks.switch(auto_schedule=self.auto_schedule)
        checks.real("gamma", self.gamma, "[0, 1]")
        checks.real("lr_decay", self.lr_decay, "(0, 1]")
        checks.real("max_learning_rate", self.max_learning_rate, "(0, inf]")
        return self._replace(steps_per_epoch=checks.integer("steps_per_epoch", self.steps_per_epoch, 1))

    def at(self, count: jax.Array) -> Any:
        """The learning rate of an update, without the factor."""
        return at_count(self.learning_rate, count, f"{self.name}: learning_rate")

    def after(self, count: jax.Array, factor: jax.Array, models: jax.Array, lr: jax.Array, most: float) -> Any:
        """The factor and the number of steps from the model after update `count`; the factor falls if the fraction of
        such steps is above `most` times gamma."""
        if not self.auto_schedule:
            return factor, models
        decay, share = scalar(self.lr_decay, lr), models.astype(lr.dtype) / self.steps_per_epoch
        risen = jnp.where(lr / decay <= scalar(self.max_learning_rate, lr), 1 / decay, jnp.ones_like(lr))
        change = jnp.where(share > most * scalar(self.gamma, lr), decay, risen)
        ends = count % self.steps_per_epoch == 0
        return jnp.where(ends, factor * change, factor), jnp.where(ends, 0, models)

    def falls(self, g: Any, value: Any, there: Any, lr: jax.Array, value_fn: Any) -> jax.Array:
        """Whether the loss after the trial step satisfies the Armijo condition."""
        square = global_square(g).astype(lr.dtype)
        highest = jnp.asarray(value).astype(lr.dtype) - jnp.asarray(self.armijo).astype(lr.dtype) * lr * square
        return (jnp.asarray(value_fn(there)).astype(lr.dtype) <= highest) | (jnp.sqrt(square) < SMALLEST_NORM)


def _published(model: Any, rate: Any) -> dict[str, jax.Array]:
    return {
        "model_step": jnp.asarray(model).astype(jnp.int32),
        "last_learning_rate": jnp.array(rate, jnp.float32, copy=True),
    }


def smb(
    learning_rate: ScalarOrSchedule = 0.5,
    *,
    eta: Scalar = 0.99,
    armijo: Scalar = 0.1,
    auto_schedule: bool = False,
    steps_per_epoch: int = 500,
    gamma: ScalarOrSchedule = 0.05,
    lr_decay: ScalarOrSchedule = 0.9,
    max_learning_rate: ScalarOrSchedule = 20.0,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Stochastic gradient descent with model building (SMB): a failed step is corrected by a quadratic model.

    The trial step s = -lr g is taken where f(x + s) <= f(x) - armijo lr |g|^2. Otherwise every tensor takes the minimum
    of a model that agrees with the gradients at both ends of s. Equations, of every tensor, with
    y = gradient(x + s) - g of the same batch:

        r = |y| / |g|,   c = <y, g> / |g|^2,   beta = r + 1 / eta,   kappa = (2 r + 1 / eta) / eta
        step = -lr ((1 + (beta c + r^2) / kappa) / (beta + c) g + y / kappa)

    This is the minimum c_g g + c_s s + c_y y of the paper's quadratic model with s = -lr g inserted, which avoids
    differences of nearly equal numbers.

    Args:
      learning_rate: lr of the trial step, >= 0, or a schedule. Default 0.5 (paper; the official code has 1).
      eta: largest length of a step from the model relative to s, in (0, 1). Default 0.99 (paper).
      armijo: fraction of the first-order decrease that a trial step must reach, in (0, 1). Default 0.1 (official code).
      auto_schedule: whether the learning rate follows the fraction of steps from the model. Default False.
      steps_per_epoch: with `auto_schedule`, updates between two changes of the learning rate, >= 1. Default 500.
      gamma: with `auto_schedule`, the learning rate falls if the fraction of steps from the model is above gamma, in
        [0, 1], and rises otherwise. Default 0.05 (official code).
      lr_decay: with `auto_schedule`, the factor of a fall, and the inverse of that of a rise, in (0, 1]. Default 0.9
        (official code).
      max_learning_rate: with `auto_schedule`, the learning rate does not rise beyond it, > 0. Default 20 (official
        code).
      layout: which axes are stacks: every layer of a scan has its own model.

    Returns:
      A transformation that needs `params`, `value_fn` and `grad_fn` of this batch; `value` saves one evaluation. The
      updates are complete: no learning rate follows. State: no word per parameter, three numbers and the metrics
      `model_step` (1 where the trial failed) and `last_learning_rate`. It costs a forward pass per step, and a gradient
      where the trial fails. Collectives: one scalar, and three per tensor where the trial fails, besides those of
      the loss; inside `shard_map` `value_fn` must return the loss of the global batch.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, an extra argument missing.

    Example:
      >>> f = lambda x: 2 * x**2
      >>> tx, x = smb(1.0, eta=0.5), jnp.array(1.0)
      >>> u, state = tx.update(4 * x, tx.init(x), x, value_fn=f, grad_fn=jax.grad(f))
      >>> round(float(u), 4), int(state[0].metrics["model_step"])  # -4 increases the loss; there the gradient is -12
      (-0.4, 1)

    Reference: Birbil et al. Bolstering Stochastic Gradient Descent with Model Building. 2021, arXiv 2111.07058. A
    tensor whose gradient is 0 does not move; the official code gives NaN there.
    """
    rule = _Rate(
        "smb", learning_rate, eta, armijo, auto_schedule, steps_per_epoch, gamma, lr_decay, max_learning_rate
    ).checked()

    def init(params: optax.Params) -> SmbState:
        resolve_layout(layout, params, method="smb", matters=True)
        count = jnp.zeros((), jnp.int32)
        factor = jnp.ones((), jnp.result_type(float))
        return SmbState(count, jnp.zeros((), jnp.int32), factor, _published(False, rule.at(count)))

    def update(g: Any, state: SmbState, params: Any = None, **extra: Any) -> tuple[Any, SmbState]:
        value_fn, grad_fn = need("smb", extra, "value_fn"), need("smb", extra, "grad_fn")
        value = value_fn(params) if extra.get("value") is None else extra["value"]
        lr = state.factor * jnp.asarray(rule.at(state.count)).astype(state.factor.dtype)
        trial = jax.tree.map(lambda g: -scalar(lr, g) * g, g)
        there = jax.tree.map(jnp.add, params, trial)
        falls = rule.falls(g, value, there, lr, value_fn)

        def corrected() -> Any:
            y = jax.tree.map(jnp.subtract, widen(grad_fn(there)), g)
            return model_step(g, y, lr, eta, layout)

        moved = jax.lax.cond(falls, lambda: trial, corrected)
        count = increment(state.count)
        models = state.model_steps + (1 - falls.astype(jnp.int32))
        factor, models = rule.after(count, state.factor, models, lr, 1.0)
        return moved, SmbState(count, models, factor, _published(~falls, lr))

    return optimizer(Method("smb", learning_rate), transformation("smb", init, update, needs_params=True))


def smbi(
    learning_rate: ScalarOrSchedule = 0.5,
    *,
    eta: Scalar = 0.99,
    armijo: Scalar = 0.1,
    auto_schedule: bool = False,
    steps_per_epoch: int = 500,
    gamma: ScalarOrSchedule = 0.05,
    lr_decay: ScalarOrSchedule = 0.9,
    max_learning_rate: ScalarOrSchedule = 20.0,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SMB with independent batches: the model of a failed step is built from the next batch.

    The trial step s = -lr g is taken where f(x + s) <= f(x) - armijo lr |g|^2. Otherwise the parameters do not change,
    and the next update takes the minimum of a model of the failed gradient g, whose curvature is that of the next
    batch, so that the two are independent. Equations, of every tensor, with the gradient h of the next batch, s = -lr h
    and y = gradient(x + s) - h of that batch:

        r = |y| / |h|,   c = <y, h> / |h|^2,   beta = r + 1 / eta,   kappa = (2 r + 1 / eta) / eta
        p = <y, g> / |h|^2,   q = <h, g> / |h|^2
        step = -lr / (beta + c) (g + (beta p + r^2 q) / kappa h + (beta q + p) / kappa y)

    Args:
      learning_rate: lr of the trial step, >= 0, or a schedule. Default 0.5 (paper; the official code has 1).
      eta: largest length of a step from the model relative to s, in (0, 1). Default 0.99 (paper).
      armijo: fraction of the first-order decrease that a trial step must reach, in (0, 1). Default 0.1 (official code).
      auto_schedule: whether the learning rate follows the fraction of steps from the model. Default False.
      steps_per_epoch: with `auto_schedule`, updates between two changes of the learning rate, >= 1. Default 500.
      gamma: with `auto_schedule`, the learning rate falls if the fraction of steps from the model is above gamma / 2,
        in [0, 1], because a failure takes two updates, and rises otherwise. Default 0.05 (official code).
      lr_decay: with `auto_schedule`, the factor of a fall, and the inverse of that of a rise, in (0, 1]. Default 0.9
        (official code).
      max_learning_rate: with `auto_schedule`, the learning rate does not rise beyond it, > 0. Default 20 (official
        code).
      layout: which axes are stacks: every layer of a scan has its own model.

    Returns:
      A transformation that needs `params`, `value_fn` and `grad_fn` of this batch; `value` saves one evaluation. The
      updates are complete: no learning rate follows. State: 1 word per parameter, numbers and the metrics `model_step`
      (1 where a step came from the model) and `last_learning_rate`. It costs a forward pass per step, or a gradient
      where the step before it failed. Collectives: one scalar, or five per tensor, besides those of the loss; inside
      `shard_map` `value_fn` must return the loss of the global batch.

    Raises:
      ValueError: a hyperparameter outside its range; at `update`, an extra argument missing.

    Example:
      >>> f = lambda x: 2 * x**2
      >>> tx, x = smbi(1.0, eta=0.5), jnp.array(1.0)
      >>> u, state = tx.update(4 * x, tx.init(x), x, value_fn=f, grad_fn=jax.grad(f))
      >>> float(u)  # -4 increases the loss: no step
      0.0
      >>> u, state = tx.update(4 * x, state, x, value_fn=f, grad_fn=jax.grad(f))
      >>> round(float(u), 4)  # with the same batch again, the step of `smb`
      -0.4

    Reference: Birbil et al. Bolstering Stochastic Gradient Descent with Model Building. 2021, arXiv 2111.07058. A
    tensor whose gradient is 0 does not move; the official code gives NaN there.
    """
    rule = _Rate(
        "smbi", learning_rate, eta, armijo, auto_schedule, steps_per_epoch, gamma, lr_decay, max_learning_rate
    ).checked()

    def init(params: optax.Params) -> SmbiState:
        resolve_layout(layout, params, method="smbi", matters=True)
        count, failed = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        factor = jnp.ones((), jnp.result_type(float))
        metrics = _published(False, rule.at(count))
        return SmbiState(count, failed, zeros(params), jnp.zeros((), jnp.int32), factor, metrics)

    def update(h: Any, state: SmbiState, params: Any = None, **extra: Any) -> tuple[Any, SmbiState]:
        value_fn, grad_fn = need("smbi", extra, "value_fn"), need("smbi", extra, "grad_fn")
        lr = state.factor * jnp.asarray(rule.at(state.count)).astype(state.factor.dtype)
        trial = jax.tree.map(lambda h: -scalar(lr, h) * h, h)
        there = jax.tree.map(jnp.add, params, trial)

        def of_model() -> tuple[Any, jax.Array]:
            y = jax.tree.map(jnp.subtract, widen(grad_fn(there)), h)
            return independent_model_step(state.gradient, h, y, lr, eta, layout), jnp.zeros_like(state.failed)

        def tried() -> tuple[Any, jax.Array]:
            value = value_fn(params) if extra.get("value") is None else extra["value"]
            falls = rule.falls(h, value, there, lr, value_fn)
            return jax.tree.map(lambda s: jnp.where(falls, s, jnp.zeros_like(s)), trial), 1 - falls.astype(jnp.int32)

        moved, failed = jax.lax.cond(state.failed > 0, of_model, tried)
        count = increment(state.count)
        models = state.model_steps + state.failed
        factor, models = rule.after(count, state.factor, models, lr, 0.5)
        return moved, SmbiState(count, failed, h, models, factor, _published(state.failed, lr))

    return optimizer(Method("smbi", learning_rate), transformation("smbi", init, update, needs_params=True))


COMMON: dict[str, Any] = {
    "form": "optimizer",
    "paper": PAPER,
    "needs": ("value_fn", "grad_fn"),
    "collectives": "norms",
    "opt_outs": {
        "layout": "with the same gradient at both ends of a step all tensors agree; tests/papers has layers of a stack"
    },
    "race": Race(0.5, schedule=None),
}
register(
    smb,
    **COMMON,
    golden=("step_size/smb",),
    notes="the updates are complete; a failed step costs a second gradient",
)
register(
    smbi,
    **COMMON,
    words=1,
    notes="the updates are complete; after a failed step, which is not taken, the next costs a second gradient",
)
