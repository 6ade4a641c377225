"""Fine-tuning the language model without a backward pass: its memory, and the steps it takes beside backpropagation.

    python experiments/zeroth_order.py --out=experiments/results/zeroth_order

Memory: `memory_analysis` of the compiled programs of a forward pass, of a step of `gk.gradients.zo_sgd`, and of steps
of SGD and Adam with backpropagation, at several batch sizes. What a step of `zo_sgd` needs beyond a forward pass should
not depend on the batch: copies of the parameters, and no activation.

Steps: a byte-level transformer, trained on the reference prose of CPython, is fine-tuned on two tasks.

- classes: whether a window of text is prose, Python source, or prose backwards, by the bytes p, c and r at its end,
  with the cross entropy over these three: 1,000 examples, as in the paper of MeZO (2305.17333).
- language: the next byte of Python source.

Its scripts give OPT 625 steps of fine-tuning with 8 examples, and 20,000 zeroth-order steps with 16, 32 times as
many; RoBERTa 1,000 steps with 8, and 100,000 with 64, 100 times as many. Both ratios are read off here, with 8 and 16
examples. The learning rates of both are chosen on development examples, of fine-tuning by whole runs; of `zo_sgd` by
short ones, and between that rate and `--slower` times it by whole ones.

The memory is that of a forward pass and three copies of the parameters, whatever the batch. The steps are a miss: of
Adam's fall off the loss, `zo_sgd` takes 63% with 32 times the steps on the first task and 74% with 100 times, 26% and
49% on the second, whose loss still falls. Writes OUT.txt, OUT.png, and OUT.jsonl with a line per run, from which an
interrupted run of this script goes on.
"""

import json
import pathlib
import shlex
import sys
import sysconfig
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from absl import app, flags

import gradkit as gk
from gradkit.training.report import style
from gradkit.workloads.bytelm import CONTEXT, ByteLM, load_text
from gradkit.workloads.networks import apply, indices, initializer

FLAGS = flags.FLAGS
SEPARATION = b"\n"
LABELS = b"pcr"
NAMES = ("forward pass", "zo_sgd", "SGD, backpropagation", "Adam, backpropagation")


class Task(NamedTuple):
    """A task of fine-tuning.

    Attributes:
      batch: (key, size) -> a minibatch.
      loss: (params, minibatch) -> scalar.
      develop: params -> the loss on development examples, by which learning rates are chosen.
      test: params -> (loss, score) on test examples.
      score: what the score is.
    """

    batch: Callable[[jax.Array, int], Any]
    loss: Callable[[Any, Any], jax.Array]
    develop: Callable[[Any], jax.Array]
    test: Callable[[Any], tuple[jax.Array, jax.Array]]
    score: str


class Run(NamedTuple):
    """Per reading the steps made, loss and score on test examples; the loss on development examples at the end."""

    readings: list[tuple[int, float, float]]
    develop: float
    seconds: float


def vocabulary() -> dict[int, int]:
    """Byte -> its index."""
    from pydoc_data import topics

    text = "\n".join(topics.topics[name] for name in sorted(topics.topics)).encode()
    return {int(byte): i for i, byte in enumerate(np.unique(np.frombuffer(text, np.uint8)))}


def source_text(size: int) -> np.ndarray:
    """Python source of the standard library, as indices of the vocabulary; other bytes are left out."""
    known, found, total = vocabulary(), [], 0
    for path in sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        own = np.array([known[b] for b in path.read_bytes() if b in known], np.int32)
        found.append(own)
        total += len(own)
        if total >= size:
            break
    return np.concatenate(found)[:size]


def windows(text: np.ndarray, count: int, length: int, seed: int) -> np.ndarray:
    starts = np.random.default_rng(seed).integers(0, len(text) - length, count)
    return np.stack([text[s : s + length] for s in starts]).astype(np.int32)


def classes(network: ByteLM) -> Task:
    """The three classes; 1,000 examples to train on, 500 to choose on, 1,000 to test on, from other parts of texts."""
    known, held_out, source = vocabulary(), np.asarray(load_text().held_out), source_text(90_000)
    words = jnp.asarray([known[b] for b in LABELS], jnp.int32)

    def examples(part: int, count: int) -> tuple[jax.Array, jax.Array]:
        """From one third of each text."""
        prose = np.array_split(held_out, 3)[part]
        rows = [
            windows(text, count // 3 + 1, CONTEXT - 1, 10 * part + i)
            for i, text in enumerate((prose, np.array_split(source, 3)[part], prose[::-1]))
        ]
        labels = np.repeat(np.arange(3, dtype=np.int32), count // 3 + 1)
        order = np.random.default_rng(part).permutation(len(labels))[:count]
        ends = np.full((len(labels), 1), known[SEPARATION[0]], np.int32)
        tokens = np.concatenate([np.concatenate(rows), ends], axis=1)
        return jnp.asarray(tokens[order]), jnp.asarray(labels[order])

    train, develop, test = examples(0, 1000), examples(1, 500), examples(2, 1000)

    def logits(params: Any, tokens: jax.Array) -> jax.Array:
        return apply(network, params, tokens)[:, -1, words]

    def loss(params: Any, batch: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, batch[0]), batch[1]).mean()

    def batch(key: jax.Array, size: int) -> Any:
        rows = indices(key, size, len(train[1]))
        return jax.tree.map(lambda x: x[rows], train)

    def tested(params: Any) -> tuple[jax.Array, jax.Array]:
        found = logits(params, test[0]).argmax(-1).astype(jnp.int32)
        return loss(params, test), jnp.mean((found == test[1]).astype(jnp.float32))

    return Task(batch, loss, lambda p: loss(p, develop), tested, "accuracy")


def language(network: ByteLM) -> Task:
    """The next byte of Python source."""
    source = source_text(400_000)
    parts = {"train": source[:-60_000], "develop": source[-60_000:-30_000], "test": source[-30_000:]}
    text = jnp.asarray(parts["train"])
    held = {name: jnp.asarray(windows(parts[name], 256, CONTEXT + 1, 0)) for name in ("develop", "test")}

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        return next_byte(params, network, tokens)

    def batch(key: jax.Array, size: int) -> jax.Array:
        starts = indices(key, size, len(text) - CONTEXT)
        return jax.vmap(lambda s: jax.lax.dynamic_slice(text, (s,), (CONTEXT + 1,)))(starts)

    def tested(params: Any) -> tuple[jax.Array, jax.Array]:
        value = loss(params, held["test"])
        return value, value

    return Task(batch, loss, lambda p: loss(p, held["develop"]), tested, "loss")


def next_byte(params: Any, network: ByteLM, tokens: jax.Array) -> jax.Array:
    """The cross entropy of every byte of some windows but the first."""
    logits = apply(network, params, tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def restored(name: str, like: Any) -> Any:
    """A tree that an interrupted call has kept under this name, or None."""
    file = pathlib.Path(FLAGS.kept) / f"{name}.npz"
    if not FLAGS.kept or not file.exists():
        return None
    leaves, structure = jax.tree.flatten(like)
    found = np.load(file)
    return structure.unflatten([jnp.asarray(found[str(i)]) for i in range(len(leaves))])


def keep(name: str, tree: Any) -> None:
    if FLAGS.kept:
        arrays = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(tree))}
        np.savez(pathlib.Path(FLAGS.kept) / f"{name}.npz", **arrays)


def pretrained(network: ByteLM) -> Any:
    """The model after some training on prose."""
    text = load_text()
    init = initializer(network, text.train[None, :CONTEXT], gain=1.0)
    tx = gk.adam(optax.cosine_decay_schedule(3e-3, FLAGS.pretraining))
    found = restored("pretrained", jax.eval_shape(init, jax.random.key(0)))
    if found is not None:
        return found

    def one(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state = carry
        starts = indices(key, 32, len(text.train) - CONTEXT)
        tokens = jax.vmap(lambda s: jax.lax.dynamic_slice(text.train, (s,), (CONTEXT + 1,)))(starts)
        updates, state = tx.update(jax.grad(next_byte)(params, network, tokens), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), FLAGS.pretraining)
    params = jax.jit(lambda carry, keys: jax.lax.scan(one, carry, keys)[0][0])((params, tx.init(params)), keys)
    keep("pretrained", params)
    return params


def followed(step: Callable[[Any, jax.Array], Any], state: Any, task: Task, steps: int, every: int, name: str) -> Run:
    """A run, read every so many steps. The first entry of the state is the parameters."""
    many = jax.jit(lambda state, keys: jax.lax.scan(lambda s, key: (step(s, key), None), state, keys)[0])
    test = jax.jit(task.test)
    # Steps made, seconds, and the readings, of which a row that is not made yet is NaN.
    table = np.full((steps // every + 1, 3), np.nan)
    table, seconds, state = restored(name, (table, 0.0, state)) or (table, 0.0, state)
    table, seconds = np.array(table, np.float64), float(seconds)
    for i in range(int(np.isfinite(table[:, 0]).sum()), len(table)):
        begin = time.perf_counter()
        if i:
            state = many(state, jax.random.split(jax.random.fold_in(jax.random.key(FLAGS.seed), i), every))
        table[i] = (i * every, *(float(x) for x in test(state[0])))
        seconds += time.perf_counter() - begin
        if i % 5 == 4:
            keep(name, (table, seconds, state))
    readings = [(int(at), loss, score) for at, loss, score in table.tolist()]
    return Run(readings, float(jax.jit(task.develop)(state[0])), seconds)


def first_order(task: Task, params: Any, rate: float, steps: int) -> Run:
    """Fine-tuning with Adam and a linear decay, 8 examples per step."""
    tx = gk.adam(optax.linear_schedule(rate, 0.0, steps))

    def step(state: Any, key: jax.Array) -> Any:
        params, inner = state
        updates, inner = tx.update(jax.grad(task.loss)(params, task.batch(key, 8)), inner, params)
        return optax.apply_updates(params, updates), inner

    return followed(
        step, (params, tx.init(params)), task, steps, max(1, steps // 25), f"adam-{task.score}-{rate}-{steps}"
    )


def zeroth_order(task: Task, params: Any, rate: float, steps: int) -> Run:
    """`zo_sgd` at a constant rate, 16 examples per step, both sides of one direction."""
    method = gk.gradients.zo_sgd(task.loss, rate, epsilon=FLAGS.epsilon)

    def step(state: Any, key: jax.Array) -> Any:
        params, inner = state
        draw, z = jax.random.split(key)
        _, updates, inner = method.update(inner, params, task.batch(draw, 16), key=z)
        return optax.apply_updates(params, updates), inner

    return followed(
        step, (params, method.init(params)), task, steps, max(1, steps // 50), f"zo-{task.score}-{rate}-{steps}"
    )


def memory(task: Task, params: Any, sizes: list[int]) -> dict[str, list[int]]:
    """Bytes beyond what comes in, per program and batch size: temporary ones, and outputs that are not put in the place
    of donated arguments."""
    found: dict[str, list[int]] = {name: [] for name in NAMES}
    zo = gk.gradients.zo_sgd(task.loss, 1e-6)

    def zeroth(params: Any, batch: Any, key: Any) -> Any:
        return optax.apply_updates(params, zo.update(zo.init(params), params, batch, key=key)[1])

    def descent(tx: optax.GradientTransformation) -> Callable[..., Any]:
        def step(params: Any, state: Any, batch: Any) -> Any:
            updates, state = tx.update(jax.grad(task.loss)(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        return step

    for size in sizes:
        batch = task.batch(jax.random.key(0), size)
        sgd, adam = gk.sgd(0.1), gk.adam(1e-3)
        programs = (
            jax.jit(task.loss).lower(params, batch),
            jax.jit(zeroth, donate_argnums=0).lower(params, batch, jax.random.key(0)),
            jax.jit(descent(sgd), donate_argnums=(0, 1)).lower(params, sgd.init(params), batch),
            jax.jit(descent(adam), donate_argnums=(0, 1)).lower(params, adam.init(params), batch),
        )
        for name, program in zip(NAMES, programs, strict=True):
            used: Any = program.compile().memory_analysis()
            new = max(0, used.output_size_in_bytes - used.alias_size_in_bytes)
            found[name].append(used.temp_size_in_bytes + new)
    return found


def memory_table(found: dict[str, list[int]], sizes: list[int], words: int) -> list[str]:
    lines = [
        f"memory beyond what comes in, KiB; the parameters are {4 * words / 1024:.0f} KiB",
        f"{'windows in the batch':<36}" + "".join(f"{size:>10}" for size in sizes),
    ]
    lines += [f"{name:<36}" + "".join(f"{x / 1024:>10.0f}" for x in own) for name, own in found.items()]
    beyond = [(zo - f) / (4 * words) for zo, f in zip(found["zo_sgd"], found["forward pass"], strict=True)]
    times = [bp / zo for bp, zo in zip(found["SGD, backpropagation"], found["zo_sgd"], strict=True)]
    lines.append(f"{'zo_sgd - forward pass, in copies':<36}" + "".join(f"{x:>10.2f}" for x in beyond))
    return [*lines, f"{'backpropagation / zo_sgd':<36}" + "".join(f"{x:>10.1f}" for x in times)]


def steps_to(run: Run, level: float) -> int | None:
    """The first reading whose loss is at most this."""
    return next((at for at, loss, _ in run.readings if loss <= level), None)


def table(name: str, task: Task, best: dict[str, tuple[float, Run]], steps: int) -> list[str]:
    lines = [
        f"{name}: {task.score} on test examples",
        f"{'':<12}{'rate':>9}{'steps':>8}{'loss':>9}{task.score:>11}{'seconds':>9}",
    ]
    start = best["Adam"][1].readings[0]
    lines.append(f"{'start':<12}{'-':>9}{0:>8}{start[1]:>9.4f}{start[2]:>11.4f}{'-':>9}")
    for method, (rate, run) in best.items():
        marks = [steps * int(ratio) for ratio in FLAGS.ratios] if method == "zo_sgd" else [steps]
        for mark in marks:
            at, loss, score = next(reading for reading in run.readings if reading[0] >= mark)
            seconds = run.seconds * at / run.readings[-1][0]
            lines.append(f"{method:<12}{rate:>9.2g}{at:>8}{loss:>9.4f}{score:>11.4f}{seconds:>9.0f}")
    fo, zo = best["Adam"][1], best["zo_sgd"][1]
    lines.append("steps to take a share of Adam's whole fall off the loss:")
    lines.append(f"{'share':<12}{'Adam':>9}{'zo_sgd':>9}{'ratio':>8}")
    lowest = min(loss for _, loss, _ in fo.readings)
    for share in (0.25, 0.5, 0.75, 0.9, 1.0):
        level = start[1] - share * (start[1] - lowest)
        pair = steps_to(fo, level), steps_to(zo, level)
        ratio = f"{pair[1] / pair[0]:>8.0f}" if pair[0] and pair[1] else f"{'-':>8}"
        lines.append(f"{share:<12.0%}" + "".join(f"{'-' if x is None else x:>9}" for x in pair) + ratio)
    return lines


def draw(
    found: dict[str, list[int]], sizes: list[int], runs: dict[str, dict[str, tuple[float, Run]]], path: str
) -> None:
    with matplotlib.rc_context(style.RC):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.0 * (1 + len(runs)), 3.8), layout="constrained", facecolor=style.PAPER)
        panels = figure.subplots(1, 1 + len(runs), squeeze=False)[0]
        for i, (name, own) in enumerate(found.items()):
            panels[0].plot(
                sizes,
                np.array(own) / 2**20,
                marker="o",
                color=style.colour(i),
                linestyle="--" if name == NAMES[-1] else "-",
                label=name,
            )
        panels[0].set(xscale="log", yscale="log", xlabel="windows in the batch", ylabel="MiB beyond what comes in")
        panels[0].set_xticks(sizes, [str(size) for size in sizes])
        panels[0].minorticks_off()
        panels[0].set_title("memory of a step")
        panels[0].legend(frameon=False)
        for axes, (task, best) in zip(panels[1:], runs.items(), strict=True):
            for i, (method, (rate, run)) in enumerate(best.items()):
                at, losses = np.array([r[0] for r in run.readings]), [r[1] for r in run.readings]
                axes.plot(np.maximum(at, 1), losses, color=style.colour(3 - 2 * i), label=f"{method}, rate {rate:.2g}")
            axes.set(xscale="log", xlabel="steps", ylabel="loss on test examples")
            axes.set_title(f"fine-tuning: {task}")
            axes.legend(frameon=False)
        figure.savefig(path, dpi=130)


def define_flags() -> None:
    """The flags of this script; a test that imports it has none of them."""
    flags.DEFINE_list("tasks", ["classes", "language"], "what is fine-tuned on")
    flags.DEFINE_integer("pretraining", 2000, "steps of 32 windows on prose", lower_bound=1)
    flags.DEFINE_integer("first_order_steps", 100, "of Adam", lower_bound=1)
    flags.DEFINE_list("ratios", ["32", "100"], "steps of zo_sgd for one of Adam")
    flags.DEFINE_integer("pilot_steps", 320, "of zo_sgd, by which its rate is chosen", lower_bound=1)
    flags.DEFINE_list("first_order_rates", ["3e-4", "1e-3", "3e-3"], "of Adam, of which one is chosen")
    flags.DEFINE_list("zeroth_order_rates", ["3e-5", "1e-4", "2e-4"], "of zo_sgd, of which one is chosen")
    flags.DEFINE_float("epsilon", 1e-3, "of zo_sgd", lower_bound=1e-12)
    flags.DEFINE_list("batches", ["16", "64", "256"], "of the table of memory")
    flags.DEFINE_float("slower", 1.0, "times the rate of the pilots: of a second whole run; 1: none", lower_bound=0.0)
    flags.DEFINE_string("kept", "", "a folder that keeps what an interrupted call has made of a run")
    flags.DEFINE_integer("seed", 0, "of minibatches and directions")
    flags.DEFINE_string("out", "zeroth_order", "where the table (.txt), the figure (.png) and the lines (.jsonl) go")


def chosen(runs: dict[float, Run]) -> float:
    """The rate with the smallest loss on development examples."""
    return min(runs, key=lambda rate: np.nan_to_num(runs[rate].develop, nan=np.inf))


def main(argv: list[str]) -> None:
    """Measures memory and steps, and writes the table and the figure."""
    if argv[1:]:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    network = ByteLM(load_text().vocabulary)
    params, tasks = pretrained(network), {"classes": classes, "language": language}
    sizes = [int(size) for size in FLAGS.batches]
    found = memory(language(network), params, sizes)
    words = sum(x.size for x in jax.tree.leaves(params))
    texts = [memory_table(found, sizes, words)]
    print("\n".join(texts[-1]), flush=True)
    runs: dict[str, dict[str, tuple[float, Run]]] = {}
    file = pathlib.Path(f"{FLAGS.out}.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {(r["task"], r["method"], r["rate"], r["steps"]): Run(*(r[name] for name in Run._fields)) for r in rows}

    def made(name: str, method: str, rate: float, steps: int) -> Run:
        """A run, or what the file has of it."""
        setting = name, method, rate, steps
        if setting not in known:
            make = first_order if method == "Adam" else zeroth_order
            known[setting] = make(tasks[name](network), params, rate, steps)
            row = dict(zip(("task", "method", "rate", "steps"), setting, strict=True)) | known[setting]._asdict()
            with file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            print(*setting, known[setting].develop, known[setting].readings[-1], flush=True)
        return known[setting]

    for name in FLAGS.tasks:
        steps = FLAGS.first_order_steps
        total = steps * max(map(int, FLAGS.ratios))
        fo = {rate: made(name, "Adam", rate, steps) for rate in map(float, FLAGS.first_order_rates)}
        pilots = {rate: made(name, "zo_sgd", rate, FLAGS.pilot_steps) for rate in map(float, FLAGS.zeroth_order_rates)}
        fast = chosen(pilots)
        zo = {rate: made(name, "zo_sgd", rate, total) for rate in (fast, FLAGS.slower * fast)}
        rates = chosen(fo), chosen(zo)
        runs[name] = {"Adam": (rates[0], fo[rates[0]]), "zo_sgd": (rates[1], zo[rates[1]])}
        texts.append(table(name, tasks[name](network), runs[name], steps))
        print("\n".join(texts[-1]), flush=True)
    command = shlex.join(["python", "experiments/zeroth_order.py", *sys.argv[1:]])
    head = [
        f"$ {command}",
        f"byte-level transformer of {words:,} parameters, {FLAGS.pretraining} steps on prose, then fine-tuned;",
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}",
    ]
    pathlib.Path(f"{FLAGS.out}.txt").write_text("\n\n".join("\n".join(text) for text in [head, *texts]) + "\n")
    draw(found, sizes, runs, f"{FLAGS.out}.png")


if __name__ == "__main__":
    define_flags()
    app.run(main)
