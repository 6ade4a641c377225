"""DiLoCoX: DiLoCo whose compressed pseudo-gradient is exchanged while the next round trains."""

from typing import Any, NamedTuple

import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import inside, transformation, zeros
from gradkit.engine.keys import check_key
from gradkit.parallel.diloco import outer_momentum_sgd
from gradkit.parallel.error_feedback import error_feedback
from gradkit.parallel.local_updates import local_updates
from gradkit.parallel.powersgd import low_rank_compressor
from gradkit.types import Key, Scalar, ScalarOrSchedule

PAPER = Paper(
    "DiLoCoX: A Low-Communication Large-Scale Training Framework for Decentralized Cluster",
    "Qi et al.",
    2025,
    "2506.21263",
)


class OneStepDelayState(NamedTuple):
    """The updates of the previous step, and the inner state."""

    pending: Any
    inner: Any


def one_step_delay(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Passes every gradient on one step late, so that its exchange may take as long as a step.

    Equations:

        u_t = inner(g_{t-1}),    g_{-1} = 0

    As the `outer` of `local_updates`, the exchange at the end of a round is not needed before the end of the next one.

    Args:
      inner: any transformation.

    Returns:
      A transformation. State: 1 word per parameter and the inner state. Elementwise: no collective.

    Raises:
      ValueError: `inner` is not a transformation.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = one_step_delay(optax.sgd(1.0))
      >>> state = tx.init(jnp.array(0.0))
      >>> for g in (1.0, 2.0):
      ...     u, state = tx.update(jnp.array(g), state)
      >>> print(u)
      -1.0

    Reference: Qi et al. DiLoCoX: A Low-Communication Large-Scale Training Framework for Decentralized Cluster. 2025,
    arXiv 2506.21263.
    """
    tx = inside(inner)

    def init(params: Any) -> OneStepDelayState:
        return OneStepDelayState(zeros(params), tx.init(params))

    def update(updates: Any, state: OneStepDelayState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        late, own = tx.update(state.pending, state.inner, params, **extra)
        return late, OneStepDelayState(updates, own)

    return transformation("one_step_delay", init, update, complex_leaves=True)


def dilocox(
    inner: optax.GradientTransformation,
    *,
    sync_every: Any = 125,
    rank: int | None = 64,
    bits: int | None = 4,
    outer_learning_rate: ScalarOrSchedule = 0.7,
    outer_momentum: Scalar = 0.9,
    outer_nesterov: bool = True,
    key: Key = 0,
    axis_name: Any = "replica",
) -> optax.GradientTransformationExtraArgs:
    """DiLoCo over slow links: factors of low rank in few bits, with error feedback, exchanged during the next round.

    Equations of round r, on every replica k of W, with the compressor C to factors of low rank in integers:

        x_k <- theta, then H = sync_every inner steps
        c_k =  C(theta - x_k + e_k),   e_k <- theta - x_k + e_k - c_k
        D_r =  (1/W) sum_k c_k                                              exchanged during round r + 1
        theta <- theta + outer(D_{r-1})                                     one round late; D_{-1} = 0

    A round starts from theta without the last changes of its own replica, which arrive with D on all replicas. So with
    one replica and no compression it is DiLoCo with a pseudo-gradient that is one round old. It is

        local_updates(inner, outer=one_step_delay(outer_nesterov(...)),
                      exchange=error_feedback(low_rank_compressor(rank, bits=bits)))

    Args:
      inner: the transformation of each replica; the paper has AdamW.
      sync_every: H, as in `local_updates`. Default 125.
      rank: of the factors, >= 1; a program has one rank. Default 64. None: no compression, whatever `bits` is.
      bits: of the factors, 4, 8 or None for float32. Default 4 (paper).
      outer_learning_rate: gamma >= 0, or a schedule of the rounds. Default 0.7.
      outer_momentum: beta in [0, 1]. Default 0.9.
      outer_nesterov: whether the outer momentum looks ahead. Default True.
      key: of the random columns from which the factors start, the same on all replicas. Default 0.
      axis_name: name of the axis of the replicas. Default "replica".

    Returns:
      A transformation that needs `params`. State: 3 words per parameter (theta, m, the pending D) and the inner state;
      compressed, 1 more (e) and the factors; all of it once per replica. Collectives: per round those of the factors.

    Raises:
      ValueError: a hyperparameter outside its range; leaves of integers; no axis of this name.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> tx = dilocox(optax.sgd(1.0), sync_every=1, rank=None, outer_learning_rate=0.5, outer_momentum=0.0)
      >>> x, g = jnp.array([5.0, 5.0]), jnp.array([0.0, 2.0])
      >>> state, step = jax.vmap(tx.init)(x), jax.vmap(tx.update, axis_name="replica")
      >>> for _ in range(2):
      ...     u, state = step(g, state, x)
      ...     x = x + u
      >>> print(x)  # the first round's mean of 1, after the second round
      [4.5 4.5]

    Reference: Qi et al. DiLoCoX: A Low-Communication Large-Scale Training Framework for Decentralized Cluster. 2025,
    arXiv 2506.21263. There is no public code; where a round starts, and the form of the momentum, are as above. The
    loop must adapt rank and H to the effective rank of D: `adaptive_rank` chooses, and every rank is a program.
    """
    checks.integer("rank", rank, 1, optional=True)
    bits = checks.integer("bits", bits, optional=True)
    checks.choice("bits", bits, (None, 8, 4))
    check_key(key)
    checks.switch(outer_nesterov=outer_nesterov)
    own_names = ("outer_learning_rate", "outer_momentum")
    far = outer_momentum_sgd(own_names[0], outer_learning_rate, own_names[1], outer_momentum, outer_nesterov)
    exchange = None if rank is None else error_feedback(low_rank_compressor(rank, bits=bits, key=key))
    return local_updates(
        inner, sync_every=sync_every, outer=one_step_delay(far), exchange=exchange, axis_name=axis_name
    )


register(one_step_delay, form="wrapper", paper=PAPER, delay="one update", words=1)
register(
    dilocox,
    form="strategy",
    paper=PAPER,
    delay="one round",
    words=3,
    collectives="replicas",
    example={"sync_every": 2, "rank": None},
    notes="with a rank, 1 word more and factors that travel",
)
