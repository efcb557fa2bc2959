"""Kills, damaged files and the page that counts them: a few cases of what is run by hand in numbers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_repository import load_tool
from tpgm.book.experiments import experiment

ROOT = Path(__file__).resolve().parent.parent
flips, notebooks = load_tool("flips", "benchmarks"), load_tool("notebooks")


def test_no_damage_to_a_file_is_accepted(tmp_path: Path) -> None:
    kinds = [*flips.stages(tmp_path), *flips.sweep(tmp_path), flips.cached(tmp_path), *flips.trainer(tmp_path)]
    assert len(kinds) >= 6
    for kind in kinds:
        row = flips.tried(kind, seed=1)
        assert row["accepted"] == {}, row
        assert row["named"] == flips.FLIPS + flips.CUTS, row
        assert set(row["errors"]) <= {"ValueError", "OSError", "UserWarning"}, row


def test_a_file_without_a_checksum_would_be_counted(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    path.write_text(json.dumps({"run": "a", "id": 0.123456789}))
    row = flips.tried(flips.Kind("bare", path, lambda: json.loads(path.read_bytes().decode("latin1"))), seed=0)
    assert row["accepted"]["bit"] > 10


def test_killed_runs_end_as_if_nobody_had_killed_them(tmp_path: Path) -> None:
    """Three kills of those that benchmarks/kills.py makes in hundreds."""
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, str(ROOT / "benchmarks" / "kills.py"), "--out", str(out), "--cases", "6", "--cold", "no"]
    places = ["--place", "training", "--place", "checkpoint", "--place", "store"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *places], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = experiment.read(out)
    assert len(rows) >= 3
    assert all(row["identical"] and row["status"] for row in rows)
    again = subprocess.run(
        [*command, *places], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert again.returncode == 0
    assert experiment.read(out) == rows, "what has a row is not run again"


def test_a_kill_with_another_result_is_counted() -> None:
    rows = [
        {"place": "training", "signal": "SIGKILL", "cold": True, "identical": True},
        {"place": "sweep", "signal": "SIGTERM", "cold": False, "identical": False},
    ]
    table = notebooks._kills(rows)
    assert "| training | 1 | 1 | 0 | 1 | 0 |" in table
    assert "| a sweep | 1 | 0 | 1 | 0 | 1 |" in table
    assert "| **all** | 2 | 1 | 1 | 1 | 1 |" in table


def test_the_page_on_promises_shows_every_table_and_follows_the_rows(tmp_path: Path) -> None:
    page = (ROOT / "book" / "promises.md").read_text(encoding="utf8")
    assert set(re.findall(r"written by tools/notebooks.py: (\w+)", page)) == set(notebooks.FIGURES)
    for text in notebooks.promise_blocks(ROOT / "results").values():
        assert text in page
    assert all("Not run yet" in text for text in notebooks.promise_blocks(tmp_path).values())
    row: dict[str, Any] = {"kind": "a file", "flips": 7, "cuts": 3, "accepted": {"bit": 2}, "named": 8}
    (tmp_path / "robustness-flips.jsonl").write_text(
        json.dumps({**row, "commit": "abc+", "versions": {"torch": "9.9"}}) + "\n"
    )
    text = notebooks.promise_blocks(tmp_path)["flips"]
    assert "| a file | 7 | 3 | 2 | 8 |" in text
    assert "torch 9.9, commit abc." in text


@pytest.mark.parametrize("name", ["kills", "fuzz", "flips", "exactness"])
def test_recorded_rows_hold_what_the_page_promises(name: str) -> None:
    path = ROOT / "results" / f"robustness-{name}.jsonl"
    if not path.exists():
        pytest.skip("not run yet")
    rows = experiment.read(path)
    assert rows
    if name == "kills":
        assert all(row["identical"] for row in rows)
        assert len({row["case"] for row in rows}) == len(rows), "a case is counted twice"
    elif name == "fuzz":
        assert all(row["failed"] == 0 for row in rows)
    elif name == "flips":
        latest = {row["kind"]: row for row in rows}
        assert not [kind for kind, row in latest.items() if row["accepted"]]
    else:
        promised = ("again", "cold kernel cache", "resumed")
        assert all(row["identical"] for row in rows if row["condition"] in promised)
