"""`tpgm results` on every kind of file that this project writes, and its figure."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

import tpgm
from tests.small import small_data, small_start
from tpgm.book.experiments import experiment, variants
from tpgm.book.plots.comparison import MARKERS, id_against_ood, look
from tpgm.book.plots.style import CYCLE
from tpgm.cli import main

RESULTS = Path(__file__).resolve().parent.parent / "results"
FILES = sorted(RESULTS.glob("**/*.jsonl"))


@pytest.mark.parametrize("file", FILES, ids=[p.relative_to(RESULTS).as_posix() for p in FILES])
def test_every_committed_file_is_shown_with_all_its_rows(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = len(experiment.read(file))
    assert main(["results", str(file), "--csv"]) == 0
    blocks = capsys.readouterr().out.split("\n\n")  # of several tables each has a title
    tables = blocks[1::2] if len(blocks) > 1 else blocks
    assert sum(len(list(csv.DictReader(io.StringIO(table)))) for table in tables) == count
    assert main(["results", str(file)]) == 0
    assert capsys.readouterr().out.count("|---|") >= 1


def test_numbers_inside_become_columns_and_kinds_their_own_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", str(RESULTS / "benchmarks-speed.jsonl"), str(RESULTS / "robustness-fuzz.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "benchmarks-speed.jsonl, update\n\n| config.model |" in printed
    assert "| seconds.mars |" in printed
    assert "robustness-fuzz.jsonl\n\n| cases | failed | seconds |" in printed


def test_runs_of_finetune_are_shown_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("vanilla", "linear-probe"):
        tpgm.finetune(small_start(), small_data(), method, out=tmp_path / method, progress=False, epochs=1)
    files = [str(tmp_path / method / "result.json") for method in ("vanilla", "linear-probe")]
    assert main(["results", *files]) == 0
    head, _, first, second = capsys.readouterr().out.splitlines()
    assert "| accuracies.id_test.accuracy |" in head
    assert first.startswith("| vanilla |")
    assert second.startswith("| linear-probe |")
    assert main(["results", *files, "--plot", str(tmp_path / "a.svg")]) == 1
    assert "--plot draws runs of tpgm experiment" in capsys.readouterr().err
    assert main(["results", str(tmp_path / "absent.json")]) == 1
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_the_figure_is_written_in_vectors_too(kind: str, tmp_path: Path) -> None:
    assert main(["results", str(RESULTS / "zero-shot-resnet.jsonl"), "--plot", str(tmp_path / f"a.{kind}")]) == 0
    start = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}[kind]
    assert (tmp_path / f"a.{kind}").read_bytes().startswith(start)


@pytest.mark.parametrize("names", [("resnet-upstream", "resnet-imagenet"), ("zero-shot-resnet",), ("text",)])
def test_no_label_is_cut_and_the_legend_covers_no_panel(names: tuple[str, ...]) -> None:
    panels: dict[str, Any] = {}
    rows = experiment.read(*(RESULTS / f"{name}.jsonl" for name in names))
    for (model, label, number), variant in variants.grouped(rows).items():
        panels.setdefault(model, {})[f"{label} {number}"] = variant
    figure = id_against_ood(panels)
    figure.draw_without_rendering()
    whole, (legend,) = figure.bbox, figure.legends
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= whole.x1 + 1
        assert box.y1 <= whole.y1 + 1
        assert not legend.get_window_extent().overlaps(box)
        assert axes.bbox.height > 100
    plt.close(figure)


def test_marks_are_told_apart_as_long_as_that_can_be() -> None:
    labels = [str(n) for n in range(len(CYCLE) * len(MARKERS))]
    assert len({tuple(look(label, labels).values()) for label in labels}) == len(labels)
