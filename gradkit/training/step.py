"""One training step for Flax linen, Flax NNX and plain trees: loss, gradient source, transformation, parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gradkit import checks
from gradkit.diagnostics import metrics
from gradkit.engine.keys import as_key
from gradkit.parallel import init_sharded
from gradkit.training.forms import joined, one_form, takes_key
from gradkit.training.one_step import needs_of, one_step
from gradkit.training.statistics import has_statistics, statistics_at
from gradkit.transforms import eval_params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run carries from step to step; a pytree.

    Attributes:
      step: number of steps made, int32.
      params: the trained parameters. For an NNX module: its state of type `wrt`, as bare arrays.
      opt_state: the state of the transformation.
      model_state: the variables of the model besides parameters (BatchNorm statistics, counters of random streams).
      key: the random key of the run; it stays the same, because every step folds its number into it.
      graph: for an NNX module, the graph definition for `nnx.merge`; not an array.
      shardings: for a run on a mesh, the sharding of every array above, which every step keeps; not an array.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    model_state: Any = None
    key: Any = None
    graph: Any = dataclasses.field(default=None, metadata={"static": True})
    shardings: Any = dataclasses.field(default=None, metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """What `make_train_step` returns.

    Attributes:
      init: (params or NNX module, *, model_state=None, key=None) -> TrainState.
      update: (TrainState, batch) -> (TrainState, metrics), under jit; calling the step itself does the same.
      model: (TrainState, batches=None) -> NNX module, with the parameters that the method means for evaluation, and the
        statistics of `eval_model_state`. It shares its arrays with the state: with donation it must be used before the
        next step, or cloned.
      eval_params: TrainState -> parameters to evaluate and save, as `gk.eval_params` finds them.
      eval_model_state: (TrainState, batches=None) -> the model state to evaluate them with. Where a method evaluates at
        other parameters than it trains (averages, schedule-free), running moments, such as BatchNorm's, are computed
        anew over `batches`, a list of training batches; `()` keeps those of the trained parameters. Otherwise the
        model state is that of the steps, and no batches are needed.
    """

    init: Callable[..., TrainState]
    update: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]
    model: Callable[..., Any]
    eval_params: Callable[[TrainState], Any]
    eval_model_state: Callable[..., Any]

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        return self.update(state, batch)


def _own(tree: Any, copy: bool) -> Any:
    """Arrays of strong types, which may be donated."""
    return jax.tree.map(lambda x: jnp.array(x, dtype=getattr(x, "dtype", jnp.result_type(x)), copy=copy), tree)


def _apart(tree: Any, *others: Any) -> Any:
    """The tree without arrays that occur twice, here or in the others: none may be donated twice."""
    seen = {id(x) for x in jax.tree.leaves(others)}

    def own(x: Any) -> Any:
        x = jnp.array(x, copy=True) if id(x) in seen else x
        seen.add(id(x))
        return x

    return jax.tree.map(own, tree)


def _state(tx: optax.GradientTransformation, params: Any) -> Any:
    """The state of a transformation, created on the mesh of its parameters where all of them are on one mesh."""
    leaves = jax.tree.leaves(params)
    if leaves and all(isinstance(x.sharding, NamedSharding) and x.sharding.mesh.size > 1 for x in leaves):
        return init_sharded(tx, params)
    return tx.init(params)


def _on_mesh(state: TrainState) -> TrainState:
    """The state with arrays that are not on the mesh of the parameters, such as counters, replicated over it."""
    on = [x.sharding for x in jax.tree.leaves(state.params) if isinstance(x.sharding, NamedSharding)]
    if not on:
        return state
    whole = NamedSharding(on[0].mesh, PartitionSpec())

    def put(x: Any) -> Any:
        return x if isinstance(x.sharding, NamedSharding) else jax.device_put(x, whole)

    state = jax.tree.map(put, state)
    return dataclasses.replace(state, shardings=tuple(x.sharding for x in jax.tree.leaves(state)))


def _stay(state: TrainState) -> TrainState:
    """The state with its shardings: over Auto axes the compiler would choose others, possibly after every step."""
    if state.shardings is None or not any(kind == AxisType.Auto for kind in state.shardings[0].mesh.axis_types):
        return state
    leaves, structure = jax.tree.flatten(state)
    return structure.unflatten(map(jax.lax.with_sharding_constraint, leaves, state.shardings))


def make_train_step(
    loss_fn: Callable[..., Any],
    tx: optax.GradientTransformation,
    *,
    gradient: Callable[..., Any] | None = None,
    microbatches: int = 1,
    weight: Callable[[Any], Any] | None = None,
    has_aux: bool = False,
    norms: bool = False,
    donate: bool = True,
    wrt: Any = None,
) -> TrainStep:
    """A compiled training step for linen, NNX and plain trees.

    Equations:

        (value, aux), g = source(loss)(params, batch)
        updates, opt_state = tx.update(g, opt_state, params, value, grad, value_fn, grad_fn, hvp_fn, key)
        params = params + updates

    The step itself is `one_step`, as in every loop: all cheap extra arguments are passed, and expensive ones where a
    link needs them, so any method works.

    Args:
      loss_fn: a mean over the batch, in one of three forms. A batch is any tree. Where `tx` begins with an aggregator
        of tasks, the loss is a vector, one entry per task, or a list.
        `(params, batch) -> loss`: plain trees, and linen models without other variables.
        `(params, model_state, batch) -> (loss, model_state)`: where `init` is given a model state (BatchNorm).
        `(model, batch) -> loss`: where `init` is given an NNX module; what the loss changes in the module apart
        from its parameters is carried to the next step.
        If it has an argument `key`, it gets a new random key at every step (dropout).
      tx: any optax transformation.
      gradient: a source, loss -> function like `jax.value_and_grad(loss)`; must take `has_aux=True` where there is
        an aux or a model state. For instance `functools.partial(gk.gradients.sam, rho=0.05)`, or, for a method that
        wants `grad_moments`, `functools.partial(gk.gradients.gradient_moments, microbatches=8)`: the gradient is then
        their mean, and all parts have the same random key. Default: `jax.value_and_grad`; where the first link of `tx`
        is an aggregator, such as `gk.aggregation.upgrad`, `gk.gradients.task_gradients` or, as it asks,
        `gk.gradients.example_gradients`. A source that draws, such as `gk.gradients.forward_gradient`, gets a key of
        every step, where the state has one.
      microbatches: parts in which the batch is computed one after another, >= 1; see `gk.gradients.microbatch`. Of a
        chain that aggregates the gradients of examples, the number of chunks.
        Every part starts from the same model state, has random keys of its own, and the mean of their statistics
        is carried on. Default 1.
      weight: microbatch -> number of tokens or examples that its loss is a mean over. Default: all equal.
      has_aux: whether the loss returns (loss, aux), or (loss, (model_state, aux)). The aux is in the metrics, of
        microbatches stacked along a leading axis. Default False.
      norms: whether the metrics have `update_norm` and `param_norm` too: the norms over all leaves of what was added to
        the parameters, and of the parameters after it; and `nonfinite_state`, how many entries of the state of `tx` are
        NaN or infinite. Default False.
      donate: whether a step may reuse the memory of the state it is given, which is then no longer valid. What
        the user gave to `init` is copied, and stays valid. Default True.
      wrt: of an NNX module, the filter that says what is trained. Default `nnx.Param`.

    Returns:
      A `TrainStep`. Parameters that `init` finds on a mesh stay where they are, with their state beside them, and a
      batch that is sharded along its examples is a batch of all devices. Metrics are a dictionary: `loss`, of several
      tasks their sum, with `losses`; what the links of `tx` publish, see `gk.diagnostics.metrics`; the norms; `aux`.
      The step can be used in `jax.lax.scan`.
      The transformation is handed, all at the parameters and on the same minibatch with the same random key:
      `value`; `grad` (the name that optax's line searches know); `value_fn`, `grad_fn`, `hvp_fn`, which take trees
      in any floating dtype and are those of the loss itself, whatever `gradient` is; `key`, where there is one; and
      where a link needs them, `grad_moments` (over the microbatches, or over two halves of the batch; of `gradient`,
      where it makes them) and the gradients of both halves of the batch, `grads_a` and `grads_b`.
      Compiled once per shape of state and batch. State: that of `tx`; microbatches add one copy of the gradient.

    Raises:
      ValueError: at construction, an argument outside its range, or `gradient` together with `microbatches`, where
        it would be open which is inside the other; at `init`, a loss that needs a key and gets none, or a model
        state or `wrt` that would not be used; at a step, a loss that changes what the model state consists of.
        What `tx.update` raises is passed on.

    Example:
      >>> import gradkit as gk
      >>> step = make_train_step(lambda x, batch: jnp.mean((x - batch) ** 2), gk.sgd(0.25))
      >>> state = step.init(jnp.zeros(()))
      >>> for batch in (jnp.ones(4), jnp.ones(4)):
      ...     state, metrics = step(state, batch)
      >>> float(state.params), float(metrics["loss"]), float(metrics["learning_rate"])
      (0.75, 0.25, 0.25)
    """
    checks.switch(has_aux=has_aux, norms=norms, donate=donate)
    checks.function("loss_fn", loss_fn)
    checks.integer("microbatches", microbatches, 1)
    for name, function in (("gradient", gradient), ("weight", weight)):
        if function is not None:
            checks.function(name, function)
    if gradient is not None and microbatches > 1:
        raise ValueError("microbatches must be 1 with a gradient of your own: compose the two sources in `gradient`")
    if weight is not None and microbatches == 1:
        raise ValueError("weight must be None with microbatches=1, got a function; write microbatches=2 or more")
    tx = optax.with_extra_args_support(tx)
    trained = nnx.Param if wrt is None else wrt
    compute = one_form(loss_fn, has_aux, trained)

    def init(params: Any, *, model_state: Any = None, key: Any = None) -> TrainState:
        graph = None
        if isinstance(params, nnx.Module):
            if model_state is not None:
                raise ValueError("model_state is for linen and plain trees: an NNX module has its state in itself")
            graph, params, model_state = nnx.split(params, trained, ...)
            params, model_state = nnx.as_pure(params), nnx.as_pure(model_state)
        elif wrt is not None:
            raise ValueError("wrt is for NNX modules: which leaves of a tree are trained is said by `gk.leaves.groups`")
        if key is None and takes_key(loss_fn)[1]:
            raise ValueError("loss_fn takes a key: call init(..., key=jax.random.key(0))")
        params, model_state, key = _own((params, model_state, None if key is None else as_key(key)), donate)
        model_state = _apart(model_state, params)
        opt_state = _apart(_state(tx, params), params, model_state)
        return _on_mesh(TrainState(jnp.zeros((), jnp.int32), params, opt_state, model_state, key, graph))

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        params = state.params
        loss_key = tx_key = None
        if state.key is not None:
            loss_key, tx_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        carries = has_aux or bool(jax.tree.leaves(state.model_state))

        def loss(params: Any, batch: Any, index: Any = None) -> Any:
            value, rest = compute(state.graph, params, state.model_state, batch, loss_key, index)
            return (value, rest) if carries else value

        made = one_step(
            loss,
            tx,
            params,
            state.opt_state,
            batch,
            needs=needs_of(tx, params),
            key=tx_key,
            has_aux=carries,
            gradient=gradient,
            microbatches=microbatches,
            weight=weight,
        )
        model_state, aux = made.aux if carries else (state.model_state, None)
        if carries and made.stacked:
            model_state = joined(model_state)
        new = TrainState(
            jnp.asarray(optax.safe_increment(state.step)),
            made.params,
            made.opt_state,
            model_state,
            state.key,
            state.graph,
            state.shardings,
        )
        measured = {"updates": made.updates, "params": made.params} if norms else {}
        told = {**metrics(made.opt_state, nonfinite=norms, **measured), "loss": made.value}
        told |= {"losses": made.losses} if made.losses is not None else {}
        return _stay(new), told | ({"aux": aux} if has_aux else {})

    def model(state: TrainState, batches: Any = None) -> Any:
        if state.graph is None:
            raise ValueError("model is for NNX modules; for trees: model.apply, with step.eval_params(state)")
        return nnx.merge(state.graph, evaluated(state), eval_model_state(state, batches))

    def evaluated(state: TrainState) -> Any:
        return eval_params(state.opt_state, state.params)

    def eval_model_state(state: TrainState, batches: Any = None) -> Any:
        point = evaluated(state)
        if point is state.params or not has_statistics(state.model_state) or (batches is not None and not len(batches)):
            return state.model_state
        if batches is None:
            raise ValueError(
                "the model has running statistics, and the method evaluates at other parameters than it trains, got no "
                "batches: give training batches, as in step.model(state, batches), over which the statistics are "
                "computed anew, or batches=() to keep those of the trained parameters"
            )
        key = None if state.key is None else jax.random.fold_in(state.key, state.step)

        def apply(model_state: Any, batch: Any) -> Any:
            return compute(state.graph, point, model_state, batch, key, None)[1][0]

        return statistics_at(apply, state.model_state, batches)

    return TrainStep(init, jax.jit(train_step, donate_argnums=0 if donate else ()), model, evaluated, eval_model_state)
