"""`tpgm.report`: its table says what the constraint says, its picture reaches a notebook and a file."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.image as mpimg
import pytest
import torch
from torch.nn.functional import cross_entropy

import tpgm
from tests.conftest import build


def trained() -> tpgm.TPGM:
    model, x, y = build("transformer")
    constraint = tpgm.TPGM(model, exclude=["head.*"], lr=0.05)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        constraint.update(lambda: cross_entropy(model(x[:8]), y[:8]))
        constraint.project_()
    return constraint


def test_the_table_has_a_line_for_each_block_with_its_numbers() -> None:
    constraint = trained()
    ratios, radii = constraint.ratios(), constraint.radii
    report = tpgm.report(constraint)
    assert [b.name for b in report.blocks] == ["embed", "blocks.0", "blocks.1"]
    block = report.blocks[1]
    names = [name for name in ratios if name.startswith("blocks.0.")]
    assert block.tensors == len(names) == 12
    assert block.weights == sum(constraint.anchor[name].numel() for name in names)
    assert block.ratio[0] == pytest.approx(sum(ratios[n] for n in names) / 12)
    assert block.ratio[1:] == (min(ratios[n] for n in names), max(ratios[n] for n in names))
    assert block.radius == (min(radii[n] for n in names), max(radii[n] for n in names))
    line = next(line for line in str(report).splitlines() if line.startswith("blocks.0"))
    assert line.split()[3] == f"{block.ratio[0]:.3f}"
    held = sum(r < 1 for r in ratios.values())
    assert held > 0
    assert f"{held} of {len(ratios)} tensors are held back" in str(report)
    assert "no radius yet" not in str(report)


def test_before_any_update_it_says_so() -> None:
    model, *_ = build("mlp")
    text = str(tpgm.report(tpgm.TPGM(model)))
    assert "6 have no radius yet" in text
    assert "(model)" in text
    assert "inf" in text


def test_the_picture_goes_to_a_notebook_and_to_a_file(tmp_path: Path) -> None:
    report = tpgm.report(trained(), tmp_path / "ratios.png", title="Mine")
    assert report.figure.axes[0].get_title() == "Mine"
    drawn = sum(len(line.get_xdata()) for line in report.figure.axes[0].lines)
    assert drawn == len(report.ratios)
    assert mpimg.imread(tmp_path / "ratios.png").ndim == 3
    bundle = report._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert bundle["text/plain"] == str(report)


def test_wrong_use_is_named(tmp_path: Path) -> None:
    constraint = trained()
    with pytest.raises(TypeError, match=r"must be a tpgm.TPGM, got a TinyTransformer"):
        tpgm.report(constraint.model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must end in one of .*png"):
        tpgm.report(constraint, tmp_path / "ratios.doc")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_table_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    report = tpgm.report(trained())
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert set(report._repr_mimebundle_()) == {"text/plain"}
    with pytest.raises(ImportError, match="pip install"):
        _ = report.figure
