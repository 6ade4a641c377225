"""The arrays of a golden file besides the trajectory: what `update` is handed, and what is compared.

Whatever the array is of, it is written in one of these ways (steps count from 1 in names):

    NAME                     (steps, ...)       entry t of it belongs to step t
    NAME/LEAF[/NUMBER]       (steps, ...)       likewise, of a leaf, or of one of the tensors stacked in it
    NAMEt/LEAF, NAME_tt/LEAF, tt/NAME/LEAF      the array of step t of a leaf
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gradkit as gk
from tests.golden import fixture
from tests.golden.fixture import Golden

# Array of a file -> argument of `update`. A method's own names are in `build.HANDED`.
ARGUMENTS = {
    "value": "value",
    "loss": "value",
    "curvature": "curvature",
    "probe": "probe",
    "input_moment": "input_moment",
    "moment": "input_moment",
    "grad_sq": "grad_sq",
    "previous_grads": "previous_grads",
    "predicted_grads": "predicted_grads",
    "logits": "logits",
    "weight": "weight",
}
# What changes a gradient before it is handed over.
SCALES = ("gradient_scale", "first_entry_scale")
# Read elsewhere: where a state starts, and what a rate is at each step.
ELSEWHERE = ("learning_rate",)


class Reader:
    """The arrays of one file, which remembers those that were read."""

    def __init__(self, golden: Golden) -> None:
        self.arrays = golden.extra()
        self.steps = len(golden.steps)
        self.leaves = golden.meta["leaves"]
        self.read: set[str] = set()

    def take(self, name: str) -> np.ndarray:
        self.read.add(name)
        return self.arrays[name]

    def at(self, name: str, t: int) -> Any:
        """What belongs to step t (from 0): an array, a tree of leaves (or of other names), or None where there is
        none."""
        if name in self.arrays:
            array = self.take(name)
            return array[t] if array.ndim and len(array) == self.steps else None
        whole = self.tree(name)
        if whole and all(np.ndim(x) and len(x) == self.steps for x in jax.tree.leaves(whole)):
            return jax.tree.map(lambda x: x[t], whole)
        for prefix in (f"{name}{t + 1}", f"{name}_t{t + 1}", f"t{t + 1}/{name}"):
            if tree := self.tree(prefix):
                return tree
        return None

    def tree(self, name: str) -> dict[str, np.ndarray]:
        """The arrays `NAME/LEAF` by leaf; those of tensors `NAME/LEAF/NUMBER` of a stacked leaf are stacked, on axis
        1 where axis 0 is the step."""
        out: dict[str, Any] = {}
        for key in [k for k in self.arrays if k.startswith(f"{name}/")]:
            leaf, _, number = key[len(name) + 1 :].partition("/")
            if not number:
                out[leaf] = self.take(key)
            elif number.isdigit():
                out.setdefault(leaf, {})[int(number)] = self.take(key)
        for leaf, parts in out.items():
            if isinstance(parts, dict):
                ordered = [parts[i] for i in sorted(parts)]
                stacked = leaf in fixture.SHAPES and len(fixture.SHAPES[leaf]) > 2
                axis = 1 if all(len(x) == self.steps for x in ordered) else 0
                out[leaf] = np.stack(ordered, axis) if stacked else ordered[0]
        return out

    def unread(self) -> list[str]:
        return sorted(self.arrays.keys() - self.read)


def handed(reader: Reader, t: int, own: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of `update` that a file has for step t."""
    out = {}
    for name, argument in {**ARGUMENTS, **own}.items():
        value = reader.at(name, t)
        if value is not None:
            out[argument] = jax.tree.map(jnp.asarray, value)
    return out


def treated(reader: Reader, t: int, g: dict[str, Any]) -> dict[str, Any]:
    """The gradient of step t after what a file does to it."""
    scale = reader.at("gradient_scale", t)
    if scale is not None:
        g = {leaf: value * scale for leaf, value in g.items()}
    first = reader.at("first_entry_scale", t)
    if first is not None:
        g = {leaf: jnp.asarray(v).at[(0,) * v.ndim].multiply(first) for leaf, v in g.items()}
    return g


def measured(reader: Reader, t: int, state: Any, x: Any, start: Any) -> float:
    """The largest error of what a file says of step t and a state shows: the point of evaluation, relative to the
    distance moved, and metrics by their names, relative to their sizes over the run.

    A metric in float32 is right to the roundings of float32.
    """
    worst = 0.0
    for name in (f"eval_t{t + 1}", *(["true"] if t + 1 == reader.steps else [])):
        if want := reader.tree(name):
            worst = max(worst, fixture.error(gk.eval_params(state, x), want, start))
    for name, value in gk.diagnostics.metrics(state).items():
        array = reader.arrays.get(name)
        if array is not None and name not in {*ARGUMENTS, *ELSEWHERE} and array.shape == (reader.steps,):
            want = np.asarray(reader.take(name), np.float64)
            error = abs(float(value) - want[t]) / (np.abs(want).max() + 1e-300)
            rounding = 4 * float(jnp.finfo(value.dtype).eps) if jnp.issubdtype(value.dtype, jnp.floating) else 0.0
            worst = max(worst, error if error > rounding else 0.0)
    return worst
