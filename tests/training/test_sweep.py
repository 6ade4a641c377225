"""A sweep is many single runs, and nothing else."""

import jax
import numpy as np
import optax
import pytest

import gradkit as gk
from gradkit.engine.extras import samples
from gradkit.training import methods, run, sweep
from gradkit.workloads import load

pytestmark = pytest.mark.slow

PROBLEM = load("heavytail")


def test_a_sweep_equals_a_python_loop_of_single_runs():
    rates, seeds, steps, every = [0.01, 0.1], [3, 5], 40, 10
    method = methods.find("adam")
    done = []
    found = sweep(
        PROBLEM,
        method.scheduled,
        rates,
        seeds=seeds,
        steps=steps,
        eval_every=every,
        progress=lambda *at: done.append(at),
    )
    assert found.curves.shape == (2, 2, 4) and found.steps.tolist() == [10, 20, 30, 40]
    assert done == [(10, 40), (20, 40), (30, 40), (40, 40)]

    loss_grad = jax.jit(jax.grad(PROBLEM.loss))
    batch_of = jax.jit(lambda key, step: PROBLEM.batch(jax.random.fold_in(key, step)))
    for i, rate in enumerate(rates):
        for j, seed in enumerate(seeds):
            tx = gk.adam(methods.warmup_cosine(rate, steps))
            params = run.first_params(PROBLEM, np.uint32(seed))
            state, key = tx.init(params), jax.random.fold_in(jax.random.key(seed), 1)
            update = jax.jit(tx.update)
            for step in range(steps):
                updates, state = update(loss_grad(params, batch_of(key, np.int32(step))), state, params)
                params = optax.apply_updates(params, updates)
                if (step + 1) % every == 0:
                    # Rounding of sums of 50 products over 40 steps: 50 x 40 x 2^-24.
                    np.testing.assert_allclose(found.curves[i, j, step // every], PROBLEM.metric(params), rtol=2e-4)


def test_hyperparameters_move_together_point_by_point():
    def method(learning_rate, momentum, steps):
        return gk.sgd(learning_rate, momentum=momentum)

    grid = {"learning_rate": [0.01, 0.01, 1e6], "momentum": [0.0, 0.9, 0.0]}
    found = sweep(PROBLEM, method, grid, seeds=1, steps=20, eval_every=20)
    alone = sweep(PROBLEM, lambda learning_rate, steps: gk.sgd(learning_rate, momentum=0.9), [0.01], seeds=1, steps=20)
    # The same arithmetic in programs of other shapes: rounding of 20 steps of sums of 50.
    np.testing.assert_allclose(found.curves[1], alone.curves[0], rtol=1e-4)
    assert not np.allclose(found.curves[0], found.curves[1], rtol=1e-2)
    assert found.diverged[:, 0].tolist() == [False, False, True]
    assert np.isinf(found.steps_to_target[2, 0])


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        ([], {}, "grid must have one column"),
        ({"learning_rate": [1.0], "momentum": [0.1, 0.2]}, {}, "grid must have one column"),
        ([0.1], {"seeds": 0}, "seeds must be an integer >= 1"),
        ([0.1], {"seeds": []}, "seeds must not be empty"),
        ([0.1], {"steps": 30, "eval_every": 20}, "steps must be a multiple of eval_every, got 30 and 20"),
    ],
)
def test_bad_sweeps_are_refused(grid, options, message):
    with pytest.raises(ValueError, match=message):
        sweep(PROBLEM, methods.find("adam").scheduled, grid, **options)


def test_every_optimizer_of_the_catalogue_can_race():
    for name in methods.names():
        method = methods.find(name)
        # A method without a rate to tune has no grid, and the factor 1.
        assert method.card is not None and (method.centre is None or method.centre > 0)
        params = {"kernel": np.ones((4, 2), np.float32)}

        def first_rate(rate, name=name, method=method, params=params):
            tx = optax.with_extra_args_support(method.scheduled(rate, 10))
            # What the loop of a race offers, as far as methods need it.
            offered = samples(params, ("value", "value_fn", "grad_fn", "hvp_fn", "key", "grad_moments", "grads_a"))
            offered |= samples(params, ("grads_b", "model_fn", "targets", "client"))
            offered |= samples(params, ("max_attention_logits", "input_moment"))
            if name == "egn_softmax":
                offered |= {"model_fn": lambda x: x["kernel"], "targets": np.zeros(4, np.int32)}
            return tx.update(params, tx.init(params), params, **offered)[0]

        # The rate may be traced: that is what a sweep does.
        updates = jax.eval_shape(jax.vmap(first_rate), np.ones(3, np.float32))
        assert updates["kernel"].shape == (3, 4, 2)


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'novograd'"):
        methods.find("novogard")
