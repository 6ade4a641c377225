"""The layout inferred for the parameter trees of real trainers is what their code means."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import gradkit as gk
from tests.leaves.trees import Label, boxed, faults, nested, trees

NAMES = sorted(trees())
NAMED = [name for name in NAMES if any(label.axis_names for label in trees()[name])]


@jax.tree_util.register_pytree_node_class
class Named:
    """A node with one array and the names of its axes, registered without keys."""

    def __init__(self, array: Any, axes: Any) -> None:
        self.array, self.axes = array, axes

    def tree_flatten(self) -> Any:
        return (self.array,), self.axes

    @classmethod
    def tree_unflatten(cls, axes: Any, children: Any) -> "Named":
        return cls(children[0], axes)


def abstract(label: Label) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(label.shape, jnp.float32)


def wrong(decision: Any, labels: Any) -> dict[str, list[str]]:
    return {x.path: found for x in labels if (found := faults(x, decision(x.path, x.shape)))}


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_say_what_every_leaf_means(name: str) -> None:
    labels = trees()[name]
    decision = gk.leaves.infer_layout(nested(labels))
    assert {path for path, _, _ in decision.entries} == {label.path for label in labels}
    assert wrong(decision, labels) == {}


@pytest.mark.parametrize("name", NAMED)
def test_logical_axes_of_boxes_say_it_too(name: str) -> None:
    labels = trees()[name]

    def box(label: Label) -> Any:
        return nn.LogicallyPartitioned(abstract(label), label.axis_names) if label.axis_names else abstract(label)

    decision = gk.leaves.infer_layout(nested(labels, box))
    assert wrong(decision, labels) == {}
    assert {path for path, _, _ in decision.entries} == {label.path for label in labels}


@pytest.mark.parametrize("name", NAMED)
def test_logical_axes_given_as_a_tree_say_it_too(name: str) -> None:
    labels = trees()[name]
    decision = gk.leaves.infer_layout(nested(labels), nested(labels, lambda label: label.axis_names))
    assert wrong(decision, labels) == {}


@pytest.mark.parametrize("name", [n for n in NAMES if boxed(n)] + ["levanter_gpt2_stacked", "linen_scan_lm", "hf_gpt2"])
def test_a_decision_is_the_same_in_every_box(name: str) -> None:
    labels = trees()[name]
    bare = gk.leaves.infer_layout(nested(labels))
    values = {label.path: jnp.zeros(label.shape) for label in labels}
    boxes = (
        lambda x: nn.Partitioned(abstract(x), (None,) * len(x.shape)),
        lambda x: nnx.Param(values[x.path]),
        lambda x: Named(abstract(x), ()),
        lambda x: values[x.path],
    )
    for box in boxes:
        assert gk.leaves.infer_layout(nested(labels, box)) == bare


def stacks(x: Label) -> list[int]:
    """The stack axes of a leaf that enumerate layers or members, not experts or fused weights."""
    fused = x.splits[0] if x.splits else None
    own = [a for a in x.axes[0][1] if a != fused]
    return own[1:] if "expert" in x.roles[:1] and "matrix" not in x.roles and len(own) == 1 else own


# Left out: an ensemble of one layer, which looks like an einsum where the sizes are those of its heads; trees of which
# only the experts are stacked.
_OTHER = ("nnx_zoo", "big_vision_vit_nerf_moe", "easydel_gpt_oss")
LAYERED = [n for n in NAMES if any(stacks(x) for x in trees()[n]) and n not in _OTHER]


@pytest.mark.parametrize("layers", [2, 3, 12, 48, 64, 100])
@pytest.mark.parametrize("name", LAYERED)
def test_the_number_of_layers_does_not_matter(name: str, layers: int) -> None:
    """Also where it is 3 as colours are, or the width of the model."""
    labels = trees()[name]
    sizes = [x.shape[a] for x in labels for a in stacks(x)]
    most = max(sorted(set(sizes)), key=sizes.count)
    changed = [
        x._replace(shape=tuple(layers if a in stacks(x) and n == most else n for a, n in enumerate(x.shape)))
        for x in labels
    ]
    assert wrong(gk.leaves.infer_layout(nested(changed)), changed) == {}


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_above_a_model_does_not_matter(name: str) -> None:
    labels = [x._replace(path=f"params/model/{x.path}") for x in trees()[name]]
    assert wrong(gk.leaves.infer_layout(nested(labels)), labels) == {}
