"""The command line: lists that fit 80 columns, what a typo in a file says, and what a run prints by name."""

import dataclasses
import inspect
import io
import re
import time
from pathlib import Path
from typing import Any

import jax
import pytest

from gradkit import catalogue
from gradkit.cli import COMMANDS, main
from gradkit.training import RaceConfig, methods
from gradkit.training.race import Progress
from gradkit.training.report import listing, ticker, watcher
from gradkit.workloads import available, load, models


def run(*arguments: str) -> int:
    return main(["gradkit", *arguments])


def names_in(out: str) -> list[str]:
    return [line.split()[0] for line in out.splitlines() if line.startswith("  gk.")]


def test_list_shows_every_card_once_with_its_description_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    cards = catalogue.cards()
    assert sorted(names_in(out)) == sorted(card.public_name for card in cards.values())
    # Nothing of a description is lost, and it has a column of its own, however long the name is.
    for form in out.split("\n\n"):
        told = [re.fullmatch(r"  (\S*)\s*(.*)", line) for line in form.splitlines()[1:]]
        columns = {line.start(2) for line in told if line and line[2]}
        assert len(columns) == 1 and max(columns) <= 4 + listing.NAMES
        for text in re.split(r"\n  (?=gk\.)", form)[1:]:
            name, *description = text.split()
            assert " ".join(description) == listing.summary(cards[name.rpartition(".")[2]])
    assert run("list", "--form=optimizer") == 0
    expected = [card.public_name for card in catalogue.cards("optimizer").values()]
    assert sorted(names_in(capsys.readouterr().out)) == sorted(expected)


def test_wide_lines_are_one_per_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--wide") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert len(lines) == len(catalogue.cards())
    assert all(line.endswith(listing.summary(catalogue.find(line.split()[0][3:].split(".")[-1]))) for line in lines)
    assert run("list", "--wide", "--long") == 2
    assert "wide must be left out with --long" in capsys.readouterr().err


LAMB = ["gk.lamb", "gk.lambc", "gk.nlamb"]


@pytest.mark.parametrize(
    "text",
    ["1904.00962", "arXiv:1904.00962", "https://arxiv.org/abs/1904.00962v5", "you BERT 2019", "Large-Batch, BERT"],
)
def test_a_method_is_found_by_its_paper(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert [card.public_name for card in catalogue.by_paper(text).values()] == LAMB
    assert run("list", f"--paper={text}") == 0
    assert sorted(names_in(capsys.readouterr().out)) == LAMB
    assert run("show", text) == 0
    out = capsys.readouterr().out
    assert names_in(out) == LAMB and "You et al. Large Batch Optimization for Deep Learning" in out
    assert max(map(len, out.splitlines())) <= 80


def test_show_of_a_paper_is_its_method_its_methods_or_why_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "2508.18258") == run("show", "large", "batch", "optimization") == 0
    out = capsys.readouterr().out
    # Two papers have these words in their titles, each with its methods below it.
    assert (
        out.index("Xue et al. Large-batch Optimization") < out.index("gk.agvm ") < out.index("You et al. Large Batch")
    )
    assert run("show", "2106.00221") == run("show", "gk.gradients.concurrent_adversarial") == 0
    by_paper, by_name = re.split(r"^(?=  name  )", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    assert by_paper == by_name
    assert run("show", "BBTv2") == 0
    assert re.search(r"Sun et al\. BBTv2[^:]*:[^:]*2205\.11200\n  brings no method: ", capsys.readouterr().out)
    assert run("show", "LION") == 0
    assert "gk.lion" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "nosuch"), "arXiv id; `gradkit list` shows all methods, docs/papers.md all papers"),
        (("show", "lyon"), "did you mean lion?"),
        (("show", "1904.00926"), "did you mean 'Large Batch Optimization for Deep Learning: Training BERT in 76"),
        (("show", "symbolc discovry"), "did you mean 'Symbolic Discovery of Optimization Algorithms'?"),
        (("show", "1904.00962", "--steps=3"), "steps must be left out: '1904.00962' is no schedule but a paper"),
        (("list", "--paper=symbolc discovry"), "did you mean 'Symbolic Discovery of Optimization Algorithms'?"),
        (("list", "--paper=BBTv2"), "Large Language Models' brings no method. It is an evolution strategy"),
        (("list", "--paper=nosuch"), "arXiv id; docs/papers.md lists all of them"),
        (("list", "--paper=1904.00962", "--form=layer"), "write --form=optimizer, or none"),
        (("describe", "--method=nosuch"), "`gradkit list` shows all of them"),
    ],
)
def test_what_is_not_there_is_said_with_names_that_are_near(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    out, error = capsys.readouterr()
    assert message in error and not out
    assert "nosuch" not in str(arguments) or "did you mean" not in error


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns_and_names_every_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*filter(None, (command, "--help"))) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    config = COMMANDS[command][1] if command else None
    fields = [field for field in dataclasses.fields(config) if field.init] if config else []
    text = " ".join(out.split())
    for field in fields:
        assert f" --{field.name} {field.metadata['help'].split()[0]}" in text
        assert field.metadata["help"] in text
        assert field.default in (None, False, (), "") or text.count(f"{field.metadata['help']} [") == 1
    # Whatever is executed says so.
    assert text.count("FILE.py") == text.count("it is executed")


def test_a_method_is_shown_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """All but the code of examples, and what it prints."""
    for name in ("soap", "scale_by_conda", "egn", "distributed_shampoo", "ghost_batch_norm", "kron"):
        assert run("show", name) == 0
        shown, example, reference = re.split(r"\n(?=Example:|Reference:)", capsys.readouterr().out)
        assert ">>>" in example
        assert max(map(len, (shown + reference).splitlines())) <= 80
        # Nothing is lost, and no two arguments are in one line.
        docstring = inspect.getdoc(catalogue.find(name).function) or ""
        assert " ".join(docstring.partition("Example:")[0].split()) in " ".join(shown.split())
        arguments = inspect.signature(catalogue.find(name).function).parameters
        assert all(re.search(rf"^  {argument}: ", shown, re.MULTILINE) for argument in arguments)


def test_list_searches_names_descriptions_and_papers(capsys: pytest.CaptureFixture[str]) -> None:
    def found(*arguments: str) -> list[str]:
        assert run("list", *arguments) == 0
        return names_in(capsys.readouterr().out)

    assert "gk.soap" in found("--search=Shampoo ADAM")  # in the title of its paper, whatever the case
    assert found("--search=2302.06675") == ["gk.scale_by_lion", "gk.lion"]
    assert found("--search=mars lion", "--form=optimizer") == ["gk.mars_lion"]
    assert run("list", "--search=nadamm") == 2
    error = capsys.readouterr().err
    assert "search='nadamm' is in the name, description and paper of no method; did you mean 'nadam'" in error
    assert run("list", "--long", "--search=2302.06675") == 0
    assert re.search(r"gk\.lion +optimizer +1 +none", capsys.readouterr().out)


def test_show_draws_the_curve_of_a_schedule(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In characters under the call it is of, in 80 columns; and as a picture."""
    wanted = "peak_value=0.5,warmup_steps=10,stable_steps=20,decay_steps=20,shape='linear'"
    png = tmp_path / "wsd.png"
    assert run("show", "wsd", f"--arguments={wanted}", f"--png={png}") == 0
    out = capsys.readouterr().out
    assert "gk.schedules.wsd(peak_value=0.5, warmup_steps=10" in out and "0.5 ┤" in out and "└──" in out
    assert max(map(len, out.split("picture:")[0].splitlines())) <= 80
    assert png.read_bytes()[1:4] == b"PNG"
    assert run("show", "sgdr", "--steps=30") == 0
    assert capsys.readouterr().out.count("29\n") == 1
    for name, card in catalogue.cards("schedule").items():
        assert run("show", name) == 0
        assert "└──" in capsys.readouterr().out, card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lion", "--png=lion.png"), "png must be left out: gk.lion is no schedule, its form is optimizer"),
        (("wsd", "--arguments=peak=1"), "unexpected keyword argument 'peak'; `gradkit show wsd` lists"),
        (("wsd", "--arguments=peak_value=open('x')"), "arguments must be written as in a call"),
        (("wsd", "--arguments=0.1)"), "arguments must be written as in a call"),
        (("wsd", "--arguments=peak_value=-1,warmup_steps=3"), "peak_value must be in"),
        (("wsd", "--png=wsd.gif"), "the ending of png must be one of '.png', '.svg', '.pdf', got '.gif'"),
        (("wsd", "--png=nowhere/wsd.png"), "png must be a file in a folder that exists"),
        (("wsd", "--steps=0"), "steps must be an integer >= 1"),
        (("--png=wsd.png",), "show takes the name of a method first"),
    ],
)
def test_a_drawing_that_makes_no_sense_is_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("show", *arguments) == 2
    out, error = capsys.readouterr()
    assert message in error and not out


def test_workloads_and_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("workloads") == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    first = [line.split()[0] for line in out.splitlines() if re.match(r"  \w", line)]
    assert first == [*available(), *models()]
    assert load("heavytail").metric_name in out and "8,030,261,248 parameters" in out
    assert run("workloads", "digits_mlp") == 2


def test_version_names_what_the_package_stands_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert re.fullmatch(
        rf"gradkit \S+ \(jax {re.escape(jax.__version__)}, optax \S+, flax \S+\)\n", capsys.readouterr().out
    )


def test_public_names_are_accepted_wherever_a_method_is() -> None:
    assert methods.find("gk.lion").make(0.1).init({"w": jax.numpy.ones(2)})
    assert RaceConfig(methods=("gk.lion", "adamw")).method_names == ("lion", "adamw")


TYPOS = {
    "syntax": ("import gradkit as gk\n\ndef chain(rate)\n    return gk.lion(rate)\n", "SyntaxError: expected ':'"),
    "module": ("import gradkit as gk\nrate = 1\nx = gk.lionn\n", "AttributeError: module 'gradkit' has no"),
    "call": ("import gradkit as gk\ndef chain(rate):\n    return gk.lion(rat)\n", "NameError: name 'rat' is not"),
    "value": ("import gradkit as gk\ndef chain(rate):\n    return gk.lion(rate, b1=2)\n", "ValueError: b1 must be in"),
    "update": (
        "import optax\ndef chain(rate):\n    update = lambda g, s, p: (h, s)\n"
        "    return optax.GradientTransformation(lambda p: (), update)\n",
        "NameError: name 'h' is not defined",
    ),
}
# A description calls no update; a race would run other methods first.
CASES = [
    (command, kind)
    for command in ("train", "race", "inspect", "describe")
    for kind in TYPOS
    if kind != "update" or command in ("train", "inspect")
]


@pytest.mark.parametrize(("command", "kind"), CASES)
def test_a_typo_in_a_chain_file_is_one_line_with_file_and_line_number(
    command: str, kind: str, tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    text, message = TYPOS[kind]
    file.write_text(text)
    arguments = {
        "train": ("--workload=heavytail", "--steps=20", f"--chain={file}", "--learning_rate=0.1"),
        "race": ("--workloads=heavytail", "--steps=20", "--methods=sgd", f"--chain={file}", "--rates=2", "--seeds=1"),
        "inspect": (str(file), "--workload=heavytail"),
        "describe": (f"--method={file}", "--workload=heavytail"),
    }[command]
    assert run(command, *arguments) in (1, 2)
    captured = capsys.readouterr()
    assert captured.err.startswith("gradkit: ") and captured.err.count("\n") == 1
    assert f"{file}, line 3: {message}" in captured.err
    assert captured.err.count(str(file)) == 1


def test_an_error_of_our_own_is_not_blamed_on_a_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import gradkit as gk\nchain = gk.sgd(0.1)\n")

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a defect")

    monkeypatch.setattr("gradkit.training.inspection.table", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        run("inspect", str(file), "--workload=heavytail")


def test_a_mesh_without_its_devices_says_what_to_add(capsys: pytest.CaptureFixture[str]) -> None:
    # The tests have eight devices.
    assert run("train", "--workload=heavytail", "--steps=20", "--mesh=data=4,fsdp=4") == 2
    error = capsys.readouterr().err
    assert "mesh=data=4,fsdp=4 is of 16 devices, and there are 8: add --devices=16" in error


def test_losses_and_metrics_are_printed_with_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    with ticker(10, "held-out loss (nats)") as tick:
        tick({"step": 5, "loss": 0.5, "metric": 0.25})
    assert capsys.readouterr().out == "step 5  minibatch loss 0.5  held-out loss (nats) 0.25\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_live_race_shows_how_long_a_method_has_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RaceConfig(methods=("lion", "sgd"))
    clock = [100.0]
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("gradkit.training.report.live.time.perf_counter", lambda: clock[0])
    out = Terminal()
    with watcher(config, out) as watch:
        watch(Progress("digits_mlp", "lion", "sweep", 0, 100))
        clock[0] += 41.0
        # No further event: the table is drawn by a thread of its own while the main one waits for the compiler.
        for _ in range(200):
            if "compiling, 41 s" in out.getvalue():
                break
            time.sleep(0.02)
        watch(Progress("digits_mlp", "lion", "sweep", 50, 100))
    assert "compiling, 41 s" in out.getvalue()
    assert "━━━━━━────── tuning, 41 s" in out.getvalue()
