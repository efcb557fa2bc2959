"""The build of the book on a book of two pages: what fails is named, what is good is kept and not run again."""

from __future__ import annotations

import base64
import io
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def write_chapter(path: Path, code: str) -> None:
    cells = [
        nbformat.v4.new_markdown_cell(f"# {path.stem}"),
        nbformat.v4.new_code_cell('profile = "quick"', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


def write_toc(root: Path, *chapters: str) -> None:
    files = "".join(f"\n      - file: notebooks/{name}" for name in chapters)
    head = "format: jb-book\nroot: book/index\nparts:\n  - caption: All\n    chapters:"
    (root / "_toc.yml").write_text(f"{head}{files}\n")


def build(root: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    return subprocess.run(
        [sys.executable, "tools/build_book.py", "--profile", "smoke"],
        cwd=root, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for folder in ("notebooks", "tools", "tpgm"):
        (tmp_path / folder).mkdir()
    for folder in ("_ext", "_static"):
        shutil.copytree(ROOT / "book" / folder, tmp_path / "book" / folder)
    shutil.copy(ROOT / "book" / "references.bib", tmp_path / "book")
    shutil.copy(ROOT / "_config.yml", tmp_path)
    shutil.copy(ROOT / "tools" / "build_book.py", tmp_path / "tools")
    (tmp_path / "book" / "index.md").write_text("# Small\n")
    write_chapter(tmp_path / "notebooks" / "good.ipynb", "import os\nprint(profile, os.listdir())")
    write_chapter(tmp_path / "notebooks" / "bad.ipynb", 'raise ValueError("the theorem fails")')
    write_toc(tmp_path, "good", "bad")
    return tmp_path


def test_failures_are_named_and_good_chapters_kept(small: Path) -> None:
    first = build(small)
    assert first.returncode == 1
    assert "ValueError: the theorem fails" in first.stderr
    assert "not built: bad.ipynb failed" in first.stderr
    executed = small / "_build" / "executed"
    assert {path.name for path in executed.glob("*.ipynb")} == {"good.ipynb", "bad.part.failed.ipynb"}
    assert not (small / "_build" / "html").exists()

    write_toc(small, "good")
    second = build(small)
    assert second.returncode == 0, second.stderr
    assert "1 of 1 chapters are up to date" in second.stdout
    page = small / "_build" / "html" / "index.html"
    assert second.stdout.rstrip().endswith(f"The book: {page}")
    assert page.is_file()
    assert "smoke []" in (small / "_build" / "html" / "notebooks" / "good.html").read_text(), "profile, empty directory"
    assert (page.parent / "_static" / "mathjax" / "tex-mml-chtml.js").is_file()

    write_chapter(small / "notebooks" / "good.ipynb", "print(6 * 7)")
    third = build(small)
    assert third.returncode == 0, third.stderr
    assert "up to date" not in third.stdout.split("Running Jupyter-Book")[0]
    assert ">42\n<" in (small / "_build" / "html" / "notebooks" / "good.html").read_text()


def test_a_formula_keeps_its_bracket_and_its_comma() -> None:
    space = runpy.run_path(str(ROOT / "book" / "_ext" / "accessible.py"))
    formula = r'<span class="math notranslate nohighlight">\(f(x)\)</span>'
    page = f"<p>If ({formula}, then {formula} or {formula}) <b>{formula}</b>.</p>"
    kept = '<span class="unbroken">'
    expected = f"<p>If {kept}({formula},</span> then {formula} or {kept}{formula})</span> <b>{formula}</b>.</p>"
    assert space["unbroken"](page) == expected


def test_a_chapters_figures_are_vector_graphics(small: Path) -> None:
    write_chapter(small / "notebooks" / "good.ipynb", "import matplotlib.pyplot as plt\nplt.plot([0, 1]);")
    write_toc(small, "good")
    done = build(small)
    assert done.returncode == 0, done.stderr
    html = small / "_build" / "html"
    assert [path.suffix for path in (html / "_images").iterdir()] == [".svg"]
    assert re.search(r'<img[^>]*src="\.\./_images/\w+\.svg"', (html / "notebooks" / "good.html").read_text())
    source = html / "_sources" / "notebooks" / "good.ipynb"
    assert source.read_bytes() == (small / "notebooks" / "good.ipynb").read_bytes(), "without outputs"


def test_what_no_page_uses_is_left_out(tmp_path: Path) -> None:
    icons = 'var i={"moon":[384,512,[9214],"f186","M2z"],sun:[5,5,[],"f185","M3"],"magnifying-glass":[5,5,[1,"search"],'
    files = {
        "index.html": '<i class="fa-solid fa-moon"></i><i class="fas fa-search"></i>',
        "_static/scripts/fontawesome.js": f'{icons}"f002","M4"],"zebra":[1,1,[],"f1",["M5","M6"]]}};',
        "_static/scripts/fontawesome.js.map": "{}",
        "_static/locales/de/words.json": "{}",
        "_static/vendor/font.ttf": "",
        "_static/vendor/font.woff2": "",
        "_static/mathjax/sre/mathmaps/en.json": "{}",
        "_static/mathjax/sre/mathmaps/hi.json": "{}",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    runpy.run_path(str(ROOT / "tools" / "build_book.py"))["finish"](tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    unused = {"_static/scripts/fontawesome.js.map", "_static/locales/de/words.json", "_static/vendor/font.ttf"}
    assert left == set(files) - unused - {"_static/mathjax/sre/mathmaps/hi.json"}
    script = (tmp_path / "_static" / "scripts" / "fontawesome.js").read_text()
    assert re.findall(r'"M\d', script) == ['"M2', '"M4'], "moon, and search by its other name"
    assert '"sun":[1,1,[],"f000",""]' in script


def test_pictures_inside_figures_have_a_palette(tmp_path: Path) -> None:
    """Matplotlib's four bytes a pixel become one; what is see-through stays as it is."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 4), dtype=np.uint8)
    (tmp_path / "_images").mkdir()
    finish = runpy.run_path(str(ROOT / "tools" / "build_book.py"))["finish"]

    def drawn(alpha: np.ndarray | int) -> tuple[int, Image.Image, bytes]:
        picture, file, path = pixels.copy(), io.BytesIO(), tmp_path / "_images" / "figure.svg"
        picture[..., 3] = alpha
        Image.fromarray(picture).save(file, "png")
        before = base64.b64encode(file.getvalue()).decode()
        path.write_text(f'<svg><image xlink:href="data:image/png;base64,\n{before}" id="a"/></svg>')
        finish(tmp_path)
        found = re.fullmatch(
            r'<svg><image xlink:href="data:image/png;base64,\s*([^"]+)" id="a"/></svg>', path.read_text()
        )
        assert found is not None
        content = base64.b64decode(found[1])
        return len(content), Image.open(io.BytesIO(content)), file.getvalue()

    size, picture, before = drawn(255)
    assert picture.mode == "P"
    assert size < len(before) / 2
    near = np.abs(np.asarray(picture.convert("RGB"), dtype=int) - pixels[..., :3])
    assert near.mean() < 12, "256 colours of noise, the hardest case"
    assert drawn(pixels[..., 3])[1].mode == "RGBA"
