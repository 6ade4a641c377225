"""One training run on one device, evaluation by evaluation."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from gradkit.diagnostics import metrics
from gradkit.training import methods, run
from gradkit.training.settings import TrainConfig
from gradkit.training.sweep import check_steps
from gradkit.workloads import Workload, load


def prepare(config: TrainConfig) -> Workload:
    """Loads the workload and checks that evaluations divide its steps, before anything is computed."""
    problem = load(config.workload)
    check_steps(config.steps or problem.budget_steps, config.eval_every or problem.eval_every)
    return problem


def train(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Trains, and yields one record per evaluation.

    Args:
      config: what is trained, and how long.

    Yields:
      A dictionary of plain numbers: `step`, `loss` (mean over the minibatches since the last record),
      `metric`, `seconds` since the first step, and what the method publishes of itself (`learning_rate`, …).

    Raises:
      ValueError: steps that are no multiple of `eval_every`.
      ImportError: the workload needs the extra `gradkit[race]`.

    Example:
      >>> records = list(train(TrainConfig(workload="heavytail", method="lion", steps=40)))
      >>> [record["step"] for record in records]
      [20, 40]
    """
    problem = prepare(config)
    method = methods.find(config.method)
    total, every = config.steps or problem.budget_steps, config.eval_every or problem.eval_every
    tx = method.scheduled(method.centre if config.learning_rate is None else config.learning_rate, total)
    step = run.step_function(problem, tx)
    seed = jnp.asarray(config.seed, jnp.uint32)

    @jax.jit
    def begin() -> run.Run:
        return run.start(run.first_params(problem, seed), tx, seed)

    def evaluation(state: run.Run) -> tuple[run.Run, dict[str, jax.Array]]:
        state, losses = jax.lax.scan(lambda state, _: step(state), state, None, every)
        read = {"step": state.step, "loss": losses.mean(), "metric": problem.metric(state.params)}
        return state, {**metrics(state.opt_state), **read}

    state = begin()
    compiled = jax.jit(evaluation, donate_argnums=0).lower(state).compile()
    began = time.perf_counter()
    for _ in range(total // every):
        state, read = compiled(state)
        record = {name: value.item() for name, value in jax.device_get(read).items()}
        order = ("step", "loss", "metric")
        yield {
            **{name: record[name] for name in order},
            "seconds": round(time.perf_counter() - began, 4),
            **{name: value for name, value in record.items() if name not in order},
        }
