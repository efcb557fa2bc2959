"""The public surface for a type checker, and what importing the package brings along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
# the rest of the package follows
PUBLIC = [
    "__init__", "anchor", "constraint", "files", "interpolation", "memory", "names", "projection", "reporting",
    "_engine/exchange", "_engine/gradients", "_engine/layout", "_engine/numba",
    "_engine/passes", "_engine/sharded", "integrations/__init__", "integrations/driver", "integrations/lightning",
    "integrations/transformers", "optim/__init__", "optim/anchored", "optim/digrap", "optim/ftp", "optim/spd",
    "training/batches", "training/checkpoint", "training/evaluate", "training/interruption", "training/loop",
    "training/result", "training/store",
]  # fmt: skip
# one cache for all: reading torch's types takes a minute the first time
OPTIONS = ("--follow-imports", "silent", "--cache-dir", str(ROOT / ".mypy_cache"))
USER = """
from __future__ import annotations

import torch
from torch import nn

import tpgm
from tpgm.optim import AdamP

model = nn.Linear(3, 2)
constraint = tpgm.TPGM(model, norm="l2", anchor="zero", lr=0.1)
loss: float = constraint.update(lambda: model(torch.ones(3)).sum())
constraint.project_()
with constraint.projected():
    radii: dict[str, float] = constraint.radii
text: str = str(tpgm.report(constraint, "ratios.png"))
between: nn.Linear = tpgm.interpolate(model, model.state_dict(), 0.5)
weight: torch.Tensor = tpgm.project(model.weight, between.weight, 0.1)
optimizer: torch.optim.Optimizer = AdamP(model.parameters(), lr=1e-3)
"""


def mypy(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *arguments]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.__version__ < (2, 10), reason="older versions of torch leave functions we call without types")
def test_the_public_modules_pass_mypy_strict() -> None:
    pytest.importorskip("mypy")
    methods = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tpgm" / "methods").glob("*.py")]
    found = mypy(*OPTIONS, *(f"tpgm/{name}.py" for name in PUBLIC), *methods)
    assert found.returncode == 0, found.stdout + found.stderr


def test_code_that_uses_the_package_passes_mypy_strict(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "wrong.py").write_text(USER.replace('norm="l2"', 'norm="l3"'))
    found = mypy(*OPTIONS, "user.py", folder=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    wrong = mypy(*OPTIONS, "wrong.py", folder=tmp_path)
    assert "has incompatible type \"Literal['l3']\"" in wrong.stdout, "the types say something"


def test_importing_the_package_imports_nothing_optional() -> None:
    code = """
import json, sys, torch
before = set(sys.modules)
import tpgm, tpgm.integrations, tpgm.optim
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    brought = set(json.loads(found.stdout))
    assert "tpgm" in brought
    assert brought <= {"tpgm", *sys.stdlib_module_names, "torch", "numpy"}


@pytest.mark.parametrize("name", ["transformers", "lightning"])
def test_without_the_library_an_integration_says_what_to_install(name: str) -> None:
    code = f"import sys; sys.modules[{name!r}] = None; import tpgm.integrations.{name}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert f"pip install 'tpgm[{name}]'" in found.stderr
