"""SGD, momentum, Adam, LARS and LAMB on variance-reduced gradients: every coordinate of the gradient is scaled by its
signal-to-noise ratio, between gamma and 1."""

from typing import Any

import jax
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.core import divide, optimizer, transformation
from gradkit.leaves import Layout, Method, matrices_by_default
from gradkit.transforms import (
    add_decayed_weights,
    scale_by_adam,
    scale_by_gsnr,
    scale_by_learning_rate,
    scale_by_trust_ratio,
    trace,
)
from gradkit.transforms.momenta import Mean, root_mean_square, weighted_momenta
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper(
    "Accelerating Large Batch Training via Gradient Signal to Noise Ratio (GSNR)", "Jiang et al.", 2023, "2309.13681"
)


def vr_sgd(
    learning_rate: ScalarOrSchedule, *, gamma: Scalar = 0.1, layout: Layout | None = None
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent on variance-reduced gradients, without a running mean of the ratio.

    Equations, with the clipped signal-to-noise ratio r of `scale_by_gsnr`:

        w <- w - learning_rate r g

    Args:
      learning_rate: step size >= 0, or a schedule.
      gamma: smallest ratio, in (0, 1]. Default 0.1 (unverified: no code is public).
      layout: which axes are stacks.

    Returns:
      A transformation that needs `grad_moments` or `grad_sq`, as `scale_by_gsnr`. No state except counters.
      Collectives: one scalar per tensor where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range; moments missing.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, g = vr_sgd(0.5), jnp.array([1.0, 1.0])
      >>> tx.update(g, tx.init(g), g, grad_sq=2 * g**2)[0].tolist()  # equally noisy
      [-0.5, -0.5]

    Reference: Jiang et al. 2023, arXiv 2309.13681.
    """
    gsnr = scale_by_gsnr(gamma=gamma, b3=None, layout=layout)
    return optimizer(Method("vr_sgd", learning_rate), gsnr, scale_by_learning_rate(learning_rate))


def vr_momentum(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Scalar = 0.9,
    nesterov: bool = False,
    gamma: Scalar = 0.1,
    b3: Scalar | None = 0.9,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Momentum on variance-reduced gradients.

    Equations, with the scaled gradient g^ of `scale_by_gsnr`:

        m <- momentum m + g^                   with nesterov the step uses momentum m + g^
        w <- w - learning_rate m

    Args:
      learning_rate: step size >= 0, or a schedule.
      momentum: decay of the momentum, in [0, 1]. Default 0.9.
      nesterov: whether to look ahead. Default False.
      gamma: smallest ratio, in (0, 1]. Default 0.1 (unverified: no code is public).
      b3: decay of the ratio, in [0, 1), or None: no memory. Default 0.9.
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are stacks.

    Returns:
      A transformation that needs `grad_moments` or `grad_sq`, as `scale_by_gsnr`. State: 2 words per parameter.
      Collectives: one scalar per tensor where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range; moments missing.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, g = vr_momentum(0.5), jnp.array([1.0, 1.0])
      >>> tx.update(g, tx.init(g), g, grad_sq=2 * g**2)[0].round(4).tolist()
      [-0.5, -0.5]

    Reference: Jiang et al. 2023, arXiv 2309.13681.
    """
    return optimizer(
        Method("vr_momentum", learning_rate),
        scale_by_gsnr(gamma=gamma, b3=b3, layout=layout),
        trace(momentum, nesterov=nesterov, mu_dtype=mu_dtype),
        scale_by_learning_rate(learning_rate),
    )


def _adam(
    gsnr: optax.GradientTransformation, second_moment: str, b1: Any, b2: Any, eps: Any, mu_dtype: Any
) -> optax.GradientTransformation:
    """Adam's direction from scaled gradients, with the second moment of the scaled or of the raw ones."""
    checks.choice("second_moment", second_moment, ("scaled", "raw"))
    scaled = optax.chain(gsnr, scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype))
    if second_moment == "scaled":
        return scaled
    first = optax.chain(gsnr, weighted_momenta("scale_by_gsnr", [Mean(b1, bias_correction=True)], mu_dtype=mu_dtype))
    root = root_mean_square(b2=b2, eps=eps)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        m, above = first.update(updates, state[0], params, **extra)
        d, below = root.update(updates, state[1])
        return jax.tree.map(divide, m, d), (above, below)

    return transformation("scale_by_gsnr", lambda params: (first.init(params), root.init(params)), update)


def vr_adam(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    gamma: Scalar = 0.1,
    b3: Scalar | None = 0.9,
    second_moment: str = "scaled",
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam on variance-reduced gradients.

    Equations, with the scaled gradient g^ of `scale_by_gsnr`:

        m <- b1 m + (1 - b1) g^,   v <- b2 v + (1 - b2) g^^2        with second_moment="raw" the square of g
        w <- w - learning_rate (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Args:
      learning_rate: step size >= 0, or a schedule.
      b1: decay of the first moment, in [0, 1). Default 0.9.
      b2: decay of the second moment, in [0, 1). Default 0.999.
      eps: added to the root, >= 0. Default 1e-8.
      gamma: smallest ratio, in (0, 1]. Default 0.1 (unverified: no code is public).
      b3: decay of the ratio, in [0, 1), or None: no memory. Default 0.9.
      second_moment: "scaled", of g^, or "raw", of g, with which a constant ratio shortens the step. Default "scaled": a
        plain chain.
      mu_dtype: dtype in which the first moment is kept. Default float32.
      layout: which axes are stacks.

    Returns:
      A transformation that needs `grad_moments` or `grad_sq`, as `scale_by_gsnr`. State: 3 words per parameter.
      Collectives: one scalar per tensor where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range; moments missing.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, g = vr_adam(0.5, eps=0.0), jnp.array([3.0, -7.0])
      >>> tx.update(g, tx.init(g), g, grad_sq=2 * g**2)[0].round(4).tolist()
      [-0.5, 0.5]

    Reference: Jiang et al. 2023, arXiv 2309.13681. No public code shows which gradient the second moment is of.
    """
    gsnr = scale_by_gsnr(gamma=gamma, b3=b3, layout=layout)
    adam = _adam(gsnr, second_moment, b1, b2, eps, mu_dtype)
    return optimizer(Method("vr_adam", learning_rate), adam, scale_by_learning_rate(learning_rate))


def vr_lars(
    learning_rate: ScalarOrSchedule,
    *,
    momentum: Scalar = 0.9,
    weight_decay: ScalarOrSchedule = 0.0,
    trust_coefficient: Scalar = 0.001,
    gamma: Scalar = 0.1,
    weight_decay_mask: Mask = "matrices",
    trust_ratio_mask: Mask = "matrices",
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LARS on variance-reduced gradients, without a running mean of the ratio.

    Equations: those of `gk.lars` with the gradient r g, r the clipped signal-to-noise ratio of `scale_by_gsnr`.

    Args:
      learning_rate: global learning rate >= 0, or a schedule.
      momentum: decay of the momentum, in [0, 1]. Default 0.9.
      weight_decay: decay inside the trust ratio, >= 0, or a schedule. Default 0.
      trust_coefficient: relative size of a step, > 0. Default 0.001.
      gamma: smallest signal-to-noise ratio, in (0, 1]. Default 0.1 (unverified: no code is public).
      weight_decay_mask: which leaves decay. Default "matrices": rank 2 and more, not counting stack axes.
      trust_ratio_mask: which leaves are rescaled. Default as the decay.
      mu_dtype: dtype in which the momentum is kept. Default float32.
      layout: which axes are stacks.

    Returns:
      A transformation that needs `params`, and `grad_moments` or `grad_sq`, as `scale_by_gsnr`. State: 1 word per
      parameter. Collectives: one scalar per tensor, then two, where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range; moments missing.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, w = vr_lars(1.0, trust_coefficient=0.5), jnp.eye(2)
      >>> print(tx.update(7 * w, tx.init(w), w, grad_sq=98 * w)[0].round(4))
      [[-0.5  0. ]
       [ 0.  -0.5]]

    Reference: Jiang et al. 2023, arXiv 2309.13681.
    """
    matrices = matrices_by_default(layout)
    decayed, adapted = (matrices if m == "matrices" else m for m in (weight_decay_mask, trust_ratio_mask))
    return optimizer(
        Method("vr_lars", learning_rate, weight_decay, decayed),
        scale_by_gsnr(gamma=gamma, b3=None, layout=layout),
        scale_by_trust_ratio(
            trust_coefficient=trust_coefficient,
            weight_decay=weight_decay,
            denominator="separate",
            weight_decay_mask=decayed,
            trust_ratio_mask=adapted,
            layout=layout,
        ),
        scale_by_learning_rate(learning_rate),
        trace(momentum, mu_dtype=mu_dtype),
    )


def vr_lamb(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    gamma: Scalar = 0.1,
    b3: Scalar | None = 0.9,
    second_moment: str = "scaled",
    weight_decay_mask: Mask | None = None,
    trust_ratio_mask: Mask | None = None,
    mu_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LAMB on variance-reduced gradients.

    Equations: those of `gk.lamb` with the scaled gradient g^ of `scale_by_gsnr`.

    Args:
      learning_rate: relative size of a step, >= 0, or a schedule.
      b1: decay of the first moment, in [0, 1). Default 0.9.
      b2: decay of the second moment, in [0, 1). Default 0.999.
      eps: added to the root, >= 0. Default 1e-6.
      weight_decay: part of the direction, before its norm is taken, >= 0, or a schedule. Default 0.
      gamma: smallest signal-to-noise ratio, in (0, 1]. Default 0.1 (unverified: no code is public).
      b3: decay of the ratio, in [0, 1), or None: no memory. Default 0.9.
      second_moment: "scaled", of g^, or "raw", of g. Default "scaled".
      weight_decay_mask: which leaves decay. Default all.
      trust_ratio_mask: which leaves are rescaled. Default all.
      mu_dtype: dtype in which the first moment is kept. Default float32.
      layout: which axes are stacks.

    Returns:
      A transformation that needs `params`, and `grad_moments` or `grad_sq`, as `scale_by_gsnr`. State: 3 words per
      parameter. Collectives: one scalar per tensor, then two, where leaves are sharded.

    Raises:
      ValueError: a hyperparameter outside its range; moments missing.

    Example:
      >>> import jax.numpy as jnp
      >>> tx, w, g = vr_lamb(0.1), jnp.array([3.0, 4.0]), jnp.array([1.0, 100.0])
      >>> u = tx.update(g, tx.init(w), w, grad_sq=2 * g**2)[0]
      >>> round(float(jnp.linalg.norm(u)), 4)  # 0.1 |w|, whatever the gradient
      0.5

    Reference: Jiang et al. 2023, arXiv 2309.13681.
    """
    gsnr = scale_by_gsnr(gamma=gamma, b3=b3, layout=layout)
    return optimizer(
        Method("vr_lamb", learning_rate, weight_decay, weight_decay_mask),
        _adam(gsnr, second_moment, b1, b2, eps, mu_dtype),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_trust_ratio(trust_ratio_mask=trust_ratio_mask, layout=layout),
        scale_by_learning_rate(learning_rate),
    )


for _function, _words, _race in (
    (vr_sgd, 0, Race(1e-1)),
    (vr_momentum, 2, Race(1e-1)),
    (vr_adam, 3, Race(5e-3)),
    # Vectors take the learning rate itself, as in LARS.
    (vr_lars, 1, Race(5e-1, {"trust_coefficient": 0.02})),
    (vr_lamb, 3, Race(3e-2)),
):
    register(
        _function,
        form="optimizer",
        paper=PAPER,
        needs=("grad_moments",),
        words=_words,
        collectives="norms",
        race=_race,
    )
