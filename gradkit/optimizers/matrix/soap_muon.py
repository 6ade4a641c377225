"""SOAP-Muon: the momentum, divided in SOAP's bases by the root of its second moment, then orthogonalised."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.blocks import factor_sources
from gradkit.engine.core import divide, increment, scalar, transformation
from gradkit.engine.fields import init_fields
from gradkit.engine.kronecker import along_all, first_bases, next_bases, reorder, statistic, transposes
from gradkit.engine.mapping import map_stacks
from gradkit.engine.parts import beside, counted, like
from gradkit.engine.planning import plan_stacks
from gradkit.engine.refreshes import due, failures, refreshed
from gradkit.engine.shape_factor import SCALES, scale_by_shape
from gradkit.engine.shards import check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout
from gradkit.linalg.orthogonalize import check_options, orthogonalize
from gradkit.optimizers.matrix.beside_adamw import beside_adamw
from gradkit.transforms import MatrixSharding
from gradkit.transforms.trust_gate import PAPER, blended, resized
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

METHOD = "scale_by_soap_muon"
FLOOR = 1e-7


class Own(NamedTuple):
    """What belongs to the matrices of a stack: per side a second moment and a basis, None where it has none; the
    momentum; in the bases its second moment; how often bases came out not finite, and were not taken."""

    S: tuple[Any, ...]
    Q: tuple[Any, ...]
    mu: Any
    nu: Any
    failed: Any


class ScaleBySoapMuonState(NamedTuple):
    """Number of updates made; and the fields of `Own`: S and Q of a parameter by its sides, mu and nu like it. With
    `shard`, by stacks of equal matrices, each with its owners."""

    count: jax.Array
    S: Any
    Q: Any
    mu: Any
    nu: Any
    failed: Any

    @property
    def metrics(self) -> dict[str, jax.Array]:
        """What `gk.diagnostics.metrics` reads."""
        return failures(self.failed)


def scale_by_soap_muon(
    *,
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    b2: Scalar = 0.9,
    shampoo_beta: Scalar | None = None,
    eps: Scalar = 1e-8,
    update_interval: int = 1,
    max_dim: int = 10000,
    trust: bool = False,
    ns_steps: int = 12,
    coefficients: Any = "quintic",
    ns_norm: str = "schatten4",
    scale: str | None = "spectral",
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalises the momentum of every matrix after it was divided, in SOAP's bases, by its root mean square.

        m = momentum m + (1 - momentum) g;   u = (1 - momentum) g + momentum m, or m without `nesterov`
        p = Q_1^T u Q_2;   v = b2 v + (1 - b2) p^2
        q = Q_1 [p / max(sqrt(v), eps)] Q_2^T,   rescaled to the norm |u|_S4;   q = u at the first call
        with `trust`:   q = u + a h (q - u), rescaled;   a = clip((cos(q, u) - 0.2) / 0.8, 0, 1)
                        h = clip(cos(q, g) / max(cos(u, g), 1e-8), 0, 1)
        d = s times the nearest orthogonal matrix of q, by Newton-Schulz
        S_1 = beta S_1 + (1 - beta) g g^T,   S_2 with the sides exchanged       beta = shampoo_beta, or b2
        every `update_interval` calls Q_i = qr(S_i Q_i).Q, its columns ordered by their eigenvalues, and v as they are

    The first step is Muon's. Layers stacked for a scan, experts and fused weights are matrices of their own.

    Args:
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      nesterov: whether to look ahead. Default True (official code).
      b2: decay of the second moment in the bases, in [0, 1). Default 0.9 (record 44).
      shampoo_beta: decay of the second moments of the sides, in [0, 1). Default None: b2.
      eps: the least root of a second moment, >= 0. Default 1e-8 (official code).
      update_interval: steps between two refreshes of the bases, >= 1. Default 1 (official code). Others call it
        precondition_frequency.
      max_dim: longer axes have no basis. Default 10000. Others call it max_precond_dim.
      trust: whether q is mixed with u as far as their directions agree (`trust_gate`). Default False.
      ns_steps: Newton-Schulz iterations, >= 1. Default 12 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "quintic" (official code).
      ns_norm: what the iterations are normalised by: "schatten4", at least 1e-7, or "frobenius". Default
        "schatten4" (official code).
      scale: s: "spectral", "ratio", "match_rms_adamw" or None, as in `scale_by_muon`. Default "spectral".
      layout: which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are spread, as in `gk.muon`. Default None.

    Returns:
      A transformation. State: 2 words per parameter, and per matrix twice the sum of the squares of its sides, with the
      owner of the matrix. The metric `failed_refreshes` counts bases that came out not finite. Collectives: those of
      `scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf without inputs or outputs.

    Example:
      >>> tx = scale_by_soap_muon(scale=None)
      >>> g = jnp.array([[0.0, 3.0], [-1.0, 0.0]])
      >>> print(tx.update(g, tx.init(g))[0].round(3) + 0.0)
      [[ 0.  1.]
       [-1.  0.]]

    Reference: Vyas. SOAP-Muon, a note, 2026; modded-nanogpt, track 3, records 14, 16 and 44 to 46, which bound a h by
    0.45 and 0.85 in the first half of a run and take the gate for the outputs of attention alone.
    """
    checks.layout(layout)
    checks.switch(nesterov=nesterov, trust=trust)
    checks.real("momentum", momentum, "[0, 1)")
    checks.real("b2", b2, "[0, 1)")
    checks.real("shampoo_beta", shampoo_beta, "[0, 1)", optional=True)
    checks.real("eps", eps, "[0, inf)")
    update_interval = checks.integer("update_interval", update_interval, 1)
    max_dim = checks.integer("max_dim", max_dim, 1)
    ns_steps = checks.integer("ns_steps", ns_steps, 1, maximum=checks.MOST_UNROLLED)
    check_options(steps=ns_steps, coefficients=coefficients, method="newton_schulz", eps=FLOOR)
    checks.choice("ns_norm", ns_norm, ("schatten4", "frobenius"))
    checks.choice("scale", scale, SCALES)
    check_shard(shard)
    polar = partial(orthogonalize, steps=ns_steps, coefficients=coefficients, eps=FLOOR, precondition=ns_norm)

    def make(rows: int, dims: tuple[int, ...], dtype: Any, _: Any) -> Own:
        groups = [(0,), (1,)]
        S: list[Any] = [None, None]
        Q = list(S)
        for i, d in enumerate(dims):
            if d <= max_dim:
                S[i] = beside(jnp.zeros((rows, d, d), dtype), factor_sources(groups, i))
                Q[i] = beside(jnp.tile(jnp.eye(d, dtype=dtype)[None], (rows, 1, 1)), factor_sources(groups, i))
        mu, nu = (like(jnp.zeros((rows, *dims), dtype)) for _ in range(2))
        return Own(tuple(S), tuple(Q), mu, nu, counted(rows))

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, make, method=METHOD, layout=layout, shard=shard)

    def kernel(g: jax.Array, own: Own, at: Any, _: Any) -> tuple[jax.Array, Own]:
        start, b = at["c"] == 0, scalar(at["momentum"], g)
        mu = ema(own.mu, g, at["momentum"])
        u = (1 - b) * g + b * mu if nesterov else mu
        p = along_all(transposes(own.Q), u)
        nu = jnp.where(start, own.nu, ema(own.nu, jnp.square(p), at["b2"]))
        q = along_all(own.Q, divide(p, jnp.maximum(jnp.sqrt(nu), scalar(at["eps"], nu))))
        q = resized(q, u)
        if trust:
            q = blended(u, q, g)
        q = jnp.where(start, u, q)
        S = tuple(None if s is None else ema(s, statistic(g, axis), at["beta"]) for axis, s in enumerate(own.S))

        def into_next_bases(S: Any, old: Any) -> Any:
            Q, orders = next_bases(S, old[0])
            return Q, reorder(old[1], orders)

        Q, failed = refreshed(start, lambda S, _: first_bases(S), S, own.Q, own.failed)
        now = ~start & due(at["c"], 0, update_interval)
        (Q, nu), failed = refreshed(now, into_next_bases, S, (Q, nu), failed)
        return polar(q), Own(S, Q, mu, nu, failed)

    def init(params: optax.Params) -> ScaleBySoapMuonState:
        return ScaleBySoapMuonState(jnp.zeros((), jnp.int32), **init_fields(planned(params), params))

    def update(updates: Any, state: ScaleBySoapMuonState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        fields, beta = state._asdict(), b2 if shampoo_beta is None else shampoo_beta
        at = {"c": fields.pop("count"), "momentum": momentum, "b2": b2, "beta": beta, "eps": eps}
        plan = planned(updates)
        d, fields = map_stacks(plan, kernel, updates, fields, at)
        return scale_by_shape(d, plan.axes, plan.shapes, scale), ScaleBySoapMuonState(increment(state.count), **fields)

    return transformation(METHOD, init, update)


def soap_muon(
    learning_rate: ScalarOrSchedule = 0.0375,
    *,
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    b2: Scalar = 0.9,
    shampoo_beta: Scalar | None = None,
    eps: Scalar = 1e-8,
    update_interval: int = 1,
    max_dim: int = 10000,
    trust: bool = False,
    ns_steps: int = 12,
    coefficients: Any = "quintic",
    ns_norm: str = "schatten4",
    scale: str | None = "spectral",
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.95,
    adam_eps: Scalar = 1e-8,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SOAP-Muon for matrices, convolutions and experts; AdamW for embeddings, heads, vectors and scalars.

        m = momentum m + (1 - momentum) g;   u = (1 - momentum) g + momentum m, or m without `nesterov`
        p = Q_1^T u Q_2;   v = b2 v + (1 - b2) p^2
        q = Q_1 [p / max(sqrt(v), eps)] Q_2^T,   rescaled to the norm |u|_S4;   q = u at the first call
        with `trust`:   q = u + a h (q - u), rescaled;   a = clip((cos(q, u) - 0.2) / 0.8, 0, 1)
                        h = clip(cos(q, g) / max(cos(u, g), 1e-8), 0, 1)
        d = s times the nearest orthogonal matrix of q, by Newton-Schulz
        S_1 = beta S_1 + (1 - beta) g g^T,   S_2 with the sides exchanged       beta = shampoo_beta, or b2
        every `update_interval` calls Q_i = qr(S_i Q_i).Q, its columns ordered by their eigenvalues, and v as they are
        x = x - learning_rate (d + weight_decay x)

    `describe` prints which leaf gets which.

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.0375 (record 44).
      momentum: decay of the mean, in [0, 1). Default 0.95 (official code).
      nesterov: whether to look ahead. Default True (official code).
      b2: decay of the second moment in the bases, in [0, 1). Default 0.9 (record 44).
      shampoo_beta: decay of the second moments of the sides, in [0, 1). Default None: b2.
      eps: the least root of a second moment, >= 0. Default 1e-8 (official code).
      update_interval: steps between two refreshes of the bases, >= 1. Default 1 (official code). Others call it
        precondition_frequency.
      max_dim: longer axes have no basis. Default 10000. Others call it max_precond_dim.
      trust: whether q is mixed with u as far as their directions agree (`trust_gate`). Default False.
      ns_steps: Newton-Schulz iterations, >= 1. Default 12 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "quintic" (official code).
      ns_norm: what the iterations are normalised by: "schatten4", at least 1e-7, or "frobenius". Default
        "schatten4" (official code).
      scale: s: "spectral", "ratio", "match_rms_adamw" or None, as in `scale_by_muon`. Default "spectral".
      weight_decay: decoupled decay of the matrices >= 0, or a schedule. Default 0.0.
      weight_decay_mask: which leaves decay, of all. Default all.
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. Default None:
        `learning_rate` with scale="match_rms_adamw"; otherwise it must be given where there are such leaves.
      adam_b1: decay of AdamW's first moment, in [0, 1). Default 0.9.
      adam_b2: decay of AdamW's second moment, in [0, 1). Default 0.95.
      adam_eps: AdamW's own eps, >= 0. Default 1e-8.
      adam_weight_decay: decoupled decay of the other leaves >= 0, or a schedule. Default 0.
      mu_dtype: dtype in which AdamW's first moment is kept. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are spread, as in `gk.muon`. Default None.

    Returns:
      A transformation that needs `params` where leaves decay. State: 2 words per parameter of a matrix, twice the
      squares of its sides, and 2 words per parameter of the others. Collectives: those of `scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range; at `init`, leaves for AdamW without a learning rate for them.

    Example:
      >>> tx = soap_muon(0.1, adam_learning_rate=0.01)
      >>> x = {"bias": jnp.ones(2), "kernel": jnp.eye(2)}
      >>> updates, _ = tx.update(x, tx.init(x), x)
      >>> print(updates["bias"].round(3), updates["kernel"].round(3) + 0.0)
      [-0.01 -0.01] [[-0.1  0. ]
       [ 0.  -0.1]]

    Reference: Vyas. SOAP-Muon, a note, 2026; modded-nanogpt, track 3, records 14, 16 and 44 to 46, which bound a h by
    0.45 and 0.85 in the first half of a run and take the gate for the outputs of attention alone.
    """
    direction = scale_by_soap_muon(
        momentum=momentum,
        nesterov=nesterov,
        b2=b2,
        shampoo_beta=shampoo_beta,
        eps=eps,
        update_interval=update_interval,
        max_dim=max_dim,
        trust=trust,
        ns_steps=ns_steps,
        coefficients=coefficients,
        ns_norm=ns_norm,
        scale=scale,
        layout=layout,
        shard=shard,
    )
    return beside_adamw(
        "soap_muon",
        learning_rate,
        weight_decay,
        weight_decay_mask,
        direction,
        adam_learning_rate=adam_learning_rate,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
        adam_weight_decay=adam_weight_decay,
        mu_dtype=mu_dtype,
        layout=layout,
        sized_as_adamw=scale == "match_rms_adamw",
        lengths=', or scale="match_rms_adamw", under which one rate serves all leaves',
    )


register(
    scale_by_soap_muon,
    form="primitive",
    paper=PAPER,
    words=6,
    collectives="matrices",
    only="matrices",
    notes="for matrices alone: give other leaves to another method with gk.leaves.groups",
)
register(
    soap_muon,
    form="optimizer",
    paper=PAPER,
    words=6,
    collectives="matrices",
    golden=("modern/soap_muon",),
    notes="matrices only; embeddings, heads, vectors and scalars take AdamW",
    example={"adam_learning_rate": 0.01},
    race=Race(1e-2, {"scale": "match_rms_adamw"}),
)
