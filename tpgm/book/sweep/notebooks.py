"""Run a notebook with other parameters, checked against its own cell of parameters before any work."""

from __future__ import annotations

import ast
import importlib
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tpgm.book.notebook import PROFILES
from tpgm.files import write_aside
from tpgm.names import hint

_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's cell of parameters: ``name: kind = default  # help``.

    choices: the values it may have, () where any of its type will do: those of `profile`, and those that the help
    names after "one of", in double quotes or as the dotted name of a mapping.
    """

    name: str
    kind: type
    default: Any
    help: str
    choices: tuple[Any, ...] = ()

    def check(self, value: Any) -> Any:
        """The value, a whole number made float where a float is meant. Raises ValueError saying what is valid."""
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind:
            raise ValueError(f"{self.name} must be of type {self.kind.__name__}, got {value!r} ({self.help})")
        if self.choices and value not in self.choices:
            valid = ", ".join(map(str, self.choices))
            raise ValueError(f"{self.name} cannot be {value!r}; choose one of {valid}")
        if self.name == "seed" and value < 0:
            raise ValueError(f"seed must be at least 0, got {value}")
        return value

    def parse(self, text: str) -> Any:
        """A value from the command line's text. Raises ValueError as `check` does."""
        if self.kind is str:
            return self.check(text)
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = text  # of the wrong type
        return self.check(value)


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


def declared(notebook: str | Path) -> dict[str, Parameter]:
    """The parameters of a notebook by name, as papermill reads them from its cell tagged ``parameters``.

    Raises ValueError if there is no such cell, or for a parameter without a type or with a default that is no literal.
    """
    import papermill

    path = Path(notebook)
    found = {}
    for name, line in papermill.inspect_notebook(str(path)).items():
        kind, text = _TYPES.get(line["inferred_type_name"]), line["default"]
        try:
            default = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise ValueError(f"{path.name}: the default of {name} is no literal: {text}") from None
        kind = kind or type(default)
        choices = PROFILES if name == "profile" else _choices(line["help"])
        found[name] = Parameter(name, kind, default, line["help"], choices)
    if not found:
        raise ValueError(f"{path.name} has no cell tagged 'parameters'; papermill could change nothing in it")
    return found


def _choices(text: str) -> tuple[str, ...]:
    _, marker, rest = text.partition("one of ")
    if not marker:
        return ()
    if dotted := re.match(r"(tpgm(?:\.\w+)+)\.(\w+)", rest):
        return tuple(getattr(importlib.import_module(dotted[1]), dotted[2]))
    return tuple(re.findall(r'"([^"]+)"', rest))


def resolve(notebook: str | Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a notebook: those given, checked, and defaults for the rest.

    Raises ValueError listing the valid ones for an unknown name, a wrong type or an impossible value.
    """
    parameters = declared(notebook)
    for name in given:
        if name not in parameters:
            raise ValueError(
                f"{Path(notebook).name} has no parameter {name!r}; {hint(name, parameters)}It has: "
                f"{describe(parameters)}"
            )
    return {name: p.check(given[name]) if name in given else p.default for name, p in parameters.items()}


def parse(notebook: str | Path, texts: Mapping[str, str]) -> dict[str, Any]:
    """Parameters from the command line's texts; those given only. Raises ValueError as `resolve` does."""
    resolve(notebook, {name: p.default for name in texts if (p := declared(notebook).get(name))})
    parameters = declared(notebook)
    resolve(notebook, dict.fromkeys(set(texts) - set(parameters)))  # names the unknown ones
    return {name: parameters[name].parse(text) for name, text in texts.items()}


def describe(parameters: Mapping[str, Parameter]) -> str:
    return "; ".join(f"{p.name} ({p.kind.__name__}, default {p.default!r}): {p.help}" for p in parameters.values())


def run_notebook(
    notebook: str | Path, out: str | Path, parameters: Mapping[str, Any] | None = None, *, progress: bool = False
) -> float:
    """Execute a notebook alone in an empty directory and write it with its outputs to `out`; returns seconds.

    `out` is whole or absent; if a cell fails, ``<out>.failed.ipynb`` beside it shows where. Raises ValueError as
    `resolve` does before any work, and papermill's PapermillExecutionError for a cell that fails.
    """
    import papermill
    from traitlets.config import Config

    source, target = find(notebook), Path(out).resolve()
    given = {name: value for name, value in resolve(source, parameters or {}).items() if name in (parameters or {})}
    target.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as sockets:
        # over TCP, the default, the kernel would talk in the clear to whoever listens
        local = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        done = Path(sockets) / "done.ipynb"
        try:
            papermill.execute_notebook(
                str(source),
                str(done),
                given,
                cwd=empty,
                kernel_name="python3",
                progress_bar=progress,
                config=local,
                # a kernel logs its own shutdown as an error; what fails in a cell is raised
                extra_arguments=["--log-level=CRITICAL"],
            )
        except papermill.PapermillExecutionError:
            _place(done, target.with_suffix(".failed.ipynb"))
            raise
        _place(done, target)
        target.with_suffix(".failed.ipynb").unlink(missing_ok=True)
    return time.perf_counter() - began


def _place(source: Path, target: Path) -> None:
    with write_aside(target) as aside:
        aside.write_bytes(source.read_bytes())
