"""Generalized primal averaging: a fast iterate, its moving average, and gradients at a point between the two."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import check_decay_mask
from gradkit.leaves import Method
from gradkit.transforms import add_decayed_weights, scale_by_adam, scale_by_learning_rate
from gradkit.transforms.interpolated_averaging import interpolate
from gradkit.transforms.schedule_free import shares, warmed
from gradkit.types import Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "Smoothing DiLoCo with Primal Averaging for Faster Training of LLMs",
    "Defazio, Mishchenko, Raman, Shi, Xiao",
    2025,
    "2512.17131",
)


def _constant(mu_x: Any) -> tuple[Any, Any]:
    """The constant share c_t = 1 - mu_x, in the form that `shares` has."""

    def share(kept: Any, count: jax.Array) -> tuple[jax.Array, Any]:
        del count
        return jnp.asarray(1 - mu_x), kept

    return share, lambda dtype: ()


def gpa(
    inner: optax.GradientTransformation, *, mu_y: Scalar = 0.7, mu_x: Scalar = 0.9967
) -> optax.GradientTransformationExtraArgs:
    """Generalized primal averaging around any optimizer: the smooth form of DiLoCo on one worker.

    Equations, with y_t the user's parameters, where g_t is taken, and u_t the step that the optimizer of z makes of
    g_t, its learning rate and its weight decay included:

        z_{t+1} = z_t + u_t
        x_{t+1} = mu_x x_t + (1 - mu_x) z_{t+1}            the average, which is evaluated
        y_{t+1} = mu_y x_{t+1} + (1 - mu_y) z_{t+1}

    Special cases are heavy ball (SGD, mu_y = 1: momentum mu_x with the learning rate (1 - mu_x) gamma) and Nesterov's
    method (SGD, mu_y = mu_x), which is DiLoCo of one worker with one inner step. This wrapper must be the outermost
    one: a clip or a decay behind it would break the sequences. Read the average with `gk.eval_params(state, params)`;
    every loop does. Running statistics of a model (BatchNorm) belong to y: compute them anew at x before an evaluation.

    Args:
      inner: any optimizer; its updates include the learning rate. Its parameters are z, so that its weight decay
        is part of the step of z.
      mu_y: weight of the average in the point of the gradient, in [0, 1]. Default 0.7 (paper). With the number 0
        gradients are at z, and the state has x in the place of z.
      mu_x: decay of the average, in [0, 1). Default 0.9967, `gpa_mu_x(32)` (paper).

    Returns:
      A transformation that needs `params`. State: 1 word per parameter, in float32 or wider, one number, and the inner
      state. Elementwise: no collective.

    Raises:
      ValueError: an argument outside its range; at `update`, missing `params`.

    Example:
      >>> from gradkit.transforms import eval_params
      >>> tx, y = gpa(optax.sgd(1.0), mu_y=0.5, mu_x=0.75), jnp.array(0.0)
      >>> u, state = tx.update(jnp.array(-1.0), tx.init(y), y)
      >>> (y + u).item(), eval_params(state, y + u).item()  # z is 1, and the average a quarter of it
      (0.625, 0.25)

    Reference: Defazio, Mishchenko, Raman, Shi, Xiao. Smoothing DiLoCo with Primal Averaging for Faster Training of
    LLMs. 2025, arXiv 2512.17131. With more inner steps DiLoCo has an average of the same length, but other
    steps.
    """
    checks.real("mu_y", mu_y, "[0, 1]")
    checks.real("mu_x", mu_x, "[0, 1)")
    share, first = _constant(mu_x)
    return interpolate("gpa", inner, share, first, mu_y, sees_iterate=True)


def gpa_adamw(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    decay_at: str = "z",
    mu_y: Scalar = 0.7,
    mu_x: Any = None,
    averaging: str = "gpa",
    weight_power: Any = None,
    weight_lr_power: Any = None,
    warmup_steps: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with generalized primal averaging.

    Equations, with gamma_t = learning_rate min(1, t / warmup_steps), and m^, v^ the bias-corrected moments of g and
    g^2:

        z_{t+1} = z_t - gamma_t (m^_t / (sqrt(v^_t) + eps) + weight_decay z_t)
        x_{t+1} = (1 - c_t) x_t + c_t z_{t+1}            the average, which is evaluated
        y_{t+1} = mu_y x_{t+1} + (1 - mu_y) z_{t+1}      the user's parameters, where the gradient is taken

        averaging="gpa"              c_t = 1 - mu_x
        averaging="schedule_free"    c_t = w_t / (w_1 + ... + w_t)
                                     w_t = t^weight_power max(gamma_1, ..., gamma_t)^weight_lr_power

    Evaluate `gk.eval_params(state, params)`: every loop does.

    Args:
      learning_rate: step size of z, >= 0, or a schedule.
      b1: decay of the first moment, in [0, 1). Default 0.9 (paper).
      b2: decay of the second moment, in [0, 1). Default 0.999 (official code).
      eps: added to the root, >= 0. Default 1e-8 (official code).
      weight_decay: decoupled weight decay, times the learning rate, >= 0, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      decay_at: the parameters that decay: "z", the iterate, or "y", the point of the gradient. Default "z".
      mu_y: weight of the average in the point of the gradient, in [0, 1]. Default 0.7 (paper).
      mu_x: decay of the average, in [0, 1); for `averaging="gpa"` alone. Default 0.9967, `gpa_mu_x(32)` (paper).
      averaging: "gpa", a moving average, or "schedule_free", an average over all steps. Default "gpa" (paper).
      weight_power: power of the step in the weights, >= 0; for "schedule_free" alone. Default 0 (official code).
      weight_lr_power: power of the largest learning rate in the weights, >= 0; for "schedule_free" alone. Default 2
        (official code).
      warmup_steps: steps over which the learning rate rises linearly, >= 0. Default 0. The first step has learning_rate
        / warmup_steps.

    Returns:
      A transformation that needs `params`. State: 3 words per parameter and numbers. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range, or of the other kind of average; at `update`, missing `params`.

    Example:
      >>> tx, y = gpa_adamw(0.5, eps=0.0, mu_y=0.5, mu_x=0.75), jnp.array([3.0, -0.1])
      >>> print(tx.update(y, tx.init(y), y)[0].round(4))  # z moves by 0.5, y by 0.5 (1 - 0.5 * 0.75) of it
      [-0.3125  0.3125]

    Reference: Defazio, Mishchenko, Raman, Shi, Xiao. Smoothing DiLoCo with Primal Averaging for Faster Training of
    LLMs. 2025, arXiv 2512.17131; official code, commit f606606. There the decay multiplies z (or y) in place, and the
    formula for y leaves that out, so that x = (y - (1 - mu_y) z) / mu_y jumps in the opposite direction: here the decay
    is part of the step of z. Scalars there are float32 whatever the dtype of the parameters.
    """
    name = "gpa_adamw"
    checks.choice("decay_at", decay_at, ("z", "y"))
    checks.choice("averaging", averaging, ("gpa", "schedule_free"))
    checks.real("mu_y", mu_y, "[0, 1]")
    checks.real("mu_x", mu_x, "[0, 1)", optional=True)
    foreign = ("mu_x",) if averaging == "schedule_free" else ("weight_power", "weight_lr_power")
    given = {"mu_x": mu_x, "weight_power": weight_power, "weight_lr_power": weight_lr_power}
    for argument in foreign:
        if given[argument] is not None:
            other = "schedule_free" if averaging == "gpa" else "gpa"
            raise ValueError(
                f"{name}: {argument} must be left out with averaging={averaging!r}, which does not read it, got "
                f"{given[argument]!r}; write averaging={other!r}, or no {argument}"
            )
    rate = warmed(learning_rate, warmup_steps)
    if averaging == "gpa":
        share, first = _constant(0.9967 if mu_x is None else mu_x)
    else:
        share, first = shares(
            rate, 2.0 if weight_lr_power is None else weight_lr_power, 0.0 if weight_power is None else weight_power
        )
    chain = optax.chain(
        scale_by_adam(b1=b1, b2=b2, eps=eps),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(rate),
    )

    def init(params: Any) -> Any:
        check_decay_mask(name, weight_decay_mask, params)
        return chain.init(params)

    base = optax.GradientTransformationExtraArgs(init, chain.update)
    method = Method(name, learning_rate, weight_decay, weight_decay_mask)
    return interpolate(name, base, share, first, mu_y, sees_iterate=decay_at == "z", described=method)


def gpa_mu_x(sync_every: int, outer_momentum: Scalar = 0.9) -> Any:
    """The decay of an average as long as that of DiLoCo.

    Equation:

        mu_x = outer_momentum^(1 / sync_every)

    Args:
      sync_every: number of inner steps of DiLoCo, >= 1.
      outer_momentum: momentum of DiLoCo's outer optimizer, in (0, 1). Default 0.9 (paper).

    Returns:
      mu_x.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> round(gpa_mu_x(32), 4)
      0.9967

    Reference: Defazio, Mishchenko, Raman, Shi, Xiao. Smoothing DiLoCo with Primal Averaging for Faster Training of
    LLMs. 2025, arXiv 2512.17131.
    """
    sync_every = checks.integer("sync_every", sync_every, 1)
    checks.real("outer_momentum", outer_momentum, "(0, 1)")
    return outer_momentum ** (1 / float(sync_every))


GOLDEN = ("modern/gpa_adamw", "modern/gpa_schedule_free", "modern/gpa_decay")
register(
    gpa, form="wrapper", paper=PAPER, words=1, golden=GOLDEN, notes="read with gk.eval_params", example={"mu_x": 0.8}
)
register(
    gpa_adamw,
    form="optimizer",
    paper=PAPER,
    words=3,
    golden=GOLDEN,
    # An average of three hundred steps is longer than the runs of the contract.
    example={"mu_x": 0.8},
    race=Race(2e-3, {"mu_x": 0.97, "warmup_steps": 20}, schedule=None),
    notes="read with gk.eval_params",
)
register(gpa_mu_x, form="function", paper=PAPER, example={"sync_every": 32})
