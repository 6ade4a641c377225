"""What XLA is given to trace and compile, counted: no more for an update than optax gives it, for what both have.

The bench `experiments/bench/trace_and_compile.py` has the seconds, and the methods; on one device, as it is run.
"""

import functools
import importlib.util
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import Jaxpr, jaxprs_in_params

import gradkit as gk
from gradkit.engine.backend import rows_between
from gradkit.engine.norms import global_norm, packed_norms

FILE = pathlib.Path(__file__).parents[1] / "experiments/bench/trace_and_compile.py"


@functools.cache
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("trace_and_compile", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where JAX has one device."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def equations(program: Jaxpr, seen: set[int]) -> int:
    """How many a program has, each function that it calls counted once."""
    if id(program) in seen:
        return 0
    seen.add(id(program))
    return sum(1 + sum(equations(p, seen) for p in jaxprs_in_params(e.params)) for e in program.eqns)


def per_block(make: Callable[[], Any], extra: Callable[[Any], dict[str, Any]]) -> int:
    """How many more there are where the transformer has a second block of ten leaves."""
    counts = []
    for leaves in (10, 20):
        params, tx = bench().transformer(leaves), make()
        state = jax.eval_shape(tx.init, params)
        traced = jax.make_jaxpr(lambda u, s, p, tx=tx: tx.update(u, s, p, **extra(p)))(params, state, params)
        counts.append(equations(traced.jaxpr, set()))
    return counts[1] - counts[0]


# Per leaf, what optax does not do: the guard looks at the update as well, and keeps a state by a choice per leaf.
BESIDES = {"guarded adam": 2}


@pytest.mark.parametrize("name", bench().CASES)
def test_an_update_is_no_more_equations_a_leaf_than_in_optax(name: str) -> None:
    case = bench().CASES[name]
    with jax.numpy_dtype_promotion("standard"):  # as optax and its schedules need
        ours, peer = per_block(case.ours, case.extra), per_block(case.peer, case.peer_extra)
    assert ours <= peer + 10 * BESIDES.get(name, 0)


def bodies_of(text: str, word: str = "") -> set[str]:
    """The different fusions of a compiled program, which are its kernels, with this word in them."""
    bodies = set()
    for body in re.findall(r"^%\S*fused_computation\S* \(.*?\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE):
        names: dict[str, str] = {}
        body = re.sub(r", metadata=\{[^}]*\}", "", body)
        bodies.add(re.sub(r"%[\w.\-]+", lambda m, names=names: names.setdefault(m[0], f"%{len(names)}"), body))
    return {body for body in bodies if word in body}


def kernels(tx: Any) -> int:
    """How many different ones XLA makes of an update: fusions with the same body are compiled once."""
    params = bench().transformer(10)
    text = jax.jit(tx.update).lower(params, jax.eval_shape(tx.init, params), params).compile().as_text()
    return len(bodies_of(text))


@pytest.mark.parametrize("name", ["sgd", "momentum", "rmsprop", "lion"])
def test_an_update_is_no_more_kernels_than_in_optax(name: str) -> None:
    """Not one for a counter that nothing reads."""
    case = bench().CASES[name]
    assert kernels(case.ours()) <= kernels(case.peer())


def slices(layers: int) -> int:
    """How many different kernels of Muon's program take something out of an array at a place."""
    tx, params = gk.scale_by_muon(), {f"{i}/kernel": jnp.ones((8, 8)) for i in range(layers)}
    text = jax.jit(tx.update).lower(params, jax.eval_shape(tx.init, params)).compile().as_text()
    return len(bodies_of(text, "slice"))


def test_more_layers_of_the_same_shape_are_no_more_kernels() -> None:
    """What is taken out of a stack of matrices is taken by one kernel, whatever the place."""
    assert slices(12) == slices(4)


def test_rows_are_taken_from_where_they_are() -> None:
    x = np.random.default_rng(0).standard_normal((7, 3))
    for run in (rows_between, lambda x, ends: jax.jit(lambda x: rows_between(x, ends))(x)):
        for found, start in zip(run(jnp.asarray(x), [0, 2, 4, 7]), (0, 2, 4), strict=True):
            np.testing.assert_array_equal(found, x.astype(np.float32)[start : start + len(found)])
        assert [len(rows) for rows in run(jnp.asarray(x), [0, 2, 4, 7])] == [2, 2, 3]
    mapped = jax.vmap(lambda x: rows_between(x, [0, 2, 7])[1])(jnp.asarray(np.stack([x, -x])))
    np.testing.assert_array_equal(mapped[1], -x.astype(np.float32)[2:])


@pytest.mark.parametrize("scale", [1.0, 1e25, 1e37])
@pytest.mark.parametrize("how", ["eager", "jit", "vmap"])
def test_norms_see_numbers_whose_squares_overflow(how: str, scale: float) -> None:
    """Also where the second sum is made only where it is needed; the norm of [3, 4] is 5."""
    tree = {"a": jnp.array([3.0, 0.0]) * scale, "b": jnp.array([[4.0]]) * scale}

    def norms(tree: Any) -> tuple[Any, Any]:
        blocks = packed_norms(["a", "b"], "tensor", None, [*tree.values()], large=(0,)).parts[0]
        return global_norm(tree), jnp.stack([x.reshape(()) for x in blocks])

    if how == "vmap":
        tree = jax.tree.map(lambda x: jnp.stack([x, jnp.ones_like(x)]), tree)
    total, blocks = {"eager": norms, "jit": jax.jit(norms), "vmap": jax.vmap(norms)}[how](tree)
    first = (lambda x: x[0]) if how == "vmap" else lambda x: x
    # A rounding each of a square, a sum, a root and a product.
    np.testing.assert_allclose(np.asarray(first(total)) / scale, 5.0, rtol=4 * 2**-23)
    np.testing.assert_allclose(np.asarray(first(blocks)) / scale, [3.0, 4.0], rtol=4 * 2**-23)
    if how == "vmap":
        np.testing.assert_allclose(total[1], np.sqrt(3), rtol=4 * 2**-23)


def test_leaves_on_different_devices_are_updated_where_they_are() -> None:
    """Eagerly, where all leaves of one device are one program."""
    where = jax.devices()[:2]
    params = {name: jax.device_put(jnp.ones(3), device) for name, device in zip("ab", where, strict=True)}
    tx = gk.sgd(0.5)
    updates, _ = tx.update(params, tx.init(params), params)
    for name, device in zip("ab", where, strict=True):
        assert updates[name].devices() == {device}
        assert updates[name].tolist() == [-0.5] * 3


def test_a_link_checks_what_no_other_has_checked() -> None:
    """Links of a chain pass on what they have checked; a wrapper between them may not."""

    def wrong(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return {"w": jnp.ones(3)}, state

    middle = optax.GradientTransformation(lambda params: optax.EmptyState(), wrong)
    tx = gk.guard(optax.chain(gk.trace(0.9), middle, gk.scale_by_learning_rate(0.1)))
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"'w' has shape \(3,\), the parameter \(2,\)"):
        tx.update(params, tx.init(params), params)
