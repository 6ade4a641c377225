"""What every transformation of this library shares, in one place.

`transformation` turns a pair (init, update) of mathematics into an optax transformation that

* computes in float32 or wider whatever the dtype of parameters and gradients, and gives updates back in
  the dtype they came in; `optimizer` does it once for a whole chain, so nothing is rounded in between;
* raises before any arithmetic where gradients do not match the parameters, where `params` is needed
  and missing, where a leaf is not floating point, or complex for a method that has no complex form;
* takes leaves that are NumPy arrays or Python floats for the arrays they stand for;
* passes extra arguments on;
* decides what the axes of all leaves mean once, for itself and all links inside it (`gradkit.leaves.scopes`).

A tree has hundreds of leaves and few shapes. So a rule for one leaf is a function of arrays under `jax.jit`, which is
traced once per shape instead of once per leaf and is one program where an update runs eagerly; what is the same for all
leaves of a dtype is computed `once_per_dtype`; and checks of leaves look at shapes and dtypes, at names only to report.
"""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from gradkit import catalogue, checks
from gradkit.engine.extras import missing
from gradkit.engine.keys import NoKey
from gradkit.engine.matching import (
    NUMBERS,
    Known,
    check_leaves,
    give,
    giving,
    has_numbers,
    known,
    matched,
    types_of,
)
from gradkit.engine.mismatches import told
from gradkit.leaves import Layout, Method, check_mask, check_mask_form, resolve_layout
from gradkit.leaves.derived import has_boxes, rename, unboxed, without_empty
from gradkit.leaves.keeping import has_kept
from gradkit.leaves.recording import announce
from gradkit.leaves.scopes import deciding, scoped_init, scoped_update

InitFn = Callable[[Any], Any]
UpdateFn = Callable[..., tuple[Any, Any]]


@functools.lru_cache(maxsize=64)
def wide_dtype(dtype: Any) -> Any:
    """The dtype a leaf is computed in: float32, or its own where that is wider."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


@functools.lru_cache(maxsize=64)
def real_dtype(dtype: Any) -> Any:
    """The dtype of the real and the imaginary part."""
    return jnp.finfo(dtype).dtype


def cast(x: Any, dtype: Any) -> Any:
    """The array in another dtype; the same array where that is its own."""
    return x if x.dtype == dtype else x.astype(dtype)


def widen(tree: Any) -> Any:
    """The tree in the dtypes it is computed in."""
    tree = as_arrays(tree)
    if all(wide_dtype(dtype) == dtype for dtype in {x.dtype for x in jax.tree.leaves(tree)}):
        return tree
    return jax.tree.map(lambda x: cast(x, wide_dtype(x.dtype)), tree)


def _widened(given: Known) -> Known:
    if all(wide_dtype(dtype) == dtype for dtype in {*given.types.dtypes, *given.param_dtypes}):
        # Another one, as the links inside put others in the place of its updates.
        return Known(given.updates, given.params, given.types, given.param_dtypes)
    return matched("", widen(given.updates), widen(given.params))


def _wide_or_abstract(x: Any) -> Any:
    dtype = wide_dtype(x.dtype)
    if isinstance(x, jax.ShapeDtypeStruct) and x.dtype != dtype:
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
    return cast(x, dtype)


def inside(inner: optax.GradientTransformation, name: str = "inner") -> optax.GradientTransformationExtraArgs:
    """A transformation as one around it calls it that computes in float32: `init` has the dtypes of `update`.

    The state of one of optax has the dtype of the parameters until its first update. `name`: of the argument.

    >>> tx = inside(optax.sgd(0.1, momentum=0.9))
    >>> jax.tree.leaves(tx.init(jnp.zeros(2, jnp.bfloat16)))[0].dtype
    dtype('float32')
    """
    checks.transformation(**{name: inner})
    extra = optax.with_extra_args_support(inner)
    return optax.GradientTransformationExtraArgs(
        lambda params: extra.init(jax.tree.map(_wide_or_abstract, as_arrays(params))), extra.update
    )


def as_arrays(tree: Any) -> Any:
    """The tree with NumPy arrays and Python numbers as JAX arrays of strong dtypes; other leaves stay as they are."""
    if not has_numbers(tree):
        return tree
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)) if isinstance(x, NUMBERS) else x, tree)


def zeros(params: Any, dtype: Any = None, *, real: bool = False) -> Any:
    """Accumulators: zeros of the shape and sharding of the parameters.

    Args:
      params: arrays or `jax.ShapeDtypeStruct`s.
      dtype: of the accumulators; by default the one the leaf is computed in.
      real: real accumulators for complex parameters as well.
    """

    def zero(x: Any) -> jax.Array:
        own = dtype or wide_dtype(x.dtype)
        return jnp.zeros_like(x, dtype=real_dtype(own) if real else own)

    return jax.tree.map(zero, params)


def rows_of(x: jax.Array, count: int) -> jax.Array:
    """The array `count` times, along a new leading axis; sharded as it is, also over Explicit axes."""
    return jax.lax.broadcast(x, (count,))


def scalar(value: Any, like: jax.Array) -> Any:
    """A hyperparameter ready to be combined with a leaf: arrays in the leaf's dtype, Python numbers as
    they are, so that 1 - b is taken before anything is rounded."""
    return value if type(value) in (int, float) else cast(jnp.asarray(value), like.dtype)


def pair(decay: Any) -> tuple[Any, Any]:
    """A decay b and 1 - b, for a function under `jax.jit`, where a Python number has become an array: of a number the
    difference is taken here, before anything is rounded; of an array (None) there, in the dtype of the leaf."""
    return decay, (1 - decay if type(decay) in (int, float) else None)


def weights(pair: tuple[Any, Any], like: jax.Array) -> tuple[Any, Any]:
    """b and 1 - b, ready to be combined with a leaf."""
    b = scalar(pair[0], like)
    return b, (1 - b if pair[1] is None else scalar(pair[1], like))


def once_per_dtype(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function of a leaf that looks at its dtype alone, called once for every dtype.

    To be made anew in every update, as the results of one trace mean nothing in another.
    """
    known: dict[Any, Any] = {}

    def of(like: Any) -> Any:
        if like.dtype not in known:
            known[like.dtype] = function(like)
        return known[like.dtype]

    return of


def times(factor: Any, x: jax.Array) -> jax.Array:
    """factor * x for what `scalar` makes of a number: traced, it is spared the operator's search for a common dtype."""
    if not isinstance(x, Tracer):
        return factor * x
    return jax.lax.mul(np.asarray(factor, x.dtype) if isinstance(factor, int | float) else factor, x)


def at_count(value: Any, count: Any, name: str = "the value of a schedule") -> Any:
    """The value of a hyperparameter at this step: a schedule is called with the number of earlier steps.

    Raises:
      ValueError: the value is no scalar; a schedule without a counter; `name` is the argument, for the message.
    """
    if callable(value) and count is None:
        raise ValueError(
            f"{name} is a schedule, and the state was made for a number and has no counter: make the state with this "
            "transformation's init, or give the number"
        )
    return checks.scalar(name, value(count) if callable(value) else value)


def counter(read: bool) -> jax.Array | None:
    """The counter of steps at its start, or None where the link does not read it: XLA compiles a kernel of its own for
    a counter, which takes as long as the update of all leaves of one shape."""
    return jnp.zeros((), jnp.int32) if read else None


def increment(count: Any) -> Any:
    """The counter after one more step; it stays at its largest value instead of overflowing. None stays None."""
    if count is None:
        return None
    count = jnp.asarray(count)
    last, one = (np.asarray(k, count.dtype) for k in (np.iinfo(count.dtype).max - 1, 1))
    return jax.lax.add(jax.lax.min(count, last), one)


def bias_correction(decay: Any, count: jax.Array, like: jax.Array) -> jax.Array:
    """1 - decay^count, without the cancellation that float32 shows for decays near 1."""
    dtype = real_dtype(like.dtype)
    if type(decay) in (int, float):
        log = math.log(decay) if decay > 0 else -math.inf
    else:
        log = jnp.log(jnp.asarray(decay)).astype(dtype)
    return -jnp.expm1(count.astype(dtype) * log)


def bias_corrections(decay: Any, count: jax.Array) -> Callable[[Any], jax.Array]:
    """1 - decay^count as a function of a leaf, computed once per dtype."""
    return once_per_dtype(lambda like: bias_correction(decay, count, like))


def abs_sq(x: jax.Array) -> jax.Array:
    """|x|^2, real for complex x."""
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)


def divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """x / y, and 0 where y is 0."""
    no = y == 0
    return jnp.where(no, jnp.zeros((), x.dtype), x / jnp.where(no, jnp.ones((), y.dtype), y))


def need(method: str, extra: Mapping[str, Any], name: str) -> Any:
    """An extra argument of `update` that a method cannot do without."""
    if extra.get(name) is None:
        raise ValueError(missing(method, name))
    return extra[name]


def check_decay_mask(method: str, mask: Any, params: Any) -> None:
    """Raises where a mask of weight decay selects no leaf."""
    instead = "weight_decay=0 and no mask"
    check_mask(mask, params, method=method, argument="weight_decay_mask", instead=instead)


def transformation(
    method: str,
    init: InitFn,
    update: UpdateFn,
    *,
    needs_params: bool = False,
    complex_leaves: bool = False,
    as_params: bool = False,
    described: Method | None = None,
    complete: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """An optax transformation from the mathematics of `init` and `update`.

    Args:
      method: the public name, for messages.
      init: params -> state; gets the parameters in their own dtype, also as `jax.ShapeDtypeStruct`s.
      update: (updates, state, params or None, **extra) -> (updates, state), on leaves of float32 or wider.
      needs_params: whether `update` reads the parameters.
      complex_leaves: whether the method means something on complex leaves.
      as_params: whether updates leave in the parameters' dtype (where params are given) rather than in
        the dtype they came in.
      described: what `describe` prints of it. Default None: its name.
      complete: whether it is a ready optimizer, whose links `describe` does not print.
    """
    if described is not None:
        check_mask_form(weight_decay_mask=described.weight_decay_mask)

    def checked_init(params: Any) -> Any:
        check_leaves(method, params, complex_leaves=complex_leaves)

        def announced(params: optax.Params) -> Any:
            return announce(described or Method(method), init, params, complete=complete)

        return scoped_init(announced, as_arrays(params), method)

    def checked_update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None and needs_params:
            raise ValueError(f"{method} needs params: call update(grads, state, params)")
        given = known(updates, params)
        linked = given is not None
        if given is None:
            updates, params = as_arrays(updates), as_arrays(params)
            given = matched(method, updates, params)
        check_leaves(method, updates, complex_leaves=complex_leaves, dtypes=given.types.dtypes)
        wide = given if linked else _widened(given)

        def run(state: Any) -> tuple[Any, Any]:
            with giving(wide):
                return update(wide.updates, state, wide.params, **extra)

        like = updates if params is None else params
        if linked:  # what does not fit is told of by the transformation around this one
            new, state = scoped_update(run, like, state)
        else:
            new, state = told(method, updates, state, lambda: scoped_update(run, like, state), checked_init, like)
        found, dtypes = types_of(new), given.param_dtypes if as_params else given.types.dtypes
        if found.dtypes != dtypes:
            new = jax.tree.map(lambda u, x: cast(u, x.dtype), new, like if as_params else updates)
            found = found._replace(dtypes=dtypes)
        give(new, found)
        return new, state

    return boxless(checked_init, checked_update)


def boxless(init: InitFn, update: UpdateFn) -> optax.GradientTransformationExtraArgs:
    """A transformation whose `update` never sees a box, and whose state has a box of its own where `init` left that of
    a parameter around an array of another shape."""

    def renamed(params: optax.Params) -> Any:
        params = without_empty(params)
        return rename(init(params), params)

    def bare(updates: optax.Updates, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if known(updates, params) is not None or not has_boxes((updates, state, params, extra)):
            return update(updates, state, params, **extra)
        structure, kept = jax.tree.structure(updates), jax.tree.structure(state)
        told = {k: through(v, structure) if callable(v) else unboxed(v) for k, v in extra.items()}
        # What named arrays say of their axes is read off the boxes; what other boxes said, `init` has kept.
        scope = contextlib.nullcontext() if has_kept(state) else deciding(updates if params is None else params)
        with scope:
            new, state = update(unboxed(updates), unboxed(state), unboxed(params), **told)
        return structure.unflatten(jax.tree.leaves(new)), kept.unflatten(jax.tree.leaves(state))

    return optax.GradientTransformationExtraArgs(renamed, bare)


def through(function: Callable[..., Any], structure: Any) -> Callable[..., Any]:
    """A function of trees with boxes, such as a Hessian-vector product, as one of trees without."""

    def boxed(tree: Any) -> Any:
        bare = jax.tree.structure(tree) == jax.tree.structure(unboxed(structure.unflatten([0] * structure.num_leaves)))
        return structure.unflatten(jax.tree.leaves(tree)) if bare else tree

    return lambda *args, **rest: unboxed(function(*map(boxed, args), **rest))


def stateless(method: str, layout: Layout | None) -> InitFn:
    """The `init` of a link that keeps nothing and whose update depends on the meaning of axes."""

    def init(params: optax.Params) -> optax.EmptyState:
        resolve_layout(layout, params, method=method, matters=True)
        return optax.EmptyState()

    return init


def optimizer(described: Method, *links: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A ready optimizer: a chain whose intermediate updates are never rounded to the parameters' dtype.

    Args:
      described: what `describe` prints of it.
      *links: the chain.
    """
    chain = optax.with_extra_args_support(optax.chain(*links))

    def init(params: optax.Params) -> Any:
        check_decay_mask(described.name, described.weight_decay_mask, params)
        return chain.init(params)

    def update(updates: optax.Updates, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        try:
            return chain.update(updates, state, params, **extra)
        except NoKey as error:
            card = catalogue.cards().get(described.name)
            if card is None or "key" not in inspect.signature(card.function).parameters:
                raise
            raise error.of(described.name) from None

    # Each link refuses complex leaves by itself where it has no complex form.
    return transformation(
        described.name,
        init,
        update,
        complex_leaves=True,
        as_params=True,
        described=described,
        complete=True,
    )
