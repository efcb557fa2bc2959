"""Sweeps: what a grid becomes, what is on disk after kills, failures and retries."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

from tpgm.book.experiments import experiment
from tpgm.book.sweep import Job, Store, read_grid, sweep
from tpgm.book.sweep.grid import expand
from tpgm.book.sweep.notebooks import chapters, declared, parse
from tpgm.cli import main

ROOT = Path(__file__).resolve().parent.parent
REAL = """
experiment: true
fixed:
  {source: tiny, train_per_class: 2, val_per_class: 1, size: 32, method: linear-probe,
   settings: {epochs: 1, batch_size: 32}}
product: {seed: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], settings.lr: [0.001, 0.003]}
"""


def notebook(path: Path, code: str) -> Path:
    cells = [
        nbformat.v4.new_code_cell('seed: int = 0  # of nothing\nkind: str = \'a\'  # one of "a", "b"'),
        nbformat.v4.new_code_cell(code),
    ]
    cells[0].metadata["tags"] = ["parameters"]
    made = nbformat.v4.new_notebook(cells=cells)
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made.metadata["language_info"] = {"name": "python"}
    nbformat.write(made, path)
    return path


# --- grids


def test_a_grid_is_products_zips_includes_without_excludes() -> None:
    section = {
        "fixed": {"settings": {"lr": 1.0, "epochs": 2}},
        "product": {"seed": [0, 1]},
        "zip": {"a": [1, 2], "settings.lr": [0.1, 0.2]},
        "exclude": [{"seed": 1, "a": 2}],
        "include": [{"seed": 9}],
    }
    assert list(expand(section)) == [
        {"settings": {"lr": 0.1, "epochs": 2}, "seed": 0, "a": 1},
        {"settings": {"lr": 0.2, "epochs": 2}, "seed": 0, "a": 2},
        {"settings": {"lr": 0.1, "epochs": 2}, "seed": 1, "a": 1},
        {"settings": {"lr": 1.0, "epochs": 2}, "seed": 9},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "must hold a mapping"),
        ("experiment: [", "no YAML"),
        ("fixed: {}", "exactly one of notebook, experiment, protocol"),
        ("{experiment: true, prodct: {}}", "unknown key 'prodct'"),
        ("{experiment: true, product: {seed: 3}}", "seed needs a list"),
        ("{experiment: true, zip: {seed: [1], size: [1, 2]}}", "of one length"),
        ("{experiment: true, product: {sed: [1]}}", "did you mean 'seed'"),
        ("{experiment: true, product: {method: [tpgn]}}", "did you mean 'tpgm'"),
        ("{experiment: true, product: {seed: [1]}, exclude: [{seed: 2}]}", "no run agrees"),
        ("{notebook: 03_ratio}", "did you mean '03_ratios'"),
        ("{notebook: 03_ratios, product: {seed: [a]}}", "seed must be of type int"),
        ("{notebook: 03_ratios, fixed: {profile: tiny}}", "choose one of smoke, quick, full"),
        ("{protocol: resnet:moon}", "resnet:upstream"),
        ("runs: [{experiment: true}, {experiment: 1}]", "section 2"),
    ],
)
def test_a_bad_grid_is_refused_before_any_work(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        read_grid(path)


@pytest.mark.parametrize("name", sorted(chapters("experiments", "yaml")))
def test_the_grids_of_the_package_are_whole(name: str) -> None:
    assert read_grid(name).due()


def test_the_protocol_goes_on_when_the_search_has_rows() -> None:
    plan = read_grid("resnet-upstream")
    first = plan.due()
    rows = [{"config": job.parameters, "val": 0.5} for job in first]
    after = plan.due(rows)
    assert len(after) > len(first)
    assert {job.parameters["seed"] for job in first} == {0}
    assert {job.parameters["seed"] for job in after} == {0, 1, 2}
    everything = [{"config": job.parameters, "val": 0.5} for job in after]
    assert {job.name for job in plan.due(everything)} == {job.name for job in after}


def test_names_follow_all_that_decides_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = notebook(tmp_path / "n.ipynb", "print(seed)")
    name = Job.of_notebook(path, {}).name
    assert Job.of_notebook(path, {"seed": 0}).name == name
    assert Job.of_notebook(path, {"seed": 1}).name != name
    notebook(path, "print(seed + 1)")
    assert Job.of_notebook(path, {}).name != name
    one = Job.of_experiment({"seed": 1}).name
    assert Job.of_experiment({"seed": 1, "label": "mine"}).name == one
    monkeypatch.setattr("tpgm.book.sweep.jobs.version", lambda _: "9.9")
    assert Job.of_experiment({"seed": 1}).name != one


# --- parameters and commands


def test_parameters_come_from_the_notebook_itself(tmp_path: Path) -> None:
    path = notebook(tmp_path / "n.ipynb", "")
    assert declared(path)["kind"].choices == ("a", "b")
    assert parse(path, {"seed": "3", "kind": "b"}) == {"seed": 3, "kind": "b"}
    for given, message in ({"sed": "1"}, "did you mean 'seed'"), ({"seed": "x"}, "type int"), ({"kind": "c"}, "a, b"):
        with pytest.raises(ValueError, match=message):
            parse(path, given)


def test_run_writes_a_notebook_or_says_which_cell_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = notebook(tmp_path / "good.ipynb", "print('seed is', seed)")
    assert main(["run", str(good), "-p", "seed", "3", "--out", str(tmp_path / "out.ipynb"), "--quiet"]) == 0
    assert "seed is 3" in (tmp_path / "out.ipynb").read_text()
    bad = notebook(tmp_path / "bad.ipynb", "1 / 0")
    assert main(["run", str(bad), "--out", str(tmp_path / "none.ipynb"), "--quiet"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert not (tmp_path / "none.ipynb").exists()
    assert "ZeroDivisionError" in (tmp_path / "none.failed.ipynb").read_text()


def test_data_and_completion_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for what, word in ("counts", "outline"), ("licences", "CC0-1.0"), ("splits", "ID test"), ("build", "SHA-256"):
        assert main(["data", what, "--source", "tiny", "--quiet"]) == 0
        assert word in capsys.readouterr().out
    assert main(["completion", "bash"]) == 0
    assert subprocess.run(["bash", "-n"], input=capsys.readouterr().out, text=True, check=False).returncode == 0


# --- sweeps


def test_what_fails_is_retried_then_reported_with_the_cells_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook(
        tmp_path / "n.ipynb",
        "from tpgm.book.notebook import record\nrecord(twice=2 * seed)\nassert seed != 1, 'not one'",
    )
    (tmp_path / "grid.yaml").write_text("{notebook: n.ipynb, product: {seed: [0, 1, 2]}}")
    out = tmp_path / "out"
    assert main(["sweep", str(tmp_path / "grid.yaml"), "--out", str(out), "--workers", "1", "--retries", "2"]) == 1
    printed = capsys.readouterr()
    assert "2 done (0 of them before), 1 failed" in printed.out
    assert "AssertionError: not one" in printed.err
    rows = experiment.read(out / "rows.jsonl")
    assert [row["recorded"] for row in rows] == [{"twice": 0}, {"twice": 4}]
    bad = next(job.name for job in read_grid(tmp_path / "grid.yaml").jobs if job.parameters["seed"] == 1)
    counts = Counter(note["what"] for note in Store(out).notes(bad))
    assert counts == {"started": 3, "failed": 3}
    assert "AssertionError" in (out / bad / "notebook.ipynb").read_text()
    assert "AssertionError" in (out / bad / "error.txt").read_text()


def test_a_store_behind_a_url(tmp_path: Path) -> None:
    store = Store("memory://sweep")
    (tmp_path / "row.json").write_text('{"run": "a"}')
    store.note("a", "started", "1")
    assert not store.is_done("a")
    store.publish("a", tmp_path, good=True)
    assert store.done() == {"a"}
    assert store.gather([]) == [{"run": "a"}]


def started(out: Path) -> int:
    return len(list(out.glob("*/attempts/*.started.json")))


def wait(condition: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def test_24_runs_survive_a_killed_worker_and_a_killed_sweep(tmp_path: Path) -> None:
    grid, out = tmp_path / "grid.yaml", tmp_path / "out"
    grid.write_text(REAL)
    command = [sys.executable, "-m", "tpgm.cli", "sweep", str(grid), "--out", str(out), "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    names = {job.name for job in read_grid(grid).due()}
    assert len(names) == 24

    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    sweeper = psutil.Process(first.pid)
    wait(lambda: len(list(out.glob("*/row.json"))) >= 4)
    worker = next(
        p for p in sweeper.children(recursive=True) if any("nursery" in " ".join(c.cmdline()) for c in p.children())
    )
    worker.kill()
    before = len(list(out.glob("*/row.json")))
    wait(lambda: len(list(out.glob("*/row.json"))) >= before + 6)  # it went on, with another worker
    family = sweeper.children(recursive=True)
    first.send_signal(signal.SIGKILL)
    first.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, "a killed sweep leaves no process"
    between = len(list(out.glob("*/row.json")))
    assert 10 <= between < 24

    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert f"24 done ({between} of them before), 0 failed" in second.stdout
    rows = experiment.read(out / "rows.jsonl")
    assert len(rows) == 24
    assert {row["run"] for row in rows} == names
    assert len({experiment.key(row["config"]) for row in rows}) == 24
    store = Store(out)
    finished = {name: [note["what"] for note in store.notes(name)].count("finished") for name in names}
    assert set(finished.values()) == {1}, "a run was computed twice"
    assert 24 < started(out) <= 24 + 1 + 2  # what the kills interrupted began again: one run, then two
    assert not list(out.glob("**/.*.part"))
    third = sweep(read_grid(grid), out, progress=False)
    assert not third.tries
    assert len(third.rows) == 24


def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path) -> None:
    grid, out = tmp_path / "grid.yaml", tmp_path / "out"
    grid.write_text(REAL)
    command = [sys.executable, "-m", "tpgm.cli", "sweep", str(grid), "--out", str(out), "--workers", "1"]
    # whoever started the tests may ignore Ctrl-C (nohup, a background job), and children would inherit that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    signal.signal(signal.SIGINT, before)
    wait(lambda: len(list(out.glob("*/row.json"))) >= 1)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "the same command goes on" in error
    assert "Traceback" not in error
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    assert not list(out.glob("**/.*.part"))
    for path in out.glob("*/row.json"):
        assert json.loads(path.read_text())["run"] == path.parent.name
