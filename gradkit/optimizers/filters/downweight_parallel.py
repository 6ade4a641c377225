"""Updates with a smaller component along a reference: the projection of adaptive projected guidance, for training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import increment, scalar, times, transformation, zeros
from gradkit.engine.matching import check_match
from gradkit.engine.norms import packed_sums
from gradkit.leaves import Layout, names, resolve_layout
from gradkit.types import Scalar

PAPER = Paper(
    "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models",
    "Sadat, Hilliges, Weber",
    2024,
    "2410.02416",
)
REFERENCES = ("params", "momentum")


class DownweightParallelState(NamedTuple):
    """Number of updates made, and their decaying sum; None without momentum."""

    count: jax.Array
    trace: Any


def _factor(squares: jax.Array, max_norm: Any) -> jax.Array:
    """The factor that limits a sum of updates, of this squared norm, to `max_norm`."""
    norm, limit = jnp.sqrt(squares), scalar(max_norm, squares)
    return jnp.where(norm > limit, limit / jnp.where(norm > 0, norm, jnp.ones_like(norm)), jnp.ones_like(norm))


def _share(products: jax.Array, squares: jax.Array, eta: Any) -> jax.Array:
    """(1 - eta) <a, r> / |r|^2, and 0 where r is 0."""
    some = squares > 0
    share = products / jnp.where(some, squares, jnp.ones_like(squares))
    return jnp.where(some, (1 - scalar(eta, share)) * share, jnp.zeros_like(share))


def downweight_parallel(
    reference: str | Callable[[Any], Any] = "params",
    *,
    eta: Scalar = 0.0,
    max_norm: Scalar | None = None,
    momentum: Scalar | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scales the component of every update that is parallel to a reference, and keeps the orthogonal one.

    Equations, with r the reference, and norms and inner products per tensor:

        a <- momentum a + u                                         a = u without momentum
        b  = a min(1, max_norm / |a|)
        u <- b - (1 - eta) <b, r> / |r|^2 r

    With eta = 1 nothing is removed; with eta = 0 and the parameters as the reference this is
    `gk.orthogonalize_to_params`. A negative momentum pushes away from earlier updates.

    Args:
      reference: r: "params", the parameters; "momentum", the sum of the updates before this one; or a function of the
        parameters that gives a tree like them, such as their difference from the initial ones. Default "params".
      eta: weight of the parallel part, in [0, 1]. Default 0 (official code).
      max_norm: largest norm of a tensor's update, > 0, in the units of the updates. Default None: no limit; the paper
        has 2.5 to 15 for predictions of images.
      momentum: decay of the sum of updates, in (-1, 1). Default None: no sum; the paper has -0.75 to -0.5.
      layout: which axes are stacks: every layer of a scan is projected by itself.

    Returns:
      A transformation that needs `params` unless the reference is "momentum". State: a counter, and 1 word per
      parameter with momentum. Collectives: one all-reduce of two scalars per tensor, three with `max_norm`.

    Raises:
      ValueError: an argument outside its range; "momentum" as the reference without a momentum; a function whose tree
        does not match the parameters; complex leaves.

    Example:
      >>> tx = downweight_parallel(eta=0.5)
      >>> x, g = jnp.array([2.0, 0.0]), jnp.array([3.0, 4.0])
      >>> print(tx.update(g, tx.init(x), x)[0])
      [1.5 4. ]

    Reference: Sadat, Hilliges, Weber. Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion
    Models. 2024, arXiv 2410.02416, where the update is the difference between a conditional and an unconditional
    prediction, and the reference the conditional one. Public copies of the code agree on the order of momentum, limit
    and projection, and accumulate the sum without its limit. They divide by |r| + 1e-12; here a reference of 0 has no
    effect.
    """
    checks.layout(layout)
    if not callable(reference):
        checks.choice("reference", reference, REFERENCES)
    checks.real("eta", eta, "[0, 1]")
    checks.real("max_norm", max_norm, "(0, inf]", optional=True)
    checks.real("momentum", momentum, "(-1, 1)", optional=True)
    summed, limited = not checks.absent(momentum), max_norm is not None
    if reference == "momentum" and not summed:
        raise ValueError(
            f"downweight_parallel: reference='momentum' needs a momentum in (-1, 1) that is not 0, got {momentum!r}; "
            "write momentum=-0.5, or reference='params'"
        )

    def init(params: optax.Params) -> DownweightParallelState:
        resolve_layout(layout, params, method="downweight_parallel", matters=True)
        return DownweightParallelState(jnp.zeros((), jnp.int32), zeros(params) if summed else None)

    def update(
        updates: Any, state: DownweightParallelState, params: Any = None, **extra: Any
    ) -> tuple[Any, DownweightParallelState]:
        del extra
        a, structure = jax.tree.flatten(updates)
        before = jax.tree.leaves(state.trace)
        if summed:
            a = [times(scalar(momentum, u), v) + u for u, v in zip(a, before, strict=True)]
        if reference == "momentum":
            r = before
        elif callable(reference):
            along = reference(params)
            check_match("downweight_parallel: reference(params)", along, params)
            r = [jnp.asarray(x, u.dtype) for x, u in zip(jax.tree.leaves(along), a, strict=True)]
        else:
            r = jax.tree.leaves(params)
        pairs = [*zip(a, r, strict=True)]
        products = [[a * r for a, r in pairs], [r * r for r in r], *([[a * a for a in a]] if limited else [])]
        sums = packed_sums(names(updates), "tensor", layout, *products, like=a)

        def shares(ar: jax.Array, rr: jax.Array, aa: jax.Array | None = None) -> jax.Array:
            return _share(ar, rr, eta) if aa is None else _factor(aa, max_norm) * _share(ar, rr, eta)

        c = sums.each(shares)
        factors = sums.each(lambda ar, rr, aa: _factor(aa, max_norm)) if limited else [None] * len(a)
        out = [(a if f is None else f * a) - c * r for (a, r), c, f in zip(pairs, c, factors, strict=True)]
        trace = structure.unflatten(a) if summed else None
        return structure.unflatten(out), DownweightParallelState(increment(state.count), trace)

    return transformation("downweight_parallel", init, update, needs_params=reference != "momentum")


register(
    downweight_parallel,
    form="primitive",
    paper=PAPER,
    words=1,
    collectives="norms",
    example={"eta": 0.25, "momentum": -0.5},
    notes="no word of state without momentum; eta = 0 removes the parallel part, as `orthogonalize_to_params`",
)
