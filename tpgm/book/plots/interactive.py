"""Figures a reader can play with, in a notebook and in the book's static pages alike."""

from __future__ import annotations

import html
import os

import plotly.graph_objects as go
import plotly.io
from IPython.display import HTML, display


def static_html(figure: go.Figure, alt: str = "") -> str:
    """The figure as a self-contained HTML element that the book's ``figures.js`` draws.

    alt: what the figure shows, in words, for a reader who does not see it. The data stand inside the element as JSON;
    nothing in it refers to another host.
    """
    data = plotly.io.to_json(figure, validate=True).replace("<", "\\u003c")
    label = html.escape(alt, quote=True)
    return (
        f'<div class="tpgm-figure" role="figure" aria-label="{label}">'
        f'<script type="application/json">{data}</script>'
        f"<noscript>{label} (This figure needs JavaScript.)</noscript></div>"
    )


def show(figure: go.Figure, alt: str = "") -> None:
    """Show an interactive figure: through plotly's own renderer in a notebook, as static HTML in the book.

    alt: what the figure shows, in words. The book's build sets ``TPGM_STATIC_SITE=1``; there the figure works without
    a kernel, follows the page's light or dark theme and fits the width of a phone.
    """
    if os.environ.get("TPGM_STATIC_SITE") == "1":
        display(HTML(static_html(figure, alt)))
    else:
        figure.show()
