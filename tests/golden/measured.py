"""What files hold besides trajectories: numbers of the state after a step, and what an update is handed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import gradkit as gk
from gradkit.transforms.weight_normalized import DirectionAndLength
from tests.golden import fixture


def _effective(function: Callable[..., Any]) -> Callable[[fixture.Golden, Any, Any, Any], dict[str, Any]]:
    """The weights that a layer used at a step: the function of those before it."""
    own = ("eps", "gain")

    def show(golden: fixture.Golden, state: Any, x: Any, before: Any) -> dict[str, Any]:
        given = {name: value for name, value in golden.hyper().items() if name in own}
        return {"effective_last": {leaf: function(w, axis=0, **given) for leaf, w in before.items()}}

    return show


def _direction_and_length(golden: fixture.Golden, state: Any, x: Any, before: Any) -> dict[str, Any]:
    """v and g of weight normalization; a file has g without the axis that is summed."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, DirectionAndLength))
    z = next(node for node in nodes if isinstance(node, DirectionAndLength))
    return {"v": z.v, "g": {leaf: g[0] for leaf, g in z.g.items()}}


def _lower_bound(golden: fixture.Golden, state: Any, x: Any, before: Any) -> dict[str, Any]:
    return {"lower_bound": gk.find(state, "bound")}


def _dog_rates(golden: fixture.Golden, state: Any, x: Any, before: Any) -> dict[str, Any]:
    """The step sizes, per leaf in the order of the file, and the average after the step."""
    found = gk.find(state, "step_size")
    sizes = [jnp.ravel(found[leaf])[0] if isinstance(found, dict) else found for leaf in golden.meta["leaves"]]
    return {"eta": jnp.stack(sizes), "avg": gk.averaged_params(state, x)}


def _hessian_diag(golden: fixture.Golden, t: int, x: Any) -> dict[str, Any]:
    """The Hessian of the loss is diagonal: its product with ones is its diagonal."""
    ones = {leaf: jnp.ones_like(value) for leaf, value in x.items()}
    grad = jax.grad(lambda x: fixture.loss(golden, t, x))
    return {"curvature": jax.jvp(grad, (x,), (ones,))[1]}


def _sampled_labels(golden: fixture.Golden, t: int, x: Any) -> dict[str, Any]:
    """The gradient of sampled labels of step t is drawn as that of step 1000 + t; B of them were sampled."""
    del x
    labels = golden.meta["hyper"].get("batch_size", 1)
    return {"curvature": {leaf: jnp.asarray(labels * g**2) for leaf, g in fixture.grads(golden, 1000 + t).items()}}


def _probe(golden: fixture.Golden, t: int, x: Any) -> dict[str, Any]:
    """The random tensors of step t are drawn as the gradients of step 2000 + t."""
    del x
    return {"probe": {leaf: jnp.asarray(v) for leaf, v in fixture.grads(golden, 2000 + t).items()}}


# method -> (file, state, parameters after and before the step) -> name of an array -> what it should be
MEASURED: dict[str, Callable[[fixture.Golden, Any, Any, Any], dict[str, Any]]] = {
    **dict.fromkeys(("dog", "dog_init_eta", "ldog"), _dog_rates),
    **dict.fromkeys(("momo", "momo_star", "momo_adam", "momo_adam_star"), _lower_bound),
    "scaled_standardize_weight": _effective(gk.layers.scaled_standardize_weight),
    "standardize_weight": _effective(gk.layers.standardize_weight),
    "weight_normalized(sgd)": _direction_and_length,
}


# method -> (file, step, parameters) -> what its update is handed besides
EXTRAS: dict[str, Callable[[fixture.Golden, int, Any], dict[str, Any]]] = {
    "adahessian": _hessian_diag,
    "kron": _probe,
    "sophia_g": _sampled_labels,
}
