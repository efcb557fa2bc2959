"""The house: who may import whom, one name for one thing, and how large the library may grow.

Every rule reads syntax trees, so nothing is imported. A rule returns what breaks it, one line each; beside the test
that it holds for this package stands one that it catches an invented break.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BOOK, ENGINE = "tpgm.book", "tpgm._engine"
LIBRARY_LINES = 10_200

# a user writes `from tpgm.integrations.lightning import TPGMCallback`, or the same from transformers
SHARED_ON_PURPOSE = {"class TPGMCallback"}
# What names threads, shards, pointers or blocks of memory. Choosing a device (torch.cuda.is_available) is free.
ENGINE_MODULES = ("numba", "ctypes", "torch.distributed", "torch.multiprocessing", "multiprocessing.shared_memory")
ENGINE_ATTRIBUTES = {"data_ptr", "untyped_storage", "set_num_threads", "set_num_interop_threads"}


@dataclass(frozen=True)
class Module:
    """One source file. name: as imported, a package's for its ``__init__``; lines: all of them, empty ones too."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def in_book(self) -> bool:
        return inside(self.name, BOOK)


@dataclass(frozen=True)
class Import:
    """target: a module's name; level: "module" (when imported), "function" (when called) or "types" (never)."""

    target: str
    level: str


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def modules(root: Path) -> dict[str, Module]:
    """Every source file of the package ``tpgm`` under `root`, by name."""
    found = {}
    for path in sorted((root / "tpgm").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf8")
        found[name] = Module(name, path, ast.parse(text, str(path)), len(text.splitlines()))
    return found


def imports(module: Module, known: dict[str, Module]) -> Iterator[Import]:
    """What a module imports. ``from a import b`` imports ``a.b`` if that is a known module, and ``a`` otherwise."""
    package = module.name if module.path.stem == "__init__" else module.name.rpartition(".")[0]

    def visit(node: ast.AST, level: str) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, level) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield Import(whole if whole in known else base, level)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                yield from visit(child, "types")
            for child in node.orelse:
                yield from visit(child, level)
        else:
            called = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, "function" if called and level == "module" else level)

    return visit(module.tree, "module")


def texts(tree: ast.Module) -> Iterator[str]:
    """The string constants of a module, docstrings apart."""
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


# --- the rules


def library_that_knows_the_book(known: dict[str, Module]) -> list[str]:
    """Imports of the book outside it, at any level, and names by which importlib could import it."""
    found = []
    for module in known.values():
        if module.in_book:
            continue
        found += [f"{module.name}: {i.target}" for i in imports(module, known) if inside(i.target, BOOK)]
        found += [f"{module.name}: {t!r}" for t in texts(module.tree) if re.match(r"(tpgm)?\.book\b[\w.:]*$", t)]
        found += [
            f"{module.name}: {ast.unparse(node)}"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node) == BOOK
        ]
    return found


def circle(known: dict[str, Module], levels: tuple[str, ...] = ("module", "function")) -> list[str]:
    """One circle of imports, its first module repeated at the end, or [].

    Counted are imports in functions too: they would run, but two modules that need each other are one. Imports for
    type checkers are not counted. A package's ``__init__`` counts where a name is taken from it, not where one of its
    modules is imported.
    """
    wanted = {
        name: sorted({i.target for i in imports(module, known) if i.level in levels and i.target in known} - {name})
        for name, module in known.items()
    }
    done: set[str] = set()

    def search(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in wanted[name]:
            if found := search(target, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(known) if (found := search(name, []))), [])


def shared_names(known: dict[str, Module]) -> dict[str, list[str]]:
    """Last parts of module and package names, and names of public classes, that occur more than once."""
    found = defaultdict(list)
    for module in known.values():
        found[f"module {module.name.rpartition('.')[2]}"].append(module.name)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[f"class {node.name}"].append(module.name)
    return {name: where for name, where in found.items() if len(where) > 1}


def engine_outside_the_engine(known: dict[str, Module]) -> set[str]:
    """Uses of `ENGINE_MODULES` and `ENGINE_ATTRIBUTES` in other rooms of the library; the book may launch processes."""
    found = set()
    for module in known.values():
        if inside(module.name, ENGINE):
            continue
        names = {i.target for i in imports(module, known)}
        names |= {
            f"{node.module}.{a.name}"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ImportFrom)
            for a in node.names
        }
        names |= {ast.unparse(node) for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}
        for engine in ENGINE_MODULES:
            compiler = engine in ("numba", "ctypes")
            if (compiler or not module.in_book) and any(inside(name, engine) for name in names):
                found.add(f"{module.name}: {engine}")
        if not module.in_book:
            used = {node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}
            found |= {f"{module.name}: .{name}" for name in used & ENGINE_ATTRIBUTES}
    return found


def loads_that_run_code(known: dict[str, Module]) -> list[str]:
    """Calls of ``torch.load`` without ``weights_only=True``, under whatever name it was imported."""
    found = []
    for module in known.values():
        names = {"torch.load"}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                names |= {alias.asname or alias.name for alias in node.names if alias.name == "load"}
            if isinstance(node, ast.Import):
                names |= {f"{alias.asname}.load" for alias in node.names if alias.name == "torch" and alias.asname}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if given.get("weights_only") != "True":
                    found.append(f"{module.name}, line {node.lineno}")
    return found


def lines(known: dict[str, Module]) -> tuple[int, int]:
    """Of the library and of the book."""
    of_book = sum(module.lines for module in known.values() if module.in_book)
    return sum(module.lines for module in known.values()) - of_book, of_book


# --- this package keeps them


@pytest.fixture(scope="module")
def house() -> dict[str, Module]:
    return modules(ROOT)


def test_the_library_knows_nothing_of_the_book(house: dict[str, Module]) -> None:
    assert library_that_knows_the_book(house) == []


def test_no_circle_of_imports(house: dict[str, Module]) -> None:
    assert circle(house) == []


def test_one_name_means_one_module_or_class(house: dict[str, Module]) -> None:
    shared = {name: where for name, where in shared_names(house).items() if name not in SHARED_ON_PURPOSE}
    assert shared == {}


def test_machine_code_and_memory_stay_in_the_engine(house: dict[str, Module]) -> None:
    assert engine_outside_the_engine(house) == set()


def test_files_are_loaded_without_running_their_code(house: dict[str, Module]) -> None:
    assert loads_that_run_code(house) == []


def test_the_library_stays_small(house: dict[str, Module], record_property: pytest.RecordProperty) -> None:
    library, book = lines(house)
    record_property("lines of the library", library)
    record_property("lines of the book", book)
    print(f"library: {library:,} lines; book: {book:,} lines")
    assert library <= LIBRARY_LINES


# --- and each catches a break


def invented(root: Path, files: dict[str, str]) -> dict[str, Module]:
    """The modules of a package ``tpgm`` of these files, "book/toy" for tpgm/book/toy.py; what was there stays."""
    for name, text in files.items():
        path = root / "tpgm" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf8")
    for folder in {path.parent for path in (root / "tpgm").rglob("*.py")} | {root / "tpgm"}:
        (folder / "__init__.py").touch()
    return modules(root)


@pytest.mark.parametrize(
    "text",
    [
        "import tpgm.book.toy",
        "from tpgm.book import toy",
        "from tpgm import book",
        "from .book import toy",
        "def f():\n    from tpgm.book.toy import loss",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tpgm.book.toy import Task",
        "from importlib import import_module\nimport_module('tpgm.book.toy')",
        "from importlib import import_module\nimport_module('.book', 'tpgm')",
        "HOME = {'Task': 'tpgm.book.toy'}",
        "import tpgm\ntpgm.book.toy.loss()",
    ],
)
def test_a_library_that_knows_the_book_is_caught(text: str, tmp_path: Path) -> None:
    assert library_that_knows_the_book(invented(tmp_path, {"book/toy": "", "constraint": text}))
    assert not library_that_knows_the_book(invented(tmp_path, {"book/toy": text, "constraint": "'see tpgm.book.toy'"}))


def test_a_circle_is_caught(tmp_path: Path) -> None:
    files = {"a": "from tpgm import b", "b": "class B:\n    from tpgm.rooms.c import x", "rooms/c": "import tpgm.a"}
    assert circle(invented(tmp_path, files)) == ["tpgm.a", "tpgm.b", "tpgm.rooms.c", "tpgm.a"]
    waits = invented(tmp_path, {"rooms/c": "def f():\n    import tpgm.a"})
    assert circle(waits)
    assert circle(waits, ("module",)) == []
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tpgm.a\n"
    assert circle(invented(tmp_path, {"rooms/c": typed})) == []
    assert circle(invented(tmp_path, {"rooms/c": f"{typed}else:\n    import tpgm.a"}))


def test_a_circle_through_a_package_is_caught(tmp_path: Path) -> None:
    files = {"rooms/__init__": "from tpgm.rooms.c import x", "rooms/c": "from tpgm.rooms import y", "rooms/d": ""}
    assert circle(invented(tmp_path, files)) == ["tpgm.rooms", "tpgm.rooms.c", "tpgm.rooms"]
    assert circle(invented(tmp_path, {"rooms/c": "from tpgm.rooms import d"})) == []


def test_shared_names_are_caught(tmp_path: Path) -> None:
    runs = "class Run: ...\nclass _Own: ..."
    assert shared_names(invented(tmp_path, {"a": runs, "rooms/b": runs, "rooms/a": "", "book/rooms": ""})) == {
        "module a": ["tpgm.a", "tpgm.rooms.a"],
        "module rooms": ["tpgm.book.rooms", "tpgm.rooms"],
        "class Run": ["tpgm.a", "tpgm.rooms.b"],
    }


def test_the_engine_outside_is_caught(tmp_path: Path) -> None:
    files = {
        "a": "import numba\nimport torch\ntorch.distributed.barrier()",
        "b": "def f(t):\n    from ctypes import c_int\n    return t.data_ptr()",
        "book/c": "import torch.multiprocessing\nimport ctypes",
        "_engine/d": "import numba, ctypes\nfrom torch import distributed",
        "e": "from torch.distributed.tensor import DTensor",
        "f": "from torch import distributed",
    }
    assert engine_outside_the_engine(invented(tmp_path, files)) == {
        "tpgm.a: numba",
        "tpgm.a: torch.distributed",
        "tpgm.b: ctypes",
        "tpgm.b: .data_ptr",
        "tpgm.book.c: ctypes",
        "tpgm.e: torch.distributed",
        "tpgm.f: torch.distributed",
    }


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.load(p)",
        "import torch\ntorch.load(p, weights_only=False)",
        "import torch as t\nt.load(p)",
        "from torch import load as read\nread(p)",
    ],
)
def test_a_load_that_runs_code_is_caught(text: str, tmp_path: Path) -> None:
    assert loads_that_run_code(invented(tmp_path, {"a": text})) == ["tpgm.a, line 2"]
    safe = text.replace(", weights_only=False", "").replace("(p)", "(p, weights_only=True)")
    assert loads_that_run_code(invented(tmp_path, {"a": safe})) == []


def test_lines_are_counted_by_room(tmp_path: Path) -> None:
    assert lines(invented(tmp_path, {"a": "x = 1\n\n# two\n", "book/b": "y = 2\n" * 5})) == (3, 5)


def names_of_methods(tree: ast.Module, methods: set[str]) -> list[str]:
    """Names of methods that a module's code speaks of, other than as a parameter's default."""
    defaults = {
        id(default)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for default in [*node.args.defaults, *node.args.kw_defaults]
    }
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in defaults]
    return sorted({node.value for node in constants if isinstance(node.value, str) and node.value in methods})


def test_the_training_loop_knows_no_method_by_name(house: dict[str, Module]) -> None:
    from tpgm.methods import METHODS

    rooms = [module for name, module in house.items() if inside(name, "tpgm.training")]
    assert len(rooms) > 5
    assert {m.name: found for m in rooms if (found := names_of_methods(m.tree, set(METHODS)))} == {}
    branch = ast.parse("def run(method='tpgm'):\n    return 1 if method == 'lp-ft' else 2")
    assert names_of_methods(branch, set(METHODS)) == ["lp-ft"]
