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


@pytest.mark.skipif(torch.__version__ < (2, 10), reason="older versions of torch leave functions we call without types")
def test_the_whole_package_and_code_that_uses_it_pass_mypy_strict(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    user, wrong = tmp_path / "user.py", tmp_path / "wrong.py"
    user.write_text(USER)
    wrong.write_text(USER.replace('norm="l2"', 'norm="l3"'))
    # one run, with the cache of `make check`: reading torch's types takes minutes the first time
    command = [sys.executable, "-m", "mypy", "--strict", "tpgm", str(user), str(wrong)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 1, found.stdout + found.stderr
    errors = [line for line in found.stdout.splitlines() if ": error: " in line]
    assert "has incompatible type \"Literal['l3']\"" in "".join(line for line in errors if "wrong.py" in line)
    assert not [line for line in errors if "user.py" in line]
    of_package = {line.partition(":")[0]: line for line in errors if line.startswith("tpgm/")}
    assert of_package == {}


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


@pytest.mark.parametrize("arguments", [["--help"], ["finetune", "--help"], None])
def test_help_and_the_package_alone_wait_for_neither_torch_nor_numpy(arguments: list[str] | None) -> None:
    code = f"""
import json, sys
import tpgm
if {arguments} is not None:
    from tpgm.cli import main
    try:
        main({arguments})
    except SystemExit as end:
        assert end.code == 0
print(json.dumps(sorted(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    *printed, imported = found.stdout.splitlines()
    assert not {"torch", "numpy"} & set(json.loads(imported))
    assert "tpgm" in json.loads(imported)
    if arguments:
        assert printed[0].startswith("usage: tpgm")


@pytest.mark.parametrize("name", ["transformers", "lightning"])
def test_without_the_library_an_integration_says_what_to_install(name: str) -> None:
    code = f"import sys; sys.modules[{name!r}] = None; import tpgm.integrations.{name}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert f"pip install 'tpgm[{name}]'" in found.stderr
