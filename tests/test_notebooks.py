"""Every chapter: its form, and that it runs alone from an empty directory."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import papermill
import pytest

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: Any) -> list[str]:
    return cell.metadata.get("tags", [])


def test_there_are_chapters() -> None:
    assert CHAPTERS


@each_chapter
def test_form(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    colab, parameters, *_ = code_cells(notebook)
    assert tags(colab) == ["remove-cell", "colab"]
    assert tags(parameters) == ["parameters"]
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids))
    wanted = r"^## Exercise \d" if path.stem.startswith("solutions_") else r"^## Exercises$"
    assert any(re.search(wanted, cell.source, re.MULTILINE) for cell in notebook.cells)


@each_chapter
def test_each_parameter_says_its_type_and_meaning(path: Path) -> None:
    parameters = code_cells(nbformat.read(path, as_version=4))[1].source
    names = {}
    for line in parameters.splitlines():
        name, kind, meaning = re.fullmatch(r"(\w+): (\w+) = .*\S  # (.+)", line).groups()  # type: ignore[union-attr]
        value = ast.literal_eval(line.split(" = ", 1)[1])
        assert type(value).__name__ == kind, line
        assert len(meaning) > 10, line
        names[name] = value
    assert names["profile"] == "quick"


@each_chapter
def test_papermill_reads_the_same_parameters(path: Path) -> None:
    """So that ``papermill --help-notebook`` tells names, types, defaults and meanings."""
    lines = code_cells(nbformat.read(path, as_version=4))[1].source.splitlines()
    for line, (name, found) in zip(lines, papermill.inspect_notebook(path).items(), strict=True):
        assert line == f"{name}: {found['inferred_type_name']} = {found['default']}  # {found['help']}"


def test_the_first_cell_speaks_in_colab_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = code_cells(nbformat.read(CHAPTERS[0], as_version=4))[0].source.replace("%pip", "raise SystemExit  # ")
    exec(cell, {})
    assert capsys.readouterr().out == ""
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    exec(cell, {})
    assert "GPU" in capsys.readouterr().out


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the built wheel in it. What the package needs is borrowed from the present
    environment, whose own copy of the package, installed for editing, stays out."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT], check=True)
    venv.create(folder / "env", with_pip=False)
    interpreter = folder / "env" / "bin" / "python"
    wheel = next(folder.glob("tpgm-*.whl"))
    subprocess.run([*pip, "--python", interpreter, "install", "--no-deps", "--no-index", wheel], check=True)
    own = subprocess.run(
        [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    # a path in a .pth file comes after the environment's own, and the .pth files found there are not read
    (Path(own) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


@pytest.mark.notebook
@each_chapter
def test_runs_alone_with_only_the_wheel(path: Path, installed: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "TPGM_STATIC_SITE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore:IProgress not found",
    }

    def call(*arguments: str) -> str:
        done = subprocess.run([installed, *arguments], cwd=empty, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = Path(call("-c", "import tpgm; print(tpgm.__file__)").strip())
    assert where.is_relative_to(installed.parent.parent)
    assert not list(empty.iterdir())
    out = tmp_path / "out.ipynb"
    call("-m", "tpgm.cli", "run", path.stem, "-p", "profile", "smoke", "--out", str(out), "--quiet")
    for cell in code_cells(nbformat.read(out, as_version=4)):
        warned = [output.text for output in cell.outputs if output.get("name") == "stderr"]
        assert not warned, warned
