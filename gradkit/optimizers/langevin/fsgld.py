"""Federated Langevin dynamics: surrogates of the clients' likelihoods correct the gradient of a single client."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import need, optimizer, transformation, wide_dtype
from gradkit.leaves import Method
from gradkit.transforms import add_langevin_noise, scale_by_learning_rate
from gradkit.types import Key, Scalar, ScalarOrSchedule

PAPER = Paper("Federated Stochastic Gradient Langevin Dynamics", "El Mekkaoui et al.", 2020, "2004.11231")
# A tree, or a function of the parameters, which is no schedule; known when the program is built.
Stacked = Callable[[Any], Any] | Any
NOT_STACKED = {
    "stacked": "the noise of ten layers in one leaf has the distribution of that of ten leaves, not its values"
}


class ConduciveGradientState(NamedTuple):
    """P_s and P_s mu_s of every client along a leading axis, and their sums over the clients."""

    precision: Any
    weighted: Any
    total_precision: Any
    total_weighted: Any

    exact_fields = ("precision", "weighted", "total_precision", "total_weighted")  # read as small differences


def conducive_gradient(
    means: Stacked, precisions: Stacked, shard_probs: Sequence[float] | Any, *, num_data: Scalar = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Corrects the gradient of one client by surrogates of the likelihoods of all clients.

    Equations, with Gaussian surrogates q_s of the likelihood of client s, P_s diagonal:

        log q_s(x) = -sum P_s (x - mu_s)^2 / 2
        c_s = sum_r grad log q_r(x) - grad log q_s(x) / f_s
        g <- g - c_s / num_data

    sum_s f_s c_s = 0: the mean of the gradient over clients does not change. Where the surrogates are exact, the
    gradient of all data of a client no longer varies over clients. Precisions of 0 have no effect (DSGLD). This link
    belongs in front of the learning rate.

    Args:
      means: mu, a tree like the parameters with a leading axis of clients, or a function params -> such a tree, which
        `init` calls.
      precisions: P, in the same form, >= 0; fitted once per client, for example to a chain of that client alone.
      shard_probs: f, the probability of a visit to each client, (clients,), > 0 with the sum 1.
      num_data: number of examples of all clients that the loss is a mean over, >= 1. Default 1.

    Returns:
      A transformation that needs `params` and the extra argument `client`, the index of the client whose minibatch this
      is. The incoming gradient must be that of an unbiased loss: for a client with N_s examples, N_s / (f_s num_data)
      times the mean over its minibatch, and the prior divided by num_data. State: 2 words per parameter and client, and
      2 per parameter.
      Elementwise: no collective.

    Raises:
      ValueError: numbers that are no probabilities; trees that do not match the parameters; a missing `client`.

    Example:
      >>> tx = conducive_gradient(jnp.array([[0.0], [4.0]]), jnp.ones((2, 1)), jnp.array([0.5, 0.5]))
      >>> x = jnp.array([1.0])
      >>> of_client = lambda s: 2 * (x - jnp.array([0.0, 4.0])[s])  # 1 / f_s times the gradient of client s
      >>> [tx.update(of_client(s), tx.init(x), x, client=s)[0].tolist() for s in (0, 1)]
      [[-2.0], [-2.0]]

    Reference: El Mekkaoui et al. Federated Stochastic Gradient Langevin Dynamics. 2020, arXiv 2004.11231. Surrogates
    have diagonal precisions.
    """
    checks.arrays(shard_probs=shard_probs)
    for name, given in (("means", means), ("precisions", precisions)):
        if not checks.is_function(given) and any(isinstance(a, str) or not np.ndim(a) for a in jax.tree.leaves(given)):
            raise ValueError(
                f"{name} must be a tree of arrays with a leading axis of clients, or a function params -> such a tree, "
                f"got {given!r}; write jnp.stack([client_0, client_1])"
            )
    try:
        f = np.asarray(shard_probs, np.float64)
    except ValueError:
        f = np.zeros(0)
    if f.ndim != 1 or not f.size or not np.all(f > 0) or abs(f.sum() - 1) > 1e-5:
        raise ValueError(
            f"shard_probs must be positive numbers of shape (clients,) with the sum 1, got {shard_probs!r}; write "
            "sizes / sizes.sum()"
        )
    checks.real("num_data", num_data, "[1, inf)")

    def stacked(name: str, given: Any, params: Any) -> Any:
        tree: Any = given(params) if checks.is_function(given, params) else given
        if jax.tree.structure(tree) != jax.tree.structure(params) or any(
            jnp.shape(a) != (f.size, *p.shape)
            for a, p in zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True)
        ):
            raise ValueError(
                f"conducive_gradient: {name} must be a tree like the parameters with a leading axis of {f.size} "
                f"clients, got {jax.tree.map(jnp.shape, tree)} for {jax.tree.map(lambda p: p.shape, params)}; "
                "write one array per leaf, stacked over clients"
            )
        return jax.tree.map(lambda a, p: jnp.array(a, wide_dtype(p.dtype), copy=True), tree, params)

    def init(params: Any) -> ConduciveGradientState:
        mu, P = stacked("means", means, params), stacked("precisions", precisions, params)
        weighted = jax.tree.map(jnp.multiply, P, mu)
        total = lambda tree: jax.tree.map(lambda x: jnp.sum(x, axis=0), tree)  # noqa: E731
        return ConduciveGradientState(P, weighted, total(P), total(weighted))

    def update(g: Any, state: ConduciveGradientState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        s = jnp.asarray(need("conducive_gradient", extra, "client"))

        def leaf(g: Any, x: Any, P: Any, weighted: Any, total_P: Any, total_weighted: Any) -> jax.Array:
            probability = jnp.asarray(f).astype(g.dtype)[s]
            of_all, of_client = total_weighted - total_P * x, weighted[s] - P[s] * x
            return g - (of_all - of_client / probability) / jnp.asarray(num_data).astype(g.dtype)

        return jax.tree.map(leaf, g, params, *state), state

    return transformation("conducive_gradient", init, update, needs_params=True)


def fsgld(
    learning_rate: ScalarOrSchedule,
    *,
    means: Stacked,
    precisions: Stacked,
    shard_probs: Sequence[float] | Any,
    temperature: Scalar = 1.0,
    num_data: Scalar = 1.0,
    key: Key | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Federated stochastic gradient Langevin dynamics: one client at a time, with conducive gradients (FSGLD).

    Equations, with c_s that of `gk.conducive_gradient`, and xi standard normal:

        g <- g - c_s / num_data
        x <- x - learning_rate_t g + sqrt(2 learning_rate_t temperature / num_data) xi

    Args:
      learning_rate: step size > 0, or a schedule; the noise has the learning rate of the same step.
      means: mu, a tree like the parameters with a leading axis of clients, or a function params -> such a tree.
      precisions: P, in the same form, >= 0.
      shard_probs: f, the probability of a visit to each client, (clients,), > 0 with the sum 1.
      temperature: factor of the variance of the noise, >= 0. Default 1: the posterior.
      num_data: number of examples of all clients that the loss is a mean over, >= 1. Default 1.
      key: a typed key or integer, from which the noise of all steps follows. Default None: `update` needs `key=`.

    Returns:
      A transformation that needs `params`, the extra arguments `client` and, unless it is given here, `key`. State: 2
      words per parameter and client, and 2 per parameter. Elementwise: no collective.

    Raises:
      ValueError: a hyperparameter outside its range; trees that do not match the parameters; a missing key or client.

    Example:
      >>> nothing = jnp.zeros((2, 1))
      >>> tx = fsgld(0.5, means=nothing, precisions=nothing, shard_probs=(0.5, 0.5), temperature=0.0)
      >>> x = jnp.array([1.0])
      >>> tx.update(x, tx.init(x), x, client=0, key=0)[0].tolist()
      [-0.5]

    Reference: El Mekkaoui et al. Federated Stochastic Gradient Langevin Dynamics. 2020, arXiv 2004.11231.
    """
    checks.arrays(shard_probs=shard_probs)
    return optimizer(
        Method("fsgld", learning_rate),
        conducive_gradient(means, precisions, shard_probs, num_data=num_data),
        scale_by_learning_rate(learning_rate),
        add_langevin_noise(learning_rate, temperature=temperature, num_data=num_data, key=key),
    )


def _of_two(value: float) -> Callable[[Any], Any]:
    """A surrogate of two clients for any parameters."""
    return lambda params: jax.tree.map(
        lambda p: jnp.stack([jnp.zeros_like(p, wide_dtype(p.dtype)) + k * value for k in (1, 2)]), params
    )


EXAMPLE = {"means": _of_two(0.5), "precisions": _of_two(0.01), "shard_probs": (0.5, 0.5), "num_data": 1_000_000}
SHARED: dict[str, Any] = {"paper": PAPER, "words": 6, "example": EXAMPLE}
register(conducive_gradient, form="primitive", needs=("client",), **SHARED)
register(
    fsgld,
    form="optimizer",
    needs=("key", "client"),
    opt_outs=NOT_STACKED,
    race=Race(1e-1, EXAMPLE),
    notes="a sampler over clients; surrogates are Gaussian",
    **SHARED,
)
