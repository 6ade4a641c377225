"""The curvature of a workload's loss: sharpness, trace and density of the Hessian, over fixed minibatches.

H = the Hessian of the mean loss over the same minibatches at every product
values, density     Lanczos steps from random vectors (`gk.diagnostics.spectral_density`)
trace               Hutchinson's estimate with its standard error (`gk.diagnostics.hessian_trace`)
sharpness           the largest Ritz value with the norm of H u - lambda u (`gk.diagnostics.top_eigenpairs`)
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.diagnostics import (
    accumulated_hvp,
    curvature_stability,
    gradient_subspace_fraction,
    hessian_criteria,
    hessian_trace,
    spectral_density,
    top_eigenpairs,
)
from gradkit.training import methods
from gradkit.training.report import style
from gradkit.training.report.charts import matplotlib_of
from gradkit.training.step import make_train_step
from gradkit.workloads import Workload
from gradkit.workloads.workload import with_fixed_state

ENDINGS = (".png", ".svg", ".pdf")


@dataclasses.dataclass(frozen=True)
class Curvature:
    """What was measured, at one point.

    Attributes:
      workload: whose loss.
      parameters: how many numbers are trained.
      where: after which training, in words.
      minibatches: over how many the loss is a mean.
      loss: at the point, over the minibatches.
      sharpness: the largest eigenvalue.
      residual: the norm of H u - lambda u: an eigenvalue is not further away.
      smallest: the smallest Ritz value.
      trace: of the Hessian.
      trace_error: the standard error of the trace.
      negative: the share of the density below -1 % of the sharpness; nearer to 0 the sign is that of the smoothing.
      r_e: the smallest over the largest eigenvalue, in magnitude.
      K_n: the negative part of the spectrum over the positive, with n = 1/2.
      subspace: the share of the gradient's square along the eigenvectors of the largest eigenvalues.
      subspace_size: how many these are.
      largest_rate: the largest stable learning rate of gradient descent.
      steps: Lanczos steps per random vector.
      probes: random vectors of the density.
      seconds: how long it took, compilation included.
      grid: values.
      density: the density at them.
    """

    workload: str
    parameters: int
    where: str
    minibatches: int
    loss: float
    sharpness: float
    residual: float
    smallest: float
    trace: float
    trace_error: float
    negative: float
    r_e: float
    K_n: float
    subspace: float
    subspace_size: int
    largest_rate: float
    steps: int
    probes: int
    seconds: float
    grid: np.ndarray = dataclasses.field(repr=False)
    density: np.ndarray = dataclasses.field(repr=False)


def curvature(
    problem: Workload,
    *,
    method: Any = "adamw",
    train_steps: int = 0,
    minibatches: int = 2,
    lanczos_steps: int = 50,
    probes: int = 1,
    trace_probes: int = 20,
    top: int = 10,
    seed: int = 0,
) -> Curvature:
    """Measures the Hessian of a workload's loss, at its start or after some training.

    Args:
      problem: the workload; a model state is that of its start.
      method: what trains, as `gradkit.training.methods.find` knows it, at the centre of its grid of learning rates.
      train_steps: how many steps it trains, >= 0.
      minibatches: over how many the loss is a mean, >= 1.
      lanczos_steps: products per random vector of the density, >= 1; at most as many as there are parameters.
      probes: random vectors of the density, >= 1.
      trace_probes: random vectors of the trace, >= 1.
      top: how many eigenvectors the gradient is compared with, >= 1.
      seed: of parameters, minibatches and random vectors, >= 0.

    Returns:
      A `Curvature`.

    Raises:
      ValueError: an argument outside its range, or an unknown method.
    """
    for name, value, least in (
        ("train_steps", train_steps, 0),
        ("minibatches", minibatches, 1),
        ("lanczos_steps", lanczos_steps, 1),
        ("probes", probes, 1),
        ("trace_probes", trace_probes, 1),
        ("top", top, 1),
        ("seed", seed, 0),
    ):
        checks.integer(name, value, least)
    began = time.perf_counter()
    problem = with_fixed_state(problem)
    found = methods.find(method)
    start, data, random = jax.random.split(jax.random.key(seed), 3)
    params, where = problem.init(start), "at the start"
    if train_steps:
        params, where = (
            _trained(problem, found, params, data, train_steps),
            f"after {train_steps} steps of {found.name}",
        )
    batches = jax.vmap(lambda i: problem.batch(jax.random.fold_in(data, 2**30 + i)))(jnp.arange(minibatches))
    size = sum(x.size for x in jax.tree.leaves(params))
    steps, top = min(lanczos_steps, size), min(top, size)

    def measure(params: Any, batches: Any, key: jax.Array) -> Any:
        def product(v: Any) -> Any:
            return accumulated_hvp(problem.loss, params, v, batches)

        first, second, third = jax.random.split(key, 3)
        pairs = top_eigenpairs(product, first, params, top, steps=min(2 * top + 20, size))
        value, gradient = jax.value_and_grad(
            lambda x: jnp.mean(jax.lax.map(lambda batch: problem.loss(x, batch), batches))
        )(params)
        density = spectral_density(product, second, params, steps=steps, num_probes=probes)
        return (
            value,
            pairs.values[0],
            pairs.residuals[0],
            gradient_subspace_fraction(pairs.vectors, gradient),
            density,
            hessian_trace(product, third, params, num_probes=trace_probes),
            hessian_criteria(density.values, density.weights),
        )

    value, sharpness, residual, share, density, trace, criteria = jax.device_get(
        jax.jit(measure)(params, batches, random)
    )
    mass = density.density / density.density.sum()
    return Curvature(
        workload=problem.name,
        parameters=size,
        where=where,
        minibatches=minibatches,
        loss=float(value),
        sharpness=float(sharpness),
        residual=float(residual),
        smallest=float(density.values.min()),
        trace=float(trace.mean),
        trace_error=float(trace.standard_error),
        negative=float(mass[density.grid < -0.01 * abs(float(sharpness))].sum()),
        r_e=float(criteria.r_e),
        K_n=float(criteria.K_n),
        subspace=float(share),
        subspace_size=top,
        largest_rate=float(curvature_stability(float(sharpness), 0.0).largest_rate),
        steps=steps,
        probes=probes,
        seconds=round(time.perf_counter() - began, 1),
        grid=density.grid,
        density=density.density,
    )


def _trained(problem: Workload, method: Any, params: Any, key: jax.Array, steps: int) -> Any:
    """The evaluation parameters after some steps at the centre of the method's grid."""
    step = make_train_step(problem.loss, method.make(method.centre))

    def one(state: Any, i: jax.Array) -> tuple[Any, None]:
        return step(state, problem.batch(jax.random.fold_in(key, i)))[0], None

    state = jax.jit(lambda state: jax.lax.scan(one, state, jnp.arange(steps))[0])(step.init(params, key=key))
    return step.eval_params(state)


def table(found: Curvature) -> str:
    """The numbers as lines of text.

    >>> from gradkit.training.curvature import Curvature
    >>> numbers = {f.name: 1.0 for f in dataclasses.fields(Curvature)}
    >>> print(table(Curvature(**{**numbers, "workload": "tiny", "where": "at the start", "steps": 5})).splitlines()[0])
    loss         1 of tiny, at the start; 1 parameters, mean over 1 fixed minibatches
    """
    f = found
    rows = [
        ("loss", f"{f.loss:.4g} of {f.workload}, {f.where}; {f.parameters:,.0f} parameters, mean over "
         f"{f.minibatches:.0f} fixed minibatches"),
        ("sharpness", f"{f.sharpness:.5g}, an eigenvalue is within {f.residual:.2g}; gradient descent is stable below "
         f"a learning rate of {f.largest_rate:.3g}"),
        ("smallest", f"{f.smallest:.5g}, r_e = {f.r_e:.3g}, K_n = {f.K_n:.3g}; {100 * f.negative:.2g} % of the density "
         "is below -1 % of the sharpness"),
        ("trace", f"{f.trace:.5g} +- {f.trace_error:.2g}, {f.trace / f.parameters:.3g} per parameter"),
        ("gradient", f"{100 * f.subspace:.1f} % of its square along the {f.subspace_size:.0f} sharpest directions"),
        ("measured", f"with {f.steps} Lanczos steps from {f.probes} random vectors, in {f.seconds:.1f} s"),
    ]  # fmt: skip
    return "\n".join(f"{name:<12} {text}" for name, text in rows)


def check_png(png: str | None) -> None:
    """Raises where a picture could not be written."""
    if png is None:
        return
    if not pathlib.Path(png).parent.is_dir():
        raise ValueError(f"png must be a file in a folder that exists, got {png!r}")
    checks.choice("the ending of png", pathlib.Path(png).suffix, ENDINGS)
    matplotlib_of("a picture of a spectrum")


def save_density(found: Curvature, path: Any) -> None:
    """Draws the density of the spectrum into a file, on a logarithmic axis: most of it is near 0."""
    matplotlib = matplotlib_of("a picture of a spectrum")
    with matplotlib.rc_context(style.RC):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.8), layout="constrained", facecolor=style.PAPER)
        axes = figure.add_subplot()
        # What is narrower than a pixel of the picture would be drawn as a line to nowhere.
        floor = max(found.density.max() * 1e-9, 1e-12)
        drawn = np.where(found.density > floor, found.density, np.nan)
        axes.fill_between(found.grid, floor, np.nan_to_num(drawn, nan=floor), color=style.colour(0), alpha=0.25, lw=0)
        axes.semilogy(found.grid, drawn, color=style.colour(0), lw=1.2)
        axes.set_ylim(floor, found.density.max() * 3)
        axes.axvline(found.sharpness, color=style.colour(1), lw=1.2, ls="--")
        axes.annotate(
            f"sharpness {found.sharpness:.4g}",
            (found.sharpness, 0.96),
            xycoords=("data", "axes fraction"),
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="top",
            color=style.colour(1),
        )
        axes.set_title(f"Hessian of {found.workload}, {found.where}")
        axes.set_xlabel(f"eigenvalue (trace {found.trace:.4g} ± {found.trace_error:.2g})")
        axes.set_ylabel("density")
        figure.savefig(pathlib.Path(path), dpi=130)


def show(found: Curvature, png: str | None, json: Callable[[Any], str] | None) -> str:
    """What the command prints: the table, or one JSON object without the curve; and the picture where one is asked
    for."""
    if png is not None:
        save_density(found, png)
    if json is not None:
        rows = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
        return json({name: x for name, x in rows.items() if not isinstance(x, np.ndarray)})
    return table(found) + (f"\n{'picture':<12} {png}" if png is not None else "")
