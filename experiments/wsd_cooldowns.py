"""One training at a constant rate, and three models of it: a cooldown from each of three checkpoints.

    python experiments/wsd_cooldowns.py --out=experiments/results/wsd_cooldowns

The training is `gradkit train --schedule=wsd --checkpoint_dir=...`; each model is the same command with one flag more,
`--cooldown=START:STEPS`. Beside them a training with a cosine to each of the three lengths, from the beginning, at the
same learning rates. Writes OUT.txt and OUT.png, and every command it runs.
"""

import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
from typing import Any

import matplotlib
from absl import app, flags

from gradkit.training.report import style

FLAGS = flags.FLAGS
flags.DEFINE_string("workload", "bytelm", "the problem")
flags.DEFINE_string("method", "adamw", "the method")
flags.DEFINE_list("rates", ["0.005", "0.01"], "learning rates")
flags.DEFINE_list("starts", ["150", "300", "600"], "steps at which cooldowns start")
flags.DEFINE_integer("share", 3, "a cooldown takes the steps before it divided by this", lower_bound=1)
flags.DEFINE_integer("eval_every", 50, "steps between evaluations", lower_bound=1)
flags.DEFINE_integer("seed", 0, "of parameters and minibatches")
flags.DEFINE_string("out", "wsd_cooldowns", "where the table (.txt) and the figure (.png) go")


def run(folder: pathlib.Path, name: str, *arguments: str) -> list[dict[str, Any]]:
    """One command of `gradkit train`, and the records that it wrote."""
    common = [f"--{flag}={FLAGS[flag].value}" for flag in ("workload", "method", "eval_every", "seed")]
    command = ["train", *common, *arguments]
    print("$", shlex.join(["gradkit", *command]).replace(str(folder), "RUNS"), flush=True)
    given = [sys.executable, "-m", "gradkit", *command, f"--metrics_file={folder / 'metrics.jsonl'}"]
    subprocess.run(given, check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def curves(rate: str, branches: list[tuple[int, int]]) -> dict[str, list[dict[str, Any]]]:
    """The records of the training, of its cooldowns and of the cosines at one rate."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        trunk = folder / "trunk"
        trunk.mkdir()
        own = [f"--learning_rate={rate}", "--schedule=wsd", f"--steps={branches[-1][0]}", "--keep=1000"]
        own.append(f"--checkpoint_dir={trunk}")
        found = {"constant": run(trunk, "metrics.jsonl", *own)}
        for start, steps in branches:
            file = f"metrics_cooldown_{start}_{steps}.jsonl"
            found[f"cooldown {start + steps}"] = run(trunk, file, *own, f"--cooldown={start}:{steps}")
        for start, steps in branches:
            whole = folder / f"cosine_{start + steps}"
            whole.mkdir()
            own = [f"--learning_rate={rate}", f"--steps={start + steps}"]
            found[f"cosine {start + steps}"] = run(whole, "metrics.jsonl", *own)
    return found


def table(found: dict[str, dict[str, list[dict[str, Any]]]], branches: list[tuple[int, int]]) -> str:
    """The last loss of every model at every rate, and the best of each kind."""
    lines = [f"{'rate':>8} {'model of step':>14} {'at start':>9} {'cooldown':>9} {'cosine':>9}"]
    best: dict[tuple[str, int], float] = {}
    for rate, own in found.items():
        for start, steps in branches:
            end = start + steps
            runs = {"constant": start, f"cooldown {end}": end, f"cosine {end}": end}
            read = [next(r["metric"] for r in own[name] if r["step"] == at) for name, at in runs.items()]
            lines.append(f"{rate:>8} {end:>14} " + " ".join(f"{value:9.4f}" for value in read))
            for kind, value in zip(("cooldown", "cosine"), read[1:], strict=True):
                best[kind, end] = min(value, best.get((kind, end), float("inf")))
    ends = [start + steps for start, steps in branches]
    made = branches[-1][0] + sum(steps for _, steps in branches)
    lines += ["", "at the better of the rates, cooldown / cosine:"]
    lines += [f"  step {end:>5}  {best['cooldown', end]:.4f} / {best['cosine', end]:.4f}" for end in ends]
    lines.append(f"steps made per rate: {made} for three models of one training, {sum(ends)} for three cosines")
    return "\n".join(lines)


def draw(found: dict[str, dict[str, list[dict[str, Any]]]], path: str) -> None:
    """The loss of every run against the step, one panel per rate."""
    with matplotlib.rc_context(style.RC):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.6 * len(found), 3.8), layout="constrained", facecolor=style.PAPER)
        panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
        for axes, (rate, own) in zip(panels, found.items(), strict=True):
            for name, rows in own.items():
                kind = name.split()[0]
                place = ("constant", "cooldown", "cosine").index(kind)
                first = kind not in axes.get_legend_handles_labels()[1]
                steps, values = [r["step"] for r in rows], [r["metric"] for r in rows]
                if kind == "cooldown":
                    start = next(r for r in own["constant"] if r["step"] == steps[0] - FLAGS.eval_every)
                    steps, values = [start["step"], *steps], [start["metric"], *values]
                line = "--" if kind == "cosine" else "-"
                axes.plot(steps, values, line, color=style.colour(place), label=kind if first else None, linewidth=1.6)
            axes.set_title(f"learning rate {rate}")
            axes.set_xlabel("step")
            axes.legend(frameon=False)
        last = [rows[-1]["metric"] for own in found.values() for rows in own.values()]
        panels[0].set_ylim(min(last) - 0.05, max(last) + 0.35)
        panels[0].set_ylabel(f"held-out loss of {FLAGS.workload}")
        figure.savefig(path, dpi=130)


def main(argv: list[str]) -> None:
    """Runs everything, and writes the table and the figure."""
    del argv
    branches = [(int(start), int(start) // FLAGS.share) for start in FLAGS.starts]
    found = {rate: curves(rate, branches) for rate in FLAGS.rates}
    text = table(found, branches)
    head = (
        f"{FLAGS.method} on {FLAGS.workload}, seed {FLAGS.seed}: loss at the checkpoint that the cooldown starts from, "
        "after it, and of a\ncosine of the same length\n\n$ python experiments/wsd_cooldowns.py "
        f"--rates={','.join(FLAGS.rates)} --starts={','.join(FLAGS.starts)}\n"
    )
    pathlib.Path(f"{FLAGS.out}.txt").write_text(f"{head}\n{text}\n")
    draw(found, f"{FLAGS.out}.png")
    print(text)


if __name__ == "__main__":
    app.run(main)
