"""JAX's operations on arrays, as NumPy has them: arithmetic, comparisons, sums, shapes, indices and products.

`operation` returns None where NumPy has no such operation, or means something else by it.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.special

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
    "erf_inv": scipy.special.erfinv,
    "exp": np.exp,
    "expm1": np.expm1,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": scipy.special.expit,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.bitwise_not,
    "or": np.bitwise_or,
    "rem": np.fmod,
    "shift_left": np.left_shift,
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
    "tanh": np.tanh,
    "xor": np.bitwise_xor,
}
# Those that are arithmetic of floating point numbers alone.
OF_FLOATS: dict[str, Callable[..., Any]] = {
    "div": np.divide,
    "pow": np.power,
    "rsqrt": lambda x: np.ones((), x.dtype) / np.sqrt(x),
}
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "reduce_and": np.all,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "reduce_or": np.any,
    "reduce_prod": lambda x, axis: np.prod(x, axis, dtype=x.dtype),
    "reduce_sum": lambda x, axis: np.sum(x, axis, dtype=x.dtype),
}
FLOATS = {np.dtype(np.float32), np.dtype(np.float64)}
UNSIGNED = {np.dtype(np.uint32), np.dtype(np.uint64)}
PLAIN = {np.dtype(t) for t in (np.bool_, np.int32, np.int64)} | UNSIGNED | FLOATS
HALF = np.dtype(jnp.bfloat16)


def operation(name: str, p: Any, args: list[Any]) -> Any:
    """The result of an operation with parameters `p` on NumPy arrays, a list where it has several; or None."""
    mover = MOVERS.get(name)
    if mover is not None:
        return mover(p, *args)
    if all(x.dtype in PLAIN for x in args):
        if name in SAME:
            return SAME[name](*args)
        if name in REDUCTIONS:
            return REDUCTIONS[name](args[0], axis=tuple(p["axes"])) if args[0].size else None
        if name == "shift_right_logical" and args[0].dtype in UNSIGNED:
            return np.right_shift(*args)
        if all(x.dtype in FLOATS for x in args):
            if name in OF_FLOATS:
                return OF_FLOATS[name](*args)
            if name in ALGEBRA and all(x.size for x in args):
                return ALGEBRA[name](p, *args)
    return None


def _integer_pow(p: Any, x: Any) -> Any:
    return np.power(x, x.dtype.type(p["y"]))


def _dot_general(p: Any, x: Any, y: Any) -> Any:
    (left, right), (left_batch, right_batch) = p["dimension_numbers"]
    a, b = [*range(x.ndim)], [*range(x.ndim, x.ndim + y.ndim)]
    for i, j in zip((*left, *left_batch), (*right, *right_batch), strict=True):
        b[j] = a[i]
    kept = [a[i] for i in left_batch]
    kept += [k for i, k in enumerate(a) if i not in (*left, *left_batch)]
    kept += [k for j, k in enumerate(b) if j not in (*right, *right_batch)]
    place = {k: i for i, k in enumerate(dict.fromkeys([*a, *b]))}
    return np.einsum(x, [place[k] for k in a], y, [place[k] for k in b], [place[k] for k in kept])


def _argmax(p: Any, x: Any) -> Any:
    (axis,) = p["axes"]
    return None if np.isnan(x).any() else np.argmax(x, axis).astype(p["index_dtype"])


def _cholesky(p: Any, x: Any) -> Any:
    try:
        return np.linalg.cholesky(x)
    except np.linalg.LinAlgError:  # there JAX has NaN
        return None


def _triangular_solve(p: Any, a: Any, b: Any) -> Any:
    """a x = b, or x a = b, with a or its transpose: of floating point numbers, of which a conjugate is no other."""
    left, out = p["left_side"], np.empty_like(b)
    # x a = b is a^T x^T = b^T.
    options = {"trans": "T" if p["transpose_a"] == left else "N", "lower": p["lower"]}
    options |= {"unit_diagonal": p["unit_diagonal"], "check_finite": False}
    for i in np.ndindex(*a.shape[:-2]):
        x = scipy.linalg.solve_triangular(a[i], b[i] if left else b[i].T, **options)
        out[i] = x if left else x.T
    return out


ALGEBRA: dict[str, Callable[..., Any]] = {
    "argmax": _argmax,
    "cholesky": _cholesky,
    "dot_general": _dot_general,
    "integer_pow": _integer_pow,
    "round": lambda p, x: np.rint(x) if int(p["rounding_method"]) == 1 else None,
    "triangular_solve": _triangular_solve,
}


def _broadcast_in_dim(p: Any, x: Any, *dynamic: Any) -> Any:
    shape = [1] * len(p["shape"])
    for axis, n in zip(p["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = n
    return np.broadcast_to(x.reshape(shape), p["shape"])


def _convert(p: Any, x: Any) -> Any:
    new, old = np.dtype(p["new_dtype"]), x.dtype
    if new.kind in "iu" and old not in PLAIN | {HALF}:
        return None
    if new.kind in "iu" and old.kind not in "iub" and not (np.abs(x) < 2.0**31).all():
        return None  # what does not fit is the nearest number to JAX
    return x.astype(new) if {new, old} <= PLAIN | {HALF} else None


def _bitcast(p: Any, x: Any) -> Any:
    new = np.dtype(p["new_dtype"])
    return np.ascontiguousarray(x).view(new).reshape(x.shape) if new.itemsize == x.dtype.itemsize else None


def _iota(p: Any, *dynamic: Any) -> Any:
    shape, axis = p["shape"], p["dimension"]
    if np.dtype(p["dtype"]) not in PLAIN:
        return None
    line = np.arange(shape[axis], dtype=p["dtype"])
    return np.broadcast_to(line.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)


def _select(p: Any, which: Any, *cases: Any) -> Any:
    return np.where(which, cases[1], cases[0]) if which.dtype == np.bool_ and len(cases) == 2 else None


def _slice(p: Any, x: Any) -> Any:
    steps = p["strides"] or (1,) * x.ndim
    return x[tuple(map(slice, p["start_indices"], p["limit_indices"], steps))]


def _starts(x: Any, sizes: Any, starts: Any) -> tuple[slice, ...]:
    """A window of these sizes, moved to where it fits."""
    places = (min(max(int(i), 0), n - size) for i, n, size in zip(starts, x.shape, sizes, strict=True))
    return tuple(slice(i, i + size) for i, size in zip(places, sizes, strict=True))


def _cumulative(f: Callable[..., Any]) -> Callable[..., Any]:
    def along(p: Any, x: Any) -> Any:
        axis = p["axis"]
        if x.dtype not in PLAIN:
            return None
        return np.flip(f(np.flip(x, axis), axis), axis) if p["reverse"] else f(x, axis)

    return along


def _dynamic_update_slice(p: Any, x: Any, new: Any, *starts: Any) -> Any:
    out = x.copy()
    out[_starts(x, new.shape, starts)] = new
    return out


MOVERS: dict[str, Callable[..., Any]] = {
    "bitcast_convert_type": _bitcast,
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": lambda p, *xs: np.concatenate(xs, p["dimension"]),
    "convert_element_type": _convert,
    "copy": lambda p, x: x,
    "copy_p": lambda p, x: x,
    "cummax": _cumulative(np.maximum.accumulate),
    "cummin": _cumulative(np.minimum.accumulate),
    "cumprod": _cumulative(lambda x, axis: np.cumprod(x, axis, dtype=x.dtype)),
    "cumsum": _cumulative(lambda x, axis: np.cumsum(x, axis, dtype=x.dtype)),
    "dynamic_slice": lambda p, x, *starts: x[_starts(x, p["slice_sizes"], starts)],
    "dynamic_update_slice": _dynamic_update_slice,
    "iota": _iota,
    "reshape": lambda p, x, *dynamic: x.reshape(p["new_sizes"]) if p["dimensions"] is None else None,
    "rev": lambda p, x: np.flip(x, p["dimensions"]),
    "select_n": _select,
    "slice": _slice,
    "stack": lambda p, *xs: np.stack(xs, p["axis"]),
    "tile": lambda p, x: np.tile(x, p["reps"]),
    "split": lambda p, x: np.split(x, np.cumsum(p["sizes"])[:-1], p["axis"]),
    "squeeze": lambda p, x: np.squeeze(x, p["dimensions"]),
    "stop_gradient": lambda p, x: x,
    "transpose": lambda p, x: np.transpose(x, p["permutation"]),
}
NAMES = {*SAME, *OF_FLOATS, *REDUCTIONS, *ALGEBRA, *MOVERS, "shift_right_logical"}
