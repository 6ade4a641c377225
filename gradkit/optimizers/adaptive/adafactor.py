"""Adafactor: a second moment in the memory of rows and columns, and steps relative to the size of the parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import (
    at_count,
    cast,
    check_decay_mask,
    counter,
    increment,
    optimizer,
    scalar,
    transformation,
    zeros,
)
from gradkit.leaves import Layout, Method, resolve_layout, resolve_mask
from gradkit.leaves.scopes import decay_here
from gradkit.transforms import clip_by_tensor_rms, scale_by_factored_rms, scale_by_learning_rate
from gradkit.transforms.factored_rms import PAPER
from gradkit.transforms.tensor_rms import bounded, tensor_rms
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

NAME = "adafactor"


class StepByParamRmsState(NamedTuple):
    """Number of updates made (None where neither the learning rate nor the decay is a schedule), and the running mean
    of steps (None without b1)."""

    count: Any
    mu: Any


def relative_rate(warmup_init: bool) -> Any:
    """The schedule min(1e-2, 1 / sqrt(t)), or min(1e-6 t, 1 / sqrt(t)), with t = 1 in the first step.

    >>> [round(float(relative_rate(warm)(jnp.array(3))), 6) for warm in (False, True)]
    [0.01, 4e-06]
    """

    def rate(count: jax.Array) -> jax.Array:
        t = (count + 1).astype(jnp.result_type(float))
        return jnp.minimum(1e-6 * t if warmup_init else jnp.full_like(t, 1e-2), jax.lax.rsqrt(t))

    return rate


def _step_by_param_rms(
    rate: Any, b1: Any, eps_scale: Any, weight_decay: Any, mask: Any, mu_dtype: Any, layout: Layout | None
) -> optax.GradientTransformationExtraArgs:
    """The link behind the learning rate: steps in units of the parameters' size (eps_scale None: in units of 1), their
    running mean, and the decay, which has the same units and no momentum."""

    def init(params: optax.Params) -> StepByParamRmsState:
        check_decay_mask(NAME, mask, params)
        resolve_layout(layout, params, method=NAME, matters=True)
        count = counter(callable(rate) or callable(weight_decay))
        return StepByParamRmsState(count, None if checks.absent(b1) else zeros(params, mu_dtype))

    def update(updates: Any, state: StepByParamRmsState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        leaves, structure = jax.tree.flatten(updates)
        sizes = [jnp.ones((), u.dtype) for u in leaves]
        if eps_scale is not None:
            sizes = tensor_rms(params, layout, lambda r: bounded(r, eps_scale))
        steps = [u * cast(s, u.dtype) for u, s in zip(leaves, sizes, strict=True)]
        mu = state.mu
        if mu is not None:
            mu = jax.tree.map(lambda m, u: ema(m, u, b1), mu, structure.unflatten(steps))
            steps = [cast(m, u.dtype) for m, u in zip(jax.tree.leaves(mu), steps, strict=True)]
        if not (isinstance(weight_decay, int | float) and weight_decay == 0):
            a = at_count(rate, state.count, "adafactor: learning_rate")
            decay = decay_here(at_count(weight_decay, state.count, "adafactor: weight_decay"))
            on = jax.tree.leaves(resolve_mask(mask, updates))
            rows = zip(steps, sizes, jax.tree.leaves(params), on, strict=True)
            steps = [
                u - scalar(a, u) * scalar(decay, u) * cast(s, u.dtype) * x if chosen else u for u, s, x, chosen in rows
            ]
        return structure.unflatten(steps), StepByParamRmsState(increment(state.count), mu)

    described = Method(NAME, None, weight_decay, mask)
    return transformation(NAME, init, update, needs_params=True, complex_leaves=True, described=described)


def adafactor(
    learning_rate: ScalarOrSchedule | None,
    *,
    eps: Scalar = 1e-30,
    eps_scale: Scalar = 1e-3,
    clipping_threshold: Scalar | None = 1.0,
    decay_rate: Scalar = 0.8,
    decay_offset: int = 0,
    b1: Scalar | None = None,
    b2_cap: Scalar = 1.0,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    scale_by_param: bool = True,
    relative_step: bool = False,
    warmup_init: bool = False,
    factored: bool = True,
    min_dim_size_to_factor: int = 128,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adaptive steps relative to the parameters' size, with a second moment of the rows and columns of a matrix.

    Equations, with I and O the input and output axes of a leaf, and RMS over one tensor (one layer of a stack):

        b_t = min(b2_cap, 1 - (t - decay_offset)^(-decay_rate))
        R <- b_t R + (1 - b_t) mean_O(g^2 + eps),  C <- b_t C + (1 - b_t) mean_I(g^2 + eps)
        u = g (R / mean_I(R))^(-1/2) C^(-1/2)
        u <- u / max(1, RMS(u) / clipping_threshold)
        a_t = rho_t max(eps_scale, RMS(x))          rho_t = learning_rate(t), or with relative_step
                                                    min(1e-2, 1 / sqrt(t)); with warmup_init 1e-6 t for 1e-2
        m <- b1 m + (1 - b1) a_t u                  without b1: m = a_t u
        x <- x - m - weight_decay a_t x

    The same keywords give the variants in use:

        t5x           as here, but its decay is not multiplied by the learning rate: let weight_decay be a schedule
                      that is divided by that of the learning rate
        big_vision    min_dim_size_to_factor=32, b2_cap=0.999, clipping_threshold=None, scale_by_param=False, and
                      `gk.trace` before the learning rate in place of b1
        PaLM          factored=False, b1=0.9, a learning rate of 1e-2 and then 1 / sqrt(t)

    Args:
      learning_rate: relative step size >= 0 (absolute without `scale_by_param`), or a schedule; None with
        `relative_step`.
      eps: added to squares, >= 0. Default 1e-30 (paper: eps_1).
      eps_scale: lower bound of the parameters' size that steps are relative to, >= 0. Default 1e-3 (paper: eps_2).
      clipping_threshold: largest RMS of u, > 0; None for no clipping. Default 1 (paper: d).
      decay_rate: how fast b_t approaches 1, > 0. Default 0.8 (paper).
      decay_offset: steps that b_t starts later, >= 0. Default 0.
      b1: decay of the momentum, in [0, 1). Default None: no momentum (paper).
      b2_cap: largest b_t, in (0, 1]. Default 1 (paper).
      weight_decay: decay coefficient >= 0, which a_t multiplies, or a schedule. Default 0.
      weight_decay_mask: which leaves decay. Default all.
      scale_by_param: whether steps are relative to the parameters' size. Default True (paper).
      relative_step: whether the step size is 1 / sqrt(t), at most 1e-2, and no learning rate is given. Default False.
      warmup_init: whether such steps start at 1e-6. Default False.
      factored: whether any leaf is factored. Default True.
      min_dim_size_to_factor: smallest number of inputs and of outputs of a leaf that is factored, >= 0. Default 128.
      mu_dtype: dtype in which the momentum is kept (HuggingFace has none; optax: dtype_momentum). Default float32.
      layout: which axes are inputs, outputs and stacks.

    Returns:
      A transformation that needs `params`. State: rows + columns words per matrix, 1 word per parameter of other
      leaves, and 1 per parameter with b1. Collectives: three all-reduces where leaves are sharded, of rows + columns
      numbers per matrix, and of one number per tensor twice.

    Raises:
      ValueError: a hyperparameter outside its range; a learning rate with `relative_step`, or neither; `warmup_init`
        without `relative_step`.

    Example:
      >>> tx = adafactor(0.1, min_dim_size_to_factor=2)
      >>> x = 5 * jnp.ones((2, 2))
      >>> print(tx.update(jnp.array([[1.0, -2.0], [3.0, -6.0]]), tx.init(x), x)[0].round(4))
      [[-0.5  0.5]
       [-0.5  0.5]]

    Reference: Shazeer, Stern. Adafactor: Adaptive Learning Rates with Sublinear Memory Cost. 2018, arXiv 1804.04235;
    the decay is that of HuggingFace's class. optax's `adafactor` factors the two largest axes, so that a stack of
    layers is one tensor in moments and RMS, and its decay is not multiplied by the rate.
    """
    checks.switch(scale_by_param=scale_by_param, relative_step=relative_step, warmup_init=warmup_init)
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True, optional=True)
    checks.real("eps_scale", eps_scale, "[0, inf)")
    checks.real("clipping_threshold", clipping_threshold, "(0, inf]", optional=True)
    checks.real("b1", b1, "[0, 1)", optional=True)
    checks.real("weight_decay", weight_decay, "[0, inf)", schedule=True)
    checks.floating_dtype(mu_dtype=mu_dtype)
    if relative_step != (learning_rate is None):
        given = f"learning_rate={learning_rate!r} and relative_step={relative_step}"
        raise ValueError(
            f"learning_rate must be given, or relative_step=True and no learning rate, got {given} in adafactor: write "
            "adafactor(1e-2) or adafactor(None, relative_step=True)"
        )
    if warmup_init and not relative_step:
        raise ValueError(
            "warmup_init must be False where a learning_rate is given, got True in adafactor: put the warm-up into its "
            "schedule, or write relative_step=True"
        )
    rate: Any = relative_rate(warmup_init) if relative_step else learning_rate
    size = eps_scale if scale_by_param else None
    clip = () if clipping_threshold is None else (clip_by_tensor_rms(clipping_threshold, layout=layout),)
    return optimizer(
        Method(NAME, rate, weight_decay, weight_decay_mask),
        scale_by_factored_rms(
            decay_rate=decay_rate,
            decay_offset=decay_offset,
            b2_cap=b2_cap,
            eps=eps,
            factored=factored,
            min_dim_size_to_factor=min_dim_size_to_factor,
            layout=layout,
        ),
        *clip,
        scale_by_learning_rate(rate),
        _step_by_param_rms(rate, b1, size, weight_decay, weight_decay_mask, mu_dtype, layout),
    )


register(
    adafactor,
    form="optimizer",
    paper=PAPER,
    collectives="norms",
    golden=("modern/adafactor", "modern/adafactor_relative", "modern/adafactor_stack"),
    example={"min_dim_size_to_factor": 2},
    race=Race(1e-2, arguments={"min_dim_size_to_factor": 2}),
    notes="state rows + columns words per matrix, and a word per parameter with b1",
)
