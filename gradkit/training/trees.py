"""Parameters of one's own as a tree of shapes: from a JSON file, a Python file, or the name of a preset.

# params.json: names, "/" between levels; a list is a shape of float32
{
  "layers/mlp/up/kernel": {"shape": [32, 4096, 14336], "dtype": "bfloat16", "axes": ["layers", "embed", "mlp"]},
  "final_norm/scale": [4096]
}

# params.py: it is executed; the function is only traced, so it may call a model's own `init`
def params():
    return model.init(jax.random.key(0), jnp.ones((1, 128), jnp.int32))["params"]
"""

import json
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.training import chains
from gradkit.workloads import from_folder, load, model_shapes

FIELDS = ("shape", "dtype", "axes")


def find(where: str) -> Any:
    """The parameters of a file, or of a preset.

    Args:
      where: FILE.json, FILE.py (or FILE.py:name), or one of `gk.workloads.models()`.

    Returns:
      A tree of `jax.ShapeDtypeStruct`s, in `flax.linen.LogicallyPartitioned` boxes where axes have names.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that fails or has another form; an unknown preset.
    """
    if where.endswith(".json"):
        return from_json(where)
    if where.partition(":")[0].endswith(".py"):
        return from_python(where)
    return model_shapes(where)


def parameters(workload: str | None, model: str | None, params: str | None, data: str | None = None) -> tuple[Any, str]:
    """Where parameters come from, a workload or a tree of shapes, and its name.

    Args:
      workload: its name; None with the others: digits_mlp.
      model: instead, the name of a preset.
      params: instead, a file, as in `find`.
      data: instead, a folder, as in `gk.workloads.from_folder`.
    """
    if data is not None:
        problem = from_folder(data)
        return problem, problem.name
    if model is not None:
        return model_shapes(model), model
    if params is not None:
        return find(params), pathlib.PurePath(params).name
    problem = load(workload or "digits_mlp")
    return problem, problem.name


def from_json(where: str) -> Any:
    """The tree that a JSON file describes."""
    file = pathlib.Path(where)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        read = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        at = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"--params={where}{at}: this is not JSON: {error}") from error
    if not isinstance(read, dict) or not read:
        raise ValueError(
            f"--params={where}: the file must hold one object of names and shapes, such as "
            f'{{"dense/kernel": {{"shape": [8, 4], "axes": ["embed", "mlp"]}}}}, got {str(read)[:40]}'
        )
    tree: dict[str, Any] = {}
    for name, entry in read.items():
        *above, last = name.split("/")
        node = tree
        for piece in above:
            node = node.setdefault(piece, {})
            if not isinstance(node, dict):
                raise ValueError(
                    f"--params={where}: {name!r} is below another parameter; give one of them another name"
                )
        if last in node:
            raise ValueError(f"--params={where}: {name!r} is above another parameter; give one of them another name")
        node[last] = _leaf(f"--params={where}: {name!r}", entry)
    return tree


def _leaf(what: str, entry: Any) -> Any:
    fields = {"shape": entry} if isinstance(entry, list) else entry
    if not isinstance(fields, dict) or "shape" not in fields:
        raise ValueError(
            f'{what} must be a shape, [8, 4], or {{"shape": [8, 4], "dtype": …, "axes": […]}}, got {entry!r}'
        )
    for field in fields:
        checks.choice(f"{what}: a field", field, FIELDS)
    shape, names = fields["shape"], fields.get("axes")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{what}: shape must be a list of whole numbers >= 0, such as [8, 4], got {shape!r}")
    try:
        dtype = jnp.dtype(fields.get("dtype", "float32"))
    except TypeError as error:
        raise ValueError(f'{what}: dtype must be a name such as "bfloat16", got {fields["dtype"]!r}') from error
    x = jax.ShapeDtypeStruct(tuple(shape), dtype)
    if names is None:
        return x
    if not isinstance(names, list) or len(names) != len(shape):
        raise ValueError(
            f"{what}: axes must be a list with one name or null for each of its {len(shape)} axes, got {names!r}"
        )
    return nn.LogicallyPartitioned(x, tuple(names))


def from_python(where: str) -> Any:
    """The tree that a Python file defines as `params`: a function, which is only traced, or the tree itself."""
    found, _ = chains.executed(where, "params")
    given: list[Any] = []

    def call() -> Any:
        tree = found() if callable(found) else found
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree)):
            given.append(tree)
            return ()
        return tree

    with chains.blamed(where):
        tree = jax.eval_shape(call)
    tree = given[0] if given else tree
    if not jax.tree.leaves(tree):
        raise ValueError(f"--params={where}: params must give a tree with one array at least, got {tree!r}")
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
