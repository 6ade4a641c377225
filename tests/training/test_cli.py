"""The command line: what it prints, what it refuses, and that a refusal writes nothing."""

import json
import os

import pytest

from gradkit.cli import main

pytestmark = pytest.mark.slow

TINY = ["--workloads=heavytail", "--methods=lion,sgd", "--rates=2", "--seeds=1", "--steps=20", "--extensions=0"]


def run(*arguments):
    return main(["gradkit", *arguments])


def test_without_arguments_help_is_printed(capsys):
    assert run() == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("race", "train", "describe", "list", "show"))
    assert run("race", "--help") == 0
    assert "--timing_rounds" in capsys.readouterr().out


def test_show_gives_paper_equations_and_evidence(capsys):
    assert run("show", "lion") == 0
    out = capsys.readouterr().out
    assert all(
        text in out for text in ("2302.06675", "sign(c_t)", "adaptive/lion", "tests/papers/test_lion.py", "Args:")
    )
    assert run("show", "gk.lion") == 0


def test_show_says_what_a_method_needs_and_how_it_races(capsys):
    assert main(["gradkit", "show", "vr_lars"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "grad_moments: gk.gradients.GradientMoments over 2 or more parts" in text
    assert "vr_lars: rates around 0.5, 10 times less to more; warm-up and cosine; trust_coefficient=0.02" in text
    assert main(["gradkit", "show", "scale_by_muon"]) == 0
    assert main(["gradkit", "show", "sania"]) == 0
    assert "constant" in capsys.readouterr().out


def test_describe_prints_roles_and_the_method(capsys):
    assert run("describe", "--workload=bytelm", "--method=lamb", "--learning_rate=0.5") == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    # name, shape, role, stack, method, rate, decay, bytes: two moments of 2 x 64 x 256 float32.
    assert lines["ScanBlock_0/up/kernel"] == [
        "ScanBlock_0/up/kernel", "2x64x256", "matrix", "0", "lamb", "0.5", "0", "262,144",
    ]  # fmt: skip


def test_train_writes_json_lines_and_says_how_it_ended(capsys, tmp_path):
    file = tmp_path / "metrics.jsonl"
    arguments = ("train", "--workload=heavytail", "--method=clipped_sgd", "--steps=60", f"--metrics_file={file}")
    assert run(*arguments) == 0
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["step"] for record in records] == [20, 40, 60]
    assert all({"loss", "metric", "seconds", "learning_rate"} <= set(record) for record in records)
    assert "relative excess risk" in capsys.readouterr().out
    assert run(*arguments) == 2  # the file is there now
    assert len(file.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rase"], "did you mean 'race'"),
        (["race", "--metods=lion"], "Did you mean: methods"),
        (["race", "--methods=lyon"], "did you mean 'lion'"),
        (["race", "--workloads=bytlem"], "did you mean 'bytelm'"),
        (["race", "--seeds=many"], "--seeds=many"),
        (["race", "--rates=1"], "rates must be an integer >= 2"),
        (["race", "lion"], "unexpected argument 'lion'"),
        ([*TINY, "--eval_every=7"], "no command is called"),
        (["race", *TINY, "--eval_every=7"], "steps must be a multiple of eval_every, got 20 and 7"),
        (["train", "--learning_rate=-1"], r"learning_rate must be in (0, inf)"),
        (["train", "--metrics_file=nowhere/at/all.jsonl"], "--metrics_file=nowhere/at/all.jsonl cannot be written"),
        (["show", "lyon"], "did you mean lion"),
        (["show"], "show takes the name of a method first"),
        (["list", "--form=optimiser"], "did you mean 'optimizer'"),
        (["race", *TINY, "--out=a_file"], "--out=a_file is a file"),
        (["race", *TINY, "--out=full"], "--out=full holds files that no race wrote (thesis.tex"),
        (["race", *TINY, "--out=full", "--overwrite"], "--out=full holds files that no race wrote (thesis.tex"),
        (["race", *TINY, "--out=raced"], "--out=raced holds an earlier report; add --overwrite"),
        (["race", *TINY, "--out=a_file/below"], "--out=a_file/below cannot be made"),
    ],
)
def test_a_bad_command_line_is_refused_in_one_line_and_writes_nothing(
    capsys, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    for name in ("a_file", "full/thesis.tex", "raced/report.html"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    before = {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("gradkit: ")
    assert message in captured.err
    assert before == {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_leave_to_write_is_refused(capsys, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    assert run("race", *TINY, f"--out={folder}") == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_a_race_leaves_a_report_and_a_second_one_gets_its_own_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("race", *TINY, "--timing_rounds=1") == 0
    folder = tmp_path / "race" / "001"
    out = capsys.readouterr().out
    assert "lion" in out and "sgd" in out and "report.html" in out
    page = (folder / "report.html").read_text()
    assert all(name in page for name in ("lion", "sgd", "heavytail", "gradkit race --workloads=heavytail"))
    assert (folder / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    results = json.loads((folder / "results.json").read_text(), parse_constant=refuse)
    assert [row["method"] for row in results["results"]] == ["lion", "sgd"]

    assert run("race", *TINY, "--timing_rounds=1", "--methods=sgd") == 0
    assert (tmp_path / "race" / "002" / "report.html").exists()
    assert "lion" in (folder / "report.html").read_text()
    assert run("race", *TINY, "--timing_rounds=1", "--methods=sgd", f"--out={folder}", "--overwrite") == 0
    assert 'data-key="lion"' not in (folder / "report.html").read_text()
