"""Population based training: many runs in parallel, of which bad ones copy good ones and change hyperparameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradkit import checks
from gradkit.catalogue import Paper, register
from gradkit.engine.explicit import by_compiler
from gradkit.engine.keys import as_key
from gradkit.types import Key, Scalar

PAPER = Paper("Population Based Training of Neural Networks", "Jaderberg et al.", 2017, "1711.09846")
KINDS = ("truncation", "tournament", "t_test")
SCALES = ("linear", "log", "integer")
FIELD = "hyperparams"
SIGNIFICANCE = 0.05
# Stands for a replicated array of any shape.
REPLICATED = jax.ShapeDtypeStruct((), jnp.float32)


class PopulationHistory(NamedTuple):
    """Per round: the fitness of every member after its steps, and the number of the member that it continues from."""

    fitness: Any
    source: Any


def _ranked(fitness: Any) -> jax.Array:
    """Fitness as numbers that can be ordered, with -inf for entries that are not finite."""
    fitness = jnp.asarray(fitness)
    if fitness.ndim not in (1, 2) or fitness.shape[0] < 2:
        raise ValueError(
            f"fitness must have one entry per member, of 2 members or more, got shape {fitness.shape}; write "
            "jax.vmap(fitness_fn)(population)"
        )
    fitness = fitness.astype(jnp.result_type(float))
    return jnp.where(jnp.isfinite(fitness), fitness, -jnp.inf)


def _welch_p(a: jax.Array, b: jax.Array) -> jax.Array:
    """The two-sided p-value of Welch's t-test over the last axis; 1 where both are constant and equal."""
    n = a.shape[-1]
    means, variances = (a.mean(-1), b.mean(-1)), (a.var(-1, ddof=1) / n, b.var(-1, ddof=1) / n)
    both = variances[0] + variances[1]
    there = both > 0
    square = jnp.square(means[0] - means[1]) / jnp.where(there, both, 1)
    spread = (jnp.square(variances[0]) + jnp.square(variances[1])) / (n - 1)
    df = jnp.where(there, jnp.square(both) / jnp.where(there, spread, 1), 1)
    p = jax.scipy.special.betainc(df / 2, jnp.full_like(df, 0.5), df / (df + square))
    return jnp.where(there, p, jnp.where(means[0] == means[1], 1.0, 0.0))


def exploit(key: Key, fitness: Any, *, kind: str = "truncation", fraction: Any = 0.2) -> jax.Array:
    """The member of a population that each member continues from.

    With "truncation" each of the worst floor(fraction P) members, at least one, copies one of as many best. With
    "tournament" each member draws another one, and copies it if it is better. With "t_test" it copies it only if it is
    better by Welch's t-test of the last evaluations, p < 0.05.

    Args:
      key: a random key, or an integer.
      fitness: (P,), higher is better, P >= 2; for "t_test" (P, evaluations), the last 10 in the paper. Entries that are
        not finite rank last.
      kind: "truncation", "tournament" or "t_test". Default "truncation".
      fraction: of "truncation", in [0, 0.5]; 0 copies nobody. Default 0.2 (paper).

    Returns:
      (P,) int32: the number of the member that each continues from, its own where it does not copy.

    Raises:
      ValueError: an argument outside its range, or fewer than two members.

    Example:
      >>> print(exploit(0, jnp.array([3.0, jnp.nan, 1.0, 2.0]), fraction=0.25))
      [0 0 2 3]

    Reference: Jaderberg et al. Population Based Training of Neural Networks. 2017, arXiv 1711.09846.
    """
    checks.choice("kind", kind, KINDS)
    checks.real("fraction", fraction, "[0, 0.5]")
    key, fitness = as_key(key), _ranked(fitness)
    P = fitness.shape[0]
    if (fitness.ndim == 2) != (kind == "t_test") or (kind == "t_test" and fitness.shape[1] < 2):
        raise ValueError(
            f"exploit: fitness must be (members, 2 or more evaluations) for kind='t_test' and (members,) otherwise, "
            f"got shape {fitness.shape} for kind={kind!r}"
        )
    own = jnp.arange(P, dtype=jnp.int32)
    if kind == "truncation":
        n = max(1, int(float(fraction) * P)) if fraction else 0
        if not n:
            return own
        order = jnp.argsort(-fitness, stable=True).astype(jnp.int32)
        chosen = order[jax.random.randint(key, (n,), 0, n, jnp.int32)]
        return own.at[order[P - n :]].set(chosen)
    opponent = (own + jax.random.randint(key, (P,), 1, P, jnp.int32)) % P
    if kind == "tournament":
        return jnp.where(fitness[opponent] > fitness, opponent, own)
    finite = jnp.isfinite(fitness).all(1)
    safe = jnp.where(finite[:, None], fitness, 0)
    surely = (_welch_p(safe, safe[opponent]) < SIGNIFICANCE) & (safe[opponent].mean(1) > safe.mean(1))
    return jnp.where(finite[opponent] & (surely | ~finite), opponent, own)


def _checked_space(space: Mapping[str, Sequence[Any]]) -> dict[str, tuple[float, float, str]]:
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"space must map names to (low, high, scale), got {space!r}; write {{'learning_rate': "
                         "(1e-4, 1.0, 'log')}")  # fmt: skip
    found = {}
    for name, entry in space.items():
        if not isinstance(entry, tuple | list) or len(entry) not in (2, 3):
            raise ValueError(f"space[{name!r}] must be (low, high) or (low, high, scale), got {entry!r}")
        low, high, scale = (*entry, "linear")[:3]
        checks.choice(f"the scale of space[{name!r}]", scale, SCALES)
        checks.real(f"the lower end of space[{name!r}]", low, "(0, inf)" if scale == "log" else "(-inf, inf)")
        checks.real(f"the upper end of space[{name!r}]", high, f"[{float(low)}, inf)")
        found[name] = (float(low), float(high), scale)
    return found


def explore(
    key: Key,
    hyperparams: Mapping[str, jax.Array],
    copied: Any,
    space: Mapping[str, Sequence[Any]],
    factors: tuple[float, float] = (0.8, 1.2),
    resample_probability: Scalar = 0.0,
) -> dict[str, jax.Array]:
    """New hyperparameters for the members that were copied.

    Args:
      key: a random key, or an integer.
      hyperparams: name -> (P,).
      copied: (P,) booleans: the members whose hyperparameters change.
      space: name -> (low, high) or (low, high, scale), of the hyperparameters that are explored; the scale of the
        distribution from which they are resampled is "linear" (default) or "log"; "integer" ones are rounded. All are
        clipped to [low, high].
      factors: each hyperparameter is multiplied by one of them, with equal probability. Default (0.8, 1.2) (paper).
      resample_probability: probability that one is resampled from its space instead, in [0, 1]. Default 0.

    Returns:
      name -> (P,), all of `hyperparams`, in their dtypes.

    Raises:
      ValueError: a name in `space` that `hyperparams` does not have, or an argument outside its range.

    Example:
      >>> rates = {"learning_rate": jnp.array([0.1, 0.1])}
      >>> new = explore(0, rates, jnp.array([False, True]), {"learning_rate": (0.0, 0.11)}, factors=(1.2, 1.2))
      >>> print(new["learning_rate"])
      [0.1  0.11]

    Reference: Jaderberg et al. Population Based Training of Neural Networks. 2017, arXiv 1711.09846.
    """
    checks.real("resample_probability", resample_probability, "[0, 1]")
    if not isinstance(factors, tuple | list) or len(factors) != 2:
        raise ValueError(f"factors must be a pair of numbers > 0, got {factors!r}; write factors=(0.8, 1.2)")
    for i, factor in enumerate(factors):
        checks.real(f"factors[{i}]", factor, "(0, inf)")
    known = _checked_space(space)
    missing = sorted(known.keys() - hyperparams.keys())
    if missing:
        raise ValueError(f"explore: space names {missing}, which no hyperparameter is called; there are "
                         f"{sorted(hyperparams)}")  # fmt: skip
    copied, new = jnp.asarray(copied), dict(hyperparams)
    for (name, (low, high, scale)), own in zip(known.items(), jax.random.split(as_key(key), len(known)), strict=True):
        old = jnp.asarray(hyperparams[name])
        wide = old.astype(jnp.result_type(float))
        which, again, anew = jax.random.split(own, 3)
        up = jax.random.bernoulli(which, 0.5, wide.shape)
        moved = wide * jnp.where(up, jnp.asarray(factors[1], wide.dtype), jnp.asarray(factors[0], wide.dtype))
        share = jax.random.uniform(anew, wide.shape, wide.dtype)
        drawn = low * (high / low) ** share if scale == "log" else low + (high - low) * share
        moved = jnp.where(jax.random.bernoulli(again, resample_probability, wide.shape), drawn, moved)
        moved = jnp.clip(jnp.round(moved) if scale == "integer" else moved, low, high)
        new[name] = jnp.where(copied, moved.astype(old.dtype), old)
    return new


def _names_in(path: Any) -> tuple[str, str]:
    """The last two entries of a path: for a hyperparameter the field and its name."""
    keys = [str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in path]
    return (keys[-2], keys[-1]) if len(keys) > 1 else ("", keys[-1] if keys else "")


def pbt_step(
    key: Key,
    population: Any,
    fitness: Any,
    space: Mapping[str, Sequence[Any]],
    *,
    kind: str = "truncation",
    fraction: Any = 0.2,
    factors: tuple[float, float] = (0.8, 1.2),
    resample_probability: Any = 0.0,
) -> tuple[Any, jax.Array]:
    """Exploit and explore: the population of the next round, and the member that each member continues from.

    Args:
      key: a random key, or an integer.
      population: any tree with a leading axis of members. Hyperparameters are the arrays (P,) in a dictionary or field
        called `hyperparams`, where `gk.inject_hyperparams` keeps them.
      fitness: as of `exploit`.
      space: as of `explore`; every name must be a hyperparameter of the population.
      kind: as of `exploit`.
      fraction: as of `exploit`.
      factors: as of `explore`.
      resample_probability: as of `explore`.

    Returns:
      (population, source), sharded like the given population, over Auto or Explicit axes. Collectives on a mesh with
      sharded members: an all-gather of the fitness, and the states of copies.

    Raises:
      ValueError: a hyperparameter that the population does not have, or an argument outside its range.

    Example:
      >>> runs = {"x": jnp.array([1.0, 5.0]), "hyperparams": {"rate": jnp.array([0.1, 0.2])}}
      >>> new, source = pbt_step(0, runs, -runs["x"], {"rate": (0.0, 1.0)}, fraction=0.5, factors=(2.0, 2.0))
      >>> print(source, new["x"], new["hyperparams"]["rate"])
      [0 0] [1. 1.] [0.1 0.2]

    Reference: Jaderberg et al. Population Based Training of Neural Networks. 2017, arXiv 1711.09846.
    """

    def run(key: Any, population: Any, fitness: Any) -> tuple[Any, jax.Array]:
        first, second = jax.random.split(key)
        source = exploit(first, fitness, kind=kind, fraction=fraction)
        copied = source != jnp.arange(source.shape[0], dtype=jnp.int32)
        taken = jax.tree.map(lambda x: jnp.take(x, source, axis=0), population)
        rows, structure = jax.tree_util.tree_flatten_with_path(taken)
        where = {i: name for i, (path, _) in enumerate(rows) for field, name in [_names_in(path)] if field == FIELD}
        leaves = [x for _, x in rows]
        # The same name in several states is one hyperparameter: all get the same numbers.
        first_of = {name: leaves[i] for i, name in reversed(where.items())}
        new = explore(second, first_of, copied, space, factors, resample_probability)
        return structure.unflatten(
            [new[where[i]] if where.get(i) in space else x for i, x in enumerate(leaves)]
        ), source

    population, fitness = jax.tree.map(jnp.asarray, (population, fitness))
    return by_compiler(run, as_key(key), population, fitness, like=(population, REPLICATED))


def population_based_training(
    train_step: Callable[[Any, Any], Any],
    fitness_fn: Callable[[Any], Any],
    space: Mapping[str, Sequence[Any]],
    *,
    update_interval: int,
    kind: str = "truncation",
    fraction: Any = 0.2,
    factors: tuple[float, float] = (0.8, 1.2),
    resample_probability: Any = 0.0,
) -> Callable[[Any, Any, int], tuple[Any, PopulationHistory]]:
    """Trains a population under `vmap`, and finds schedules of hyperparameters during training.

    A population is any tree whose leaves have a leading axis of members: parameters and states of optimizers with their
    hyperparameters, as `gk.inject_hyperparams` keeps them. One round is `update_interval` steps of every member, one
    program under `vmap`; the fitness of every member; `exploit`, in which a member copies parameters, state and
    hyperparameters of a better one; and `explore`, in which copies have their hyperparameters multiplied by one of two
    factors, or resampled.

    Args:
      train_step: (member, key) -> member, one step of one run; its batch is drawn with the key.
      fitness_fn: member -> a number, higher is better; for "t_test" several.
      space: as of `explore`.
      update_interval: steps between two rounds of exploit and explore, >= 1: enough to show the effect of a setting.
      kind: as of `exploit`.
      fraction: as of `exploit`.
      factors: as of `explore`.
      resample_probability: as of `explore`.

    Returns:
      fn(key, population, rounds) -> (population, `PopulationHistory`), which may be compiled with static rounds.

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> step = lambda run, key: {**run, "x": run["x"] - run["hyperparams"]["rate"] * run["x"]}
      >>> train = population_based_training(step, lambda run: -abs(run["x"]), {"rate": (0.0, 1.0)}, update_interval=2)
      >>> runs = {"x": jnp.ones(4), "hyperparams": {"rate": jnp.array([0.0, 0.1, 0.2, 0.5])}}
      >>> runs, history = train(0, runs, 3)
      >>> bool((runs["hyperparams"]["rate"] > 0).all())  # the run that stood still is gone
      True

    Reference: Jaderberg et al. Population Based Training of Neural Networks. 2017, arXiv 1711.09846.
    """
    checks.function("train_step", train_step)
    checks.function("fitness_fn", fitness_fn)
    update_interval = checks.integer("update_interval", update_interval, 1)
    checks.choice("kind", kind, KINDS)
    checks.real("fraction", fraction, "[0, 0.5]")
    _checked_space(space)

    def one(population: Any, key: Any) -> tuple[Any, PopulationHistory]:
        P = jax.tree.leaves(population)[0].shape[0]

        def step(population: Any, key: Any) -> tuple[Any, None]:
            return jax.vmap(train_step)(population, jax.random.split(key, P)), None

        training, choosing = jax.random.split(key)
        population, _ = jax.lax.scan(step, population, jax.random.split(training, update_interval))
        fitness = jax.vmap(fitness_fn)(population)
        population, source = pbt_step(
            choosing, population, fitness, space, kind=kind, fraction=fraction, factors=factors,
            resample_probability=resample_probability,
        )  # fmt: skip
        return population, PopulationHistory(fitness, source)

    def fn(key: Any, population: Any, rounds: int) -> tuple[Any, PopulationHistory]:
        keys = jax.random.split(as_key(key), checks.integer("rounds", rounds, 1))
        population = jax.tree.map(jnp.asarray, population)
        like = (population, PopulationHistory(REPLICATED, REPLICATED))
        return by_compiler(lambda population, keys: jax.lax.scan(one, population, keys), population, keys, like=like)

    return fn


register(exploit, form="program", paper=PAPER)
register(explore, form="program", paper=PAPER)
register(pbt_step, form="program", paper=PAPER)
register(population_based_training, form="program", paper=PAPER, collectives="replicas")
