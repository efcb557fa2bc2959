"""Run a notebook with other parameters, checked against its own cell of parameters before any work."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import math
import os
import re
import tempfile
import time
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tpgm.book.notebook import PROFILES
from tpgm.check import hint
from tpgm.files import require_writable, write_aside

FAILED = ".failed.ipynb"
_TYPES = {kind.__name__: kind for kind in (str, int, float, bool, list, dict, tuple)} | {"None": type(None)}
_SOCKET = 107 - len("/kernel-12345")  # what a Unix socket's path may have, in bytes, less the kernel's own part


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's cell of parameters: ``name: kind = default  # help``.

    kinds: the types it may have, by its annotation, else that of its default; () where any literal will do. default:
    its value, or `...` where it is no literal, which is left to the notebook; text: as it is written. choices: the
    values it may have, () where any of its type will do: those of `profile`, and those that the help names after "one
    of", in double quotes or as the dotted name of a mapping.
    """

    name: str
    kinds: tuple[type, ...]
    default: Any
    text: str
    help: str
    choices: tuple[Any, ...] = ()

    @property
    def kind(self) -> str:
        return " or ".join("None" if kind is type(None) else kind.__name__ for kind in self.kinds) or "any"

    def check(self, value: Any) -> Any:
        """The value, a whole number made float where a float is meant. Raises ValueError saying what is valid."""
        if type(value) is int and float in self.kinds and int not in self.kinds:
            value = float(value)
        if self.kinds and type(value) not in self.kinds:
            raise ValueError(f"{self.name} must be of type {self.kind}, got {value!r} ({self.help})")
        if not _literal(value):
            raise ValueError(f"{self.name} must be made of numbers, texts, None, lists and mappings, got {value!r}")
        if self.choices and value not in self.choices:
            valid = ", ".join(map(str, self.choices))
            raise ValueError(f"{self.name} cannot be {value!r}; choose one of {valid}")
        if self.name == "seed" and type(value) is int and value < 0:
            raise ValueError(f"seed must be at least 0, got {value}")
        return value

    def parse(self, text: str) -> Any:
        """A value from the command line's text. Raises ValueError as `check` does."""
        if self.kinds == (str,):
            return self.check(text)
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = text
        return self.check(text if str in self.kinds and type(value) not in self.kinds else value)


def _literal(value: Any) -> bool:
    """Whether a value can be written into a notebook as it is: of exactly these types, whose text runs no code."""
    if type(value) in (list, tuple):
        return all(map(_literal, value))
    if type(value) is dict:
        return all(type(name) is str and _literal(of) for name, of in value.items())
    return type(value) in (str, int, bool, type(None)) or (type(value) is float and math.isfinite(value))


def _shipped(name: str) -> Path:
    """A folder of the repository that the wheel carries inside the package."""
    installed = Path(str(files("tpgm"))) / f"_{name}"
    return installed if installed.is_dir() else Path(__file__).parents[3] / name


def chapters(folder: str = "notebooks", suffix: str = "ipynb") -> dict[str, Path]:
    """The chapters that come with the package, by name, such as "03_ratios"; ``chapters("experiments", "yaml")``: the
    grids."""
    return {path.stem: path for path in sorted(_shipped(folder).glob(f"*.{suffix}"))}


def find(name: str | Path, folder: str = "notebooks", suffix: str = "ipynb") -> Path:
    """A notebook (or another kind of file, see `chapters`) by its path, or by its name if it comes with the package.

    Raises FileNotFoundError listing the names.
    """
    if (path := Path(name)).is_file():
        return path.resolve()
    known = chapters(folder, suffix)
    if (stem := str(name).removesuffix(f".{suffix}")) in known:
        return known[stem]
    come = ", ".join(known) or "none"
    raise FileNotFoundError(f"no file {str(name)!r}; {hint(stem, known)}With the package come: {come}")


def beside(notebook: Path) -> Path | None:
    """The folder whose files a notebook may read and import; None for the chapters, which need none."""
    return None if notebook.parent == _shipped("notebooks").resolve() else notebook.parent


def declared(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters of a notebook by name: what its first cell tagged ``parameters`` assigns.

    Raises ValueError if there is no such cell or it is no Python.
    """
    import nbformat

    path = Path(notebook)
    try:
        content = nbformat.read(path, as_version=4)
        cells = [c for c in content.cells if "parameters" in c.metadata.get("tags", [])]
    except Exception as error:  # nbformat raises its own, jsonschema's, and those of what it trips over
        reason = "it is not JSON" if isinstance(error, nbformat.reader.NotJSONError) else "it is not of its format"
        if isinstance(error, OSError):
            reason = str(error.strerror)
        raise ValueError(
            f"{path} is not a notebook ({reason}): give a Jupyter notebook, an .ipynb of format 4"
        ) from error
    if not cells:
        raise ValueError(f"{path.name} has no cell tagged 'parameters': tag the cell whose values may change")
    source = re.sub(r"^\s*[%!?].*$", "", cells[0].source, flags=re.MULTILINE)  # IPython's own lines
    try:
        lines = ast.parse(source).body
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except SyntaxError as error:
        where = f"line {error.lineno}: {(error.text or '').strip()}"
        told = f"is not valid Python ({error.msg}, {where})"
        raise ValueError(f"{path.name}: the cell tagged 'parameters' {told}: correct the cell") from error
    notes = {token.end[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    found = {}
    for line in lines:
        if isinstance(line, ast.Assign) and len(line.targets) == 1:
            target, value, annotation = line.targets[0], line.value, None
        elif isinstance(line, ast.AnnAssign) and line.value is not None:
            target, value, annotation = line.target, line.value, line.annotation
        else:
            continue
        if isinstance(target, ast.Name):
            note = notes.get(line.end_lineno or 0, "").lstrip("# ").strip()
            found[target.id] = _parameter(target.id, value, annotation, note)
    return found


def _parameter(name: str, value: ast.expr, annotation: ast.expr | None, note: str) -> Parameter:
    try:
        default = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        default = ...
    kinds = _kinds(annotation) if annotation else () if default in (None, ...) else (type(default),)
    choices = PROFILES if name == "profile" and default in PROFILES else _choices(note)
    return Parameter(name, kinds, default, ast.unparse(value), note, choices)


def _kinds(annotation: ast.expr) -> tuple[type, ...]:
    """The types an annotation allows; () for one that says more than simple types, None and unions of them."""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        left, right = _kinds(annotation.left), _kinds(annotation.right)
        return left + right if left and right else ()
    text = ast.unparse(annotation.value if isinstance(annotation, ast.Subscript) else annotation)
    return (_TYPES[text],) if text in _TYPES else ()


def _choices(text: str) -> tuple[str, ...]:
    _, marker, rest = text.partition("one of ")
    if not marker:
        return ()
    if dotted := re.match(r"(tpgm(?:\.\w+)+)\.(\w+)", rest):
        return tuple(getattr(importlib.import_module(dotted[1]), dotted[2]))
    return tuple(re.findall(r'"([^"]+)"', rest))


def checked(notebook: str | Path, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters given, checked; and every parameter: those, and defaults, as text where they are no literals.

    Raises ValueError listing the valid ones for an unknown name, a wrong type or an impossible value.
    """
    parameters = declared(notebook)
    for name in given:
        if name not in parameters:
            has = "; ".join(f"{p.name} ({p.kind}, default {p.text}): {p.help}" for p in parameters.values()) or "none"
            raise ValueError(f"{Path(notebook).name} has no parameter {name!r}; {hint(name, parameters)}It has: {has}")
    found = {name: parameters[name].check(value) for name, value in given.items()}
    every = {name: p.default if _literal(p.default) else p.text for name, p in parameters.items()}
    return found, {**every, **found}


def parse(notebook: str | Path, texts: Mapping[str, str]) -> dict[str, Any]:
    """Parameters from the command line's texts; those given only. Raises ValueError as `checked` does."""
    parameters = declared(notebook)
    checked(notebook, dict.fromkeys(set(texts) - set(parameters)))  # names the unknown ones
    return {name: parameters[name].parse(text) for name, text in texts.items()}


def run_notebook(
    notebook: str | Path,
    out: str | Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    beside: str | Path | None = None,
    progress: bool = False,
    cell_limit: float | None = None,
) -> float:
    """Execute a notebook in a directory of its own and write it with its outputs to `out`; returns seconds.

    Links to the files of the folder `beside`, if there is such a folder, stand in that directory, so that the notebook
    can read and import them; what it writes is gone afterwards. cell_limit: seconds that a cell may take. `out` is
    whole or absent; if a cell fails or the kernel dies, ``<out>.failed.ipynb`` beside it shows how far it came. Raises
    ValueError as `checked` does and OSError if `out` cannot be written before any work, and papermill's or the kernel's
    error for a cell that fails.
    """
    import papermill
    from traitlets.config import Config

    source, target = find(notebook), Path(out).resolve()
    given, _ = checked(source, parameters or {})
    require_writable(target)
    failed, began = target.with_suffix(FAILED), time.perf_counter()
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory(dir=_short()) as sockets:
        for path in Path(beside).iterdir() if beside is not None and Path(beside).is_dir() else ():
            with contextlib.suppress(OSError):
                (Path(place) / path.name).symlink_to(path)
        # over TCP, the default, the kernel would talk in the clear to whoever listens
        local = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        done = Path(sockets) / "done.ipynb"
        try:
            papermill.execute_notebook(
                str(source),
                str(done),
                given,
                cwd=place,
                kernel_name="python3",
                progress_bar=progress,
                config=local,
                execution_timeout=cell_limit,
                # a kernel logs its own shutdown as an error; what fails in a cell is raised
                extra_arguments=["--log-level=CRITICAL"],
            )
        except BaseException:
            if done.exists():
                _place(done, failed)
            raise
        _place(done, target)
        failed.unlink(missing_ok=True)
    return time.perf_counter() - began


def _short() -> str | None:
    """Where a directory with sockets can be made: None for the usual place, unless its path is too long."""
    name = len(os.fsencode("/tmp12345678"))
    for place in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/dev/shm"):
        if place and len(os.fsencode(place)) + name <= _SOCKET and os.access(place, os.W_OK | os.X_OK):
            return place
    return None


def _place(source: Path, target: Path) -> None:
    with write_aside(target) as aside:
        aside.write_bytes(source.read_bytes())
