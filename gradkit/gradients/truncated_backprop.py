"""Gradients through the last steps of a long chain, such as the sampling of a diffusion model for a reward."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.keys import as_key
from gradkit.types import Key, PyTree, ScalarOrSchedule

PAPER = Paper("Directly Fine-Tuning Diffusion Models on Differentiable Rewards", "Clark et al.", 2024, "2309.17400")
ALIGNPROP = Paper(
    "Aligning Text-to-Image Diffusion Models with Reward Backpropagation", "Prabhudesai et al.", 2023, "2310.03739"
)
Step = Callable[[Any, Any, Any], Any]
stop = jax.lax.stop_gradient


def _length(method: str, xs: Any) -> int:
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(xs)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        raise ValueError(
            f"{method}: xs must be arrays with one leading axis, the steps, got lengths {sorted(lengths)}; write "
            "jnp.arange(steps) where a step needs nothing"
        )
    return int(lengths.pop()[0])


def truncated_backprop(
    step_fn: Step, params: PyTree, carry: Any, xs: Any, *, keep_last: int, checkpoint: bool = True
) -> Any:
    """The end of a chain of T steps, through the last K of which alone a gradient flows.

        c_{t+1} = step_fn(sg(params), c_t, x_t)      t < T - K
        c_{t+1} = step_fn(params, c_t, x_t)          t >= T - K, from sg(c_{T-K})            sg: no gradient

    Then jax.grad(lambda p: -reward(truncated_backprop(step_fn, p, noise, times, keep_last=1))). The gradient is biased
    for K < T, and what K costs is memory and time of the backward pass.

    Args:
      step_fn: (params, carry, x) -> carry.
      params: what is trained.
      carry: where the chain begins.
      xs: tree of arrays with a leading axis of T steps, as in `jax.lax.scan`.
      keep_last: K, from 1 to T: DRaFT has T, DRaFT-K fewer; 1 is the paper's best per compute.
      checkpoint: whether a step is computed again in the backward pass, and only carries are kept. Default True.

    Returns:
      The last carry, the same for every K. Kept for the backward pass: K carries.

    Raises:
      ValueError: keep_last outside its range; xs without one leading axis.

    Example:
      >>> step = lambda a, x, b: a * x + b
      >>> f = lambda a, k: truncated_backprop(step, a, 1.0, jnp.ones(3), keep_last=k)
      >>> [float(jax.grad(f)(2.0, k)) for k in (1, 3)]  # the carry before the last step is 7
      [7.0, 17.0]

    Reference: Clark et al. Directly Fine-Tuning Diffusion Models on Differentiable Rewards. 2024, arXiv 2309.17400.
    """
    checks.arrays(params=params, carry=carry, xs=xs)
    checks.switch(checkpoint=checkpoint)
    checks.integer("keep_last", keep_last, 1)
    checks.function("step_fn", step_fn)
    steps = _length("truncated_backprop", xs)
    k = checks.integer("keep_last", keep_last, 1, maximum=steps)
    carry = jax.tree.map(jnp.asarray, carry)

    def run(params: Any, carry: Any, xs: Any, again: bool) -> Any:
        body = lambda carry, x: (step_fn(params, carry, x), None)  # noqa: E731
        return jax.lax.scan(jax.checkpoint(body) if again else body, carry, xs)[0]

    if k < steps:
        early = stop((params, carry, jax.tree.map(lambda x: x[: steps - k], xs)))
        carry = stop(run(*early, again=False))
    return run(params, carry, jax.tree.map(lambda x: x[steps - k :], xs), checkpoint)


def random_truncated_backprop(
    step_fn: Step,
    params: PyTree,
    carry: Any,
    xs: Any,
    key: Key,
    *,
    min_cut: int = 0,
    max_cut: int | None = None,
    choices: Sequence[int] | None = None,
    checkpoint: bool = True,
) -> Any:
    """The end of a chain of T steps, of which gradients reach a number that is drawn anew for every update.

        cut uniform over the integers of [min_cut, max_cut) that are in [1, T - 1]
        step t has a gradient for t >= cut: K = T - cut of them                             as in `truncated_backprop`

    Args:
      step_fn: (params, carry, x) -> carry.
      params: what is trained.
      carry: where the chain begins.
      xs: tree of arrays with a leading axis of T >= 2 steps.
      key: a typed key or an integer, another one in every update.
      min_cut: >= 0. Default 0 (official code).
      max_cut: above some integer that is allowed. Default None: T; the official code has T = 50.
      choices: values of K, of which one is drawn in the place of a cut. One program has all of them, and needs the
        memory of the one that is drawn. Default None: a cut, with the memory of all T carries, as K must be known when
        a program is built.
      checkpoint: as in `truncated_backprop`. Default True.

    Returns:
      The last carry.

    Raises:
      ValueError: an argument outside its range; no cut that is allowed.

    Example:
      >>> step = lambda a, x, b: a * x + b
      >>> f = lambda a, key: random_truncated_backprop(step, a, 1.0, jnp.ones(3), key)
      >>> sorted({float(jax.grad(f)(2.0, key)) for key in range(8)})  # K is 1 or 2
      [7.0, 13.0]

    Reference: Prabhudesai et al. Aligning Text-to-Image Diffusion Models with Reward Backpropagation. 2023, arXiv
    2310.03739. Its code stops the predictions of early steps and lets the carry flow, which has the same gradient; here
    the carry stops too. It also has cuts that are fixed, or drawn from a normal distribution.
    """
    if choices is not None:
        checks.sequence(choices=choices)
    checks.arrays(params=params, carry=carry, xs=xs)
    checks.integer("min_cut", min_cut)
    checks.integer("max_cut", max_cut, 1, optional=True)
    checks.switch(checkpoint=checkpoint)
    checks.function("step_fn", step_fn)
    steps = _length("random_truncated_backprop", xs)
    key = as_key(key)
    carry = jax.tree.map(jnp.asarray, carry)
    if choices is not None:
        own = [checks.integer("choices", k, 1, maximum=steps) for k in choices]
        if not own:
            raise ValueError("choices must have a number of steps, got none; write choices=None for a cut")
        branches = [
            lambda p, c, k=k: truncated_backprop(step_fn, p, c, xs, keep_last=k, checkpoint=checkpoint) for k in own
        ]
        return jax.lax.switch(jax.random.randint(key, (), 0, len(own)), branches, params, carry)
    low, high = max(min_cut, 1), min(steps if max_cut is None else max_cut, steps)
    if low >= high:
        raise ValueError(
            f"max_cut must leave a cut from 1 to {steps - 1}, got [{min_cut}, {max_cut}); write truncated_backprop for "
            "a fixed number of steps"
        )
    cut = jax.random.randint(key, (), low, high, jnp.int32)

    def body(carry: Any, now: Any) -> tuple[Any, None]:
        t, x = now
        used = jax.tree.map(lambda p: jnp.where(t >= cut, p, stop(p)), params)
        carry = jax.tree.map(lambda c: jnp.where(t > cut, c, stop(c)), carry)
        return step_fn(used, carry, x), None

    body = jax.checkpoint(body) if checkpoint else body
    return jax.lax.scan(body, carry, (jnp.arange(steps, dtype=jnp.int32), xs))[0]


def low_variance_last_step(
    denoise: Callable[[Any, jax.Array], jax.Array],
    reward: Callable[[jax.Array], jax.Array],
    params: PyTree,
    x0: Any,
    key: Key,
    *,
    alpha: ScalarOrSchedule,
    sigma: ScalarOrSchedule,
    num_samples: int = 2,
    reduction: str = "mean",
) -> jax.Array:
    """The reward of a sample whose last step is done again several times: DRaFT-LV, a gradient with less variance.

        x_1^i = alpha sg(x_0) + sigma eps_i,    eps_i ~ N(0, I),    i = 1 .. n
        value = mean (or sum) over i of reward(denoise(params, x_1^i))

    Differentiate the value by the parameters: n backward passes through one step, for one sample.

    Args:
      denoise: (params, noisy sample) -> sample, the last step.
      reward: sample -> scalar.
      params: what is trained.
      x0: a sample, floating point, the end of a chain. No gradient flows into it.
      key: a typed key or an integer.
      alpha: of the noise schedule at the last step, >= 0.
      sigma: of the noise schedule at the last step, >= 0.
      num_samples: n, >= 1. Default 2 (paper).
      reduction: "mean" or "sum" over the n copies. Default "mean".

    Returns:
      A scalar; its gradient is that of the last step, averaged.

    Raises:
      ValueError: an argument outside its range; a reward that is no scalar; x0 that is not floating point.

    Example:
      >>> value = lambda p: low_variance_last_step(lambda p, x: p * x, jnp.sum, p, jnp.ones(2), 0, alpha=1.0, sigma=0.0)
      >>> float(jax.grad(value)(3.0))
      2.0

    Reference: Clark et al. Directly Fine-Tuning Diffusion Models on Differentiable Rewards. 2024, arXiv 2309.17400.
    Whether the paper takes the sum or the mean could not be verified: the mean leaves the learning rate alone.
    """
    checks.arrays(params=params, x0=x0)
    checks.integer("num_samples", num_samples, 1)
    checks.function("denoise", denoise)
    checks.function("reward", reward)
    checks.choice("reduction", reduction, ("mean", "sum"))
    checks.real("alpha", alpha, "[0, inf)")
    checks.real("sigma", sigma, "[0, inf)")
    x = stop(jnp.asarray(x0))
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"low_variance_last_step: x0 must be floating point, got {x.dtype}; write x0.astype(float)")
    a, s = (jnp.asarray(value).astype(x.dtype) for value in (alpha, sigma))

    def one(key: Any) -> jax.Array:
        value = reward(denoise(params, a * x + s * jax.random.normal(key, x.shape, x.dtype)))
        if jnp.shape(value) != ():
            raise ValueError(f"low_variance_last_step: reward must be a scalar, got shape {jnp.shape(value)}")
        return value

    total = jnp.sum(jax.lax.map(one, jax.random.split(as_key(key), num_samples)))
    return total / num_samples if reduction == "mean" else total


register(truncated_backprop, form="program", paper=PAPER)
register(random_truncated_backprop, form="program", paper=ALIGNPROP)
register(low_variance_last_step, form="program", paper=PAPER)
