"""Hypergradients by implicit differentiation: derivatives of the validation loss by hyperparameters of training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import scalar, wide_dtype, widen
from gradkit.engine.matching import check_match
from gradkit.types import PyTree, Scalar

PAPER = Paper(
    "Optimizing Millions of Hyperparameters by Implicit Differentiation",
    "Lorraine, Vicol, Duvenaud",
    2019,
    "1911.02590",
)


def neumann_ihvp(hvp_fn: Callable[[Any], Any], vector: Any, terms: int = 20, *, step: Scalar) -> Any:
    """An inverse Hessian-vector product by a Neumann series, from Hessian-vector products alone.

    Equations:

        H^{-1} v ~ step (v + (I - step H) v + ... + (I - step H)^terms v)

    It has one more tree in memory.

    Args:
      hvp_fn: a tree like `vector` -> H times it.
      vector: v.
      terms: products with H, >= 0. Default 20 (paper).
      step: the size of a step, in (0, 2 / lambda_max): beyond it the series diverges. May be traced.

    Returns:
      A tree like `vector`, in float32 or wider. Collectives: those of the products.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> h = jnp.array([1.0, 0.5])
      >>> print(neumann_ihvp(lambda v: h * v, jnp.array([1.0, 1.0]), 40, step=1.0).round(4))
      [1. 2.]

    Reference: Lorraine, Vicol, Duvenaud. Optimizing Millions of Hyperparameters by Implicit Differentiation. 2019,
    arXiv 1911.02590. The sum is multiplied by the step once, at the end, as in the released code.
    """
    checks.arrays(vector=vector)
    checks.function("hvp_fn", hvp_fn)
    terms = checks.integer("terms", terms, 0)
    checks.real("step", step, "(0, inf)")
    v = widen(vector)

    def term(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        p, q = carry
        q = jax.tree.map(lambda q, h: q - scalar(step, q) * h, q, widen(hvp_fn(q)))
        return (jax.tree.map(jnp.add, p, q), q), None

    (p, _), _ = jax.lax.scan(term, (v, v), None, terms)
    return jax.tree.map(lambda p: scalar(step, p) * p, p)


def ift_hypergradient(
    train_loss: Callable[..., jax.Array],
    valid_loss: Callable[..., jax.Array],
    params: PyTree,
    hyper: Any,
    terms: int = 20,
    *,
    step: Scalar,
    solver: Callable[[Callable[[Any], Any], Any], Any] | None = None,
) -> Any:
    """The gradient of a validation loss with respect to hyperparameters, through parameters trained with them.

    Equations:

        v = dL_V/dw,   p = q = v
        q <- q - step H q,   p <- p + q                               terms times; H the Hessian of L_T in w
        hypergradient = dL_V/dlambda - (step p)^T d^2 L_T / dw dlambda

    step p is (I - (I - step H)^{terms + 1}) H^{-1} v: at a fixed point the derivative through terms + 1 unrolled steps
    of gradient descent with the learning rate `step` gives the same. It needs 0 < step < 2 / lambda_max(H). The
    parameters should be near a minimum of the training loss.

    Args:
      train_loss: (params, hyper) -> scalar, twice differentiable.
      valid_loss: (params, hyper) -> scalar.
      params: w, trained.
      hyper: lambda, any tree of floating point arrays: weights of examples, weight decays, an augmentation's network.
      terms: products with the Hessian, >= 0. Default 20 (paper).
      step: the step of the Neumann series, > 0; the paper takes the learning rate of the training. May be traced.
      solver: (hvp_fn, v) -> H^{-1} v in place of the series, such as
        `lambda hvp_fn, v: jax.scipy.sparse.linalg.cg(hvp_fn, v, maxiter=20)[0]`. Default None.

    Returns:
      A tree like `hyper`. Costs `terms` Hessian-vector products of the training loss and three gradients; no unrolled
      training is kept. Collectives: those of gradients, one per product.

    Raises:
      ValueError: an argument outside its range; a solver whose result does not match the parameters.

    Example:
      >>> train = lambda w, lam: (w - 3.0) ** 2 / 2 + lam * w**2 / 2  # w = 3 / (1 + lam)
      >>> valid = lambda w, lam: (w - 1.0) ** 2 / 2
      >>> lam = jnp.array(0.5)
      >>> print(ift_hypergradient(train, valid, jnp.array(2.0), lam, 50, step=0.5).round(4))  # (w - 1) dw/dlam
      -1.3333

    Reference: Lorraine, Vicol, Duvenaud. Optimizing Millions of Hyperparameters by Implicit Differentiation. 2019,
    arXiv 1911.02590.
    """
    checks.arrays(params=params, hyper=hyper)
    checks.function("train_loss", train_loss)
    checks.function("valid_loss", valid_loss)
    if solver is not None:
        checks.function("solver", solver)

    def slope(w: Any, hyper: Any) -> Any:
        return jax.grad(train_loss)(w, hyper)

    def hvp_fn(vector: Any) -> Any:
        tangent = jax.tree.map(lambda v, x: v.astype(x.dtype), vector, params)
        return jax.jvp(lambda w: slope(w, hyper), (params,), (tangent,))[1]

    v, direct = jax.grad(valid_loss, argnums=(0, 1))(params, hyper)
    solved = neumann_ihvp(hvp_fn, v, terms, step=step) if solver is None else solver(hvp_fn, v)
    check_match("ift_hypergradient", solved, params)
    _, back = jax.vjp(lambda hyper: slope(params, hyper), hyper)
    (mixed,) = back(jax.tree.map(lambda p, x: jnp.asarray(p).astype(x.dtype), solved, params))

    def leaf(d: jax.Array, m: jax.Array) -> jax.Array:
        wide = wide_dtype(d.dtype)
        return (d.astype(wide) - m.astype(wide)).astype(d.dtype)

    return jax.tree.map(leaf, direct, mixed)


register(neumann_ihvp, form="program", paper=PAPER)
register(ift_hypergradient, form="program", paper=PAPER, notes="at a minimum of the training loss; no unrolling")
