"""One training run, evaluation by evaluation: on one device or a mesh, from the start or from a checkpoint."""

import contextlib
import functools
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gradkit import interrupts
from gradkit.diagnostics import metrics
from gradkit.parallel import batch_sharding, make_mesh, param_shardings, state_shardings
from gradkit.parallel.mesh import BATCH_AXES, parse_axes
from gradkit.training import chains, cooldown, held, methods, origin, run, strategies
from gradkit.training.checkpoints import Checkpoints, Report
from gradkit.training.growth import allowed_sizes, growing_batch
from gradkit.training.settings import DEFAULT_METHOD, TrainConfig
from gradkit.training.sweep import check_steps
from gradkit.workloads import Workload


class Plan(NamedTuple):
    """A run before anything is computed.

    Attributes:
      problem: the workload, at the batch size that was asked for.
      tx: the transformation that trains.
      steps: how many.
      eval_every: steps between evaluations.
      checkpoint_every: steps between checkpoints.
      microbatches: parts of a minibatch that are computed one after another.
      needs: what the chain must be told of the parts of a minibatch.
      sizes: numbers of microbatches that the batch may have; where there are several, it grows.
    """

    problem: Workload
    tx: optax.GradientTransformation
    steps: int
    eval_every: int
    checkpoint_every: int
    microbatches: int
    needs: tuple[str, ...]
    sizes: tuple[int, ...]


def prepare(config: TrainConfig) -> Plan:
    """Loads the workload and the chain, and checks everything that can be checked before devices are known."""
    size = config.global_batch
    problem = config.problem(size if size is None else size // (config.replicas or 1))
    planned, every = config.steps or problem.budget_steps, config.eval_every or problem.eval_every
    shape, steps = _shape(config, planned)
    check_steps(steps, every)
    checkpoint_every = config.checkpoint_every or every
    if checkpoint_every % every:
        raise ValueError(f"checkpoint_every must be a multiple of eval_every={every}, got {checkpoint_every}")
    microbatches = 1
    if config.microbatch is not None:
        if problem.batch_size is None or problem.batch_size % config.microbatch:
            raise ValueError(f"microbatch must divide the batch size, {problem.batch_size}, got {config.microbatch}")
        microbatches = problem.batch_size // config.microbatch
    if strategies.is_method(config.sync):
        tx = strategies.own_method(config, planned, shape)
    elif config.chain is None:
        method = methods.find(config.method or DEFAULT_METHOD)
        tx = method.scheduled(method.centre if config.learning_rate is None else config.learning_rate, planned, shape)
    else:
        if shape is not None and config.learning_rate is None:
            raise ValueError("schedule must be given with learning_rate, where the chain is a function of it")
        shape = shape or methods.SHAPES["warmup_cosine"]
        rate = None if config.learning_rate is None else shape(config.learning_rate, planned)
        tx = chains.build(config.chain, rate)
    if config.aggregator is not None:
        card = methods.find_aggregator(config.aggregator)
        # On a workload of one task `check_source` says what is missing.
        tasks = card.tasks.nearest(1) if problem.losses is None else problem.num_tasks
        tx = optax.chain(methods.make_aggregator(card, tasks), tx)
    if config.replicas is not None and not strategies.is_method(config.sync):
        tx = strategies.around(config, tx)
    run.check_source(problem, tx)
    needs: tuple[str, ...] = ()
    sizes = (microbatches,)
    if config.max_batch is not None:
        assert problem.batch_size is not None and config.microbatch is not None
        sizes = allowed_sizes(problem.batch_size, config.microbatch, config.max_batch)
        # One test per evaluation: that is where another program can go on.
        link = growing_batch(sizes, examples=config.microbatch, eta=config.norm_test_eta, test_interval=every)
        tx, needs = optax.chain(link, tx), ("grad_moments",)
    return Plan(problem, tx, steps, every, checkpoint_every, microbatches, needs, sizes)


def _shape(config: TrainConfig, planned: int) -> tuple[Any, int]:
    """The schedule that a run is asked for, (peak, steps) -> schedule, or None; and the step it ends at."""
    shape = None if config.schedule is None else methods.SHAPES[config.schedule]
    if shape is None or config.cooldown is None:
        return shape, planned
    branch = cooldown.read(config.cooldown)
    return cooldown.shaped(shape, branch), branch.end


def mesh_of(config: TrainConfig) -> Mesh:
    """The mesh that a run is asked for; of one device where it is asked for none."""
    mesh = _mesh_of(config)
    if config.replicas is not None:
        strategies.check_mesh(mesh, config.replicas)
    return mesh


def _mesh_of(config: TrainConfig) -> Mesh:
    if config.mesh is not None:
        lengths, here = parse_axes(config.mesh).values(), jax.device_count()
        asked = math.prod(lengths)
        if asked > 0 and asked != here:
            add = f"devices={asked}" if config.devices is None else f"devices={asked} instead of {config.devices}"
            raise ValueError(
                f"mesh={config.mesh} is of {asked} devices, and there {'is' if here == 1 else 'are'} {here}: add "
                f"--{add} to try it on virtual CPU devices, or give axes whose lengths multiply to {here}"
            )
        return make_mesh(config.mesh)
    several = config.devices is not None or jax.process_count() > 1
    if several and config.replicas is not None:
        return make_mesh(f"replica={config.replicas},data=-1")
    return make_mesh("data=-1") if several else make_mesh("data=1", devices=jax.devices()[:1])


def _place(plan: Plan, mesh: Mesh, count: int | None) -> tuple[Any, Any]:
    """How a run is sharded over a mesh, and how its minibatches are; of several replicas, those of each."""
    axes = BATCH_AXES if count is None else tuple(name for name in BATCH_AXES if name != strategies.AXIS)
    replicated, lies = NamedSharding(mesh, PartitionSpec()), batch_sharding(mesh, batch_axes=axes)
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    params = jax.eval_shape(lambda seed: run.first_params(plan.problem, seed), seed)
    shardings = param_shardings(params, mesh)
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings)
    ways = mesh.size // lies.shard_shape((mesh.size,))[0]
    size = plan.problem.batch_size
    if size is not None and size % (ways * plan.microbatches):
        part = "microbatch" if plan.microbatches > 1 else "batch"
        raise ValueError(
            f"global_batch must make every {part} a multiple of the {ways} parts that the mesh cuts it into, got "
            f"{size // plan.microbatches} examples"
        )

    def place(batch: Any) -> Any:
        # Of a replica the axes of the mesh are those that are left.
        where = lies if count is None else lies.spec
        return batch if size is None else jax.lax.with_sharding_constraint(batch, where)

    state: Any = state_shardings(plan.tx, params, mesh=mesh)
    kept = jax.tree.map(
        lambda _: replicated, jax.eval_shape(lambda seed: run.first_model_state(plan.problem, seed), seed)
    )
    one = run.Run(replicated, shardings, state, replicated, kept)  # pyright: ignore[reportArgumentType]
    return one if count is None else strategies.shardings(one, mesh), place


class Started(NamedTuple):
    """A run where it begins or goes on.

    Attributes:
      plan: what is to be done.
      mesh: on which devices.
      state: parameters, state of the method, step and key, in their places.
      place: minibatch -> the same, placed as it should be.
      checkpoints: where the run is saved, if it is.
      report: what the last checkpoint gave; None at the beginning of a run.
      set_aside: where later checkpoints are now.
      source: the folder of the checkpoint that the run begins with.
      changed: what is no longer as the run that wrote that checkpoint had it, a line each.
    """

    plan: Plan
    mesh: Mesh
    state: run.Run
    place: Any
    checkpoints: Checkpoints | None
    report: Report | None
    set_aside: tuple[pathlib.Path, ...] = ()
    source: pathlib.Path | None = None
    changed: tuple[str, ...] = ()


def start(config: TrainConfig) -> Started:
    """Puts a run on its devices, at its beginning or at its last checkpoint. What it raises: see `train`."""
    config = cooldown.settled(config)
    plan, mesh = prepare(config), mesh_of(config)
    shardings, place = _place(plan, mesh, config.replicas)
    seed = jnp.asarray(config.seed, jnp.uint32)

    def begin() -> run.Run:
        # The workloads take all parameters from one draw, which the compiler cannot cut as it cuts them.
        whole = NamedSharding(mesh, PartitionSpec())
        params = jax.lax.with_sharding_constraint(run.first_params(plan.problem, seed), whole)
        kept = run.first_model_state(plan.problem, seed)
        if config.replicas is not None:
            return strategies.start(params, plan.tx, seed, kept, config.replicas)
        return run.start(params, plan.tx, seed, kept)

    checkpoints = None
    folder, _, _ = cooldown.paths(config)
    if folder is not None:
        checkpoints = Checkpoints(folder, keep=config.keep)
    state = jax.jit(begin, out_shardings=shardings)()
    source, last = checkpoints, None if checkpoints is None else checkpoints.latest()
    if config.restore_step is not None:
        last = config.restore_step
    if config.cooldown is not None and last is None:
        # The branch begins: it reads the training that it leaves, and writes nothing there.
        source, last = Checkpoints(str(config.checkpoint_dir)), cooldown.read(config.cooldown).start
    if source is None or last is None:
        return Started(plan, mesh, state, place, checkpoints, None)
    if last > plan.steps or last % plan.eval_every:
        raise ValueError(
            f"steps={plan.steps}, eval_every={plan.eval_every} do not fit the checkpoint of step {last} in "
            f"{source.folder}: it must be one of the evaluations"
        )
    about = origin.same_numbers(config, plan)
    before = source.about(last).get("replicas")
    if config.replicas is None or before is None or before == config.replicas:
        state, report = source.restore(state, step=last, about=about, transplant=config.transplant)
    else:
        # All old replicas on every device: the mesh need not divide their number. Their minibatches may change as well.
        about = {name: value for name, value in about.items() if name not in ("replicas", "batch_size")}
        like = strategies.resized(state, before, strategies.together(shardings))
        old, report = source.restore(like, step=last, about=about, transplant=config.transplant)
        state = strategies.resized(old, config.replicas, shardings)
    changed = origin.changed(config, plan, report)
    aside = source.set_aside(after=last) if source is checkpoints else ()
    return Started(plan, mesh, state, place, checkpoints, report, aside, source.folder, changed)


def go_on(config: TrainConfig, started: Started) -> Iterator[dict[str, Any]]:
    """Trains to the end from where a run stands; yields as `train` does."""
    plan, state, checkpoints = started.plan, started.state, started.checkpoints
    replicated = NamedSharding(started.mesh, PartitionSpec())
    lies = jax.tree.map(lambda x: x.sharding, state)

    def batch_size(microbatches: int) -> int | None:
        first = plan.problem.batch_size
        return None if first is None else first // plan.microbatches * microbatches

    @functools.cache
    def program(microbatches: int) -> Any:
        """The steps of an evaluation and its reading, compiled: one program per size of the batch."""
        same = microbatches == plan.microbatches
        problem = plan.problem if same else config.problem(batch_size(microbatches))
        if config.replicas is None:
            step = run.step_function(problem, plan.tx, microbatches=microbatches, place=started.place, needs=plan.needs)
            measured, published = run.measured, functools.partial(metrics, nonfinite=True)
        else:
            step = strategies.step_function(
                problem,
                plan.tx,
                replicas=config.replicas,
                mesh=started.mesh,
                sync_every=strategies.period(config),
                microbatches=microbatches,
                place=started.place,
            )
            measured, published = strategies.measured, strategies.published

        def evaluation(state: run.Run) -> tuple[run.Run, dict[str, jax.Array]]:
            state, losses = jax.lax.scan(lambda state, _: step(state), state, None, plan.eval_every)
            read = {
                "step": state.step,
                "loss": losses.mean(),
                "metric": measured(problem, state),
            }
            return state, {**published(state.opt_state), **read}

        # Methods that work on matrices gather them where they know the mesh, so that their numbers do not depend on it.
        with jax.set_mesh(started.mesh):
            return jax.jit(evaluation, donate_argnums=0, out_shardings=(lies, replicated)).lower(state).compile()

    def size() -> int:
        return int(state.opt_state[0].microbatches) if len(plan.sizes) > 1 else plan.microbatches

    def goes_on() -> str:
        if checkpoints is None:
            return ""
        checkpoints.wait()
        last = checkpoints.latest()
        said = "" if config.cooldown is None else f", with --cooldown={config.cooldown}"
        return "" if last is None else f"the same command goes on from step {last}{said}"

    about = origin.of(config, plan)
    writes = None if checkpoints is None or jax.process_index() else checkpoints.folder
    with held.held(writes), checkpoints or contextlib.nullcontext(), interrupts.last_words(goes_on):
        program(size())
        began = time.perf_counter()
        for done in range(int(state.step) + plan.eval_every, plan.steps + 1, plan.eval_every):
            microbatches = size()
            state, read = program(microbatches)(state)
            record = {name: value.item() for name, value in jax.device_get(read).items()}
            if len(plan.sizes) > 1:
                record["batch_size"] = batch_size(microbatches)
            if checkpoints is not None and (done % plan.checkpoint_every == 0 or done == plan.steps):
                checkpoints.save(done, state, about=about)
            order = ("step", "loss", "metric")
            yield {
                **{name: record[name] for name in order},
                "seconds": round(time.perf_counter() - began, 4),
                **{name: value for name, value in record.items() if name not in order},
            }
            if any(name.rpartition("/")[2] == "guard_exhausted" and value for name, value in record.items()):
                raise FloatingPointError(
                    f"step {done}: gk.guard has skipped as many steps in a row as its max_skips allows, and what it "
                    "skipped was not finite; parameters and state are those before: lower the learning rate, clip, or "
                    "go on from an earlier checkpoint"
                )


def train(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Trains, and yields one record per evaluation.

    With `schedule="wsd"` the rate stays at its peak, and `cooldown="600:150"` trains a branch: from the checkpoint of
    step 600 on it decays to 0 over 150 steps, as 1 - sqrt; `cooldown="600:150:cosine:0.1"` to a tenth of the peak, as a
    cosine. The training it branches from is only read, and may go on meanwhile; the checkpoints of the branch are in
    the folder `cooldown_600_150` below its own.

    With `checkpoint_dir` a run that was ended, however hard, goes on from its last checkpoint when it is started
    again, and ends with the same bits; its records begin where it goes on. Parameters are placed on the mesh as
    `gk.parallel.param_shardings` says, minibatches as `gk.parallel.batch_sharding` does.

    With `replicas=4` every replica has parameters and a state of its own and trains on minibatches of its own, as
    `sync` and `exchange` say; `loss` is the mean of theirs, and `metric` is read at the mean of their parameters. From
    a checkpoint of another number of replicas each goes on at the mean of the old ones, as
    `gk.parallel.resize_replicas` says; then the global batch may be another one too.

    Args:
      config: what is trained, how long, and on what. `devices` and `coordinator` are for the command line: here,
        devices and processes are as JAX has them.

    Yields:
      A dictionary of plain numbers: `step`, `loss` (mean over the minibatches since the last record),
      `metric`, `seconds` since the first step, what the method publishes of itself (`learning_rate`, …),
      `nonfinite_state` (how many entries of its state are NaN or infinite), and `batch_size` where the batch grows.

    Raises:
      ValueError: steps that are no multiple of `eval_every`; a batch that the mesh or `microbatch` does not divide; a
        mesh that is not of all devices; a checkpoint of another chain, workload, seed or batch size.
      OSError: a checkpoint that cannot be written or read.
      FloatingPointError: a `gk.guard` in the chain has used up its budget of skips.
      ImportError: the workload needs the extra `gradkit[race]`.

    Example:
      >>> records = list(train(TrainConfig(workload="heavytail", method="lion", steps=40)))
      >>> [record["step"] for record in records]
      [20, 40]
    """
    config = cooldown.settled(config)
    yield from go_on(config, start(config))
