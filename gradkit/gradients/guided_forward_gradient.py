"""Forward gradients along a guess of the gradient instead of a random direction."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide, scalar, wide_dtype, widen
from gradkit.engine.matching import check_leaves, check_match
from gradkit.gradients.forward_gradient import slope_along
from gradkit.gradients.replicas import mean_over, own_copy
from gradkit.types import Scalar

PAPER = Paper("Can Forward Gradient Match Backpropagation?", "Fournier et al.", 2023, "2306.06968")
BLOCKS = ("example", "leaf", "global")


def _total(tree: Any) -> jax.Array:
    """The sum over all leaves of their sums."""
    sums = [jnp.sum(x) for x in jax.tree.leaves(tree)]
    return sum((s.astype(jnp.result_type(*sums)) for s in sums), jnp.zeros((), jnp.result_type(*sums)))


def _share(product: jax.Array, square: jax.Array, eps: Any) -> jax.Array:
    """<t, u> / (|u|^2 + eps), and 0 where the guess is 0."""
    return divide(product, square + scalar(eps, square))


def project_onto_guess(target: Any, guess: Any, *, eps: Scalar = 1e-16, block: str = "leaf") -> Any:
    """The part of a gradient that is along a guess of it.

        g = <t, u> / (|u|^2 + eps) u        t the target, u the guess

    block "leaf": of every leaf by itself. "example": of every leaf and every entry of its leading axis by itself.
    "global": of the whole tree. |g| <= |t| and <g, t> >= 0, so g is biased towards 0: of a random normal guess, E g is
    t / n in n dimensions.

    Args:
      target: t, the gradient; a tree of floating point arrays. For block="example" with a leading axis of examples.
      guess: u, a tree like it. Need not be normalized.
      eps: added to |u|^2, >= 0. Default 1e-16 (official code); its README has 1e-14.
      block: "example", "leaf" or "global". Default "leaf". The official code's estimator "weight" is "example", and the
        sum over examples; "avg-weight" is "leaf".

    Returns:
      A tree like `target`, in its dtypes. Where the guess is 0 it is 0.

    Raises:
      ValueError: an argument outside its range; trees that do not match; leaves without an axis of examples.

    Example:
      >>> print(project_onto_guess(jnp.array([2.0, 3.0]), jnp.array([0.0, 5.0])))
      [0. 3.]

    Reference: Fournier et al. Can Forward Gradient Match Backpropagation? 2023, arXiv 2306.06968. The official code
    writes the estimate of a bias into the gradient of the weight beside it; here every leaf has its own.
    """
    checks.arrays(target=target)
    checks.arrays(guess=guess)
    checks.real("eps", eps, "[0, inf)")
    checks.choice("block", block, BLOCKS)
    check_match("project_onto_guess", guess, target)
    for tree in (target, guess):
        check_leaves("project_onto_guess", tree, complex_leaves=False)
    t, u = widen(target), widen(guess)
    if block == "example" and any(not x.ndim for x in jax.tree.leaves(t)):
        raise ValueError("project_onto_guess: with block='example' every leaf must have a leading axis of examples")

    def leaf(t: jax.Array, u: jax.Array) -> jax.Array:
        axes = tuple(range(1, t.ndim)) if block == "example" else tuple(range(t.ndim))
        product, square = (jnp.sum(x, axis=axes, keepdims=True) for x in (t * u, u * u))
        return _share(product, square, eps) * u

    if block == "global" and jax.tree.leaves(t):
        share = _share(_total(jax.tree.map(jnp.multiply, t, u)), _total(jax.tree.map(jnp.square, u)), eps)
        g = jax.tree.map(lambda u: share.astype(u.dtype) * u, u)
    else:
        g = jax.tree.map(leaf, t, u)
    return jax.tree.map(lambda g, x: g.astype(jnp.result_type(x)), g, target)


def guided_forward_gradient(
    loss_fn: Callable[..., Any],
    guess_fn: Callable[..., Any],
    *,
    eps: Scalar = 1e-16,
    block: str = "leaf",
    has_aux: bool = False,
    axis_name: Any = None,
) -> Callable[..., tuple[Any, Any]]:
    """The gradient along a guess, from derivatives in forward mode: what a cheap local loss suggests, measured.

        u = guess_fn(x),    d = <grad L(x), u> by a pass in forward mode,    g = d / (|u|^2 + eps) u

    Of every leaf by itself (block "leaf", one pass for each) or of the whole tree (block "global", one pass). g is
    biased towards 0, and never longer than the gradient; with the gradient as the guess it is the gradient.

    Args:
      loss_fn: (params, *args) -> scalar, or (scalar, aux); differentiable in forward mode.
      guess_fn: (params, *args, **kwargs) -> tree like params: such as the gradient of auxiliary losses of blocks.
      eps: added to |u|^2, >= 0. Default 1e-16 (official code); its README has 1e-14.
      block: "leaf" or "global". Default "leaf" (official code). By examples: `project_onto_guess` on their gradients.
      has_aux: whether `loss_fn` returns (scalar, aux). Default False.
      axis_name: axis of `vmap` or `shard_map` whose members hold parts of the batch: guess, value and slopes are
        averaged over them; aux is not. Default None.

    Returns:
      fn(params, *args, **kwargs) -> (value, gradient), or ((value, aux), gradient): a drop-in for `jax.value_and_grad`.
      The value is that of the loss at the parameters. No state; one guess in memory.

    Raises:
      ValueError: an argument outside its range; when called, a guess that does not match the parameters, a loss that is
        no scalar or has functions with a `jax.custom_vjp` alone, which are named.

    Example:
      >>> fn = guided_forward_gradient(lambda x: jnp.sum(x**2) / 2, lambda x: jnp.array([0.0, 1.0]))
      >>> print(fn(jnp.array([2.0, 3.0]))[1])
      [0. 3.]

    Reference: Fournier et al. Can Forward Gradient Match Backpropagation? 2023, arXiv 2306.06968.
    """
    checks.function("loss_fn", loss_fn)
    checks.function("guess_fn", guess_fn)
    checks.real("eps", eps, "[0, inf)")
    checks.choice("block", block, ("leaf", "global"))
    checks.switch(has_aux=has_aux)
    checks.axis_name("axis_name", axis_name)

    def fn(params: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        check_leaves("guided_forward_gradient", params, complex_leaves=False)
        params = own_copy(jax.tree.map(jnp.asarray, params), axis_name)
        guess = guess_fn(params, *args, **kwargs)
        check_match("guided_forward_gradient", guess, params)
        u = mean_over(jax.tree.map(lambda u, x: jnp.asarray(u).astype(x.dtype), guess, params), axis_name)
        leaves, structure = jax.tree.flatten(u)

        def along(tangent: list[jax.Array]) -> tuple[Any, Any, Any]:
            z = structure.unflatten(tangent)
            loss = lambda p: loss_fn(p, *args, **kwargs)  # noqa: E731
            value, slope, aux = slope_along("guided_forward_gradient", loss, params, z, has_aux)
            return *mean_over((value, slope), axis_name), aux

        one_by_one = block == "leaf" and len(leaves) > 1
        groups = [{i} for i in range(len(leaves))] if one_by_one else [set(range(len(leaves)))]
        g, value, aux = list(leaves), None, None
        for own in groups:
            value, slope, aux = along([u if i in own else jnp.zeros_like(u) for i, u in enumerate(leaves)])
            square = _total([jnp.square(leaves[i].astype(wide_dtype(leaves[i].dtype))) for i in own]) if own else slope
            share = _share(slope.astype(square.dtype), square, eps)
            for i in own:
                g[i] = (share * leaves[i].astype(share.dtype)).astype(leaves[i].dtype)
        return ((value, aux) if has_aux else value), structure.unflatten(g)

    return fn


register(
    project_onto_guess,
    form="function",
    paper=PAPER,
    example={name: {"w": jax.ShapeDtypeStruct((4,), "float32")} for name in ("target", "guess")},
)
register(
    guided_forward_gradient,
    form="source",
    paper=PAPER,
    example={"guess_fn": lambda params, *args, **kwargs: jax.tree.map(jnp.ones_like, params)},
    opt_outs={"descends": "along one guess, which is the same in every step, there is no way to the minimum"},
)
