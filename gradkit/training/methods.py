"""The methods of a race: how each is built from a learning rate, and where its grid is centred.

Every method gets the same schedule, a warm-up over the first twentieth and a cosine to zero over the rest,
so what a race compares is the method. A method of the catalogue that has no row here races all the same,
with its defaults and a grid around 0.01.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from gradkit import catalogue, checks, leaves, schedules
from gradkit.optimizers import (
    adaptive,
    filters,
    gauss_newton,
    layerwise,
    matrix,
    momentum,
    second_order,
    sign,
    variance_reduction,
)
from gradkit.transforms import adaptive_grad_clip, clip_by_global_norm

DEFAULT_CENTRE = 1e-2


class Method(NamedTuple):
    """One method as it races.

    Attributes:
      name: as in tables and flags.
      make: learning rate (a schedule or a number) -> transformation.
      centre: the middle of its grid of learning rates.
      card: the name of its card in the catalogue.
    """

    name: str
    make: Callable[[Any], optax.GradientTransformation]
    centre: float
    card: str

    def scheduled(self, learning_rate: Any, steps: int) -> optax.GradientTransformation:
        """The method under the schedule of the race; the peak rate may be traced."""
        return self.make(warmup_cosine(learning_rate, steps))


def warmup_cosine(peak: Any, steps: int) -> schedules.Schedule:
    """A linear warm-up over the first twentieth, then a cosine to zero at `steps`. The peak may be traced.

    >>> import numpy as np
    >>> print(warmup_cosine(1.0, 40)(np.array([0, 2, 21, 40])).round(3))
    [0.5 1.  0.5 0. ]
    """
    warm = max(1, steps // 20)
    return schedules.warmup(warm, peak, start=peak / warm) + schedules.decay("cosine", steps - warm)


def _clipped_sgd(learning_rate: Any) -> optax.GradientTransformation:
    return optax.chain(clip_by_global_norm(1.0), momentum.sgd(learning_rate))


def _agc_nesterov(learning_rate: Any) -> optax.GradientTransformation:
    return optax.chain(adaptive_grad_clip(0.01), momentum.sgd(learning_rate, momentum=0.9, nesterov=True))


def _nesterov_large_batch(learning_rate: Any) -> optax.GradientTransformation:
    return momentum.nesterov_large_batch(learning_rate, total_steps=2**30)


def _ranger21(learning_rate: Any) -> optax.GradientTransformation:
    """Under the schedule of the race, as all others: its own is flat."""
    return adaptive.ranger21(learning_rate, num_iterations=2**30, warmup_steps=0, warmdown_steps=0)


def _by_kind(params: Any) -> Any:
    return leaves.map_named(lambda name, x: "vectors" if jnp.ndim(x) < 2 else "matrices", params)


def _agvm(learning_rate: Any) -> optax.GradientTransformation:
    """A race has no modules that all workloads share: matrices are one, and vectors the other."""
    return layerwise.agvm(learning_rate, labels=_by_kind, reference="matrices", start=0)


def _agvm_adamw(learning_rate: Any) -> optax.GradientTransformation:
    return layerwise.agvm_adamw(learning_rate, labels=_by_kind, reference="matrices", start=0)


def _clip_radagradd(learning_rate: Any) -> optax.GradientTransformation:
    return adaptive.clip_radagradd(learning_rate, initial_accumulator_value=1.0)


def _gradient_regularized_newton(learning_rate: Any) -> optax.GradientTransformation:
    """By products alone: the whole matrix of a network is too large."""
    return second_order.gradient_regularized_newton(learning_rate, solver="cg", cg_steps=10, max_search_steps=10)


def _distributed_shampoo(learning_rate: Any) -> optax.GradientTransformation:
    """As those who come from AdamW use it."""
    return matrix.distributed_shampoo(learning_rate, b2=0.999, grafting="adam")


def _egn(loss: str) -> Callable[[Any], optax.GradientTransformation]:
    """The damping finds itself, as fast as in the authors' second release; by products alone, whatever the size."""

    def make(learning_rate: Any) -> optax.GradientTransformation:
        return gauss_newton.egn(
            learning_rate,
            adaptive_damping=True,
            damping_increase=1.5,
            damping_decrease=0.5,
            loss=loss,
            solver="cg",
            cg_iterations=20,
        )

    return make


def _scaled_gd(learning_rate: Any) -> optax.GradientTransformation:
    """Where a problem has factors `u` and `v` of one matrix, of norm 1; other leaves descend their gradient."""

    def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
        return [("u", "v")] if {"u", "v"} <= set(names) else []

    return matrix.scaled_gd(learning_rate, damping=1e-3, pairs=pairs)


_ROWS = (
    Method("sgd", momentum.sgd, 1e-1, "sgd"),
    Method("noisy_sgd", filters.noisy_sgd, 1e-1, "noisy_sgd"),
    Method("nesterov", lambda rate: momentum.sgd(rate, momentum=0.9, nesterov=True), 1e-1, "sgd"),
    Method("momentum", momentum.momentum, 1e-1, "momentum"),
    Method("clipped_sgd", _clipped_sgd, 1e-1, "clip_by_global_norm"),
    Method("correct_momentum", momentum.correct_momentum, 1e-1, "correct_momentum"),
    # Under the schedule of the race, as all others: over so many steps its own is flat.
    Method("nesterov_large_batch", _nesterov_large_batch, 1e-1, "nesterov_large_batch"),
    Method("agc_nesterov", _agc_nesterov, 1e-1, "adaptive_grad_clip"),
    Method("nag", momentum.nag, 1e-1, "nag"),
    Method("heavy_ball", momentum.heavy_ball, 1e-1, "heavy_ball"),
    Method("induced_metric_sgd", adaptive.induced_metric_sgd, 1e0, "induced_metric_sgd"),
    Method("induced_metric_log", adaptive.induced_metric_log, 1e0, "induced_metric_log"),
    Method("sgdp", lambda rate: adaptive.sgdp(rate, momentum=0.9, nesterov=True), 1e-1, "sgdp"),
    Method("qhm", momentum.qhm, 5e-1, "qhm"),
    Method("positive_negative_momentum", momentum.positive_negative_momentum, 1e-1, "positive_negative_momentum"),
    # A race has no key: the velocity starts at rest.
    Method("gravity", lambda rate: momentum.gravity(rate, alpha=0.0), 5e-1, "gravity"),
    Method("inna", adaptive.inna, 3e-2, "inna"),
    Method("adam", adaptive.adam, 5e-3, "adam"),
    Method("adamw", adaptive.adamw, 5e-3, "adamw"),
    Method("adamax", adaptive.adamax, 5e-3, "adamax"),
    Method("adamnc", adaptive.adamnc, 5e-3, "adamnc"),
    Method("amsgrad", adaptive.amsgrad, 5e-3, "amsgrad"),
    Method("clip_adam", adaptive.clip_adam, 5e-3, "clip_adam"),
    Method("clip_adamd", adaptive.clip_adamd, 5e-3, "clip_adamd"),
    Method("induced_metric_rms", adaptive.induced_metric_rms, 5e-3, "induced_metric_rms"),
    Method("nadam", adaptive.nadam, 5e-3, "nadam"),
    Method("galore", matrix.galore, 1e-2, "galore"),
    Method("fira", matrix.fira, 5e-3, "fira"),
    Method("conda", matrix.conda, 5e-3, "conda"),
    # A race has no key: Q starts from this one.
    Method("dion", lambda rate: matrix.dion(rate, key=0), 2e-2, "dion"),
    Method("optimistic_amsgrad", adaptive.optimistic_amsgrad, 5e-3, "optimistic_amsgrad"),
    Method("rmsprop", adaptive.rmsprop, 5e-3, "rmsprop"),
    Method("adagrad", adaptive.adagrad, 5e-2, "adagrad"),
    Method("clip_adagrad", adaptive.clip_adagrad, 5e-2, "clip_adagrad"),
    Method("clip_radagradd", _clip_radagradd, 1e0, "clip_radagradd"),
    # Its steps have the units of the parameters; a race is too short for the small ones it starts with.
    Method("adadelta", adaptive.adadelta, 1e1, "adadelta"),
    Method("adamp", adaptive.adamp, 5e-3, "adamp"),
    Method("ademamix", adaptive.ademamix, 5e-3, "ademamix"),
    Method("ano", adaptive.ano, 5e-3, "ano"),
    Method("anolog", adaptive.anolog, 5e-3, "anolog"),
    Method("grams", adaptive.grams, 5e-3, "grams"),
    Method("innaprop", adaptive.innaprop, 5e-3, "innaprop"),
    Method("multi_timescale_adam", adaptive.multi_timescale_adam, 1e-3, "multi_timescale_adam"),
    Method("qhadam", momentum.qhadam, 5e-3, "qhadam"),
    Method("ranger21", _ranger21, 3e-2, "ranger21"),
    Method("lion", sign.lion, 2e-3, "lion"),
    Method("mars_adamw", variance_reduction.mars_adamw, 5e-3, "mars_adamw"),
    Method("mars_exact", variance_reduction.mars_exact, 5e-3, "mars_exact"),
    Method("mars_lion", variance_reduction.mars_lion, 2e-3, "mars_lion"),
    Method("mars_shampoo", variance_reduction.mars_shampoo, 5e-3, "mars_shampoo"),
    # Vectors step at the rate itself: with the default coefficient the rate that suits matrices is too much for them.
    Method("lars", lambda rate: layerwise.lars(rate, trust_coefficient=0.02), 5e-1, "lars"),
    Method("larc", layerwise.larc, 1e0, "larc"),
    Method("lamb", layerwise.lamb, 3e-2, "lamb"),
    Method("nlamb", layerwise.nlamb, 3e-2, "nlamb"),
    Method("lambc", layerwise.lambc, 3e-2, "lambc"),
    Method("tvlars", lambda rate: layerwise.tvlars(rate, trust_coefficient=0.02), 5e-1, "tvlars"),
    Method("agvm", _agvm, 1e-1, "agvm"),
    Method("agvm_adamw", _agvm_adamw, 5e-3, "agvm_adamw"),
    Method("vr_sgd", variance_reduction.vr_sgd, 1e-1, "vr_sgd"),
    Method("vr_momentum", variance_reduction.vr_momentum, 1e-1, "vr_momentum"),
    Method("vr_adam", variance_reduction.vr_adam, 5e-3, "vr_adam"),
    Method("vr_lars", lambda rate: variance_reduction.vr_lars(rate, trust_coefficient=0.02), 5e-1, "vr_lars"),
    Method("vr_lamb", variance_reduction.vr_lamb, 3e-2, "vr_lamb"),
    Method("novograd", layerwise.novograd, 1e-1, "novograd"),
    Method("kron", matrix.kron, 2e-3, "kron"),
    Method("psgd_kron", matrix.psgd_kron, 2e-3, "psgd_kron"),
    Method("auon", matrix.auon, 2e-1, "auon"),
    Method("hybrid_auon", matrix.hybrid_auon, 5e-2, "hybrid_auon"),
    Method("muon", matrix.muon, 2e-2, "muon"),
    Method("adahessian", second_order.adahessian, 1e-1, "adahessian"),
    # The loop of a race knows no logits, of which Sophia-G samples labels.
    Method("sophia", lambda rate: second_order.sophia(rate, estimator="hutchinson"), 5e-3, "sophia"),
    Method("sophia_h", second_order.sophia_h, 5e-3, "sophia_h"),
    # These find their step themselves; the rate is a factor of it. Entries without gradient or curvature would take
    # steps of any length: a floor that is felt.
    Method("sania", lambda rate: second_order.sania(rate, b2=0.99, eps=1e-2), 3e-1, "sania"),
    Method("sania_adagrad_sqr", lambda rate: second_order.sania_adagrad_sqr(rate, eps=1e-1), 1e0, "sania_adagrad_sqr"),
    Method("sania_adam_sqr", lambda rate: second_order.sania_adam_sqr(rate, eps=1e-1), 1e0, "sania_adam_sqr"),
    Method("oasis", lambda rate: second_order.oasis(rate, alpha=1e-2), 3e-1, "oasis"),
    Method("gradient_regularized_newton", _gradient_regularized_newton, 1e0, "gradient_regularized_newton"),
    Method("shampoo", matrix.shampoo, 1e-1, "shampoo"),
    Method("distributed_shampoo", _distributed_shampoo, 5e-3, "distributed_shampoo"),
    Method("soap", matrix.soap, 5e-3, "soap"),
    # The rate is a share of the step to the minimum of the model, for losses of one kind or the other.
    Method("egn", _egn("mse"), 3e-1, "egn"),
    Method("egn_softmax", _egn("softmax_ce"), 3e-1, "egn"),
    Method("scaled_gd", _scaled_gd, 3e-1, "scaled_gd"),
)
_TABLE = {row.name: row for row in _ROWS}


def names() -> tuple[str, ...]:
    """Every method that can race: the tuned rows, then other optimizers of the catalogue, but for those that ask for
    predictions of the model: these need a row that says of which loss."""
    cards = catalogue.cards("optimizer").items()
    rest = (name for name, card in cards if "race" not in card.opt_outs and "model_fn" not in card.needs)
    return *_TABLE, *(name for name in rest if name not in _TABLE)


def find(name: str) -> Method:
    """The method of a name.

    Raises:
      ValueError: nothing of this name can race; the message offers the nearest names.

    >>> find("lion").centre
    0.002
    >>> find("lyon")
    Traceback (most recent call last):
    ValueError: no method called 'lyon' can race; did you mean 'lion'?
    """
    if name in _TABLE:
        return _TABLE[name]
    card = catalogue.cards("optimizer").get(name)
    if card is None:
        offer = checks.nearest(name, names()) or f"; there are {', '.join(names())}"
        raise ValueError(f"no method called {name!r} can race{offer}")
    first = next(iter(inspect.signature(card.function).parameters))
    rest = {key: value for key, value in card.example.items() if key != first}
    return Method(name, lambda rate: card.function(rate, **rest), DEFAULT_CENTRE, name)
