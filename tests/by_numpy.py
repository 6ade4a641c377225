"""A function as JAX traces it, computed by NumPy.

Most tests ask for the numbers of an update a few times, of every method and tree. Compiled, each of these programs
takes seconds before it computes for a microsecond; here it is traced, and NumPy does what NumPy has: arithmetic,
comparisons, sums, shapes and products. What it has not is done by JAX, one operation at a time. That compiled programs
compute the same is a test of its own, for every method.

`op_by_op` is the same for code that is not traced: Python decides on the numbers it sees, as it does outside of `jit`.
"""

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core.primitives
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, Primitive

from tests.numpy_operations import NAMES, operation


class Traced:
    """A function of trees of arrays, traced once for arguments of the same types; inside a trace, the function.

    Attributes:
      programs: what was traced, by the types of the arguments.
    """

    def __init__(self, f: Callable[..., Any]) -> None:
        self.f = f
        self.programs: dict[Any, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves = jax.tree.leaves((args, kwargs))
        program, shapes = self.program(*args, **kwargs)
        if any(isinstance(x, jax.core.Tracer) for x in (*leaves, *program.consts)):
            return self.f(*args, **kwargs)
        with np.errstate(all="ignore"):
            results = evaluate(program, [taken(x) for x in leaves])
        return jax.tree.unflatten(jax.tree.structure(shapes), [arrayed(x) for x in results])

    def program(self, *args: Any, **kwargs: Any) -> tuple[ClosedJaxpr, Any]:
        """The program for arguments of these types, and the shapes, dtypes and weak types of its results."""
        leaves, structure = jax.tree.flatten((args, kwargs))
        kind = jax.config.jax_enable_x64, structure, tuple(jax.typeof(x) for x in leaves)
        if kind not in self.programs:
            made = jax.make_jaxpr(lambda a, k: self.f(*a, **k), return_shape=True)(args, kwargs)
            if any(isinstance(x, jax.core.Tracer) for x in (*leaves, *made[0].consts)):
                return made  # of another trace, which will end
            self.programs[kind] = made
        return self.programs[kind]


def by_numpy(f: Callable[..., Any]) -> Traced:
    """A function of trees of arrays, computed by NumPy."""
    return Traced(f)


def taken(x: Any) -> Any:
    """An array as NumPy has it; a random key as it is."""
    return x if jnp.issubdtype(jnp.result_type(x), jax.dtypes.extended) else np.asarray(x)


def arrayed(x: Any) -> Any:
    """An array of JAX with memory of its own, so that it can be donated; a random key as it is."""
    return jax.device_put(np.array(x)) if isinstance(x, np.ndarray | np.generic) else x


def evaluate(program: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    known: dict[Any, Any] = {}
    body = program.jaxpr
    known.update(zip(body.constvars, map(taken, program.consts), strict=True))
    known.update(zip(body.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else known[atom]

    for equation in body.eqns:
        results = apply(equation, [read(atom) for atom in equation.invars])
        for variable, x in zip(equation.outvars, results, strict=True):
            shape, dtype = variable.aval.shape, variable.aval.dtype  # pyright: ignore
            assert (x.shape, x.dtype) == (shape, dtype), (equation, x)
            known[variable] = x
    return [read(atom) for atom in body.outvars]


def apply(equation: Any, args: list[Any]) -> list[Any]:
    """One operation."""
    name, p = equation.primitive.name, equation.params
    if name in CONTROL:
        return CONTROL[name](p, args)
    if name == "optimization_barrier":
        return args
    for inner in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call"):
        if isinstance(p.get(inner), ClosedJaxpr):
            return evaluate(p[inner], args)
    found = by_its_name(name, p, args)
    if found is not None:
        return found
    given = [arrayed(x) if isinstance(x, np.ndarray) else x for x in args]
    results = equation.primitive.bind(*given, **p)
    return [taken(x) for x in (results if equation.primitive.multiple_results else [results])]


def by_its_name(name: str, p: Any, args: Sequence[Any]) -> list[Any] | None:
    """The results of an operation of NumPy; None where it has none."""
    if not all(isinstance(x, np.ndarray | np.generic) for x in args):
        return None
    found = operation(name, p, list(args))
    if found is None:
        return None
    return [np.asarray(x) for x in (found if isinstance(found, list) else [found])]


def _cond(p: Any, args: list[Any]) -> list[Any]:
    branch = min(max(operator.index(args[0].item()), 0), len(p["branches"]) - 1)
    return evaluate(p["branches"][branch], args[1:])


def _while(p: Any, args: list[Any]) -> list[Any]:
    n, m = p["cond_nconsts"], p["body_nconsts"]
    ahead, own, carry = args[:n], args[n : n + m], args[n + m :]
    # Under `vmap` each row has a condition of its own, and stays as it is once that is false.
    while (goes_on := evaluate(p["cond_jaxpr"], [*ahead, *carry])[0]).any():
        new = evaluate(p["body_jaxpr"], [*own, *carry])
        rows = [goes_on.reshape(goes_on.shape + (1,) * (np.ndim(x) - goes_on.ndim)) for x in new]
        carry = [np.where(*row) for row in zip(rows, new, carry, strict=True)] if goes_on.ndim else new
    return carry


def _scan(p: Any, args: list[Any]) -> list[Any]:
    n, m, length = p["num_consts"], p["num_carry"], p["length"]
    own, carry, xs = args[:n], args[n : n + m], args[n + m :]
    rows: list[list[Any]] = []
    for i in range(length)[:: -1 if p["reverse"] else 1]:
        (*out,) = evaluate(p["jaxpr"], [*own, *carry, *(x[i] for x in xs)])
        carry = out[:m]
        rows.append(out[m:])
    rows = rows[::-1] if p["reverse"] else rows
    shapes = p["jaxpr"].out_avals[m:]
    stacked = [
        _stack([row[k] for row in rows]) if rows else np.zeros((0, *shape.shape), shape.dtype)
        for k, shape in enumerate(shapes)
    ]
    return [*carry, *stacked]


def _stack(xs: list[Any]) -> Any:
    return np.stack(xs) if isinstance(xs[0], np.ndarray) else jnp.stack(xs)


CONTROL = {"cond": _cond, "scan": _scan, "while": _while}


@contextlib.contextmanager
def op_by_op() -> Iterator[None]:
    """Nothing is traced or compiled: every operation is done when Python reaches it, by NumPy where NumPy has it."""
    found = [x for x in vars(jax.extend.core.primitives).values() if isinstance(x, Primitive)]
    usual = {primitive: primitive.impl for primitive in found if primitive.name in NAMES}

    def instead(primitive: Primitive) -> Callable[..., Any]:
        def impl(*args: Any, **p: Any) -> Any:
            # A number without a dtype of its own would get one.
            if not p.get("weak_type") and not any(getattr(jax.typeof(x), "weak_type", False) for x in args):
                with np.errstate(all="ignore"):
                    results = by_its_name(primitive.name, p, [taken(x) for x in args])
                if results is not None:
                    results = [arrayed(x) for x in results]
                    return results if primitive.multiple_results else results[0]
            return usual[primitive](*args, **p)

        return impl

    try:
        for primitive in usual:
            primitive.impl = instead(primitive)
        with jax.disable_jit():
            yield
    finally:
        for primitive, impl in usual.items():
            primitive.impl = impl
