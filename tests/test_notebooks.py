"""Every chapter: its form, and that it runs alone from an empty directory."""

from __future__ import annotations

import ast
import re
from pathlib import Path
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
    assert any(re.search(r"^## Exercises$", cell.source, re.MULTILINE) for cell in notebook.cells)


@each_chapter
def test_each_parameter_says_its_type_and_meaning(path: Path) -> None:
    parameters = code_cells(nbformat.read(path, as_version=4))[1].source
    names = {}
    for line in parameters.splitlines():
        name, kind, meaning = re.fullmatch(r"(\w+) = .*\S  # (\w+): (.+)", line).groups()  # type: ignore[union-attr]
        value = ast.literal_eval(line.split(" = ", 1)[1])
        assert type(value).__name__ == kind, line
        assert len(meaning) > 10, line
        names[name] = value
    assert names["profile"] == "quick"


@pytest.mark.notebook
@each_chapter
def test_runs_alone(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPGM_STATIC_SITE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    empty = tmp_path / "empty"
    empty.mkdir()
    papermill.execute_notebook(
        path, tmp_path / "out.ipynb", {"profile": "smoke"}, cwd=empty, kernel_name="python3", progress_bar=False
    )
    for cell in code_cells(nbformat.read(tmp_path / "out.ipynb", as_version=4)):
        warned = [output.text for output in cell.outputs if output.get("name") == "stderr"]
        assert not warned, warned
