"""A gate between the momentum and what a preconditioner makes of it: as much of the latter as directions agree.

m = momentum m + (1 - momentum) g;   u = (1 - momentum) g + momentum m, or m without `nesterov`
q = inner(u), rescaled to the norm |u|_S4
a = clip((cos(q, u) - 0.2) / 0.8, 0, 1);   h = clip(cos(q, g) / max(cos(u, g), 1e-8), 0, 1)
d = u + a h (q - u), rescaled to the norm |u|_S4                   |x|_S4 = (sum of s^4)^(1/4)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import divide, inside, scalar, transformation, widen, zeros
from gradkit.engine.mapping import map_stacks
from gradkit.engine.planning import as_rows, plan_stacks
from gradkit.engine.shards import MatrixSharding, check_shard
from gradkit.leaves import Layout
from gradkit.linalg.orthogonalize import schatten4
from gradkit.types import Scalar

PAPER = Paper("SOAP-Muon", "Vyas", 2026)
LEAST = 1e-8


class TrustGateState(NamedTuple):
    """The momentum, like the parameters; the state of the inner transformation."""

    mu: Any
    inner: Any


def resized(x: jax.Array, like: jax.Array) -> jax.Array:
    """Matrices (B, n, m) with the Schatten-4 norms of others; zeros stay zeros.

    >>> resized(2 * jnp.eye(2)[None], jnp.eye(2)[None]).tolist()
    [[[1.0, 0.0], [0.0, 1.0]]]
    """
    return x * divide(schatten4(like), schatten4(x))[:, None, None]


def _cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """Of matrices, (B, 1, 1), the denominator at least 1e-8."""

    def total(z: jax.Array) -> jax.Array:
        return jnp.sum(z, axis=(1, 2), keepdims=True)

    return total(x * y) / jnp.maximum(jnp.sqrt(total(x * x)) * jnp.sqrt(total(y * y)), LEAST)


def blended(u: jax.Array, q: jax.Array, g: jax.Array) -> jax.Array:
    """The gate on matrices (B, n, m): the momentum u, the preconditioned momentum q, of the norm of u, the gradient g.

    >>> u, q = jnp.eye(2)[None], jnp.array([[[0.0, 1.0], [1.0, 0.0]]])
    >>> blended(u, q, u).tolist()  # at a right angle: u alone
    [[[1.0, 0.0], [0.0, 1.0]]]
    """
    a = jnp.clip((_cosine(q, u) - 0.2) / 0.8, 0, 1)
    h = jnp.clip(_cosine(q, g) / jnp.maximum(_cosine(u, g), LEAST), 0, 1)
    return resized(u + a * h * (q - u), u)


def trust_gate(
    inner: optax.GradientTransformation,
    *,
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Mixes the momentum with what a preconditioner makes of it, as far as their directions agree.

        m = momentum m + (1 - momentum) g;   u = (1 - momentum) g + momentum m, or m without `nesterov`
        q = inner(u), rescaled to the norm |u|_S4 = (sum of s^4)^(1/4) of the singular values s of a matrix
        a = clip((cos(q, u) - 0.2) / 0.8, 0, 1);   h = clip(cos(q, g) / max(cos(u, g), 1e-8), 0, 1)
        d = u + a h (q - u), rescaled to the norm |u|_S4

    Cosines and norms are those of every matrix by itself; a vector is a matrix of one row. An orthogonalisation may
    stand behind it, as `gk.soap_muon` with `trust` has it in one exchange.

    Args:
      inner: a preconditioner of directions, without a learning rate, momentum or weight decay.
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      nesterov: whether to look ahead. Default True (official code).
      layout: which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`, as in `gk.muon`. Default None.

    Returns:
      A transformation. State: 1 word per parameter, and that of `inner`. Collectives: those of `scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = trust_gate(optax.scale_by_sign(), momentum=0.0)
      >>> g = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> print(tx.update(g, tx.init(g))[0].round(2))
      [[2.73 0.  ]
       [0.   2.27]]

    Reference: Vyas. SOAP-Muon, a note, 2026; modded-nanogpt, track 3, records 45 and 46.
    """
    checks.layout(layout)
    checks.real("momentum", momentum, "[0, 1)")
    checks.switch(nesterov=nesterov)
    check_shard(shard)
    below = inside(inner)

    def kernel(u: jax.Array, own: Any, at: Any, _: Any, q: jax.Array, g: jax.Array) -> tuple[jax.Array, Any]:
        del at
        return blended(u, resized(q, u), g), own

    def init(params: optax.Params) -> TrustGateState:
        return TrustGateState(zeros(params), below.init(params))

    def update(updates: Any, state: TrustGateState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        def look(m: jax.Array, g: jax.Array) -> jax.Array:
            b = scalar(momentum, g)
            return (1 - b) * g + b * m if nesterov else m

        mu = jax.tree.map(lambda m, g: ema(m, g, momentum), state.mu, updates)
        u = jax.tree.map(look, mu, updates)
        q, own = below.update(u, state.inner, params, **extra)
        plan = plan_stacks(u, method="trust_gate", layout=layout, shard=shard, view=as_rows)
        d, _ = map_stacks(plan, kernel, u, more=(widen(q), updates))
        return d, TrustGateState(mu, own)

    return transformation("trust_gate", init, update)


register(
    trust_gate,
    form="wrapper",
    paper=PAPER,
    words=1,
    collectives="matrices",
    wraps="direction",
)
