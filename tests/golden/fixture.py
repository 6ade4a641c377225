"""The problem behind every golden trajectory, and the reader of the files.

A golden trajectory is what an implementation that shares no code with this library did to these parameters,
step by step. Parameters, gradients and the loss follow from one integer seed.

  replay    the gradient of step t is `grads(seed, t)`, wherever the parameters are;
  closure   the loss of step t is  sum over all entries of  a_t (x - c)^2 / 2 + 0.1 (x - c)^4,
            with a_t > 0 drawn per step and c fixed.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SHAPES = {"bias": (4,), "kernel": (6, 4), "wide": (4, 9), "tall": (12, 5), "stack": (2, 4, 6)}
# References that compute in float32 say so in their file: a table of noise levels, the statistics of AVG, TVLARS'
# factor of time.
FLOAT32 = {"min_snr_weights": 2e-6, "scale_by_return": 2e-5, "tvlars": 1e-6}
STREAMS = {"params": 1, "grads": 2, "curv": 3, "centre": 4}


class Golden(NamedTuple):
    """One file: what was run (`method`, `mode`, `hyper`, …), the parameters after each step, and its arrays."""

    meta: dict[str, Any]
    steps: list[dict[str, np.ndarray]]
    arrays: dict[str, np.ndarray]

    @property
    def method(self) -> str:
        return self.meta["method"]

    @property
    def bound(self) -> float:
        """Largest error, relative to the distance moved, that the reference's own precision allows."""
        return float(self.meta.get("tolerance") or FLOAT32.get(self.method, 1e-10))

    def extra(self) -> dict[str, np.ndarray]:
        return {name[6:]: array for name, array in self.arrays.items() if name.startswith("extra/")}

    def hyper(self, case: str | None = None) -> dict[str, Any]:
        """The hyperparameters; those of one case, where one is given as a table by case name.

        A case that is not in the table has the default. Rates that a file has as an array are those of every step.
        """
        cases = set(self.meta.get("cases", ()))
        out = {}
        for name, value in self.meta["hyper"].items():
            if isinstance(value, dict) and value and value.keys() <= cases:
                value = value.get(case)
            out[name] = value
        rates = self.arrays.get("extra/learning_rate")
        if self.meta["mode"] in ("replay", "closure") and rates is not None and len(rates) == len(self.steps):
            out["learning_rate"] = rates.tolist()
        return out

    def worker(self, shift: int) -> "Golden":
        """The same file with the losses and gradients of one of several workers."""
        return self._replace(meta={**self.meta, "seed": self.meta["seed"] + shift})


def folder() -> Path:
    """The trajectories that are replayed: those of the repository, or another folder of the same layout."""
    return Path(os.environ.get("GRADKIT_GOLDEN") or Path(__file__).parent / "data")


def files() -> dict[str, Path]:
    """All trajectories by name, `group/file`."""
    return {f"{path.parent.name}/{path.stem}": path for path in sorted(folder().glob("*/*.npz"))}


def read(path: Path) -> Golden:
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "meta"}
        meta = json.loads(str(archive["meta"]))
    leaves = meta.get("leaves", [])
    steps = [{leaf: arrays.pop(f"t{i + 1}/{leaf}") for leaf in leaves} for i in range(meta.get("steps", 0))]
    return Golden(meta, steps, arrays)


def _draw(seed: int, stream: str, step: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, STREAMS[stream], step])
    return {leaf: rng.standard_normal(shape) for leaf, shape in SHAPES.items()}


def params(golden: Golden) -> dict[str, np.ndarray]:
    drawn = _draw(golden.meta["seed"], "params")
    return {leaf: drawn[leaf] for leaf in golden.meta["leaves"]}


def grads(golden: Golden, step: int) -> dict[str, np.ndarray]:
    drawn = _draw(golden.meta["seed"], "grads", step)
    return {leaf: drawn[leaf] for leaf in golden.meta["leaves"]}


def loss(golden: Golden, step: int, x: dict[str, jax.Array]) -> jax.Array:
    """The loss of a closure step, differentiable."""
    seed = golden.meta["seed"]
    curvature, centre = _draw(seed, "curv", step), _draw(seed, "centre")
    total = jnp.zeros(())
    for leaf in x:
        d = x[leaf] - centre[leaf]
        total = total + jnp.sum((0.5 + np.abs(curvature[leaf])) * d**2 / 2 + 0.1 * d**4)
    return total


def error(got: dict[str, Any], want: dict[str, np.ndarray], start: dict[str, np.ndarray]) -> float:
    """Largest difference, relative to how far each leaf has moved from the start."""
    return max(
        float(np.abs(np.asarray(got[leaf]) - want[leaf]).max() / (np.abs(want[leaf] - start[leaf]).max() + 1e-12))
        for leaf in want
    )
