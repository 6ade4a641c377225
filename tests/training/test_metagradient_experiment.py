"""`experiments/metagradient.py` at a tiny size."""

import importlib.util
import pathlib
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PATH = pathlib.Path(__file__).parents[2] / "experiments/metagradient.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("metagradient_experiment", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_metagradients_of_example_weights_lower_the_loss_at_the_end(script):
    """Ten steps of a small perceptron, four metagradients beside as much random search; wrong labels lose weight."""
    task = script.task("weights", steps=10, width=8, batch=64, rate=0.3, branching=3)
    result = script.compared(task, 4, 2)
    assert len(result["searches"]) == script.SEARCHES
    descent, search = (result["found"][name] for name in ("metagradient descent", "random search"))
    # ceil(log_3 10) computations of a step, and its derivative, which costs more than the step itself.
    assert 4 < task.cost < 3 + 6
    assert len(descent.curve) == 4
    assert len(search.curve) == round(4 * task.cost)
    # Both begin at the start: one program is a scan, the other replays it, and sums differ by float32 roundings.
    np.testing.assert_allclose(descent.curve[0], search.curve[0], rtol=1e-5)
    assert descent.curve[-1] < min(search.curve[-1], 0.95 * descent.curve[0])
    weights = np.asarray(result["metas"]["metagradient descent"]["weights"])
    assert weights[task.wrong].mean() < weights[~task.wrong].mean()
    assert result["judged"]["start"].shape == (2, 3)
    assert "1037 hyperparameters" in script.table("weights", task, result)


def test_the_derivative_is_that_of_the_training_that_is_searched(script):
    """Of six log learning rates, the change of the loss of `train` along the gradient is the gradient's square.

    A central difference over h = 0.01 in a loss near 2: roundings of 1e-6 over 2h are 1e-4 of a slope near 1, and the
    third derivative adds about h^2.
    """
    task = script.task("rates", steps=4, width=4, batch=32, rate=0.1, branching=2)
    gradient = task.differentiate(task.start)[1]
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient)))
    ends = []
    for h in (-0.01, 0.01):
        moved = jax.tree.map(lambda x, g, h=h: x + jnp.float32(h / norm) * g, task.start, gradient)
        ends.append(float(task.train(moved, jnp.int32(0))[0]))
    np.testing.assert_allclose((ends[1] - ends[0]) / 0.02, norm, rtol=5e-3)
