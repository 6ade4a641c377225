"""InfoBatch saves a fifth or more of the examples without loss, and more than a shorter training does.

A perceptron 64-128-128-10 on handwritten digits of which a tenth have labels drawn at random, in epochs over 1437
images with batches of 64, SGD with momentum 0.9, a learning rate that falls linearly from epoch to epoch; the metric
is the error on held-out images, all of which have the right labels. Arms: all examples; InfoBatch
(`gk.batches.infobatch`) at its defaults; and all examples for as many epochs as have the number of examples that
InfoBatch saw, under their own decay. Each is tuned over six learning rates a factor of 2 apart, chosen by the median
over tuning seeds and judged on other seeds.

Verdict, by the paired bootstrap over the seeds that judge. Reproduced: InfoBatch saves 20% or more of the examples, is
not higher than all examples, and is lower than the shorter training. In part: it saves as much and is not higher than
all examples, but neither is it lower than the shorter training. Not reproduced here: it saves less, or is higher.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradkit as gk
from experiments.claims import showing, small, tuning
from experiments.claims.protocol import Claim, Judgement, Record, Settings
from experiments.claims.tuning import Train, Tuned
from gradkit.batches import infobatch, infobatch_loss
from gradkit.workloads.networks import MLP, apply

CLAIM = Claim(
    "Qin et al. InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning. 2023, arXiv 2303.04947.",
    {
        "small": {"epochs": 30, "tuning_seeds": 3, "seeds": 10},
        "full": {"epochs": 100, "tuning_seeds": 5, "seeds": 40},
    },
)
EXAMPLES, BATCH, NOISE = 1437, 64, 0.1
BATCHES = -(-EXAMPLES // BATCH)


def epochs_of(epochs: int, prune_ratio: float) -> Any:
    """(rate, seed) -> (error after every epoch, examples seen)."""
    problem = small.digits(label_noise=NOISE, batch_size=None, judged="test error")
    images, labels = problem.batch(jax.random.key(0))
    network, plan = MLP((128, 128, 10)), infobatch(epochs, prune_ratio=prune_ratio)
    tx = gk.sgd(1.0, momentum=0.9)
    # The last batch is filled up with examples of weight 0.
    filled = BATCHES * BATCH - EXAMPLES

    def losses(params: Any, at: jax.Array) -> jax.Array:
        logits = apply(network, params, images[at])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[at])

    def one(rate: jax.Array, seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        start, key = jax.random.split(jax.random.key(seed))
        params = problem.init(start)

        def epoch(carry: Any, e: jax.Array) -> tuple[Any, Any]:
            params, state, scores = carry
            order, weights = plan.plan_epoch(scores, jax.random.fold_in(key, e), e)
            order, weights = jnp.pad(order, (0, filled)), jnp.pad(weights, (0, filled))
            own = rate * (1 - e.astype(jnp.float32) / epochs)

            def step(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
                params, state = carry
                at, weight = batch

                def loss(params: Any) -> tuple[jax.Array, jax.Array]:
                    each = losses(params, at)
                    return infobatch_loss(each, weight), each

                grads, each = jax.grad(loss, has_aux=True)(params)
                updates, after = tx.update(grads, state, params)
                moved = optax.apply_updates(params, jax.tree.map(lambda u: own * u, updates))
                # A batch without any example is no step.
                there = jnp.any(weight > 0)
                kept = jax.tree.map(lambda new, old: jnp.where(there, new, old), (moved, after), (params, state))
                return kept, each

            batches = order.reshape(BATCHES, BATCH), weights.reshape(BATCHES, BATCH)
            (params, state), each = jax.lax.scan(step, (params, state), batches)
            scores = plan.record(scores, order, each.reshape(-1), weights)
            return (params, state, scores), (problem.metric(params), jnp.sum(weights > 0))

        carry = params, tx.init(params), plan.init(EXAMPLES)
        return jax.lax.scan(epoch, carry, jnp.arange(epochs, dtype=jnp.int32))[1]

    return jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))


def trained(program: Any, epochs: int) -> Train:
    def train(grid: dict[str, np.ndarray], seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        rates, of = jnp.asarray(grid["learning_rate"], jnp.float32), jnp.asarray(list(seeds), jnp.uint32)
        return np.arange(1, epochs + 1), np.asarray(program(rates, of)[0])

    return train


def measure(record: Record, s: Settings) -> tuple[list[Tuned], float]:
    """The three arms, and the share of the examples that InfoBatch saw."""
    found, share = [], 1.0
    for name in ("all examples", "InfoBatch", "fewer epochs"):
        epochs = s["epochs"] if name != "fewer epochs" else round(share * s["epochs"])
        program = epochs_of(epochs, 0.5 if name == "InfoBatch" else 0.0)
        key = {"claim": "infobatch_saving", "contestant": name, "epochs": epochs}
        grid = {"learning_rate": 0.01 * 2.0 ** np.arange(6)}
        one = tuning.tuned(
            record, key, trained(program, epochs), grid, tuning_seeds=s["tuning_seeds"], seeds=s["seeds"]
        )
        found.append(one)
        if name == "InfoBatch":

            def seen(program: Any = program, rate: float = one.rate) -> dict[str, Any]:
                at = jnp.array([rate]), jnp.arange(s["seeds"], dtype=jnp.uint32)
                return {"examples": float(np.asarray(program(*at)[1]).sum(-1).mean())}

            count = record({**key, "part": "examples", "rate": one.rate, "seeds": s["seeds"]}, seen)["examples"]
            share = count / (EXAMPLES * epochs)
    return found, share


def judge(data: tuple[list[Tuned], float], s: Settings) -> Judgement:
    (every, info, fewer), share = data
    against = [tuning.compared(info.finals, one.finals) for one in (every, fewer)]
    verdict = "not reproduced here"
    if share <= 0.8 and against[0] != "higher":
        verdict = "reproduced" if against[1] == "lower" else "reproduced in part"
    means = [one.finals.mean() for one in (info, every, fewer)]
    found = (
        f"InfoBatch sees {share:.0%} of the examples and ends at a mean held-out error of {means[0]:.4f}; all "
        "examples at "
        f"{means[1]:.4f} (InfoBatch: {against[0]}), and as few in fewer epochs at {means[2]:.4f} ({against[1]})."
    )
    return Judgement(verdict, found, showing.table(showing.lines([every, info, fewer], "InfoBatch")))


def draw(data: tuple[list[Tuned], float], s: Settings, figure: Any) -> None:
    found, _ = data
    figure.set_size_inches(9.6, 4.0)
    left, right = figure.subplots(1, 2)
    showing.draw_rates(left, found, "held-out error at the end of tuning")
    showing.draw_curves(right, found, "held-out error")
    right.set(xlabel="epoch", ylim=(0, 0.3))
