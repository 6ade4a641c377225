"""The `gradkit` command: race, train, describe, inspect, list, show.

Every subcommand is a function of its arguments that reads and checks them, and returns what is to be done. So
whatever is wrong with a command line is said in one line before anything is computed or written, and
whatever fails after that is a defect and shows its traceback.
"""

import collections
import contextlib
import dataclasses
import inspect
import json
import math
import os
import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from jax import eval_shape, random

import gradkit  # noqa: F401 - registers every method
from gradkit import catalogue, checks, leaves
from gradkit.engine.extras import EXTRAS
from gradkit.parallel.mesh import parse_axes
from gradkit.training import inspection, logs, methods, processes, programs, report, trees
from gradkit.training.flags import parse, usage
from gradkit.training.race import prepare as prepare_race
from gradkit.training.race import race_config
from gradkit.training.report.charts import number, reading
from gradkit.training.report.table import aligned
from gradkit.training.settings import DEFAULT_METHOD, RaceConfig, TrainConfig, setting
from gradkit.training.train import Started, go_on, start
from gradkit.workloads import Workload, load, model_shapes, models, registry

Task = Callable[[], None]


MODEL = f"instead: the parameters of a real model, as shapes: {', '.join(models())}"
PARAMS = "instead: FILE.json of names and shapes, or FILE.py that defines `params`; it is executed"


@dataclasses.dataclass(frozen=True)
class ListConfig:
    """Which cards of the catalogue are listed."""

    form: str | None = setting(None, f"only methods of one form: {', '.join(catalogue.FORMS)}")

    def __post_init__(self) -> None:
        if self.form is not None:
            checks.choice("form", self.form, catalogue.FORMS)


@dataclasses.dataclass(frozen=True)
class DescribeConfig:
    """Which method is described, on which parameters."""

    workload: str | None = setting(None, "the problem whose parameters are shown; default: digits_mlp")
    model: str | None = setting(None, MODEL)
    params: str | None = setting(None, PARAMS)
    method: str = setting("adamw", "the method, or FILE.py that defines `chain`; it is executed")
    learning_rate: float | None = setting(None, "learning rate; default: the centre of the method's grid")

    def __post_init__(self) -> None:
        _check_source(self)
        methods.find(self.method)
        checks.real("learning_rate", self.learning_rate, "(0, inf)", optional=True)


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """On which mesh a method is inspected, and with which parameters."""

    mesh: str = setting("fsdp=8", "axes, like data=4,fsdp=2; their devices are imagined")
    workload: str | None = setting(None, "the problem whose parameters and loss are taken; default: digits_mlp")
    model: str | None = setting(None, MODEL)
    params: str | None = setting(None, PARAMS)
    json: bool = setting(False, "print one JSON object instead of a table")

    def __post_init__(self) -> None:
        _check_source(self)
        parse_axes(self.mesh)


def _check_source(config: DescribeConfig | InspectConfig) -> None:
    """Refuses several sources of parameters, and names that nothing has."""
    given = [name for name in ("workload", "model", "params") if getattr(config, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: give one of them")
    if config.workload is not None:
        registry.check_name(config.workload)
    if config.model is not None:
        model_shapes(config.model)


def _source(config: DescribeConfig | InspectConfig) -> tuple[Any, str]:
    """Where parameters come from, a workload or a tree of shapes, and its name."""
    if config.model is not None:
        return model_shapes(config.model), config.model
    if config.params is not None:
        return trees.find(config.params), pathlib.PurePath(config.params).name
    problem = load(config.workload or "digits_mlp")
    return problem, problem.name


def command_race(arguments: list[str]) -> Task:
    """Several methods on a real problem, each tuned: who reaches the target first, and a report."""
    config = parse(RaceConfig, arguments)
    problems = prepare_race(config)
    report.check_libraries()
    folder = report.reserve(config.out, config.overwrite)
    command = shlex.join(["gradkit", "race", *arguments])

    def task() -> None:
        for problem in problems:
            print(f"{problem.description}; {_target(problem)}", flush=True)
        with report.watcher(config) as watch:
            result = race_config(config, watch)
        print()
        report.show(result)
        report.write(result, folder, command)
        for workload in result.workloads:
            print(f"{workload}: {report.verdict(result.of(workload))}")
        print(f"report: {folder / 'report.html'}   picture: {folder / 'curves.png'}")

    return task


def command_train(arguments: list[str]) -> Task:
    """One method or chain on one problem, on one device or a mesh: checkpoints, live progress, metrics."""
    config = parse(TrainConfig, arguments)
    if config.tensorboard is not None:
        logs.check_libraries()
    file = None
    if config.metrics_file is not None:
        file = (logs.new_file if config.checkpoint_dir is None else logs.writable)(config.metrics_file)
    if config.devices is not None:
        processes.virtual_devices(config.devices)
    with contextlib.ExitStack() as stack:
        if config.coordinator is not None:
            who = (config.num_processes, config.process_id, config.heartbeat)
            stack.enter_context(processes.joined(config.coordinator, *who))
        started = start(config)
        if file is not None and config.checkpoint_dir is not None and jax.process_index() == 0:
            logs.rewind(file, 0 if started.report is None else started.report.step)
        leave = stack.pop_all()

    def task() -> None:
        with leave:
            if jax.process_index() == 0:
                _follow(config, started, file)
            else:
                collections.deque(go_on(config, started), maxlen=0)

    return task


def _follow(config: TrainConfig, started: Started, file: pathlib.Path | None) -> None:
    """Trains in the process that tells: records go to the terminal and to the files that were asked for."""
    problem, mesh = started.plan.problem, started.mesh
    where = "" if mesh.size == 1 else f" on {', '.join(f'{name}={n}' for name, n in mesh.shape.items())}"
    print(f"{config.chain or config.method or DEFAULT_METHOD} on {problem.description}{where}; {_target(problem)}")
    began = 0
    if started.report is not None:
        began = started.report.step
        print(f"going on from the checkpoint of step {began} in {config.checkpoint_dir}", flush=True)
        if config.transplant:
            print(started.report, flush=True)
    record, reached = None, None
    with report.ticker(started.plan.steps) as tick, logs.writer(file, config.tensorboard, began) as write:
        for record in go_on(config, started):
            write(record)
            if reached is None and record["metric"] <= problem.target:
                reached = record["step"]
            tick(record)
    if record is None:
        print(f"nothing to do: all {began} steps are made")
        return
    outcome = f"target reached at step {reached}" if reached else "target missed"
    print(f"final {problem.metric_name}: {reading(record['metric'])}; {outcome}; {record['seconds']:.1f} s")


def _target(problem: Workload) -> str:
    return f"target: {problem.metric_name} <= {number(problem.target)}"


def command_describe(arguments: list[str]) -> Task:
    """What a method does to every parameter of a problem, a model or a file: role, rate, decay, bytes of state."""
    config = parse(DescribeConfig, arguments)
    method = methods.find(config.method)
    tx = method.make(method.centre if config.learning_rate is None else config.learning_rate)
    source, _ = _source(config)
    params = eval_shape(source.init, random.key(0)) if isinstance(source, Workload) else source
    layout = leaves.infer_layout(params)
    return lambda: print(leaves.describe(tx, params, layout=layout))


def command_inspect(arguments: list[str]) -> Task:
    """What one step of a method costs on a mesh: bytes of state, flops and collectives, from the compiled program."""
    if not arguments or arguments[0].startswith("-"):
        raise ValueError("inspect takes the name of a method first: gradkit inspect lamb --mesh=fsdp=8")
    name, *rest = arguments
    config = parse(InspectConfig, rest)
    programs.subject(name)
    count = math.prod(parse_axes(config.mesh).values())
    if count < 1:
        raise ValueError(f"mesh must give every length, since its devices are imagined, got {config.mesh!r}")
    try:
        processes.virtual_devices(count)
    except ValueError:
        # JAX runs already, as in a notebook: its devices must do.
        if jax.device_count() < count:
            raise
    source, called = _source(config)
    found = inspection.inspect(name, source, mesh=config.mesh, name=called)
    return lambda: print(json.dumps(dataclasses.asdict(found)) if config.json else inspection.table(found))


def command_list(arguments: list[str]) -> Task:
    """The catalogue as a table: name, form, state, paper."""
    cards = catalogue.cards(parse(ListConfig, arguments).form)
    rows = [
        (c.public_name, c.form, f"{c.words:g}", c.collectives, c.maturity, f"{c.paper.authors} {c.paper.year}")
        for c in sorted(cards.values(), key=lambda card: (catalogue.FORMS.index(card.form), card.name))
    ]
    return lambda: print(aligned(("name", "form", "words", "collectives", "maturity", "paper"), rows))


def _races(card: catalogue.Card) -> list[tuple[str, str]]:
    """How a method races, under each of its names."""
    rows = []
    for name, race in {card.name: card.race, **card.variants}.items():
        if race is not None:
            schedule = "warm-up and cosine" if race.schedule else "constant"
            said = [f"{k}={v!r}" if isinstance(v, int | float | str) else k for k, v in race.arguments.items()]
            reach = f"rates around {race.rate:g}, {10**race.decades:g} times less to more"
            rows.append(("race", "; ".join([f"{name}: {reach}", schedule, *said])))
    return rows


def command_show(arguments: list[str]) -> Task:
    """Everything about one method: paper, equations, needs, cost, evidence."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise ValueError("show takes one argument, the name of a method: gradkit show lion")
    card = methods.card_of(arguments[0])
    facts = [
        ("name", card.public_name),
        ("form", card.form),
        ("paper", str(card.paper)),
        ("file", card.file),
        *[("needs", f"{name}: {EXTRAS[name].meaning}") for name in card.needs],
        *([] if card.needs else [("needs", "nothing beyond gradients and parameters")]),
        ("state", f"{card.words:g} float32 words per parameter"),
        ("collectives", card.collectives),
        ("golden", ", ".join(card.golden) or "none"),
        ("paper check", card.paper_check),
        ("maturity", card.maturity),
        *_races(card),
        *[("opts out of", f"{check}: {reason}") for check, reason in card.opt_outs.items()],
        *([("note", card.notes)] if card.notes else []),
    ]
    text = "\n".join(f"{name:<12} {value}" for name, value in facts)
    equations = inspect.getdoc(inspect.getmodule(card.function)) or ""
    return lambda: print(f"{text}\n\n{equations}\n\n{card.name}\n\n{inspect.getdoc(card.function)}")


COMMANDS: dict[str, tuple[Callable[[list[str]], Task], type | None]] = {
    "race": (command_race, RaceConfig),
    "train": (command_train, TrainConfig),
    "describe": (command_describe, DescribeConfig),
    "inspect": (command_inspect, InspectConfig),
    "list": (command_list, ListConfig),
    "show": (command_show, None),
}


NAMED = "  NAME  a method, as `gradkit list` names it"


def main(argv: list[str] | None = None) -> int:
    """Runs a command line.

    Args:
      argv: program name and arguments. Default `sys.argv`.

    Returns:
      The exit status: 0; 2 where the command line is refused and 1 where the system fails it (a full disk, a lost
      process), each with one line on standard error; 130 where it is interrupted.

    Example:
      >>> main(["gradkit", "list", "--form=wrapper"])  # doctest: +ELLIPSIS
      name ...
      0
    """
    name, *arguments = (sys.argv if argv is None else argv)[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(_help())
        return 0
    try:
        if name not in COMMANDS:
            offer = checks.nearest(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
            raise ValueError(f"no command is called {name!r}{offer}")
        command, config = COMMANDS[name]
        if any(argument in ("--help", "-help", "-h") for argument in arguments):
            flags_text = "\n".join(
                [*([NAMED] if name in ("show", "inspect") else []), *([usage(config)] if config else [])]
            )
            print(f"gradkit {name}: {_first_line(command)}\n\n{flags_text}")
            return 0
        task = command(arguments)
    except (flags.Error, ValueError, OSError, ImportError) as error:
        print(f"gradkit: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    try:
        task()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("gradkit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has seen enough; Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, FloatingPointError) as error:
        # A disk that is full, a checkpoint that cannot be read, a process that is lost; a run that diverged.
        print(f"gradkit: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _first_line(function: Any) -> str:
    return (inspect.getdoc(function) or "").split("\n", 1)[0]


def _help() -> str:
    commands = [f"  {name:<10} {_first_line(command)}" for name, (command, _) in COMMANDS.items()]
    more = "`gradkit COMMAND --help` shows the flags of a command."
    return "\n".join(["usage: gradkit COMMAND [--flag=value …]", "", *commands, "", more])
