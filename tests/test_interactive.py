"""Interactive figures: what the book's static pages get, and what a notebook gets."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import plotly.graph_objects as go
import pytest

from tpgm.book.plots import interactive


@pytest.fixture
def figure() -> go.Figure:
    return go.Figure(go.Scatter(x=[0.0, 1.0], y=[1.0, 2.0], name='</script> & "quotes"'))


def test_static_figure_holds_its_data_and_its_description(figure: go.Figure) -> None:
    text = interactive.static_html(figure, alt='ID risk "falls" & OOD risk rises')
    label = re.search(r'aria-label="([^"]*)"', text)
    assert label is not None
    assert html.unescape(label[1]) == 'ID risk "falls" & OOD risk rises'
    assert text.count("</script>") == 1, "a name in the data must not end the element"
    data = re.search(r'<script type="application/json">(.*)</script>', text)
    assert data is not None
    assert json.loads(data[1])["data"][0]["name"] == '</script> & "quotes"'


def test_static_figure_refers_to_no_host(figure: go.Figure) -> None:
    assert "http" not in interactive.static_html(figure)


@pytest.mark.parametrize("static", [True, False])
def test_show_chooses_by_the_environment(figure: go.Figure, static: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(interactive, "display", shown.append)
    monkeypatch.setattr(go.Figure, "show", lambda self: shown.append(self))
    monkeypatch.setenv("TPGM_STATIC_SITE", "1" if static else "0")
    interactive.show(figure, "a line")
    (what,) = shown
    assert (getattr(what, "data", "") == interactive.static_html(figure, "a line")) is static
    assert isinstance(what, go.Figure) is not static
