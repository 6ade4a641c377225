"""What a parameter is: its name, its role and axes, the group it belongs to."""

from gradkit.leaves.axes import Axes
from gradkit.leaves.axis_names import AXIS_NAMES
from gradkit.leaves.coalesce import Merge, coalesce, decoalesce, interpolate_params, v_cycle
from gradkit.leaves.depth import layerwise_decay
from gradkit.leaves.describe import Description, Row, describe
from gradkit.leaves.groups import groups
from gradkit.leaves.infer import Decision, Doubt, infer_layout
from gradkit.leaves.layout import layout, tensor_axes, unit_axes
from gradkit.leaves.matrices import from_matrices, to_matrices
from gradkit.leaves.paths import map_named, masked_names, names
from gradkit.leaves.recording import Method
from gradkit.leaves.scopes import Layout, LayoutWarning, axes_of, default_layout, resolve_layout
from gradkit.leaves.selectors import (
    Selector,
    by_dtype,
    by_path,
    by_rank,
    by_role,
    by_shape,
    check_mask,
    check_mask_form,
    everything,
    matrices_by_default,
    no_decay,
    resolve_mask,
)

__all__ = [
    "AXIS_NAMES",
    "Axes",
    "Decision",
    "Description",
    "Doubt",
    "Layout",
    "LayoutWarning",
    "Merge",
    "Method",
    "Row",
    "Selector",
    "axes_of",
    "by_dtype",
    "by_path",
    "by_rank",
    "by_role",
    "by_shape",
    "check_mask",
    "check_mask_form",
    "coalesce",
    "decoalesce",
    "default_layout",
    "describe",
    "everything",
    "from_matrices",
    "groups",
    "infer_layout",
    "interpolate_params",
    "layerwise_decay",
    "layout",
    "map_named",
    "masked_names",
    "matrices_by_default",
    "names",
    "no_decay",
    "resolve_layout",
    "resolve_mask",
    "tensor_axes",
    "to_matrices",
    "unit_axes",
    "v_cycle",
]
