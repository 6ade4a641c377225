"""Checkpoints between state in stacks of matrices (`shard=`) and state under the names of parameters.

The leaves are whatever a row of a stack may be read off: replicated and sharded ones, heads in an inner axis that is
sharded, layers in one leaf at an axis that is not the first, fused weights, transposes; and for methods of tensors also
vectors, scalars, and a leaf without entries.
"""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.parallel import init_sharded
from gradkit.training import Checkpoints
from tests.by_numpy import by_numpy
from tests.parallel.test_states_saved import assert_same_rows, filled

pytestmark = pytest.mark.usefixtures("x64")


class Of(NamedTuple):
    shape: tuple[int, ...]
    spec: P


MATRICES = {
    "blocks": {"kernel": Of((8, 16, 2), P())},
    "down": {"kernel": Of((16, 8), P())},
    "fused": {"kernel": Of((8, 32), P("x"))},
    "layers": {"mlp": {"kernel": Of((8, 3, 16), P())}},
    "query": {"kernel": Of((8, 4, 4), P(None, None, "x"))},
    "square": {"kernel": Of((16, 16), P("x"))},
}
TENSORS = MATRICES | {"bias": Of((16,), P("x")), "none": {"kernel": Of((0, 4), P())}, "scale": Of((), P())}
RULES: dict[str, dict[str, tuple[int, ...]]] = {
    "blocks": {"stack": (2,), "inputs": (0,), "outputs": (1,)},
    "fused": {"splits": (16, 16)},
    "layers": {"stack": (1,), "inputs": (0,), "outputs": (2,)},
}


def layout_of(tree: Any) -> Any:
    """The rules of the leaves that are there."""
    return gk.leaves.layout(*((gk.leaves.by_path(f"{k}/.*"), rule) for k, rule in RULES.items() if k in tree))


METHODS: dict[str, tuple[Any, Callable[..., Any]]] = {
    "galore": (MATRICES, functools.partial(gk.project_low_rank, rank=2, update_interval=2, residual="norm_scaled")),
    "conda": (MATRICES, functools.partial(gk.scale_by_conda, update_interval=3, stagger=True, projection="full")),
    "dion": (MATRICES, functools.partial(gk.scale_by_dion, rank=2, key=0)),
    "shampoo": (TENSORS, functools.partial(gk.scale_by_shampoo, b1=0.9, eps=1e-3, update_interval=2)),
    "blocks": (TENSORS, functools.partial(gk.distributed_shampoo, 1.0, eps=1e-3, max_dim=4, grafting="adam")),
    "soap": (TENSORS, functools.partial(gk.scale_by_soap, merge_dims=True, max_dim=16, precondition_1d=True)),
    "kron": (TENSORS, functools.partial(gk.scale_by_kron, update_probability=0.5, key=0)),
}


def is_of(node: Any) -> bool:
    return isinstance(node, Of)


def draw(step: int, tree: Any) -> Any:
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda of: jnp.asarray(rng.standard_normal(of.shape)), tree, is_leaf=is_of)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_run_goes_on_in_the_other_form(name: str, tmp_path: Path) -> None:
    """Two steps in one form and a third in the other are three steps in the first."""
    tree, method = METHODS[name]
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    specs = jax.tree.map(lambda of: of.spec, tree, is_leaf=is_of)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    shard = gk.MatrixSharding(mesh, "x", min_dim=0, specs=specs)
    forms = {
        "stacks": (method(layout=layout_of(tree), shard=shard), shardings, functools.partial(jax.set_mesh, mesh)),
        "parameters": (method(layout=layout_of(tree)), None, contextlib.nullcontext),
    }
    steps, fresh, third = {}, {}, {}
    for form, (tx, places, where) in forms.items():
        with where():
            put = lambda t, places=places: jax.device_put(draw(t, tree), places)  # noqa: E731
            params = put(0)
            state = fresh[form] = init_sharded(tx, params) if places else tx.init(params)
            update = jax.jit(tx.update) if places else by_numpy(tx.update)
            for t in (0, 1):
                _, state = update(put(t), state, params)
            with Checkpoints(tmp_path / form) as checkpoints:
                checkpoints.save(2, {"opt_state": state})
            steps[form] = lambda state, update=update, put=put, params=params: update(put(2), state, params)
            third[form], _ = steps[form](state)

    for source, form in (("stacks", "parameters"), ("parameters", "stacks")):
        with forms[form][2]():
            back, report = Checkpoints(tmp_path / source).restore({"opt_state": fresh[form]})
            assert not report.fresh and not report.dropped
            got, _ = steps[form](back["opt_state"])
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(third[source]), strict=True):
            # Kernels of batches of another size round otherwise.
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9, err_msg=f"from {source} to {form}")


def forms_of_soap(tree: Any, code: str) -> tuple[Any, Any]:
    """The shapes of a narrow state in stacks, and by parameter."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    specs = jax.tree.map(lambda of: of.spec, tree, is_leaf=is_of)
    shard = gk.MatrixSharding(mesh, "x", min_dim=0, specs=specs)
    plain = jax.tree.map(lambda of: jax.ShapeDtypeStruct(of.shape, np.float32), tree, is_leaf=is_of)
    put = lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))  # noqa: E731
    made = [gk.precision(gk.scale_by_soap(layout=layout_of(tree), shard=s), state=code) for s in (shard, None)]
    with jax.set_mesh(mesh):
        stacks = init_sharded(made[0], jax.tree.map(put, plain, specs))
    return {"opt_state": stacks}, {"opt_state": jax.eval_shape(made[1].init, plain)}


def without_nan(x: jax.Array) -> jax.Array:
    """The array; in bfloat16, without NaN. Orbax slices replicated arrays, and as the tests compile, that changes the
    bits of such a NaN, as every conversion to float32 may."""
    if x.dtype != jnp.bfloat16:
        return x
    finite = np.asarray(x).view(np.uint16) & np.uint16(0xBFFF)
    return jax.device_put(finite.view(jnp.bfloat16), x.sharding)


@pytest.mark.parametrize("code", ["bfloat16", "int8-block"])
def test_codes_come_back_from_the_other_form(code: str, tmp_path: Path) -> None:
    """Codes of 8 bits share a scale along the last axis, which in a stack must be that of the parameter."""
    tree = TENSORS if code == "bfloat16" else {k: of for k, of in TENSORS.items() if k not in ("blocks", "fused")}
    stacks, by_parameter = forms_of_soap(tree, code)
    back = saved = jax.tree.map(without_nan, filled(stacks))
    for form, like in (("stacks", by_parameter), ("parameters", stacks)):
        with Checkpoints(tmp_path / form) as checkpoints:
            checkpoints.save(1, back)
            back, report = checkpoints.restore(like)
        assert not report.fresh and not report.dropped
    assert_same_rows(back, saved)


def test_state_in_boxes_comes_back(tmp_path: Path) -> None:
    """State by parameter is in the boxes of its parameters, whose names are longer by a piece."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    params = draw(0, {"down": {"kernel": MATRICES["down"]["kernel"]}, "bias": TENSORS["bias"]})
    boxed = jax.tree.map(lambda x: meta.Partitioned(x, names=("mlp", "embed")[: x.ndim]), params)
    shard = gk.MatrixSharding(mesh, "x", min_dim=0, specs=P())
    stacks, by_parameter = ({"opt_state": gk.scale_by_soap(shard=s).init(boxed)} for s in (shard, None))
    back = saved = filled(stacks)
    for form, like in (("stacks", by_parameter), ("parameters", stacks)):
        with Checkpoints(tmp_path / form) as checkpoints:
            checkpoints.save(1, back)
            back, _ = checkpoints.restore(like)
        assert jax.tree.structure(back) == jax.tree.structure(like)
    assert_same_rows(back, saved)


@pytest.mark.parametrize("name", ["blocks", "fused"])
def test_a_form_that_cannot_be_had_is_refused(name: str, tmp_path: Path) -> None:
    stacks, by_parameter = forms_of_soap({name: MATRICES[name]}, "int8-block")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, filled(stacks))
        with pytest.raises(ValueError, match="of another chain"):
            checkpoints.restore(by_parameter)
