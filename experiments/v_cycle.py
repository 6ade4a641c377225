"""A byte-level language model trained by a V-cycle over two sizes, beside the same model trained alone.

    python experiments/v_cycle.py --out=experiments/results/v_cycle

The large model is a transformer of two layers, width 64, four heads; the small one has pairs of its heads, hidden units
and features merged (`gk.leaves.coalesce`): width 32, two heads of the same size. A V-cycle (`gk.leaves.v_cycle`) trains
the large model for a few steps, then the small one, and then the large one for as many, from a mixture of both (alpha
0.25). Every level begins with a new optimizer, Adam with a short warm-up and a cosine
decay to zero, as the code of the paper has it.

The paper (2404.07999) claims that the V-cycle saves about a fifth of the computation of BERT and GPT base models at the
same loss. Here runs of several lengths give the loss that a number of operations buys, alone and with V-cycles, and
what is saved is read off between the two curves. Operations are those that XLA counts in a compiled step. Beside it:
the same cycle with a small model that was not trained (what is left when the large one is only restarted), and the
operators' own claim, that widening keeps the function: the loss of the small model, and of the large one that is
decoalesced from it.

At this size the claim is missed: between nothing and 3% of the operations are saved (two seeds, rates that were not
tuned). Widening keeps the function to every digit. Writes OUT.txt, OUT.png, and OUT.jsonl with a line per run, from
which an interrupted run goes on.
"""

import json
import pathlib
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from absl import app, flags
from flax import linen as nn

import gradkit as gk
from gradkit.leaves import Merge, coalesce, decoalesce, v_cycle
from gradkit.training.report import style
from gradkit.workloads.bytelm import CONTEXT, LAYERS, load_text
from gradkit.workloads.networks import apply, indices, initializer

FLAGS = flags.FLAGS
HEAD = 16
BATCH = 16


class Block(nn.Module):
    """One layer: causal self-attention of heads of 16 features, then a gelu MLP of four times the width."""

    width: int

    @nn.compact
    def __call__(self, h: jax.Array, _: None) -> tuple[jax.Array, None]:
        x = nn.RMSNorm()(h)
        query, key, value = (
            nn.Dense(self.width, use_bias=False, name=name)(x).reshape(*h.shape[:-1], self.width // HEAD, HEAD)
            for name in ("query", "key", "value")
        )
        attended = jax.nn.dot_product_attention(query, key, value, is_causal=True).reshape(h.shape)
        h = h + nn.Dense(self.width, use_bias=False, name="out")(attended)
        x = nn.Dense(4 * self.width, use_bias=False, name="up")(nn.RMSNorm()(h))
        return h + nn.Dense(self.width, use_bias=False, name="down")(nn.gelu(x)), None


class Network(nn.Module):
    """Tokens (batch, context) -> logits of the next byte."""

    vocabulary: int
    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        position = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        h = nn.Embed(self.vocabulary, self.width, name="tokens")(tokens)
        h = h + nn.Embed(CONTEXT, self.width, name="positions")(position)[None]
        layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
        h, _ = layers(self.width)(h, None)
        return nn.Dense(self.vocabulary, use_bias=False, name="head")(nn.RMSNorm()(h))


def pairs(width: int) -> dict[str, dict[int, Merge]]:
    """Which features become one: neighbouring heads, and blocks of four times their size of the hidden units."""
    groups = tuple((i, i + 1) for i in range(0, width // HEAD, 2))
    out, into = Merge(groups, HEAD), Merge(groups, HEAD, input_side=True)
    hidden, from_hidden = Merge(groups, 4 * HEAD), Merge(groups, 4 * HEAD, input_side=True)
    layer = "ScanBlock_0"
    plan = {f"{layer}/{name}/kernel": {1: into, 2: out} for name in ("query", "key", "value", "out")}
    plan |= {f"{layer}/RMSNorm_{i}/scale": {1: out} for i in (0, 1)}
    plan |= {f"{layer}/up/kernel": {1: into, 2: hidden}, f"{layer}/down/kernel": {1: from_hidden, 2: out}}
    plan |= {f"{name}/embedding": {1: out} for name in ("tokens", "positions")}
    return plan | {"RMSNorm_0/scale": {0: out}, "head/kernel": {0: into}}


class Level(NamedTuple):
    """A model of one size.

    Attributes:
      init: key -> parameters.
      train: (params, seed, steps, rate) -> parameters, with a new optimizer.
      test: params -> the loss on held-out text.
      operations: of one step.
    """

    init: Callable[[jax.Array], Any]
    train: Callable[[Any, Any, int, float], Any]
    test: Callable[[Any], jax.Array]
    operations: float


def level(width: int) -> Level:
    text = load_text()
    network = Network(text.vocabulary, width)

    def windows(data: jax.Array, starts: jax.Array) -> jax.Array:
        return jax.vmap(lambda s: jax.lax.dynamic_slice(data, (s,), (CONTEXT + 1,)))(starts)

    stride = (len(text.held_out) - CONTEXT - 1) // 512
    held_out = windows(text.held_out, stride * jnp.arange(512, dtype=jnp.int32))

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        logits = apply(network, params, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def step(carry: Any, key: jax.Array, schedule: Callable[[Any], Any]) -> Any:
        params, state, t = carry
        tokens = windows(text.train, indices(key, BATCH, len(text.train) - CONTEXT))
        updates, state = tx.update(jax.grad(loss)(params, tokens), state, params)
        rate = schedule(t)
        return jax.tree.map(lambda x, u: x - rate * u, params, updates), state, t + 1

    tx = gk.scale_by_adam()

    @jax.jit
    def many(params: Any, keys: jax.Array, rate: jax.Array) -> Any:
        total = len(keys)

        def schedule(t: jax.Array) -> jax.Array:
            warm = jnp.minimum(1.0, (t + 1) / max(1, min(100, total // 10)))
            return rate * warm * 0.5 * (1 + jnp.cos(jnp.pi * t / total))

        carry = (params, tx.init(params), jnp.zeros((), jnp.int32))
        return jax.lax.scan(lambda carry, key: (step(carry, key, schedule), None), carry, keys)[0][0]

    def train(params: Any, seed: Any, steps: int, rate: float) -> Any:
        if not steps:
            return params
        return many(params, jax.random.split(jax.random.key(seed), steps), jnp.float32(rate))

    init = initializer(network, held_out[:1, :-1], gain=1.0)
    shapes = jax.eval_shape(init, jax.random.key(0))
    carry = (shapes, jax.eval_shape(tx.init, shapes), jax.ShapeDtypeStruct((), jnp.int32))
    one = jax.jit(lambda carry, key: step(carry, key, lambda t: 1e-3)).lower(carry, jax.random.key(0))
    operations = float((one.compile().cost_analysis() or {})["flops"])
    return Level(init, train, jax.jit(lambda params: loss(params, held_out)), operations)


def alone(levels: list[Level], steps: int, seed: int, rate: float) -> dict[str, float]:
    """The large model from its start."""
    big = levels[0]
    params = big.train(big.init(jax.random.key(seed)), 100 + seed, steps, rate)
    return {"operations": steps * big.operations, "loss": float(big.test(params))}


def cycled(levels: list[Level], steps: int, seed: int, rate: float, small_rate: float, small: bool) -> dict[str, float]:
    """A V-cycle whose large model gets `steps` on the way up, the small one as many (none where it is not `small`)."""
    down, bottom = FLAGS.down, steps if small else 0
    plan = pairs(FLAGS.width)
    ends: dict[str, float] = {}

    def train(params: Any, which: int, count: int) -> Any:
        own = levels[which]
        params = own.train(params, 1000 * which + 100 * count + seed, count, (rate, small_rate)[which])
        if which == 1:
            ends["small"] = float(own.test(params))
            ends["widened"] = float(levels[0].test(decoalesce(params, plan)))
        return params

    start = levels[0].init(jax.random.key(seed))
    params = v_cycle(train, start, [plan], down=[down], bottom=bottom, up=[steps], alpha=FLAGS.alpha)
    operations = (down + steps) * levels[0].operations + bottom * levels[1].operations
    return {"operations": operations, "loss": float(levels[0].test(params)), **ends}


def saved(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[tuple[float, float, float]]:
    """(loss, operations alone, with a V-cycle) for the losses of the V-cycles that the runs alone have too."""
    (ops, losses), (own, reached) = curves["alone"], curves["V-cycle"]
    rows = []
    for loss, cost in zip(reached, own, strict=True):
        if losses.min() <= loss <= losses.max():
            # Piecewise linear in the logarithm of the operations; losses fall.
            rows.append((loss, float(np.exp(np.interp(-loss, -losses, np.log(ops)))), cost))
    return rows


def draw(curves: dict[str, tuple[np.ndarray, np.ndarray]], rows: list[dict[str, Any]], path: str) -> None:
    with matplotlib.rc_context(style.RC):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.2), layout="constrained", facecolor=style.PAPER)
        axes = figure.subplots()
        for i, (name, (operations, losses)) in enumerate(curves.items()):
            axes.plot(operations, losses, marker="o", color=style.colour(i), label=name)
            every = [(row["operations"], row["loss"]) for row in rows if row["how"] == name]
            axes.plot(*zip(*every, strict=True), ".", color=style.colour(i), alpha=0.35, markersize=4)
        axes.set(xscale="log", xlabel="arithmetic operations", ylabel="held-out loss, nats per byte")
        axes.set_title("medians over seeds, and every run")
        axes.legend(frameon=False)
        figure.savefig(path, dpi=130)


def define_flags() -> None:
    """The flags of this script; a test that imports it has none of them."""
    flags.DEFINE_integer("width", 64, "of the large model", lower_bound=2 * HEAD)
    flags.DEFINE_list("alone_steps", ["400", "800", "1200", "1600"], "of the large model alone")
    flags.DEFINE_list("up_steps", ["300", "600", "1200"], "of the large model, and of the small one")
    flags.DEFINE_integer("down", 100, "steps of the large model before it is coalesced", lower_bound=0)
    flags.DEFINE_float("alpha", 0.25, "share of the decoalesced parameters", lower_bound=0.0, upper_bound=1.0)
    flags.DEFINE_float("rate", 3e-3, "of Adam, of the large model", lower_bound=0.0)
    flags.DEFINE_float("small_rate", 6e-3, "of Adam, of the small model", lower_bound=0.0)
    flags.DEFINE_integer("seeds", 2, "runs of every length", lower_bound=1)
    flags.DEFINE_list("how", ["alone", "V-cycle", "restarted"], "what is run")
    flags.DEFINE_string("out", "v_cycle", "where the table (.txt), the figure (.png) and the runs (.jsonl) go")


def report(levels: list[Level], words: list[int], rows: list[dict[str, Any]]) -> None:
    """The table and the figure of the runs that there are."""
    own = (FLAGS.rate, FLAGS.small_rate, FLAGS.alpha)
    rows = [row for row in rows if (row["rate"], row["small_rate"], row["alpha"]) == own]
    if not rows:
        return
    command = shlex.join(["python", "experiments/v_cycle.py", *sys.argv[1:]])
    ratio = levels[1].operations / levels[0].operations
    text = [
        f"$ {command}",
        f"transformers of {words[0]:,} and {words[1]:,} parameters; a step of the small one is {ratio:.2f} of one of "
        f"the large one;",
        f"rates {FLAGS.rate} and {FLAGS.small_rate}, alpha {FLAGS.alpha}, {FLAGS.down} steps on the way down, medians "
        f"over {FLAGS.seeds} seeds;",
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}",
        "",
        f"{'':<12}{'steps':>7}{'operations':>12}{'loss':>9}{'over seeds':>20}{'small model':>13}{'widened':>9}",
    ]
    curves = {}
    for how in dict.fromkeys(row["how"] for row in rows):
        points = []
        for steps in sorted({row["steps"] for row in rows if row["how"] == how}):
            same = [row for row in rows if (row["how"], row["steps"]) == (how, steps)]
            losses = [row["loss"] for row in same]
            points.append((same[0]["operations"], float(np.median(losses))))
            span = f"{min(losses):.4f} to {max(losses):.4f}"
            line = f"{how:<12}{steps:>7}{points[-1][0]:>12.3g}{points[-1][1]:>9.4f}{span:>20}"
            if "small" in same[0]:
                line += f"{np.median([r['small'] for r in same]):>13.4f}{np.median([r['widened'] for r in same]):>9.4f}"
            text.append(line)
        curves[how] = tuple(np.array(points).T)
    if {"alone", "V-cycle"} <= curves.keys():
        text += ["", f"{'loss':<10}{'alone':>12}{'V-cycle':>12}{'saved':>9}"]
        text += [f"{x:<10.4f}{a:>12.3g}{b:>12.3g}{1 - b / a:>9.0%}" for x, a, b in saved(curves)]
    pathlib.Path(f"{FLAGS.out}.txt").write_text("\n".join(text) + "\n")
    draw(curves, rows, f"{FLAGS.out}.png")


def main(argv: list[str]) -> None:
    """Runs what OUT.jsonl lacks, and writes the table and the figure."""
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    levels = [level(FLAGS.width), level(FLAGS.width // 2)]
    shapes = jax.eval_shape(levels[0].init, jax.random.key(0))
    small = jax.eval_shape(lambda p: coalesce(p, pairs(FLAGS.width)), shapes)
    words = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (shapes, small)]
    file = pathlib.Path(f"{FLAGS.out}.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {(row["how"], row["steps"], row["seed"], row["rate"], row["small_rate"], row["alpha"]) for row in rows}
    report(levels, words, rows)
    with file.open("a") as lines:
        for how in FLAGS.how:
            for steps in map(int, FLAGS.alone_steps if how == "alone" else FLAGS.up_steps):
                for seed in range(FLAGS.seeds):
                    setting = (how, steps, seed, FLAGS.rate, FLAGS.small_rate, FLAGS.alpha)
                    if setting in known:
                        continue
                    begin = time.perf_counter()
                    if how == "alone":
                        found = alone(levels, steps, seed, FLAGS.rate)
                    else:
                        found = cycled(levels, steps, seed, FLAGS.rate, FLAGS.small_rate, how == "V-cycle")
                    keys = ("how", "steps", "seed", "rate", "small_rate", "alpha")
                    row = dict(zip(keys, setting, strict=True)) | found | {"seconds": time.perf_counter() - begin}
                    rows.append(row)
                    lines.write(json.dumps(row) + "\n")
                    lines.flush()
                    print(row, flush=True)
                    report(levels, words, rows)


if __name__ == "__main__":
    define_flags()
    app.run(main)
