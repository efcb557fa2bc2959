"""Sphinx extension: text and figures that are made while the book is built, and what stands in a page's head.

``{built}`` marks are filled by `tpgm.book.site`. The directive ``svg-figure`` puts a drawing into the page itself,
where it follows the theme: a file beside the page, or ``result``, drawn from rows; its content is the caption. Scripts
are loaded only by the pages that have something for them.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

# script: what a page that needs it has
SCRIPTS = {"figures.js": "tpgm-figure", "schematic.js": 'id="schematic"'}


def read(app: Sphinx, name: str, source: list[str]) -> None:
    if "{built}" in source[0]:
        from tpgm.book import site

        source[0] = site.fill(source[0])


class SvgFigure(SphinxDirective):
    has_content = True
    required_arguments = 1
    option_spec = {"name": directives.unchanged}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        if self.arguments[0] == "result":
            from tpgm.book.site import result_svg

            drawing = result_svg()
        else:
            relative, path = self.env.relfn2path(self.arguments[0])
            self.env.note_dependency(relative)
            drawing = Path(path).read_text(encoding="utf8")
        caption = nodes.Element()
        self.state.nested_parse(self.content, self.content_offset, caption)
        first, *rest = caption.children
        figure = nodes.figure("", nodes.raw("", drawing, format="html"))
        figure += nodes.caption("", "", *first.children)
        if rest:
            figure += nodes.legend("", *rest)
        self.set_source_info(figure)
        self.add_name(figure)
        return [figure]


def description(doctree: nodes.document) -> str:
    """The page's first paragraph of a sentence as plain text, cut at a sentence or a word before 200 characters."""
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if isinstance(paragraph.parent, nodes.section | nodes.document) and len(text) > 30:
            if len(text) <= 200:
                return text
            ends = [end.end() for end in re.finditer(r"[.?!](?= )", text[:200])]
            return text[: ends[-1]] if ends and ends[-1] > 60 else f"{text[:199].rsplit(' ', 1)[0]}…"
    return ""


def head(app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    body = context.get("body", "")
    for script, sign in SCRIPTS.items():
        if sign in body:
            app.add_js_file(script)
    if 'class="math' not in body:  # Sphinx loads it, a megabyte, for pages without a formula too
        scripts = context["script_files"]
        scripts[:] = [s for s in scripts if "mathjax" not in str(getattr(s, "filename", s) or "")]
    if doctree is None:
        return
    said = {
        "og:type": "website" if name == app.config.root_doc else "article",
        "og:site_name": app.config.html_title,
        "og:title": re.sub(r"<[^>]*>", "", html.unescape(context["title"])),
        "og:description": (about := description(doctree) or f"{context['title']}: {app.config.html_title}"),
    }
    if app.config.html_baseurl:
        said["og:url"] = f"{app.config.html_baseurl.rstrip('/')}/{name}.html"
    tags = [f'<meta name="description" content="{html.escape(about)}"/>']
    tags += [f'<meta property="{key}" content="{html.escape(value)}"/>' for key, value in said.items()]
    context["metatags"] = "\n".join([context.get("metatags", ""), *tags])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", read)
    app.connect("html-page-context", head, priority=900)  # after those that add scripts
    app.add_directive("svg-figure", SvgFigure)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
