"""A sweep: one method, many hyperparameters, several seeds, one compiled program.

The program is a scan of scans under two `vmap`s (hyperparameters, seeds). It makes a few evaluations and
hands the runs back, still on the device, so that a long sweep shows how far it is and is compiled once.
"""

import functools
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.training import methods, run
from gradkit.training.scoring import steps_or_infinity
from gradkit.workloads import Workload

# Programs that a sweep is cut into, at most; each hands back control, for a progress bar.
PIECES = 20


class Sweep(NamedTuple):
    """What a sweep measured.

    Attributes:
      grid: hyperparameter -> its values, (points,).
      seeds: (seeds,).
      steps: step of each evaluation, (evaluations,).
      curves: metric, (points, seeds, evaluations).
      steps_to_target: (points, seeds), infinity for a miss.
      diverged: whether the metric was ever not finite, (points, seeds).
      compile_seconds: time to trace and compile.
      run_seconds: time to run.
    """

    grid: dict[str, np.ndarray]
    seeds: np.ndarray
    steps: np.ndarray
    curves: np.ndarray
    steps_to_target: np.ndarray
    diverged: np.ndarray
    compile_seconds: float
    run_seconds: float


def sweep(
    workload: Workload,
    method: Any,
    grid: Mapping[str, Sequence[float] | np.ndarray] | Sequence[float] | np.ndarray,
    *,
    seeds: int | Sequence[int] = 5,
    steps: int | None = None,
    eval_every: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Trains with every point of a grid and every seed at once.

    Args:
      workload: the problem.
      method: called inside the program as `method(**hyperparameters)` with traced values, and with `steps=steps` where
        it has an argument of this name; returns a transformation. `gk.adamw` and `optax.adamw` are such functions, as
        is `functools.partial(gk.adamw, b1=0.8)`. A name, such as "adamw" or "optax.adamw", is the method as it races,
        under the schedule of its card.
      grid: hyperparameter -> values, all of one length: point i takes the i-th of each. A bare sequence
        is the grid of `learning_rate`.
      seeds: how many (0, 1, …), or which. Default 5.
      steps: steps of each run. Default the workload's budget.
      eval_every: steps between evaluations; divides `steps`. Default the workload's.
      progress: called with (steps done, steps) now and then.

    Returns:
      The curves, and what is read off them.

    Raises:
      ValueError: an empty or ragged grid, no seeds, steps that are no multiple of `eval_every`, or a name that no
        method has.

    Example:
      >>> import gradkit as gk
      >>> sweep(gk.workloads.load("heavytail"), gk.lion, [0.003, 0.01], steps=200).curves.shape
      (2, 5, 10)
    """
    columns, seed_array = _columns(grid), _seeds(seeds)
    steps = workload.budget_steps if steps is None else steps
    eval_every = workload.eval_every if eval_every is None else eval_every
    check_steps(steps, eval_every)
    evaluations = steps // eval_every
    per_piece = max(n for n in range(1, -(-evaluations // PIECES) + 1) if evaluations % n == 0)

    named: Any = methods.find(method).scheduled if isinstance(method, str) else method
    factory: Callable[..., optax.GradientTransformation] = named
    checks.function("method", factory)
    more = {"steps": steps} if "steps" in inspect.signature(factory).parameters else {}

    def one_start(point: dict[str, jax.Array], params: Any, seed: jax.Array) -> run.Run:
        return run.start(params, factory(**point, **more), seed, run.first_model_state(workload, seed))

    def one_piece(point: dict[str, jax.Array], state: run.Run) -> tuple[run.Run, jax.Array]:
        step = run.step_function(workload, factory(**point, **more))

        def evaluation(state: run.Run, _: None) -> tuple[run.Run, jax.Array]:
            state, _ = jax.lax.scan(lambda state, _: (step(state)[0], None), state, None, eval_every)
            return state, run.measured(workload, state)

        return jax.lax.scan(evaluation, state, None, per_piece)

    began = time.perf_counter()
    points = {name: jnp.asarray(column, jnp.float32) for name, column in columns.items()}
    params = _first_params(workload, seed_array)
    start = jax.jit(jax.vmap(jax.vmap(one_start, (None, 0, 0)), (0, None, None)))
    state = jax.block_until_ready(start(points, params, seed_array))
    # The runs are donated: a sweep holds its parameters and states once.
    piece = jax.jit(jax.vmap(jax.vmap(one_piece, (None, 0)), (0, 0)), donate_argnums=1)
    piece = piece.lower(points, state).compile()
    compiled = time.perf_counter()

    curves = []
    for done in range(per_piece, evaluations + 1, per_piece):
        state, metrics = piece(points, state)
        curves.append(np.asarray(metrics))
        if progress is not None:
            progress(done * eval_every, steps)
    curves = np.concatenate(curves, -1)
    at = eval_every * np.arange(1, evaluations + 1)
    return Sweep(
        grid=columns,
        seeds=np.asarray(seed_array),
        steps=at,
        curves=curves,
        steps_to_target=steps_or_infinity(curves, at, workload.target),
        diverged=np.any(~np.isfinite(curves), -1),
        compile_seconds=compiled - began,
        run_seconds=time.perf_counter() - compiled,
    )


def check_steps(steps: Any, eval_every: Any) -> None:
    """Refuses a number of steps that evaluations do not divide."""
    checks.integer("steps", steps, 1)
    checks.integer("eval_every", eval_every, 1)
    if steps % eval_every:
        raise ValueError(f"steps must be a multiple of eval_every, got {steps} and {eval_every}")


@functools.partial(jax.jit, static_argnums=0)
def _first_params(workload: Workload, seeds: jax.Array) -> Any:
    """Compiled once per workload, for all methods."""
    return jax.vmap(lambda seed: run.first_params(workload, seed))(seeds)


def _columns(grid: Any) -> dict[str, np.ndarray]:
    columns = dict(grid) if isinstance(grid, Mapping) else {"learning_rate": grid}
    columns = {name: np.asarray(column, np.float64) for name, column in columns.items()}
    shapes = {column.shape for column in columns.values()}
    if len(shapes) != 1 or any(len(shape) != 1 or shape[0] == 0 for shape in shapes):
        shown = {name: column.shape for name, column in columns.items()}
        raise ValueError(f"grid must have one column or more, of one length >= 1, got shapes {shown}")
    return columns


def _seeds(seeds: Any) -> jax.Array:
    if isinstance(seeds, Sequence | np.ndarray):
        if not len(seeds):
            raise ValueError("seeds must not be empty")
        return jnp.asarray(seeds, jnp.uint32)
    checks.integer("seeds", seeds, 1)
    return jnp.arange(seeds, dtype=jnp.uint32)
