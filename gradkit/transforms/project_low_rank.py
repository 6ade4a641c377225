"""A transformation on a few directions of every matrix, whose state is as small as the projected gradient."""

import itertools
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.by_role import ROLES
from gradkit.engine.core import increment, inside, scalar, transformation
from gradkit.engine.fields import init_fields
from gradkit.engine.kronecker import product
from gradkit.engine.mapping import map_stacks
from gradkit.engine.owned import phases
from gradkit.engine.parts import beside, counted
from gradkit.engine.planning import check_matrix, plan_stacks
from gradkit.engine.refreshes import due, failures, refreshed, renewable
from gradkit.engine.shards import MatrixSharding, check_shard
from gradkit.engine.stacks import Plan
from gradkit.leaves import Layout, axes_of, names
from gradkit.leaves.derived import flatten, node_names
from gradkit.linalg import singular_basis
from gradkit.linalg.singular_basis import SIGNS
from gradkit.transforms.adam import scale_by_adam
from gradkit.transforms.limit_norm_growth import growth
from gradkit.types import Scalar

PAPER = Paper(
    "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection", "Zhao et al.", 2024, "2403.03507"
)
METHOD = "project_low_rank"
# Which matrices are transposed, so that the side to compress comes first. Of a square one the columns are compressed.
SIDES = {
    "short": lambda rows, columns: rows >= columns,
    "long": lambda rows, columns: rows < columns,
    "inputs": lambda rows, columns: False,
    "outputs": lambda rows, columns: True,
}
FIRST_MOMENTS, SECOND_MOMENTS = {"mu", "trace"}, {"nu"}


class Own(NamedTuple):
    """The state of the matrices of a stack: the bases, the state of `inner` for the projected gradients, how often the
    computation of a basis failed, and, with a residual, its norm."""

    basis: Any
    inner: Any
    failed: Any
    norm: Any


class ProjectLowRankState(NamedTuple):
    """Number of updates made; the fields of `Own`, of every projected parameter; with `shard`, by stacks of equal
    matrices, each sharded over its owners; the state of `inner` for the other leaves."""

    count: jax.Array
    basis: Any
    inner: Any
    failed: Any
    norm: Any
    rest: Any

    @property
    def metrics(self) -> dict[str, jax.Array]:
        """What `gk.diagnostics.metrics` reads."""
        return failures(self.failed)


class Numbered(NamedTuple):
    """A transformation as a function of its hyperparameters: traced ones must reach the owner device as arguments."""

    make: Callable[[dict[str, Any]], optax.GradientTransformation]
    numbers: dict[str, Any]


def rotated(state: Any, rotation: jax.Array) -> Any:
    """The state of a method in a new basis: first moments times a matrix, second moments times its squared entries."""

    def one(name: str, x: jax.Array) -> jax.Array:
        field = next((p for p in reversed(name.split("/")) if p in FIRST_MOMENTS | SECOND_MOMENTS), None)
        if field is None and x.ndim == 3:
            raise ValueError(
                f"{METHOD}: rotate_moments rotates the fields mu, trace and nu of the state of inner, which also has "
                f"{name!r}; write rotate_moments=False, or take another inner"
            )
        if field is None:
            return x
        by = rotation if field in FIRST_MOMENTS else jnp.square(rotation)
        return product(by, x.astype(rotation.dtype)).astype(x.dtype)

    leaves, structure = jax.tree.flatten(state)
    return structure.unflatten([one(name, x) for name, x in zip(names(state), leaves, strict=True)])


def _ranks(rank: Any, known: list[str]) -> dict[str, int]:
    """The rank of every leaf that has one."""
    if isinstance(rank, int):
        return dict.fromkeys(known, rank)
    given = dict(zip(names(rank), jax.tree.leaves(rank), strict=True))
    if unknown := sorted(given.keys() - set(known)):
        raise ValueError(
            f"{METHOD}: rank names leaves that the parameters do not have: {unknown}; they have {sorted(known)}"
        )
    return {name: int(np.max(np.asarray(value))) for name, value in given.items()}


def project_low_rank(
    inner: optax.GradientTransformation | Numbered | None = None,
    *,
    rank: int | Mapping[str, Any] = 128,
    update_interval: int = 200,
    stagger: bool = False,
    scale: Scalar = 1.0,
    side: str = "short",
    sign: str = "fixed",
    rotate_moments: bool = False,
    residual: str | None = None,
    growth_limit: Scalar | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Runs a transformation on the leading directions of every matrix, and without a projection on the other leaves.

    Equations, of a gradient x (n, m), transposed if necessary so that the side to compress comes first, t = 0, 1, ...:

        if t % update_interval == 0:   B = the first r left singular vectors of x            (n, r)
        R = B^T x                                                                            (r, m)
        psi = inner(R)
        d = scale B psi

    With residual="norm_scaled":

        phi = |psi| / (|R| + 1e-8)                   of every column
        E = (x - scale B R) phi                      its growth limited as in `gk.limit_norm_growth`
        d = scale B psi + E

    `inner` gets every projected matrix separately, as one (r, m) array without a name. Moments do not change with the
    basis (official code), unless `rotate_moments`.

    Args:
      inner: a transformation from a gradient to a direction that needs no parameters: decay belongs outside. Default
        None: `gk.scale_by_adam()`.
      rank: r >= 1, for all matrices, or a tree of ranks by the names of the parameters (as
        `gk.diagnostics.welore_ranks` makes it): leaves without a rank (None) go to `inner` without a projection; the
        largest rank of a leaf is used for all its matrices. A rank above the shorter side is reduced to it. Default 128
        (official code).
      update_interval: steps from one basis to the next, >= 1. Default 200 (official code).
      stagger: whether every matrix has a step of its own for its next basis, so that the work is spread over the steps;
        the bases that are due are computed one after another. Default False (official code): all at once.
      scale: factor of the projected direction, >= 0. Default 1.
      side: which side is compressed: "short", "long", "inputs" or "outputs". Default "short" (official code); optax's
        `contrib.galore` compresses the long one, with m r + 2 r n words in place of n r + 2 r m, n <= m.
      sign: "fixed", so that a run does not depend on the machine's decomposition, or "lapack", as
        `gk.linalg.singular_basis`.
      rotate_moments: whether moments are rotated into the new basis, `mu` and `trace` by B_new^T B_old, `nu` by its
        squared entries. Default False (official code).
      residual: None, or "norm_scaled": the part of the gradient outside the basis is added, scaled like the projected
        part (Fira).
      growth_limit: largest factor by which the residual's norm grows per step, as in `gk.limit_norm_growth`, >= 1.
        Default None: no limit. Only with a residual.
      layout: which leaves are matrices (roles "matrix", "conv", "expert"), and which axes inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work and the state are distributed. Default None: over the
        devices that leaves are sharded over where a mesh with Explicit axes says so, otherwise the compiler decides.

    Returns:
      A transformation. State: n r + 2 r m words per matrix with Adam inside, 1 / N of them on each of N devices
      of `shard`; counters. Collectives: for leaves sharded along a matrix axis two all-to-alls per shape; for
      replicated leaves with `shard` one all-gather. Under `vmap` over seeds a basis is computed only when it is due.

    Raises:
      ValueError: a hyperparameter outside its range; a rank for a leaf that does not exist or is not a matrix; an
        `inner` that needs parameters; `growth_limit` without a residual.

    Example:
      >>> tx = project_low_rank(optax.identity(), rank=1)
      >>> g = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> print(tx.update(g, tx.init(g))[0])  # of rank 1
      [[3. 0.]
       [0. 0.]]

    Reference: Zhao et al. GaLore. 2024, arXiv 2403.03507; Chen et al. Fira. 2024, arXiv 2410.01623. In the official
    codes the decomposition decides the signs of singular vectors, on which a run with a first moment depends from the
    second basis on. A basis that is not finite is not used, and counted in the metric `failed_refreshes`. A gradient of
    zeros gives no basis (in the official code an arbitrary one, kept for `update_interval` steps): the first basis is
    that of the first gradient that is not zero, and later the previous basis is kept.
    """
    checks.layout(layout)
    checks.arrays(rank=rank)
    checks.switch(rotate_moments=rotate_moments)
    update_interval = checks.integer("update_interval", update_interval, 1)
    checks.choice("stagger", stagger, (True, False))
    checks.real("scale", scale, "[0, inf)")
    checks.choice("side", side, SIDES)
    checks.choice("sign", sign, SIGNS)
    checks.choice("residual", residual, (None, "norm_scaled"))
    checks.real("growth_limit", growth_limit, "[1, inf]", optional=True)
    if isinstance(rank, numbers.Number | str):
        rank = checks.integer("rank", rank, 1)
    if growth_limit is not None and residual is None:
        raise ValueError(
            f"{METHOD}: growth_limit limits the residual and must be None with residual=None, got {growth_limit!r}; "
            'write residual="norm_scaled", or leave growth_limit out'
        )
    check_shard(shard)
    made = inner if isinstance(inner, Numbered) else Numbered(lambda _: scale_by_adam() if inner is None else inner, {})
    method = inside(made.make(made.numbers))

    def make(rows: int, dims: tuple[int, ...], dtype: Any, most: int) -> Own:
        (n, m), r = dims, min(most, *dims)
        inside = jax.vmap(method.init)(jnp.zeros((rows, r, m), dtype))

        def kept(x: jax.Array) -> Any:
            return beside(x, ((0,), (1,)) if x.shape[1:] == (r, m) else [()] * (x.ndim - 1))

        norm = None if residual is None else beside(jnp.zeros((rows, 1, 1), dtype), ((), ()))
        basis = beside(jnp.zeros((rows, n, r), dtype), ((0,), (1,)))
        return Own(basis, jax.tree.map(kept, inside), counted(rows), norm)

    def planned(tree: Any) -> tuple[Any, Any, Plan]:
        """The projected leaves; the other leaves; the plan of stacks of the projected ones."""
        nodes, structure = flatten(tree)
        known = node_names(tree)
        ranks = _ranks(rank, known)
        chosen = []
        for name, node in zip(known, nodes, strict=True):
            (x,) = jax.tree.leaves(node)
            axes = axes_of(layout, name, x.shape)
            if not isinstance(rank, int) and name in ranks:
                check_matrix(METHOD, name, x.shape, axes)
            chosen.append(
                name in ranks and axes.role in ROLES and bool(axes.inputs and axes.outputs) and 0 not in x.shape
            )
        mask = optax.MaskedNode()
        matrices = structure.unflatten([x if c else mask for x, c in zip(nodes, chosen, strict=True)])
        rest = structure.unflatten([mask if c else x for x, c in zip(nodes, chosen, strict=True)])
        own = [ranks[name] for name in itertools.compress(known, chosen)]
        plan = plan_stacks(matrices, make, method=METHOD, layout=layout, shard=shard, transpose=SIDES[side], kinds=own)
        return matrices, rest, plan

    def init(params: optax.Params) -> ProjectLowRankState:
        matrices, rest, plan = planned(params)
        return ProjectLowRankState(jnp.zeros((), jnp.int32), **init_fields(plan, matrices), rest=method.init(rest))

    def update(updates: Any, state: ProjectLowRankState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        matrices, rest, plan = planned(updates)
        # Scalars are arguments of the kernel, which may not close over traced ones.
        numbers = {k: v for k, v in extra.items() if isinstance(v, jax.Array) and v.ndim == 0}
        others = {k: v for k, v in extra.items() if k not in numbers}

        def kernel(x: jax.Array, kept: Own, shared: dict[str, Any], phase: Any) -> tuple[jax.Array, Own]:
            own = kept._asdict()
            r, alpha = own["basis"].shape[2], scalar(shared["scale"], x)

            def anew(x: jax.Array, old: dict[str, Any]) -> dict[str, Any]:
                B = singular_basis(x, r, sign=sign)
                rotation = product(jnp.swapaxes(B, 1, 2), old["basis"])
                return {"basis": B} | ({"inner": rotated(old["inner"], rotation)} if rotate_moments else {})

            old = {k: own[k] for k in (("basis", "inner") if rotate_moments else ("basis",))}
            now = due(shared["count"], 0, update_interval, phase)
            rows = renewable(now, x, own["basis"])
            new, failed = refreshed(now, anew, x, old, own["failed"], rows=rows)
            own = own | new | {"failed": failed}
            B = own["basis"]
            R = product(jnp.swapaxes(B, 1, 2), x)

            here = optax.with_extra_args_support(made.make(shared["numbers"]))

            def one(g: jax.Array, s: Any) -> Any:
                return here.update(g, s, None, **others, **shared["extra"])

            psi, own["inner"] = jax.vmap(one)(R, own["inner"])
            d = alpha * product(B, psi)
            if residual is None:
                return d, Own(**own)
            phi = jnp.linalg.norm(psi, axis=1, keepdims=True) / (jnp.linalg.norm(R, axis=1, keepdims=True) + 1e-8)
            # With all directions B R is x, and the residual with scale 1 is exactly 0.
            seen = x if r == x.shape[1] else product(B, R)
            E = (x - alpha * seen) * phi
            n = jnp.sqrt(jnp.sum(jnp.square(E), axis=(1, 2), keepdims=True))
            f = jnp.ones_like(n) if growth_limit is None else growth(n, own["norm"], shared["growth_limit"])
            return d + E / f, Own(**own | {"norm": n / f})

        shared = {"count": state.count, "scale": scale, "extra": numbers}
        shared |= {"growth_limit": growth_limit, "numbers": made.numbers}
        fields = {f: getattr(state, f) for f in Own._fields}
        marks = phases(plan, update_interval if stagger else None)
        try:
            d, fields = map_stacks(plan, kernel, matrices, fields, shared, marks=marks)
        except ValueError as error:
            if params is not None and "params" in str(error):
                raise ValueError(
                    f"{METHOD}: inner needs the parameters of {names(matrices)[0]!r}, but gets only a projected "
                    f"gradient; put links that need parameters after {METHOD}, not inside"
                ) from error
            raise
        seen = None if params is None else planned(params)[1]
        u, rest = method.update(rest, state.rest, seen, **extra)
        both = jax.tree.map(
            lambda a, b: b if isinstance(a, optax.MaskedNode) else a,
            d,
            u,
            is_leaf=lambda x: isinstance(x, optax.MaskedNode),
        )
        return both, ProjectLowRankState(increment(state.count), **fields, rest=rest)

    return transformation(METHOD, init, update)


register(
    project_low_rank,
    form="wrapper",
    paper=PAPER,
    wraps="direction",
    collectives="matrices",
    opt_outs={
        "words": "the state is that of smaller matrices: its paper's test counts them",
    },
    notes="state n r + 2 r m words per n x m matrix with Adam inside",
)
