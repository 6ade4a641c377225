"""Conda: Adam whose second moment is that of the gradient in the basis of the momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.by_role import by_role
from gradkit.engine.core import bias_correction as correction
from gradkit.engine.core import divide, increment, optimizer, scalar, transformation
from gradkit.engine.fields import init_fields
from gradkit.engine.kronecker import product
from gradkit.engine.mapping import map_stacks
from gradkit.engine.owned import phases
from gradkit.engine.parts import beside, counted, like
from gradkit.engine.planning import plan_stacks
from gradkit.engine.refreshes import due, failures, refreshed, renewable
from gradkit.engine.shards import check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout, Method
from gradkit.linalg import singular_basis
from gradkit.transforms import MatrixSharding, add_decayed_weights, scale_by_adam, scale_by_learning_rate
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "Conda: Column-Normalized Adam for Training Large Language Models Faster", "Wang et al.", 2025, "2509.24218"
)
# For which matrices the kernel works on the transpose; whether there is a basis on the left, and on the right. A square
# matrix is transposed too: its columns count as the shorter side.
PROJECTIONS = {
    "std": (lambda rows, columns: rows >= columns, True, False),
    "reverse_std": (lambda rows, columns: rows >= columns, False, True),
    "left": (lambda rows, columns: False, True, False),
    "right": (lambda rows, columns: False, False, True),
    "full": (lambda rows, columns: rows >= columns, True, True),
}


class Own(NamedTuple):
    """The state of the matrices of a stack: the momentum, the second moment in its basis, the bases, and how often the
    computation of a basis failed."""

    mu: Any
    nu: Any
    left: Any
    right: Any
    failed: Any


class ScaleByCondaState(NamedTuple):
    """Number of updates made; the fields of `Own`, mu (and with projection="std" nu) of the shape of a parameter, the
    others by the sides of its matrices; with `shard`, by stacks of equal matrices, each sharded over its owners."""

    count: jax.Array
    mu: Any
    nu: Any
    left: Any
    right: Any
    failed: Any

    @property
    def metrics(self) -> dict[str, jax.Array]:
        """What `gk.diagnostics.metrics` reads."""
        return failures(self.failed)


def scale_by_conda(
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    update_interval: int = 2000,
    stagger: bool = False,
    scale: Scalar = 1.0,
    projection: str = "std",
    bias_correction: bool = True,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides the momentum by the root of the second moment, in the basis of the momentum's singular vectors.

    Equations: m_t, v_t and d_t of `conda`. The basis of the first step is that of the first gradient.

    Args:
      b1: decay of the momentum, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moment, in [0, 1). Default 0.999 (the class of the official code; its runs of
        language models have 0.99).
      eps: added to the root before the bias is corrected, >= 0. Default 1e-8 (official code). With 0, entries whose
        second moment is 0 get 0.
      update_interval: steps from one basis to the next, >= 1. Default 2000 (official code and runs).
      stagger: whether every matrix has a step of its own for its next basis, so that the work is spread over the steps;
        the bases that are due are computed one after another. Default False (official code): all at once.
      scale: factor of the direction, >= 0. Default 1 (the class of the official code; its runs of language models
        have 0.25).
      projection: which sides have a basis: "std" the shorter, "reverse_std" the longer, "left" the inputs, "right" the
        outputs, "full" both. The basis of the longer side is thin, and the component of the gradient outside its span
        is lost. Default "std" (official code), which loses nothing.
      bias_correction: whether moments are corrected for their start from zero. Default True (official code).
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work and the state are distributed. Default None: over the
        devices that leaves are sharded over where a mesh with Explicit axes says so, otherwise the compiler decides.

    Returns:
      A transformation. State: 2 words per parameter and n^2 per n x m matrix, n <= m, 1 / N of them on each of N
      devices of `shard`. Collectives: for leaves sharded along a matrix axis two all-to-alls per shape; for replicated
      leaves with `shard` one all-gather. Under `vmap` over seeds a basis is computed only when it is due.

    Raises:
      ValueError: a hyperparameter outside its range; a leaf without inputs or outputs.

    Example:
      >>> tx = scale_by_conda(b1=0.0, b2=0.0, eps=0.0)
      >>> g = jnp.array([[0.0, 3.0], [-0.1, 0.0]])
      >>> print(tx.update(g, tx.init(g))[0].round(4) + 0.0)  # signs, in the basis
      [[ 0.  1.]
       [-1.  0.]]

    Reference: Wang et al. Conda: Column-Normalized Adam for Training Large Language Models Faster. 2025, arXiv
    2509.24218. The official code's "left" is torch's first axis, the outputs. A basis that is not finite is not used,
    and counted in the metric `failed_refreshes`; a momentum of zeros does not change the basis.
    """
    checks.layout(layout)
    checks.switch(bias_correction=bias_correction)
    checks.floating_dtype(mu_dtype=mu_dtype)
    method = "scale_by_conda"
    for name, value in (("b1", b1), ("b2", b2)):
        checks.real(name, value, "[0, 1)")
    for name, value in (("eps", eps), ("scale", scale)):
        checks.real(name, value, "[0, inf)")
    update_interval = checks.integer("update_interval", update_interval, 1)
    checks.choice("stagger", stagger, (True, False))
    checks.choice("projection", projection, PROJECTIONS)
    check_shard(shard)
    transpose, on_left, on_right = PROJECTIONS[projection]

    def make(rows: int, dims: tuple[int, ...], dtype: Any, _: Any) -> Own:
        (n, m), k = dims, min(dims)
        nu = jnp.zeros((rows, k if on_left else n, k if on_right else m), dtype)
        return Own(
            like(jnp.zeros((rows, n, m), mu_dtype or dtype)),
            like(nu) if projection == "std" else beside(nu, ((0,), (1,))),
            beside(jnp.zeros((rows, n, k), dtype), ((0,), (1,))) if on_left else None,
            beside(jnp.zeros((rows, m, k), dtype), ((1,), (0,))) if on_right else None,
            counted(rows),
        )

    def planned(tree: Any) -> Plan:
        return plan_stacks(tree, make, method=method, layout=layout, shard=shard, transpose=transpose)

    def init(params: optax.Params) -> ScaleByCondaState:
        return ScaleByCondaState(jnp.zeros((), jnp.int32), **init_fields(planned(params), params))

    def kernel(G: jax.Array, own: Own, given: dict[str, Any], phase: Any) -> tuple[jax.Array, Own]:
        eps, scale = (scalar(given[name], G) for name in ("eps", "scale"))
        m = ema(own.mu, G, given["b1"])
        mean, k = m.astype(G.dtype), min(G.shape[1:])

        def anew(mean: jax.Array, _: Any) -> tuple[Any, Any]:
            left = singular_basis(mean, k) if on_left else None
            return left, singular_basis(jnp.swapaxes(mean, 1, 2), k) if on_right else None

        now = due(given["t"] - 1, 0, update_interval, phase)
        bases = own.left, own.right
        (U, V), failed = refreshed(now, anew, mean, bases, own.failed, rows=renewable(now, mean, bases))

        def into(a: jax.Array) -> jax.Array:
            a = a if U is None else product(jnp.swapaxes(U, 1, 2), a)
            return a if V is None else product(a, V)

        v = ema(own.nu, jnp.square(into(G)), given["b2"])
        u = divide(into(mean), jnp.sqrt(v) + eps)
        u = u if U is None else product(U, u)
        u = u if V is None else product(u, jnp.swapaxes(V, 1, 2))
        if bias_correction:
            u = u * (jnp.sqrt(correction(given["b2"], given["t"], G)) / correction(given["b1"], given["t"], G))
        return scale * u, Own(m, v, U, V, failed)

    def update(updates: Any, state: ScaleByCondaState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        t = increment(state.count)
        given = {"t": t, "b1": b1, "b2": b2, "eps": eps, "scale": scale}
        plan, fields = planned(updates), {f: getattr(state, f) for f in Own._fields}
        marks = phases(plan, update_interval if stagger else None)
        d, fields = map_stacks(plan, kernel, updates, fields, given, marks=marks)
        return d, ScaleByCondaState(t, **fields)

    return transformation(method, init, update)


def conda(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    update_interval: int = 2000,
    stagger: bool = False,
    scale: Scalar = 1.0,
    projection: str = "std",
    bias_correction: bool = True,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Conda for matrices, convolutions and experts; Adam for embeddings, heads, vectors and scalars.

    Equations, of an n x m matrix with n <= m (of the transpose where n > m):

        m_t = b1 m_{t-1} + (1 - b1) G_t
        if t % update_interval == 1 (or the interval is 1):   B = the singular vectors of m_t along its side n
        v_t = b2 v_{t-1} + (1 - b2) (B^T G_t)^2
        d_t = scale B (B^T m_t / (sqrt(v_t) + eps)) sqrt(1 - b2^t) / (1 - b1^t)
        x_t = x_{t-1} - learning_rate (d_t + weight_decay x_{t-1})

    Embeddings, heads, vectors and scalars take Adam instead. `describe` prints which rule each leaf gets.

    Args:
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the first moments, in [0, 1). Default 0.9 (official code).
      b2: decay of the second moments, in [0, 1). Default 0.999 (the class of the official code; its runs of
        language models have 0.99).
      eps: added to the roots before the bias is corrected, >= 0. Default 1e-8 (official code).
      update_interval: steps from one basis to the next, >= 1. Default 2000 (official code and runs).
      stagger: whether every matrix has a step of its own for it, as in `scale_by_conda`. Default False.
      scale: factor of the steps of matrices, >= 0. Default 1 (the class of the official code; its runs of language
        models have 0.25).
      projection: "std", "reverse_std", "left", "right" or "full", as in `scale_by_conda`. Default "std" (official
        code).
      bias_correction: whether moments are corrected for their start from zero. Default True (official code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0 (official code).
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which first moments are kept. Default float32.
      layout: what decides the roles, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are distributed, as in `scale_by_conda`. Default
        None.

    Returns:
      A transformation that needs `params` where leaves decay. State and collectives: those of `scale_by_conda`; Adam's
      2 words per parameter for the other leaves.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = conda(0.1, b1=0.0, b2=0.0)
      >>> x = {"bias": jnp.ones(2), "kernel": 2 * jnp.eye(2)}
      >>> updates, _ = tx.update(x, tx.init(x), x)
      >>> print(updates["bias"].round(3), updates["kernel"].round(3).ravel() + 0.0)
      [-0.1 -0.1] [-0.1  0.   0.  -0.1]

    Reference: Wang et al. Conda: Column-Normalized Adam for Training Large Language Models Faster. 2025, arXiv
    2509.24218. Departure from the official code: the decay does not multiply the step that precedes it.
    """

    def ready(name: str, direction: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
        return optimizer(
            Method(name, learning_rate, weight_decay, weight_decay_mask),
            direction,
            add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
            scale_by_learning_rate(learning_rate),
        )

    direction = scale_by_conda(
        b1=b1,
        b2=b2,
        eps=eps,
        update_interval=update_interval,
        stagger=stagger,
        scale=scale,
        projection=projection,
        bias_correction=bias_correction,
        mu_dtype=mu_dtype,
        layout=layout,
        shard=shard,
    )
    adam = scale_by_adam(b1=b1, b2=b2, eps=eps, eps_in_hat=False, bias_correction=bias_correction, mu_dtype=mu_dtype)
    described = Method("conda", learning_rate, weight_decay, weight_decay_mask)
    return by_role(described, ready("conda", direction), ready("adam", adam), layout)


register(
    scale_by_conda,
    form="primitive",
    paper=PAPER,
    words=3,
    collectives="matrices",
    only="matrices",
    opt_outs={"map_params": "its state belongs to stacks of matrices"},
    notes="for matrices alone: give other leaves to another method with gk.leaves.groups",
)
register(
    conda,
    form="optimizer",
    paper=PAPER,
    words=3,
    collectives="matrices",
    golden=("matrix/conda",),
    notes="2 + n / m words for n x m, n <= m; embeddings, heads, vectors and scalars take Adam",
    race=Race(5e-3),
)
