"""A race: several methods on real problems, each tuned over its learning rate with the same effort.

Per workload and method, one sweep over rates x seeds. The best rate is the one with the best median of
steps-to-target; where it is at the edge of the grid, the grid is extended by two rates on that side.
Seconds per step come from a program of one run (a vmapped program hides what a step costs), in rounds
that go through all methods in turn, so that a busy machine slows all of them alike.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradkit.training import run, scoring
from gradkit.training.methods import Method
from gradkit.training.settings import RaceConfig
from gradkit.training.sweep import Sweep, check_steps, sweep
from gradkit.workloads import Workload

# One timed call takes about this long: far above the clock's and the dispatch's noise.
TIMED_SECONDS = 0.15
# And it has this many steps at least, from the second one on: bases that are refreshed every ten steps are refreshed
# twice in it, and the first step, which makes them, is not.
TIMED_STEPS = 20


class Result(NamedTuple):
    """One method on one workload.

    Attributes:
      workload: its name.
      method: its name.
      sweep: all its runs, rates in rising order, extensions included.
      best: index of the best rate.
      extended: rates that were added to the grid.
      at_edge: whether the best rate is at the edge of what was tried all the same.
      steps: median over seeds of steps-to-target at the best rate; infinity for a miss.
      spread: smallest and largest steps-to-target over seeds at the best rate.
      final: median over seeds of the last metric at the best rate.
      robust: rates that reach the target within twice the best number of steps.
      seconds_per_step: of one run, median over rounds.
      seconds: `steps` times `seconds_per_step`.
      compile_seconds: of the program of one run.
      separable: ratio of steps from which on two medians on this workload count as different.
    """

    workload: str
    method: str
    sweep: Sweep
    best: int
    extended: int
    at_edge: bool
    steps: float
    spread: tuple[float, float]
    final: float
    robust: int
    seconds_per_step: float = np.nan
    seconds: float = np.nan
    compile_seconds: float = np.nan
    separable: float = 1.5

    @property
    def rates(self) -> np.ndarray:
        return self.sweep.grid["learning_rate"]

    @property
    def best_rate(self) -> float:
        return float(self.rates[self.best])


class Race(NamedTuple):
    """All results, in the order of the configuration, workload by workload; the two profiles; and the problems."""

    config: RaceConfig
    results: tuple[Result, ...]
    step_profile: scoring.Profile
    time_profile: scoring.Profile
    total_seconds: float
    problems: tuple[Workload, ...]

    @property
    def workloads(self) -> tuple[str, ...]:
        """The names of the problems."""
        return tuple(problem.name for problem in self.problems)

    def problem(self, name: str) -> Workload:
        """The problem of a name."""
        return next(problem for problem in self.problems if problem.name == name)

    def of(self, workload: str) -> list[Result]:
        """The results on one workload, best first: by steps, then by the final metric."""
        rows = [result for result in self.results if result.workload == workload]
        return sorted(rows, key=lambda row: (row.steps, row.final if np.isfinite(row.final) else np.inf))

    def _repr_html_(self) -> str:
        from gradkit.training.report import notebook  # reports read races

        return notebook.fragment(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What IPython shows in a terminal."""
        from gradkit.training.report import table

        del cycle
        printer.text(table.plain(self))


class Progress(NamedTuple):
    """What a watcher is told: where a method stands, and its result once it is scored."""

    workload: str
    method: str
    stage: str
    done: int
    total: int
    result: Result | None = None


def race(
    problems: str | Workload | Sequence[str | Workload],
    methods: Sequence[Any] | Mapping[str, Any],
    *,
    watch: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Race:
    """Races methods on a problem: each is tuned over its learning rate with the same effort, and timed.

    Args:
      problems: a problem of your own, as `gk.workloads.problem` makes it; or the name of one that ships; or several.
      methods: what races, each given by a name ("lion", "optax.adamw"), a factory (`gk.lion`, `optax.adamw`, a function
        of the learning rate), a chain whose rate is its own, a file, or a pair (name, one of these). Or a mapping from
        names to these. A card says where the rates are centred and under which schedule the method races; a function of
        your own races around 0.01, with a warm-up and a cosine: `gk.training.methods.Method` says otherwise.
      watch: called with a `Progress` now and then. Default None: in a notebook a table shows how far the race is, and
        elsewhere nothing does.
      **settings: further fields of `RaceConfig`: `rates`, `decades`, `seeds`, `steps`, `eval_every`, `extensions`,
        `timing_rounds`.

    Returns:
      The results, in a notebook tables and charts; `gk.training.report.plain` makes a table of them.

    Raises:
      ValueError: an unknown name, two of one name, or steps that are no multiple of `eval_every`.
      ImportError: a workload needs the extra `gradkit[race]`.

    Example:
      >>> import gradkit as gk, optax
      >>> methods = [gk.sgd, "optax.lion", ("clipped", lambda rate: optax.chain(optax.clip(1.0), optax.sgd(rate)))]
      >>> found = race("heavytail", methods, rates=2, seeds=1, steps=20, extensions=0)
      >>> [result.method for result in found.results]
      ['sgd', 'optax.lion', 'clipped']
    """
    chosen = (problems,) if isinstance(problems, str | Workload) else tuple(problems)
    pairs = tuple(methods.items()) if isinstance(methods, Mapping) else tuple(methods)
    config = RaceConfig(workloads=chosen, methods=pairs, **settings)  # pyright: ignore[reportArgumentType]
    if watch is not None:
        return race_config(config, watch)
    from gradkit.training.report import notebook  # reports read races

    with notebook.watcher(config) as shown:
        return race_config(config, shown)


def race_config(
    config: RaceConfig,
    watch: Callable[[Progress], None] = lambda _: None,
    finished: Mapping[tuple[str, str], Result] = MappingProxyType({}),
) -> Race:
    """Runs the race that a configuration describes; see `race`.

    `finished` has the results of what need not run again, by the names of problem and method.

    >>> config = RaceConfig(workloads=("heavytail",), methods=("sgd",), rates=2, seeds=1, steps=20, extensions=0)
    >>> [result.method for result in race_config(config).results]
    ['sgd']
    """
    began = time.perf_counter()
    problems = prepare(config)
    results: list[Result] = []
    for problem in problems:
        tuned = []
        for method in config.contestants:
            found = finished.get((problem.name, method.name))
            if found is None:
                found = tune(problem, method.on(problem.num_tasks), config, watch)
            else:
                watch(Progress(problem.name, method.name, "scored", 1, 1, found))
            tuned.append(found)
        results += measure(problem, tuned, config, watch)
    step_scores = {name: [row.steps for row in results if row.method == name] for name in config.method_names}
    time_scores = {name: [row.seconds for row in results if row.method == name] for name in config.method_names}
    profiles = scoring.performance_profile(step_scores), scoring.performance_profile(time_scores)
    return Race(config, tuple(results), *profiles, time.perf_counter() - began, tuple(problems))


def prepare(config: RaceConfig) -> list[Workload]:
    """Loads the workloads, and checks that evaluations divide their steps and that every method can be made, before
    anything is computed."""
    problems = list(config.problems())
    for problem in problems:
        steps = config.steps or problem.budget_steps
        check_steps(steps, config.eval_every or problem.eval_every)
        if problem.losses is None and set(config.aggregator) - {"sum"}:
            raise ValueError(
                f"aggregator must be left out on the workload {problem.name}, which has one loss, got "
                f"{','.join(config.aggregator)}; --workloads=multitask has several"
            )
        for method in config.contestants:
            method.on(problem.num_tasks).scheduled(1.0 if method.centre is None else method.centre, steps)
    return problems


def grid_of(centre: float, rates: int, decades: float) -> np.ndarray:
    """Log-spaced rates around a centre.

    >>> grid_of(0.1, 3, 1.0).round(4).tolist()
    [0.01, 0.1, 1.0]
    """
    return np.geomspace(centre * 10.0**-decades, centre * 10.0**decades, rates)


def tune(problem: Workload, method: Method, config: RaceConfig, watch: Callable[[Progress], None]) -> Result:
    """One method over its grid of rates and all seeds, extended while the best rate is at the edge."""

    def trained(grid: np.ndarray, stage: str) -> Sweep:
        def progress(done: int, total: int) -> None:
            watch(Progress(problem.name, method.name, stage, done, total))

        progress(0, config.steps or problem.budget_steps)
        return sweep(
            problem,
            method.scheduled,
            grid,
            seeds=config.seeds,
            steps=config.steps,
            eval_every=config.eval_every,
            progress=progress,
        )

    decades = method.decades if config.decades is None else config.decades
    # A chain whose rate is its own has nothing to tune.
    fixed = method.centre is None
    grid = np.ones(1) if method.centre is None else grid_of(method.centre, config.rates, decades)
    found = trained(grid, "sweep")
    ratio = 10.0 ** (2.0 * decades / (config.rates - 1))
    for _ in range(0 if fixed else config.extensions):
        best, rates = scoring.best_point(found.steps_to_target, found.curves[..., -1]), found.grid["learning_rate"]
        if best == 0:
            found = joined(trained(rates[0] / ratio ** np.array([2.0, 1.0]), "extend"), found)
        elif best == len(rates) - 1:
            found = joined(found, trained(rates[-1] * ratio ** np.array([1.0, 2.0]), "extend"))
        else:
            break
    result = score(problem.name, method.name, found, extended=len(found.grid["learning_rate"]) - len(grid))
    result = result._replace(separable=problem.separable)
    watch(Progress(problem.name, method.name, "scored", 1, 1, result))
    return result


def joined(low: Sweep, high: Sweep) -> Sweep:
    """Two sweeps over neighbouring grids, as one."""
    first, second = low._asdict(), high._asdict()
    merged: dict[str, Any] = {
        name: np.concatenate([first[name], second[name]]) for name in ("curves", "steps_to_target", "diverged")
    }
    merged["grid"] = {name: np.concatenate([low.grid[name], high.grid[name]]) for name in low.grid}
    merged |= {name: first[name] + second[name] for name in ("compile_seconds", "run_seconds")}
    return low._replace(**merged)


def score(workload: str, method: str, found: Sweep, *, extended: int = 0) -> Result:
    """What a sweep over rates says about a method; times are filled in by `measure`."""
    finals = found.curves[..., -1]
    best = scoring.best_point(found.steps_to_target, finals)
    at_best = found.steps_to_target[best]
    return Result(
        workload=workload,
        method=method,
        sweep=found,
        best=best,
        extended=extended,
        at_edge=len(finals) > 1 and best in (0, len(finals) - 1),
        steps=float(np.median(at_best)),
        spread=(float(at_best.min()), float(at_best.max())),
        final=float(np.median(np.where(np.isfinite(finals[best]), finals[best], np.inf))),
        robust=scoring.robustness(found.steps_to_target),
    )


def measure(
    problem: Workload, results: Sequence[Result], config: RaceConfig, watch: Callable[[Progress], None]
) -> list[Result]:
    """Adds seconds per step at each method's best rate."""
    by_name = {method.name: method.on(problem.num_tasks) for method in config.contestants}
    entrants = [(by_name[result.method], result.best_rate) for result in results]
    timed = []
    for result, (rounds, compiled) in zip(
        results, time_steps(problem, entrants, config.steps, config.timing_rounds, watch), strict=True
    ):
        per_step = float(np.median(rounds))
        result = result._replace(seconds_per_step=per_step, seconds=result.steps * per_step, compile_seconds=compiled)
        timed.append(result)
        watch(Progress(problem.name, result.method, "done", 1, 1, result))
    return timed


def time_steps(
    problem: Workload,
    entrants: Sequence[tuple[Method, float]],
    steps: int | None = None,
    rounds: int = 5,
    watch: Callable[[Progress], None] = lambda _: None,
) -> list[tuple[np.ndarray, float]]:
    """The seconds of a step of each method in every round, and of compiling its program of one run.

    Args:
      problem: the problem; a step draws its minibatch, and makes gradient and update.
      entrants: methods, each with its peak learning rate.
      steps: of the run whose schedule is timed. Default the workload's budget.
      rounds: rounds that go through all methods in turn.
      watch: called with a `Progress` now and then.
    """
    total = steps or problem.budget_steps
    programs, counts, compile_seconds = [], [], []
    for method, rate in entrants:
        watch(Progress(problem.name, method.name, "compile", 0, rounds))
        began = time.perf_counter()
        program, state = _one_run(problem, method, rate, total)
        compile_seconds.append(time.perf_counter() - began)
        state = jax.block_until_ready(program(state, jnp.int32(1)))
        began = time.perf_counter()
        jax.block_until_ready(program(state, jnp.int32(3)))
        counts.append(max(TIMED_STEPS, round(TIMED_SECONDS / max(1e-6, (time.perf_counter() - began) / 3.0))))
        programs.append((program, state))
    seconds = np.zeros((rounds, len(entrants)))
    for i in range(rounds):
        for j, (program, state) in enumerate(programs):
            began = time.perf_counter()
            jax.block_until_ready(program(state, jnp.int32(counts[j])))
            seconds[i, j] = (time.perf_counter() - began) / counts[j]
            watch(Progress(problem.name, entrants[j][0].name, "time", i + 1, rounds))
    return list(zip(seconds.T, compile_seconds, strict=True))


def _one_run(problem: Workload, method: Method, rate: float, total: int) -> tuple[Any, run.Run]:
    """(state, n) -> state after n steps, compiled once for every n; and a state to start from."""
    tx = method.scheduled(rate, total)
    step = run.step_function(problem, tx)

    @jax.jit
    def begin() -> run.Run:
        seed = jnp.zeros((), jnp.uint32)
        return run.start(run.first_params(problem, seed), tx, seed, run.first_model_state(problem, seed))

    @jax.jit
    def steps(state: run.Run, count: jax.Array) -> run.Run:
        return jax.lax.fori_loop(jnp.int32(0), count, lambda _, state: step(state)[0], state)

    state = jax.block_until_ready(begin())
    return steps.lower(state, jnp.int32(1)).compile(), state
