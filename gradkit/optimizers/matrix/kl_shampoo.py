"""KL-Shampoo: Shampoo's factors, each whitened by the other, and a step that whitens the momentum by both."""

import optax

from gradkit import checks
from gradkit.catalogue import Race, register
from gradkit.engine.core import optimizer
from gradkit.engine.kronecker import BY_LAYOUT
from gradkit.leaves import Layout, Method
from gradkit.optimizers.matrix.kl_direction import PAPER, scale_by_kl
from gradkit.transforms import MatrixSharding, add_decayed_weights, scale_by_learning_rate
from gradkit.types import Mask, Scalar, ScalarOrSchedule


def scale_by_kl_shampoo(
    *,
    b1: Scalar = 0.9,
    shampoo_beta: Scalar = 0.98,
    eps: Scalar = 1e-8,
    update_interval: int = 10,
    stagger: bool = False,
    init_factor: Scalar = 0.1,
    eigenvalues: str = "ema",
    max_inverse_root: int | None = 4000,
    damping: Scalar = 0.0,
    max_dim: int = 10000,
    normalize_grads: bool = False,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Whitens the momentum by a Kronecker product that minimises a Kullback-Leibler divergence.

    The first call only makes S_i = (1 - beta) G G^T / p and its eigenvectors Q_i, and its update is 0;
    r_i = init_factor^(-1/2) then. Afterwards, for an n x p matrix G, beta = shampoo_beta, all from before the call:

        D = outer product of r_1, r_2;   D = D / (1 + eps D)
        u = Q_1 [(Q_1^T m Q_2) * D] Q_2^T,   m = b1 m + (1 - b1) G        that is L^(-1/2) m R^(-1/2)
        S_1 = beta S_1 + (1 - beta) Y Y^T / p,   Y = G Q_2 diag(r_2);   S_2 with the sides exchanged
        r_1^(-2) = beta r_1^(-2) + (1 - beta) mean over columns of (G' diag(r_2))^2;   r_2 likewise
        every `update_interval` calls Q_i = qr(S_i Q_i).Q

    A tensor of more axes has every other axis whitened. Layers stacked for a scan and fused weights (`splits` of the
    layout) are tensors of their own. A vector has m r / (1 + eps r) with r^(-2) the running mean of its squares.

    Args:
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      shampoo_beta: decay of the second moments and of their eigenvalues, in [0, 1). Default 0.98 (official code).
      eps: damping of D, >= 0. Default 1e-8 (official code).
      update_interval: steps between two refreshes of the bases, >= 1. Default 10 (official code).
        Others call it precondition_frequency.
      stagger: whether every tensor has a step of its own to refresh its bases, so that the work is spread over the
        steps. Default False (official code): all at once.
      init_factor: the eigenvalues at the start, > 0. Default 0.1 (official code).
      eigenvalues: "ema": running means of their own (official code); "rayleigh": the diagonal of Q^T S Q (heavyball,
        NVIDIA). Default "ema".
      max_inverse_root: the largest inverse root of an eigenvalue is max(10, min(d, max_inverse_root)) for an axis of
        length d. Default 4000 (official code); None: there is no limit.
      damping: added to the second moment of an axis, times the mean squares of the inverse roots of the others, >= 0.
        Default 0 (official code).
      max_dim: longer axes have no basis, and eigenvalues of their own entries. Default 10000. Others call it
        max_precond_dim.
      normalize_grads: whether the direction of a tensor is divided by its root mean square. Default False (official
        code).
      layout: which axes are stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are spread, as in `gk.muon`. Default None.

    Returns:
      A transformation. State: 1 word per parameter, and per tensor twice the sum of the squares of the lengths of its
      axes, and their sum; all of it with the owner of the tensor. The metric `failed_refreshes` counts bases that came
      out not finite: the last good ones stay. Collectives: those of `scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_kl_shampoo(eps=0.0)
      >>> g = jnp.array([[0.0, 3.0], [-0.1, 0.0]])
      >>> zero, state = tx.update(g, tx.init(g))
      >>> print(zero.tolist(), tx.update(g, state)[0].round(2).ravel())
      [[0.0, 0.0], [0.0, 0.0]] [ 0.   3.  -0.1  0. ]

    Reference: Lin et al. Understanding and Improving Shampoo and SOAP via Kullback-Leibler Minimization. 2025,
    arXiv 2509.03378. Departures: signs of basis vectors are fixed, and a vector about which S says nothing stays what
    it was, where QR of a singular matrix is arbitrary; more than two axes use values from before the call alike;
    vectors, at which the official code raises, have a diagonal factor.
    """
    checks.layout(layout)
    return scale_by_kl(
        "scale_by_kl_shampoo",
        None,
        None,
        b1=b1,
        shampoo_beta=shampoo_beta,
        eps=eps,
        update_interval=update_interval,
        stagger=stagger,
        init_factor=init_factor,
        eigenvalues=eigenvalues,
        max_inverse_root=max_inverse_root,
        damping=damping,
        max_dim=max_dim,
        normalize_grads=normalize_grads,
        layout=layout,
        shard=shard,
    )


def kl_shampoo(
    learning_rate: ScalarOrSchedule = 1e-4,
    *,
    b1: Scalar = 0.9,
    shampoo_beta: Scalar = 0.98,
    eps: Scalar = 1e-8,
    update_interval: int = 10,
    stagger: bool = False,
    init_factor: Scalar = 0.1,
    eigenvalues: str = "ema",
    max_inverse_root: int | None = 4000,
    damping: Scalar = 0.0,
    max_dim: int = 10000,
    normalize_grads: bool = False,
    weight_decay: ScalarOrSchedule = 0.01,
    weight_decay_mask: Mask | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Shampoo, whose factors are whitened by each other, with the exponent -1/2 per side; for all leaves.

    The first call only makes S_i = (1 - beta) G G^T / p and its eigenvectors Q_i, and its update is 0;
    r_i = init_factor^(-1/2) then. Afterwards, for an n x p matrix G, beta = shampoo_beta, all from before the call:

        D = outer product of r_1, r_2;   D = D / (1 + eps D)
        u = Q_1 [(Q_1^T m Q_2) * D] Q_2^T,   m = b1 m + (1 - b1) G        that is L^(-1/2) m R^(-1/2)
        S_1 = beta S_1 + (1 - beta) Y Y^T / p,   Y = G Q_2 diag(r_2);   S_2 with the sides exchanged
        r_1^(-2) = beta r_1^(-2) + (1 - beta) mean over columns of (G' diag(r_2))^2;   r_2 likewise
        every `update_interval` calls Q_i = qr(S_i Q_i).Q
        x = x - learning_rate (u + weight_decay x)

    A tensor of more axes has every other axis whitened. Layers stacked for a scan and fused weights (`splits` of the
    layout) are tensors of their own. A vector has m r / (1 + eps r) with r^(-2) the running mean of its squares.

    Args:
      learning_rate: step size >= 0, or a schedule. Default 1e-4 (official code).
      b1: decay of the first moment, in [0, 1). Default 0.9 (official code).
      shampoo_beta: decay of the second moments and of their eigenvalues, in [0, 1). Default 0.98 (official code).
      eps: damping of D, >= 0. Default 1e-8 (official code).
      update_interval: steps between two refreshes of the bases, >= 1. Default 10 (official code).
        Others call it precondition_frequency.
      stagger: whether every tensor has a step of its own to refresh its bases, so that the work is spread over the
        steps. Default False (official code): all at once.
      init_factor: the eigenvalues at the start, > 0. Default 0.1 (official code).
      eigenvalues: "ema": running means of their own (official code); "rayleigh": the diagonal of Q^T S Q (heavyball,
        NVIDIA). Default "ema".
      max_inverse_root: the largest inverse root of an eigenvalue is max(10, min(d, max_inverse_root)) for an axis of
        length d. Default 4000 (official code); None: there is no limit.
      damping: added to the second moment of an axis, times the mean squares of the inverse roots of the others, >= 0.
        Default 0 (official code).
      max_dim: longer axes have no basis, and eigenvalues of their own entries. Default 10000. Others call it
        max_precond_dim.
      normalize_grads: whether the direction of a tensor is divided by its root mean square. Default False (official
        code).
      weight_decay: decoupled decay >= 0, or a schedule; from the first step on. Default 0.01 (official code).
      weight_decay_mask: which leaves decay. Default all.
      layout: which axes are stacks.
      shard: a `gk.MatrixSharding`: over which devices work and state are spread, as in `gk.muon`. Default None.

    Returns:
      A transformation that needs `params` where leaves decay. State and collectives: those of `scale_by_kl_shampoo`.

    Raises:
      ValueError: a hyperparameter outside its range; complex leaves.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = kl_shampoo(0.1, weight_decay=0.0, b1=0.0)
      >>> x = {"bias": jnp.ones(2), "kernel": jnp.eye(2)}
      >>> _, state = tx.update(x, tx.init(x), x)
      >>> print(tx.update(x, state, x)[0]["bias"].round(3))  # the first update is 0
      [-0.316 -0.316]

    Reference: Lin et al. Understanding and Improving Shampoo and SOAP via Kullback-Leibler Minimization. 2025,
    arXiv 2509.03378. Departures: signs of basis vectors are fixed, and a vector about which S says nothing stays what
    it was, where QR of a singular matrix is arbitrary; more than two axes use values from before the call alike;
    vectors, at which the official code raises, have a diagonal factor. The official code decays after the step.
    """
    return optimizer(
        Method("kl_shampoo", learning_rate, weight_decay, weight_decay_mask),
        scale_by_kl_shampoo(
            b1=b1,
            shampoo_beta=shampoo_beta,
            eps=eps,
            update_interval=update_interval,
            stagger=stagger,
            init_factor=init_factor,
            eigenvalues=eigenvalues,
            max_inverse_root=max_inverse_root,
            damping=damping,
            max_dim=max_dim,
            normalize_grads=normalize_grads,
            layout=layout,
            shard=shard,
        ),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )


register(
    scale_by_kl_shampoo,
    form="primitive",
    paper=PAPER,
    words=5,
    collectives="matrices",
    opt_outs=BY_LAYOUT,
    notes="the first update is zero: it only makes the bases",
)
register(
    kl_shampoo,
    form="optimizer",
    paper=PAPER,
    words=5,
    collectives="matrices",
    golden=("modern/kl_shampoo",),
    opt_outs=BY_LAYOUT,
    notes="the first update is zero: it only makes the bases",
    race=Race(5e-3),
)
