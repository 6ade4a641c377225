"""TrAct as a link of the chain: the gradient of a layer, whitened by the second moment of the layer's inputs."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.core import need, stateless, transformation
from gradkit.leaves import Layout, axes_of, from_matrices, map_named, names, to_matrices
from gradkit.linalg import damped_solve
from gradkit.types import Scalar

PAPER = Paper("TrAct: Making First-layer Pre-Activations Trainable", "Petersen, Borgelt, Ermon", 2024, "2410.23970")


def precondition_by_input_moment(
    *, damping: Scalar = 0.1, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Whitens the gradient of the first layer by the second moment of its inputs.

    Equations:

        d = (M + damping I)^{-1} g        g (in, out) the gradient of a kernel,  M = x^T x / b of the inputs x (b, in)

    Put it first in the chain; any optimizer may follow it. Where the model may be changed, `gk.layers.tract_linear`
    does the same inside the layer and needs no extra argument.

    Args:
      damping: added to M, in its units, > 0. Default 0.1 (official code, for inputs of variance 1).
      layout: which axes of a kernel are inputs: they are flattened in their order, as the patches of a convolution
        must be, (window, in).

    Returns:
      A transformation that needs the extra argument `input_moment`: a tree with an M of shape (in, in) at the path of
      each kernel that is whitened; for stacked layers one M for all, or one per layer with the stack axis in front.
      Gradients without an M pass unchanged. No state. Collectives: the kernels with an M are all-gathered.

    Raises:
      ValueError: a damping that is not positive; `input_moment` missing, for a leaf that does not exist, or of another
        size than the inputs of its kernel.

    Example:
      >>> tx = precondition_by_input_moment(damping=0.5)
      >>> g = {"embed": {"kernel": jnp.ones((1, 2))}, "head": {"kernel": jnp.ones((2, 1))}}
      >>> moment = {"embed": {"kernel": jnp.array([[2.0]])}}
      >>> u, _ = tx.update(g, tx.init(g), input_moment=moment)
      >>> u["embed"]["kernel"].tolist(), u["head"]["kernel"].tolist()  # 1 / (2 + 0.5)
      ([[0.4000000059604645, 0.4000000059604645]], [[1.0], [1.0]])

    Reference: Petersen, Borgelt, Ermon. TrAct: Making First-layer Pre-Activations Trainable. 2024, arXiv 2410.23970,
    whose code is a layer. One side of a Kronecker-factored preconditioner, without memory.
    """
    checks.layout(layout)
    checks.real("damping", damping, "(0, inf)")

    def whitened(name: str, g: jax.Array, M: jax.Array) -> jax.Array:
        axes = axes_of(layout, name, g.shape)
        views = to_matrices(g, axes)
        if not axes.inputs or M.ndim < 2 or M.shape[-2:] != (views[0].shape[1],) * 2:
            raise ValueError(
                f"precondition_by_input_moment: input_moment of {name!r} must be (n, n) of its {views[0].shape[1]} "
                f"inputs, got shape {M.shape}"
            )
        sharding = jax.typeof(g).sharding
        sharded = any(
            entry is not None for entry in sharding.spec
        )  # Over Explicit axes; the compiler handles Auto ones.
        if sharded:
            replicated = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
            views = to_matrices(jax.sharding.reshard(g, replicated), axes)
        M = M if M.ndim == 2 else M.reshape(-1, *M.shape[-2:])
        out = from_matrices([damped_solve(M, view, damping) for view in views], g.shape, axes)
        return jax.sharding.reshard(out, sharding) if sharded else out

    def update(g: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        del params
        moments = need("precondition_by_input_moment", extra, "input_moment")
        given = dict(zip(names(moments), map(jnp.asarray, jax.tree.leaves(moments)), strict=True))
        if unknown := sorted(given.keys() - set(names(g))):
            raise ValueError(
                f"precondition_by_input_moment: input_moment names leaves that the gradients do not have: {unknown}; "
                f"they have {sorted(names(g))}"
            )
        return map_named(lambda name, x: whitened(name, x, given[name]) if name in given else x, g), state

    return transformation("precondition_by_input_moment", stateless("precondition_by_input_moment", layout), update)


register(
    precondition_by_input_moment,
    form="primitive",
    paper=PAPER,
    needs=("input_moment",),
    collectives="matrices",
    opt_outs={"layout": "the moments it is given must fit the layout; its paper's test has layouts"},
    notes="gk.layers.tract_linear and tract_conv do the same inside the layer",
)
