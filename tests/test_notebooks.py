"""The notebooks: their cells are those of the sources, they were executed in order, and they run.

They run in this process and without a kernel, cell by cell, on fewer steps: programs, shapes of parameters and whatever
a cell ends with are the same. `make notebooks` executes them in full.
"""

import ast
import base64
import doctest
import importlib.util
import json
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"


def _build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_notebooks", FOLDER / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _build()
NAMES = build.names()

# What is assigned to a name in a notebook, so that it runs in a few seconds.
SMALLER: dict[str, dict[str, str]] = {
    "01_first_steps": {"STEPS": "40"},
    "02_muon_transformer": {"STEPS": "20"},
    "03_large_batches": {"STEPS": "30", "SIZES": "[128, 1024]", "RATES": "np.array([0.08, 0.16, 0.32])", "SEEDS": "1"},
    "04_mesh": {"STEPS": "3", "REPEATS": "1", "AXES": '["fsdp"]'},
    "05_race": {"STEPS": "120", "RATES, SEEDS": "2, 1"},
    "06_own_method": {"RATES, SEEDS, STEPS": "2, 1, 40"},
    "07_curvature": {"EVERY, READINGS": "2, 8", "PROBES, LANCZOS_STEPS": "1, 8"},
    "08_many_tasks": {"STEPS": "20"},
    "09_diloco": {"REPLICAS, STEPS, ROUND": "4, 40, 20"},
}


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def test_every_source_has_its_notebook() -> None:
    assert [file.stem for file in sorted(FOLDER.glob("*.ipynb"))] == NAMES == list(SMALLER)
    assert len(NAMES) == 9


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_the_cells_of_its_source(name: str) -> None:
    """`make notebooks NAMES=…` after a change of a source."""
    made = [(cell["cell_type"], "".join(cell["source"])) for cell in load(name)["cells"]]
    assert made == [(cell.kind, cell.text) for cell in build.cells(name, build.repository())]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_was_executed_in_order_without_a_warning(name: str) -> None:
    code = [cell for cell in load(name)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs and not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)
    build.check(name, load(name))  # and no picture is too large
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 500_000


@pytest.mark.parametrize("name", NAMES)
def test_links_between_notebooks_have_a_target(name: str) -> None:
    text = "\n".join(cell.text for cell in build.cells(name, None) if cell.kind == "markdown")
    assert all((FOLDER / target).exists() for target in re.findall(r"\]\((?!https:)([^)]+)\)", text))


def test_the_address_of_the_repository_makes_the_badge_and_the_installation() -> None:
    for address in ("https://github.com/someone/gradkit", "https://github.com/someone/gradkit.git"):
        text, install, *rest = build.cells("05_race", address)
        badge = "[![Open in Colab](colab.svg)](https://colab.research.google.com/github/someone/gradkit/blob/main/"
        assert text.text.splitlines()[2] == f"{badge}notebooks/05_race.ipynb)"
        assert "git+https://github.com/someone/gradkit" in install.text and (FOLDER / "colab.svg").exists()
        compile(install.text, "install", "exec")
    without = build.cells("05_race", None)
    assert without[2:] == rest and "badge" not in without[0].text and "colab" not in without[0].text
    assert "pip install" in without[1].text
    elsewhere = build.cells("05_race", "https://example.org/gradkit")
    assert "colab" not in elsewhere[0].text and "git+https://example.org/gradkit" in elsewhere[1].text


def test_what_others_would_wonder_about_is_no_output() -> None:
    def notebook(*outputs: dict[str, Any]) -> dict[str, Any]:
        return {"cells": [{"cell_type": "code", "outputs": list(outputs)}, {"cell_type": "markdown"}]}

    shown = {"output_type": "display_data", "data": {"text/html": "<p>1</p>"}}
    gone = {
        "output_type": "display_data",
        "data": {"text/html": "", "text/plain": "<IPython.core.display.HTML object>"},
    }
    assert build.tidied(notebook(shown, gone))["cells"][0]["outputs"] == [shown]
    large = {
        "output_type": "display_data",
        "data": {"image/png": base64.b64encode(bytes(build.LARGEST_PICTURE + 1)).decode()},
    }
    warned = {"output_type": "stream", "name": "stderr", "text": "careful"}
    placed = {"output_type": "stream", "name": "stdout", "text": "<function f at 0x7f0123456789>"}
    here = {"output_type": "stream", "name": "stdout", "text": str(ROOT / "gradkit")}
    for output in (large, warned, placed, here):
        with pytest.raises(ValueError, match=r"^a: "):
            build.check("a", notebook(output))


def test_the_example_of_the_builder_runs() -> None:
    assert doctest.testmod(build) == (0, 1)


def test_a_source_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="must begin with"):
        build.split("import jax\n# %%\n")
    with pytest.raises(ValueError, match=r"got `# %% \[raw\]`"):
        build.split("# %% [raw]\n# text\n")


@pytest.fixture
def as_a_reader_has_it(monkeypatch: pytest.MonkeyPatch) -> Any:
    """JAX's own settings, pictures that are drawn and closed, and the compilation of tests."""
    from matplotlib import pyplot as plt

    plain = jax.config.update

    def update(name: str, value: Any) -> None:
        # This process has eight devices already, which are enough for every notebook.
        if name == "jax_num_cpu_devices":
            assert value <= jax.device_count()
        else:
            plain(name, value)

    monkeypatch.setattr(jax.config, "update", update)
    with (
        plt.rc_context(),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        warnings.catch_warnings(),
    ):
        # `plt.show()` of a backend that only draws into files.
        warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
        yield
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
        plt.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("as_a_reader_has_it")
def test_a_notebook_runs(name: str) -> None:
    spaces: dict[str, Any] = {"__name__": name}
    changes = dict(SMALLER[name])
    for i, cell in enumerate(build.cells(name, build.repository())):
        if cell.kind != "code":
            continue
        tree = ast.parse(cell.text, f"{name}, cell {i}")
        for statement in tree.body:
            if (
                isinstance(statement, ast.Assign)
                and (target := ast.unparse(statement.targets[0]).strip("()")) in changes
            ):
                statement.value = ast.parse(changes.pop(target), mode="eval").body
        ends = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        ast.fix_missing_locations(tree)
        exec(compile(tree, f"{name}, cell {i}", "exec"), spaces)
        if ends is not None:
            value = eval(compile(ast.Expression(ends.value), f"{name}, cell {i}", "eval"), spaces)
            assert value is None or value._repr_html_().startswith("<"), value
    assert not changes
