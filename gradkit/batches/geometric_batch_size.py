"""Batch sizes that grow geometrically, so that the noise of the gradient falls as fast as the error."""

import math
from collections.abc import Callable
from fractions import Fraction

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.types import Scalar


def geometric_batch_size(n0: int, tau: Scalar, *, max_batch: int | None = None) -> Callable[[int], int]:
    """How many examples each step takes, for linear convergence of SGD at a constant learning rate.

    Equations:

        n_k = ceil(n0 tau^k),   k = 0, 1, ...      at most max_batch

    Args:
      n0: examples of the first step, >= 1.
      tau: growth per step, > 1. The total work is optimal where 1 / tau is at least the method's convergence factor on
        exact gradients.
      max_batch: the largest batch, >= n0. Default None: no limit.

    Returns:
      A function step (from 0) -> number of examples, both Python integers: a shape is not traced.

    Raises:
      ValueError: an argument outside its range; at use, a step that is not an integer >= 0.

    Example:
      >>> size = geometric_batch_size(4, 1.5, max_batch=20)
      >>> [size(k) for k in range(6)]
      [4, 6, 9, 14, 20, 20]

    Reference: Bottou, Curtis, Nocedal. Optimization Methods for Large-Scale Machine Learning. 2016, arXiv 1606.04838,
    section 5.2. Steps count from 0 here and from 1 there.
    """
    checks.integer("n0", n0, 1)
    checks.real("tau", tau, "(1, inf)")
    checks.integer("max_batch", max_batch, n0, optional=True)

    def size(step: int) -> int:
        checks.integer("step", step)
        # Beyond this the power is larger than any number worth computing.
        if max_batch is not None and step * math.log(tau) > math.log(max_batch / n0) + 1:
            return max_batch
        # In fractions of the decimals the user wrote: a rounding above a whole number would be one example more.
        n = math.ceil(n0 * Fraction(str(float(tau))) ** int(step))
        return n if max_batch is None else min(n, max_batch)

    return size


register(
    geometric_batch_size,
    form="function",
    paper=Paper("Optimization Methods for Large-Scale Machine Learning", "Bottou, Curtis, Nocedal", 2016, "1606.04838"),
    example={"n0": 4, "tau": 1.5},
)
