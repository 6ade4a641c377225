"""The page of evidence: every experiment of `experiments/results` with its figure, its command and its verdict.

Claims are read from their pages, which `experiments/claims` writes.
"""

import ast
import html
import inspect
import posixpath
import re
import sys

import docstrings
import figures

ROOT = figures.ROOT
RESULTS = figures.RESULTS
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from experiments.claims import pages, standing  # noqa: E402

# Results whose claim has a page of the same name.
CLAIMS = frozenset(name for name, claim in standing.CLAIMS.items() if not claim.results or claim.results == name)

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
    "bytes_per_parameter": "bench/bytes_per_parameter.py",
    "trace_and_compile": "bench/trace_and_compile.py",
    "checkpoint_digests": "bench/checkpoint_digests.py",
    "aggregators": "bench/aggregators.py",
    "linalg_roots": "bench/linalg_roots.py",
}
# The log of what the tests take is no experiment.
OTHER = frozenset({"test_time"})
BADGE = dict(zip(pages.VERDICTS, ("success", "warning", "danger", "secondary"), strict=True))


def names() -> set[str]:
    """What is in the folder of results."""
    return {file.stem for file in RESULTS.glob("*.txt")}


def page() -> str:
    """The page, as MyST.

    Raises:
      ValueError: an entry of this file, or a claim, without results.
    """
    claims = pages.known()
    known = CLAIMS | RACES.keys() | MEASURED.keys() | OTHER
    unknown, gone = sorted(names() - known), sorted(known - names())
    if gone:
        raise ValueError(
            f"experiments/results must have what docs/_ext/evidence.py lists; there is no {', '.join(gone)}"
        )
    out = [
        "# Evidence", "",
        "Every experiment in `experiments/results`, with its figure, the command that makes it again, and what came "
        "out, whether it is what the paper says or not. A verdict is about the problems and the scale of the run: "
        "small "
        "models on two processor cores. Beside these stand the tests: the check of every paper in "
        "`tests/papers`, and trajectories of independent implementations in `tests/golden`; the page of a method names "
        "its own.", "",
        "| claim | verdict |", "|---|---|",
        *(f"| [{_claim(claims[name])}](#{_anchor(name)}) | {{bdg-{BADGE[verdict]}}}`{verdict}` |"
          for verdict in pages.VERDICTS for name in claims if claims[name].verdict == verdict), "",
        "## Claims", "",
    ]  # fmt: skip
    for name, claim in claims.items():
        out += [f"({_anchor(name)})=", f"### {_claim(claim)}", ""]
        out += [f"{{bdg-{BADGE[claim.verdict]}}}`{claim.verdict}` {docstrings.escaped(claim.found)}", ""]
        out += [f"Source: {docstrings.escaped(claim.source)}", ""]
        if claim.figure:
            out += _picture(name, posixpath.normpath(f"../experiments/results/claims/{claim.figure}"))
        out += ["```sh", claim.command, "```", ""]
        out += [
            *_details("The protocol", claim.protocol),
            *_details("The results", f"{claim.table}\n\n{claim.versions}"),
        ]
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
            out += [f"({_anchor(name)})=", f"### {_title(script).rstrip('.') if script else f'`{name}`'}", ""]
            out += [*_figure(name), *(_how(name, script) if script else []), *_table(name)]
    return "\n".join(out)


def _anchor(name: str) -> str:
    return name.replace("_", "-")


def _doc(script: str) -> str:
    text = (ROOT / "experiments" / script).read_text(encoding="utf-8")
    return inspect.cleandoc(ast.get_docstring(ast.parse(text)) or "")


def _title(script: str) -> str:
    return docstrings.escaped(" ".join(_doc(script).split("\n\n")[0].split()))


def _claim(claim: pages.Page) -> str:
    return docstrings.escaped(claim.claim).rstrip(".")


def _figure(name: str) -> list[str]:
    return _picture(name, f"../experiments/results/{name}.png") if (RESULTS / f"{name}.png").exists() else []


def _picture(name: str, path: str) -> list[str]:
    return [
        f"```{{image}} {path}",
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
    return _details(f"The results, {name}.txt", (RESULTS / f"{name}.txt").read_text(encoding="utf-8"))


def _details(summary: str, text: str) -> list[str]:
    return [
        "```{raw} html",
        f'<details class="plain"><summary>{summary}</summary><pre>{_solid(text)}</pre></details>',
        "```", "",
    ]  # fmt: skip


def _solid(text: str) -> str:
    return html.escape(text.strip("\n")).replace("\n", "&#10;")
