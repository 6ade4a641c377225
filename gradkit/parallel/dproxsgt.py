"""Decentralised proximal stochastic gradient tracking, without and with compression."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import at_count, increment, scalar, transformation, zeros
from gradkit.parallel.compressors import Compressor, compressor_of
from gradkit.parallel.deep_gradient_compression import top_k_compressor
from gradkit.parallel.gossip import RING, check_mixing, mix_payloads, mixed_differences
from gradkit.parallel.replicas import alike, check_own
from gradkit.types import Scalar, ScalarOrSchedule

PAPER = Paper(
    "Compressed Decentralized Proximal Stochastic Gradient Method for Nonconvex Composite Problems with Heterogeneous "
    "Data",
    "Yan et al.",
    2023,
)


class DproxsgtState(NamedTuple):
    """The state of one replica: number of steps, the tracked gradient y, and the gradient of the last step."""

    count: jax.Array
    y: Any
    gradient: Any


class CompressedDproxsgtState(NamedTuple):
    """The state of one replica: number of steps, the tracked gradient y, the gradient of the last step; the neighbours'
    copies x^ and y^ of its x and y, and the mixtures X and Y of its copies of theirs; the states of both
    compressors."""

    count: jax.Array
    y: Any
    gradient: Any
    known_x: Any
    mixed_x: Any
    known_y: Any
    mixed_y: Any
    of_x: Any
    of_y: Any

    exact_fields = ("known_x", "mixed_x", "known_y", "mixed_y")  # sums of payloads, the same at sender and receiver


def _plain(x: Any, step: Any) -> Any:
    del step
    return x


def _check(learning_rate: Any, prox: Any, axis_name: Any) -> Callable[[Any, Any], Any]:
    checks.real("learning_rate", learning_rate, "[0, inf)", schedule=True)
    checks.axis_name("axis_name", axis_name, optional=False)
    if prox is None:
        return _plain
    checks.function("prox", prox)
    return prox


def _stepped(x: Any, y: Any, eta: Any, prox: Callable[[Any, Any], Any]) -> Any:
    return prox(jax.tree.map(lambda x, y: x - scalar(eta, y) * y, x, y), eta)


def _tracked(y: Any, g: Any, before: Any) -> Any:
    return jax.tree.map(lambda y, g, b: y + g - b, y, g, before)


def dproxsgt(
    learning_rate: ScalarOrSchedule,
    *,
    mixing: Any = RING,
    prox: Callable[[Any, Any], Any] | None = None,
    axis_name: Any = "replica",
) -> optax.GradientTransformationExtraArgs:
    """Gradient tracking between neighbours, with a proximal step, without a collective over all replicas.

    Equations for replica i with the gradient g of its own loss at its own x; y and the previous gradient g^- start at
    0, eta = learning_rate, and mix(x)_i = sum_j W_ij x_j with a symmetric W whose rows add up to 1:

        h  =  y + g - g^-                   of two samples, each at its own point
        y  <- mix(h)                        its mean over replicas is the mean of g
        z  =  prox(x - eta y, eta)
        x  <- mix(z)

    `update` takes the gradient of one replica at its own parameters, under the axis of the replicas.

    Args:
      learning_rate: eta >= 0, or a schedule.
      mixing: W, a symmetric matrix of NumPy of numbers >= 0 whose rows add up to 1, one row per replica; or "ring", a
        third of the replica itself and of each neighbour. Default "ring" (official code).
      prox: (tree, eta) -> tree, the proximal map of eta r for a regulariser r, such as a soft threshold. Default None:
        no regulariser.
      axis_name: name of the axis of the replicas. Default "replica".

    Returns:
      A transformation that needs `params`. State, per replica: 2 words per parameter. Collectives per step: two
      exchanges of the parameters with every neighbour.

    Raises:
      ValueError: an argument outside its range; at `update`, no axis of this name, or one of another length than W.

    Example:
      >>> tx = dproxsgt(0.5)
      >>> x, g = jnp.array([1.0, 3.0]), jnp.array([2.0, 0.0])  # two replicas
      >>> updates, _ = jax.vmap(tx.update, axis_name="replica")(g, jax.vmap(tx.init)(x), x)
      >>> print(x + updates)  # both at the mean 2, less half of the mean gradient
      [1.5 1.5]

    Reference: Yan, Chen, Chen, Cui, Lu, Xu. Compressed Decentralized Proximal Stochastic Gradient Method for Nonconvex
    Composite Problems with Heterogeneous Data. ICML 2023. The l1 scripts of the official repository step with the
    tracked gradient before it is mixed; here, as in the paper, after.
    """
    prox = _check(learning_rate, prox, axis_name)
    W = check_mixing(mixing)

    def init(params: Any) -> DproxsgtState:
        return DproxsgtState(jnp.zeros((), jnp.int32), zeros(params), zeros(params))

    def update(updates: Any, state: DproxsgtState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        if not jax.tree.leaves(params):
            return updates, state
        check_own("dproxsgt", updates, axis_name)

        def mix(tree: Any) -> Any:
            return mix_payloads(tree, W, axis_name, lambda x: x, "dproxsgt")

        eta = at_count(learning_rate, state.count, "learning_rate")
        y = mix(_tracked(state.y, updates, state.gradient))
        x = mix(_stepped(params, y, eta, prox))
        new = DproxsgtState(increment(state.count), y, updates)
        return jax.tree.map(jnp.subtract, x, params), alike(new, state)

    return transformation("dproxsgt", init, update, needs_params=True)


def compressed_dproxsgt(
    learning_rate: ScalarOrSchedule,
    *,
    compressor_x: optax.GradientTransformation,
    compressor_y: optax.GradientTransformation,
    mixing: Any = RING,
    prox: Callable[[Any, Any], Any] | None = None,
    gamma_x: Scalar = 0.8,
    gamma_y: Any = 0.8,
    axis_name: Any = "replica",
) -> optax.GradientTransformationExtraArgs:
    """`dproxsgt` in which replicas send compressed differences from the copies that their neighbours have.

    Equations, as in `dproxsgt`, with compressors Q_x and Q_y, the neighbours' copies x^ and y^ of this replica, and
    their mixtures X and Y, all of which start at 0:

        h = y + g - g^-
        q = Q_y(h - y^),   y^ <- y^ + q,   Y <- Y + mix(q)
        y <- h + gamma_y (Y - y^)
        z = prox(x - eta y, eta)
        q = Q_x(z - x^),   x^ <- x^ + q,   X <- X + mix(q)
        x <- z + gamma_x (X - x^)

    With compressors that lose nothing and both gamma = 1 it is `dproxsgt`.

    Args:
      learning_rate: eta >= 0, or a schedule.
      mixing: W, as in `dproxsgt`. Default "ring" (official code).
      compressor_x: compressor of the parameters' differences, whose payload is of one replica: `top_k_compressor`,
        `ternary_compressor`.
      compressor_y: compressor of the tracked gradients' differences.
      prox: as in `dproxsgt`. Default None.
      gamma_x: step of the parameters towards the mixture, in (0, 1]. Default 0.8 (official code).
      gamma_y: step of the tracked gradient towards the mixture, in (0, 1]. Default 0.8 (official code).
      axis_name: name of the axis of the replicas. Default "replica".

    Returns:
      A transformation that needs `params`. State, per replica: 6 words per parameter, and that of both compressors.
      Collectives per step: two exchanges of payloads with every neighbour.

    Raises:
      ValueError: an argument outside its range, a compressor without a payload of its own; at `update`, no axis of this
        name, or one of another length than W.

    Example:
      >>> top = top_k_compressor(1.0)  # everything
      >>> tx = compressed_dproxsgt(0.5, compressor_x=top, compressor_y=top, gamma_x=1, gamma_y=1)
      >>> x, g = jnp.array([1.0, 3.0]), jnp.array([2.0, 0.0])
      >>> updates, _ = jax.vmap(tx.update, axis_name="replica")(g, jax.vmap(tx.init)(x), x)
      >>> print(x + updates)
      [1.5 1.5]

    Reference: Yan, Chen, Chen, Cui, Lu, Xu. Compressed Decentralized Proximal Stochastic Gradient Method for Nonconvex
    Composite Problems with Heterogeneous Data. ICML 2023. The compressed scripts of the official repository have no
    proximal step; here it is where the paper has it. They send the largest 40 % of both differences.
    """
    prox = _check(learning_rate, prox, axis_name)
    W = check_mixing(mixing)
    checks.real("gamma_x", gamma_x, "(0, 1]")
    checks.real("gamma_y", gamma_y, "(0, 1]")
    Q_x, Q_y = _payloads("compressor_x", compressor_x), _payloads("compressor_y", compressor_y)

    def init(params: Any) -> CompressedDproxsgtState:
        fields = [zeros(params) for _ in range(6)]
        count = jnp.zeros((), jnp.int32)
        return CompressedDproxsgtState._make([count, *fields, Q_x.init(params), Q_y.init(params)])

    def update(updates: Any, state: Any, params: Any = None, *, key: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        if not jax.tree.leaves(params):
            return updates, state
        check_own("compressed_dproxsgt", updates, axis_name)

        def towards(value: Any, mixture: Any, known: Any, gamma: Any) -> Any:
            return jax.tree.map(lambda v, m, k: v + scalar(gamma, v) * (m - k), value, mixture, known)

        eta = at_count(learning_rate, state.count, "learning_rate")
        h = _tracked(state.y, updates, state.gradient)
        known_y, mixed_y, of_y = mixed_differences(h, state.known_y, state.mixed_y, state.of_y, Q_y, W, axis_name, key)
        y = towards(h, mixed_y, known_y, gamma_y)
        z = _stepped(params, y, eta, prox)
        known_x, mixed_x, of_x = mixed_differences(z, state.known_x, state.mixed_x, state.of_x, Q_x, W, axis_name, key)
        x = towards(z, mixed_x, known_x, gamma_x)
        count = increment(state.count)
        new = CompressedDproxsgtState(count, y, updates, known_x, mixed_x, known_y, mixed_y, of_x, of_y)
        return jax.tree.map(jnp.subtract, x, params), alike(new, state)

    return transformation("compressed_dproxsgt", init, update, needs_params=True)


def _payloads(argument: str, compressor: Any) -> Compressor:
    found = compressor_of(compressor, argument)
    if found.encode is None:
        raise ValueError(
            f"{argument} must be a compressor whose payload is of one replica, got one that exchanges in rounds; write "
            f"{argument}=gk.parallel.top_k_compressor(0.4), or a ternary_compressor"
        )
    return found


NO_ROUNDS = "every step exchanges with neighbours: there is no end of a round at which all replicas agree"
OPT_OUTS = dict.fromkeys(("mesh", "agree", "bfloat16", "bad use", "donation"), NO_ROUNDS)
register(
    dproxsgt,
    form="strategy",
    paper=PAPER,
    words=2,
    collectives="replicas",
    opt_outs=OPT_OUTS,
    notes="neighbours only; what it keeps of its own round is in the test of its paper",
)
register(
    compressed_dproxsgt,
    form="strategy",
    paper=PAPER,
    words=6,
    collectives="replicas",
    example={
        "compressor_x": top_k_compressor(0.4),
        "compressor_y": top_k_compressor(0.4),
    },
    opt_outs=OPT_OUTS,
)
