"""The proximal policy of PPO-EWMA: a running mean of the iterates in which the first counts as one sample."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar, transformation, zeros
from gradkit.engine.mismatches import check_fit
from gradkit.transforms.running_average import include
from gradkit.types import Scalar


class ProximalEwmaState(NamedTuple):
    """The sum of all weights, 0 before the first update, and the mean."""

    weight: jax.Array
    mean: Any

    exact_fields = ("mean",)  # parameters, which gk.precision(state=...) must not round

    def proximal_params(self, params: Any) -> Any:
        """The mean, in the parameters' dtypes; the parameters before the first update."""
        return jax.tree.map(lambda x, e: jnp.where(self.weight == 0, x, e.astype(x.dtype)), params, self.mean)


def proximal_ewma(decay: Scalar) -> optax.GradientTransformationExtraArgs:
    """The running mean of a policy's parameters that PPO-EWMA keeps its steps close to; the last link of a chain.

    Equations, with x_t the parameters after step t, e_0 = x_0 and W_0 = 1:

        W_t = decay W_{t-1} + 1
        e_t = (decay W_{t-1} / W_t) e_{t-1} + x_t / W_t
        e_t = x_t,  W_t = 1                                   in a step with `reset`

    The mean is `state[-1].proximal_params(params)`: the parameters of the proximal policy of
    `gk.losses.ppo_decoupled_loss`. The parameters to act and to evaluate with are the user's, so `gk.eval_params` does
    not read the mean. With batches c times smaller its centre of mass, decay / (1 - decay) steps back, should be c
    times as many steps back.

    Args:
      decay: decay of the weights, in [0, 1]. The paper has 0.889 for PPO: a centre of mass 8 steps back. With 1 it is
        the mean of all iterates, with 0 the last one.

    Returns:
      A transformation that needs `params` and lets updates through. It must be the LAST link: it averages parameters
      plus updates. An extra argument `reset`, a boolean that may be traced, starts the mean again at the new
      parameters. State: 1 word per parameter and a number. Elementwise: no collective.

    Raises:
      ValueError: a `decay` outside its range; missing `params`.

    Example:
      >>> tx, x = optax.chain(optax.sgd(1.0), proximal_ewma(0.5)), jnp.array(0.0)
      >>> state = tx.init(x)
      >>> for g in (-1.0, -2.0):
      ...     u, state = tx.update(jnp.array(g), state, x)
      ...     x = x + u
      >>> round(float(state[-1].proximal_params(x)), 4)  # 0, 1, 3 with weights 1/4, 1/2, 1
      2.0

    Reference: Hilton, Cobbe, Schulman. Batch size-invariance for policy optimization. 2021, arXiv 2110.00641. The mean
    is updated once per step of the policy, after it, as in the official code.
    """
    checks.real("decay", decay, "[0, 1]")

    def init(params: optax.Params) -> ProximalEwmaState:
        return ProximalEwmaState(jnp.zeros((), float), zeros(params))

    def update(updates: Any, state: ProximalEwmaState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        check_fit("proximal_ewma", params, state.mean)
        kept = scalar(decay, state.weight) * jnp.where(state.weight == 0, jnp.ones_like(state.weight), state.weight)
        if extra.get("reset") is not None:
            kept = jnp.where(jnp.asarray(extra["reset"]), jnp.zeros_like(kept), kept)
        weight = kept + 1

        def followed(e: jax.Array, x: jax.Array, u: jax.Array) -> jax.Array:
            e = jnp.where(state.weight == 0, x, e)
            return include(e, x + u, (1 / weight).astype(e.dtype))

        mean = jax.tree.map(followed, state.mean, params, updates)
        return updates, ProximalEwmaState(weight, mean)

    return transformation("proximal_ewma", init, update, needs_params=True, complex_leaves=True)


register(
    proximal_ewma,
    form="primitive",
    paper=Paper("Batch size-invariance for policy optimization", "Hilton, Cobbe, Schulman", 2021, "2110.00641"),
    words=1,
    golden=("large_batch/proximal_ewma",),
    example={"decay": 0.889},
    notes="the last link; read with state[-1].proximal_params(params)",
)
