"""Every mutation is caught by a check, and every check that a chapter shows is failed by a mutation."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pytest

import tpgm.book.linear as linear
from tests.test_repository import load_tool
from tpgm.book.linear.checks import Check

ROOT = Path(__file__).resolve().parent.parent
THEORY = sorted((ROOT / "notebooks").glob("0[1-5]*_*.ipynb"))
mutations = load_tool("mutations")
MUTANTS = mutations.all_mutants()


@functools.cache
def outcome(number: int) -> tuple[str, ...]:
    return tuple(mutations.outcome(MUTANTS[number]))


@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=lambda i: f"{MUTANTS[i].chapter}: {MUTANTS[i].change}")
def test_the_mutation_is_caught(number: int) -> None:
    assert outcome(number), f"{MUTANTS[number].statement}: no check fails"


def _checking_names(statements: Sequence[ast.stmt]) -> set[str]:
    """The names under which a chapter imports the modules and functions of the checks."""
    known = set()
    for node in statements:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tpgm.book.linear"):
            inside = node.module.split(".")[-1].startswith("verify_")
            known |= {alias.asname or alias.name for alias in node.names if inside or alias.name.startswith("verify_")}
    return known


def shown(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """The checks in the tables of a chapter, from its own cells, each run with few trials."""
    checks: list[Check] = []

    def table(shown_here: Sequence[Check]) -> str:
        checks.extend(shown_here)
        return ""

    monkeypatch.setattr(linear, "table", table)
    monkeypatch.setattr(Check, "require", lambda check: check)  # 40 draws may be far from the mean
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    trees = [ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", source, flags=re.MULTILINE)) for source in cells]
    statements = [node for tree in trees for node in tree.body]
    known = _checking_names(statements)
    space: dict[str, object] = {"profile": "smoke", "seed": 0}
    for node in statements:
        if isinstance(node, ast.FunctionDef | ast.Import | ast.ImportFrom) or _assigned(node) & {"rng", "size"}:
            _run([node], space)
    for tree in trees:
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if names & known and names & {"table", "verified"}:
            for missing in names & {name for node in statements for name in _assigned(node)} - space.keys():
                _run([node for node in statements if missing in _assigned(node) and node not in tree.body], space)
            _run(tree.body, space)
    return checks


def _assigned(node: ast.stmt) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else []
    return {leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}


def _run(statements: Sequence[ast.stmt], space: dict[str, object]) -> None:
    exec(compile(ast.Module(list(statements), []), "chapter", "exec"), space)


@pytest.mark.parametrize("path", THEORY, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")
def test_every_check_of_the_chapter_can_fail(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {check.name for check in shown(path, monkeypatch)}
    monkeypatch.undo()
    assert names, "the chapter shows no check"
    caught = {name for number in range(len(MUTANTS)) for name in outcome(number)}
    assert not names - caught


def test_the_page_says_what_the_mutants_give() -> None:
    text = mutations.page(MUTANTS, [outcome(number) for number in range(len(MUTANTS))])
    assert mutations.PAGE.read_text(encoding="utf8") == text, "run: python tools/mutations.py"
