"""The `gradkit` command: race, train, describe, inspect, list, workloads, show.

Every subcommand is a function of its arguments that reads and checks them, and returns what is to be done. So
whatever is wrong with a command line is said in one line before anything is computed or written, and
whatever fails after that is a defect and shows its traceback.
"""

import collections
import contextlib
import dataclasses
import importlib.metadata
import inspect
import itertools
import json
import math
import os
import pathlib
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from jax import eval_shape, random

import gradkit  # noqa: F401 - registers every method
from gradkit import catalogue, checks, interrupts, leaves
from gradkit.catalogue import Card
from gradkit.parallel.mesh import check_used_axes, parse_axes
from gradkit.training import chains, cooldown, inspection, logs, methods, processes, programs, report, strategies, trees
from gradkit.training import curvature as spectrum
from gradkit.training.flags import definitions, parse, refuse_flags, usage
from gradkit.training.race import Race
from gradkit.training.race import prepare as prepare_race
from gradkit.training.report import listing, shown, suite
from gradkit.training.report.charts import number, reading
from gradkit.training.report.curve import drawing
from gradkit.training.settings import (
    DEFAULT_METHOD,
    CurvatureConfig,
    DescribeConfig,
    InspectConfig,
    ListConfig,
    RaceConfig,
    ShowConfig,
    TrainConfig,
)
from gradkit.training.train import Started, go_on, start
from gradkit.workloads import Workload, available, from_folder, load, model_shapes, models

Task = Callable[[], None]


def command_race(arguments: list[str]) -> Task:
    """Several methods on a real problem, each tuned: who reaches the target first, and a report."""
    config = parse(RaceConfig, arguments)
    report.check_libraries()
    if config.suite is not None:
        return suite.task(config)
    problems = prepare_race(config)
    folder, run = report.into_folder(config, problems, shlex.join(["gradkit", "race", *arguments]))

    def say(result: Race) -> None:
        print()
        report.show(result)

    def task() -> None:
        for problem in problems:
            print(f"{problem.description}; {_target(problem)}", flush=True)
        result = run(say)
        for workload in result.workloads:
            print(f"{workload}: {report.verdict(result.of(workload))}")
        print(f"report: {folder / 'report.html'}   picture: {folder / 'curves.png'}")

    return task


def command_train(arguments: list[str]) -> Task:
    """One method or chain on one problem, on one device or a mesh: checkpoints, live progress, metrics."""
    config = parse(TrainConfig, arguments)
    if config.tensorboard is not None:
        logs.check_libraries()
    config = cooldown.settled(config)
    _, metrics_file, _ = cooldown.paths(config)
    file = None
    if metrics_file is not None:
        file = (logs.new_file if config.checkpoint_dir is None else logs.writable)(metrics_file)
    if config.devices is not None:
        processes.virtual_devices(config.devices)
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.of_run(config, cooldown.paths(config)[0]))
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
    print(f"{strategies.described(config)} on {problem.description}{where}; {_target(problem)}")
    began = 0
    if started.report is not None:
        began = started.report.step
        print(f"going on from the checkpoint of step {began} in {started.source}", flush=True)
        for line in started.changed:
            print(line, flush=True)
        before = started.report.about.get("replicas")
        if before != config.replicas:
            print(f"{config.replicas} replicas begin at the mean of the {before} that were saved", flush=True)
        if config.cooldown is not None and started.checkpoints is not None:
            print(f"cooling down to step {started.plan.steps}, checkpoints in {started.checkpoints.folder}", flush=True)
        if started.set_aside:
            print(f"later checkpoints are kept as {', '.join(path.name for path in started.set_aside)}", flush=True)
        if config.transplant:
            print(started.report, flush=True)
    record, reached = None, None
    with (
        report.ticker(started.plan.steps, problem.metric_name) as tick,
        logs.writer(file, cooldown.paths(config)[2], began) as write,
    ):
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
    source, _ = trees.parameters(config.workload, config.model, config.params, config.data)
    params = eval_shape(source.init, random.key(0)) if isinstance(source, Workload) else source
    layout = leaves.infer_layout(params)
    return lambda: print(leaves.describe(tx, params, layout=layout))


def command_inspect(arguments: list[str]) -> Task:
    """What one step of a method costs on a mesh, from the compiled program; --curvature: the Hessian of a loss."""
    if any(argument.lstrip("-").partition("=")[0] == "curvature" for argument in arguments):
        refuse_flags(
            arguments, InspectConfig, CurvatureConfig, "is of a compiled step and does not go with --curvature"
        )
        return _curvature(arguments)
    if not arguments or arguments[0].startswith("-"):
        raise ValueError("inspect takes the name of a method first: gradkit inspect lamb --mesh=fsdp=8")
    name, *rest = arguments
    refuse_flags(rest, CurvatureConfig, InspectConfig, "is of the Hessian of a loss: add --curvature")
    config = parse(InspectConfig, rest)
    programs.subject(name)
    check_used_axes(config.mesh, own=name.partition(":")[0].endswith(".py"))
    count = math.prod(parse_axes(config.mesh).values())
    if count < 1:
        raise ValueError(f"mesh must give every length, since its devices are imagined, got {config.mesh!r}")
    try:
        processes.virtual_devices(count)
    except ValueError:
        # JAX runs already, as in a notebook: its devices must do.
        if jax.device_count() < count:
            raise
    source, called = trees.parameters(config.workload, config.model, config.params, config.data)
    found = inspection.inspect(name, source, mesh=config.mesh, name=called)
    return lambda: print(json.dumps(dataclasses.asdict(found)) if config.json else inspection.table(found))


def _curvature(arguments: list[str]) -> Task:
    named = bool(arguments) and not arguments[0].startswith("-")
    config = parse(CurvatureConfig, arguments[1:] if named else arguments)
    if not config.curvature:
        raise ValueError("curvature must be left out, or on: without it, gradkit inspect NAME compiles a step")
    method = methods.find(arguments[0] if named else DEFAULT_METHOD)
    spectrum.check_png(config.png)
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name in ("curvature", "workload", "data", "png", "json"):
        own.pop(name)
    problem = load(config.workload) if config.data is None else from_folder(config.data)

    def task() -> None:
        found = spectrum.curvature(problem, method=method, **own)
        print(spectrum.show(found, config.png, json.dumps if config.json else None))

    return task


def command_list(arguments: list[str]) -> Task:
    """The catalogue: every method with a description; --search, --form, --paper."""
    config = parse(ListConfig, arguments)
    cards = list(catalogue.cards(config.form).values())
    if config.paper is not None:
        own = shown.by_paper(config.paper)
        cards = [card for card in cards if card.name in own]
        if not cards:
            forms = " or ".join(sorted({card.form for card in own.values()}))
            raise ValueError(f"form={config.form!r} is of no method of these papers; write --form={forms}, or none")
    if config.search is not None:
        cards = listing.search(cards, config.search)
    width = None if config.wide else _columns()
    return lambda: print(listing.facts(cards) if config.long else listing.methods(cards, width))


def _columns() -> int:
    """How wide a line may be: of a terminal its width, elsewhere 80."""
    return max(40, shutil.get_terminal_size((listing.WIDTH, 24)).columns) if sys.stdout.isatty() else listing.WIDTH


def command_workloads(arguments: list[str]) -> Task:
    """The problems that ship with the package, with their targets; and the models whose shapes it knows."""
    if arguments:
        raise ValueError(f"workloads takes no arguments, got {arguments[0]!r}")
    problems: list[tuple[str, Workload | str]] = []
    for name in available():
        try:
            problems.append((name, load(name)))
        except ImportError as error:
            problems.append((name, str(error)))
    sizes = [(name, sum(math.prod(x.shape) for x in jax.tree.leaves(model_shapes(name)))) for name in models()]
    return lambda: print(listing.workloads(problems, sizes, _columns()))


def command_show(arguments: list[str]) -> Task:
    """Everything about one method: paper, equations, needs, cost, evidence, curve. Of a paper: its methods."""
    if not arguments or arguments[0].startswith("-"):
        raise ValueError("show takes the name of a method first, or words of a paper: gradkit show lion")
    # The words of a title need no quotes around them.
    words = list(itertools.takewhile(lambda argument: not argument.startswith("-"), arguments))
    name = " ".join(words)
    config, found = parse(ShowConfig, arguments[len(words) :]), shown.look_up(name)
    if not isinstance(found, Card):
        given = [flag for flag, value in dataclasses.asdict(config).items() if value is not None]
        if given:
            raise ValueError(
                f"{given[0]} must be left out: {name!r} is no schedule but a paper; name one of its methods"
            )
        width = _columns()
        said = shown.reasons(found, width) if isinstance(found, dict) else listing.papers(found, width)
        return lambda: print(said)
    draw = drawing(found, **dataclasses.asdict(config), width=min(_columns(), 100))
    facts, text = definitions(shown.facts(found), _columns()), shown.text(found, _columns())
    return lambda: print("\n\n".join([facts, *([draw()] if draw else []), text]))


COMMANDS: dict[str, tuple[Callable[[list[str]], Task], type | None]] = {
    "race": (command_race, RaceConfig),
    "train": (command_train, TrainConfig),
    "describe": (command_describe, DescribeConfig),
    "inspect": (command_inspect, InspectConfig),
    "list": (command_list, ListConfig),
    "workloads": (command_workloads, None),
    "show": (command_show, ShowConfig),
}


NAMED = {
    "inspect": "a method, as `gradkit list` names it, or FILE.py that defines `chain`; it is executed",
    "show": "a method, as `gradkit list` names it; or a paper: words of its title, its authors, its arXiv id",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command line.

    Args:
      argv: program name and arguments. Default `sys.argv`.

    Returns:
      The exit status: 0; 2 where the command line is refused and 1 where the system fails it (a full disk, a lost
      process), each with one line on standard error; 130 where it is interrupted.

    Example:
      >>> main(["gradkit", "list", "--form=optimizer", "--paper=1904.00962"])  # doctest: +ELLIPSIS
      optimizer (3)
        gk.lamb ...
        gk.lambc ...
        gk.nlamb ...
      0
    """
    name, *arguments = (sys.argv if argv is None else argv)[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(_help())
        return 0
    if name in ("--version", "-V"):
        print(_version())
        return 0
    try:
        if name not in COMMANDS:
            offer = checks.nearest(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
            raise ValueError(f"no command is called {name!r}{offer}")
        if any(argument in ("--help", "-help", "-h") for argument in arguments):
            print(_help_of(name))
            return 0
        task = COMMANDS[name][0](arguments)
    except (flags.Error, ValueError, OSError, ImportError) as error:
        print(f"gradkit: {' '.join(str(error).split())}", file=sys.stderr)
        return processes.ended(2)
    except Exception as error:
        return processes.ended(_blamed(error, arguments, 2))
    try:
        task()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(interrupts.line(), file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has seen enough; Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, FloatingPointError) as error:
        # A disk that is full, a checkpoint that cannot be read, a process that is lost; a run that diverged.
        print(f"gradkit: {' '.join(str(error).split())}", file=sys.stderr)
        return processes.ended(1)
    except Exception as error:
        return processes.ended(_blamed(error, arguments, 1))
    return 0


def _blamed(error: Exception, arguments: list[str], status: int) -> int:
    """Says in one line which line of a file among the arguments an error came through; other errors are defects."""
    files = [part for argument in arguments for part in argument.rpartition("=")[2].split(",")]
    said = [chains.blame(error, file) for file in files if file.partition(":")[0].endswith(".py")]
    text = str(error) if isinstance(error, chains.FileError) else next(filter(None, said), None)
    if text is None:
        raise error
    print(f"gradkit: {text}", file=sys.stderr)
    return status


def _first_line(function: Any) -> str:
    return (inspect.getdoc(function) or "").split("\n", 1)[0]


def _version() -> str:
    """The versions of gradkit and of what it stands on."""
    beneath = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "optax", "flax"))
    return f"gradkit {importlib.metadata.version('gradkit')} ({beneath})"


def _help() -> str:
    commands = definitions([(name, _first_line(command)) for name, (command, _) in COMMANDS.items()], _columns())
    more = "`gradkit COMMAND --help` shows the flags of a command, `gradkit --version` what is installed."
    return "\n\n".join(["usage: gradkit COMMAND [--flag=value …]", commands, textwrap.fill(more, _columns())])


def _help_of(name: str) -> str:
    """What a command does, and its flags."""
    command, config = COMMANDS[name]
    rows = [*([("NAME", NAMED[name])] if name in NAMED else []), *(usage(config) if config else [])]
    usual = " ".join(
        [f"usage: gradkit {name}", *(["NAME"] if name in NAMED else []), *(["[--flag=value …]"] if config else [])]
    )
    parts = [usual, textwrap.fill(_first_line(command), _columns()), definitions(rows, _columns())]
    if name == "inspect":
        parts += ["with --curvature:", definitions(usage(CurvatureConfig), _columns())]
    return "\n\n".join(parts).rstrip()
