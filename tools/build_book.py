"""Build the book: run every chapter, gather the sources, render HTML at `_build/html/index.html`.

Chapters run through papermill, each alone in an empty directory, two at a time. A chapter whose text, parameters,
package sources and package versions are those of its last good run is not run again.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import mathjax
import nbformat
import plotly
import yaml
from PIL import Image
from tqdm.auto import tqdm

from tpgm.book.sweep.notebooks import run_notebook

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
EXECUTED = BUILD / "executed"
SOURCE = BUILD / "source"
PROCESSES = 2
# what a chapter's outputs depend on besides this repository
PACKAGES = ("torch", "numpy", "scipy", "matplotlib", "plotly", "papermill", "ipykernel")


def fingerprint(notebook: Path, parameters: dict[str, Any]) -> str:
    """Changes when a run of the notebook could give something else."""
    digest = hashlib.sha256()
    digest.update(json.dumps([parameters, sys.version, [importlib.metadata.version(p) for p in PACKAGES]]).encode())
    rows = sorted((ROOT / "results").glob("*.jsonl"))
    for path in [notebook, Path(__file__), *sorted((ROOT / "tpgm").rglob("*.py")), *rows]:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def execute(notebook: Path, parameters: dict[str, Any], target: Path) -> float:
    """Run one notebook into `target` and return the seconds it took; `target` appears only after a good run."""
    beside = target.with_suffix(".part.ipynb")
    seconds = run_notebook(notebook, beside, parameters)
    result = nbformat.read(beside, as_version=4)
    for cell in result.cells:
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            cell.metadata["tags"] = [*tags, "remove-cell"]
        cell.metadata.pop("papermill", None)
    result.metadata.pop("papermill", None)
    nbformat.write(result, beside)
    beside.replace(target)
    return seconds


def _vector_figures() -> Path:
    """A folder of IPython settings under which figures are SVG: sharp on every screen, and smaller than PNG."""
    settings = BUILD / "ipython" / "profile_default" / "ipython_kernel_config.py"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text('c.InlineBackend.figure_formats = {"svg"}\n')
    return settings.parents[1]


def execute_all(notebooks: list[Path], parameters: dict[str, Any]) -> list[str]:
    """Run the notebooks that need it; return the names of those that failed, after printing why."""
    EXECUTED.mkdir(parents=True, exist_ok=True)
    keys = {notebook: fingerprint(notebook, parameters) for notebook in notebooks}
    mark = {notebook: EXECUTED / f"{notebook.stem}.sha256" for notebook in notebooks}
    due = [n for n in notebooks if not mark[n].exists() or mark[n].read_text() != keys[n]]
    if len(due) < len(notebooks):
        print(f"{len(notebooks) - len(due)} of {len(notebooks)} chapters are up to date")
    failed = []
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = {}
        for notebook in due:
            mark[notebook].unlink(missing_ok=True)
            jobs[pool.submit(execute, notebook, parameters, EXECUTED / notebook.name)] = notebook
        for job in tqdm(as_completed(jobs), total=len(jobs), desc="chapters", unit="chapter", disable=not jobs):
            notebook = jobs[job]
            try:
                tqdm.write(f"{notebook.name}: {job.result():.0f} s")
                mark[notebook].write_text(keys[notebook])
            except Exception as error:
                failed.append(notebook.name)
                tqdm.write(f"{notebook.name} failed:\n{error}", file=sys.stderr)
    return failed


def place(source: Path, target: Path) -> None:
    """Copy one file unless the same bytes are there: Sphinx then sees only what changed."""
    if not target.exists() or source.read_bytes() != target.read_bytes():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def assets() -> dict[Path, Path]:
    """MathJax and plotly.js by their place under `_assets`, from installed packages."""
    es5 = Path(mathjax.__file__).parent / "static" / "mathjax" / "es5"
    parts = ("tex-mml-chtml.js", "output/chtml", "input/tex", "a11y", "sre", "ui")
    files = [f for part in parts for f in ([es5 / part] if (es5 / part).is_file() else (es5 / part).rglob("*"))]
    found = {Path("mathjax") / f.relative_to(es5): f for f in files if f.is_file()}
    found[Path("plotly.min.js")] = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    return found


def gather(notebooks: list[Path]) -> None:
    """Assemble the tree that Sphinx reads, laid out as the repository is, and drop what no longer belongs."""
    wanted = {SOURCE / name: ROOT / name for name in ("_config.yml", "_toc.yml")}
    for path in (ROOT / "book").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            wanted[SOURCE / path.relative_to(ROOT)] = path
    wanted |= {SOURCE / "notebooks" / n.name: EXECUTED / n.name for n in notebooks}
    wanted |= {SOURCE / "_assets" / name: path for name, path in assets().items()}
    for target, path in wanted.items():
        place(path, target)
    for path in SOURCE.rglob("*"):
        if path.is_file() and path not in wanted and "__pycache__" not in path.parts:
            path.unlink()


# a FontAwesome icon in the theme's script: name, size, other names, code, path
_ICON = re.compile(r'"?([a-z0-9-]+)"?:\[\d+,\d+,\[([^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\]')
# what no page of this book asks for: source maps, fonts for old browsers; and translations of the theme
_UNUSED = ("_static/**/*.map", "_static/vendor/**/*.ttf")
_SPOKEN = ("base.json", "en.json", "nemeth.json")  # of MathJax's speech rules


def finish(html: Path) -> None:
    """Leave out what no page uses, and put the chapters as they are in the repository behind "download source"."""
    for pattern in _UNUSED:
        for path in html.glob(pattern):
            path.unlink()
    shutil.rmtree(html / "_static" / "locales", ignore_errors=True)
    for path in html.glob("_static/mathjax/sre/mathmaps/*.json"):
        if path.name not in _SPOKEN:
            path.unlink()
    pages = [*html.rglob("*.html"), *html.glob("_static/*.js")]
    used = {name for page in pages for name in re.findall(r"\bfa-([a-z0-9-]+)", page.read_text(encoding="utf8"))}
    script = html / "_static" / "scripts" / "fontawesome.js"
    if script.is_file():
        script.write_text(_icons_in(script.read_text(encoding="utf8"), used), encoding="utf8")
    for source in html.glob("_sources/notebooks/*.ipynb"):
        shutil.copyfile(ROOT / "notebooks" / source.name, source)
    for figure in html.glob("_images/*.svg"):
        text = figure.read_text(encoding="utf8")
        if (lighter := _PICTURE.sub(_in_few_colours, text)) != text:
            figure.write_text(lighter, encoding="utf8")


# a picture inside an SVG: matplotlib writes four bytes a pixel
_PICTURE = re.compile(r"(?<=data:image/png;base64,)[A-Za-z0-9+/=\s]+")


def _in_few_colours(found: re.Match[str]) -> str:
    """The picture with a palette of 256 colours, a third of the bytes; as it is if it has one or is see-through."""
    picture = Image.open(io.BytesIO(base64.b64decode(found[0])))
    if picture.mode == "P" or picture.convert("RGBA").getextrema()[3][0] < 255:
        return found[0]
    file = io.BytesIO()
    picture.convert("RGB").quantize(256).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _icons_in(script: str, used: set[str]) -> str:
    """The script with those icons only whose name, or another name of them, is used."""

    def kept(found: re.Match[str]) -> str:
        names = {found[1], *re.findall(r'"([a-z0-9-]+)"', found[2])}
        # an empty drawing in the place of the others: the script's commas stay where they are
        return found[0] if names & used else f'"{found[1]}":[1,1,[],"f000",""]'

    return _ICON.sub(kept, script)


def print_pdf(book: str) -> int:
    """Print the whole book, as one page, to `_build/tpgm.pdf` by a headless browser; needs no TeX. Returns a status."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        print("no PDF: it is printed by chromium or google-chrome, and neither is there", file=sys.stderr)
        return 1
    folder = BUILD / "print"
    to = ["--path-output", str(folder), "--builder", "custom", "--custom-builder", "singlehtml"]
    if code := subprocess.run([book, "build", str(SOURCE), *to], check=False).returncode:
        return code
    pages = folder / "_build" / "singlehtml"
    # its links start from the top folder
    whole = shutil.copyfile(pages / "book" / "index.html", pages / "whole.html")
    target = BUILD / "tpgm.pdf"
    # the time budget is for MathJax: the browser's own clock, which runs fast
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer", "--virtual-time-budget=120000"]
    done = subprocess.run([browser, *options, f"--print-to-pdf={target}", whole.as_uri()], check=False, timeout=1200)
    if done.returncode == 0:
        print(f"\nThe book as a PDF: {target}")
    return done.returncode


def chapters() -> list[Path]:
    """The notebooks that the table of contents names, in its order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf8"))
    chapters = [entry for part in toc["parts"] for entry in part["chapters"]]
    files = [page["file"] for chapter in chapters for page in (chapter, *chapter.get("sections", ()))]
    return [ROOT / f"{name}.ipynb" for name in files if name.startswith("notebooks/")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="quick", choices=("smoke", "quick", "full"), help="size of the runs")
    parser.add_argument("--strict", action="store_true", help="warnings are errors, references are checked")
    parser.add_argument("--pdf", action="store_true", help="also print the book to _build/tpgm.pdf by chromium")
    options = parser.parse_args()
    os.environ["TPGM_STATIC_SITE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # advice to install widgets, which a static page cannot show
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    os.environ["IPYTHONDIR"] = str(_vector_figures())
    notebooks = chapters()
    if failed := execute_all(notebooks, {"profile": options.profile}):
        print(f"\nnot built: {', '.join(sorted(failed))} failed; the other chapters are kept", file=sys.stderr)
        return 1
    gather(notebooks)
    book = str(Path(sys.executable).with_name("jupyter-book"))
    build = [book, "build", str(SOURCE), "--path-output", str(ROOT)]
    if options.strict:
        # Sphinx warns only about pages it reads, so let it read them all
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        build += ["-W", "-n", "--keep-going"]
    code = subprocess.run(build, check=False).returncode
    page = BUILD / "html" / "index.html"
    if code == 0:
        finish(page.parent)
        if options.pdf:
            code = print_pdf(book)
        print(f"\nThe book: {page}")
    return code


if __name__ == "__main__":
    sys.exit(main())
