"""`make_mesh`, `param_shardings`, `batch_sharding`: names and lengths, and what is cut along which axis."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import gradkit as gk
from gradkit.parallel import batch_sharding, make_mesh, param_shardings


def test_a_mesh_from_text_or_mapping() -> None:
    mesh = make_mesh("data=4, fsdp=2")
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    assert mesh.axis_types == (AxisType.Auto,) * 2
    assert mesh == make_mesh({"data": -1, "fsdp": 2})
    assert make_mesh("a=2,b=1,c=-1", explicit=True).axis_types == (AxisType.Explicit,) * 3
    assert make_mesh("fsdp=-1", devices=jax.devices()[:3]).size == 3


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("data=3", "the axes data=3 must multiply to the number of devices, 8"),
        ("data=3,fsdp=-1", "must multiply to the number of devices, 8"),
        ("data=-1,fsdp=-1", "only one length"),
        ("data=0", "'data' must be >= 1"),
        ("data", "must be written like"),
        ("data=two", "must be written like"),
        ("data=2,data=4", "each name once"),
        ({}, "one axis or more"),
    ],
)
def test_axes_that_make_no_mesh(axes: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_mesh(axes)  # pyright: ignore[reportArgumentType]


def test_what_is_cut_along_which_axis() -> None:
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    shapes = {
        "dense": {"kernel": (6, 4), "bias": (4,)},
        "odd": {"kernel": (3, 4)},
        "alone": {"bias": (3,)},
        "query": {"kernel": (8, 4, 2)},
        "ScanBlock_0": {"up": {"kernel": (2, 4, 8)}, "RMSNorm_0": {"scale": (2, 5)}},
        "embed": {"embedding": (10, 4)},
        "temperature": (),
        "none": (0,),
    }
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    lies = param_shardings(params, mesh)
    assert jax.tree.map(lambda s: s.spec, lies) == {
        "dense": {"kernel": P("fsdp", "tensor"), "bias": P("fsdp")},
        "alone": {"bias": P()},
        "odd": {"kernel": P(None, "tensor")},  # 3 does not divide, 4 is taken
        "query": {"kernel": P("fsdp", None, "tensor")},
        # Both layers of the stack stay on every device: a scan takes one layer at a time.
        "ScanBlock_0": {"up": {"kernel": P(None, "fsdp", "tensor")}, "RMSNorm_0": {"scale": P()}},
        "embed": {"embedding": P("fsdp", "tensor")},
        "temperature": P(),
        "none": P(),
    }
    longest = param_shardings({"w": params["dense"]["kernel"]}, make_mesh("fsdp=2,data=4"))
    assert longest["w"].spec == P("fsdp")


def test_stacks_that_a_layout_declares() -> None:
    mesh = make_mesh("fsdp=8")
    layout = gk.leaves.layout((gk.leaves.by_path("layers"), {"stack": 1}))
    shape = {"layers": jax.ShapeDtypeStruct((16, 8, 4), np.float32)}
    assert param_shardings(shape, mesh)["layers"].spec == P("fsdp")
    assert param_shardings(shape, mesh, layout=layout)["layers"].spec == P(None, "fsdp")


def test_a_batch_is_cut_along_every_axis_of_data() -> None:
    assert batch_sharding(make_mesh("replica=2,data=2,fsdp=2")).spec == P(("replica", "data", "fsdp"))
    assert batch_sharding(make_mesh("tensor=8")).spec == P()
    assert batch_sharding(make_mesh("rows=2,data=4"), batch_axes=("rows",)).spec == P("rows")
    with pytest.raises(ValueError, match="batch_axes must be one of"):
        batch_sharding(make_mesh("data=8"), batch_axes=("rows",))
