"""JAX's own small functions, called on arrays by a test, are computed by NumPy.

A test that writes `x * 2` or `jnp.sum(x)` has XLA compile a program of one operation: ten milliseconds, for a number
that is asked for once. Nineteen of twenty programs of the tests were of this kind. `install` hands them to NumPy.
Whatever else is compiled is compiled as ever: functions of the package and of the tests under `jax.jit`, loops and
branches, and all that works on committed or sharded arrays.

The one place where JAX runs a program on arrays has no public name. Should it move, `install` does nothing, and the
tests take longer.
"""

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import pjit  # noqa: TID251
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from tests.numpy_operations import NAMES, PLAIN, operation

HOME = str(Path(jax.__file__).parent)
PLACE = "_pjit_call_impl_python"

KNOWN = NAMES | {"optimization_barrier"}


def install() -> None:
    """From now on and in this process."""
    compiled = getattr(pjit, PLACE, None)
    if compiled is None:
        return
    # Weak: JAX keeps what it compiled of a program for as long as the program is kept.
    asked: weakref.WeakKeyDictionary[ClosedJaxpr, bool] = weakref.WeakKeyDictionary()

    def run(*args: Any, jaxpr: ClosedJaxpr, **p: Any) -> Any:
        if jaxpr not in asked:
            asked[jaxpr] = _by_jax(jaxpr) and _anywhere(p) and _known(jaxpr.jaxpr)
        if asked[jaxpr] and jax.config.jax_default_device is None and all(map(_uncommitted, args)):
            given = [np.asarray(x, aval.dtype) for x, aval in zip(args, jaxpr.in_avals, strict=True)]
            with np.errstate(all="ignore"):
                results = _evaluate(jaxpr, given)
            if results is not None:
                return [_array(x, aval) for x, aval in zip(results, jaxpr.out_avals, strict=True)], None, None, []
            asked[jaxpr] = False
        return compiled(*args, jaxpr=jaxpr, **p)

    setattr(pjit, PLACE, run)


def _by_jax(program: ClosedJaxpr) -> bool:
    """Whether the function was written in JAX, not in the package or in a test."""
    return program.jaxpr.debug_info.func_src_info.split(" at ")[-1].startswith(HOME)


def _anywhere(p: dict[str, Any]) -> bool:
    """Whether nothing is said of devices, buffers and the compiler."""
    shardings = (*p["in_shardings"], *p["out_shardings"])
    told = any(p["donated_invars"]) or p["compiler_options_kvs"] or not p["ctx_mesh"].empty
    return not told and all(isinstance(x, pjit.UnspecifiedValue) for x in shardings)


def _uncommitted(x: Any) -> bool:
    return not x.committed if isinstance(x, jax.Array) else isinstance(x, bool | int | float | np.ndarray | np.generic)


def _called(equation: Any) -> ClosedJaxpr | None:
    """The program that an equation does nothing but call."""
    return equation.params["jaxpr"] if equation.primitive.name in ("jit", "pjit") else None


def _known(program: Jaxpr) -> bool:
    """Whether NumPy has all operations, and the dtypes between them."""
    inner = [(equation, _called(equation)) for equation in program.eqns]
    variables = [*program.invars, *program.outvars, *(v for equation in program.eqns for v in equation.outvars)]
    return (
        not program.effects
        and all(getattr(v.aval, "dtype", None) in PLAIN for v in variables)
        and all(_known(called.jaxpr) if called else equation.primitive.name in KNOWN for equation, called in inner)
    )


def _evaluate(program: ClosedJaxpr, args: Sequence[Any]) -> list[Any] | None:
    """None where NumPy means something else by an operation for these dtypes."""
    body = program.jaxpr
    known: dict[Any, Any] = dict(zip(body.constvars, map(np.asarray, program.consts), strict=True))
    known.update(zip(body.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else known[atom]

    for equation in body.eqns:
        given, name, p = [read(atom) for atom in equation.invars], equation.primitive.name, equation.params
        if (called := _called(equation)) is not None:
            found = _evaluate(called, given)
        else:
            found = given if name == "optimization_barrier" else operation(name, p, given)
        if found is None:
            return None
        for variable, x in zip(equation.outvars, found if isinstance(found, list) else [found], strict=True):
            known[variable] = np.asarray(x, variable.aval.dtype)
            assert known[variable].shape == variable.aval.shape, equation
    return [read(atom) for atom in body.outvars]


def _array(x: np.ndarray, aval: Any) -> jax.Array:
    """A buffer of its own, as weak as the compiled program would have made it."""
    array = jax.device_put(np.array(x))
    if aval.weak_type:
        array.aval = array.aval.update(weak_type=True)  # pyright: ignore[reportAttributeAccessIssue]
    return array
