"""The pieces Adam-like rules are put together from: an accumulator, and what is divided by its root.

A method of this family replaces one of them: the running mean by a maximum, a sum, a mean of all steps, or the place
where eps stands.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gradkit.engine.core import abs_sq, cast, divide, pair, scalar, weights


def ema(m: jax.Array, x: jax.Array, decay: Any) -> jax.Array:
    """decay m + (1 - decay) x: computed as x is, kept as m is.

    >>> ema(jnp.array(1.0), jnp.array(3.0), 0.5).item()
    2.0
    """
    return _ema(m, x, pair(decay))


@functools.partial(jax.jit, inline=True)
def _ema(m: jax.Array, x: jax.Array, decay: tuple[Any, Any]) -> jax.Array:
    b, rest = weights(decay, x)
    return cast(b * cast(m, x.dtype) + rest * x, m.dtype)


def ema_of_square(v: jax.Array, x: jax.Array, decay: Any) -> jax.Array:
    """decay v + (1 - decay) |x|^2.

    >>> ema_of_square(jnp.array(1.0), jnp.array(-3.0), 0.5).item()
    5.0
    """
    return _ema_of_square(v, x, pair(decay))


@functools.partial(jax.jit, inline=True)
def _ema_of_square(v: jax.Array, x: jax.Array, decay: tuple[Any, Any]) -> jax.Array:
    return _ema(v, abs_sq(x), decay)


@functools.partial(jax.jit, inline=True)
def root(v: jax.Array, eps: Any, eps_root: Any = 0.0) -> jax.Array:
    """sqrt(v + eps_root) + eps.

    >>> root(jnp.array(9.0), 1.0).item()
    4.0
    """
    return jnp.sqrt(v + scalar(eps_root, v)) + scalar(eps, v)


@jax.jit
def over(x: jax.Array, denominator: jax.Array) -> jax.Array:
    """x / denominator in the dtype of x, complex or not; 0 where the denominator is 0.

    >>> over(jnp.array([1.0, 0.0]), jnp.array([4.0, 0.0])).tolist()
    [0.25, 0.0]
    """
    return divide(x, cast(denominator, x.dtype))


def over_root(
    x: jax.Array, v: jax.Array, eps: Any, eps_root: Any = 0.0, *, x_by: Any = None, v_by: Any = None, of_eps: Any = None
) -> jax.Array:
    """x / x_by / (sqrt(v / v_by + eps_root) + of_eps eps), and 0 where the denominator is 0; None for 1.

    What all leaves share is divided by, not multiplied with: XLA then makes the same program of every leaf of a shape,
    and compiles it once. Factors it would order differently for the first leaf.

    >>> over_root(jnp.array([6.0, 0.0]), jnp.array([4.0, 0.0]), 1.0).tolist()
    [2.0, 0.0]
    """
    guarded = may_be_zero(eps, eps_root)
    # A call takes as long to lower as five equations, of which there are fewer where nothing is corrected.
    run = _over_root if guarded or x_by is not None or v_by is not None else _over_root_inline
    return run(x, v, (x_by, v_by), of_eps, none_for_0(eps), none_for_0(eps_root), guarded=guarded)


def _divided(
    x: jax.Array, v: jax.Array, by: tuple[Any, Any], of_eps: Any, eps: Any, eps_root: Any, *, guarded: bool
) -> jax.Array:
    x, v = (a if b is None else a / scalar(b, a) for a, b in zip((x, v), by, strict=True))
    root = jnp.sqrt(plus(v, eps_root))
    if eps is not None:
        root += scalar(eps, v) if of_eps is None else scalar(eps, v) * scalar(of_eps, v)
    root = cast(root, x.dtype)
    return divide(x, root) if guarded else x / root


_over_root = jax.jit(_divided, static_argnames="guarded")
_over_root_inline = jax.jit(_divided, static_argnames="guarded", inline=True)


def none_for_0(value: Any) -> Any:
    """None for the number 0, so that a function under `jax.jit` adds nothing, and is passed nothing to add."""
    return None if type(value) in (int, float) and value == 0 else value


def plus(x: jax.Array, value: Any) -> jax.Array:
    """x and a hyperparameter, None for 0."""
    return x if value is None else x + scalar(value, x)


def may_be_zero(*added: Any) -> bool:
    """Whether a denominator can be 0 to which these are added, or their roots: unless one is a number that float32 does
    not round to 0.

    >>> may_be_zero(1e-8), may_be_zero(0.0, 1e-30), may_be_zero(1e-50)
    (False, False, True)
    """
    return not any(isinstance(value, int | float) and value >= 1e-37 for value in added)


def inside_or_outside(eps: Any, eps_in_sqrt: bool) -> tuple[Any, Any]:
    """(eps, eps_root) for `root`: a method with one eps says on which side of the root it stands."""
    return (0.0, eps) if eps_in_sqrt else (eps, 0.0)
