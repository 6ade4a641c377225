"""AGVM: every module's learning rate is modulated so that the variances of the modules' gradients stay equal."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradkit import checks
from gradkit.catalogue import Paper, Race, register
from gradkit.engine.accumulators import ema
from gradkit.engine.core import (
    abs_sq,
    divide,
    increment,
    need,
    optimizer,
    scalar,
    transformation,
    widen,
)
from gradkit.engine.matching import check_match
from gradkit.engine.sums import block_sums
from gradkit.leaves import Method, by_rank, names
from gradkit.transforms import add_decayed_weights, scale_by_adam, scale_by_learning_rate, trace
from gradkit.types import DTypeLike, Mask, Scalar, ScalarOrSchedule

PAPER = Paper("Large-batch Optimization for Dense Visual Predictions", "Xue et al.", 2022, "2210.11078")


class ScaleByAgvmState(NamedTuple):
    """Number of updates made, and the factor of every module."""

    count: jax.Array
    factors: dict[str, jax.Array]


def _spread(labels: Any, tree: Any) -> list[str]:
    """The module of every leaf."""
    found = labels(tree) if checks.is_function(labels, tree) else labels
    try:
        spread = jax.tree.map(lambda label, part: jax.tree.map(lambda _: label, part), found, tree)
    except ValueError as error:
        raise ValueError(
            f"labels must match the parameters: a tree that they are a refinement of, got another structure ({error}); "
            "write one name per leaf"
        ) from error
    return jax.tree.leaves(spread)


def _half(extra: dict[str, Any], name: str, updates: Any) -> Any:
    tree = need("scale_by_agvm", extra, name)
    check_match("scale_by_agvm", tree, updates)
    return widen(tree)


def scale_by_agvm(
    labels: Any,
    reference: str,
    *,
    update_interval: int = 10,
    start: int = 560,
    stop: int | None = None,
    decay: Scalar = 0.97,
    clip: tuple[float, float] = (0.5, 10.0),
    eps: Scalar = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates of every module by a factor that equalises the variances of gradients.

    Equations, from the mean gradients G_a, G_b of two disjoint halves of the batch, each module's leaves as one vector,
    and ref the reference module, such as the backbone:

        Phi_i = 1 - cos(G_a^i, G_b^i)                                    the share of noise in the module's gradient
        n_i   = sqrt(clip((Phi_ref + eps) / (Phi_i + eps), low, high))
        mu_i  = decay mu_i + (1 - decay) n_i                             every `update_interval` steps
        u_i  <- mu_i u_i

    The factors mu_i, which start at 1, are updated from step `start` to step `stop`. This link belongs just before the
    learning rate, after momentum and weight decay.

    Args:
      labels: the module of every leaf: a tree of names of which the parameters may be a refinement, or a function
        params -> such a tree, as `optax.partition` takes.
      reference: the module whose factor stays 1.
      update_interval: steps between measurements, >= 1. Default 10 (official configurations); the paper names 5.
      start: the first step, counted from 0, that may measure, >= 0. Default 560, 100 steps after the warm-up of the
        official configurations. Steps that are multiples of `update_interval` do.
      stop: the last step that may measure, >= start. Default None: no last one. Afterwards the factors are constant.
      decay: decay of the running mean of the factors, in [0, 1). Default 0.97.
      clip: smallest and largest ratio of variances, 0 < low <= 1 <= high, BEFORE the root. Default (0.5, 10).
      eps: added to both variances, > 0. Default 1e-6.

    Returns:
      A transformation that needs `grads_a` and `grads_b`, the mean gradients of two disjoint halves of the batch.
      State: one number per module, and a counter. Collectives: one all-reduce of three scalars per leaf where leaves
      are sharded. Where a half gradient of a module is 0, its factor does not change.

    Raises:
      ValueError: an argument outside its range; a reference that is no module; missing halves.

    Example:
      >>> tx, w = scale_by_agvm({"back": "b", "head": "h"}, "b", start=0, decay=0.0), {"back": jnp.ones(2), "head": 1.0}
      >>> w = jax.tree.map(jnp.asarray, w)
      >>> grads = {"grads_a": {"back": jnp.array([1.0, 0.0]), "head": w["head"]}}  # the halves agree in the head alone
      >>> grads["grads_b"] = {"back": jnp.array([0.0, 1.0]), "head": w["head"]}
      >>> u, state = tx.update(w, tx.init(w), w, **grads)
      >>> {name: round(float(mu), 4) for name, mu in state.factors.items()}  # sqrt(10)
      {'b': 1.0, 'h': 3.1623}

    Reference: Xue et al. Large-batch Optimization for Dense Visual Predictions. 2022, arXiv 2210.11078. The official
    code all-gathers two complete gradients, where three numbers per module are enough, and drops the factors after
    `stop`.
    """
    checks.sequence(clip=clip)
    if not isinstance(reference, str):
        raise ValueError(f"reference must be the name of a module, got {reference!r}; write one of the labels")
    if isinstance(labels, str | int | float):
        raise ValueError(
            f"labels must be a tree of names or a function of the parameters, got {labels!r}; write one name per leaf"
        )
    update_interval = checks.integer("update_interval", update_interval, 1)
    start = checks.integer("start", start)
    stop = checks.integer("stop", stop, start, optional=True)
    checks.real("decay", decay, "[0, 1)")
    checks.real("eps", eps, "(0, inf)")
    low, high = clip
    checks.real("the first of clip", low, "(0, 1]")
    checks.real("the second of clip", high, "[1, inf]")

    def init(params: optax.Params) -> ScaleByAgvmState:
        of = _spread(labels, params) if jax.tree.leaves(params) else []
        if of and reference not in of:
            known = sorted(set(of))
            raise ValueError(f"reference must be one of {known}, got {reference!r}{checks.nearest(reference, known)}")
        # A tree of labels gives the modules without the parameters, which optax's tools do not have.
        modules = sorted(set(of if checks.is_function(labels, params) else jax.tree.leaves(labels)))
        one = jnp.ones((), float)
        return ScaleByAgvmState(jnp.zeros((), jnp.int32), {module: jnp.copy(one) for module in modules})

    def measured(a: Any, b: Any, of: list[str]) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Per module: Phi, and whether it is defined."""
        param_names, rows = names(a), [jax.tree.leaves(tree) for tree in (a, b)]
        triples = [x for p, q in zip(*rows, strict=True) for x in (p * q, abs_sq(p), abs_sq(q))]
        axes = [tuple(range(x.ndim)) for x in triples]
        sums = [
            s.reshape(()).astype(float) for s in block_sums([n for n in param_names for _ in range(3)], triples, axes)
        ]
        found = {}
        for module in sorted(set(of)):
            indices = [i for i, label in enumerate(of) if label == module]
            ab, aa, bb = (sum((sums[3 * i + j] for i in indices), jnp.zeros((), float)) for j in range(3))
            phi = 1 - divide(ab, jnp.sqrt(aa) * jnp.sqrt(bb))
            found[module] = jnp.maximum(phi, 0.0), (aa > 0) & (bb > 0)
        return found

    def update(updates: Any, state: ScaleByAgvmState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        a, b = (_half(extra, name, updates) for name in ("grads_a", "grads_b"))
        of = _spread(labels, updates)
        t = state.count
        on = (t % update_interval == 0) & (t >= start) & (True if stop is None else t <= stop)
        found, factors = measured(a, b, of), dict(state.factors)
        for module, (phi, there) in found.items():
            phi_ref, there_ref = found[reference]
            mu, small = factors[module], scalar(eps, phi)
            n = jnp.sqrt(jnp.clip((phi_ref + small) / (phi + small), low, high))
            factors[module] = jnp.where(on & there & there_ref, ema(mu, n, decay), mu)
        leaves, structure = jax.tree.flatten(updates)
        scaled = [u * factors[module].astype(u.dtype) for u, module in zip(leaves, of, strict=True)]
        return structure.unflatten(scaled), ScaleByAgvmState(increment(t), factors)

    return transformation("scale_by_agvm", init, update)


def agvm(
    learning_rate: ScalarOrSchedule,
    *,
    labels: Any,
    reference: str,
    momentum: Scalar = 0.9,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask | None = None,
    update_interval: int = 10,
    start: int = 560,
    stop: int | None = None,
    decay: Scalar = 0.97,
    clip: tuple[float, float] = (0.5, 10.0),
    eps: Scalar = 1e-6,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD with momentum whose modules have learning rates that equalise the variances of their gradients.

    Equations, from the mean gradients G_a, G_b of two disjoint halves of the batch, each module's leaves as one vector,
    and ref the reference module, such as the backbone:

        Phi_i = 1 - cos(G_a^i, G_b^i)                                    the share of noise in the module's gradient
        n_i   = sqrt(clip((Phi_ref + eps) / (Phi_i + eps), low, high))
        mu_i  = decay mu_i + (1 - decay) n_i                             every `update_interval` steps
        v_i  <- momentum v_i + g_i + weight_decay w_i
        w_i  <- w_i - learning_rate mu_i v_i

    The factors mu_i, which start at 1, are updated from step `start` to step `stop`.

    Args:
      learning_rate: step size >= 0, or a schedule.
      labels: the module of every leaf, as in `scale_by_agvm`.
      reference: the module whose factor stays 1.
      momentum: decay of the momentum, in [0, 1]. Default 0.9.
      weight_decay: L2 penalty >= 0, or a schedule. Default 0; detectors have 1e-4.
      weight_decay_mask: which leaves decay. Default all.
      update_interval: steps between measurements, >= 1. Default 10.
      start: the first step that may measure, >= 0. Default 560.
      stop: the last step that may measure. Default None: no last one.
      decay: decay of the running mean of the factors, in [0, 1). Default 0.97.
      clip: smallest and largest ratio of variances. Default (0.5, 10).
      eps: added to both variances, > 0. Default 1e-6.
      mu_dtype: dtype in which the momentum is kept. Default float32.

    Returns:
      A transformation that needs `grads_a` and `grads_b`, as `scale_by_agvm`, and `params` where weights decay. State:
      1 word per parameter. Collectives: three scalars per leaf where leaves are sharded.

    Raises:
      ValueError: an argument outside its range; missing halves.

    Example:
      >>> w = {"back": jnp.ones(2), "head": jnp.ones(1)}
      >>> tx = agvm(0.5, labels={"back": "b", "head": "h"}, reference="b")
      >>> u, _ = tx.update(w, tx.init(w), w, grads_a=w, grads_b=w)
      >>> u["head"].tolist()  # before `start`: SGD
      [-0.5]

    Reference: Xue et al. 2022, arXiv 2210.11078.
    """
    checks.sequence(clip=clip)
    link = scale_by_agvm(
        labels, reference, update_interval=update_interval, start=start, stop=stop, decay=decay, clip=clip, eps=eps
    )
    return optimizer(
        Method("agvm", learning_rate, weight_decay, weight_decay_mask),
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        trace(momentum, mu_dtype=mu_dtype),
        link,
        scale_by_learning_rate(learning_rate),
    )


def agvm_adamw(
    learning_rate: ScalarOrSchedule,
    *,
    labels: Any,
    reference: str,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-2,
    weight_decay_mask: Mask | None = None,
    update_interval: int = 10,
    start: int = 560,
    stop: int | None = None,
    decay: Scalar = 0.97,
    clip: tuple[float, float] = (0.5, 10.0),
    variance_eps: Scalar = 1e-6,
    mu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW whose modules have learning rates that equalise the variances of their preconditioned gradients.

    This is `gk.agvm` with AdamW for SGD. The cosine is that of what Adam would make of the halves, with v the second
    moment before this step, and without a bias correction:

        Phi_i = 1 - cos(P_a^i, P_b^i),   P = G / (sqrt(b2 v + (1 - b2) |G|^2) + eps)
        w_i  <- w_i - learning_rate mu_i (Adam's direction + weight_decay w_i)

    Args:
      learning_rate: step size >= 0, or a schedule.
      labels: the module of every leaf, as in `scale_by_agvm`.
      reference: the module whose factor stays 1.
      b1: decay of the first moment, in [0, 1). Default 0.9.
      b2: decay of the second moment, in [0, 1). Default 0.999.
      eps: added to the root, >= 0. Default 1e-8.
      weight_decay: decoupled decay >= 0, or a schedule; the factor of the module scales the decay too.
        Default 1e-2.
      weight_decay_mask: which leaves decay. Default all.
      update_interval: steps between measurements, >= 1. Default 10.
      start: the first step that may measure, >= 0. Default 560.
      stop: the last step that may measure. Default None: no last one.
      decay: decay of the running mean of the factors, in [0, 1). Default 0.97.
      clip: smallest and largest ratio of variances. Default (0.5, 10).
      variance_eps: the eps of `scale_by_agvm`, > 0. Default 1e-6.
      mu_dtype: dtype in which the first moment is kept. Default float32.

    Returns:
      A transformation that needs `params`, `grads_a` and `grads_b`, as `scale_by_agvm`. State: 2 words per parameter.
      Collectives: three scalars per leaf where leaves are sharded.

    Raises:
      ValueError: an argument outside its range; missing halves.

    Example:
      >>> tx, w = agvm_adamw(0.5, labels=lambda w: {"w": "all"}, reference="all", weight_decay=0.0), {"w": jnp.ones(2)}
      >>> u, _ = tx.update(w, tx.init(w), w, grads_a=w, grads_b=w)
      >>> u["w"].round(4).tolist()
      [-0.5, -0.5]

    Reference: Xue et al. 2022, arXiv 2210.11078. The official code multiplies the halves by the number of devices, and
    not the second moment that is added to their squares; this is not copied.
    """
    checks.sequence(clip=clip)
    checks.real("variance_eps", variance_eps, "(0, inf)")
    adam = scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype)
    rest = optax.chain(
        add_decayed_weights(weight_decay, weight_decay_mask=weight_decay_mask),
        scale_by_agvm(
            labels,
            reference,
            update_interval=update_interval,
            start=start,
            stop=stop,
            decay=decay,
            clip=clip,
            eps=variance_eps,
        ),
    )

    def preconditioned(g: jax.Array, v: jax.Array) -> jax.Array:
        return divide(g, jnp.sqrt(ema(v, abs_sq(g), b2)) + scalar(eps, v))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        halves = {name: _half(extra, name, updates) for name in ("grads_a", "grads_b")}
        halves = {name: jax.tree.map(preconditioned, half, state[0].nu) for name, half in halves.items()}
        direction, first = adam.update(updates, state[0], params, **extra)
        scaled, second = rest.update(direction, state[1], params, **{**extra, **halves})
        return scaled, (first, second)

    modulated = transformation("agvm_adamw", lambda params: (adam.init(params), rest.init(params)), update)
    described = Method("agvm_adamw", learning_rate, weight_decay, weight_decay_mask)
    return optimizer(described, modulated, scale_by_learning_rate(learning_rate))


def _by_rank(tree: Any) -> Any:
    """Two modules that any tree has, for the contract and for races, whose problems have no modules in common."""
    return jax.tree.map(lambda on: "matrices" if on else "vectors", by_rank(2)(tree))


COMMON: Any = {
    "paper": PAPER,
    "needs": ("grads_a", "grads_b"),
    "collectives": "norms",
    "example": {"labels": _by_rank, "reference": "matrices", "update_interval": 1, "start": 0},
    "opt_outs": {
        "map_params": "labels that are a function of the parameters, as in the contract, need real parameters"
    },
}
register(scale_by_agvm, form="primitive", **COMMON)
register(
    agvm,
    form="optimizer",
    words=1,
    **COMMON,
    race=Race(1e-1, {"labels": _by_rank, "reference": "matrices", "start": 0}),
)
register(
    agvm_adamw,
    form="optimizer",
    words=2,
    **COMMON,
    race=Race(5e-3, {"labels": _by_rank, "reference": "matrices", "start": 0}),
)
