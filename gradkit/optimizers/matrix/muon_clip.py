"""MuonClip: Muon sized as AdamW, and QK-clip behind the whole step.

m_t = momentum m_{t-1} + g_t
d_t = 0.2 sqrt(max(inputs, outputs)) U V^T of m_t = U S V^T
x_t = x_{t-1} - learning_rate (d_t + weight_decay x_{t-1})
x_t <- x_t, query and key heads made smaller where logits were above the threshold

Embeddings, heads, vectors and scalars take AdamW instead; the clip is of all leaves with a role.
"""

from collections.abc import Mapping
from typing import Any

import optax

from gradkit import checks
from gradkit.catalogue import Race, register
from gradkit.engine import orthogonal as orthogonals
from gradkit.engine.core import optimizer
from gradkit.engine.shards import MatrixSharding
from gradkit.leaves import Layout, Method
from gradkit.optimizers.matrix.beside_adamw import beside_adamw
from gradkit.transforms import QKRole, qk_clip, trace
from gradkit.transforms.qk_clip import LOGITS, PAPER
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule


def muon_clip(
    learning_rate: ScalarOrSchedule = 2e-4,
    *,
    roles: Mapping[str, Any],
    threshold: Scalar = 100.0,
    alpha: Scalar | None = None,
    missing: str = "error",
    axis_name: Any = None,
    momentum: Scalar = 0.95,
    nesterov: bool = False,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    weight_decay: ScalarOrSchedule = 0.1,
    weight_decay_mask: Mask | None = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.95,
    adam_eps: Scalar = 1e-8,
    adam_weight_decay: ScalarOrSchedule = 0.1,
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon whose attention logits stay bounded: query and key weights are clipped after every step.

    Equations, of a matrix with n inputs and p outputs:

        m_t = momentum m_{t-1} + g_t
        d_t = 0.2 sqrt(max(n, p)) U V^T of m_t = U S V^T          of g_t + momentum m_t with Nesterov's look-ahead
        y_t = x_{t-1} - learning_rate (d_t + weight_decay x_{t-1})
        x_t = y_t; of queries and keys head h times gamma_h^alpha and gamma_h^(1 - alpha)
        gamma_h = min(1, threshold / S_h)

    `gk.qk_clip` says what S_h is, and how a model of Flax supplies it. Other leaves than matrices take AdamW.

    Args:
      learning_rate: step size >= 0, or a schedule, one of AdamW's. Default 2e-4 (paper).
      roles: path of a leaf -> `gk.QKRole`, as in `gk.qk_clip`.
      threshold: the largest logit, > 0. Default 100 (paper).
      alpha: the share of the query, in [0, 1]. Default None, as in `gk.qk_clip`.
      missing: "error" or "skip", where an attention has no logits. Default "error".
      axis_name: mapped axes over which the maximum of the logits is taken. Default None.
      momentum: decay of the sum, in [0, 1). Default 0.95.
      nesterov: whether to look ahead. Default False (paper).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5.
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon".
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`.
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7.
      weight_decay: decoupled decay of the matrices >= 0, or a schedule. Default 0.1 (paper).
      weight_decay_mask: which leaves decay, of all. Default all.
      adam_learning_rate: step size of the other leaves >= 0, or a schedule. Default None: `learning_rate`.
      adam_b1: decay of their first moment, in [0, 1). Default 0.9.
      adam_b2: decay of their second moment, in [0, 1). Default 0.95.
      adam_eps: added to the root of theirs, >= 0. Default 1e-8.
      adam_weight_decay: their decoupled decay >= 0, or a schedule. Default 0.1 (paper).
      mu_dtype: dtype in which first moments are kept. Default float32.
      ns_dtype: dtype of the iterations. Default float32.
      layout: what decides the roles of leaves, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work is spread, as in `gk.scale_by_muon`. Default None.

    Returns:
      A transformation that needs `params` and the extra argument `max_attention_logits`. State: 1 word per parameter of
      a matrix, 2 of the others, two metrics. Collectives: those of `gk.scale_by_muon`.

    Raises:
      ValueError: a hyperparameter outside its range, and what `gk.qk_clip` raises.

    Example:
      >>> import jax.numpy as jnp
      >>> w = {"q": jnp.ones((2, 2)), "k": jnp.ones((2, 2))}
      >>> tx = muon_clip(0.0, roles={name: QKRole(role, "a") for name, role in (("q", "query"), ("k", "key"))})
      >>> u, _ = tx.update(w, tx.init(w), w, max_attention_logits={"a": [400.0]})
      >>> print((w["q"] + u["q"]).round(3))
      [[0.5 0.5]
       [0.5 0.5]]

    Reference: Kimi Team. Kimi K2: Open Agentic Intelligence. 2025, arXiv 2507.20534, Algorithm 1. Its decay acts on the
    weights before the step; here it is part of the step, the same in one rate.
    """
    checks.switch(nesterov=nesterov)
    checks.real("momentum", momentum, "[0, 1)")
    checks.floating_dtype(mu_dtype=mu_dtype)
    how = orthogonals.checked(ns_steps, coefficients, method, eps, ns_dtype, shard)
    direction = orthogonals.orthogonal_link("muon_clip", how, scale="match_rms_adamw", layout=layout, shard=shard)
    muon = beside_adamw(
        "muon_clip",
        learning_rate,
        weight_decay,
        weight_decay_mask,
        trace(momentum, nesterov=nesterov, mu_dtype=mu_dtype),
        direction,
        adam_learning_rate=adam_learning_rate,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_eps=adam_eps,
        adam_weight_decay=adam_weight_decay,
        mu_dtype=mu_dtype,
        layout=layout,
        sized_as_adamw=True,
    )
    clip = qk_clip(roles, threshold=threshold, alpha=alpha, missing=missing, axis_name=axis_name, layout=layout)
    return optimizer(Method("muon_clip", learning_rate, weight_decay, weight_decay_mask), muon, clip)


register(
    muon_clip,
    form="optimizer",
    paper=PAPER,
    needs=(LOGITS,),
    words=1,
    collectives="matrices",
    example={"roles": {".*": QKRole("query", "attention")}},
    notes="matrices only; embeddings, heads, vectors and scalars take AdamW; queries and keys are clipped",
    race=Race(1e-2, {"roles": {}}),
)
