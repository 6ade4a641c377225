"""A function as JAX traces it, computed by NumPy.

Most tests ask for the numbers of an update a few times, of every method and tree. Compiled, each of these programs
takes seconds before it computes for a microsecond; here it is traced, and NumPy does what NumPy has: arithmetic,
comparisons, sums, shapes and products. What it has not is done by JAX, one operation at a time. That compiled programs
compute the same is a test of its own, for every method.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

# NumPy means the same by these for booleans, integers, and floating point numbers of 32 and 64 bits.
SAME: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "and": np.bitwise_and,
    "add_any": np.add,
    "ceil": np.ceil,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "cos": np.cos,
    "cosh": np.cosh,
    "eq": np.equal,
    "exp": np.exp,
    "expm1": np.expm1,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "log": np.log,
    "log1p": np.log1p,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.bitwise_not,
    "or": np.bitwise_or,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
    "tanh": np.tanh,
}
REDUCTIONS = {
    "reduce_and": np.all,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "reduce_or": np.any,
    "reduce_prod": np.prod,
    "reduce_sum": np.sum,
}
PLAIN = {np.dtype(t) for t in (np.bool_, np.int32, np.int64, np.uint32, np.uint64, np.float32, np.float64)}
FLOATS = {np.dtype(np.float32), np.dtype(np.float64)}


def by_numpy(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function of trees of arrays, traced once for arguments of the same shapes; inside a trace, the function."""
    traced: dict[Any, Any] = {}

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        kind = structure, tuple(jax.typeof(x) for x in leaves)
        if kind not in traced:
            program, shape = jax.make_jaxpr(lambda a, k: f(*a, **k), return_shape=True)(args, kwargs)
            if any(isinstance(x, jax.core.Tracer) for x in (*leaves, *program.consts)):
                return f(*args, **kwargs)
            traced[kind] = program, jax.tree.structure(shape)
        program, out = traced[kind]
        with np.errstate(all="ignore"):
            results = evaluate(program, [taken(x) for x in leaves])
        return out.unflatten([jnp.asarray(x) for x in results])

    return call


def taken(x: Any) -> Any:
    """An array as NumPy has it; a random key as it is."""
    return x if jnp.issubdtype(jnp.result_type(x), jax.dtypes.extended) else np.asarray(x)


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
    found = None
    if all(isinstance(x, np.ndarray | np.generic) for x in args):
        found = _shape(name, p, args)
        if found is None and all(x.dtype in PLAIN for x in args):
            found = _number(name, p, args)
    if found is not None:
        many = isinstance(found, list)
        return [np.asarray(x, v.aval.dtype) for x, v in zip(found if many else [found], equation.outvars, strict=True)]
    given = [jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in args]
    results = equation.primitive.bind(*given, **p)
    return [taken(x) for x in (results if equation.primitive.multiple_results else [results])]


def _number(name: str, p: Any, args: list[Any]) -> Any:
    """Arithmetic; None where NumPy has no such operation, or means something else."""
    if name in SAME:
        return SAME[name](*args)
    if name in REDUCTIONS:
        return REDUCTIONS[name](args[0], axis=tuple(p["axes"])) if args[0].size else None
    floats = all(x.dtype in FLOATS for x in args)
    if name == "div" and floats:
        return args[0] / args[1]
    if name == "rsqrt" and floats:
        return np.ones((), args[0].dtype) / np.sqrt(args[0])
    if name == "pow" and floats:
        return np.power(*args)
    if name == "integer_pow" and floats:
        return np.power(args[0], args[0].dtype.type(p["y"]))
    if name == "dot_general" and floats:
        (left, right), (left_batch, right_batch) = p["dimension_numbers"]
        a, b = ([*range(100 * i, 100 * i + x.ndim)] for i, x in enumerate(args))
        for i, j in zip((*left, *left_batch), (*right, *right_batch), strict=True):
            b[j] = a[i]
        kept = [a[i] for i in left_batch]
        kept += [k for i, k in enumerate(a) if i not in (*left, *left_batch)]
        kept += [k for j, k in enumerate(b) if j not in (*right, *right_batch)]
        place = {k: i for i, k in enumerate(dict.fromkeys([*a, *b]))}
        return np.einsum(args[0], [place[k] for k in a], args[1], [place[k] for k in b], [place[k] for k in kept])
    return None


def _shape(name: str, p: Any, args: list[Any]) -> Any:
    """What moves numbers and changes none; None where it is something else."""
    match name:
        case "broadcast_in_dim":
            shape = [1] * len(p["shape"])
            for axis, n in zip(p["broadcast_dimensions"], args[0].shape, strict=True):
                shape[axis] = n
            return np.broadcast_to(args[0].reshape(shape), p["shape"])
        case "concatenate":
            return np.concatenate(args, p["dimension"])
        case "convert_element_type":
            new, old = p["new_dtype"], args[0].dtype
            whole = jnp.issubdtype(new, np.integer) and not jnp.issubdtype(old, np.integer) and old != np.bool_
            known = {*PLAIN, np.dtype(jnp.bfloat16)}
            return args[0].astype(new) if not whole and {np.dtype(new), old} <= known else None
        case "copy" | "copy_p":
            return args[0]
        case "iota":
            shape, axis = p["shape"], p["dimension"]
            line = np.arange(shape[axis], dtype=p["dtype"])
            return np.broadcast_to(line.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)
        case "reshape":
            return args[0].reshape(p["new_sizes"]) if p["dimensions"] is None else None
        case "rev":
            return np.flip(args[0], p["dimensions"])
        case "select_n":
            which, *cases = args
            return np.where(which, cases[1], cases[0]) if which.dtype == np.bool_ and len(cases) == 2 else None
        case "slice":
            steps = p["strides"] or (1,) * args[0].ndim
            return args[0][tuple(map(slice, p["start_indices"], p["limit_indices"], steps))]
        case "split":
            return np.split(args[0], np.cumsum(p["sizes"])[:-1], p["axis"])
        case "squeeze":
            return np.squeeze(args[0], p["dimensions"])
        case "transpose":
            return np.transpose(args[0], p["permutation"])
    return None


def _cond(p: Any, args: list[Any]) -> list[Any]:
    branch = min(max(operator.index(args[0].item()), 0), len(p["branches"]) - 1)
    return evaluate(p["branches"][branch], args[1:])


def _while(p: Any, args: list[Any]) -> list[Any]:
    n, m = p["cond_nconsts"], p["body_nconsts"]
    ahead, own, carry = args[:n], args[n : n + m], args[n + m :]
    while evaluate(p["cond_jaxpr"], [*ahead, *carry])[0].item():
        carry = evaluate(p["body_jaxpr"], [*own, *carry])
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
