"""Layered gradient accumulation: all microbatches pass through one layer before the next."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import widen
from gradkit.gradients.accumulate import accumulate
from gradkit.parallel.replicas import alike

PAPER = Paper(
    "Layered gradient accumulation and modular pipeline parallelism: fast and efficient training of large language "
    "models",
    "Lamy-Poirier",
    2021,
    "2106.02679",
)
Tree = Callable[[Any], Any]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def _through(layer_fn: Any, params: Any, inputs: Any, reduce: Tree, gather: Tree) -> Any:
    return _forward(layer_fn, params, inputs, reduce, gather)[0]


def _forward(layer_fn: Any, params: Any, inputs: Any, reduce: Tree, gather: Tree) -> tuple[Any, Any]:
    del reduce

    def layer(h: Any, w: Any) -> tuple[Any, Any]:
        w = gather(w)
        return jax.lax.map(lambda h: layer_fn(w, h), h), h

    out, kept = jax.lax.scan(layer, inputs, params)
    return out, (params, kept)


def _gradient_of(w_bar: jax.Array, w: jax.Array) -> jax.Array:
    """The gradient in the dtype of the parameter, summed over the devices where the parameter is replicated."""
    several = jax.typeof(w_bar).manual_axis_type.varying - jax.typeof(w).manual_axis_type.varying
    w_bar = jax.lax.psum(w_bar, tuple(sorted(several, key=str))) if several else w_bar
    return w_bar.astype(w.dtype)


def _backward(layer_fn: Any, reduce: Tree, gather: Tree, saved: Any, d: Any) -> tuple[Any, Any]:
    def layer(d: Any, w_and_h: Any) -> tuple[Any, Any]:
        (shards, h), w = w_and_h, gather(w_and_h[0])

        def microbatch(h_and_d: Any) -> tuple[Any, Any]:
            h, d = h_and_d
            own = alike(w, jax.tree.map(lambda _: jax.tree.leaves(d)[0], w))  # so that the gradient is per device
            return jax.vjp(layer_fn, own, h)[1](d)

        g, d = accumulate(microbatch, (h, d))
        return d, jax.tree.map(_gradient_of, reduce(g), shards)

    d, g = jax.lax.scan(layer, d, saved, reverse=True)
    return g, d


_through.defvjp(_forward, _backward)


def layer_major(
    layer_fn: Callable[[Any, Any], Any],
    stacked_params: Any,
    microbatches: Any,
    *,
    reduce: Callable[[Any], Any] | None = None,
    gather: Callable[[Any], Any] | None = None,
) -> Any:
    """Sends microbatches through a stack of layers, layer by layer, and their gradients back in the same order.

    Equations, for each layer l forward, and then for each layer from the last one backward, for all microbatches m:

        h_m <- layer(w_l, h_m)                              forward; the inputs of every layer are kept
        g_l = sum_m (d layer / d w_l)^T d_m                 backward
        d_m <- (d layer / d h)^T d_m

    The gradient of a layer is complete after its backward pass: it is all-reduced once, while the next layer computes,
    and parameters that are sharded over devices are all-gathered once per layer and pass. Microbatch by microbatch both
    happen k times. In exchange the inputs of all layers for all k microbatches are kept, and layers are computed twice.
    Use it instead of `layered_gradient_accumulation` where an embedding and a head are trained too.

    Args:
      layer_fn: (parameters of a layer, h) -> h of the same structure, shapes and dtypes. Only its two arguments have
        gradients: arrays that it closes over have none.
      stacked_params: a tree whose leaves have a leading axis of layers.
      microbatches: h of all microbatches: a tree whose leaves have a leading axis of microbatches.
      reduce: a function of the gradient of one layer, in float32 or wider and summed over microbatches, called once per
        layer: inside `shard_map` a `jax.lax.psum` over replicas, or a `jax.lax.psum_scatter` back to the shards that
        `gather` took. Default None: the identity; gradients of parameters that are replicated in `shard_map` are summed
        over the replicas, as always in JAX.
      gather: a function from the sharded parameters of one layer to those that `layer_fn` takes, called once per layer
        and pass: inside `shard_map` a `jax.lax.all_gather`. Default None: the identity.

    Returns:
      h after the last layer, of all microbatches. Memory for the backward pass: the inputs of every layer.

    Raises:
      ValueError: leaves without a leading axis, or of several lengths, or of length 0; functions that cannot be called.

    Example:
      >>> h = layer_major(lambda w, h: w * h, jnp.array([2.0, 3.0]), jnp.array([1.0, 10.0]))
      >>> print(h)
      [ 6. 60.]

    Reference: Lamy-Poirier. Layered gradient accumulation and modular pipeline parallelism: fast and efficient training
    of large language models. 2021, arXiv 2106.02679.
    """
    checks.function("layer_fn", layer_fn)
    for name, function in (("reduce", reduce), ("gather", gather)):
        if function is not None:
            checks.function(name, function)
    _length("stacked_params", stacked_params)
    _length("microbatches", microbatches)
    params, inputs = jax.tree.map(jnp.asarray, (stacked_params, microbatches))
    return _through(layer_fn, params, inputs, reduce or _same, gather or _same)


def _same(tree: Any) -> Any:
    return tree


def _length(name: str, tree: Any) -> int:
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(tree)}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        found = sorted(length[0] if length else "none" for length in lengths)
        raise ValueError(f"{name} must be a tree of arrays with the same leading axis, not empty, got {found}")
    return lengths.pop()[0]


def layered_gradient_accumulation(
    layer_fn: Callable[[Any, Any], Any],
    stacked_params: Any,
    head_loss: Callable[..., Any],
    microbatches: Any,
    *,
    targets: Any = None,
    reduce: Callable[[Any], Any] | None = None,
    gather: Callable[[Any], Any] | None = None,
) -> tuple[jax.Array, Any]:
    """Value and gradient of the mean loss over microbatches; every layer's gradient is all-reduced once, not once per
    microbatch.

    Equations: those of `layer_major`, with the value

        value = mean over m of head_loss(h_m)

    Args:
      layer_fn: (parameters of a layer, h) -> h of the same structure, shapes and dtypes.
      stacked_params: a tree whose leaves have a leading axis of layers.
      head_loss: h after the last layer, of one microbatch -> scalar; (h, target) -> scalar with `targets`.
      microbatches: the inputs of the first layer: a tree whose leaves have a leading axis of microbatches.
      targets: a tree with the same leading axis. Default None.
      reduce: as in `layer_major`; a `jax.lax.pmean` where the value is to be the mean over replicas.
      gather: as in `layer_major`.

    Returns:
      (value, gradient): the mean of the losses of this device's microbatches, and a tree like `stacked_params`; sums
      over microbatches are float32 or wider. Collectives: those of `reduce` and `gather`, per layer. Under plain
      `jit` the compiler inserts an all-reduce in every microbatch: use `shard_map`.

    Raises:
      ValueError: as `layer_major`; targets of another number; a loss that is not a scalar.

    Example:
      >>> layer = lambda w, h: w * h
      >>> w, x = jnp.array([2.0, 3.0]), jnp.array([1.0, 3.0])  # two layers; two microbatches of one example
      >>> value, grads = layered_gradient_accumulation(layer, w, lambda h: h, x)
      >>> print(value, grads)
      12.0 [6. 4.]

    Reference: Lamy-Poirier. Layered gradient accumulation and modular pipeline parallelism: fast and efficient training
    of large language models. 2021, arXiv 2106.02679. No code was published with it.
    """
    checks.function("head_loss", head_loss)
    k = _length("microbatches", microbatches)
    if targets is not None and _length("targets", targets) != k:
        raise ValueError(f"targets must be of {k} microbatches, got {_length('targets', targets)}")

    def mean_loss(params: Any) -> jax.Array:
        h = layer_major(layer_fn, params, microbatches, reduce=reduce, gather=gather)
        losses = jax.lax.map(lambda one: widen(head_loss(*one)), (h,) if targets is None else (h, targets))
        if jnp.shape(losses) != (k,):
            raise ValueError(f"head_loss must return a scalar per microbatch, got shape {jnp.shape(losses)[1:]}")
        return jnp.mean(losses)

    return jax.value_and_grad(mean_loss)(jax.tree.map(jnp.asarray, stacked_params))


def modular_stage(layer: Any, stages: int) -> Any:
    """The stage of a modular pipeline that has a layer: layers are assigned to stages in turn, not in blocks.

    Equations:

        stage = l mod stages

    With layered accumulation a stage has finished a layer when all microbatches have passed through it, and the next
    stage starts after one layer instead of after a block of layers: the pipeline fills in 1 / (layers per stage) of the
    time.

    Args:
      layer: l, an integer >= 0 or an array of them, which may be traced.
      stages: of the pipeline, >= 1.

    Returns:
      l mod stages.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> [modular_stage(layer, 3) for layer in range(7)]
      [0, 1, 2, 0, 1, 2, 0]

    Reference: Lamy-Poirier. Layered gradient accumulation and modular pipeline parallelism: fast and efficient training
    of large language models. 2021, arXiv 2106.02679.
    """
    checks.integer("stages", stages, 1)
    if isinstance(layer, jax.Array | np.ndarray):
        if not jnp.issubdtype(layer.dtype, jnp.integer):
            raise ValueError(f"layer must be an integer >= 0, got {layer.dtype}")
        return layer % stages
    checks.integer("layer", layer)
    return layer % stages


register(layered_gradient_accumulation, form="program", paper=PAPER, collectives="replicas")
register(
    modular_stage,
    form="function",
    paper=PAPER,
    example={"layer": 5, "stages": 4},
)
