"""The package as a user gets it: what its import brings along; that it builds, and that it runs in a fresh one."""

import csv
import io
import json
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What only some commands and checkpoints need; and what tests need.
HEAVY = ("chex", "hypothesis", "kfac_jax", "matplotlib", "orbax", "pandas", "pytest", "rich", "sklearn", "sphinx")
HEAVY = (*HEAVY, "tensorboardX", "tensorflow", "torch", "tqdm", "pydoc_data")


@pytest.mark.slow
def test_importing_gradkit_imports_nothing_heavy_and_no_data() -> None:
    """Seconds depend on the machine, modules do not. What JAX, Flax and optax import by themselves is not ours."""
    code = (
        "import json, sys, jax, flax.linen, flax.nnx, optax, absl.flags\n"
        "before = set(sys.modules)\nimport gradkit, gradkit.cli\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert set(json.loads(found.stdout)) & set(HEAVY) == set()


def test_the_citation_and_the_changelog_are_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {PROJECT['version']}\n" in citation and f"\nlicense: {PROJECT['license']}\n" in citation
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_extra_says_what_it_brings() -> None:
    text = (ROOT / "docs/guides/install.md").read_text()
    extras = PROJECT["optional-dependencies"].keys()
    assert [extra for extra in extras if f"| `{extra}` |" not in text] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and source distribution, made by the backend without a network."""
    pytest.importorskip("hatchling", reason="the backend that builds the package; the extra gradkit[test] brings it")
    folder = tmp_path_factory.mktemp("dist")
    code = (
        "import sys\nfrom hatchling import build\n"
        "print(build.build_wheel(sys.argv[1]), build.build_sdist(sys.argv[1]), sep='\\n')"
    )
    command = [sys.executable, "-c", code, str(folder)]
    names = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    wheel, source = (folder / name for name in names[-2:])
    return wheel, source


@pytest.mark.slow
def test_the_wheel_has_the_package_and_the_source_all_that_a_release_is_made_of(built: tuple[Path, Path]) -> None:
    wheel, source = built
    own = {str(file.relative_to(ROOT)) for file in (ROOT / "gradkit").rglob("*.py")} | {"gradkit/py.typed"}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        listed = {row[0] for row in csv.reader(io.StringIO(archive.read(record).decode()))}
    assert listed == names
    assert {name for name in names if ".dist-info/" not in name} == own
    assert any(name.endswith("licenses/LICENSE") for name in names)
    top = f"gradkit-{PROJECT['version']}/"
    with tarfile.open(source) as archive:
        files = {name.removeprefix(top) for name in archive.getnames()}
    wanted = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "Makefile", "pyproject.toml"}
    wanted |= {"tests/conftest.py", "docs/conf.py", "experiments/leaderboard.py", "docs/guides/install.md"}
    assert (own | wanted) - files == set()
    assert [name for name in files if "__pycache__" in name or name.startswith((".venv", "build/", "dist/"))] == []


@pytest.mark.slow
def test_the_wheel_installs_and_runs_in_an_environment_of_its_own(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Dependencies are those of this environment, by a line in a .pth file, which makes no editable package visible."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = str(tmp_path / "env" / "bin" / "python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*install, "--disable-pip-version-check", str(built[0])], check=True)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    command = tmp_path / "env" / "bin" / "gradkit"
    assert command.read_text().startswith(f"#!{python}\n")
    code = (
        "import runpy, sys, gradkit\nprint(gradkit.__file__)\n"
        "sys.argv = [sys.argv[1], '--version']\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    )
    found = subprocess.run(
        [python, "-c", code, str(command)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert found.returncode == 0, found.stderr
    where, version = found.stdout.splitlines()
    assert Path(where) == site / "gradkit" / "__init__.py"
    assert version.startswith(f"gradkit {PROJECT['version']} (jax ")
