"""Time to a target where some workers are slow: waiting for all, backup workers, and gradient coding. Simulated.

    python experiments/time_under_stragglers.py --out=experiments/results/time_under_stragglers

n workers compute the gradient of a regression, a chunk of every minibatch each, and a round ends when enough of them
have come. What a worker takes is (intercept + slope chunks) x (its factor of this round), and the factors are one of

    even       log-normal, the same for all workers
    bursts     now and then a worker is slow for a few rounds (a chain of two states)
    slow pair  two workers are slow in every round
    heavy      exponential above a minimum, all rounds independent

wait for all       the mean of n chunks, when the last has come
backup k           the mean of the k earliest; dynamic: k as `dynamic_backup_workers` decides from round to round
code, s            a fractional code: s + 1 chunks per worker, decoded when n - s have come
SR-SGC, M-SGC      codes over rounds: a round ends once those have come that take at most (1 + tolerance) times as long
                   as the first, and the job that is due in it can be decoded. A job is decoded so many rounds late; so
                   many models, and one, are trained in turn, and the time is that of one of them

Coded rounds give the mean of all chunks, so their number is that of waiting for all. Every rule has the best of a grid
of learning rates. OUT.txt: seconds to the target, in those of an even round of one chunk; OUT.png: the same.
"""

import pathlib
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from gradkit import parallel

FLAGS = flags.FLAGS
flags.DEFINE_integer("workers", 16, "n", lower_bound=2)
flags.DEFINE_integer("rounds", 150, "that a run may take", lower_bound=10)
flags.DEFINE_integer("seeds", 6, "runs, each with factors and examples of its own", lower_bound=1)
flags.DEFINE_integer("batch", 4, "examples of a chunk", lower_bound=1)
flags.DEFINE_integer("features", 20, "of the regression; the Hessian has condition 100", lower_bound=2)
flags.DEFINE_float("noise", 0.5, "of an observation", lower_bound=0.0)
flags.DEFINE_float("target", 0.02, "excess loss, of 2.4 at the beginning on average")
flags.DEFINE_float("intercept", 0.2, "of the time of a round: what does not grow with the chunks")
flags.DEFINE_float("slow", 5.0, "factor of a slow worker", lower_bound=1.0)
flags.DEFINE_float("tolerance", 0.5, "of the codes over rounds")
flags.DEFINE_string("out", "time_under_stragglers", "what the files are called, without their endings")

RATES = 2.0 ** np.arange(-2, 4)
SCENARIOS = ("even", "bursts", "slow pair", "heavy")


def factors(scenario: str, seed: int) -> np.ndarray:
    """(rounds, workers) factors of the time of a round."""
    random, n = np.random.default_rng([seed, SCENARIOS.index(scenario)]), FLAGS.workers
    shape = (FLAGS.rounds, n)
    even = np.exp(0.05 * random.standard_normal(shape))
    if scenario == "heavy":
        return 0.6 + random.exponential(0.4, shape)
    slow = np.zeros(shape, bool)
    if scenario == "slow pair":
        slow[:, :2] = True
    if scenario == "bursts":
        # A worker becomes slow in one round of 20, and again fast in every other: a tenth is slow on average.
        enters, leaves = random.random(shape) < 0.05, random.random(shape) < 0.5
        for r in range(1, FLAGS.rounds):
            slow[r] = np.where(slow[r - 1], ~leaves[r], enters[r])
    return even * np.where(slow, FLAGS.slow, 1.0)


def seconds(factor: np.ndarray, chunks: float) -> np.ndarray:
    return factor * (FLAGS.intercept + (1 - FLAGS.intercept) * chunks)


def trained(k: int | None, times: np.ndarray) -> np.ndarray:
    """(rates, seeds, rounds, 2): excess loss after every round, and its seconds, with the mean of the k earliest; None:
    as many as `dynamic_backup_workers` says."""
    n, d = FLAGS.workers, FLAGS.features
    scales = jnp.asarray(np.logspace(0, -1, d), jnp.float32)

    def run(rate: jax.Array, key: jax.Array, times: jax.Array) -> jax.Array:
        rules = parallel.dynamic_backup_workers(n, rate)
        goal, data = jax.random.split(key)
        goal = jax.random.normal(goal, (d,))

        def round_(carry: Any, at: Any) -> tuple[Any, jax.Array]:
            x, state = carry
            index, own = at
            draw, noise = jax.random.split(jax.random.fold_in(data, index))
            a = scales * jax.random.normal(draw, (n, FLAGS.batch, d))
            b = a @ goal + FLAGS.noise * jax.random.normal(noise, (n, FLAGS.batch))

            def loss(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
                return jnp.mean(jnp.square(a @ x - b)) / 2

            losses, grads = jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0, 0))(x, a, b)
            take = rules.choose(state) if k is None else jnp.asarray(k, jnp.int32)
            if k is None:
                state = rules.observe(state, grads, parallel.backup_mean(losses, own, take), own)
            x = x - rate * parallel.backup_mean(grads, own, take)
            excess = jnp.sum(jnp.square(scales * (x - goal))) / 2
            return (x, state), jnp.stack([excess, jnp.sort(own)[take - 1]])

        start = (jnp.zeros(d), rules.init())
        return jax.lax.scan(round_, start, (jnp.arange(FLAGS.rounds), times))[1]

    keys = jax.random.split(jax.random.key(0), FLAGS.seeds)
    over_seeds = jax.vmap(run, in_axes=(None, 0, 0))
    program = jax.jit(jax.vmap(over_seeds, in_axes=(0, None, None)))
    return np.asarray(program(jnp.asarray(RATES, jnp.float32), keys, jnp.asarray(times, jnp.float32)))


def reached(path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rates, seeds): rounds and seconds to the target; infinity for a miss."""
    there = path[..., 0] <= FLAGS.target
    first = np.where(there.any(-1), there.argmax(-1), 0)
    clock = np.take_along_axis(np.cumsum(path[..., 1], -1), first[..., None], -1)[..., 0]
    return np.where(there.any(-1), first + 1.0, np.inf), np.where(there.any(-1), clock, np.inf)


def coded_round(stragglers: int, times: np.ndarray) -> float:
    """Seconds of an average round of a code; the first is decoded as well, to the sum of all chunks."""
    n = FLAGS.workers
    late = np.argsort(times[0])[n - stragglers :]
    B = parallel.gradient_code(n, stragglers, kind="fractional")
    a, _ = parallel.decode_gradients(B, ~np.isin(np.arange(n), late))
    if np.abs(np.asarray(a) @ B - 1).max() > 1e-3:
        raise AssertionError("the code does not decode")
    return float(np.sort(times, 1)[:, n - stragglers - 1].mean())


def sequential_round(code: Any, times: np.ndarray, whole: bool) -> float:
    """Seconds of an average round of a code over rounds; `whole`: what happened before the job that is due matters."""
    arrived, total = np.zeros(times.shape, bool), 0.0
    for r, own in enumerate(times):
        order = np.argsort(own)
        end = own[order[0]] * (1 + FLAGS.tolerance)
        arrived[r] = own <= end
        first, due = (0, r - code.delay) if whole else (max(0, r - code.delay), 0)
        for w in order[int(arrived[r].sum()) :]:
            if r < code.delay or code.decodable(arrived[first : r + 1])[due]:
                break
            arrived[r, w], end = True, own[w]
        total += min(end, own.max())
    return total / len(times)


def rules() -> dict[str, Callable[[np.ndarray, tuple[np.ndarray, np.ndarray]], np.ndarray]]:
    """Name -> (factors of all seeds, rounds and seconds of waiting for all) -> (rates, seeds) seconds."""
    n = FLAGS.workers

    def earliest(k: int | None) -> Any:
        return lambda table, _: reached(trained(k, seconds(table, 1)))[1]

    def coded(s: int) -> Any:
        def clock(table: np.ndarray, plain: Any) -> np.ndarray:
            return plain[0] * np.array([coded_round(s, seconds(each, s + 1)) for each in table])

        return clock

    def sequential(scheme: Any, B: int, W: int, lam: int) -> Any:
        code, whole = scheme(n, B, W, lam), scheme is parallel.sr_sgc

        def clock(table: np.ndarray, plain: Any) -> np.ndarray:
            chunks = code.load * n
            return plain[0] * np.array([sequential_round(code, seconds(each, chunks), whole) for each in table])

        return clock

    schemes = {"SR-SGC": parallel.sr_sgc, "M-SGC": parallel.m_sgc}
    shapes = {"SR-SGC": [(1, 2, 4), (1, 3, 3), (2, 3, 4)], "M-SGC": [(1, 2, 4), (1, 3, 4), (2, 3, 8), (1, 2, n)]}
    return {
        "wait for all": lambda table, plain: plain[1],
        **{f"backup, k = {k}": earliest(k) for k in (n - 1, n - 2, n - 4)},
        "dynamic backup workers": earliest(None),
        **{f"code, s = {s}": coded(s) for s in (1, 3)},
        **{
            f"{name}, B {B}, W {W}, lam {lam}": sequential(scheme, B, W, lam)
            for name, scheme in schemes.items()
            for B, W, lam in shapes[name]
        },
    }


def picture(found: dict[tuple[str, str], tuple[float, float, str]], names: list[str], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    kinds = ("wait", "backup", "dynamic", "code", "SR-SGC", "M-SGC")
    colours = [f"C{next(i for i, kind in enumerate(kinds) if name.startswith(kind))}" for name in names]
    figure, axes = plt.subplots(1, len(SCENARIOS), figsize=(13, 4.6), sharey=True)
    for axis, scenario in zip(axes, SCENARIOS, strict=True):
        means, errors = (np.array([found[scenario, name][i] for name in names]) for i in (0, 1))
        shown = np.where(np.isfinite(means), means, 0.0)
        axis.barh(range(len(names)), shown, xerr=np.nan_to_num(errors), color=colours)
        axis.axvline(means[0], color="k", linestyle=":", linewidth=1)
        axis.set_title(scenario)
        axis.set_xlabel("seconds to the target")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    began, made, found = time.perf_counter(), rules(), {}
    for scenario in SCENARIOS:
        table = np.stack([factors(scenario, seed) for seed in range(FLAGS.seeds)])
        plain = reached(trained(FLAGS.workers, seconds(table, 1)))
        for name, rule in made.items():
            clock = rule(table, plain)
            best = int(np.argmin(clock.mean(1)))
            error = float(clock[best].std() / np.sqrt(FLAGS.seeds)) if np.isfinite(clock[best]).all() else np.nan
            mean = float(clock[best].mean())
            found[scenario, name] = mean, error, f"{mean:.1f} +- {error:.1f} ({RATES[best]:g})"
            print(f"{scenario}, {name}: {found[scenario, name][2]}", flush=True)
    names = [*made]
    lines = [
        f"$ {shlex.join(['python', 'experiments/time_under_stragglers.py', *sys.argv[1:]])}",
        f"{FLAGS.workers} workers, excess loss {FLAGS.target:g}, mean and standard error of {FLAGS.seeds} runs; in",
        f"brackets the best rate of {RATES[0]:g} to {RATES[-1]:g}. Simulated seconds: 1 is an even round of one chunk.",
        "",
        f"{'':<26}" + "".join(f"{scenario:>24}" for scenario in SCENARIOS),
        *(f"{name:<26}" + "".join(f"{found[scenario, name][2]:>24}" for scenario in SCENARIOS) for name in names),
        "",
        f"{time.perf_counter() - began:.0f} s on {jax.default_backend()}, jax {jax.__version__}",
    ]
    path = pathlib.Path(FLAGS.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    picture(found, names, path.with_suffix(".png"))


if __name__ == "__main__":
    app.run(main)
