"""How a trajectory is replayed: step by step, with all that its file hands over and says of every step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from tests.golden import build, extras, fixture
from tests.golden.fixture import Golden

Arrays = dict[str, Any]


def asarrays(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def transformation(golden: Golden) -> tuple[float, list[str]]:
    """The largest error of a run, and the arrays of the file that nothing has read."""
    method, start, reader = golden.method, fixture.params(golden), extras.Reader(golden)
    tx = optax.with_extra_args_support(build.transformation(golden))
    update = jax.jit(tx.update, static_argnames=("grad_fn", "value_fn"))
    x: Any = asarrays(start)
    state: Any = tx.init(x)
    if method in build.STARTS:
        state = build.STARTS[method](state, reader)
    worst = 0.0
    for t, want in enumerate(golden.steps):
        before = x
        g, extra = gradient(golden, reader, t, x)
        updates, state = update(g, state, x, **extra)
        x = optax.apply_updates(x, updates)
        if t == 0 and method in build.SECOND_STARTS:
            state = build.SECOND_STARTS[method](state, reader)
        worst = max(worst, fixture.error(x, want, start), extras.measured(reader, t, state, x, start))
        if method in build.MEASURED:
            worst = max(worst, shown(golden, reader, t, build.MEASURED[method](golden, state, x, before)))
    for name in (*extras.ELSEWHERE, *(k for k in reader.arrays if build.unread(method, k))):
        reader.read.add(name)
    return worst, reader.unread()


def gradient(golden: Golden, reader: extras.Reader, t: int, x: Any) -> tuple[Any, Arrays]:
    """The gradient of step t, and what goes with it into `update`."""
    method, extra = golden.method, {}
    own = build.HANDED.get(method, {})
    if golden.meta["mode"] == "replay":
        g = asarrays(fixture.grads(golden, t))
    else:

        def loss(x: Any) -> jax.Array:
            return fixture.loss(golden, t, x)

        extra["value"], g = jax.value_and_grad(loss)(x)
        if method in build.CALLS_BACK:
            extra |= {"value_fn": loss, "grad_fn": jax.grad(loss)}
    g = extras.treated(reader, t, g)
    if method in build.EXTRAS:
        extra |= build.EXTRAS[method](golden, t, x)
    return g, extra | extras.handed(reader, t, own)


def shown(golden: Golden, reader: extras.Reader, t: int, answers: Arrays) -> float:
    """The largest error of what a method's entry says it has measured: at each step, or at the last."""
    worst = 0.0
    for name, got in answers.items():
        want = reader.at(name, t)
        if name in reader.arrays and np.shape(want) != np.shape(got):  # as many rows as steps, and no row per step
            want = None
        if want is None and t + 1 == len(golden.steps):
            want = reader.tree(name) or (reader.take(name) if name in reader.arrays else None)
        if want is None:
            continue
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            b = np.asarray(b, np.float64)
            worst = max(worst, float(np.abs(np.asarray(a) - b).max() / (np.abs(b).max() + 1e-300)))
    return worst


def aggregator(golden: Golden, case: str) -> float:
    """The largest error of one case, relative to its sizes; a case may be a sequence of steps, with a state."""
    own = {name.split("/")[0]: a for name, a in golden.arrays.items() if name.split("/", 1)[1:] == [case]}
    matrix, want = own.pop("matrix"), own.pop("output")
    tx = build.AGGREGATORS[golden.method](golden.hyper(case), own)
    sequence = matrix.ndim == 3
    rows, wanted = (matrix, want) if sequence else (matrix[None], want[None])
    half = min(5, rows.shape[2])
    params = {"a": jnp.zeros(half), "b": jnp.zeros((rows.shape[2] - half, 1))}
    state, worst = tx.init(params), 0.0
    for t, (G, u) in enumerate(zip(rows, wanted, strict=True)):
        # Two leaves: inner products run over the whole tree.
        stacked = {"a": jnp.asarray(G[:, :half]), "b": jnp.asarray(G[:, half:]).reshape(len(G), -1, 1)}
        extra = {name: jnp.asarray(a[t]) for name, a in own.items() if sequence and name not in build.CONSTRUCTED}
        updates, state = tx.update(stacked, state, params, **extra)
        got = np.concatenate([np.asarray(updates["a"]), np.asarray(updates["b"]).ravel()])
        size = max(np.abs(u).max(), np.abs(G).max())
        worst = max(worst, float(np.abs(got - u).max() / (size or 1.0)))
    return worst


def strategy(golden: Golden) -> float:
    """Worker w has the losses, or gradients, of its own seed; all start alike."""
    start, extra, hyper = fixture.params(golden), golden.extra(), golden.hyper()
    workers = hyper["workers"]
    shift = build.WORKER_SEEDS.get(golden.method, lambda w: 1000 * (w + 1))
    if workers == 1 and golden.method in build.ALONE:
        shift = lambda w: 0  # noqa: E731
    own = [golden.worker(shift(w)) for w in range(workers)]
    tx = build.STRATEGIES[golden.method](hyper)
    update = jax.jit(jax.vmap(tx.update, axis_name="replica"))
    x: Any = gk.parallel.replicate(start, workers)
    state: Any = gk.parallel.init_replicas(tx, x)
    worst = 0.0
    for t, first in enumerate(golden.steps):
        updates, state = update(_worker_gradients(own, t, x), state, x)
        x = optax.apply_updates(x, updates)
        wanted = [first]
        for w in range(1, workers):
            wanted.append({leaf: extra.get(f"worker{w}/t{t + 1}/{leaf}", first[leaf]) for leaf in first})
        for w, want in enumerate(wanted):
            worst = max(worst, fixture.error({leaf: value[w] for leaf, value in x.items()}, want, start))
        # A fragment makes its outer step in the program that sends it, the one after the step that it is sent from, and
        # in a file when it is due.
        later = t + 1 + max(hyper.get("delay", 0) - 1, 0)
        if f"global/t{later}/{next(iter(first))}" in extra and not isinstance(state.start, optax.MaskedNode):
            want = {leaf: extra[f"global/t{later}/{leaf}"] for leaf in first}
            worst = max(worst, fixture.error({leaf: value[0] for leaf, value in state.start.items()}, want, start))
    return worst


def _worker_gradients(own: list[Golden], t: int, x: Any) -> Any:
    if own[0].meta["mode"] == "replay":
        rows = [fixture.grads(one, t) for one in own]
        return {leaf: jnp.stack([jnp.asarray(row[leaf]) for row in rows]) for leaf in rows[0]}

    def losses(x: Any) -> jax.Array:
        apart = [fixture.loss(one, t, {leaf: v[w] for leaf, v in x.items()}) for w, one in enumerate(own)]
        return jnp.sum(jnp.stack(apart))

    return jax.grad(losses)(x)
