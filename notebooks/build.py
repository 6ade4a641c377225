"""Builds the notebooks: src/NAME.py -> NAME.ipynb, with the outputs of all cells.

    make notebooks                             all of them
    make notebooks NAMES="05_race 07_curvature"

A source is a Python file whose cells begin with `# %%`, or with `# %% [markdown]` where they are text. Its first cell
is text: a title and a paragraph. The badge and the cell that installs gradkit are added here; both need the address of
the repository, which is `Repository` under `project.urls` in `pyproject.toml`. Without one, or with one that is not on
GitHub, there is no badge.
"""

import base64
import json
import os
import re
import sys
import time
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LARGEST_PICTURE = 100_000  # bytes
SECONDS = 300  # that a notebook may take
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
INSTALLED = """\
import importlib.util

if importlib.util.find_spec("gradkit") is None:
    raise ImportError("gradkit is not installed: run `pip install '.[race]'` in a copy of its repository")"""
INSTALL = """\
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("gradkit") is None:
    source = "gradkit[race] @ git+{repository}"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", source], check=True)"""
COLAB = "https://colab.research.google.com/github/{path}/blob/main/notebooks/{name}.ipynb"


class Cell(NamedTuple):
    """A cell: "markdown" or "code", its text, and tags that the site reads."""

    kind: str
    text: str
    tags: tuple[str, ...] = ()


def names() -> list[str]:
    """The notebooks, in their order."""
    return sorted(file.stem for file in (HERE / "src").glob("*.py"))


def repository() -> str | None:
    """The address of the repository, None where it has none yet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository")


def split(source: str) -> list[Cell]:
    """The cells of a source.

    >>> split('# %% [markdown]\\n# # A title\\n#\\n# Text.\\n\\n# %%\\nx = 1\\n')
    [Cell(kind='markdown', text='# A title\\n\\nText.', tags=()), Cell(kind='code', text='x = 1', tags=())]
    """
    before, *parts = re.split(r"^# %%(.*)\n", source, flags=re.MULTILINE)
    if before.strip():
        raise ValueError(f"a source must begin with `# %%`, got {before.strip().splitlines()[0]!r} before it")
    cells = []
    for mark, text in zip(parts[::2], parts[1::2], strict=True):
        kind = mark.strip() or "[code]"
        if kind not in ("[code]", "[markdown]"):
            raise ValueError(f"a cell must begin with `# %%` or `# %% [markdown]`, got `# %%{mark}`")
        if kind == "[markdown]":
            text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in text.strip().splitlines())
        cells.append(Cell(kind.strip("[]"), text.strip("\n")))
    return cells


def cells(name: str, address: str | None) -> list[Cell]:
    """The cells of a notebook: those of its source, with the badge in the first and a second that installs gradkit.

    Args:
      name: of the notebook.
      address: of the repository, None without one.
    """
    first, *others = split((HERE / "src" / f"{name}.py").read_text(encoding="utf-8"))
    address = None if address is None else address.removesuffix("/").removesuffix(".git")
    text = first.text
    if address is not None and (found := re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", address)):
        title, rest = text.split("\n", 1)
        link = COLAB.format(path=found[1], name=name)
        text = f"{title}\n\n[![Open in Colab](colab.svg)]({link})\n{rest}"
    install = INSTALLED if address is None else INSTALL.format(repository=address)
    return [first._replace(text=text), Cell("code", install, ("remove-cell",)), *others]


def unexecuted(name: str, address: str | None) -> dict[str, Any]:
    """A notebook as its file has it, without outputs."""

    def made(i: int, cell: Cell) -> dict[str, Any]:
        metadata = {"tags": list(cell.tags)} if cell.tags else {}
        one = {"cell_type": cell.kind, "id": f"cell-{i}", "metadata": metadata, "source": cell.text}
        return one | ({"execution_count": None, "outputs": []} if cell.kind == "code" else {})

    own = [made(i, cell) for i, cell in enumerate(cells(name, address))]
    return {"cells": own, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def execute(name: str, address: str | None) -> dict[str, Any]:
    """A notebook with the outputs of all cells, from a kernel of its own that imports gradkit from this repository."""
    import nbformat
    from nbclient import NotebookClient

    made = nbformat.from_dict(unexecuted(name, address))
    resources = {"metadata": {"path": str(HERE)}}
    # What the kernel says of its sockets is for servers.
    quiet = {"extra_arguments": ["--IPKernelApp.log_level=ERROR"], "record_timing": False}
    client = NotebookClient(made, timeout=SECONDS, kernel_name="python3", resources=resources, **quiet)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    client.execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))})
    return tidied(json.loads(nbformat.writes(made)))


def tidied(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook without what was shown only for a while."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            shown = [(output, output.get("data", {})) for output in cell["outputs"]]
            cell["outputs"] = [o for o, data in shown if "".join(data.get("text/html", "something")).strip()]
    return {**notebook, "metadata": METADATA}


def check(name: str, notebook: dict[str, Any]) -> None:
    """Looks for what others would wonder about.

    Raises:
      ValueError: a warning, a picture that is too large, or a place in memory or on this machine among the outputs.
    """
    for output in [output for cell in notebook["cells"] for output in cell.get("outputs", [])]:
        text = json.dumps(output)
        picture = base64.b64decode("".join(output.get("data", {}).get("image/png", "")))
        if output.get("name") == "stderr" or re.search(r"\b0x[0-9a-f]{8,}", text) or str(ROOT) in text:
            raise ValueError(f"{name}: an output that others would wonder about: {text[:500]}")
        if len(picture) > LARGEST_PICTURE:
            raise ValueError(
                f"{name}: a picture has {len(picture):,} bytes, more than {LARGEST_PICTURE:,}; make it smaller"
            )


def main(chosen: list[str]) -> None:
    address = repository()
    if address is None:
        print("pyproject.toml has no project.urls.Repository: no badges, and gradkit must be installed by hand")
    if unknown := set(chosen) - set(names()):
        raise SystemExit(f"there is no notebooks/src/{unknown.pop()}.py; there are {', '.join(names())}")
    for name in chosen or names():
        began = time.perf_counter()
        notebook = execute(name, address)
        file = HERE / f"{name}.ipynb"
        file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{file.name}: {time.perf_counter() - began:.0f} s, {file.stat().st_size:,} bytes", flush=True)
        check(name, notebook)


if __name__ == "__main__":
    main(sys.argv[1:])
