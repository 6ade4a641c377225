"""Hedge backpropagation: a network with an exit behind every layer, whose exits are experts with weights.

alpha_l   starts at 1 / n for the n exits
update    sum_l alpha_l grad L_l,                 alpha constant
then      alpha_l <- alpha_l discount^{L_l}
          alpha_l <- max(alpha_l, smoothing / L)
          alpha   <- alpha / sum_l alpha_l
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.aggregation.makers import weights_of_losses
from gradkit.aggregation.preferences import check_count, dtype_of
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar

PAPER = Paper(
    "Online Deep Learning: Learning Deep Neural Networks on the Fly", "Sahoo, Pham, Lu, Hoi", 2018, "1711.03705"
)


class HedgeState(NamedTuple):
    """alpha, the weights of the exits."""

    alpha: jax.Array


class HedgeWeights(NamedTuple):
    """The weights of the exits of a network.

    Attributes:
      init: () -> alpha, uniform.
      update: (losses, alpha) -> alpha after these losses.
    """

    init: Any
    update: Any


class _Rule(NamedTuple):
    method: str
    num_exits: int
    discount: Any
    smoothing: Any
    num_layers: int | None
    normalize_losses: bool

    def checked(self) -> "_Rule":
        exits = checks.integer("num_exits", self.num_exits, 1)
        checks.real("discount", self.discount, "(0, 1]")
        checks.real("smoothing", self.smoothing, "[0, 1]")
        layers = checks.integer("num_layers", self.num_layers, 1, optional=True)
        checks.switch(normalize_losses=self.normalize_losses)
        return self._replace(num_exits=exits, num_layers=layers or max(exits - 1, 1))

    def after(self, losses: jax.Array, alpha: jax.Array) -> jax.Array:
        """The weights after these losses."""
        L = losses.astype(alpha.dtype)
        if self.normalize_losses:
            L = L / jnp.sum(L)
            spread = jnp.max(L) - jnp.min(L)
            L = jnp.where(spread > 0, (L - jnp.min(L)) / jnp.where(spread > 0, spread, jnp.ones_like(spread)), 0 * L)
        discount, smoothing = (jnp.asarray(x, alpha.dtype) for x in (self.discount, self.smoothing))
        new = jnp.maximum(alpha * discount**L, smoothing / (self.num_layers or 1))
        total = jnp.sum(new)
        # Without a floor, losses so large that all powers are 0: only their differences count.
        apart = alpha * discount ** (L - jnp.min(L))
        new = jnp.where(total > 0, new, apart)
        return new / jnp.sum(new)


def hedge_weights(
    num_exits: int,
    discount: Scalar = 0.99,
    smoothing: Scalar = 0.2,
    *,
    num_layers: int | None = None,
    normalize_losses: bool = False,
    axis_name: Any = None,
) -> HedgeWeights:
    """The weights of the exits of a network, as Hedge has them for experts.

        alpha_l <- alpha_l discount^{L_l};   alpha_l <- max(alpha_l, smoothing / L);   alpha <- alpha / sum_l alpha_l

    Predict sum_l alpha_l f_l, and train on sum_l alpha_l L_l with alpha constant (`jax.lax.stop_gradient`): one
    backward pass, whatever the number of exits. That is the gradient of the weighted sum of the losses, not of the loss
    of the mixed prediction. Then update alpha with the losses of that forward pass.

    Args:
      num_exits: n >= 1; L + 1 in the paper, which has an exit on the input and one behind each of L layers.
      discount: beta in (0, 1]; 1 keeps the weights uniform. Default 0.99 (paper).
      smoothing: s in [0, 1], of the floor. Default 0.2 (paper).
      num_layers: L of the floor, >= 1. Default None: n - 1 (paper), at least 1.
      normalize_losses: whether losses are divided by their sum and spread over [0, 1] first, as in the authors' code;
        losses that are all equal count as 0, where that code gives NaN. Default False (paper).
      axis_name: axis of `vmap` or `shard_map` over whose members the losses are averaged: else replicas drift apart.
        Default None.

    Returns:
      `HedgeWeights(init, update)`. State: n numbers. Collectives: n numbers with `axis_name`.

    Raises:
      ValueError: an argument outside its range; at `update`, another number of losses, and outside of jit losses that
        are negative or not finite.

    Example:
      >>> exits = hedge_weights(2, discount=0.5, smoothing=0.0)
      >>> exits.update(jnp.array([1.0, 2.0]), exits.init()).round(3).tolist()  # 1/2 and 1/4
      [0.6669999957084656, 0.3330000042915344]

    Reference: Sahoo, Pham, Lu, Hoi. Online Deep Learning: Learning Deep Neural Networks on the Fly. 2018, arXiv
    1711.03705. The authors' code has a floor of 0.01; a port without an exit on the input starts at 1 / (n + 1), so
    that its first step is too short, and has n in the place of L: `num_layers=n`.
    """
    rule = _Rule("hedge_weights", num_exits, discount, smoothing, num_layers, normalize_losses).checked()
    checks.axis_name("axis_name", axis_name)

    def init() -> jax.Array:
        return jnp.full((rule.num_exits,), 1 / rule.num_exits, float)

    def update(losses: Any, alpha: jax.Array) -> jax.Array:
        losses = jnp.asarray(losses)
        check_count("hedge_weights", rule.num_exits, len(losses))
        if not isinstance(losses, jax.core.Tracer) and not (np.isfinite(losses) & (np.asarray(losses) >= 0)).all():
            raise ValueError(f"hedge_weights: losses must be finite and >= 0, got {losses}; take other losses")
        mean = losses if axis_name is None else jax.lax.pmean(losses, axis_name)
        return rule.after(mean, alpha)

    return HedgeWeights(init, update)


def hedge(
    *,
    num_tasks: int,
    discount: Scalar = 0.99,
    smoothing: Scalar = 0.2,
    num_layers: int | None = None,
    normalize_losses: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Hedge backpropagation over the gradients of the exits of a network.

        result   = sum_l alpha_l grad L_l
        alpha_l <- alpha_l discount^{L_l};   alpha_l <- max(alpha_l, smoothing / L);   alpha <- alpha / sum_l alpha_l

    Exit l moves with alpha_l, a hidden layer with the weights of all exits behind it. For composition: a loss of one's
    own with `hedge_weights` needs no gradient per exit. Plain gradient descent follows it in the paper, with batches of
    one example and learning rates about 0.01.

    Args:
      num_tasks: the number of exits, >= 1: the state has a number for each.
      discount: beta in (0, 1]. Default 0.99 (paper).
      smoothing: s in [0, 1], of the floor. Default 0.2 (paper).
      num_layers: L of the floor, >= 1. Default None: num_tasks - 1 (paper), at least 1.
      normalize_losses: as in `hedge_weights`. Default False (paper).

    Returns:
      A transformation whose updates come in with a leading axis of exits and leave without it; `update` needs `losses`,
      which every loop has, non-negative, those of the forward pass before the step. State: a number per exit. One
      backward pass; nothing moves between devices.

    Raises:
      ValueError: at construction, a hyperparameter outside its range; when called, no losses, another number of exits,
        leading axes that differ or are missing, gradients that do not match the parameters.

    Example:
      >>> tx = hedge(num_tasks=2, discount=0.5, smoothing=0.0)
      >>> state = tx.init(jnp.zeros(2))
      >>> for _ in range(2):
      ...     u, state = tx.update(jnp.eye(2), state, losses=jnp.array([1.0, 2.0]))
      >>> print(u.round(3))
      [0.667 0.333]

    Reference: Sahoo, Pham, Lu, Hoi. Online Deep Learning: Learning Deep Neural Networks on the Fly. 2018, arXiv
    1711.03705. Departures of public codes: in `hedge_weights`.
    """
    num_tasks = checks.integer("num_tasks", num_tasks, 1)
    rule = _Rule("hedge", num_tasks, discount, smoothing, num_layers, normalize_losses).checked()

    def init(params: Any) -> HedgeState:
        return HedgeState(jnp.full((num_tasks,), 1 / num_tasks, dtype_of(params)))

    def weigh(losses: jax.Array, state: HedgeState, **extra: Any) -> tuple[jax.Array, HedgeState]:
        del extra
        check_count("hedge", num_tasks, len(losses))
        return state.alpha, HedgeState(rule.after(losses, state.alpha))

    return weights_of_losses("hedge", weigh, init=init)


GOLDEN = ("second_shelf/hedge",)
register(hedge, form="aggregator", paper=PAPER, needs=("losses",), golden=GOLDEN, example={"num_tasks": 3})
register(hedge_weights, form="program", paper=PAPER, golden=GOLDEN, example={"num_exits": 3})
