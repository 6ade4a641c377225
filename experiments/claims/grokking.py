"""Grokfast and gradients orthogonal to the weights make a network generalise on modular addition several times sooner
than AdamW.

The sum of two numbers modulo 31 by an embedding of 64, a hidden layer of 128 relu units on the sum of both embeddings,
and a linear head; half of the 961 pairs to train on, the full batch in every step. A run has generalised at the first
of 60 evaluations at which 95% of the other pairs are right; one that never has counts as the end of the run. Arms:
AdamW over weight decays (0.1, 0.3, 1); Grokfast (an average of gradients, alpha 0.98) ahead of AdamW with a decay of
0.3 over its factor (1, 2, 5); orthogonal gradients ahead of AdamW over decays (0, 0.1, 0.3). All over three learning
rates a factor of 10^(1/2) apart, nine trials each and more where the best rate is at the edge; the best point is
chosen by the median over tuning seeds and judged on other seeds.

Verdict, by the paired bootstrap of the logarithm of the steps over the seeds that judge. Reproduced: both are sooner
than AdamW, by a factor of 2 or more in the mean. In part: one of them, or by less. Not reproduced here: neither is
sooner. Cannot be tested at this scale: tuned AdamW does not generalise on most seeds.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from experiments.claims import showing, tuning
from experiments.claims.protocol import Claim, Judgement, Record, Settings
from experiments.claims.tuning import Train, Tuned

CLAIM = Claim(
    "Lee et al. Grokfast. 2024, arXiv 2405.20233; Prieto et al. Grokking at the Edge of Numerical Stability. 2025, "
    "arXiv "
    "2501.04697.",
    {
        "small": {"steps": 1800, "tuning_seeds": 2, "seeds": 8},
        "full": {"steps": 20_000, "tuning_seeds": 5, "seeds": 32},
    },
)
P, WIDTH, HIDDEN, EVALUATIONS = 31, 64, 128, 60
RATES = 1e-3 * 10.0 ** (np.arange(3) / 2)
ARMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "AdamW": (
        lambda learning_rate, weight_decay: gk.adamw(learning_rate, b2=0.98, weight_decay=weight_decay),
        {"weight_decay": (0.1, 0.3, 1.0)},
    ),
    "Grokfast": (
        lambda learning_rate, lamb: optax.chain(
            gk.grokfast_ema(0.98, lamb=lamb), gk.adamw(learning_rate, b2=0.98, weight_decay=0.3)
        ),
        {"lamb": (1.0, 2.0, 5.0)},
    ),
    "orthogonal gradients": (
        lambda learning_rate, weight_decay: optax.chain(
            gk.perpgrad(), gk.adamw(learning_rate, b2=0.98, weight_decay=weight_decay)
        ),
        {"weight_decay": (0.0, 0.1, 0.3)},
    ),
}


def logits(params: Any, pairs: jax.Array) -> jax.Array:
    h = params["embedding"][pairs].sum(1)
    return jax.nn.relu(h @ params["hidden"]["kernel"]) @ params["head"]["kernel"]


def training(build: Any, steps: int) -> Train:
    """The curve is the share of all evaluations, up to each, at which the run had not yet generalised."""
    every = steps // EVALUATIONS
    pairs = np.stack(np.meshgrid(np.arange(P), np.arange(P)), -1).reshape(-1, 2).astype(np.int32)

    def one(point: dict[str, jax.Array], seed: jax.Array) -> jax.Array:
        *keys, split = jax.random.split(jax.random.key(seed), 4)
        shapes = ("embedding", (P, WIDTH), 1.0), ("hidden", (WIDTH, HIDDEN), WIDTH), ("head", (HIDDEN, P), HIDDEN)
        drawn = {n: jax.random.normal(k, s) / jnp.sqrt(f) for k, (n, s, f) in zip(keys, shapes, strict=True)}
        params = {n: x if n == "embedding" else {"kernel": x} for n, x in drawn.items()}
        order = jax.random.permutation(split, jnp.asarray(pairs))
        train, test = order[: len(pairs) // 2], order[len(pairs) // 2 :]
        tx = build(**point)

        def loss(params: Any) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(logits(params, train), train.sum(1) % P).mean()

        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        def evaluation(carry: Any, _: None) -> tuple[Any, jax.Array]:
            inner, done, count = carry
            inner, _ = jax.lax.scan(step, inner, None, every)
            done = done | (jnp.mean(logits(inner[0], test).argmax(1) == test.sum(1) % P) >= 0.95)
            count = count + jnp.where(done, 0.0, 1.0 / EVALUATIONS)
            return (inner, done, count), count

        first = ((params, tx.init(params)), jnp.array(False), jnp.float32(0.0))
        return jax.lax.scan(evaluation, first, None, EVALUATIONS)[1]

    program = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))

    def train(grid: dict[str, np.ndarray], seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        points = {name: jnp.asarray(column, jnp.float32) for name, column in grid.items()}
        curves = program(points, jnp.asarray(list(seeds), jnp.uint32))
        return every * np.arange(1, EVALUATIONS + 1), np.asarray(curves)

    return train


def measure(record: Record, s: Settings) -> list[Tuned]:
    found = []
    for name, (build, own) in ARMS.items():
        key = {"claim": "grokking", "contestant": name, "steps": s["steps"]}
        grid = {"learning_rate": RATES, **own}
        train = training(build, s["steps"])
        found.append(tuning.tuned(record, key, train, grid, tuning_seeds=s["tuning_seeds"], seeds=s["seeds"]))
    return found


def steps_of(one: Tuned, s: Settings) -> np.ndarray:
    """The step at which each seed had generalised; the end of the run where it never did."""
    return s["steps"] * np.minimum(one.finals + 1 / EVALUATIONS, 1.0)


def judge(data: list[Tuned], s: Settings) -> Judgement:
    steps = {one.name: steps_of(one, s) for one in data}
    sooner, twice, said = [], [], []
    for name in list(ARMS)[1:]:
        logs = np.log(steps[name]), np.log(steps["AdamW"])
        sooner.append(tuning.compared(*logs) == "lower")
        ratio = float(np.exp(np.mean(logs[1] - logs[0])))
        twice.append(ratio >= 2)
        said.append(f"{name} {ratio:.2g} times sooner ({tuning.compared(*logs)} in steps)")
    if np.median(steps["AdamW"]) >= s["steps"]:
        verdict = "cannot be tested at this scale"
    elif any(sooner):
        verdict = "reproduced" if all(sooner) and all(twice) else "reproduced in part"
    else:
        verdict = "not reproduced here"
    rows = [["method", "best point", "trials", "steps to 95% of the held-out pairs", "seeds that never do"]]
    for one in data:
        point = ", ".join(f"{name} {showing.number(value)}" for name, value in one.point.items())
        never = f"{(one.finals >= 1 - 1e-6).sum()} of {s['seeds']}"
        edge = " (edge)" if one.at_edge else ""
        rows.append([one.name, point + edge, str(one.tuning.size), showing.spread(steps[one.name], 4), never])
    found = f"AdamW generalises after a median of {np.median(steps['AdamW']):.0f} steps; {', '.join(said)}."
    return Judgement(verdict, found, showing.table(rows))


def draw(data: list[Tuned], s: Settings, figure: Any) -> None:
    figure.set_size_inches(7.2, 4.0)
    axes = figure.subplots()
    shown = []
    for one in data:
        # Share of the seeds that have generalised: the count no longer grows.
        grows = np.diff(np.concatenate([np.zeros((len(one.curves), 1)), one.curves], 1), axis=1) > 1e-6
        shown.append(~grows)
    from gradkit.training.report import style

    for i, (one, done) in enumerate(zip(data, shown, strict=True)):
        axes.step(one.steps, done.mean(0), where="post", color=style.colour(i), label=one.name)
    axes.set(xlabel="step", ylabel="share of the seeds that have generalised")
    axes.legend(frameon=False)
