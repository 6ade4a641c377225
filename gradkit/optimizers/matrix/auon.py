"""AuON: momentum over the root mean square of its hyperbolic cosine, without a singular value decomposition."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import divide, optimizer, scalar, stateless, transformation
from gradkit.engine.mapping import apply_to_matrices
from gradkit.engine.norms import entries, packed_norms, packed_sums
from gradkit.engine.planning import plan_stacks
from gradkit.engine.shape_factor import shape_factor
from gradkit.engine.shards import MatrixSharding, check_shard
from gradkit.leaves import Layout, Method, axes_of, map_named, names
from gradkit.linalg.orthogonalize import check_options, orthogonalize
from gradkit.transforms import add_decayed_weights, scale_by_learning_rate
from gradkit.transforms.momenta import Mean, weighted_momenta
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("AuON: A Linear-time Alternative to Semi-Orthogonal Momentum Updates", "Maity", 2025, "2509.24320")
# cosh(80)^2 is no float32; times 2^-110 it is one, and so is 1, and a power of two rounds nothing.
SMALLER = 2.0**-55


def scale_by_cosh_rms(
    *,
    gamma: Scalar = 1.5,
    eps_norm: Scalar = 1e-7,
    eps: Scalar = 1e-8,
    normalize: bool = False,
    scale_by_shape: bool = False,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides every tensor by the root mean square of the hyperbolic cosine of its normalised entries.

    Equations: n, R and d_t of `auon`, with the incoming update for u_t. The direction is parallel to the update.

    Args:
      gamma: steepness, in [0, 80]: beyond, cosh overflows in float32. Default 1.5 (released code). With 0, R = 1.
      eps_norm: added to the norm, in the update's units, >= 0. Default 1e-7 (released code).
      eps: added to R, >= 0. Default 1e-8 (released code).
      normalize: whether the numerator is u / n, of norm 1, rather than u. Default False (released code).
      scale_by_shape: whether matrices are multiplied by sqrt(max(1, outputs / inputs)). Default False (released code).
      layout: which axes are stacks: every layer of a scan has its own n and R; inputs and outputs for the shape.

    Returns:
      A transformation. No state. A zero update stays zero. Collectives: two scalars per tensor where leaves are
      sharded, one after the other, because the cosine needs the norm; packed, two all-reduces for all tensors.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = scale_by_cosh_rms(gamma=1.0, eps_norm=0.0, eps=0.0, normalize=True)
      >>> u, _ = tx.update(jnp.array([3.0]), tx.init(jnp.array([3.0])))
      >>> round(float(u[0]), 4), round(1 / float(jnp.cosh(1.0)), 4)
      (0.6481, 0.6481)

    Reference: Maity. AuON: A Linear-time Alternative to Semi-Orthogonal Momentum Updates. 2025, arXiv 2509.24320. The
    paper's numerator is said to have norm 1, with gamma = 1 and the factor of the shape; the default has neither.
    """
    checks.layout(layout)
    checks.switch(normalize=normalize, scale_by_shape=scale_by_shape)
    checks.real("gamma", gamma, "[0, 80]")
    checks.real("eps_norm", eps_norm, "[0, inf)")
    checks.real("eps", eps, "[0, inf)")

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        leaves, structure = jax.tree.flatten(updates)
        known = names(updates)
        norms = packed_norms(known, "tensor", layout, leaves)
        inverse = norms.each(lambda n: divide(jnp.ones_like(n), n + scalar(eps_norm, n)))
        unit = [u * i.astype(u.dtype) for u, i in zip(leaves, inverse, strict=True)]
        squares = [jnp.square(jnp.cosh(scalar(gamma, x) * x) * SMALLER) for x in unit]
        sums = packed_sums(known, "tensor", layout, squares, like=leaves)
        of = [max(entries(name, "tensor", layout, x.shape), 1) for name, x in zip(known, leaves, strict=True)]

        def over_rms(total: jax.Array, number: Any) -> jax.Array:
            R = jnp.sqrt(total / number) * (1 / SMALLER)
            return divide(jnp.ones_like(R), R + scalar(eps, R))

        factor = sums.each(over_rms, [float(k) for k in of])
        d = [u * f.astype(u.dtype) for u, f in zip(unit if normalize else leaves, factor, strict=True)]
        if scale_by_shape:
            axes = [axes_of(layout, name, x.shape) for name, x in zip(known, d, strict=True)]
            scale = ["spectral" if a.inputs and a.outputs else None for a in axes]
            s = [shape_factor(a, x.shape, own) for a, x, own in zip(axes, d, scale, strict=True)]
            d = [x * jnp.asarray(s, x.dtype) for x, s in zip(d, s, strict=True)]
        return structure.unflatten(d), state

    return transformation("scale_by_cosh_rms", stateless("scale_by_cosh_rms", layout), update)


def _orthogonalize(
    kernel: Any, layout: Layout | None, shard: MatrixSharding | None
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalises every matrix of the leaves with inputs and outputs; the other leaves pass unchanged."""

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        axes = {
            name: axes_of(layout, name, x.shape)
            for name, x in zip(names(updates), jax.tree.leaves(updates), strict=True)
        }
        known = zip(axes.items(), jax.tree.leaves(updates), strict=True)
        matrices = {name: x for (name, a), x in known if a.inputs and a.outputs}
        plan = plan_stacks(
            matrices, method="scale_by_hybrid_auon", layout=layout, shard=shard, transpose=True, merge=True
        )
        done = apply_to_matrices(plan, kernel, matrices)
        return map_named(lambda name, x: done.get(name, x), updates), state

    return transformation("scale_by_hybrid_auon", stateless("scale_by_hybrid_auon", layout), update)


def _chained(name: str, momentum: Any, mu_dtype: Any, *links: Any) -> optax.GradientTransformationExtraArgs:
    checks.real("momentum", momentum, "[0, 1)")
    ahead = weighted_momenta(name, [Mean(momentum, momentum)], 1 - momentum, mu_dtype=mu_dtype)
    chain = optax.chain(ahead, *links)
    return transformation(name, chain.init, chain.update)


def scale_by_auon(
    *,
    momentum: Scalar = 0.95,
    gamma: Scalar = 1.5,
    eps_norm: Scalar = 1e-7,
    eps: Scalar = 1e-8,
    normalize: bool = False,
    scale_by_shape: bool = False,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Nesterov's momentum over the root mean square of its hyperbolic cosine.

    Equations: m_t, u_t and d_t of `auon`. It applies to all leaves, also vectors and scalars.

    Args:
      momentum: decay of the mean, in [0, 1). Default 0.95 (released code).
      gamma: steepness, in [0, 80]. Default 1.5 (released code).
      eps_norm: added to the norm, >= 0. Default 1e-7 (released code).
      eps: added to R, >= 0. Default 1e-8 (released code).
      normalize: whether the numerator has norm 1. Default False (released code).
      scale_by_shape: whether matrices are multiplied by sqrt(max(1, outputs / inputs)). Default False (released code).
      mu_dtype: dtype in which the momentum is kept between steps. Default float32.
      layout: which axes are stacks, inputs and outputs.

    Returns:
      A transformation. State: 1 word per parameter. Collectives: two scalars per tensor where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = scale_by_auon(momentum=0.0, gamma=0.0)
      >>> g = jnp.array([[3.0, 4.0]])
      >>> print(tx.update(g, tx.init(g))[0])
      [[3. 4.]]

    Reference: Maity 2025, arXiv 2509.24320. The paper's algorithm itself was not at hand: `normalize=True,
    scale_by_shape=True, gamma=1.0` is how others give it account; the default is the released code.
    """
    checks.switch(normalize=normalize, scale_by_shape=scale_by_shape)
    checks.floating_dtype(mu_dtype=mu_dtype)
    rms = scale_by_cosh_rms(
        gamma=gamma, eps_norm=eps_norm, eps=eps, normalize=normalize, scale_by_shape=scale_by_shape, layout=layout
    )
    return _chained("scale_by_auon", momentum, mu_dtype, rms)


def auon(
    learning_rate: ScalarOrSchedule = 0.24,
    *,
    momentum: Scalar = 0.95,
    gamma: Scalar = 1.5,
    eps_norm: Scalar = 1e-7,
    eps: Scalar = 1e-8,
    normalize: bool = False,
    scale_by_shape: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AuON: Nesterov's momentum over the root mean square of its hyperbolic cosine.

    Equations, of every tensor:

        m_t = momentum m_{t-1} + (1 - momentum) g_t
        u_t = (1 - momentum) g_t + momentum m_t
        n = |u_t|_F + eps_norm
        R = sqrt(mean(cosh(gamma u_t / n)^2))               1 <= R <= cosh(gamma)
        d_t = s u_t / (R + eps)                             u_t / n in place of u_t with `normalize`
        x_t = x_{t-1} - learning_rate (d_t + weight_decay x_{t-1})

    s is sqrt(max(1, outputs / inputs)) of a matrix with `scale_by_shape`, and 1 otherwise. The squares of the
    entries of u / n add up to 1, so R = 1 + gamma^2 / (2 size) to first order: 1.00027 for a
    64 x 64 matrix. To that precision AuON as released is gradient descent with Nesterov's momentum.

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.24 (released code; its README has 0.08).
      momentum: decay of the mean, in [0, 1). Default 0.95 (released code).
      gamma: steepness, in [0, 80]. Default 1.5 (released code).
      eps_norm: added to the norm, >= 0. Default 1e-7 (released code).
      eps: added to R, >= 0. Default 1e-8 (released code).
      normalize: whether the numerator has norm 1. Default False (released code).
      scale_by_shape: whether matrices are multiplied by sqrt(max(1, outputs / inputs)). Default False (released code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0 (released code).
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are stacks, inputs and outputs.

    Returns:
      A transformation. State: 1 word per parameter. Collectives: two scalars per tensor where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = auon(0.5, momentum=0.0, gamma=0.0)
      >>> x = jnp.array([[2.0, 4.0]])
      >>> print(tx.update(x, tx.init(x), x)[0])
      [[-1. -2.]]

    Reference: Maity 2025, arXiv 2509.24320. See `scale_by_auon` for what the code and accounts of the paper differ in.
    """
    link = scale_by_auon(
        momentum=momentum,
        gamma=gamma,
        eps_norm=eps_norm,
        eps=eps,
        normalize=normalize,
        scale_by_shape=scale_by_shape,
        mu_dtype=mu_dtype,
        layout=layout,
    )
    decay = add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask)
    described = Method("auon", learning_rate, weight_decay, weight_decay_mask)
    return optimizer(described, link, decay, scale_by_learning_rate(learning_rate))


def scale_by_hybrid_auon(
    *,
    momentum: Scalar = 0.95,
    gamma: Scalar = 1.5,
    eps_norm: Scalar = 1e-7,
    eps: Scalar = 1e-8,
    normalize: bool = False,
    scale_by_shape: bool = False,
    ns_steps: int = 1,
    coefficients: Any = "muon",
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AuON after a step of Newton-Schulz on every matrix.

    Equations: d_t of `hybrid_auon`. The norm and the mean are taken over a whole tensor with all its matrices.

    Args:
      momentum: decay of the mean, in [0, 1). Default 0.95 (released code).
      gamma: steepness, in [0, 80]. Default 1.5 (released code).
      eps_norm: added to the norm, here and in Newton-Schulz, >= 0. Default 1e-7 (released code).
      eps: added to R, >= 0. Default 1e-8 (released code).
      normalize: whether the numerator has norm 1. Default False (released code).
      scale_by_shape: whether matrices are multiplied by sqrt(max(1, outputs / inputs)). Default False (released code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 1 (the paper's abstract; the released code has 5).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon" (released code).
      mu_dtype: dtype in which the momentum is kept between steps. Default float32.
      ns_dtype: dtype of the iterations. Default float32.
      layout: which axes are stacks, inputs and outputs; a leaf without inputs or outputs is not orthogonalised.
      shard: a `gk.MatrixSharding`: over which devices the matrices are distributed, as in `gk.scale_by_muon`. Default
        None.

    Returns:
      A transformation. State: 1 word per parameter. Collectives: those of `gk.scale_by_muon`, and two scalars per
      tensor.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = scale_by_hybrid_auon(momentum=0.0, gamma=0.0, ns_steps=8, coefficients="polar_express")
      >>> g = jnp.array([[0.0, 3.0], [-1.0, 0.0]])
      >>> print(tx.update(g, tx.init(g))[0].round(3))
      [[ 0.  1.]
       [-1.  0.]]

    Reference: Maity 2025, arXiv 2509.24320. The released code takes the last two axes of a leaf for its matrices; here
    the layout decides, so a convolution is one matrix.
    """
    checks.layout(layout)
    checks.switch(normalize=normalize, scale_by_shape=scale_by_shape)
    checks.floating_dtype(mu_dtype=mu_dtype, ns_dtype=ns_dtype)
    ns_steps = checks.integer("ns_steps", ns_steps, 1, maximum=checks.MOST_UNROLLED)
    check_options(steps=ns_steps, coefficients=coefficients, method="newton_schulz", eps=0.0)
    check_shard(shard)
    rms = scale_by_cosh_rms(
        gamma=gamma, eps_norm=eps_norm, eps=eps, normalize=normalize, scale_by_shape=scale_by_shape, layout=layout
    )
    kernel = partial(orthogonalize, steps=ns_steps, coefficients=coefficients, eps=eps_norm, dtype=ns_dtype)
    return _chained("scale_by_hybrid_auon", momentum, mu_dtype, _orthogonalize(kernel, layout, shard), rms)


def hybrid_auon(
    learning_rate: ScalarOrSchedule = 0.24,
    *,
    momentum: Scalar = 0.95,
    gamma: Scalar = 1.5,
    eps_norm: Scalar = 1e-7,
    eps: Scalar = 1e-8,
    normalize: bool = False,
    scale_by_shape: bool = False,
    ns_steps: int = 1,
    coefficients: Any = "muon",
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AuON after a step of Newton-Schulz on every matrix, with a learning rate and decay.

    Equations: those of `auon`, with another u_t:

        u_t = NS((1 - momentum) g_t + momentum m_t)         every matrix of u_t orthogonalised

    Args:
      learning_rate: step size >= 0, or a schedule. Default 0.24 (released code).
      momentum: decay of the mean, in [0, 1). Default 0.95 (released code).
      gamma: steepness, in [0, 80]. Default 1.5 (released code).
      eps_norm: added to the norm, >= 0. Default 1e-7 (released code).
      eps: added to R, >= 0. Default 1e-8 (released code).
      normalize: whether the numerator has norm 1. Default False (released code).
      scale_by_shape: whether matrices are multiplied by sqrt(max(1, outputs / inputs)). Default False (released code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 1 (the paper's abstract; the released code has 5).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon" (released code).
      weight_decay: decoupled decay >= 0, or a schedule. Default 0 (released code).
      weight_decay_mask: which leaves decay. Default all.
      mu_dtype: dtype in which the momentum is kept. Default float32.
      ns_dtype: dtype of the iterations. Default float32.
      layout: which axes are stacks, inputs and outputs.
      shard: a `gk.MatrixSharding`: over which devices the matrices are distributed. Default None.

    Returns:
      A transformation. State: 1 word per parameter. Collectives: those of `scale_by_hybrid_auon`.

    Raises:
      ValueError: a hyperparameter outside its range.

    Example:
      >>> tx = hybrid_auon(0.5, momentum=0.0)
      >>> x = {"bias": jnp.zeros(2), "kernel": jnp.eye(2)}
      >>> bool((tx.update(x, tx.init(x), x)[0]["kernel"] <= 0).all())
      True

    Reference: Maity 2025, arXiv 2509.24320. See `scale_by_hybrid_auon` for departures.
    """
    link = scale_by_hybrid_auon(
        momentum=momentum,
        gamma=gamma,
        eps_norm=eps_norm,
        eps=eps,
        normalize=normalize,
        scale_by_shape=scale_by_shape,
        ns_steps=ns_steps,
        coefficients=coefficients,
        mu_dtype=mu_dtype,
        ns_dtype=ns_dtype,
        layout=layout,
        shard=shard,
    )
    decay = add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask)
    described = Method("hybrid_auon", learning_rate, weight_decay, weight_decay_mask)
    return optimizer(described, link, decay, scale_by_learning_rate(learning_rate))


GOLDEN, HYBRID_GOLDEN = ("matrix/auon",), ("matrix/hybrid_auon",)
BY_LAYOUT = {"layout": "its cosine is of a whole tensor, besides the matrices; its paper's test has layouts"}
register(scale_by_cosh_rms, form="primitive", paper=PAPER, collectives="norms")
register(scale_by_auon, form="primitive", paper=PAPER, words=1, collectives="norms", golden=GOLDEN)
AUON: Any = {"form": "optimizer", "paper": PAPER, "words": 1}
register(auon, **AUON, collectives="norms", golden=GOLDEN, race=Race(2e-1))
register(
    scale_by_hybrid_auon,
    form="primitive",
    paper=PAPER,
    words=1,
    collectives="matrices",
    golden=HYBRID_GOLDEN,
    opt_outs=BY_LAYOUT,
)
register(hybrid_auon, **AUON, collectives="matrices", golden=HYBRID_GOLDEN, opt_outs=BY_LAYOUT, race=Race(5e-2))
