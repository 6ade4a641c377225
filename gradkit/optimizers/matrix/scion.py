"""Scion: steps of a size that the norm of each layer says, inside a ball of that norm.

m_t = momentum m_{t-1} + (1 - momentum) g_t
d_t = radius lmo(m_t)                                    the norm, and the radius, by the role of a leaf
x_t = x_{t-1} - learning_rate (d_t + x_{t-1})            constrained: every iterate stays in the ball of the radius
x_t = x_{t-1} - learning_rate d_t                        unconstrained
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

from gradkit import checks
from gradkit.catalogue import Race, register
from gradkit.engine import orthogonal as orthogonals
from gradkit.engine.accumulators import ema
from gradkit.engine.core import optimizer, scalar, transformation, zeros
from gradkit.engine.presets import called, preset
from gradkit.engine.shards import MatrixSharding
from gradkit.leaves import Layout, Method, axes_of, by_path, names
from gradkit.transforms import scale_by_learning_rate
from gradkit.transforms.lmo import PAPER, Norm, check_leaf, oracle, parse
from gradkit.types import DTypeLike, Scalar, ScalarOrSchedule

PARTS = {
    "matrix": "hidden",
    "conv": "hidden",
    "expert": "hidden",
    "embedding": "input",
    "head": "output",
    "vector": "vector",
    "scalar": "vector",
}
NORMS = {"hidden": "spectral", "input": "col", "output": "sign", "vector": "bias_rms"}
RADIUS = {"hidden": 50.0, "input": 50.0, "output": 3000.0, "vector": 1.0}
FORMS = ("ema", "trace")


class ScaleByScionState(NamedTuple):
    """The momentum; None without one."""

    mu: Any


class _Table:
    """A value per leaf, from a table by parts of the model and by paths, of which a path takes precedence."""

    def __init__(self, argument: str, given: Mapping[str, Any], default: Mapping[str, Any]) -> None:
        self.argument = argument
        self.parts = {**default, **{k: v for k, v in given.items() if k in NORMS}}
        self.paths = [(by_path(k), v) for k, v in given.items() if k not in NORMS]

    def of(self, method: str, name: str, role: str) -> Any:
        for selector, value in self.paths:
            if selector.test(name, (), None):
                return value
        part = PARTS[role]
        if part not in self.parts:
            raise ValueError(
                f"{method}: {self.argument} has no entry for the part {part!r}, of which {name!r} is (role {role!r}); "
                f"it has {', '.join(map(repr, self.parts)) or 'none'}; write {self.argument}={{{part!r}: ...}}, or a "
                "number for all leaves"
            )
        return self.parts[part]

    def check(self, method: str, known: list[str]) -> None:
        """Raises where a path matches no leaf, as a misspelled one does."""
        for selector, _ in self.paths:
            if known and not any(selector.test(name, (), None) for name in known):
                raise ValueError(
                    f"{method}: the key of {self.argument} {selector.text} matches no leaf; keys are "
                    f"{', '.join(NORMS)} or the path of a leaf: {', '.join(known[:12])}"
                )


def _number(method: str, value: Any) -> Any:
    checks.real(f"{method}: a radius", value, "(0, inf)")
    return value


def scale_by_scion(
    *,
    momentum: Scalar = 0.9,
    momentum_form: str = "ema",
    norms: Mapping[str, Any] | None = None,
    radius: float | Mapping[str, Any] | None = None,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    norm_eps: Scalar = 1e-8,
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The momentum of every leaf, replaced by the point of a ball that it is most along.

    Equations:

        m_t = momentum m_{t-1} + (1 - momentum) g_t        from 0, without correction and look-ahead
        m_t = momentum m_{t-1} + g_t                       with momentum_form="trace"
        d_t = radius lmo(m_t)

    with the norm of each leaf as in `gk.lmo`, by its part of the model:

        "hidden"   matrices, convolutions, experts     spectral     radius 50
        "input"    embeddings                          col          radius 50
        "output"   heads                               sign         radius 3000
        "vector"   vectors and scalars                 bias_rms     radius 1

    A first layer that is no embedding has the role of a matrix: name it, `norms={"encoder/kernel": "col"}`. Where
    inputs are one-hot and the table is tied to the head, take `{"norm": "sign", "normalized": False}`.

    Args:
      momentum: decay of the mean, in [0, 1). Default 0.9 (paper; the official code calls 1 - momentum its momentum and
        has none by default). 0 keeps no state.
      momentum_form: "ema", or "trace", a sum, which differs through `norm_eps` and `eps` alone. Default "ema".
      norms: the norms that differ from the table: a part, or the path of a leaf (a regular expression), -> a norm of
        `gk.lmo`, or a mapping of its arguments norm, normalized and max. Default None: the table.
      radius: a number > 0 for all leaves; or a part or path -> number. Default None: those of the table (official
        example of a language model).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon" (official code).
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`. Default "newton_schulz".
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      norm_eps: added to the other norms, >= 0. Default 1e-8 (official code).
      mu_dtype: dtype in which the momentum is kept between steps. Default float32.
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: what decides the parts, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work on matrices is spread. Default None.

    Returns:
      A transformation. State: 1 word per parameter, none without momentum. Collectives: those of `gk.lmo`, one exchange
      for all matrices and one all-reduce for all sums.

    Raises:
      ValueError: a hyperparameter outside its range; an unknown norm; a part without a radius; a path that matches no
        leaf; a norm of matrices for a leaf that is none.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_scion(momentum=0.0, method="svd", radius=2.0)
      >>> g = jnp.array([[0.0, 3.0], [-0.1, 0.0]])
      >>> print(tx.update(g, tx.init(g))[0].round(4))
      [[ 0.  2.]
       [-2.  0.]]

    Reference: Pethick et al. Training Deep Learning Models with Norm-Constrained LMOs. 2025, arXiv 2502.07529.
    """
    checks.layout(layout)
    checks.mapping(optional=True, norms=norms)
    name = "scale_by_scion"
    checks.real("momentum", momentum, "[0, 1)")
    checks.choice("momentum_form", momentum_form, FORMS)
    checks.floating_dtype(mu_dtype=mu_dtype)
    checks.real("norm_eps", norm_eps, "[0, inf)")
    how = orthogonals.checked(ns_steps, coefficients, method, eps, ns_dtype, shard)
    by_norm = _Table("norms", {k: parse("norms", v) for k, v in (norms or {}).items()}, _parsed(NORMS))
    alone = radius is not None and not isinstance(radius, Mapping)
    given = dict.fromkeys(NORMS, radius) if alone else RADIUS if radius is None else dict(radius)
    by_radius = _Table("radius", {k: _number(name, v) for k, v in given.items()}, {})
    nothing = checks.absent(momentum)

    def leafwise(tree: Any) -> list[tuple[str, Norm, Any]]:
        rows = []
        for leaf, x in zip(names(tree), jax.tree.leaves(tree), strict=True):
            axes = axes_of(layout, leaf, x.shape)
            norm = by_norm.of(name, leaf, axes.role)
            check_leaf(name, norm, leaf, x.shape, axes)
            rows.append((leaf, norm, by_radius.of(name, leaf, axes.role)))
        return rows

    def init(params: optax.Params) -> ScaleByScionState:
        for table in (by_norm, by_radius):
            table.check(name, names(params))
        leafwise(params)
        return ScaleByScionState(None if nothing else zeros(params, mu_dtype))

    def update(updates: Any, state: ScaleByScionState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        mu, m = None, updates
        if not nothing:
            mu = jax.tree.map(mean, state.mu, updates)
            m = jax.tree.map(lambda m, g: m.astype(g.dtype), mu, updates)
        rows = leafwise(m)
        d = oracle(name, m, [norm for _, norm, _ in rows], how, norm_eps, layout, shard)
        leaves, structure = jax.tree.flatten(d)
        sized = [x * scalar(r, x) for x, (_, _, r) in zip(leaves, rows, strict=True)]
        return structure.unflatten(sized), ScaleByScionState(mu)

    def mean(m: jax.Array, g: jax.Array) -> jax.Array:
        if momentum_form == "ema":
            return ema(m, g, momentum)
        return (scalar(momentum, g) * m.astype(g.dtype) + g).astype(m.dtype)

    return transformation(name, init, update)


def _parsed(table: Mapping[str, str]) -> dict[str, Norm]:
    return {part: parse("norms", norm) for part, norm in table.items()}


def _towards_zero() -> optax.GradientTransformationExtraArgs:
    """d + x: the step of Frank and Wolfe from x to -d."""

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        return jax.tree.map(lambda d, x: d + x, updates, params), state

    return transformation("scion", lambda params: optax.EmptyState(), update, needs_params=True)


def scion(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    momentum: Scalar = 0.9,
    momentum_form: str = "ema",
    norms: Mapping[str, Any] | None = None,
    radius: float | Mapping[str, Any] | None = None,
    constrained: bool = True,
    ns_steps: int = 5,
    coefficients: Any = "muon",
    method: Any = "newton_schulz",
    eps: Scalar = 1e-7,
    norm_eps: Scalar = 1e-8,
    mu_dtype: DTypeLike | None = None,
    ns_dtype: DTypeLike | None = None,
    layout: Layout | None = None,
    shard: MatrixSharding | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Scion: one rule for every layer, the linear minimisation oracle of its norm.

    Equations:

        m_t = momentum m_{t-1} + (1 - momentum) g_t
        d_t = radius lmo(m_t)                                  norm and radius by the part of the model
        x_t = x_{t-1} - learning_rate (d_t + x_{t-1})          constrained
        x_t = x_{t-1} - learning_rate d_t                      unconstrained

    Constrained, it is the method of Frank and Wolfe: an average of points of the ball, so that weights which start in
    the ball of the radius stay in it. The weight of x_{t-1} is exactly 1: it is no weight decay, and no multiplier of a
    group changes it. `scale_by_scion` has the table of norms and radii.

    Args:
      learning_rate: step size in [0, 1] if constrained, else >= 0, or a schedule. Default 1e-3 (official code; its
        example of a language model has 2^-12).
      momentum: decay of the mean, in [0, 1). Default 0.9 (paper).
      momentum_form: "ema" or "trace", as in `scale_by_scion`. Default "ema".
      norms: the norms that differ from the table, as in `scale_by_scion`. Default None: the table.
      radius: a number for all leaves, or a part or path -> number, as in `scale_by_scion`. Default None: the table.
      constrained: whether weights are kept in the ball. Default True (official code).
      ns_steps: Newton-Schulz iterations, >= 1. Default 5 (official code).
      coefficients: of the iterations, as in `gk.linalg.orthogonalize`. Default "muon" (official code).
      method: "newton_schulz", "gram", "svd" or a function, as in `gk.linalg.orthogonalize`. Default "newton_schulz".
      eps: added to the Frobenius norm before the iterations, >= 0. Default 1e-7 (official code).
      norm_eps: added to the other norms, >= 0. Default 1e-8 (official code).
      mu_dtype: dtype in which the momentum is kept between steps. Default float32.
      ns_dtype: dtype of the iterations; the official code has bfloat16. Default float32.
      layout: what decides the parts, and which axes are inputs, outputs and stacks.
      shard: a `gk.MatrixSharding`: over which devices the work on matrices is spread. Default None.

    Returns:
      A transformation that needs `params` if constrained. State: 1 word per parameter, none without momentum.
      Collectives: those of `gk.lmo`, one exchange for all matrices and one all-reduce for all sums.

    Raises:
      ValueError: a hyperparameter outside its range, such as a learning rate above 1 if constrained; and what
        `scale_by_scion` raises.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scion(0.1, momentum=0.0, norms={"hidden": {"norm": "sign", "normalized": False}}, radius=1.0)
      >>> x = jnp.array([[0.5, -0.5]])
      >>> print(tx.update(jnp.array([[2.0, -3.0]]), tx.init(x), x)[0].round(3))
      [[-0.15  0.15]]

    Reference: Pethick et al. Training Deep Learning Models with Norm-Constrained LMOs. 2025, arXiv 2502.07529. Other
    libraries' scion is that of levanter (the sign for what is no matrix, no constraint) or has the spectral norm alone.
    """
    checks.mapping(optional=True, norms=norms)
    own = called("scion")
    checks.switch(constrained=constrained)
    checks.real("learning_rate", learning_rate, "[0, 1]" if constrained else "[0, inf)", schedule=True)
    direction = scale_by_scion(
        momentum=momentum,
        momentum_form=momentum_form,
        norms=norms,
        radius=radius,
        ns_steps=ns_steps,
        coefficients=coefficients,
        method=method,
        eps=eps,
        norm_eps=norm_eps,
        mu_dtype=mu_dtype,
        ns_dtype=ns_dtype,
        layout=layout,
        shard=shard,
    )
    links = [direction, *([_towards_zero()] if constrained else []), scale_by_learning_rate(learning_rate)]
    return optimizer(Method(own, learning_rate), *links)


scion_light = preset(
    scion,
    "scion_light",
    "Scion whose momentum is a sum, as the official ScionLight keeps it in the buffer of the gradient.",
    fixed={"momentum_form": "trace"},
)

GOLDEN = ("modern/scion", "modern/scion_unconstrained")
register(scale_by_scion, form="primitive", paper=PAPER, words=1, collectives="matrices", golden=GOLDEN)
register(
    scion,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="matrices",
    golden=GOLDEN,
    race=Race(1e-3, decades=1.5),
)
register(
    scion_light,
    form="optimizer",
    paper=PAPER,
    words=1,
    collectives="matrices",
    same_as="scion",
    race=Race(1e-3, decades=1.5),
)
