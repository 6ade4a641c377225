"""Federated training in which everything that was learnt is K numbers: one per random direction of a fixed pool."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import cast, wide_dtype
from gradkit.engine.directions import direction, directional_difference
from gradkit.engine.keys import as_key
from gradkit.engine.matching import check_leaves
from gradkit.parallel.shared_seed_spsa import gathered
from gradkit.types import Key, Scalar, ScalarOrSchedule

PAPER = Paper(
    "Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18 Kilobytes",
    "Qin et al.",
    2023,
    "2312.06353",
)
LARGEST = 1000.0


class FedKSeedState(NamedTuple):
    """What the server knows: a, and for every seed the sum and the number of the |c| that clients have sent."""

    accumulated: jax.Array
    sums: jax.Array
    counts: jax.Array


class FedKSeedMessage(NamedTuple):
    """What a client sends after its local steps: of each, the number of the seed and c, NaN where it was skipped."""

    seeds: jax.Array
    scalars: jax.Array


class FedKSeed(NamedTuple):
    """The parts of a federated run.

    Attributes:
      init: () -> state of the server.
      params: (initial parameters, state) -> the parameters that the state stands for.
      client: (parameters, batches, key, probabilities=None) -> (message, parameters after the local steps). Every leaf
        of `batches` has a leading axis of local steps.
      server: (state, message, weight=None) -> state. Under `axis_name` the message and the weight are those of one
        client; else they have a leading axis of clients.
    """

    init: Callable[[], FedKSeedState]
    params: Callable[[Any, FedKSeedState], Any]
    client: Callable[..., tuple[FedKSeedMessage, Any]]
    server: Callable[..., FedKSeedState]


def seed_probabilities(state: FedKSeedState) -> jax.Array:
    """How often a seed should be drawn, from how large the differences along it have been (FedKSeed-Pro).

        h_j = sum of |c| of seed j, each at most 1000, / (1 + their number)
        p   = softmax((h - min h) / (max h + 1e-10 - min h))

    No seed is more than e times as likely as another.

    Args:
      state: of the server.

    Returns:
      Probabilities, (K,).

    Example:
      >>> state = FedKSeedState(jnp.zeros(2), sums=jnp.array([0.0, 4.0]), counts=jnp.array([0.0, 1.0]))
      >>> print((seed_probabilities(state)[1] / seed_probabilities(state)[0]).round(3))
      2.718

    Reference: Qin et al. Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under
    18 Kilobytes. 2023, arXiv 2312.06353. A seed that was never drawn has one entry 0 in its history, as in the code.
    """
    h = state.sums / (1 + state.counts)
    low, high = jnp.min(h), jnp.max(h)
    return jax.nn.softmax((h - low) / (high + 1e-10 - low))


def fed_kseed(
    loss_fn: Callable[[Any, Any], Any],
    learning_rate: ScalarOrSchedule,
    *,
    key: Key,
    num_seeds: int = 4096,
    epsilon: Scalar = 5e-4,
    weight_decay: Scalar = 0.0,
    axis_name: Any = None,
) -> FedKSeed:
    """Federated learning of which K numbers travel down and one pair per local step up, whatever the size of the model.

        z_j ~ N(0, I) from fold_in(key, j),    j = 0 .. K - 1, the same directions in the whole run
        x = x_0 - learning_rate sum_j a_j z_j                                the parameters that a stands for
        client, every local step:    j drawn (uniformly, or by `seed_probabilities`),
            c = (L(x + epsilon z_j) - L(x - epsilon z_j)) / (2 epsilon),   x <- x - learning_rate c z_j
        server:    a_j <- a_j + sum over clients of weight c of their steps along z_j

    Args:
      loss_fn: (params, batch) -> scalar; need not be differentiable.
      learning_rate: > 0, a constant: under a schedule a would not say what the parameters are. The code's is 1e-3.
      key: from which the directions of the run follow; a typed key or an integer that all know.
      num_seeds: K, >= 1. Default 4096 (paper).
      epsilon: distance of both points, > 0. Default 5e-4 (code).
      weight_decay: must be 0: decay is no sum over the pool. The code applies it once per seed when it replays, and
        once per step when it trains.
      axis_name: axis of `vmap` or `shard_map` over clients, for `server`. Default None: the messages of all clients
        stacked.

    Returns:
      `FedKSeed`: init, params, client, server. State: 3 K numbers in all. A round moves K numbers (and K probabilities)
      to a client and a pair per local step back; in the server's sum under `axis_name`, one pair per client and step.

    Raises:
      ValueError: an argument outside its range, a schedule, a weight decay; when called, leaves that are not real
        floating point numbers.

    Example:
      >>> fed = fed_kseed(lambda x, batch: jnp.sum((x - batch) ** 2), 0.01, key=0, num_seeds=8)
      >>> x0, state = jnp.zeros(2), fed.init()
      >>> message, x = fed.client(x0, jnp.ones((5, 2)), key=1)
      >>> state = fed.server(state, jax.tree.map(lambda m: m[None], message))
      >>> bool(jnp.allclose(fed.params(x0, state), x, atol=1e-6))  # the numbers alone give the parameters back
      True

    Reference: Qin et al. Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under
    18 Kilobytes. 2023, arXiv 2312.06353. A step whose difference is not finite is skipped, as in the code.
    """
    checks.function("loss_fn", loss_fn)
    if callable(learning_rate):
        raise ValueError(
            "fed_kseed: learning_rate must be a constant, got a schedule: the sum over seeds has one rate; write "
            "learning_rate=1e-3"
        )
    checks.real("learning_rate", learning_rate, "(0, inf)")
    num_seeds = checks.integer("num_seeds", num_seeds, 1)
    checks.real("epsilon", epsilon, "(0, inf)")
    if checks.readable(weight_decay) != 0:
        raise ValueError(
            f"fed_kseed: weight_decay must be 0, got {weight_decay!r}: parameters that decay are no sum over the "
            "seeds; add the penalty to loss_fn"
        )
    checks.axis_name("axis_name", axis_name)

    def along(like: Any, j: Any) -> Any:
        return direction(jax.random.fold_in(as_key(key), j), like)

    def step(x: Any, amount: jax.Array, z: Any) -> Any:
        def leaf(x: jax.Array, z: jax.Array) -> jax.Array:
            rate = jnp.asarray(learning_rate).astype(z.dtype)
            return (x.astype(z.dtype) - rate * cast(amount, z.dtype) * z).astype(x.dtype)

        return jax.tree.map(leaf, x, z)

    def init() -> FedKSeedState:
        return FedKSeedState(*(jnp.zeros(num_seeds, jnp.result_type(float)) for _ in range(3)))

    def params(x0: Any, state: FedKSeedState) -> Any:
        check_leaves("fed_kseed", x0, complex_leaves=False)
        wide = jax.tree.map(lambda x: x.astype(wide_dtype(x.dtype)), x0)
        x = jax.lax.fori_loop(0, num_seeds, lambda j, x: step(x, state.accumulated[j], along(x, j)), wide)
        return jax.tree.map(lambda x, like: x.astype(like.dtype), x, x0)

    def client(x: Any, batches: Any, key: Any, probabilities: Any = None) -> tuple[FedKSeedMessage, Any]:
        check_leaves("fed_kseed", x, complex_leaves=False)
        (steps,) = {jnp.shape(b)[0] for b in jax.tree.leaves(batches)}
        drawn = jax.random.choice(as_key(key), num_seeds, (steps,), p=probabilities)

        def local(x: Any, now: Any) -> tuple[Any, jax.Array]:
            j, batch = now
            z = along(x, j)
            c, _ = directional_difference(lambda x: jnp.asarray(loss_fn(x, batch)), x, z, epsilon)
            known = jnp.isfinite(c)
            moved = step(x, jnp.where(known, c, jnp.zeros_like(c)), z)
            return moved, jnp.where(known, c, jnp.full_like(c, jnp.nan))

        end, scalars = jax.lax.scan(local, x, (drawn, batches))
        return FedKSeedMessage(drawn, scalars), end

    def server(state: FedKSeedState, message: FedKSeedMessage, weight: Any = None) -> FedKSeedState:
        seeds, c = (gathered(x, axis_name) if axis_name is not None else x for x in message)
        if weight is None:
            own = jnp.full(c.shape[0], 1 / c.shape[0], c.dtype)
        else:
            own = gathered(jnp.asarray(weight), axis_name) if axis_name is not None else jnp.asarray(weight)
        kind = state.accumulated.dtype
        seeds, known, c = seeds.reshape(-1), jnp.isfinite(c).reshape(-1), c.astype(kind)
        own = jnp.broadcast_to(own.astype(kind)[:, None], c.shape).reshape(-1)
        c = jnp.where(known, c.reshape(-1), jnp.zeros_like(own))
        return FedKSeedState(
            state.accumulated.at[seeds].add(own * c),
            state.sums.at[seeds].add(jnp.minimum(jnp.abs(c), jnp.asarray(LARGEST, kind))),
            state.counts.at[seeds].add(known.astype(kind)),
        )

    return FedKSeed(init, params, client, server)


register(
    fed_kseed,
    form="program",
    paper=PAPER,
    collectives="replicas",
    notes="K numbers are all that the server holds; any parameters of the run follow from them",
)
POOL: Any = jax.ShapeDtypeStruct((8,), "float32")
register(seed_probabilities, form="function", paper=PAPER, example={"state": FedKSeedState(POOL, POOL, POOL)})
