"""The page of evidence: every experiment of `experiments/results` with its figure, its command and its verdict."""

import ast
import html
import inspect
import re

import docstrings
import figures

ROOT = figures.ROOT
RESULTS = figures.RESULTS

# Name of the results -> (script, verdict, what was found). A verdict is about the claim in the script's first line.
CLAIMS = {
    "scaled_gd_condition": (
        "scaled_gd_condition.py",
        "reproduced",
        "ScaledGD needs 24 to 34 steps to an error of 1e-8 at condition numbers from 1 to 1000; gradient descent "
        "needs 26 to 3294, and does not arrive at 1000 within 4000 steps.",
    ),
    "central_flow": (
        "central_flow.py",
        "reproduced",
        "Beyond the edge of stability the distance of the central flow to gradient descent stays near 0.2, while "
        "that of gradient flow grows to about 1; the sharpness of the central flow stays at the edge.",
    ),
    "estimates_against_dimension": (
        "estimates_against_dimension.py",
        "reproduced",
        "Errors grow with the square root of the number of parameters, with slopes between 0.49 and 0.51 where "
        "theory has 0.5, and agree with the theory within what the draws allow.",
    ),
    "wsd_cooldowns": (
        "wsd_cooldowns.py",
        "reproduced",
        "Three cooldowns of one training reach lower losses than three cosines of the same lengths, with two "
        "thirds of the steps. One seed, two learning rates.",
    ),
    "mup_transfer": (
        "mup_transfer.py",
        "reproduced",
        "From width 64 to 512 of the language model the best of rates a factor of 2 apart is 2^-8, 2^-7, 2^-8 and 2^-8 "
        "with the multipliers, and 2^-8, 2^-8, 2^-9 and 2^-10 without; there the widest model is worse at the rate "
        "that was best at width 64 than the narrowest one. Two seeds, 100 steps.",
    ),
    "loss_against_delay": (
        "loss_against_delay.py",
        "reproduced in part",
        "Up to eight workers delayed Nesterov loses nothing by delay where plain Nesterov does; from sixteen on "
        "it is the worst of the rules, and plain SGD the most robust one.",
    ),
    "loss_against_bytes": (
        "loss_against_bytes.py",
        "reproduced in part",
        "Integers of eight bits lose nothing against float32 at a quarter of the bytes, and rounds of 200 steps cost "
        "0.05 nats against rounds of 10 at a twentieth of them; a twentieth of the entries and factors of rank 4 cost "
        "0.06 to 0.29 more. No round is as good as data-parallel AdamW, by 0.33 nats, in these 400 steps from the "
        "start. One seed.",
    ),
    "time_under_stragglers": (
        "time_under_stragglers.py",
        "reproduced in part",
        "Where workers are slow, not waiting for four of sixteen takes a quarter to two thirds of the time of waiting "
        "for all, and the dynamic rule 13 to 31 per cent less than it. Of the codes M-SGC costs the least on even "
        "workers and gains in bursts; plain codes and SR-SGC gain where the same two are slow. On examples that are "
        "exchangeable no code beats backup workers.",
    ),
    "metagradient": (
        "metagradient.py",
        "reproduced in part",
        "Of 1037 weights of training images, metagradients find far better ones than random search with the same "
        "compute; of six learning rates random search finds slightly better ones.",
    ),
    "multitask": (
        "multitask.py",
        "reproduced in part",
        "Thirteen aggregators beat the plain mean on four or five of five seeds, but so do constant weights that "
        "correct the sizes of the losses: what they win is about what any such correction wins.",
    ),
    "price_of_not_tuning": (
        "price_of_not_tuning.py",
        "reproduced in part",
        "MoMo-Adam, accelerated DoG and U-DoG reach every target on every seed without any tuning, in 1.3 to 3.6 "
        "times the steps of the best tuned method. DoG and L-DoG themselves miss all three within these budgets.",
    ),
    "large_batch": (
        "large_batch.py",
        "not reproduced",
        "LARS and LAMB do not beat a tuned AdamW at any batch size on this convolutional network, and are level "
        "with SGD from 512 examples on.",
    ),
    "large_batch_bytelm": (
        "large_batch.py",
        "not reproduced",
        "On the byte-level language model LARS and LAMB are far ahead of SGD and not ahead of AdamW.",
    ),
}
RACES = {
    "adaptive_race_digits": "The adaptive family on handwritten digits",
    "adaptive_race_bytelm": "The adaptive family on a byte-level language model",
    "adaptive_race_bytelm_1000": "Momentum methods on a byte-level language model, over a longer run",
    "matrix_race_bytelm": "Matrices and curvature on a byte-level language model",
    "matrix_race_autoencoder": "Matrices and curvature on a deep linear autoencoder",
    "matrix_race_sensing": "Matrices and curvature on matrix sensing of condition 1000",
}
MEASURED = {
    "state_of_models": "state_of_models.py",
    "mesh_sensitivity": "bench/mesh_sensitivity.py",
    "norms_mesh": "bench/norms_mesh.py",
    "matrix_mesh": "bench/matrix_mesh.py",
    "matrix_peers": "bench/matrix_peers.py",
    "state_by_parameter": "bench/state_by_parameter.py",
    "step_cost": "bench/step_cost.py",
    "trace_and_compile": "bench/trace_and_compile.py",
    "checkpoint_digests": "bench/checkpoint_digests.py",
    "aggregators": "bench/aggregators.py",
    "linalg_roots": "bench/linalg_roots.py",
}
# The log of what the tests take is no experiment.
OTHER = frozenset({"test_time"})
BADGE = {"reproduced": "success", "reproduced in part": "warning", "not reproduced": "danger"}


def names() -> set[str]:
    """What is in the folder of results."""
    return {file.stem for file in RESULTS.glob("*.txt")}


def page() -> str:
    """The page, as MyST.

    Raises:
      ValueError: results that no entry of this file is about, or an entry without results.
    """
    known = CLAIMS.keys() | RACES.keys() | MEASURED.keys() | OTHER
    unknown, gone = sorted(names() - known), sorted(known - names())
    if gone:
        raise ValueError(
            f"experiments/results must have what docs/_ext/evidence.py lists; there is no {', '.join(gone)}"
        )
    out = [
        "# Evidence", "",
        "Every experiment in `experiments/results`, with its figure, the command that makes it again, and what came "
        "out, whether it is what the paper says or not. Beside these stand the tests: the check of every paper in "
        "`tests/papers`, and trajectories of independent implementations in `tests/golden`; the page of a method names "
        "its own.", "",
        "| claim or question | verdict |", "|---|---|",
        *(f"| [{_heading(name, script)}](#{_anchor(name)}) | {{bdg-{BADGE[verdict]}}}`{verdict}` |"
          for name, (script, verdict, _) in CLAIMS.items()), "",
        "## Claims", "",
    ]  # fmt: skip
    for name, (script, verdict, found) in CLAIMS.items():
        out += [f"({_anchor(name)})=", f"### {_heading(name, script)}", ""]
        out += [f"{{bdg-{BADGE[verdict]}}}`{verdict}` {found}", ""]
        out += [*_figure(name), *_how(name, script), *_table(name)]
    out += [
        "## Races", "",
        "Every method is tuned over its learning rate with the same effort, and judged with five new seeds by the "
        "median number of steps to the target. Dots are medians, lines the range over seeds, crosses misses. A race "
        "has no claim and so no verdict.", "",
    ]  # fmt: skip
    for name, heading in RACES.items():
        rows = figures.rows_of(RESULTS / f"{name}.txt.jsonl")
        arrived = [row for row in rows if figures.finite(row["median"]) != float("inf")]
        said = f"{len(arrived)} of {len(rows)} methods reach the target on most seeds; the fastest is "
        said += f"`{arrived[0]['method']}`, in {arrived[0]['median']:.0f} steps."
        out += [f"({_anchor(name)})=", f"### {heading}", "", said, ""]
        out += ["```{raw} html", f'<figure class="wide">{figures.race(rows, heading)}</figure>', "```", ""]
        out += [*_how(name, "tuned_race.py"), *_table(name)]
    out += [
        "## Measurements",
        "",
        "What steps cost, hold and send. They were made on two x86 processors, as their heads say.",
        "",
    ]
    for name, script in MEASURED.items():
        out += [f"({_anchor(name)})=", f"### {_title(script).rstrip('.')}", "", *_how(name, script), *_table(name)]
    if unknown:
        out += [
            "## Without a verdict yet",
            "",
            "Experiments whose results are recorded and not judged, or still run.",
            "",
        ]
        for name in unknown:
            script = next((s for s in (f"{name}.py", f"bench/{name}.py") if (ROOT / "experiments" / s).exists()), "")
            out += [f"({_anchor(name)})=", f"### {_heading(name, script) if script else f'`{name}`'}", ""]
            out += [*_figure(name), *(_how(name, script) if script else []), *_table(name)]
    return "\n".join(out)


def _anchor(name: str) -> str:
    return name.replace("_", "-")


def _doc(script: str) -> str:
    text = (ROOT / "experiments" / script).read_text(encoding="utf-8")
    return inspect.cleandoc(ast.get_docstring(ast.parse(text)) or "")


def _title(script: str) -> str:
    return docstrings.escaped(" ".join(_doc(script).split("\n\n")[0].split()))


def _heading(name: str, script: str) -> str:
    """The first line of the script; the problem distinguishes two results of one experiment."""
    which = " (the language model)" if name.endswith("_bytelm") else ""
    return _title(script).rstrip(".") + which


def _figure(name: str) -> list[str]:
    if not (RESULTS / f"{name}.png").exists():
        return []
    return [
        f"```{{image}} ../experiments/results/{name}.png",
        f":alt: {name.replace('_', ' ')}",
        ":class: result",
        "```",
        "",
    ]


def _how(name: str, script: str) -> list[str]:
    text = (RESULTS / f"{name}.txt").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ (python .*)$", text, re.MULTILINE)[:3]
    if not commands:
        found = re.search(r"^ *(?:\S*/)?(python experiments/.*)$", _doc(script), re.MULTILINE)
        commands = [re.sub(r"\[.*", "", found[1]).strip()] if found else [f"python experiments/{script}"]
    return ["```sh", *commands, "```", ""]


def _table(name: str) -> list[str]:
    text = (RESULTS / f"{name}.txt").read_text(encoding="utf-8")
    return [
        "```{raw} html",
        f'<details class="plain"><summary>The results, {name}.txt</summary><pre>{_solid(text)}</pre></details>',
        "```", "",
    ]  # fmt: skip


def _solid(text: str) -> str:
    return html.escape(text.strip("\n")).replace("\n", "&#10;")
