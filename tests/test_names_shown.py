"""Names that others chose (classes, OOD tests, labels of rows) are shown as they are: no markup, formula or HTML."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.figure import Figure
from torch import nn

import tpgm
from tpgm.book import icon_tables, toy
from tpgm.book.experiments import frames, full_scale
from tpgm.book.experiments.study import Entry, Study
from tpgm.book.experiments.variants import Variant
from tpgm.book.icon_benchmark.iconify import IconSet
from tpgm.book.notebook import Markup, code, markdown
from tpgm.book.plots import comparison
from tpgm.book.plots.interactive import static_html
from tpgm.names import in_figure, in_markdown
from tpgm.training import Result
from tpgm.training.evaluate import Accuracy

HTML = "<img src=x onerror=alert(1)>"
NAMES = [
    HTML,
    "<script>alert(1)</script>",
    "a | b",
    "a\n| c |",
    "[click](javascript:alert(1))",
    "![pixel](https://example.org/x.png)",
    "$\\href{javascript:alert(1)}{x}$",
    "\\(x\\)",
    "**bold** _so_ `code` ~~gone~~",
    "&lt;b&gt; &#60;",
    "\\| d",
]
PLAIN = ["my_drawings", "Q&A", "night-photos 2", "größe", "C++", "50 % (a)", "tpgm, lr=0.001"]


def text_of(table: str) -> tuple[str, list[list[str]]]:
    """The HTML of a Markdown table as notebooks and pages render it, and its cells' texts."""
    from markdown_it import MarkdownIt

    page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(table)
    lines = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return page, [[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)] for line in lines]


def seen(name: str) -> str:
    return " ".join(name.split())


def assert_shown(table: str, names: list[str], column: int = 0) -> None:
    page, lines = text_of(table)
    assert set(re.findall(r"</?(\w+)", page)) <= {"table", "thead", "tbody", "tr", "th", "td"}, page
    shown = [line[column] for line in lines]
    assert [name for name in names if seen(name) not in shown] == [], shown
    assert not re.search(r"(?<!\\)\$|\\[(\[]", table.replace("\\|", "")), "a formula could begin"


def variant(label: str) -> Variant:
    row = {"id": 0.9, "ood": 0.8, "val": 0.9, "seconds": 1.0, "ratios": {"w": 0.5}, "kinds": {"w": "linear"}}
    config = {"model": "m", "data": label, "label": label, "seed": 0, "method": "vanilla", "settings": {}}
    return Variant(label, "lr=1", ({**row, "config": config},))


def test_ordinary_names_stay_readable_where_nothing_renders_them() -> None:
    assert [in_markdown(name) for name in PLAIN] == PLAIN


@pytest.mark.parametrize("names", [NAMES, PLAIN], ids=["odd", "plain"])
def test_names_in_tables(names: list[str]) -> None:
    accuracies = {name: Accuracy(1, 2) for name in names}
    result = Result("m", {}, nn.Linear(1, 1), ("a",), {"val": Accuracy(1, 2), **accuracies}, [], {}, {}, {}, 1.0)
    of = {name: variant(name) for name in names}
    assert_shown(result.table(), names)
    assert_shown(markdown(icon_tables.accuracy_table(accuracies)), names)
    assert_shown(toy.accuracy_table({name: [(1.0, 2.0), (2.0, 3.0)] for name in names}), names)
    assert_shown(markdown(frames.overview([v.rows[0] for v in of.values()])), names, 1)
    assert_shown(markdown(frames.kinds({name: v.rows for name, v in of.items()})), names)
    assert_shown(markdown(frames.regret({n: {"mean": 0.1, "r": 0.2} for n in names})), names)
    head = pd.DataFrame([[1.0] * len(names)], columns=names)
    page, lines = text_of(markdown(head))
    assert lines[0] == [seen(name) for name in names]
    assert "<img" not in page


def test_a_row_of_anyone_shows_no_code_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    import json

    from tpgm.cli import main

    lines = [json.dumps(variant(name).rows[0]) for name in NAMES]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    assert main(["results", str(tmp_path / "rows.jsonl"), "--plot", str(tmp_path / "a.svg")]) == 0
    assert_shown(capsys.readouterr().out, NAMES, 1)
    drawn = (tmp_path / "a.svg").read_text()
    assert "<script" not in drawn
    assert "<img" not in drawn


def test_markup_that_is_meant_stays_and_holds_no_html() -> None:
    frame = pd.DataFrame([[Markup(f"**b** {HTML}"), code("a`b|c"), code(HTML)]], columns=["x", "y", "z"], dtype=object)
    page, ((*_,), cells) = text_of(markdown(frame))
    assert cells[0] == f"<strong>b</strong> {HTML}"
    assert "<img" not in page
    assert cells[1] == "<code>a'b|c</code>"
    assert cells[2].startswith("<code>")


def test_study_tables_keep_their_code() -> None:
    study = Study("s", "", {}, {}, {HTML: Entry("vanilla", {"epochs": 2}, "lr", (0.1, 0.2))})
    _, lines = text_of(markdown(frames.tried(study)))
    assert lines[1] == [HTML, "<code>vanilla</code>", lines[1][2], "<code>epochs=2</code>"]
    assert lines[1][2] == "<code>lr</code> in <code>0.1</code>, <code>0.2</code>"
    _, lines = text_of(markdown(full_scale.settings_frame(next(iter(full_scale.RECIPES)))))
    assert all(line[0].startswith("<code>") for line in lines[1:])


def test_links_of_licences_lead_to_addresses_only() -> None:
    def table(url: str) -> str:
        icons = IconSet(
            prefix="p", name=HTML, author="A [b](c)", url=url, license="L", license_url=url, category="", palette=False
        )
        return text_of(markdown(icon_tables.licence_table([icons])))[0]

    assert '<a href="https://example.org/a">A [b](c)</a>' in table("https://example.org/a")
    for url in ("javascript:alert(1)", "https://x) <img src=y onerror=z>", "http://a b"):
        assert "<a" not in table(url)
        assert "<img" not in table(url)


# --- figures


def texts(figure: Figure) -> list[str]:
    from matplotlib.text import Text

    figure.canvas.draw()
    return [t.get_text() for t in figure.findobj(Text)]


ODD = [HTML, "$\\foo$", "$a$b$", "_hidden", "50 $"]


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")  # small panels
@pytest.mark.parametrize("name", ODD)
def test_names_in_figures(name: str, tmp_path: Path) -> None:
    of, rows = {name: variant(name), "b": variant("b")}, {name: variant(name).rows}
    figures = [
        comparison.id_against_ood({name: of}),
        comparison.regret_bars({n: {name: 0.1, "mean": 0.1} for n in of}),
        comparison.ablation({name: of}),
        comparison.costs({name: 1.0, "b": 2.0}, name),
        comparison.ratios_by_depth(rows),
    ]
    model = nn.Linear(2, 2)
    figures.append(tpgm.report(tpgm.TPGM(model), title=name).figure)
    for figure in figures:
        assert any(in_figure(name) in text for text in texts(figure))
        figure.savefig(tmp_path / "a.svg")
        assert "<img" not in (tmp_path / "a.svg").read_text()
        plt.close(figure)
    legend = figures[0].legends[0]
    assert len(legend.get_texts()) == 2, "one that begins with _ has a place in the legend too"


def test_nothing_ends_the_script_that_holds_a_figures_data() -> None:
    go = pytest.importorskip("plotly.graph_objects")
    page = static_html(go.Figure(go.Bar(name="<!--<script></script>", y=[1])), HTML)
    assert page.count("<script") == page.count("</script") == 1
    assert "<!--" not in page
    assert "<img" not in page
