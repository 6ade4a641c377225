"""A small picture of every transformation and schedule: its path on one problem of two dimensions, or its values.

The problem is a curved valley, r = ((x - 1) / sqrt(2), 1.4 (y - x^2 / 2)), f = |r|^2 / 2, seen by eight examples that
are shifted a little. A method for matrices trains the 2 x 2 matrix x u_1 v_1^T + y u_2 v_2^T, and the plane is that of
its two coefficients. Aggregators descend between the minima of several tasks, strategies and exchanges tie four
replicas together. Every method runs at fifteen learning rates at once and is drawn at the one whose path is lowest, and
has no long steps.

What was computed is kept in a folder outside of the tree, under a digest of the package's sources.
"""

import functools
import hashlib
import inspect
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from gradkit import catalogue
from gradkit.catalogue import Card
from gradkit.training import methods
from gradkit.training.one_step import needs_of, one_step

STEPS = 60
WIDTH, HEIGHT = 160, 120
LEFT, RIGHT, BOTTOM, TOP = -2.7, 1.9, -0.95, 2.5
START = np.array([-2.1, 0.2])
MINIMUM = np.array([1.0, 0.5])
RATES = 10.0 ** np.linspace(-1.5, 2.0, 15)
# Two orthonormal matrices of rank one, neither of them axis-aligned.
_C, _S = np.cos(0.6), np.sin(0.6)
U = np.array([[_C, -_S], [_S, _C]])
V = np.array([[_S, _C], [-_C, _S]])
CENTRES = np.array([[-1.6, 1.9], [1.2, 1.6], [0.2, -0.6], [1.3, 0.0], [-0.4, 2.2]])
REPLICAS = 4


class Path(NamedTuple):
    """What a picture is drawn of.

    Attributes:
      kind: "valley", "matrix", "tasks", "replicas" or "schedule".
      points: of a path (steps + 1, 2); of replicas (replicas, steps + 1, 2); of a schedule its values (steps,).
      rate: the learning rate that was chosen, None without one.
      more: the number of tasks, or of the steps of a schedule.
    """

    kind: str
    points: np.ndarray
    rate: float | None = None
    more: int = 0


def _residuals(z: Any, shifts: Any) -> Any:
    """(examples, 2) residuals of the valley at a point, for shifts (examples, 2)."""
    x, y = z[0] - shifts[:, 0], z[1] - shifts[:, 1]
    return jnp.stack([(x - 1) / np.sqrt(2), 1.4 * (y - x**2 / 2)], axis=1)


def _shifts(seed: int, count: int = 8) -> jax.Array:
    drawn = np.random.default_rng(seed).normal(0, 0.12, (count, 2))
    return jnp.asarray(drawn - drawn.mean(0), jnp.float32)


def _vector(params: Any) -> Any:
    return params["point"]


def _matrix(params: Any) -> Any:
    w = params["dense"]["kernel"]
    return jnp.stack([U[:, 0].astype(np.float32) @ w @ V[0].astype(np.float32),
                      U[:, 1].astype(np.float32) @ w @ V[1].astype(np.float32)])  # fmt: skip


def _off(params: Any) -> Any:
    w = params["dense"]["kernel"]
    return jnp.stack([U[:, 0].astype(np.float32) @ w @ V[1].astype(np.float32),
                      U[:, 1].astype(np.float32) @ w @ V[0].astype(np.float32)])  # fmt: skip


def _start(matrix: bool) -> Any:
    if not matrix:
        return {"point": jnp.asarray(START, jnp.float32)}
    return {"dense": {"kernel": jnp.asarray(sum(START[i] * np.outer(U[:, i], V[i]) for i in (0, 1)), jnp.float32)}}


def _run(
    make: Callable[[Any], optax.GradientTransformation],
    rates: np.ndarray | None,
    *,
    matrix: bool = False,
    gradient: Any = None,
) -> tuple[np.ndarray, float | None]:
    """The best of the paths at several learning rates, in one compiled program."""
    place = _matrix if matrix else _vector
    batch = _shifts(0)

    def predict(params: Any, shifts: Any) -> Any:
        seen = _residuals(place(params), shifts)
        return jnp.concatenate([seen, jnp.broadcast_to(_off(params), seen.shape)], 1) if matrix else seen

    def loss(params: Any, shifts: Any, index: Any = None) -> Any:
        del index
        return jnp.mean(jnp.sum(jnp.square(predict(params, jnp.atleast_2d(shifts))), axis=1)) / 2

    def path(rate: Any) -> Any:
        tx = make(rate)
        params = _start(matrix)
        needs = needs_of(tx, params)

        def step(carry: Any, key: Any) -> Any:
            params, state = carry
            done = one_step(
                loss, tx, params, state, batch, needs=needs, key=key, gradient=gradient,
                predictions=(lambda p: predict(p, batch), jnp.zeros((8, 4 if matrix else 2))),
            )  # fmt: skip
            return (done.params, done.opt_state), place(done.params)

        _, points = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(jax.random.key(3), STEPS))
        return jnp.concatenate([place(params)[None], points])

    if rates is None:
        return np.asarray(jax.jit(lambda: path(None))()), None
    found = np.asarray(jax.jit(jax.vmap(path))(jnp.asarray(rates, jnp.float32)))
    return _best(found, rates, valley(found))


def valley(points: np.ndarray) -> np.ndarray:
    x, y = points[..., 0], points[..., 1]
    with np.errstate(all="ignore"):
        return (x - 1) ** 2 / 4 + 0.98 * (y - x**2 / 2) ** 2


def _best(found: np.ndarray, rates: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, float]:
    """The path that is lowest on the average of logarithms, among those that can be seen: long steps and what is
    outside of the picture count against a path."""
    with np.errstate(all="ignore"):
        score = np.log(height + 1e-2).mean(-1)
        score += 1.3 * np.linalg.norm(np.diff(found, axis=1), axis=-1).max(-1)
        inside = (found > [LEFT, BOTTOM]) & (found < [RIGHT, TOP])
        score += 4 * (~inside.all(-1)).mean(-1)
    score[~np.isfinite(score)] = np.inf
    best = int(np.argmin(score))
    if not np.isfinite(score[best]):
        raise ValueError("every learning rate diverges")
    return found[best], float(rates[best])


def _is_matrix(card: Card) -> bool:
    return card.only == "matrices" or "/matrix/" in card.file or "kronecker" in card.file


def _along(card: Card) -> Path:
    method = methods.find(card.name)
    matrix = _is_matrix(card)
    rates = None if method.centre is None else method.centre * RATES
    points, rate = _run(method.make, rates, matrix=matrix)
    return Path("matrix" if matrix else "valley", points, rate)


def _of_source(card: Card) -> Path:
    given = {k: v for k, v in card.example.items() if k in inspect.signature(card.function).parameters}
    points, rate = _run(gk.sgd, 1e-2 * RATES, gradient=functools.partial(card.function, **given))
    return Path("valley", points, rate)


def _between(card: Card) -> Path:
    count = card.tasks.nearest(3)
    centres = jnp.asarray(CENTRES[:count], jnp.float32)
    stretch = jnp.asarray([[1.0, 3.0], [2.5, 1.0], [1.0, 1.5], [2.0, 1.0], [1.0, 1.0]], jnp.float32)[:count]

    def losses(params: Any, batch: Any) -> Any:
        return jnp.sum(stretch * jnp.square(params["point"] - centres - 0 * batch.mean()), axis=1) / 2

    def path(rate: Any) -> Any:
        tx = optax.chain(card.function(**card.example_for(count)), gk.sgd(rate))
        params = _start(False)
        needs = needs_of(tx, params)

        def step(carry: Any, key: Any) -> Any:
            params, state = carry
            done = one_step(losses, tx, params, state, _shifts(0), needs=needs, key=key)
            return (done.params, done.opt_state), done.params["point"]

        _, points = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(jax.random.key(3), STEPS))
        return jnp.concatenate([params["point"][None], points])

    rates = 0.02 * 10.0 ** np.linspace(-1, 2.5, 15)
    found = np.asarray(jax.jit(jax.vmap(path))(jnp.asarray(rates, jnp.float32)))
    with np.errstate(all="ignore"):
        distance = np.square(found[:, :, None] - np.asarray(centres))
    height = np.einsum("rtkd,kd->rt", distance, np.asarray(stretch)) / 2 - _least(
        np.asarray(centres), np.asarray(stretch)
    )
    points, rate = _best(found, rates, np.abs(height) + 0.05)
    return Path("tasks", points, rate, count)


def _least(centres: np.ndarray, stretch: np.ndarray) -> float:
    best = (stretch * centres).sum(0) / stretch.sum(0)
    return float((stretch * np.square(best - centres)).sum() / 2)


def _together(card: Card) -> Path:
    batches = jnp.stack([_shifts(10 + i) + 0.35 * jnp.asarray(_away(i), jnp.float32) for i in range(REPLICAS)])
    arguments = inspect.signature(card.function).parameters
    first = next(iter(arguments), "")
    given = dict(card.example)
    if "sync_every" in given:
        given["sync_every"] = 6

    def loss(params: Any, shifts: Any, index: Any = None) -> Any:
        del index
        return jnp.mean(jnp.sum(jnp.square(_residuals(params["point"], jnp.atleast_2d(shifts))), axis=1)) / 2

    def make(rate: Any) -> optax.GradientTransformation:
        if card.form == "exchange":
            return optax.chain(card.function(**given), gk.scale_by_learning_rate(rate))
        return card.function(gk.sgd(rate) if first == "inner" else rate, **given)

    def path(rate: Any) -> Any:
        tx = make(rate)
        params = _start(False)
        needs = needs_of(tx, params)

        def replica(batch: Any, index: Any) -> Any:
            def step(carry: Any, key: Any) -> Any:
                params, state = carry
                key = jax.random.fold_in(key, index)
                done = one_step(loss, tx, params, state, batch, needs=needs, key=key)
                return (done.params, done.opt_state), done.params["point"]

            _, points = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(jax.random.key(3), STEPS))
            return jnp.concatenate([params["point"][None], points])

        return jax.vmap(replica, axis_name="replica")(batches, jnp.arange(REPLICAS))

    rates = 1e-2 * 10.0 ** np.linspace(-1, 1.5, 9)
    found = np.asarray(jax.jit(jax.vmap(path))(jnp.asarray(rates, jnp.float32)))
    mean = found.mean(1)
    _, rate = _best(mean, rates, valley(mean))
    return Path("replicas", found[int(np.argmin(np.abs(rates - rate)))], rate)


def _away(i: int) -> np.ndarray:
    return np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]][i])


def _values(card: Card) -> Path:
    schedule = card.function(**card.example)
    count = max([24, *(int(v) + 4 for v in _numbers(card.example) if 8 <= v < 400)])
    values = np.asarray([float(np.asarray(schedule(jnp.asarray(step, jnp.int32)))) for step in range(count)])
    # What stays the same at the end is shown for a few steps.
    count = min(count, int(np.flatnonzero(np.append(True, np.diff(values) != 0))[-1]) + 5)
    return Path("schedule", values[:count], None, count)


def _numbers(example: Mapping[str, Any]) -> list[float]:
    return [v for v in example.values() if isinstance(v, int) and not isinstance(v, bool)]


def compute(card: Card) -> Path | None:
    """The path of a method, None where it has none or needs what the problem does not have."""
    by_form = {
        "schedule": _values, "aggregator": _between, "source": _of_source, "strategy": _together, "exchange": _together,
    }  # fmt: skip
    draw = by_form.get(card.form, _along if card.is_link else None)
    if draw is None:
        return None
    try:
        found = draw(card)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, IndexError) as error:
        # A method that needs what this problem lacks says so in its own way; the build lists the reason.
        _REASONS[card.name] = f"{type(error).__name__}: {str(error)[:160]}"
        return None
    if not np.all(np.isfinite(found.points)) or np.ptp(found.points) == 0:
        _REASONS[card.name] = "not finite, or it does not move"
        return None
    return found


_REASONS: dict[str, str] = {}


def _digest() -> str:
    """Of everything that a picture depends on: the package below its upper floors, and this file."""
    root = pathlib.Path(gk.__file__).parent
    total = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        if file.relative_to(root).parts[0] not in (
            "cli.py",
            "papers.py",
            "workloads",
            "losses",
            "layers",
            "diagnostics",
        ):
            total.update(file.read_bytes())
    total.update(pathlib.Path(__file__).read_bytes())
    return total.hexdigest()[:24]


def folder() -> pathlib.Path:
    """Where paths are kept between builds."""
    given = os.environ.get("GRADKIT_DOCS_CACHE")
    return pathlib.Path(given) if given else pathlib.Path.home() / ".cache" / "gradkit" / "docs"


def paths(say: Callable[[str], None]) -> dict[str, Path]:
    """The paths of all methods, from the folder where they are kept, or computed."""
    file = folder() / f"{_digest()}.json"
    if file.exists():
        stored = json.loads(file.read_text())
        return {name: Path(p["kind"], np.asarray(p["points"]), p["rate"], p["more"]) for name, p in stored.items()}
    found: dict[str, Path] = {}
    began = time.process_time()
    for name, card in catalogue.cards().items():
        path = compute(card)
        if path is not None:
            found[name] = path._replace(points=np.round(np.clip(path.points.astype(float), -1e4, 1e4), 4))
    say(f"{len(found)} pictures computed in {time.process_time() - began:.0f} s of CPU; none of: {_REASONS}")
    file.parent.mkdir(parents=True, exist_ok=True)
    for old in file.parent.glob("*.json"):
        old.unlink()
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps({name: {**p._asdict(), "points": p.points.tolist()} for name, p in found.items()}))
    partial.replace(file)
    return found
