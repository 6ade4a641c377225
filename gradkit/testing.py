"""What a transformation owes its users, as one function: the contract for transformations that you write yourself."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.engine.extras import samples
from gradkit.training.one_step import needs_of
from gradkit.types import PyTree

__all__ = ["Report", "check_transformation"]

# Programs that compute the same in float32 differ by roundings (2^-24) of some hundred operations in a few steps.
TOLERANCE = 1e-4


class Report(NamedTuple):
    """What `check_transformation` has found.

    Attributes:
      passed: names of the points that hold.
      failed: name of a point -> what is wrong, in one line.
      skipped: name of a point -> why it does not apply.
    """

    passed: tuple[str, ...]
    failed: dict[str, str]
    skipped: dict[str, str]

    def __str__(self) -> str:
        lines = [f"passed   {name}" for name in self.passed]
        lines += [f"skipped  {name}: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines + [f"FAILED   {name}: {what}" for name, what in self.failed.items()])


class _Broken(Exception):
    """A point that does not hold, and what is wrong."""


class _Skipped(Exception):
    """A point that does not apply, and why."""


class _Setting(NamedTuple):
    """What every point is given: `step` is `update` with the extra arguments that the transformation asks for."""

    tx: optax.GradientTransformationExtraArgs
    params: Any
    gradients: Any  # with a leading axis of steps
    steps: int
    needs: tuple[str, ...]
    extra: dict[str, Any]
    tolerance: float

    def step(self, gradients: Any, state: Any, params: Any, tx: Any = None) -> tuple[Any, Any]:
        extra = {**samples(gradients, self.needs), **self.extra}
        return (tx or self.tx).update(gradients, state, params, **extra)

    def of(self, i: int) -> Any:
        return jax.tree.map(lambda g: g[i], self.gradients)

    def run(self, tx: Any = None, step: Callable[..., Any] | None = None) -> tuple[Any, Any]:
        """The parameters and the state after all steps."""
        step = step or (lambda g, s, p: self.step(g, s, p, tx))
        params, state = self.params, (tx or self.tx).init(self.params)
        for i in range(self.steps):
            updates, state = step(self.of(i), state, params)
            params = optax.apply_updates(params, updates)
        return params, state


def _types(tree: Any) -> list[Any]:
    return [(jnp.shape(x), jnp.result_type(x), getattr(x, "weak_type", False)) for x in jax.tree.leaves(tree)]


def _names(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) or "the leaf" for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _same_types(what: str, tree: Any, wanted: Any, than: str) -> None:
    if jax.tree.structure(tree) != jax.tree.structure(wanted):
        raise _Broken(f"{what} have another tree structure than {than}")
    for name, own, other in zip(_names(wanted), _types(tree), _types(wanted), strict=True):
        if own != other:
            shown = [f"{dtype}{list(shape)}{' (weak)' * weak}" for shape, dtype, weak in (own, other)]
            raise _Broken(f"{what}: {name} is {shown[0]}, and {shown[1]} in {than}")


def _numbers(x: Any) -> np.ndarray:
    x = jax.random.key_data(x) if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key) else jnp.asarray(x)
    complex_ = jnp.issubdtype(x.dtype, jnp.complexfloating)
    return np.asarray(x).astype(np.complex128 if complex_ else np.float64)


def _close(what: str, tree: Any, wanted: Any, tolerance: float) -> None:
    if jax.tree.structure(tree) != jax.tree.structure(wanted):
        raise _Broken(f"{what}: the trees have another structure")
    for name, own, other in zip(_names(wanted), jax.tree.leaves(tree), jax.tree.leaves(wanted), strict=True):
        a, b = _numbers(own), _numbers(other)
        scale = max(float(np.max(np.abs(b[np.isfinite(b)]), initial=0.0)), 1e-30)
        wrong = ~((a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= tolerance * scale))
        if np.any(wrong):
            at = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(wrong)))
            raise _Broken(
                f"{what}: {name} is {np.atleast_1d(a)[at]:.9g} and {np.atleast_1d(b)[at]:.9g} at {list(at)}, and "
                f"{int(wrong.sum())} of {wrong.size} entries differ"
            )


def _state_is_arrays(given: _Setting) -> None:
    state = given.tx.init(given.params)
    for name, leaf in zip(_names(state), jax.tree.leaves(state), strict=True):
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise _Broken(f"{name} of the state of init is {type(leaf).__name__}; write jnp.asarray(value, dtype)")


def _updates_are_like_gradients(given: _Setting) -> None:
    updates, _ = given.step(given.of(0), given.tx.init(given.params), given.params)
    _same_types("updates", updates, given.of(0), "the gradients")


def _state_keeps_its_types(given: _Setting) -> None:
    state = given.tx.init(given.params)
    _same_types("states after a step", given.step(given.of(0), state, given.params)[1], state, "the state of init")


def _bfloat16_stays(given: _Setting) -> None:
    if any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in jax.tree.leaves(given.params)):
        raise _Skipped("complex parameters have no narrow dtype")
    params, g = (jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree) for tree in (given.params, given.of(0)))
    state = given.tx.init(params)
    updates, after = given.step(g, state, params)
    _same_types("updates of bfloat16 gradients", updates, g, "the gradients")
    _same_types("states of bfloat16 parameters after a step", after, state, "the state of init")


def _jit_equals_eager(given: _Setting) -> None:
    with jax.disable_jit():
        eager = given.run()
    _close("jit and eager", given.run(step=jax.jit(given.step)), eager, given.tolerance)


def _scan_equals_loop(given: _Setting) -> None:
    def body(carry: tuple[Any, Any], g: Any) -> tuple[tuple[Any, Any], None]:
        updates, state = given.step(g, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    carry = (given.params, given.tx.init(given.params))
    scanned, _ = jax.jit(lambda carry, g: jax.lax.scan(body, carry, g))(carry, given.gradients)
    _close("scan and loop", scanned, given.run(step=jax.jit(given.step)), given.tolerance)


def _vmap_equals_one_by_one(given: _Setting) -> None:
    def last(g: Any) -> tuple[Any, Any]:
        return given.step(g, given.tx.init(given.params), given.params)

    together = jax.jit(jax.vmap(last))(given.gradients)
    for i in range(given.steps):
        alone = jax.jit(last)(given.of(i))
        _close(f"vmap and alone ({i})", jax.tree.map(lambda x, i=i: x[i], together), alone, given.tolerance)


def _same_again(given: _Setting) -> None:
    _close("the first and the second run", given.run(), given.run(), 0.0)


def _inputs_stay(given: _Setting) -> None:
    state = given.tx.init(given.params)
    before = jax.tree.map(lambda x: np.array(_numbers(x)), (given.of(0), state, given.params))
    g = given.of(0)
    given.step(g, state, given.params)
    _close("inputs before and after", jax.tree.map(_numbers, (g, state, given.params)), before, 0.0)


def _chain_is_composition(given: _Setting) -> None:
    chained = optax.chain(optax.identity(), given.tx, optax.scale(0.5))
    updates, _ = given.step(given.of(0), given.tx.init(given.params), given.params)
    own, _ = given.step(given.of(0), chained.init(given.params), given.params, chained)
    _close("in a chain before scale(0.5)", own, jax.tree.map(lambda u: 0.5 * u, updates), given.tolerance)


def _masked_leaves_stay(given: _Setting) -> None:
    leaves, structure = jax.tree.flatten(given.params)
    if len(leaves) < 2:
        raise _Skipped("one leaf only")
    mask = structure.unflatten([i > 0 for i in range(len(leaves))])
    masked = optax.masked(given.tx, mask)
    try:
        own, _ = given.step(given.of(0), masked.init(given.params), given.params, masked)
    except ValueError as error:
        if given.needs or given.extra:
            raise _Skipped("extra arguments have all leaves") from error
        raise
    _close("the leaf that is masked", jax.tree.leaves(own)[0], jax.tree.leaves(given.of(0))[0], 0.0)


def _zeros_are_finite(given: _Setting) -> None:
    zeros = jax.tree.map(jnp.zeros_like, given.of(0))
    params, state = given.params, given.tx.init(given.params)
    for _ in range(2):
        updates, state = given.step(zeros, state, params)
        for name, u in zip(_names(updates), jax.tree.leaves(updates), strict=True):
            if not np.all(np.isfinite(_numbers(u))):
                raise _Broken(
                    f"a gradient of zeros gives {name} an update that is not finite; add eps, or divide safely"
                )


def _state_is_a_tree(given: _Setting) -> None:
    """What a checkpoint does: the state is taken apart and put together, as new arrays."""
    state = given.tx.init(given.params)
    _, state = given.step(given.of(0), state, given.params)
    leaves, structure = jax.tree.flatten(state)
    restored = structure.unflatten([jnp.array(x) for x in leaves])
    own, other = (given.step(given.of(0), s, given.params) for s in (restored, state))
    _close("a state that was saved and restored", own, other, 0.0)


def _sharded_equals_replicated(given: _Setting) -> None:
    devices = jax.devices()
    size = max((n for n in (8, 4, 2) if n <= len(devices)), default=1)
    axes = [
        next((i for i, n in enumerate(x.shape) if n % size == 0 and n), None) for x in jax.tree.leaves(given.params)
    ]
    if size < 2 or all(axis is None for axis in axes):
        raise _Skipped(
            "one device, or no axis that devices divide; set XLA_FLAGS=--xla_force_host_platform_device_count=8"
        )
    mesh = jax.sharding.Mesh(np.asarray(devices[:size]), ("data",))
    structure = jax.tree.structure(given.params)

    def place(x: Any, axis: int | None) -> Any:
        names: list[str | None] = [None] * jnp.ndim(x)
        if axis is not None:
            names[axis] = "data"
        return jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*names)))

    trees = [jax.tree.leaves(tree) for tree in (given.params, given.of(0))]
    params, g = (structure.unflatten([place(x, axis) for x, axis in zip(t, axes, strict=True)]) for t in trees)
    whole = jax.jit(given.step)(given.of(0), given.tx.init(given.params), given.params)
    parts = jax.jit(given.step)(g, jax.jit(given.tx.init)(params), params)
    _close("sharded and replicated", parts, whole, given.tolerance)


def _descends(given: _Setting) -> None:
    """On half the squared distance to the parameters' negative."""
    params, state = given.params, given.tx.init(given.params)

    def value(params: Any) -> jax.Array:
        squares = jax.tree.map(
            lambda p, q: jnp.sum(jnp.square(jnp.abs(p + q))).astype(jnp.float32), params, given.params
        )
        return jnp.sum(jnp.stack(jax.tree.leaves(squares))) / 2

    def body(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], jax.Array]:
        loss, g = jax.value_and_grad(value)(carry[0])
        extra = {"value": loss} if "value" in given.needs else {}
        extra = {**samples(g, given.needs), **extra, **given.extra}
        updates, state = given.tx.update(g, carry[1], carry[0], **extra)
        return (optax.apply_updates(carry[0], updates), state), loss

    _, losses = jax.jit(lambda c: jax.lax.scan(body, c, None, 60))((params, state))
    if not float(losses[-1]) < float(losses[0]):
        raise _Broken(
            f"the loss of a quadratic went from {float(losses[0]):.4g} to {float(losses[-1]):.4g} in 60 steps: is the "
            "sign that of a step that is added, and the learning rate small enough?"
        )


POINTS: dict[str, Callable[[_Setting], None]] = {
    "init makes arrays": _state_is_arrays,
    "updates are like gradients": _updates_are_like_gradients,
    "a state keeps its types": _state_keeps_its_types,
    "bfloat16 in, bfloat16 out": _bfloat16_stays,
    "jit = eager": _jit_equals_eager,
    "scan = loop": _scan_equals_loop,
    "vmap = one by one": _vmap_equals_one_by_one,
    "the same again": _same_again,
    "inputs are not changed": _inputs_stay,
    "a chain is a composition": _chain_is_composition,
    "masked leaves stay": _masked_leaves_stay,
    "zeros give finite updates": _zeros_are_finite,
    "a state is a tree of arrays": _state_is_a_tree,
    "sharded = replicated": _sharded_equals_replicated,
    "descends": _descends,
}


def _drawn(params: Any, steps: int, seed: int) -> Any:
    """Gradients of all steps, standard normal."""
    rng = np.random.default_rng(seed)

    def draw(x: jax.Array) -> jax.Array:
        values = rng.standard_normal((steps, *x.shape))
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            values = values + 1j * rng.standard_normal((steps, *x.shape))
        return jnp.asarray(values).astype(x.dtype)

    return jax.tree.map(draw, params)


def check_transformation(
    tx: optax.GradientTransformation,
    params: PyTree = None,
    *,
    descends: bool = False,
    skip: Collection[str] = (),
    needs: Collection[str] = (),
    extra_args: dict[str, Any] | None = None,
    steps: int = 3,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> Report:
    """Checks that a transformation of yours is what optax, JAX and the loops of gradkit take it for.

    The points, each by its name: `init makes arrays`, `updates are like gradients` (structure, shapes, dtypes),
    `a state keeps its types` (also weak types, so that a step is compiled once), `bfloat16 in, bfloat16 out`,
    `jit = eager`, `scan = loop`, `vmap = one by one`, `the same again` (no hidden state), `inputs are not changed`,
    `a chain is a composition`, `masked leaves stay`, `zeros give finite updates`, `a state is a tree of arrays` (as a
    checkpoint takes it), `sharded = replicated` (with two devices or more), and `descends`, where it is asked for. They
    do not say whether the method is that of its paper: for this compare it to a few steps in NumPy.

    Args:
      tx: the transformation, such as what your factory returns.
      params: parameters to try it on, a tree of floating-point arrays. Default: a matrix (8, 4), a bias (4,).
      descends: whether 60 steps on half the squared distance to a point must lower it: of an optimizer True, of a link
        without learning rate False. Default False.
      skip: names of points that it need not meet, such as `["masked leaves stay"]`. Default none.
      needs: extra arguments of `update` that it cannot do without and gradkit knows (`gradkit.engine.extras`), such as
        `["value"]`; samples of them are made. Those of the cards of its links are known without. Default none.
      extra_args: other extra arguments of `update`, the same in every step. Default none.
      steps: of the runs that are compared, >= 1. Default 3.
      seed: of the gradients, >= 0. Default 0.
      tolerance: by how much two programs may differ, relative to the largest entry of a leaf, >= 0. Default 1e-4, some
        hundred roundings of float32.

    Returns:
      A `Report`, which prints as a table.

    Raises:
      AssertionError: points do not hold; the message has all of them, a line each. Where the transformation raises an
        error, the point does not hold.
      ValueError: an argument outside its range; an unknown point.

    Example:
      >>> def halve():
      ...     return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u / 2, updates))
      >>> report = check_transformation(halve())
      >>> len(report.passed) >= 12, report.failed
      (True, {})
      >>> drops = optax.stateless(lambda updates, params: jax.tree.map(lambda u: u.astype(np.float16), updates))
      >>> check_transformation(drops)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      AssertionError: ...updates are like gradients: updates: ['bias'] is float16[4], and float32[4] in the gradients...
    """
    checks.transformation(tx=tx)
    steps, seed = checks.integer("steps", steps, 1), checks.integer("seed", seed, 0)
    checks.real("tolerance", tolerance, "[0, inf)")
    checks.switch(descends=descends)
    for name in skip:
        checks.choice("skip", name, tuple(POINTS))
    if params is None:
        rng = np.random.default_rng(seed + 1)
        params = {"bias": rng.standard_normal(4), "kernel": rng.standard_normal((8, 4))}
        params = jax.tree.map(lambda x: x.astype(np.float32), params)
    params = jax.tree.map(jnp.asarray, params)
    if not all(jnp.issubdtype(x.dtype, jnp.inexact) for x in jax.tree.leaves(params)) or not jax.tree.leaves(params):
        raise ValueError("params must be a tree of floating-point arrays; leave integers out with optax.masked")
    tx = optax.with_extra_args_support(tx)
    known = tuple(dict.fromkeys((*needs, *needs_of(tx, params))))
    given = _Setting(tx, params, _drawn(params, steps, seed), steps, known, extra_args or {}, tolerance)
    passed: list[str] = []
    failed: dict[str, str] = {}
    skipped = dict.fromkeys(skip, "as asked for")
    for name, point in POINTS.items():
        if name in skipped:
            continue
        if name == "descends" and not descends:
            skipped[name] = "asked for by descends=True"
            continue
        try:
            point(given)
        except _Skipped as why:
            skipped[name] = str(why)
        except _Broken as what:
            failed[name] = str(what)
        except Exception as error:  # a user's own code may raise anything; the report says what, as of a failed point
            lines = str(error).splitlines() or [""]
            failed[name] = f"{type(error).__name__}: {lines[0]}"
        else:
            passed.append(name)
    report = Report(tuple(passed), failed, skipped)
    if failed:
        raise AssertionError(f"{len(failed)} of {len(failed) + len(passed)} points do not hold\n{report}")
    return report
