"""SPlus: the sign of the momentum in the eigenbases of its second moments, and a mean of the parameters.

m = b1 m + (1 - b1) g
u = Q_1 sign(Q_1^T m Q_2) Q_2^T                     with the bases from before the step, at first the identity
S_1 = b2 S_1 + (1 - b2) g g^T;   S_2 with the sides exchanged
at t = 1, and where update_interval divides t:   Q_i = eigenvectors of S_i + eps I
s = 2 / (inputs + outputs) where both are at most standard_dim, else nonstandard_scale
x = x - learning_rate s (u + weight_decay x)
e = mean of x after the steps, for evaluation: its running mean with decay ema_rate, over 1 - ema_rate^t
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.blocks import factor_sources
from gradkit.engine.core import bias_correction as correction
from gradkit.engine.core import increment, optimizer, scalar, transformation
from gradkit.engine.fields import init_fields
from gradkit.engine.kronecker import BY_LAYOUT, along_all, first_bases, statistic, transposes
from gradkit.engine.mapping import map_stacks
from gradkit.engine.owned import phases
from gradkit.engine.parts import beside, counted, like
from gradkit.engine.planning import as_tensors, plan_stacks
from gradkit.engine.refreshes import due, failures, refreshed
from gradkit.engine.shards import check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout, Method, axes_of, map_named
from gradkit.leaves.derived import unboxed
from gradkit.transforms import MatrixSharding, add_decayed_weights, scale_by_learning_rate
from gradkit.transforms.running_average import average_iterates
from gradkit.types import Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "A Stable Whitening Optimizer for Efficient Neural Network Training", "Frans, Levine, Abbeel", 2025, "2506.07254"
)
METHOD = "scale_by_splus"


class Own(NamedTuple):
    """What belongs to the tensors of a stack: per axis a second moment and a basis, None where it has none; the first
    moment; how often bases came out not finite, and were not taken."""

    S: tuple[Any, ...]
    Q: tuple[Any, ...]
    mu: Any
    failed: Any


class ScaleBySplusState(NamedTuple):
    """Number of updates made; and the fields of `Own`: S and Q of a parameter by its axes, mu like it. With `shard`, by
    stacks of equal tensors, each with its owners."""

    count: jax.Array
    S: Any
    Q: Any
    mu: Any
    failed: Any

    @property
    def metrics(self) -> dict[str, jax.Array]:
        """What `gk.diagnostics.metrics` reads."""
        return failures(self.failed)


def _size(axes: Any, shape: tuple[int, ...], standard_dim: int, other: Any) -> Any:
    """s of a leaf."""
    inputs, outputs = (tuple(shape[a] for a in group) for group in (axes.inputs, axes.outputs))
    if axes.role in ("embedding", "vector", "scalar") or len(inputs) != 1 or len(outputs) != 1:
        return other
    widths = set(axes.splits) or set(outputs)
    if max(*inputs, *widths) > standard_dim or not inputs[0]:
        return other
    if len(widths) > 1:
        columns = jnp.concatenate([jnp.full(w, 2 / (inputs[0] + w)) for w in axes.splits])
        return columns.reshape([-1 if a in axes.outputs else 1 for a in range(len(shape))])
    return 2 / (inputs[0] + widths.pop())


def _sized(standard_dim: int, nonstandard_scale: Any, layout: Layout | None) -> Any:
    """updates -> s times them."""

    def scaled(updates: Any) -> Any:
        def one(name: str, x: jax.Array) -> jax.Array:
            return scalar(_size(axes_of(layout, name, x.shape), x.shape, standard_dim, nonstandard_scale), x) * x

        return map_named(one, updates)

    return scaled


def scale_by_splus(
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-30,
    update_interval: int = 100,
    stagger: bool = False,
    max_dim: int = 10000,
    standard_dim: int | None = None,
    nonstandard_scale: Scalar = 0.001,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The sign of the momentum in the eigenbases of its second moments, times a factor of shape.

        m = b1 m + (1 - b1) g
        u = Q_1 sign(Q_1^T m Q_2) Q_2^T                     with the bases from before the step, at first the identity
        S_1 = b2 S_1 + (1 - b2) g g^T;   S_2 with the sides exchanged
        at t = 1, and where update_interval divides t:   Q_i = eigenvectors of S_i + eps I
        s = 2 / (inputs + outputs) where both are at most standard_dim, else nonstandard_scale
        d = s u

    Vectors and embeddings have no bases. Layers stacked for a scan and fused weights (`splits` of the layout) are
    tensors of their own. The sign makes the step insensitive to bases that are old.

    Args:
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moments, in [0, 1). Default 0.999 (official code).
      eps: added to the diagonal of a second moment, >= 0. Default 1e-30 (official code).
      update_interval: steps between two refreshes of the bases, >= 1. Default 100 (official code). Others call it
        precondition_frequency.
      stagger: whether every tensor has a step of its own to refresh its bases. Default False (official code).
      max_dim: longer axes have no basis. Default 10000 (official code). Others call it max_precond_dim.
      standard_dim: the largest side of a matrix that has s = 2 / (inputs + outputs). Default None: `max_dim`.
      nonstandard_scale: s of all other leaves, > 0. Default 0.001 (official code).
      layout: which axes are stacks, inputs and outputs.
      shard: a `gk.MatrixSharding`: over which devices work and state are spread, as in `gk.muon`. Default None.

    Returns:
      A transformation. State: 1 word per parameter, and per tensor twice the sum of the squares of the lengths of its
      axes, with the owner of the tensor. The metric `failed_refreshes` counts bases that came out not finite: the last
      good ones stay. Collectives: those of `scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> tx = scale_by_splus()
      >>> g = jnp.array([[0.0, 3.0], [-0.1, 0.0]])
      >>> print(tx.update(g, tx.init(g))[0] + 0.0)  # 2 / (2 + 2) sign(g)
      [[ 0.   0.5]
       [-0.5  0. ]]

    Reference: Frans, Levine, Abbeel. A Stable Whitening Optimizer for Efficient Neural Network Training. 2025, arXiv
    2506.07254. The official files disagree where a side has the length max_dim: hence two arguments here. The torch
    file decays after the step; the optax file averages the parameters from before it.
    """
    checks.layout(layout)
    rotate = _signs(b1, b2, eps, update_interval, stagger, max_dim, standard_dim, nonstandard_scale, layout, shard)
    largest = checks.integer("standard_dim", max_dim if standard_dim is None else standard_dim, 1)
    scaled = _sized(largest, nonstandard_scale, layout)

    def update(updates: Any, state: ScaleBySplusState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        u, after = rotate.update(updates, state, params, **extra)
        return scaled(u), after

    return transformation(METHOD, rotate.init, update)


def _signs(
    b1: Any,
    b2: Any,
    eps: Any,
    update_interval: int,
    stagger: bool,
    max_dim: int,
    standard_dim: int | None,
    nonstandard_scale: Any,
    layout: Layout | None,
    shard: MatrixSharding | None,
) -> optax.GradientTransformationExtraArgs:
    """u of `scale_by_splus`, without s; all of its arguments are checked here."""
    checks.real("b1", b1, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    checks.real("eps", eps, "[0, inf)")
    checks.switch(stagger=stagger)
    update_interval = checks.integer("update_interval", update_interval, 1)
    max_dim = checks.integer("max_dim", max_dim, 1)
    checks.integer("standard_dim", standard_dim, 1, optional=True)
    checks.real("nonstandard_scale", nonstandard_scale, "(0, inf)")
    check_shard(shard)
    interval = update_interval if stagger else None

    def make(rows: int, dims: tuple[int, ...], dtype: Any, plain: Any) -> Own:
        groups = [(a,) for a in range(len(dims))]
        S: list[Any] = [None] * len(dims)
        Q = list(S)
        for i, d in enumerate(dims):
            if d <= max_dim and len(dims) > 1 and not plain:
                S[i] = beside(jnp.zeros((rows, d, d), dtype), factor_sources(groups, i))
                Q[i] = beside(jnp.tile(jnp.eye(d, dtype=dtype)[None], (rows, 1, 1)), factor_sources(groups, i))
        return Own(tuple(S), tuple(Q), like(jnp.zeros((rows, *dims), dtype)), counted(rows))

    def planned(tree: Any) -> Plan:
        plain: list[bool] = []
        map_named(lambda name, x: plain.append(axes_of(layout, name, x.shape).role == "embedding"), unboxed(tree))
        return plan_stacks(tree, make, method=METHOD, layout=layout, shard=shard, view=as_tensors, kinds=plain)

    def kernel(G: jax.Array, own: Own, at: Any, phase: Any) -> tuple[jax.Array, Own]:
        mu = ema(own.mu, G, at["b1"])
        u = along_all(own.Q, jnp.sign(along_all(transposes(own.Q), mu)))
        S = tuple(None if s is None else ema(s, statistic(G, axis), at["b2"]) for axis, s in enumerate(own.S))

        def bases(S: Any, _: Any) -> Any:
            added = [
                None if s is None else s + scalar(at["eps"], s) * jnp.eye(s.shape[1], dtype=s.dtype)[None] for s in S
            ]
            return first_bases(added)

        Q, failed = refreshed(due(at["t"], 1, update_interval, phase), bases, S, own.Q, own.failed)
        return u, Own(S, Q, mu, failed)

    def init(params: optax.Params) -> ScaleBySplusState:
        return ScaleBySplusState(jnp.zeros((), jnp.int32), **init_fields(planned(params), params))

    def update(updates: Any, state: ScaleBySplusState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        fields, t = state._asdict(), increment(state.count)
        del fields["count"]
        plan = planned(updates)
        at = {"t": t, "b1": b1, "b2": b2, "eps": eps}
        u, fields = map_stacks(plan, kernel, updates, fields, at, marks=phases(plan, interval))
        return u, ScaleBySplusState(t, **fields)

    return transformation(METHOD, init, update)


def splus(
    learning_rate: ScalarOrSchedule = 0.1,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-30,
    update_interval: int = 100,
    stagger: bool = False,
    max_dim: int = 10000,
    standard_dim: int | None = None,
    nonstandard_scale: Scalar = 0.001,
    ema_rate: Scalar = 0.999,
    average_before_step: bool = False,
    weight_decay: ScalarOrSchedule = 0.01,
    weight_decay_mask: Mask | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SPlus, for all leaves; evaluate at `gk.eval_params(state, params)`.

        m = b1 m + (1 - b1) g
        u = Q_1 sign(Q_1^T m Q_2) Q_2^T                     with the bases from before the step, at first the identity
        S_1 = b2 S_1 + (1 - b2) g g^T;   S_2 with the sides exchanged
        at t = 1, and where update_interval divides t:   Q_i = eigenvectors of S_i + eps I
        s = 2 / (inputs + outputs) where both are at most standard_dim, else nonstandard_scale
        x = x - learning_rate s (u + weight_decay x)
        e = ema_rate e + (1 - ema_rate) x;   evaluation at e / (1 - ema_rate^t)

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.1 (official code).
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moments, in [0, 1). Default 0.999 (official code).
      eps: added to the diagonal of a second moment, >= 0. Default 1e-30 (official code).
      update_interval: steps between two refreshes of the bases, >= 1. Default 100 (official code). Others call it
        precondition_frequency.
      stagger: whether every tensor has a step of its own to refresh its bases. Default False (official code).
      max_dim: longer axes have no basis. Default 10000 (official code). Others call it max_precond_dim.
      standard_dim: the largest side of a matrix that has s = 2 / (inputs + outputs). Default None: `max_dim`.
      nonstandard_scale: s of all other leaves, > 0. Default 0.001 (official code).
      ema_rate: decay of the mean of the parameters, in [0, 1). Default 0.999 (official code).
      average_before_step: whether the mean is of the parameters from before every step, one step behind, as in the
        official optax file. Default False: from after it, as in the official torch file.
      weight_decay: decoupled decay >= 0, or a schedule; times s as the update is. Default 0.01 (official code).
      weight_decay_mask: which leaves decay. Default all.
      layout: which axes are stacks, inputs and outputs.
      shard: a `gk.MatrixSharding`: over which devices work and state are spread, as in `gk.muon`. Default None.

    Returns:
      A transformation that needs `params`, and must be the last of a chain, as it averages parameters plus updates.
      State: that of `scale_by_splus`, and 1 word per parameter. Collectives: those of `scale_by_splus`.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves; `params` missing.

    Example:
      >>> tx = splus(0.1, weight_decay=0.0)
      >>> x = {"bias": jnp.ones(2), "kernel": jnp.eye(2)}
      >>> updates, state = tx.update(x, tx.init(x), x)
      >>> print(updates["bias"], updates["kernel"].round(3) + 0.0)
      [-0.0001 -0.0001] [[-0.05  0.  ]
       [ 0.   -0.05]]

    Reference: Frans, Levine, Abbeel. A Stable Whitening Optimizer for Efficient Neural Network Training. 2025, arXiv
    2506.07254. The official files disagree where a side has the length max_dim: hence two arguments here. The torch
    file decays after the step, and averages the parameters from before that decay.
    """
    checks.real("ema_rate", ema_rate, "[0, 1)")
    checks.switch(average_before_step=average_before_step)
    rotate = _signs(b1, b2, eps, update_interval, stagger, max_dim, standard_dim, nonstandard_scale, layout, shard)
    largest = checks.integer("standard_dim", max_dim if standard_dim is None else standard_dim, 1)
    scaled = _sized(largest, nonstandard_scale, layout)

    def share(n: jax.Array, x: jax.Array) -> Any:
        d = scalar(ema_rate, x)
        return (1 - d) / correction(ema_rate, n, x)

    def size(updates: Any, params: Any) -> Any:
        del params
        return scaled(updates)

    return optimizer(
        Method("splus", learning_rate, weight_decay, weight_decay_mask),
        rotate,
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        optax.stateless(size),
        scale_by_learning_rate(learning_rate),
        average_iterates("splus", share, before_step=average_before_step),
    )


register(
    scale_by_splus,
    form="primitive",
    paper=PAPER,
    words=5,
    collectives="matrices",
    opt_outs=BY_LAYOUT,
)
register(
    splus,
    form="optimizer",
    paper=PAPER,
    words=6,
    collectives="matrices",
    golden=("modern/splus",),
    opt_outs=BY_LAYOUT,
    notes="evaluates at a mean of the parameters; the last link of a chain",
    race=Race(1e-1),
)
