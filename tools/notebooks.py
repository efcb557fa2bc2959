"""Keep the chapters in one form, and the repository's address in one place.

    python tools/notebooks.py sync    # rewrite what differs
    python tools/notebooks.py check   # name what differs, exit 1 if anything does

The address stands in `_config.yml`; from there it goes into each notebook's Colab cell, the README's links and
CITATION.cff. The figures of `book/promises.md` come from the rows `results/robustness-*.jsonl`.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
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
        "from importlib import invalidate_caches\n"
        "from importlib.util import find_spec\n"
        "\n"
        'if find_spec("tpgm") is None:\n'
        f'    %pip install -q "tpgm[notebooks] @ git+{url}"\n'
        "    invalidate_caches()\n"
        '    if find_spec("tpgm") is None:\n'
        "        raise RuntimeError(\n"
        f'            "tpgm could not be installed from {url}: the lines above say why. "\n'
        '            "Nothing below works without it. Run this cell again, or install a wheel of tpgm first."\n'
        "        )\n"
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


# --- the figures of the page on promises


def _table(head: str, lines: list[list[object]]) -> str:
    width = head.count("|") + 1
    rule = "|---|" + "---:|" * (width - 1)
    return "\n".join([f"| {head} |", rule, *(f"| {' | '.join(map(str, line))} |" for line in lines)])


def _kills(rows: list[dict[str, Any]]) -> str:
    lines: list[list[object]] = []
    places = {
        "training": "training",
        "checkpoint": "writing a checkpoint",
        "store": "writing a stage store",
        "row": "writing results",
        "sweep": "a sweep",
    }
    for place, name in [*places.items(), ("", "**all**")]:
        found = [row for row in rows if place in ("", row["place"])]
        signals = Counter(row["signal"] for row in found)
        cold, same = (sum(bool(row[key]) for row in found) for key in ("cold", "identical"))
        lines.append([name, len(found), signals["SIGKILL"], signals["SIGTERM"], cold, len(found) - same])
    return _table("killed in | kills | SIGKILL | SIGTERM | with a cold kernel cache | another result", lines)


def _fuzz(rows: list[dict[str, Any]]) -> str:
    totals: dict[str, Counter[str]] = {}
    for row in rows:
        for test, counts in row["found"].items():
            totals.setdefault(test, Counter()).update(counts)
    names = {
        "constraint": "`TPGM`: update, project_, projected",
        "optimizers": "`SGDP`, `AdamP`, `AdamSPD`, `DiGraP`",
        "project": "`project`",
        "interpolate": "`interpolate`",
    }
    lines: list[list[object]] = []
    for test, name in names.items():
        c = totals.get(test, Counter())
        apart = sum(c[kind] for kind in ("permuted", "with gaps", "1 dimensions with gaps"))
        small = sum(c[kind] for kind in ("empty", "0 dimensions"))
        half = c["dtype torch.float16"] + c["dtype torch.bfloat16"]
        lines.append([name, c["held"], half, apart, small])
    lines.append(["**all**", *(sum(int(str(line[i])) for line in lines) for i in range(1, 5))])
    failed = sum(row["failed"] for row in rows)
    head = "held to its plain twin | cases | in half precision | tensors permuted or with gaps | tensors empty or 0-d"
    return f"{_table(head, lines)}\n\nTests that failed in these runs: {failed}."


def _flips(rows: list[dict[str, Any]]) -> str:
    latest = {row["kind"]: row for row in rows}
    lines: list[list[object]] = [
        [kind, row["flips"], row["cuts"], sum(row["accepted"].values()), row["named"]] for kind, row in latest.items()
    ]
    return _table("file | bits changed | cut short | accepted | file named", lines)


def _exactness(rows: list[dict[str, Any]]) -> str:
    lines: list[list[object]] = []
    for condition in dict.fromkeys(row["condition"] for row in rows):
        found = [row for row in rows if row["condition"] == condition]
        same, largest = sum(row["identical"] for row in found), max(row["largest"] for row in found)
        lines.append([condition, len(found), same, f"{largest:.1e}" if largest else "0"])
    return _table(
        "compared with one thread, warm cache | runs | all bits equal | largest difference of a weight", lines
    )


FIGURES: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "kills": _kills,
    "fuzz": _fuzz,
    "flips": _flips,
    "exactness": _exactness,
}


def promise_blocks(results: Path) -> dict[str, str]:
    """The tables of the page by name, each from its file of rows."""
    blocks = {}
    for name, figures in FIGURES.items():
        path = results / f"robustness-{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()] if path.exists() else []
        commits = sorted({row["commit"].rstrip("+") for row in rows} - {""})
        torch = sorted({row["versions"]["torch"] for row in rows})
        origin = f"Rows: `results/{path.name}`, torch {', '.join(torch)}, commit {', '.join(commits) or 'unknown'}."
        blocks[name] = f"{figures(rows)}\n\n{origin}" if rows else f"Not run yet (`results/{path.name}`)."
    return blocks


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
    promises = root / "book" / "promises.md"
    if promises.exists():
        figures = promise_blocks(root / "results")
        files[promises] = README_BLOCK.sub(
            lambda found: f"{found[1]}{figures[found[2]]}\n{found[3]}", promises.read_text(encoding="utf8")
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
