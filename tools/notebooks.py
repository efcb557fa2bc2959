"""Keep the chapters in one form, and the repository's address in one place.

    python tools/notebooks.py sync    # rewrite what differs
    python tools/notebooks.py check   # name what differs, exit 1 if anything does

The address stands in `_config.yml`; from there it goes into each notebook's Colab cell, the README's links and
CITATION.cff.
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
METADATA = {
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    "language_info": {"name": "python"},
}
README_BLOCK = re.compile(r"(<!-- written by tools/notebooks.py: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def repository(root: Path = ROOT) -> tuple[str, str]:
    """Address and branch of the repository."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf8"))["repository"]
    return config["url"].rstrip("/"), config["branch"]


def colab_cell(url: str) -> str:
    return (
        "# in Colab, or wherever the package is missing, install it (written by tools/notebooks.py)\n"
        "from importlib.util import find_spec\n"
        "\n"
        'if find_spec("tpgm") is None:\n'
        f'    %pip install -q "tpgm[notebooks] @ git+{url}"\n'
        "\n"
        "import sys\n"
        "\n"
        'if "google.colab" in sys.modules:\n'
        "    from tpgm.book.notebook import hardware\n"
        "\n"
        "    print(hardware())"
    )


def typed(source: str) -> str:
    """A cell of parameters with ``name = value  # type: meaning`` rewritten as ``name: type = value  # meaning``,
    which papermill's help understands."""
    kinds = "str|int|float|bool|list|dict"
    return re.sub(rf"^(\w+) = (.*?)  # ({kinds}): ", r"\1: \3 = \2  # ", source, flags=re.MULTILINE)


def colab_link(url: str, branch: str, path: str) -> str:
    return f"https://colab.research.google.com/github/{'/'.join(url.split('/')[-2:])}/blob/{branch}/{path}"


def normalised(notebook: Any, url: str) -> Any:
    """A copy without outputs and with the generated Colab cell; ids and everything else stay."""
    notebook = copy.deepcopy(notebook)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict(METADATA)
    colab = next((cell for cell in notebook.cells if "colab" in cell.metadata.get("tags", [])), None)
    if colab is None:
        colab = nbformat.v4.new_code_cell(id="colab")
        notebook.cells.insert(1, colab)
    colab.source, colab.metadata = colab_cell(url), nbformat.from_dict({"tags": ["remove-cell", "colab"]})
    for number, cell in enumerate(notebook.cells):
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = typed(cell.source)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        cell.setdefault("id", f"cell-{number}")
    return notebook


def title(notebook: Any) -> str:
    """The first heading."""
    return re.search(r"^# (.+)$", notebook.cells[0].source, re.MULTILINE).group(1).strip()


def readme_blocks(url: str, branch: str, chapters: dict[str, str]) -> dict[str, str]:
    """The README's generated blocks by name. chapters: title by path."""
    workflows = {name: f"{url}/actions/workflows/{name}.yml" for name in ("test", "book")}
    colab = {path: colab_link(url, branch, path) for path in chapters}
    return {
        "badges": " ".join(f"[![{name}]({page}/badge.svg)]({page})" for name, page in workflows.items()),
        "clone": f"```bash\ngit clone {url}\ncd {url.split('/')[-1]}\nmake book\nmake test\n```",
        "chapters": "\n".join(f"- [{name}]({path}) ([Colab]({colab[path]}))" for path, name in chapters.items()),
    }


def wanted(root: Path = ROOT) -> dict[Path, str]:
    """Every generated or normalised file and the text it should have."""
    url, branch = repository(root)
    files, chapters = {}, {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = nbformat.reads(path.read_text(encoding="utf8"), as_version=4)
        files[path] = nbformat.writes(normalised(notebook, url)) + "\n"
        chapters[path.relative_to(root).as_posix()] = title(notebook)
    readme = root / "README.md"
    blocks = readme_blocks(url, branch, chapters)
    files[readme] = README_BLOCK.sub(
        lambda found: f"{found[1]}{blocks[found[2]]}\n{found[3]}", readme.read_text(encoding="utf8")
    )
    citation = root / "CITATION.cff"
    files[citation] = re.sub(
        r"^repository-code:.*$", f"repository-code: {url}", citation.read_text(encoding="utf8"), flags=re.MULTILINE
    )
    return files


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("sync", "check"))
    action = parser.parse_args(arguments).action
    stale = {path: text for path, text in wanted().items() if path.read_text(encoding="utf8") != text}
    for path, text in stale.items():
        if action == "sync":
            path.write_text(text, encoding="utf8")
        print(f"{'rewritten' if action == 'sync' else 'out of step'}: {path.relative_to(ROOT)}")
    if stale and action == "check":
        print("mend with: python tools/notebooks.py sync")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
