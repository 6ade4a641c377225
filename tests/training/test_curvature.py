"""`gradkit inspect --curvature`: the spectrum of a workload's Hessian."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from gradkit.cli import main
from gradkit.training.curvature import curvature, table
from gradkit.workloads.workload import Workload

LINEAR = Workload(
    name="linear",
    description="a regression with six parameters",
    init=lambda key: {"kernel": jnp.full((5, 1), 0.5, jnp.float32), "bias": jnp.zeros((1,), jnp.float32)},
    batch=lambda key: jax.random.normal(key, (16, 5), jnp.float32),
    loss=lambda params, x: jnp.mean(jnp.cosh(x @ params["kernel"] + params["bias"][None] - 1)),
    metric=lambda params: jnp.sum(params["bias"]),
    metric_name="nothing",
    target=0.0,
    budget_steps=1,
    eval_every=1,
    separable=1.0,
    batch_size=16,
)


def dense(minibatches: int, seed: int) -> tuple[np.ndarray, float]:
    """Eigenvalues and loss over the minibatches that the command takes."""
    start, data, _ = jax.random.split(jax.random.key(seed), 3)
    params: Any = LINEAR.init(start)
    batches = [LINEAR.batch(jax.random.fold_in(data, 2**30 + i)) for i in range(minibatches)]
    flat, unravel = ravel_pytree(params)

    def mean(f: jax.Array) -> jax.Array:
        return jnp.mean(jnp.stack([LINEAR.loss(unravel(f), batch) for batch in batches]))

    H, value = jax.jit(lambda f: (jax.hessian(mean)(f), mean(f)))(flat)
    return np.linalg.eigvalsh(np.asarray(H, np.float64)), float(value)


def test_it_is_that_of_the_dense_hessian() -> None:
    """All Lanczos steps are made, so extremes are exact to some roundings of float32; the trace to its error."""
    found = curvature(LINEAR, minibatches=3, trace_probes=50, seed=1)
    values, value = dense(3, 1)
    roundings = 200 * 2.0**-24 * values[-1]
    assert found.sharpness == pytest.approx(values[-1], abs=roundings)
    assert found.smallest == pytest.approx(values[0], abs=roundings)
    assert found.loss == pytest.approx(value, rel=1e-5)
    assert abs(found.trace - values.sum()) < 4 * found.trace_error
    assert found.largest_rate == pytest.approx(2 / values[-1], rel=1e-4)
    # All six directions: the gradient is in them. The loss is convex.
    assert found.subspace_size == 6 and found.subspace == pytest.approx(1, abs=1e-4)
    assert found.r_e == found.K_n == 0
    assert f"{found.sharpness:.5g}" in table(found)


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a method's name it measures after training with it; a table with a picture, or one JSON object."""
    monkeypatch.setattr("gradkit.cli.load", lambda name: LINEAR)
    few = ["--minibatches=1", "--lanczos_steps=4", "--probes=1", "--trace_probes=2", "--top=2", "--workload=bytelm"]
    picture = tmp_path / "density.png"
    assert main(["gradkit", "inspect", "sgd", "--curvature", "--train_steps=2", *few, f"--png={picture}"]) == 0
    said = capsys.readouterr().out
    assert "linear, after 2 steps of sgd" in said and str(picture) in said
    assert picture.read_bytes()[1:4] == b"PNG"
    assert main(["gradkit", "inspect", "--curvature", *few, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["where"] == "at the start" and found["steps"] == 4 and found["sharpness"] > 0
    assert "density" not in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--curvature", "--png=nowhere/at/all.png"], "png must be a file in a folder that exists"),
        (["--curvature", "--png=picture.jpg"], "the ending of png must be one of"),
        (["--curvature", "--probes=0"], "probes must be an integer >= 1"),
        (["adamv", "--curvature"], "did you mean"),
        (["--curvature", "--workload=bytelmm"], "did you mean 'bytelm'"),
        (["adamw", "--nocurvature"], "unknown"),
        (["muon", "--curvature", "--mesh=fsdp=2"], "--mesh is of a compiled step and does not go with --curvature"),
        (["--curvature", "--model", "llama3-8b"], "--model is of a compiled step and does not go with --curvature"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gradkit", "inspect", *arguments]) == 2
    assert message.lower() in capsys.readouterr().err.lower()
