"""What a race and a training run are told: frozen dataclasses, used by notebooks and turned into flags."""

import dataclasses
from typing import Any

from gradkit import catalogue, checks
from gradkit.parallel import mesh
from gradkit.training import chains, cooldown, methods, strategies
from gradkit.training.methods import Method
from gradkit.training.setting_checks import check_data, check_parameters, check_texts, check_workload
from gradkit.workloads import Workload, from_folder, load, models, registry

DEFAULT_METHOD = "adamw"
# Of a suite: the trials of a method on a workload, and what is no setting of it.
TRIALS = 5
FIXED = frozenset(
    ("workloads", "problem", "data", "target", "aggregator", "rates", "decades", "steps", "eval_every", "extensions")
)
DATA = "instead: a FOLDER of your own texts, or of images and labels (.npz, .npy)"
TARGET = "metric at which a run on --data has arrived; default: 0.6 of the best constant prediction's"


def setting(default: Any, help: str) -> Any:
    """A field with a default and the line that `--help` shows."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class RaceConfig:
    """A race: which methods on which problems, and how much tuning each gets.

    Workloads may be names or `Workload`s, methods anything that `gradkit.training.methods.find` knows.

    Raises:
      ValueError: an unknown workload or method (the nearest names are offered), or a number out of range.

    Example:
      >>> RaceConfig(methods=("adamw", "lion"), rates=8).seeds
      5
    """

    workloads: tuple[str, ...] = setting(("digits_mlp",), "problems to race on")
    methods: tuple[str, ...] = setting(
        ("nesterov", "adamw", "lion", "lars", "lamb", "novograd"), "methods that race; optax.NAME is optax's own"
    )
    chain: tuple[str, ...] = setting((), "chains that race as well: FILE.py that defines `chain`; it is executed")
    problem: tuple[str, ...] = setting((), "instead of workloads: FILE.py that defines `problem`; it is executed")
    data: str | None = setting(None, DATA)
    target: float | None = setting(None, TARGET)
    suite: str | None = setting(None, f"instead: a suite of workloads with fixed rules: {', '.join(registry.SUITES)}")
    budget: int | None = setting(None, f"learning rates per method and workload of --suite; default: {TRIALS}")
    aggregator: tuple[str, ...] = setting(
        (), "ways to aggregate the gradients of tasks, like sum,upgrad: every method races behind each; sum is none"
    )
    rates: int = setting(6, "learning rates per method, log-spaced around its centre")
    decades: float | None = setting(None, "decades the rates reach to each side of it; default: the card's, mostly 1")
    seeds: int = setting(5, "seeds per learning rate")
    steps: int | None = setting(None, "steps per run; default: the workload's budget")
    eval_every: int | None = setting(None, "steps between evaluations; default: the workload's")
    extensions: int = setting(2, "how often two rates may be added where the best is at the edge")
    timing_rounds: int = setting(5, "interleaved rounds in which seconds per step are measured")
    out: str | None = setting(
        None, "folder for the report; default: a fresh numbered one under race/; of --suite: suite/NAME, which goes on"
    )
    overwrite: bool = setting(False, "replace the report of an earlier race in --out")
    contestants: tuple[Method, ...] = dataclasses.field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("workloads", "methods", "chain", "problem", "aggregator"):
            if not isinstance(getattr(self, name), list | tuple):
                raise ValueError(f"{name} must be a tuple, such as ('one', 'other'), got {getattr(self, name)!r}")
        checks.texts(chain=self.chain, problem=self.problem, aggregator=self.aggregator)
        checks.switch(overwrite=self.overwrite)
        check_texts(self, ("out",), paths=True)
        for name in self.workloads:
            check_workload("workloads", name)
            if isinstance(name, str):
                registry.check_name(name)
        # What races is looked up once: the file of a chain is executed once.
        found = tuple(methods.find(method) for method in (*self.methods, *self.chain))
        if self.aggregator:
            pairs = [(name, method) for name in self.aggregator for method in found]
            found = tuple(m if name == "sum" else methods.aggregated(name, m) for name, m in pairs)
        object.__setattr__(self, "contestants", found)
        workloads = [name if isinstance(name, str) else name.name for name in self.workloads]
        for field, values in (("workloads", workloads), ("methods", self.method_names)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{field} must be one name or more, each once, got {','.join(values)!r}")
        check_data(self)
        if self.data is not None and self.problem:
            raise ValueError("data and problem exclude each other: give one of them")
        self._check_suite()
        checks.integer("rates", self.rates, 2)
        checks.real("decades", self.decades, "(0, 6]", optional=True)
        checks.integer("seeds", self.seeds, 1)
        checks.integer("steps", self.steps, 1, optional=True)
        checks.integer("eval_every", self.eval_every, 1, optional=True)
        checks.integer("extensions", self.extensions, 0)
        checks.integer("timing_rounds", self.timing_rounds, 1)

    def _check_suite(self) -> None:
        """Refuses what the rules of a suite fix, and a budget of none."""
        checks.integer("budget", self.budget, 1, optional=True)
        if self.suite is None:
            if self.budget is not None:
                raise ValueError("budget must be left out without suite: write --suite=six, or --rates for a race")
            return
        checks.choice("suite", self.suite, list(registry.SUITES))
        for field in dataclasses.fields(self):
            if field.name in FIXED and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name} must be left out with suite={self.suite}, whose rules fix it: give methods, chain, "
                    "budget and seeds"
                )

    @property
    def trials(self) -> int:
        """Learning rates per method and workload of a suite."""
        return TRIALS if self.budget is None else self.budget

    @property
    def method_names(self) -> tuple[str, ...]:
        """The names of all that races."""
        return tuple(method.name for method in self.contestants)

    def problems(self) -> tuple[Workload, ...]:
        """The problems, loaded: the workloads, what the files of `problem` define, or that of the folder `data`.

        Raises:
          ValueError: a file that fails, or defines something else; two problems of one name; a folder without data.
          ImportError: a workload needs the extra `gradkit[race]`.
        """
        if self.data is not None:
            return (from_folder(self.data, target=self.target),)
        if not self.problem:
            return tuple(load(name) if isinstance(name, str) else name for name in self.workloads)
        found = tuple(chains.problem_from_file(where) for where in self.problem)
        if len({each.name for each in found}) != len(found):
            raise ValueError(f"problem must be files whose problems have different names, got {self.problem}")
        return found


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run: one workload, one method or chain, one seed, on one device or a mesh.

    The workload may be a name or a `Workload`, as `gk.workloads.problem` makes it, at its own batch size.

    Raises:
      ValueError: an unknown workload or method, a number out of range, or settings that exclude each other.

    Example:
      >>> TrainConfig(method="lion").workload
      'digits_mlp'
    """

    workload: str = setting("digits_mlp", "the problem")
    data: str | None = setting(None, DATA)
    target: float | None = setting(None, TARGET)
    method: str | None = setting(None, "the method, as `gradkit list` names it; default: adamw")
    chain: str | None = setting(
        None, "instead: FILE.py that defines `chain`, a transformation or a function of a rate; it is executed"
    )
    aggregator: str | None = setting(None, "how the gradients of tasks are aggregated, like upgrad; default: their sum")
    learning_rate: float | None = setting(None, "peak learning rate; default: the centre of the method's grid")
    schedule: str | None = setting(
        None, f"of the learning rate: {', '.join(methods.SHAPES)}; wsd stays at its peak; default: the method's"
    )
    steps: int | None = setting(None, "steps; default: the workload's budget")
    eval_every: int | None = setting(None, "steps between evaluations; default: the workload's")
    seed: int = setting(0, "seed of the first parameters and of the minibatches")
    global_batch: int | None = setting(None, "examples per step, over all devices; default: the workload's")
    microbatch: int | None = setting(None, "examples that are computed at a time; divides the batch; default: all")
    max_batch: int | None = setting(None, "the batch may double up to this, as the norm test asks; needs microbatch")
    norm_test_eta: float = setting(0.1, "relative error of the gradient above which the norm test doubles the batch")
    mesh: str | None = setting(
        None, "axes, like data=4,fsdp=2; default: one device, or with --devices data, after replica"
    )
    devices: int | None = setting(None, "virtual CPU devices of this process, to try out a mesh")
    replicas: int | None = setting(
        None, "copies that train apart on minibatches of their own, --global_batch in equal parts; default: none"
    )
    sync: str | None = setting(
        None, "how they meet: local, diloco, or another strategy by its name; default: gradients, in every step"
    )
    sync_every: int | None = setting(None, "steps of a round of --sync; default: the strategy's")
    exchange: str | None = setting(
        None,
        f"what they send: {', '.join(strategies.EXCHANGES)}; with a memory of what is not sent; default: mean",
    )
    outer_learning_rate: float | None = setting(
        None, f"of the step between rounds, >= 0, of {strategies.takers('outer_learning_rate')}; default: 0.7"
    )
    outer_momentum: float | None = setting(
        None, f"of the same step, from 0 to 1, of {strategies.takers('outer_momentum')}; default: 0.9"
    )
    fragments: int | None = setting(
        None,
        f"parts that leaves are dealt out to and that meet in turn, of {strategies.takers('fragments')}; default: 1",
    )
    delay: int | None = setting(
        None, f"steps an exchange may take, below sync_every / fragments, of {strategies.takers('delay')}; default: 0"
    )
    mixing: float | None = setting(
        None, f"share that a replica keeps of its own, from 0 to 1, of {strategies.takers('mixing')}; default: 0"
    )
    checkpoint_dir: str | None = setting(None, "folder of checkpoints; a run that finds some goes on from the last")
    checkpoint_every: int | None = setting(None, "steps between checkpoints, evaluations divide it; default: every one")
    restore_step: int | None = setting(None, "go on from this checkpoint; later ones are set aside; default: the last")
    cooldown: str | None = setting(
        None,
        "STEPS or START:STEPS: from the last checkpoint of a wsd training, or an earlier one, decay to 0; "
        f"{cooldown.FORM}: by a shape ({', '.join(cooldown.CURVES)}) to a fraction of the peak",
    )
    keep: int = setting(3, "how many checkpoints are kept")
    transplant: bool = setting(False, "take over from the checkpoint of another chain what matches")
    metrics_file: str | None = setting(None, "a new file for metrics, one JSON object per evaluation")
    tensorboard: str | None = setting(None, "folder for the same metrics as TensorBoard events")
    coordinator: str | None = setting(None, "host:port of process 0, or auto; joins several processes into one run")
    num_processes: int | None = setting(None, "how many processes")
    process_id: int | None = setting(None, "which of them this is, from 0")
    heartbeat: int = setting(60, "seconds after which a silent process counts as lost")

    def __post_init__(self) -> None:
        check_workload("workload", self.workload)
        check_texts(self, ("chain", "aggregator", "schedule", "mesh", "sync", "exchange", "cooldown", "coordinator"))
        check_texts(self, ("checkpoint_dir", "metrics_file", "tensorboard"), paths=True)
        checks.switch(transplant=self.transplant)
        check_data(self)
        if isinstance(self.workload, str):
            registry.check_name(self.workload)
        elif self.data is not None:
            raise ValueError("data must be left out with a Workload of your own: give one of them")
        elif self.global_batch is not None or self.max_batch is not None:
            raise ValueError(
                "global_batch and max_batch must be left out with a Workload of your own: it has its batches"
            )
        if self.method is not None and self.chain is not None:
            raise ValueError("method and chain exclude each other: give one of them")
        methods.find(self.method or DEFAULT_METHOD)
        if self.aggregator is not None:
            methods.find_aggregator(self.aggregator)
            if self.max_batch is not None or self.microbatch is not None:
                raise ValueError("aggregator must be left out with microbatch: the gradients of tasks are of a batch")
        for name in ("global_batch", "microbatch", "devices", "checkpoint_every", "num_processes"):
            checks.integer(name, getattr(self, name), 1, optional=True)
        for name in ("keep", "heartbeat"):
            checks.integer(name, getattr(self, name), 1)
        checks.integer("process_id", self.process_id, 0, optional=True)
        checks.integer("max_batch", self.max_batch, 1, optional=True)
        checks.real("norm_test_eta", self.norm_test_eta, "(0, inf)")
        if self.max_batch is not None and self.microbatch is None:
            raise ValueError("max_batch needs microbatch: the norm test compares microbatches")
        if self.mesh is not None:
            mesh.check_used_axes(self.mesh, own=self.chain is not None or not isinstance(self.workload, str))
        strategies.check(self)
        checks.integer("restore_step", self.restore_step, 0, optional=True)
        if self.schedule is not None:
            checks.choice("schedule", self.schedule, list(methods.SHAPES))
        if self.cooldown is not None:
            if cooldown.read(self.cooldown).start is None and self.coordinator is not None:
                raise ValueError(
                    f"cooldown must be START:STEPS with coordinator, got {self.cooldown!r}: each process could see "
                    "another last checkpoint"
                )
            if self.schedule != "wsd" or self.restore_step is not None:
                raise ValueError(
                    "cooldown needs the flags of the training that it branches from, with schedule='wsd', and no "
                    "restore_step: it says itself where it starts"
                )
        for name in ("checkpoint_every", "restore_step", "transplant", "cooldown"):
            if getattr(self, name) not in (None, False) and self.checkpoint_dir is None:
                raise ValueError(f"{name} says what to do with checkpoints: give checkpoint_dir as well")
        for name in ("num_processes", "process_id"):
            given, wanted = getattr(self, name) is not None, self.coordinator not in (None, "auto")
            if given and self.coordinator is None:
                raise ValueError(f"{name} is of several processes: give coordinator as well")
            if wanted and not given:
                raise ValueError(f"{name} must be given with coordinator, unless that is auto")
        if self.coordinator not in (None, "auto"):
            host, _, port = str(self.coordinator).rpartition(":")
            if not host or not port.isdecimal():
                raise ValueError(
                    "coordinator must be host:port of process 0, such as 10.0.0.1:1234, or auto, got "
                    f"{self.coordinator!r}"
                )
        if self.num_processes is not None and self.process_id is not None and self.process_id >= self.num_processes:
            raise ValueError(f"process_id must be below num_processes={self.num_processes}, got {self.process_id}")
        checks.real("learning_rate", self.learning_rate, "(0, inf)", optional=True)
        checks.integer("steps", self.steps, 1, optional=True)
        checks.integer("eval_every", self.eval_every, 1, optional=True)
        checks.integer("seed", self.seed, 0)

    def problem(self, batch_size: int | None) -> Workload:
        """The problem, loaded: that of the folder `data`, or the workload.

        Args:
          batch_size: examples per minibatch; None for the problem's own. A `Workload` has its own.

        Raises:
          ValueError: a batch size for a workload without batches; a folder without data.
        """
        if self.data is not None:
            return from_folder(self.data, target=self.target, batch_size=batch_size)
        return load(self.workload, batch_size=batch_size) if isinstance(self.workload, str) else self.workload


MODEL = f"instead: the parameters of a real model, as shapes: {', '.join(models())}"
PARAMS = "instead: FILE.json of names and shapes, or FILE.py that defines `params`; it is executed"


@dataclasses.dataclass(frozen=True)
class ListConfig:
    """Which cards of the catalogue are listed."""

    form: str | None = setting(None, f"only methods of one form: {', '.join(catalogue.FORMS)}")
    search: str | None = setting(None, "only methods with these words in their name, description or paper")
    paper: str | None = setting(
        None, "only methods of papers with this title, author, year or arXiv id; words of it do"
    )
    wide: bool = setting(False, "one line per method, as wide as its description is, for grep and wide terminals")
    long: bool = setting(False, "state, collectives, evidence and paper instead of a description, as wide as it is")

    def __post_init__(self) -> None:
        if self.form is not None:
            checks.choice("form", self.form, catalogue.FORMS)
        if self.wide and self.long:
            raise ValueError("wide must be left out with --long, which shows no descriptions and is as wide as it is")


@dataclasses.dataclass(frozen=True)
class ShowConfig:
    """How the curve of a schedule is drawn."""

    arguments: str | None = setting(
        None, "of a schedule that is drawn, as in a call: peak_value=0.1,shape='linear'; default: an example"
    )
    steps: int | None = setting(None, "how many steps of a schedule are drawn; default: its length")
    png: str | None = setting(None, "a file for the curve as a picture as well: .png, .svg or .pdf")

    def __post_init__(self) -> None:
        checks.integer("steps", self.steps, 1, optional=True)


@dataclasses.dataclass(frozen=True)
class DescribeConfig:
    """Which method is described, on which parameters."""

    workload: str | None = setting(None, "the problem whose parameters are shown; default: digits_mlp")
    data: str | None = setting(None, DATA)
    model: str | None = setting(None, MODEL)
    params: str | None = setting(None, PARAMS)
    method: str = setting("adamw", "the method, or FILE.py that defines `chain`; it is executed")
    learning_rate: float | None = setting(None, "learning rate; default: the centre of the method's grid")

    def __post_init__(self) -> None:
        check_parameters(self)
        methods.find(self.method)
        checks.real("learning_rate", self.learning_rate, "(0, inf)", optional=True)


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """On which mesh a method is inspected, and with which parameters."""

    mesh: str = setting("fsdp=8", "axes, like data=4,fsdp=2; their devices are imagined")
    workload: str | None = setting(None, "the problem whose parameters and loss are taken; default: digits_mlp")
    data: str | None = setting(None, DATA)
    model: str | None = setting(None, MODEL)
    params: str | None = setting(None, PARAMS)
    json: bool = setting(False, "print one JSON object instead of a table")

    def __post_init__(self) -> None:
        check_parameters(self)
        mesh.parse_axes(self.mesh)


@dataclasses.dataclass(frozen=True)
class CurvatureConfig:
    """Where and how the Hessian of a workload's loss is measured."""

    curvature: bool = setting(True, "measure sharpness, trace and density of the Hessian; the NAME may be left out")
    workload: str = setting("digits_mlp", "the problem whose loss is measured")
    data: str | None = setting(None, DATA)
    train_steps: int = setting(0, "steps that the method NAME (default: adamw) trains before")
    minibatches: int = setting(2, "over how many fixed minibatches the loss is a mean")
    lanczos_steps: int = setting(50, "products with the Hessian per random vector")
    probes: int = setting(1, "random vectors of the density")
    trace_probes: int = setting(20, "random vectors of the trace")
    top: int = setting(10, "eigenvectors that the gradient is compared with")
    seed: int = setting(0, "of parameters, minibatches and random vectors")
    png: str | None = setting(None, "a file for the density as a picture: .png, .svg or .pdf")
    json: bool = setting(False, "print one JSON object instead of a table")

    def __post_init__(self) -> None:
        registry.check_name(self.workload)
        checks.integer("train_steps", self.train_steps, 0)
        checks.integer("seed", self.seed, 0)
        for name in ("minibatches", "lanczos_steps", "probes", "trace_probes", "top"):
            checks.integer(name, getattr(self, name), 1)
