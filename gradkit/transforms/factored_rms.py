"""The second moment of a matrix as that of its rows times that of its columns.

b_t = min(b2_cap, 1 - (t - decay_offset)^(-decay_rate)),      b_1 = 0: no bias correction
R <- b_t R + (1 - b_t) mean_O(g^2 + eps)                      per row: the mean over the output axes
C <- b_t C + (1 - b_t) mean_I(g^2 + eps)                      per column: the mean over the input axes
u = g / sqrt(R / mean_I(R) C)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.accumulators import none_for_0
from gradkit.engine.core import increment, transformation
from gradkit.engine.factored import Factored, accumulate, start, whitened
from gradkit.engine.norms import squares
from gradkit.leaves import Layout, resolve_layout
from gradkit.types import Scalar

NAME = "scale_by_factored_rms"
PAPER = Paper("Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", "Shazeer, Stern", 2018, "1804.04235")


def growing_decay(count: jax.Array, decay_rate: Any, decay_offset: int, cap: Any) -> tuple[Any, Any]:
    """b_t = min(cap, 1 - (t - decay_offset)^(-decay_rate)) of step t = count, and 1 - b_t without cancellation.

    >>> [round(float(x), 4) for x in growing_decay(jnp.array(4), 0.5, 0, 1.0)]
    [0.5, 0.5]
    """
    dtype = jnp.result_type(float)
    t = jnp.maximum(count - decay_offset, 1).astype(dtype)
    rest = jnp.maximum(t ** -jnp.asarray(decay_rate, dtype), 1 - jnp.asarray(cap, dtype))
    return 1 - rest, rest


class ScaleByFactoredRmsState(NamedTuple):
    """Number of updates made; of factored leaves the means of squares of rows, of columns and of all entries, of the
    others the mean of squares of every entry."""

    count: jax.Array
    rows: Any
    columns: Any
    mean: Any
    nu: Any


def scale_by_factored_rms(
    *,
    decay_rate: Scalar = 0.8,
    decay_offset: int = 0,
    b2_cap: Scalar = 1.0,
    eps: Scalar = 1e-30,
    factored: bool = True,
    min_dim_size_to_factor: int = 128,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides by the root of a second moment that a matrix keeps as its row means and column means.

    Equations, with I and O the input and output axes of a leaf; every axis that is neither enumerates matrices of
    their own, so that the layers of a stack are factored one by one:

        b_t = min(b2_cap, 1 - (t - decay_offset)^(-decay_rate))
        R <- b_t R + (1 - b_t) mean_O(g^2 + eps),  C <- b_t C + (1 - b_t) mean_I(g^2 + eps)
        u = g (R / mean_I(R))^(-1/2) C^(-1/2)
        not factored:  V <- b_t V + (1 - b_t) (g^2 + eps),  u = g V^(-1/2)

    b_1 = 0, so there is no bias correction. Where g^2 has rank one, R C / mean(R) is exactly the mean of squares.

    Args:
      decay_rate: how fast b_t approaches 1, > 0. Default 0.8 (paper).
      decay_offset: steps that b_t starts later, >= 0, for a run that goes on from another. Default 0.
      b2_cap: largest b_t, in (0, 1]. Default 1 (paper); big_vision has 0.999.
      eps: added to every square, in the gradient's units squared, >= 0. Default 1e-30 (paper).
      factored: whether any leaf is factored. Default True.
      min_dim_size_to_factor: smallest number of inputs and of outputs of a leaf that is factored, >= 0. Default 128
        (t5x; big_vision has 32). Leaves with one input or one output never are.
      layout: which axes are inputs, outputs and stacks.

    Returns:
      A transformation. State: rows + columns words per matrix, 1 word per parameter of other leaves, one number per
      matrix, and a counter. Collectives: one all-reduce of rows + columns numbers per matrix where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = scale_by_factored_rms(min_dim_size_to_factor=2)
      >>> g = jnp.array([[1.0], [-3.0]]) * jnp.array([[2.0, 0.5]])  # of rank one
      >>> print(tx.update(g, tx.init(g))[0].round(4))
      [[ 1.  1.]
       [-1. -1.]]

    Reference: Shazeer, Stern. Adafactor: Adaptive Learning Rates with Sublinear Memory Cost. 2018, arXiv 1804.04235.
    optax's link of this name factors the two largest axes of a leaf: a stack of layers is factored across layers, and
    the stack axis counts for the smallest size. `torch.optim.Adafactor` clamps squares from below where eps is added.
    """
    checks.layout(layout)
    checks.real("decay_rate", decay_rate, "(0, inf)")
    decay_offset = checks.integer("decay_offset", decay_offset, 0)
    checks.real("b2_cap", b2_cap, "(0, 1]")
    checks.real("eps", eps, "[0, inf)")
    checks.switch(factored=factored)
    least = checks.integer("min_dim_size_to_factor", min_dim_size_to_factor, 0)
    least = least if factored else checks.LARGEST

    def init(params: optax.Params) -> ScaleByFactoredRmsState:
        resolve_layout(layout, params, method=NAME, matters=True)
        return ScaleByFactoredRmsState(jnp.zeros((), jnp.int32), *start(params, layout, min_dim=least))

    def update(updates: Any, state: ScaleByFactoredRmsState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        count = increment(state.count)
        decay = growing_decay(count, decay_rate, decay_offset, b2_cap)
        leaves, structure = jax.tree.flatten(updates)
        moment = accumulate(Factored(*state[1:]), updates, squares(leaves), layout, decay, none_for_0(eps))
        return structure.unflatten(whitened(moment, updates)), ScaleByFactoredRmsState(count, *moment)

    return transformation(NAME, init, update, complex_leaves=True)


register(
    scale_by_factored_rms,
    form="primitive",
    paper=PAPER,
    collectives="norms",
    golden=("modern/adafactor", "modern/adafactor_stack"),
    example={"min_dim_size_to_factor": 2},
    opt_outs={"layout": "axes that are no inputs and no outputs separate matrices, whether they are stacks or not"},
)
