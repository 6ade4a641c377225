"""Weight normalization: the length and the direction of the weights of every output unit are learned separately."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import divide
from gradkit.engine.norms import entries, packed_norms, packed_sums
from gradkit.leaves import Layout, check_mask, check_mask_form, matrices_by_default, names, resolve_mask
from gradkit.transforms.reparameterize import reparameterize
from gradkit.types import Mask

PAPER = Paper(
    "Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural Networks",
    "Salimans, Kingma",
    2016,
    "1602.07868",
)
MATRICES = "matrices"


class DirectionAndLength(NamedTuple):
    """The latent parameters: v like the parameters (the parameters themselves for leaves outside the mask), and g, one
    number per output unit, with summed axes of length 1 (`optax.MaskedNode` for leaves outside the mask)."""

    v: Any
    g: Any


def weight_normalized(
    inner: optax.GradientTransformation,
    *,
    mask: Mask = MATRICES,
    resync: Any = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Trains a model of ordinary weights as if it had been written with weight normalization.

    Equations, with one g per output unit, and the gradient G with respect to w:

        w = g v / |v|                              v_0 = w_0,  g_0 = |w_0|
        dg = G . v / |v|
        dv = (g / |v|) (G - dg v / |v|)
        (v, g) <- (v, g) + inner(dv, dg)

    dv is orthogonal to v, so under gradient descent |v| grows, and the direction changes more and more slowly. It must
    own the parameters: see `resync`. A learning rate belongs inside: `gk.weight_normalized(gk.adam(1e-3))`.

    Args:
      inner: moves v and g, two trees whose leaves are named `v/...` and `g/...`; its weight decay acts on them. Decay
        of v changes only the effective learning rate: decay g, `weight_decay_mask=gk.leaves.by_path("g/.*")`.
      mask: which leaves are normalised; the inner transformation moves the others directly. Default: those of rank 2
        and more, not counting stack axes.
      resync: a relative distance of g v / |v| from the parameters, over the whole tree, > 0, above which v and g are
        computed again from the parameters, for example after a change made elsewhere. It must be above the rounding of
        the parameters' dtype, 0.01 for bfloat16. Default None: changes made elsewhere are undone.
      layout: what an output unit is: a column of a dense kernel (inputs, outputs), a filter of a convolution (HWIO);
        every layer of a stack has its own units.

    Returns:
      A transformation that needs `params`. State: 1 word per parameter (v), 1 per output unit (g), and the inner state
      of both. Collectives: two all-reduces of at most two scalars per unit.

    Raises:
      ValueError: a `resync` outside its range; complex leaves; a mask that does not match the parameters.

    Example:
      >>> tx = weight_normalized(optax.sgd(0.5))
      >>> w = jnp.array([[3.0], [4.0]])
      >>> u, _ = tx.update(w, tx.init(w), w)  # a gradient along w: the length alone changes, by 0.5 * 5
      >>> (w + u).round(4).tolist()
      [[1.5], [2.0]]

    Reference: Salimans, Kingma. Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural
    Networks. 2016, arXiv 1602.07868. Departures: a unit that is zero at the start has no direction; it gets that of
    ones, and g = 0, so that it can be trained (torch returns NaN). Flax's `WeightNorm` starts at g = 1, which changes
    the function of the layer. The paper's initialisation from data is not included.
    """
    checks.layout(layout)
    chosen_by = matrices_by_default(layout) if mask is MATRICES else mask

    def units(tree: Any) -> tuple[list[Any], Any, list[str], list[int]]:
        """Leaves, structure, names, and the indices of the leaves that are normalised."""
        leaves, structure = jax.tree.flatten(tree)
        flags = jax.tree.leaves(resolve_mask(chosen_by, tree))
        return leaves, structure, names(tree), [i for i, on in enumerate(flags) if on and leaves[i].size]

    check_mask_form(mask=chosen_by)

    def encode(params: Any) -> DirectionAndLength:
        check_mask(chosen_by, params, method="weight_normalized", argument="mask", instead="mask=False")
        w, structure, known, own = units(params)
        g: list[Any] = [optax.MaskedNode() for _ in w]
        norms = packed_norms([known[i] for i in own], "unit", layout, [w[i] for i in own])
        for i, n in zip(own, norms.own(norms.parts[0]), strict=True):
            count = entries(known[i], "unit", layout, w[i].shape)
            g[i], w[i] = n, jnp.where(n == 0, jnp.full_like(w[i], count**-0.5), w[i])
        return DirectionAndLength(structure.unflatten(w), structure.unflatten(g))

    def own_units(z: DirectionAndLength) -> tuple[list[Any], list[Any], Any, list[str], list[int]]:
        v, structure = jax.tree.flatten(z.v)
        g = structure.flatten_up_to(z.g)
        return v, g, structure, names(z.v), [i for i, x in enumerate(g) if not isinstance(x, optax.MaskedNode)]

    def decode(z: DirectionAndLength) -> Any:
        v, g, structure, known, own = own_units(z)
        norms = packed_norms([known[i] for i in own], "unit", layout, [v[i] for i in own])
        for i, n in zip(own, norms.own(norms.parts[0]), strict=True):
            v[i] = v[i] * divide(g[i].astype(n.dtype), n).astype(v[i].dtype)
        return structure.unflatten(v)

    def pullback(z: DirectionAndLength, G: Any) -> DirectionAndLength:
        v, g, structure, known, own = own_units(z)
        d, dg = [x.astype(y.dtype) for x, y in zip(jax.tree.leaves(G), v, strict=True)], list(g)
        mine = [v[i] for i in own]
        products = [d[i] * v[i] for i in own]
        sums = packed_sums([known[i] for i in own], "unit", layout, products, [jnp.square(x) for x in mine], like=mine)
        along = sums.each(lambda inside, square: divide(inside, jnp.sqrt(square)))
        share = sums.each(lambda inside, square: jnp.sqrt(square))
        for i, a, n in zip(own, along, share, strict=True):
            d[i] = divide(g[i], n) * (d[i] - divide(a, n) * v[i])
            dg[i] = a
        return DirectionAndLength(
            structure.unflatten(d), jax.tree.unflatten(jax.tree.structure(z.g), [dg[i] for i in own])
        )

    return reparameterize(inner, encode, decode, pullback=pullback, resync=resync)


register(
    weight_normalized,
    form="wrapper",
    paper=PAPER,
    words=1,
    collectives="norms",
    golden=("large_batch/weight_norm",),
    notes="trains ordinary weights: the model is not changed",
)
