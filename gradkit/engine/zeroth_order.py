"""Gradients from differences of losses: what the zeroth-order source and the methods around it share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.engine.core import wide_dtype, widen
from gradkit.engine.directions import direction, directional_difference, moved
from gradkit.engine.keys import NoKey, as_key
from gradkit.engine.matching import check_leaves, check_match

DISTRIBUTIONS = ("normal", "rademacher", "sphere")
MASK = 0x5EED  # folded into the key of a direction for its mask


class Estimate(NamedTuple):
    """The hyperparameters of an estimate."""

    method: str
    epsilon: Any
    num_directions: int
    two_sided: bool
    distribution: str
    scalar_sign: bool
    nonzero_fraction: Any

    def checked(self) -> "Estimate":
        """Itself, with every hyperparameter in its range."""
        checks.real("epsilon", self.epsilon, "(0, inf)")
        count = checks.integer("num_directions", self.num_directions, 1)
        checks.switch(two_sided=self.two_sided, scalar_sign=self.scalar_sign)
        checks.choice("distribution", self.distribution, DISTRIBUTIONS)
        checks.real("nonzero_fraction", self.nonzero_fraction, "(0, 1]")
        return self._replace(num_directions=count)

    def _drawn(self, key: jax.Array, params: Any) -> Any:
        z = direction(key, params, "rademacher" if self.distribution == "rademacher" else "normal")
        if self.distribution == "sphere":
            leaves = jax.tree.leaves(z)
            square = sum((jnp.sum(jnp.square(x)).astype(float) for x in leaves), jnp.zeros((), float))
            count = sum(x.size for x in leaves)
            z = jax.tree.map(lambda x: x * jnp.sqrt(count / square).astype(x.dtype), z)
        if isinstance(self.nonzero_fraction, int | float) and self.nonzero_fraction == 1:
            return z
        key = jax.random.fold_in(key, MASK)

        def masked(i: int, x: jax.Array) -> jax.Array:
            u = jax.random.uniform(jax.random.fold_in(key, i), x.shape, x.dtype)
            return jnp.where(u < jnp.asarray(self.nonzero_fraction).astype(x.dtype), x, jnp.zeros_like(x))

        leaves, structure = jax.tree.flatten(z)
        return structure.unflatten([masked(i, x) for i, x in enumerate(leaves)])

    def along(
        self, loss: Callable[[Any], Any], params: Any, z: Any, base: Any, over: Callable[[Any], Any]
    ) -> tuple[Any, Any]:
        """The slope along z, NaN where a loss is not finite, and the value of the loss."""
        if self.two_sided:
            c, value = directional_difference(loss, params, z, self.epsilon)
        else:
            value = base
            c = (loss(moved(params, self.epsilon, z)) - base) / jnp.asarray(self.epsilon).astype(base.dtype)
        c, value = over((c, value))
        c = jnp.where(jnp.isfinite(c), c, jnp.full_like(c, jnp.nan))
        return (jnp.sign(c) if self.scalar_sign else c), value

    def prepared(self, loss_fn: Callable[..., Any], params: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The loss as a function of the parameters, and the parameters in the dtype in which they are perturbed."""
        check_leaves(self.method, params, complex_leaves=False)

        def loss(x: Any) -> jax.Array:
            value = jnp.asarray(loss_fn(x, *args, **kwargs))
            if value.shape:
                raise ValueError(
                    f"{self.method}: loss_fn must return a scalar, got an array of shape {value.shape}; write jnp.mean "
                    "of it"
                )
            return value.astype(wide_dtype(value.dtype))

        return loss, widen(jax.tree.map(jnp.asarray, params))

    def directions(self, key: Any, given: Any, params: Any) -> Callable[[Any], Any]:
        """The number of a direction -> the direction: of the key, or the one that is given."""
        if given is None and key is None:
            raise NoKey(self.method, call="fn(params, batch, key=...)")
        if given is None:
            random = as_key(key)
            return lambda i: self._drawn(jax.random.fold_in(random, i), params)
        wide = jax.tree.map(lambda d, x: jnp.asarray(d).astype(x.dtype), given, params)
        for d in jax.tree.leaves(wide):
            if not d.ndim or d.shape[0] != self.num_directions:
                raise ValueError(
                    f"{self.method}: direction must have a leading axis of length num_directions="
                    f"{self.num_directions}, got the shape {d.shape}; write z[None] for every leaf z"
                )
        check_match(self.method, jax.tree.map(lambda d: d[0], wide), params)
        return lambda i: jax.tree.map(lambda d: d[i], wide)

    def gradient(
        self,
        loss_fn: Callable[..., Any],
        params: Any,
        args: Any,
        kwargs: Any,
        key: Any,
        given: Any,
        over: Callable[[Any], Any],
    ) -> tuple[Any, Any]:
        """The value, and the mean of c z over the directions, in the dtypes of the parameters."""
        loss, wide = self.prepared(loss_fn, params, args, kwargs)
        direction_of = self.directions(key, given, wide)
        base = None if self.two_sided else loss(wide)

        def one(i: Any) -> tuple[Any, Any]:
            z = direction_of(i)
            c, value = self.along(loss, wide, z, base, over)
            return value, jax.tree.map(lambda z: c.astype(z.dtype) * z, z)

        value, total = one(0)
        if self.num_directions > 1:
            more = lambda i, total: jax.tree.map(jnp.add, total, one(i))  # noqa: E731
            value, total = jax.lax.fori_loop(1, self.num_directions, more, (value, total))
            value = value / self.num_directions
        g = jax.tree.map(lambda t, x: (t / self.num_directions).astype(jnp.result_type(x)), total, params)
        return value, g
