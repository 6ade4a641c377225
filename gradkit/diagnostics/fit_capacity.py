"""The effective complexity of a training procedure: the largest sample that it fits."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.diagnostics.lanczos import lanczos, ritz
from gradkit.diagnostics.spectral_density import checked_steps
from gradkit.engine.core import abs_sq, widen
from gradkit.engine.keys import as_key, check_key
from gradkit.types import Key

PAPER = Paper("Just How Flexible are Neural Networks in Practice?", "Shwartz-Ziv et al.", 2024, "2406.11463")
# Steps of Lanczos for the smallest eigenvalue, where their number is not given.
STEPS = 40


class FitRun(NamedTuple):
    """One run from a fresh start.

    Attributes:
      size: examples that were trained on.
      accuracy: what the run reached on them.
      grad_norm: of the loss over all of them, where the run ended.
      smallest_eigenvalue: of its Hessian there; NaN where no `curvature_tol` asks for it.
      converged: whether the gradient and the curvature are within their tolerances.
      fits: whether the run reached the accuracy and has converged.
    """

    size: int
    accuracy: float
    grad_norm: float
    smallest_eigenvalue: float
    converged: bool
    fits: bool


class FitCapacity(NamedTuple):
    """The largest of the sizes that was fitted, 0 for none; and all runs, in the order in which they were made."""

    capacity: int
    runs: tuple[FitRun, ...]


def fit_capacity(
    train: Callable[[int], tuple[Any, Any, Callable[[Any], Any]]],
    sizes: Sequence[int],
    *,
    accuracy: float = 1.0,
    grad_norm_tol: float | None = None,
    curvature_tol: float | None = None,
    steps: int | None = None,
    key: Key | None = None,
) -> FitCapacity:
    """The effective model complexity of a training procedure: the largest number of examples that it fits.

        n fits  <=>  a full run on n examples from a fresh start reaches the accuracy on them, with
                     |grad L_n| <= grad_norm_tol,    smallest eigenvalue of the Hessian of L_n >= -curvature_tol
        capacity = the largest n of `sizes` that fits

    Sizes are tried 1, 2, 4, ... places further, and then by bisection between the last that fits and the first that
    does not: about 2 log2(len(sizes)) runs, as if a procedure that fits n examples fitted all smaller samples. The
    capacity with true labels over that with random ones predicts how well a network generalizes.

    Args:
      train: n -> (accuracy on the n examples, parameters at the end, loss): the loss is a function of the parameters, a
        scalar over all n examples. Every call begins anew, with weights and examples of its own.
      sizes: numbers of examples, rising, such as `range(10, 10_001, 10)`.
      accuracy: that counts as fitted, in (0, 1]. Default 1 (paper).
      grad_norm_tol: largest norm of the gradient, >= 0. Default None: the gradient does not matter. A run that stops
        above it says nothing of the capacity but of its own length.
      curvature_tol: how negative the smallest eigenvalue may be, >= 0, found by `gk.diagnostics.lanczos`; a saddle is
        no end of training. Default None: not computed.
      steps: of Lanczos, from 1 to the number of parameters. Default None: 40, or that number.
      key: a typed key or an integer, for the first vector of Lanczos, with `curvature_tol`. Default None.

    Returns:
      `FitCapacity` of the capacity and all runs. A plain Python loop, whose cost is that of `train`.

    Raises:
      ValueError: an argument outside its range; sizes that do not rise; a run without three results.

    Example:
      >>> memory = lambda n: (min(n, 3) / n, jnp.zeros(2), lambda w: jnp.sum(w**2))  # three slots
      >>> found = fit_capacity(memory, range(1, 9), grad_norm_tol=1e-3)
      >>> found.capacity, [(run.size, run.fits) for run in found.runs]
      (3, [(1, True), (3, True), (7, False), (5, False), (4, False)])

    Reference: Shwartz-Ziv et al. Just How Flexible are Neural Networks in Practice? 2024, arXiv 2406.11463, which adds
    examples until a run fails. That it looks at the gradient and the smallest eigenvalue is from memory, and its
    tolerances were not at hand: so there is no default for them.
    """
    checks.sequence(sizes=sizes)
    steps = checks.integer("steps", steps, 1, optional=True)
    check_key(key)
    if curvature_tol is not None and key is None:
        raise ValueError(
            "fit_capacity: key must be a random key or an integer with curvature_tol, got None; write key=0"
        )
    checks.function("train", train)
    checks.real("accuracy", accuracy, "(0, 1]")
    checks.real("grad_norm_tol", grad_norm_tol, "[0, inf)", optional=True)
    checks.real("curvature_tol", curvature_tol, "[0, inf)", optional=True)
    known = [checks.integer("sizes", n, 1) for n in sizes]
    if not known or any(a >= b for a, b in itertools.pairwise(known)):
        raise ValueError(
            f"fit_capacity: sizes must be numbers of examples that rise, got {known[:8]}; write range(10, 1001, 10)"
        )
    runs: list[FitRun] = []

    def fits(place: int) -> bool:
        runs.append(_run(train, known[place], accuracy, grad_norm_tol, curvature_tol, steps, key))
        return runs[-1].fits

    low, high = -1, len(known)  # places of the last that fits and of the first that does not
    stride = 1
    while low + stride < high:
        place = low + stride
        if not fits(place):
            high = place
            break
        low, stride = place, 2 * stride
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return FitCapacity(known[low] if low >= 0 else 0, tuple(runs))


def _run(
    train: Callable[[int], Any],
    size: int,
    accuracy: float,
    grad_norm_tol: float | None,
    curvature_tol: float | None,
    steps: int | None,
    key: Any,
) -> FitRun:
    found = train(size)
    if not isinstance(found, tuple) or len(found) != 3 or not callable(found[2]):
        raise ValueError(
            f"fit_capacity: train({size}) must return (accuracy, parameters, loss), got {type(found).__name__}; write "
            "return accuracy, params, lambda params: loss_of(params, examples)"
        )
    reached, params, loss_fn = found
    grad_fn = jax.grad(loss_fn)
    squares = jax.tree.map(lambda g: jnp.sum(abs_sq(g)), widen(grad_fn(params)))
    norm = math.sqrt(sum(float(s) for s in jax.tree.leaves(squares)))
    smallest = math.nan
    if curvature_tol is not None:
        count = checked_steps("fit_capacity", params, steps, STEPS)
        product = jax.linearize(grad_fn, params)[1]
        smallest = float(ritz(*lanczos(product, as_key(key), params, count)).values[0])
    flat = grad_norm_tol is None or norm <= grad_norm_tol
    minimal = curvature_tol is None or smallest >= -curvature_tol
    converged = bool(flat and minimal)
    # Accuracies are means of zeros and ones: one in float32 may be a rounding below 1.
    fitted = float(reached) >= accuracy - 1e-6
    return FitRun(size, float(reached), norm, smallest, converged, bool(fitted and converged))


register(fit_capacity, form="program", paper=PAPER)
